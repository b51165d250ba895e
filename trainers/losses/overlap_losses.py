"""Overlap terms of the papers' segmentation losses, with the interface of nnU-Net's Dice losses.

nnU-Net's compound losses take any of them as ``dice_class``, and treat the ignore label themselves. In value they
differ from nnU-Net's by a constant: they are ``1 - overlap``, as the papers write it, where nnU-Net has ``-overlap``.
"""

from collections.abc import Callable

import torch
from nnunetv2.utilities.ddp_allgather import AllGatherGrad
from torch import nn


class OverlapLoss(nn.Module):
    """One minus an overlap of prediction and reference, averaged over classes (and cases without ``batch_dice``).

    Sums are taken in float32, whatever the logits are.

    Args:
        apply_nonlin: turns logits into probabilities.
        batch_dice: sum over the cases of a batch too, as if they were one case.
        do_bg: count the first channel.
        smooth: smoothing constant of the overlap.
        ddp: with ``batch_dice``, sum over the batches of all processes.
    """

    def __init__(
        self,
        apply_nonlin: Callable[[torch.Tensor], torch.Tensor],
        batch_dice: bool = False,
        do_bg: bool = True,
        smooth: float = 1e-5,
        ddp: bool = True,
    ) -> None:
        super().__init__()
        self.apply_nonlin = apply_nonlin
        self.batch_dice = batch_dice
        self.do_bg = do_bg
        self.smooth = smooth
        self.ddp = ddp

    def forward(self, x: torch.Tensor, y: torch.Tensor, loss_mask: torch.Tensor | None = None) -> torch.Tensor:
        """The loss, a scalar.

        Args:
            x: logits (B, C, [Z,] Y, X).
            y: label map (B, 1, [Z,] Y, X), or one channel a class as in ``x``.
            loss_mask: (B, 1, [Z,] Y, X), False where a voxel is ignored.
        """
        probabilities = self.apply_nonlin(x.float())
        with torch.no_grad():
            reference = y.float() if y.shape == x.shape else torch.zeros_like(probabilities).scatter_(1, y.long(), 1)
            if loss_mask is not None:
                reference = reference * loss_mask
        if loss_mask is not None:
            probabilities = probabilities * loss_mask
        if not self.do_bg:
            probabilities, reference = probabilities[:, 1:], reference[:, 1:]
        axes = (*([0] if self.batch_dice else []), *range(2, x.ndim))
        sums = [
            (probabilities * reference).sum(axes),
            self.predicted(probabilities).sum(axes),
            reference.sum(axes),
        ]  # (C,) or (B, C) each
        if self.batch_dice and self.ddp:
            sums = [AllGatherGrad.apply(values).sum(0) for values in sums]
        return 1 - self.overlap(*sums).mean()

    def predicted(self, probabilities: torch.Tensor) -> torch.Tensor:
        """What is summed over the prediction, voxel by voxel."""
        return probabilities

    def overlap(self, intersection: torch.Tensor, predicted: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Overlap of each class, 1 for a perfect prediction, from the three sums."""
        raise NotImplementedError


class SquaredSoftDiceLoss(OverlapLoss):
    """Soft Dice with squared denominators, paper 000 (BrainTumNet), equation 5.

    ``1 - (2 Σ p g + smooth) / (Σ p² + Σ g² + smooth)``; the equation has no smoothing, which an empty patch needs.
    """

    def predicted(self, probabilities: torch.Tensor) -> torch.Tensor:
        """p²; the reference is binary, so it is its own square."""
        return probabilities.square()

    def overlap(self, intersection: torch.Tensor, predicted: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Dice of each class."""
        return (2 * intersection + self.smooth) / (predicted + reference + self.smooth)


class AdaptiveTverskyLoss(OverlapLoss):
    """Tversky loss whose weights follow the errors, paper 002 (ResSE-LKA-UNet), equations 13 and 14.

    ``1 - TP / (TP + α FP + β FN + smooth)`` with soft counts, α = clamp(FP / (FP + FN), 0.2, 0.8) and β = 1 - α for
    each class. Smoothing stands in the denominator only: a class that is absent costs a constant and gives no gradient.

    α is a constant for the gradient (the paper calls α and β coefficients that are determined by the error
    distribution, and does not say more). Differentiated as well, α FP + β FN would be (FP² + FN²) / (FP + FN), which
    falls with FP as long as FP < 0.41 FN: the loss would reward false positives.
    """

    def overlap(self, intersection: torch.Tensor, predicted: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Tversky index of each class."""
        false_positive, false_negative = predicted - intersection, reference - intersection
        alpha, beta = adaptive_weights(false_positive, false_negative)
        return intersection / (intersection + alpha * false_positive + beta * false_negative + self.smooth)


@torch.no_grad()
def adaptive_weights(false_positive: torch.Tensor, false_negative: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights of false positives and false negatives, paper 002, equation 14; without errors (0.2, 0.8)."""
    errors = (false_positive + false_negative).clamp_min(torch.finfo(false_positive.dtype).tiny)
    alpha = (false_positive / errors).clamp(0.2, 0.8)
    return alpha, 1 - alpha
