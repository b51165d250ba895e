"""Training recipes as data: nnU-Net's own with our head, and those of the papers.

Batch size, patch size and normalisation are the plan's, clipping of the gradient's norm (at 12) is nnU-Net's. Where a
paper leaves something open, the docstring of its recipe says what was settled. A recipe goes with any network, see
:mod:`braintum.trainers.systems`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn

from braintum.trainers.augmentation.augmentation import Augmentation
from braintum.trainers.losses.losses import (
    bce_dice_loss,
    bce_loss,
    dice_cross_entropy_loss,
    dice_per_case_cross_entropy_loss,
    masked_image_loss,
    weighted_cross_entropy_tversky_loss,
)
from braintum.trainers.recipes.schedule import CosineDecay, Decay, ExponentialDecay, PlateauDecay, PolynomialDecay


@dataclass(frozen=True)
class SegmentationLoss:
    """Loss of the masks.

    Attributes:
        build: makes it from label manager, ``batch_dice`` and whether several processes train.
        lowest: value of a perfect prediction.
        deep_supervision: weights of the outputs, highest resolution first, all upsampled to full resolution; empty to
            train the full resolution alone.
    """

    build: Callable[[LabelManager, bool, bool], nn.Module]
    lowest: float = 0.0
    deep_supervision: tuple[float, ...] = ()


@dataclass(frozen=True)
class ParameterGroup:
    """Optimiser settings of some of the parameters.

    Attributes:
        lr: initial rate.
        weight_decay: as the optimiser takes it.
        warmup: share of all epochs over which the rate rises linearly.
    """

    lr: float
    weight_decay: float = 0.0
    warmup: float = 0.0


@dataclass(frozen=True)
class PaperPlans:
    """The plans that a paper's recipe is meant for.

    Attributes:
        planner: that makes them, for ``-pl``.
        name: of the plans, for ``-p``.
        batch_size: the paper's, in 2-D.
        image_edge: of the paper's images, in pixels.
    """

    planner: str
    name: str
    batch_size: int
    image_edge: int = 256


def split_off(parameters: Sequence[nn.Parameter], part: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters without those of a part of the network, and the part's."""
    own = list(part.parameters())
    ids = {id(parameter) for parameter in own}
    return [parameter for parameter in parameters if id(parameter) not in ids], own


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        optimizer: its class.
        body: settings of all parameters but the classification head's.
        head: settings of the classification head; None for those of the body.
        backbone: settings of a pretrained backbone; None for those of the body.
        optimizer_arguments: further arguments of the optimiser.
        decay: of the learning rates.
        segmentation_loss: None for nnU-Net's, with its deep supervision.
        segmentation_weight: of the segmentation loss in the sum of both.
        class_weight: of the cross-entropy in it.
        class_label_smoothing: of the cross-entropy.
        num_epochs: of the whole training.
        epoch: what an epoch is: ``iterations``, nnU-Net's 250 batches, or a ``pass`` over all training images.
        early_stopping: epochs without a lower validation loss after which training ends; None for never.
        augmentation: None for nnU-Net's.
        averaging: decay, a step, of the average of the weights that is validated and saved; None for the last weights.
        mixed_precision: half precision in training steps on CUDA, as in nnU-Net; else float32.
        cpu_precision: of training steps on a CPU: ``float32``, ``bfloat16``, or the faster one (``auto``).
        balances_classes: draw the cases of each class equally often; else each case.
        small_first: share of the epochs with smaller patches, and their scale; (0, 1) for none. The first epochs learn
            what can be seen in small images, at the fraction of the time.
        plans: of the paper; None for our own recipes, which suit any plans.
    """

    optimizer: Callable[..., torch.optim.Optimizer]
    body: ParameterGroup
    head: ParameterGroup | None = None
    backbone: ParameterGroup | None = None
    optimizer_arguments: Mapping[str, Any] = field(default_factory=dict)
    decay: Decay = PolynomialDecay()
    segmentation_loss: SegmentationLoss | None = None
    segmentation_weight: float = 1.0
    class_weight: float = 1.0
    class_label_smoothing: float = 0.0
    num_epochs: int = 1000
    epoch: Literal["iterations", "pass"] = "iterations"
    early_stopping: int | None = None
    augmentation: Augmentation | None = None
    averaging: float | None = None
    mixed_precision: bool = True
    cpu_precision: str = "float32"
    balances_classes: bool = True
    small_first: tuple[float, float] = (0.0, 1.0)
    plans: PaperPlans | None = None

    @property
    def deep_supervision(self) -> bool:
        """Whether the network returns its auxiliary outputs in training."""
        return self.segmentation_loss is None or bool(self.segmentation_loss.deep_supervision)

    @property
    def lowest_segmentation_loss(self) -> float:
        """Segmentation loss of a perfect prediction."""
        return NNUNET_LOWEST_LOSS if self.segmentation_loss is None else self.segmentation_loss.lowest


NNUNET_LOWEST_LOSS = -1.0
"""nnU-Net adds cross-entropy and minus Dice."""

# one pass over the parameters: otherwise the optimiser costs more than a classification head
_FUSED = {"fused": True}

MULTI_TASK = Recipe(
    optimizer=torch.optim.AdamW,
    body=ParameterGroup(lr=1e-3, weight_decay=1e-2),
    head=ParameterGroup(lr=1e-3, weight_decay=1e-2, warmup=0.02),
    optimizer_arguments=_FUSED,
    class_label_smoothing=0.1,
)
"""nnU-Net's recipe with a classification head.

Not nnU-Net's SGD: the class loss has other gradients than Dice, and on a small set SGD with momentum 0.99 takes
thousands of iterations to find a small tumour.
"""

NNUNET = Recipe(
    optimizer=torch.optim.SGD,
    body=ParameterGroup(lr=1e-2, weight_decay=3e-5),
    optimizer_arguments={"momentum": 0.99, "nesterov": True},
    balances_classes=False,
)
"""nnU-Net's own, as ``nnUNetTrainer`` has it."""

SHORT = Recipe(
    optimizer=torch.optim.AdamW,
    body=ParameterGroup(lr=1e-3, weight_decay=5e-2, warmup=0.03),
    optimizer_arguments=_FUSED,
    decay=CosineDecay(),
    segmentation_loss=SegmentationLoss(dice_per_case_cross_entropy_loss, lowest=NNUNET_LOWEST_LOSS),
    class_label_smoothing=0.1,
    num_epochs=60,
    averaging=0.998,
    cpu_precision="auto",
    balances_classes=False,
    small_first=(0.5, 2 / 3),
    augmentation=Augmentation(
        rotation_degrees=30,
        scaling=(0.8, 1.25),
        spatial_probability=0.7,
        crop_margin=0.15,
        flips=True,
        flips_last_axis_only=True,
        gamma=(0.67, 1.5),
        low_resolution=(0.5, 1.0),
    ),
)
"""For trainings of minutes instead of days, on a CPU or a GPU: our own.

Losses and Dice are those of cases, not of batches; a mirrored head is left-right mirrored only, as none is upside down.
"""

PRETRAINED = replace(SHORT, backbone=ParameterGroup(lr=5e-4, weight_decay=5e-2, warmup=0.03))
"""The same for networks with a pretrained backbone, which learns at half of the rate."""

MASKED_IMAGES = replace(
    SHORT,
    segmentation_loss=SegmentationLoss(masked_image_loss),
    num_epochs=40,
    averaging=None,
    augmentation=Augmentation(rotation_degrees=15, scaling=(0.9, 1.1), flips=True, flips_last_axis_only=True),
)
"""Filling in masked blocks: mild augmentation, as the masks change the image enough."""

_PAPER: dict[str, Any] = {"optimizer": torch.optim.Adam, "optimizer_arguments": _FUSED, "epoch": "pass"}
_PAPER["balances_classes"] = False  # none of them speaks of it

BRAINTUMNET = Recipe(
    **_PAPER,
    body=ParameterGroup(lr=1e-4),
    decay=CosineDecay(),
    segmentation_loss=SegmentationLoss(dice_cross_entropy_loss),
    class_weight=0.7,
    num_epochs=250,
    augmentation=Augmentation(rotation_degrees=30, flips=True),
    plans=PaperPlans("BrainTumPlannerBrainTumNet", "BrainTumNetPlans", batch_size=16),
)
"""Paper 000, section 2.1.4. It mentions no deep supervision: there is none."""

JOINT_UNET = Recipe(
    **_PAPER,
    body=ParameterGroup(lr=1e-4),
    decay=PlateauDecay(drop=0.5, patience=7),
    segmentation_loss=SegmentationLoss(bce_dice_loss, lowest=NNUNET_LOWEST_LOSS),
    num_epochs=100,
    early_stopping=15,
    augmentation=Augmentation(
        rotation_degrees=15,
        scaling=(0.9, 1.1),
        isotropic_scaling=False,
        flips=True,
        brightness=(0.8, 1.2),
        contrast=(0.8, 1.2),
    ),
    plans=PaperPlans("BrainTumPlannerJointUNet", "BrainTumJointUNetPlans", batch_size=16),
)
"""Paper 001, sections II-B and II-F.

Settled: factors of 0.9 to 1.1 an axis for the "elastic-like mild affine jitter", of 0.8 to 1.2 for brightness and
contrast; none of the optional weight decay. The optional clip at norm 5 is nnU-Net's at 12.
"""

RESSE_LKA = Recipe(
    **_PAPER
    | {
        "optimizer": torch.optim.AdamW,
        "optimizer_arguments": {"betas": (0.9, 0.999), "eps": 1e-5, **_FUSED},
    },
    body=ParameterGroup(lr=1e-4, weight_decay=0.01, warmup=0.1),
    decay=ExponentialDecay(final=0.01),
    segmentation_loss=SegmentationLoss(weighted_cross_entropy_tversky_loss, deep_supervision=(1.0, 0.4, 0.3, 0.2)),
    class_weight=0.7,
    num_epochs=50,
    mixed_precision=False,
    augmentation=Augmentation(
        rotation_degrees=15,
        scaling=(0.85, 1.15),
        crop_margin=0.25,
        noise_sigma=0.1,
        brightness_sigma=0.3,
        gamma=(0.7, 1.5),
    ),
    plans=PaperPlans("BrainTumPlannerResSELKA", "BrainTumResSELKAPlans", batch_size=8, image_edge=128),
)
"""Paper 002, tables 1 and 2: warm-up over 5 of 50 epochs, patches of 128 from 160 (a quarter more).

Settled: the rate ends at 1 % of its peak; validation after each epoch, as in nnU-Net. The paper reflects what lies
beyond the image, nnU-Net's loader fills it with zeros. It has no classes: the class weight is paper 000's.
"""

RESIDUAL_UNET = Recipe(
    **_PAPER,
    body=ParameterGroup(lr=1e-3),
    decay=PolynomialDecay(exponent=0),
    segmentation_loss=SegmentationLoss(bce_loss),
    num_epochs=30,
    early_stopping=15,
    augmentation=Augmentation(),
    plans=PaperPlans("BrainTumPlannerResidualUNet", "BrainTumResidualUNetPlans", batch_size=32),
)
"""RUNet of paper 003, section 2.6.

Settled: Adam's rate and the batch are Keras' defaults, as the paper gives none; the patience of the early stopping is
paper 001's.
"""

FT_CNN = replace(
    RESIDUAL_UNET,
    num_epochs=100,
    early_stopping=None,
    plans=PaperPlans("BrainTumPlannerFTCNN", "BrainTumFTCNNPlans", batch_size=64),
)
"""FT-CNN of paper 003, section 2.4: Adam, 100 epochs, batches of 64. Settled: as for RUNet."""

BR35H_UNET = replace(
    RESIDUAL_UNET,
    body=ParameterGroup(lr=1e-4),
    num_epochs=100,
    early_stopping=None,
    plans=PaperPlans("BrainTumPlannerBr35H", "BrainTumBr35HPlans", batch_size=50),
)
"""Paper 004, section III-C: Adam at a constant 1e-4, binary cross-entropy, no augmentation.

Settled: binary cross-entropy alone, as "a combination of binary cross-entropy loss functions" names no other.
"""

RECIPES = {
    "MultiTask": MULTI_TASK,
    "nnUNet": NNUNET,
    "Short": SHORT,
    "BrainTumNet": BRAINTUMNET,
    "JointUNet": JOINT_UNET,
    "ResSELKA": RESSE_LKA,
    "ResidualUNet": RESIDUAL_UNET,
    "FTCNN": FT_CNN,
    "Br35H": BR35H_UNET,
}
"""By the names that a trainer's name ends with, see :mod:`braintum.trainers.systems`."""


def classifier_recipe(recipe: Recipe) -> Recipe:
    """A recipe for a classifier: the same, but the segmentation, which is background everywhere, does not count."""
    return replace(
        recipe,
        segmentation_loss=SegmentationLoss(bce_loss),
        segmentation_weight=0.0,
        class_weight=1.0,
    )
