"""The trainers that nnU-Net finds by name."""

from braintum.trainers.attended_multi_task import nnUNetTrainerMultiTaskLKA, nnUNetTrainerMultiTaskMaskedAttention
from braintum.trainers.baselines import baseline_trainers
from braintum.trainers.braintumnet import (
    nnUNetTrainerBrainTumNet,
    nnUNetTrainerBrainTumNetNoInception,
    nnUNetTrainerBrainTumNetNoTransformer,
    nnUNetTrainerBrainTumNetPretrained,
    nnUNetTrainerBrainTumNetShort,
    nnUNetTrainerBrainTumNetTwoStage,
)
from braintum.trainers.classifiers import (
    nnUNetTrainerClassifierDenseNet121,
    nnUNetTrainerClassifierFTCNN,
    nnUNetTrainerClassifierGoogLeNet,
    nnUNetTrainerClassifierResNet50,
    nnUNetTrainerClassifierUNet,
)
from braintum.trainers.masked_images import nnUNetTrainerMaskedImages
from braintum.trainers.multi_task import nnUNetTrainerMultiTask, nnUNetTrainerMultiTaskShort
from braintum.trainers.pretrained import PREFIX, nnUNetTrainerPretrained, pretrained_trainer
from braintum.trainers.resse_lka import nnUNetTrainerResSELKA, nnUNetTrainerResSELKAMultiTask
from braintum.trainers.unets import (
    nnUNetTrainerAttentionUNet,
    nnUNetTrainerJointUNet,
    nnUNetTrainerResidualUNet,
    nnUNetTrainerUNet,
)

_BASELINES = baseline_trainers()
globals().update(_BASELINES)

__all__ = [
    "nnUNetTrainerAttentionUNet",
    "nnUNetTrainerBrainTumNet",
    "nnUNetTrainerBrainTumNetNoInception",
    "nnUNetTrainerBrainTumNetNoTransformer",
    "nnUNetTrainerBrainTumNetPretrained",
    "nnUNetTrainerBrainTumNetShort",
    "nnUNetTrainerBrainTumNetTwoStage",
    "nnUNetTrainerClassifierDenseNet121",
    "nnUNetTrainerClassifierFTCNN",
    "nnUNetTrainerClassifierGoogLeNet",
    "nnUNetTrainerClassifierResNet50",
    "nnUNetTrainerClassifierUNet",
    "nnUNetTrainerJointUNet",
    "nnUNetTrainerMaskedImages",
    "nnUNetTrainerMultiTask",
    "nnUNetTrainerMultiTaskLKA",
    "nnUNetTrainerMultiTaskMaskedAttention",
    "nnUNetTrainerMultiTaskShort",
    "nnUNetTrainerPretrained",
    "nnUNetTrainerResSELKA",
    "nnUNetTrainerResSELKAMultiTask",
    "nnUNetTrainerResidualUNet",
    "nnUNetTrainerUNet",
    *_BASELINES,
]


def __getattr__(name: str) -> type:
    """Trainers that are named after a backbone of timm.

    Raises:
        AttributeError: another name.
    """
    if not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return pretrained_trainer(name.removeprefix(PREFIX))
