"""Context extraction (CE) at the bottleneck.

Paper 002 (ResSE-LKA-UNet), section 2.2.4: a 1x1 convolution, a 3x3 convolution and a globally averaged branch with a
1x1 convolution are summed, then normalised and rectified. The introduction also speaks of dilated features, the section
does not: the dilation is an argument, 1 by default.

With instance norm, which nnU-Net's plans ask for, the third branch could do nothing: it adds one number a channel and
case, which is exactly what instance norm subtracts again. The sum is then normalised over all channels of a case
together (group norm with one group), which is as independent of the batch and keeps the differences between channels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import get_matching_pool_op, maybe_convert_scalar_to_list
from torch import nn
from torch.nn.modules.instancenorm import _InstanceNorm


class ContextExtraction(nn.Module):
    """Fuses features of a point, of its neighbourhood and of the whole patch.

    Args:
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        channels: of input and output.
        kernel_size: of the neighbourhood's convolution, odd, one number or one an axis.
        dilation: of the neighbourhood's convolution.
        conv_bias: whether the convolutions have a bias.
        norm_op: normalisation class, None for none; see above for instance norm.
        norm_op_kwargs: its arguments.
        nonlin: class of the nonlinearity, None for none.
        nonlin_kwargs: its arguments.
    """

    def __init__(
        self,
        conv_op: Any,
        channels: int,
        kernel_size: int | Sequence[int] = 3,
        dilation: int = 1,
        conv_bias: bool = False,
        norm_op: Any = None,
        norm_op_kwargs: dict | None = None,
        nonlin: Any = None,
        nonlin_kwargs: dict | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        padding = [dilation * (edge - 1) // 2 for edge in maybe_convert_scalar_to_list(conv_op, kernel_size)]
        self.point = conv_op(channels, channels, 1, bias=conv_bias)
        self.neighbourhood = conv_op(
            channels, channels, kernel_size, padding=padding, dilation=dilation, bias=conv_bias
        )
        self.patch = nn.Sequential(
            get_matching_pool_op(conv_op, adaptive=True)(1), conv_op(channels, channels, 1, bias=conv_bias)
        )
        norm = nn.Identity() if norm_op is None else norm_op(channels, **(norm_op_kwargs or {}))
        if isinstance(norm, _InstanceNorm):
            norm = nn.GroupNorm(1, channels, eps=norm.eps, affine=norm.affine)
        self.norm = norm
        self.nonlin = nn.Identity() if nonlin is None else nonlin(**(nonlin_kwargs or {}))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, [Z,] Y, X) to the same shape."""
        return self.nonlin(self.norm(self.point(x) + self.neighbourhood(x) + self.patch(x)))

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Feature map elements of the two large branches, in the unit of nnU-Net's memory estimate."""
        return 2 * self.channels * torch.Size(input_size).numel()
