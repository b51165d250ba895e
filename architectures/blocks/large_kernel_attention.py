"""Large kernel attention (LKA).

Paper 002 (ResSE-LKA-UNet), section 2.2.3, equations 4-8, after Guo et al. 2023, Visual attention network
(https://arxiv.org/abs/2202.09741): a depthwise 5x5 and a depthwise 7x7 convolution, a 1x1 convolution, norm and a
sigmoid give an attention map as large as the input, which is multiplied with it. The visual attention network has
neither norm nor sigmoid. The paper does not state the dilation of the 7x7 convolution; settled: 3, as in the visual
attention network, which gives a field of 23x23. Dilation 1 gives the undilated reading (11x11).
"""

from collections.abc import Sequence
from typing import Any

import torch
from dynamic_network_architectures.building_blocks.helper import maybe_convert_scalar_to_list
from torch import nn

from braintum.architectures.blocks.depthwise import replace_depthwise


class LargeKernelAttention(nn.Module):
    """Gates every element of the input by what surrounds it.

    Args:
        conv_op: ``nn.Conv2d`` or ``nn.Conv3d``.
        channels: of input and output.
        kernel_size: of the first depthwise convolution, odd, one number or one an axis.
        dilated_kernel_size: of the second.
        dilation: of the second.
        conv_bias: whether the convolutions have a bias.
        norm_op: normalisation class, None for none.
        norm_op_kwargs: its arguments.
    """

    def __init__(
        self,
        conv_op: Any,
        channels: int,
        kernel_size: int | Sequence[int] = 5,
        dilated_kernel_size: int | Sequence[int] = 7,
        dilation: int = 3,
        conv_bias: bool = True,
        norm_op: Any = None,
        norm_op_kwargs: dict | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels

        def depthwise(kernel: int | Sequence[int], dilation: int) -> nn.Module:
            padding = [dilation * (edge - 1) // 2 for edge in maybe_convert_scalar_to_list(conv_op, kernel)]
            return conv_op(
                channels, channels, kernel, padding=padding, dilation=dilation, groups=channels, bias=conv_bias
            )

        self.attention = nn.Sequential(
            depthwise(kernel_size, 1),
            depthwise(dilated_kernel_size, dilation),
            conv_op(channels, channels, 1, bias=conv_bias),
            nn.Identity() if norm_op is None else norm_op(channels, **(norm_op_kwargs or {})),
            nn.Sigmoid(),
        )
        replace_depthwise(self.attention)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, [Z,] Y, X) to the same shape."""
        return x * self.attention(x)

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """Feature map elements of the three convolutions, in the unit of nnU-Net's memory estimate."""
        return 3 * self.channels * torch.Size(input_size).numel()
