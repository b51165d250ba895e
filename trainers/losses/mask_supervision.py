"""The masks of adaptive masked attention, supervised by the masks of training.

Paper 000 (BrainTumNet, https://doi.org/10.3389/fonc.2025.1585891) "restricts attention to local regions within
prediction masks", and names no loss but those of segmentation and classification to bring that about. This one asks.
Settled: binary cross-entropy of the mean mask of a block's heads, which leaves each head a mask of its own, against
whether a token holds any tumour, so that small tumours are seen on coarse grids, too. Blocks count alike.
"""

from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn
from torch.nn import functional

from braintum.architectures.blocks.adaptive_masked_attention import attentions_of
from braintum.trainers.classes.class_supervision import tumour_and_ignored

_MAX_POOL: dict[int, Any] = {2: functional.adaptive_max_pool2d, 3: functional.adaptive_max_pool3d}
_SURE = 1e-6  # masks are this far from 0 and 1 at least


class MaskSupervision(nn.Module):
    """A loss of the segmentation plus that of the attention's masks; without gradients the former alone.

    The masks are those of the network's last forward pass.

    Args:
        loss: of the segmentation; takes logits and target, or lists of them, highest resolution first.
        network: without wrappers.
        label_manager: tells regions and ignored voxels.
        weight: of the masks' loss.

    Raises:
        NotImplementedError: the network has no such masks.
    """

    def __init__(self, loss: nn.Module, network: nn.Module, label_manager: LabelManager, weight: float) -> None:
        super().__init__()
        self.loss = loss
        self.label_manager = label_manager
        self.weight = weight
        self._scores: dict[str, torch.Tensor] = {}  # before sigmoid, (B, [Z,] Y, X, heads)
        attentions = attentions_of(network)
        if not attentions:
            raise NotImplementedError(
                f"{type(network).__name__} has no attention masks to supervise; unset braintum_mask_supervision, or "
                "train nnUNetTrainerBrainTumNet"
            )
        for name, attention in attentions.items():
            attention.mask.register_forward_hook(lambda _, inputs, output, name=name: self._keep(name, output))

    def _keep(self, name: str, scores: torch.Tensor) -> None:
        if torch.is_grad_enabled():
            self._scores[name] = scores

    def forward(self, net_output: Any, target: Any) -> torch.Tensor:
        """The loss, a scalar."""
        loss = self.loss(net_output, target)
        if torch.is_grad_enabled():
            loss = loss + self.weight * self.masks_loss(target[0] if isinstance(target, (list, tuple)) else target)
        return loss

    def masks_loss(self, target: torch.Tensor) -> torch.Tensor:
        """Loss of the masks of the last forward pass, for a target (B, 1 or regions, [Z,] Y, X) at full resolution."""
        ignore, regions = self.label_manager.ignore_label, self.label_manager.has_regions
        tumour, ignored = tumour_and_ignored(target, ignore, regions)
        known = torch.ones_like(tumour) if ignored is None else ~ignored
        losses = []
        for scores in self._scores.values():
            pool, grid = _MAX_POOL[tumour.ndim - 1], tuple(scores.shape[1:-1])
            holds = pool(tumour.float(), grid)
            counts = torch.maximum(holds, 1 - pool((~known).float(), grid))  # a token with tumour holds it in any case
            odds = torch.logit(torch.sigmoid(scores.float()).mean(-1), eps=_SURE)
            errors = functional.binary_cross_entropy_with_logits(odds, holds, reduction="none")
            losses.append((errors * counts).sum() / counts.sum().clamp(min=1))
        self._scores.clear()
        return torch.stack(losses).mean()
