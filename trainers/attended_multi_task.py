"""The multi-task trainer with an attention of the papers in nnU-Net's own encoder."""

from braintum.architectures.networks.attended_multi_task_unet import (
    large_kernel_network_class,
    masked_attention_network_class,
)
from braintum.trainers.multi_task import nnUNetTrainerMultiTask
from braintum.trainers.networks import multi_task_network
from braintum.trainers.recipes import papers


class nnUNetTrainerMultiTaskLKA(nnUNetTrainerMultiTask):
    """The deepest encoder stages get large kernel attention, paper 002's."""

    papers = (papers.RESSE_LKA,)
    build_network_architecture = staticmethod(
        multi_task_network(lambda plan: large_kernel_network_class(plan.network_arch_class_name))
    )


class nnUNetTrainerMultiTaskMaskedAttention(nnUNetTrainerMultiTask):
    """The deepest encoder stages get a BT block with adaptive masked attention, paper 000's."""

    papers = (papers.BRAINTUMNET,)
    build_network_architecture = staticmethod(
        multi_task_network(lambda plan: masked_attention_network_class(plan.network_arch_class_name))
    )
