"""The trainers that nnU-Net finds by name."""

from trainers.attended_multi_task import nnUNetTrainerMultiTaskLKA, nnUNetTrainerMultiTaskMaskedAttention
from trainers.braintumnet import (
    nnUNetTrainerBrainTumNet,
    nnUNetTrainerBrainTumNetNoInception,
    nnUNetTrainerBrainTumNetNoTransformer,
    nnUNetTrainerBrainTumNetTwoStage,
)
from trainers.classifiers import (
    nnUNetTrainerClassifierDenseNet121,
    nnUNetTrainerClassifierFTCNN,
    nnUNetTrainerClassifierGoogLeNet,
    nnUNetTrainerClassifierResNet50,
    nnUNetTrainerClassifierUNet,
)
from trainers.multi_task import nnUNetTrainerMultiTask
from trainers.resse_lka import nnUNetTrainerResSELKA, nnUNetTrainerResSELKAMultiTask
from trainers.unets import (
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
