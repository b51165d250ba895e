"""Depthwise convolutions whose backward pass is fast on a CPU.

oneDNN, which computes torch's convolutions on a CPU, has no fast gradients for depthwise convolutions in bfloat16: with
5 × 5 kernels or strides they take many times as long as the forward pass, and most of the time of a step of an
EfficientNet. The gradient with respect to the input is itself a depthwise convolution, with the kernel turned around,
and is computed as one here; the gradient with respect to the weights is computed in float32, but for 3 × 3 kernels.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional


class _DepthwiseConvolution(torch.autograd.Function):
    """``conv2d`` with one group a channel and without a bias, see the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, int], padding: tuple[int, int]
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(x, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            rest = [kernel - 1 for kernel in weight.shape[2:]]
            spread = gradient
            if stride != (1, 1):  # zeros where the forward pass did not step
                size = [edge + 2 * pad - r for edge, pad, r in zip(x.shape[2:], padding, rest, strict=True)]
                spread = gradient.new_zeros(*gradient.shape[:2], *size).contiguous(memory_format=torch.channels_last)
                spread[:, :, :: stride[0], :: stride[1]] = gradient
            around = [r - pad for r, pad in zip(rest, padding, strict=True)]
            of_input = torch.conv2d(spread, weight.flip(2, 3), None, 1, around, 1, len(weight))
        if ctx.needs_input_grad[1]:
            if weight.shape[2:] != (3, 3):
                x, gradient = x.float(), gradient.float()
            of_weight = torch.ops.aten.convolution_backward(
                gradient,
                x,
                weight.to(x.dtype),
                None,
                list(stride),
                list(padding),
                [1, 1],
                False,
                [0, 0],
                len(weight),
                [False, True, False],
            )[1].to(weight.dtype)
        return of_input, of_weight, None, None


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution of an existing network: the same parameter, the same result, other gradients' code.

    It is used where it is faster: in training on a CPU in bfloat16. Elsewhere torch's own is.

    Args:
        convolution: the one that it replaces; see :func:`can_replace`.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        channels = convolution.in_channels
        kernel_size: Any = convolution.kernel_size
        stride: Any = convolution.stride
        padding: Any = convolution.padding
        super().__init__(channels, channels, kernel_size, stride, padding, groups=channels, bias=False, device="meta")
        self.weight = convolution.weight
        # as TensorFlow pads: what is needed to keep size / stride, the odd pixel at the end (timm's Conv2dSame)
        self.pads_like_tensorflow = type(convolution).__name__ == "Conv2dSame"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As torch's; (B, C, Y, X)."""
        padding: Any = self.padding
        if self.pads_like_tensorflow:
            x = functional.pad(x, self._tensorflow_padding(x.shape[2:]))
            padding = (0, 0)
        if x.device.type == "cpu" and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            return _DepthwiseConvolution.apply(x.to(dtype), self.weight.to(dtype), self.stride, padding)
        return functional.conv2d(x, self.weight, None, self.stride, padding, 1, self.groups)

    def _tensorflow_padding(self, size: torch.Size) -> list[int]:
        """(left, right, top, bottom)."""
        pads: list[int] = []
        for edge, kernel, stride in zip(size, self.kernel_size, self.stride, strict=True):
            missing = max((-(-edge // stride) - 1) * stride + kernel - edge, 0)
            pads = [missing // 2, missing - missing // 2, *pads]
        return pads


def can_replace(module: nn.Module) -> bool:
    """Whether a module is a depthwise convolution that :class:`DepthwiseConv2d` knows."""
    return (
        isinstance(module, nn.Conv2d)
        and type(module).__name__ in ("Conv2d", "Conv2dSame")
        and module.groups == module.in_channels == module.out_channels > 1
        and module.bias is None
        and module.dilation == (1, 1)
        and isinstance(module.padding, tuple)
        and all(2 * pad <= kernel for pad, kernel in zip(module.padding, module.kernel_size, strict=True))
    )


def replace_depthwise(network: nn.Module) -> int:
    """Replace the depthwise convolutions within a network; names and parameters stay.

    Returns:
        How many there were.
    """
    count = 0
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d) and can_replace(child):
                setattr(parent, name, DepthwiseConv2d(child))
                count += 1
    return count
