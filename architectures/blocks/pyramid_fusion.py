"""Pyramid multi-scale feature fusion of a decoder's levels.

Paper 000 (BrainTumNet), section 2.2: the decoder "employs a symmetric upsampling pyramid multi-scale feature fusion
strategy"; nothing more is said. Settled: the top-down pathway of feature pyramid networks (Lin et al. 2017,
https://arxiv.org/abs/1612.03144). Every level is projected to the same number of channels and added to the sum of all
coarser levels, interpolated linearly, so that each segmentation head reads all scales up to its own. A level costs one
1x1 convolution and one interpolation from the level below. Linear interpolation takes the place of the original's
nearest neighbour followed by a 3x3 convolution against its edges.
"""

from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from torch import nn
from torch.nn import functional

_INTERPOLATION = {2: "bilinear", 3: "trilinear"}


class PyramidFusion(nn.Module):
    """Adds coarse levels to finer ones.

    Args:
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        level_channels: channels of the levels, lowest resolution first.
        channels: of every level of the pyramid.
    """

    def __init__(self, conv_op: Any, level_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.interpolation = _INTERPOLATION[convert_conv_op_to_dim(conv_op)]
        self.laterals = nn.ModuleList(conv_op(level, channels, 1) for level in level_channels)

    def forward(self, levels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Fuse.

        Args:
            levels: (B, C_s, [Z_s,] Y_s, X_s), lowest resolution first.

        Returns:
            (B, channels, [Z_s,] Y_s, X_s), in the same order.
        """
        pyramid: list[torch.Tensor] = []
        for level, lateral in zip(levels, self.laterals, strict=True):
            fused = lateral(level)
            if pyramid:
                fused = fused + functional.interpolate(
                    pyramid[-1], size=fused.shape[2:], mode=self.interpolation, align_corners=False
                )
            pyramid.append(fused)
        return pyramid
