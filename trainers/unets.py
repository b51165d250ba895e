"""U-Nets of papers 001, 003 and 004."""

from braintum.architectures.networks.attention_unet import AttentionUNet
from braintum.architectures.networks.joint_unet import JointUNet, UNet
from braintum.architectures.networks.residual_unet import RUNet
from braintum.trainers.multi_task import nnUNetTrainerMultiTask
from braintum.trainers.networks import multi_task_network, segmentation_network
from braintum.trainers.recipes import papers
from braintum.trainers.recipes.recipe import JOINT_UNET, RESIDUAL_UNET
from braintum.trainers.segmentation import SegmentationTrainer


class nnUNetTrainerUNet(SegmentationTrainer):
    """U-Net of paper 001, segmentation alone; needs no classes."""

    recipe = JOINT_UNET
    papers = (papers.JOINT_UNET, papers.BR35H_UNET)
    build_network_architecture = staticmethod(segmentation_network(lambda plan: UNet))


class nnUNetTrainerAttentionUNet(SegmentationTrainer):
    """U-Net with attention gates of paper 001, segmentation alone; needs no classes."""

    recipe = JOINT_UNET
    papers = (papers.JOINT_UNET,)
    build_network_architecture = staticmethod(segmentation_network(lambda plan: AttentionUNet))


class nnUNetTrainerJointUNet(nnUNetTrainerMultiTask):
    """U-Net of paper 001 with a classification head at the bottleneck."""

    recipe = JOINT_UNET
    papers = (papers.JOINT_UNET,)
    build_network_architecture = staticmethod(multi_task_network(lambda plan: JointUNet))


class nnUNetTrainerResidualUNet(SegmentationTrainer):
    """RUNet of paper 003, segmentation alone; needs no classes."""

    recipe = RESIDUAL_UNET
    papers = (papers.FT_CNN_AND_RUNET,)
    build_network_architecture = staticmethod(segmentation_network(lambda plan: RUNet))
