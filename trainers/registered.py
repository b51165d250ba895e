"""The trainers that nnU-Net finds by name."""

from braintum.trainers.attended_multi_task import nnUNetTrainerMultiTaskLKA, nnUNetTrainerMultiTaskMaskedAttention
from braintum.trainers.braintumnet import (
    nnUNetTrainerBrainTumNet,
    nnUNetTrainerBrainTumNetNoInception,
    nnUNetTrainerBrainTumNetNoTransformer,
    nnUNetTrainerBrainTumNetTwoStage,
)
from braintum.trainers.classifiers import (
    nnUNetTrainerClassifierDenseNet121,
    nnUNetTrainerClassifierFTCNN,
    nnUNetTrainerClassifierGoogLeNet,
    nnUNetTrainerClassifierResNet50,
    nnUNetTrainerClassifierUNet,
)
from braintum.trainers.multi_task import nnUNetTrainerMultiTask
from braintum.trainers.resse_lka import nnUNetTrainerResSELKA, nnUNetTrainerResSELKAMultiTask
from braintum.trainers.unets import (
    nnUNetTrainerAttentionUNet,
    nnUNetTrainerJointUNet,
    nnUNetTrainerResidualUNet,
    nnUNetTrainerUNet,
)

__all__ = [
    "nnUNetTrainerAttentionUNet",
    "nnUNetTrainerBrainTumNet",
    "nnUNetTrainerBrainTumNetNoInception",
    "nnUNetTrainerBrainTumNetNoTransformer",
    "nnUNetTrainerBrainTumNetTwoStage",
    "nnUNetTrainerClassifierDenseNet121",
    "nnUNetTrainerClassifierFTCNN",
    "nnUNetTrainerClassifierGoogLeNet",
    "nnUNetTrainerClassifierResNet50",
    "nnUNetTrainerClassifierUNet",
    "nnUNetTrainerJointUNet",
    "nnUNetTrainerMultiTask",
    "nnUNetTrainerMultiTaskLKA",
    "nnUNetTrainerMultiTaskMaskedAttention",
    "nnUNetTrainerResSELKA",
    "nnUNetTrainerResSELKAMultiTask",
    "nnUNetTrainerResidualUNet",
    "nnUNetTrainerUNet",
]
