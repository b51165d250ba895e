"""The papers' segmentation losses, made of nnU-Net's compound losses.

``DC_and_CE_loss`` (exclusive labels) and ``DC_and_BCE_loss`` (regions) join a cross-entropy with an overlap term that
can be exchanged, and treat the ignore label. One function a paper builds its loss from what a trainer knows; move the
result to the device (``.to``), class weights are buffers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn
from torch.nn import functional

from braintum.trainers.losses.overlap_losses import AdaptiveTverskyLoss, SquaredSoftDiceLoss

_INTERPOLATION = {4: "bilinear", 5: "trilinear"}  # by dimensions of the logits


class UpsamplingDeepSupervisionLoss(nn.Module):
    """Deep supervision at full resolution, paper 002, equations 10, 15 and 16.

    nnU-Net compares an auxiliary output with a target of its own size; here its logits are interpolated linearly to
    full resolution first. Weights are not normalised. Outputs beyond the weights, coarser than the paper's three, do
    not count; they stay connected, as DDP wants a gradient for each parameter.

    Args:
        loss: loss of one output.
        weights: of the outputs, highest resolution first. The paper numbers them 4, 3, 2 and says that weights decrease
            with coarseness.
    """

    def __init__(self, loss: nn.Module, weights: Sequence[float] = (1.0, 0.4, 0.3, 0.2)) -> None:
        super().__init__()
        self.loss = loss
        self.weights = tuple(weights)

    def forward(self, net_output: Sequence[torch.Tensor], target: Sequence[torch.Tensor]) -> torch.Tensor:
        """The loss, a scalar.

        Args:
            net_output: logits, highest resolution first.
            target: nnU-Net's list of targets; only the first, at full resolution, is read.

        Raises:
            TypeError: the network ran without deep supervision.
        """
        if isinstance(net_output, torch.Tensor):
            raise TypeError("the loss expects a list of outputs; use the inner loss without deep supervision")
        reference = target[0]
        total = net_output[0].new_zeros((), dtype=torch.float32)
        for weight, logits in zip(self.weights, net_output, strict=False):
            total = total + weight * self.loss(_resized(logits.float(), reference.shape[2:]), reference)
        for logits in net_output[len(self.weights) :]:
            total = total + 0 * logits.float().mean()
        return total


def _resized(logits: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    if logits.shape[2:] == size:
        return logits
    return functional.interpolate(logits, size=tuple(size), mode=_INTERPOLATION[logits.ndim])


def dice_cross_entropy_loss(label_manager: LabelManager, batch_dice: bool, ddp: bool) -> nn.Module:
    """Soft Dice with squared denominators plus cross-entropy, paper 000, equation 6.

    Cross-entropy is averaged over voxels (the equation sums), Dice over foreground labels, as in nnU-Net. For regions
    cross-entropy is binary and Dice averaged over regions.

    Args:
        label_manager: nnU-Net's, for labels, regions and ignore label.
        batch_dice: sum over the cases of a batch as if they were one, as the plan's configuration says.
        ddp: whether several processes train.
    """
    return _compound_loss(label_manager, batch_dice, ddp, SquaredSoftDiceLoss)


def bce_dice_loss(label_manager: LabelManager, batch_dice: bool, ddp: bool) -> nn.Module:
    """Binary cross-entropy plus soft Dice, paper 001, equations 1 and 2, less the constant 1: nnU-Net's own loss.

    The paper segments one structure with one sigmoid. nnU-Net gives background and structure a channel each; the
    cross-entropy of a softmax over the two is the binary cross-entropy of the difference of their logits. With more
    labels it is the categorical one, with regions binary. Arguments as in :func:`dice_cross_entropy_loss`.
    """
    return _compound_loss(label_manager, batch_dice, ddp, MemoryEfficientSoftDiceLoss)


def dice_per_case_cross_entropy_loss(label_manager: LabelManager, batch_dice: bool, ddp: bool) -> nn.Module:
    """nnU-Net's cross-entropy and soft Dice, of each case instead of the batch, smoothed by one voxel.

    What is reported is the mean over cases, in which a small tumour counts as much as a large one. Arguments as in
    :func:`dice_cross_entropy_loss`; ``batch_dice`` of the plans is not followed.
    """
    return _compound_loss(label_manager, False, ddp, MemoryEfficientSoftDiceLoss, smooth=1.0)


class MaskedImageLoss(nn.Module):
    """Mean squared error of masked voxels, relative to the variance of each channel of each image.

    1 is what the mean of the image gives. Channels of one value do not count.
    """

    def forward(self, output: torch.Tensor, images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """The loss, a scalar.

        Args:
            output: (B, C, [Z,] Y, X).
            images: the same, before they were masked.
            masks: (B, 1, [Z,] Y, X), true where they were.
        """
        variance = images.var(tuple(range(2, images.ndim)), keepdim=True)
        errors = (output.float() - images).square() / variance.clamp_min(1e-6)
        counted = masks * (variance > 1e-6)
        return (errors * counted).sum() / counted.sum().clamp_min(1)


def masked_image_loss(label_manager: LabelManager, batch_dice: bool, ddp: bool) -> nn.Module:
    """Loss of a self-supervised start; none of the arguments matters to it."""
    return MaskedImageLoss()


def bce_loss(label_manager: LabelManager, batch_dice: bool, ddp: bool) -> nn.Module:
    """Binary cross-entropy alone, paper 003 (RUNet); for labels as in :func:`bce_dice_loss`."""
    return _compound_loss(label_manager, batch_dice, ddp, MemoryEfficientSoftDiceLoss, weight_dice=0)


def weighted_cross_entropy_tversky_loss(label_manager: LabelManager, batch_dice: bool, ddp: bool) -> nn.Module:
    """Weighted cross-entropy plus adaptive Tversky loss, paper 002, equations 11 to 14.

    Background weighs 0.1 and every other label 1; the mean over voxels is the weighted one, as in torch. The Tversky
    loss counts background as a class, as equation 13 does. A region is a two-class problem of its own: its inside
    weighs ten times as much as what lies outside (a plain mean over voxels). Arguments as in
    :func:`dice_cross_entropy_loss`.
    """
    weights = torch.ones(label_manager.num_segmentation_heads)
    weights[0] = 0.1
    return _compound_loss(
        label_manager,
        batch_dice,
        ddp,
        AdaptiveTverskyLoss,
        count_background=True,
        ce_kwargs={"weight": weights},
        bce_kwargs={"pos_weight": torch.tensor(10.0)},
    )


def _compound_loss(
    label_manager: LabelManager,
    batch_dice: bool,
    ddp: bool,
    dice_class: type[nn.Module],
    weight_dice: float = 1,
    smooth: float = 1e-5,
    count_background: bool = False,
    ce_kwargs: dict[str, Any] | None = None,
    bce_kwargs: dict[str, Any] | None = None,
) -> nn.Module:
    """nnU-Net's compound loss for labels or regions around an overlap term."""
    dice_kwargs = {"batch_dice": batch_dice, "smooth": smooth, "ddp": ddp}
    if label_manager.has_regions:
        return DC_and_BCE_loss(
            bce_kwargs or {},
            {**dice_kwargs, "do_bg": True},
            # with an ignore label nnU-Net sums cross-entropy over regions, without it takes the mean
            weight_ce=1 / label_manager.num_segmentation_heads if label_manager.has_ignore_label else 1,
            weight_dice=weight_dice,
            use_ignore_label=label_manager.has_ignore_label,
            dice_class=dice_class,
        )
    return DC_and_CE_loss(
        {**dice_kwargs, "do_bg": count_background},
        ce_kwargs or {},
        weight_dice=weight_dice,
        ignore_label=label_manager.ignore_label,
        dice_class=dice_class,
    )
