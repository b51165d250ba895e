"""Residual squeeze-and-excitation block (ResSE).

Paper 002 (ResSE-LKA-UNet), section 2.2.2, equations 1-3: F = X + R(X) with R two convolutions, each followed by norm
and nonlinearity; the channels of F, shortcut included, are then re-weighted by squeeze and excitation (Hu et al. 2018,
https://arxiv.org/abs/1709.01507). That differs from the usual SE-ResNet block, which gates the residual branch alone.
The paper leaves open and we settled: reduction ratio 16 with at least 4 hidden channels; a 1x1 projection with norm on
the shortcut where channels or stride change; the stride sits in the first convolution, as everywhere in nnU-Net.
"""

from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import maybe_convert_scalar_to_list
from dynamic_network_architectures.building_blocks.regularization import SqueezeExcite
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from torch import nn


class SqueezeExcitation(SqueezeExcite):
    """dynamic-network-architectures' block, correct in 3-D too: the original averages over the first two axes only.

    Args:
        channels: of input and output.
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        reduction: hidden channels are ``channels // reduction``, but ``min_hidden_channels`` at least.
    """

    def __init__(self, channels: int, conv_op: Any, reduction: int = 16, min_hidden_channels: int = 4) -> None:
        super().__init__(channels, conv_op, rd_channels=max(min_hidden_channels, channels // reduction))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, [Z,] Y, X) to the same shape."""
        squeezed = x.mean(tuple(range(2, x.ndim)), keepdim=True)  # (B, C, [1,] 1, 1)
        return x * self.gate(self.fc2(self.act(self.fc1(squeezed))))

    @torch.no_grad()
    def pair_hidden_channels(self) -> None:
        """Give every other hidden channel the opposite weights of the one before, after random initialisation.

        All of four hidden channels can start, and then stay, negative for every case: the gate would be a constant. Of
        a pair one is always positive.
        """
        hidden = self.fc1.weight
        pairs = len(hidden) // 2
        hidden[1 : 2 * pairs : 2] = -hidden[: 2 * pairs : 2]


class ResidualSqueezeExcitationBlock(nn.Module):
    """Two convolutions with a shortcut around them, then squeeze and excitation of the sum.

    Args:
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        input_channels: channels of the input.
        output_channels: channels of the output.
        kernel_size: of both convolutions, one number or one an axis.
        stride: of the first convolution and of the shortcut.
        conv_bias: whether the two convolutions have a bias.
        norm_op: normalisation class, None for none.
        norm_op_kwargs: its arguments.
        dropout_op: dropout class after the first convolution, as in nnU-Net's residual blocks.
        dropout_op_kwargs: its arguments.
        nonlin: class of the nonlinearity.
        nonlin_kwargs: its arguments.
    """

    def __init__(
        self,
        conv_op: Any,
        input_channels: int,
        output_channels: int,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        conv_bias: bool = False,
        norm_op: Any = None,
        norm_op_kwargs: dict | None = None,
        dropout_op: Any = None,
        dropout_op_kwargs: dict | None = None,
        nonlin: Any = None,
        nonlin_kwargs: dict | None = None,
    ) -> None:
        super().__init__()
        self.output_channels = output_channels
        self.stride = maybe_convert_scalar_to_list(conv_op, stride)
        norm = (norm_op, norm_op_kwargs)
        self.residual = nn.Sequential(
            ConvDropoutNormReLU(
                conv_op,
                input_channels,
                output_channels,
                kernel_size,
                stride,
                conv_bias,
                *norm,
                dropout_op,
                dropout_op_kwargs,
                nonlin,
                nonlin_kwargs,
            ),
            ConvDropoutNormReLU(
                conv_op,
                output_channels,
                output_channels,
                kernel_size,
                1,
                conv_bias,
                *norm,
                None,
                None,
                nonlin,
                nonlin_kwargs,
            ),
        )
        self.has_projection = input_channels != output_channels or any(step != 1 for step in self.stride)
        self.shortcut = (
            ConvDropoutNormReLU(conv_op, input_channels, output_channels, 1, stride, False, *norm)
            if self.has_projection
            else nn.Identity()
        )
        self.squeeze_excitation = SqueezeExcitation(output_channels, conv_op)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, input_channels, [Z,] Y, X) to (B, output_channels, …), each axis divided by its stride."""
        return self.squeeze_excitation(self.shortcut(x) + self.residual(x))

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Feature map elements of the convolutions, in the unit of nnU-Net's memory estimate."""
        size = [edge // step for edge, step in zip(input_size, self.stride, strict=True)]
        return (2 + self.has_projection) * self.output_channels * torch.Size(size).numel()
