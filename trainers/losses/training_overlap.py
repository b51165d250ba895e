"""Dice and IoU of the training batches, counted where their loss is computed."""

from typing import Any

import numpy as np
import torch
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn


class OverlapOfTraining(nn.Module):
    """A loss of the masks that also counts the voxels which prediction and truth share, as nnU-Net's validation does.

    Nothing is read back from the device before :meth:`figures` is called. Without gradients nothing is counted.

    Args:
        loss: takes logits and target, or lists of them, highest resolution first.
        label_manager: tells regions and ignored voxels.
    """

    def __init__(self, loss: nn.Module, label_manager: LabelManager) -> None:
        super().__init__()
        self.loss = loss
        self.label_manager = label_manager
        self._counts: torch.Tensor | None = None

    def forward(self, net_output: Any, target: Any) -> torch.Tensor:
        """The loss."""
        if torch.is_grad_enabled():
            counts = self._count(
                *(part[0] if isinstance(part, (list, tuple)) else part for part in (net_output, target))
            )
            self._counts = counts if self._counts is None else self._counts + counts
        return self.loss(net_output, target)

    @torch.no_grad()
    def _count(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """True positives, false positives and false negatives (3, labels or regions) of a batch (B, C, [Z,] Y, X)."""
        mask = None
        if self.label_manager.has_regions:
            predicted = (logits > 0).float()
            if self.label_manager.has_ignore_label:
                mask, target = 1 - target[:, -1:].float(), target[:, :-1]
        else:
            predicted = torch.zeros_like(logits, dtype=torch.float32).scatter_(1, logits.argmax(1, keepdim=True), 1)
            if self.label_manager.has_ignore_label:
                mask = (target != self.label_manager.ignore_label).float()
                target = target * mask.to(target.dtype)
        axes = [0, *range(2, logits.ndim)]
        tp, fp, fn, _ = get_tp_fp_fn_tn(predicted, target, axes=axes, mask=mask)
        first = 0 if self.label_manager.has_regions else 1  # the background
        return torch.stack([tp, fp, fn])[:, first:]

    def figures(self) -> tuple[float, float]:
        """Dice and IoU since the last call, over all batches together, mean of labels; NaN where none was seen."""
        if self._counts is None:
            return float("nan"), float("nan")
        tp, fp, fn = self._counts.double().cpu().numpy()
        self._counts = None
        seen = tp + fp + fn > 0
        if not seen.any():
            return float("nan"), float("nan")
        tp, wrong = tp[seen], (fp + fn)[seen]
        return float(np.mean(2 * tp / (2 * tp + wrong))), float(np.mean(tp / (tp + wrong)))
