"""Masks of adaptive masked attention with a branch for each modality.

Paper 000 (BrainTumNet, https://doi.org/10.3389/fonc.2025.1585891) does not have them; its discussion names future work:
"multi-branch mask generation networks, where each branch specifically processes feature distributions of distinct
modalities", because contrasts that differ from modality to modality make masks harder to find. Settled here: a
convolution, an instance norm and a nonlinearity of its own describe each channel of the image; a branch reads them
beside the low-level and high-level features that all branches read, and the scores of the branches are added up.
"""

from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import get_matching_instancenorm
from torch import nn

MODALITY_FEATURES = 8
"""Of each modality."""


def mask_network(features: int, hidden_features: int, num_heads: int) -> nn.Sequential:
    """The light MLP that scores tokens (…, features), one score a head."""
    return nn.Sequential(
        nn.LayerNorm(features),
        nn.Linear(features, hidden_features),
        nn.GELU(),
        nn.Linear(hidden_features, num_heads),
    )


class ModalityFeatures(nn.Sequential):
    """Features of each channel of an image by itself: (B, C, [Z,] Y, X) to (B, C · MODALITY_FEATURES, [Z,] Y, X).

    Args:
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        num_modalities: channels of the image.
    """

    def __init__(self, conv_op: Any, num_modalities: int) -> None:
        self.num_features = num_modalities * MODALITY_FEATURES
        super().__init__(
            conv_op(num_modalities, self.num_features, 3, padding=1, groups=num_modalities),
            get_matching_instancenorm(conv_op)(self.num_features, affine=True),
            nn.LeakyReLU(),
        )


class ModalityMaskNetwork(nn.Module):
    """Scores tokens by a branch a modality.

    Args:
        features: of a token; the last ones are those of the modalities, one after the other.
        hidden_features: width of each branch.
        num_heads: scores of a token.
        num_modalities: number of branches.
    """

    def __init__(self, features: int, hidden_features: int, num_heads: int, num_modalities: int) -> None:
        super().__init__()
        shared = features - num_modalities * MODALITY_FEATURES
        self.parts = [shared, *[MODALITY_FEATURES] * num_modalities]
        self.branches = nn.ModuleList(
            mask_network(shared + MODALITY_FEATURES, hidden_features, num_heads) for _ in range(num_modalities)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(…, features) to (…, num_heads)."""
        shared, *modalities = tokens.split(self.parts, -1)
        scores = [branch(torch.cat((shared, own), -1)) for branch, own in zip(self.branches, modalities, strict=True)]
        return torch.stack(scores).sum(0)
