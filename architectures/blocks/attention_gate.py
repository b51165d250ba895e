"""Additive attention gate of Attention U-Net.

Oktay et al. 2018, "Attention U-Net: Learning Where to Look for the Pancreas", section 2,
https://arxiv.org/abs/1804.03999; paper 001 uses it on the skips of its attention variant. As in the paper, the skip is
brought down to the gate's resolution, and the attention coefficients are interpolated back up. The gate reads the
features of the coarser decoder level as they are, without a gating convolution of its own, and what it returns is the
paper's equation, without the output convolution of the authors' code.
"""

from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import convert_conv_op_to_dim
from torch import nn
from torch.nn import functional

_INTERPOLATION = {2: "bilinear", 3: "trilinear"}


class AttentionGate(nn.Module):
    """alpha = sigmoid(psi(relu(W_x x + W_g g + b_g)) + b_psi), returns alpha * x (eqs. 1 and 2).

    Args:
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        skip_channels: channels of the skip x.
        gate_channels: channels of the gating signal g.
        stride: how much coarser g is, along each axis; also the kernel of W_x, so that it misses no voxel.
        hidden_channels: channels of the sum, by default half of the skip's.
    """

    def __init__(
        self,
        conv_op: Any,
        skip_channels: int,
        gate_channels: int,
        stride: int | Sequence[int],
        hidden_channels: int | None = None,
    ) -> None:
        super().__init__()
        hidden_channels = hidden_channels or max(1, skip_channels // 2)
        self.skip_channels = skip_channels
        self.project_skip = conv_op(skip_channels, hidden_channels, stride, stride, bias=False)  # W_x
        self.project_gate = conv_op(gate_channels, hidden_channels, 1)  # W_g, b_g
        self.score = conv_op(hidden_channels, 1, 1)  # psi, b_psi
        self._interpolation = _INTERPOLATION[convert_conv_op_to_dim(conv_op)]

    def attention(self, skip: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Attention coefficients in (0, 1).

        Args:
            skip: (B, skip_channels, [Z,] Y, X).
            gate: (B, gate_channels, ...), coarser by the stride.

        Returns:
            (B, 1, [Z,] Y, X).
        """
        scores = self.score(functional.relu(self.project_skip(skip) + self.project_gate(gate)))
        return functional.interpolate(torch.sigmoid(scores), size=skip.shape[2:], mode=self._interpolation)

    def forward(self, skip: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """The skip, weighted; shapes as in :meth:`attention`."""
        return skip * self.attention(skip, gate)

    def compute_conv_feature_map_size(self, skip_size: Sequence[int]) -> int:
        """Feature map elements, in the unit of nnU-Net's memory estimate: the projections and the weighted skip."""
        skip_elements = torch.Size(skip_size).numel()
        coarse_elements = skip_elements // torch.Size(self.project_skip.stride).numel()
        return (2 * self.project_gate.out_channels + 1) * coarse_elements + self.skip_channels * skip_elements
