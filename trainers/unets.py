"""U-Nets of papers 001, 003 and 004."""

from architectures.attention_unet import AttentionUNet
from architectures.joint_unet import JointUNet, UNet
from architectures.residual_unet import RUNet
from trainers.multi_task import nnUNetTrainerMultiTask
from trainers.networks import multi_task_network, segmentation_network
from trainers.recipes import JOINT_UNET, RESIDUAL_UNET
from trainers.segmentation import SegmentationTrainer


class nnUNetTrainerUNet(SegmentationTrainer):
    """U-Net of papers 001 and 004, segmentation alone; needs no classes."""

    recipe = JOINT_UNET
    build_network_architecture = staticmethod(segmentation_network(lambda plan: UNet))


class nnUNetTrainerAttentionUNet(SegmentationTrainer):
    """U-Net with attention gates of paper 001, segmentation alone; needs no classes."""

    recipe = JOINT_UNET
    build_network_architecture = staticmethod(segmentation_network(lambda plan: AttentionUNet))


class nnUNetTrainerJointUNet(nnUNetTrainerMultiTask):
    """U-Net of paper 001 with a classification head at the bottleneck."""

    recipe = JOINT_UNET
    build_network_architecture = staticmethod(multi_task_network(lambda plan: JointUNet))


class nnUNetTrainerResidualUNet(SegmentationTrainer):
    """RUNet of paper 003, segmentation alone; needs no classes."""

    recipe = RESIDUAL_UNET
    build_network_architecture = staticmethod(segmentation_network(lambda plan: RUNet))
