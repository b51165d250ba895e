"""CBAM: channel attention, then spatial attention.

Woo et al. 2018, CBAM: convolutional block attention module (https://arxiv.org/abs/1807.06521). Paper 000 (BrainTumNet),
section 2.2, puts it on the skip connections. As in the original, both attentions read an average and a maximum, and one
MLP serves both; with 4 hidden channels at least.
"""

from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import maybe_convert_scalar_to_list
from torch import nn


class CBAM(nn.Module):
    """Gates channels, then positions.

    Args:
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        channels: of input and output.
        kernel_size: of the spatial attention, odd, one number or one an axis.
        reduction: the MLP has ``channels // reduction`` hidden channels.
    """

    def __init__(self, conv_op: Any, channels: int, kernel_size: int | Sequence[int] = 7, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(4, channels // reduction)
        self.channel_attention = nn.Sequential(conv_op(channels, hidden, 1), nn.ReLU(), conv_op(hidden, channels, 1))
        padding = [(edge - 1) // 2 for edge in maybe_convert_scalar_to_list(conv_op, kernel_size)]
        self.spatial_attention = conv_op(2, 1, kernel_size, padding=padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, [Z,] Y, X) to the same shape."""
        positions = tuple(range(2, x.ndim))
        average, maximum = x.mean(positions, keepdim=True), x.amax(positions, keepdim=True)  # (B, C, [1,] 1, 1)
        x = x * torch.sigmoid(self.channel_attention(average) + self.channel_attention(maximum))
        summary = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)  # (B, 2, [Z,] Y, X)
        return x * torch.sigmoid(self.spatial_attention(summary))
