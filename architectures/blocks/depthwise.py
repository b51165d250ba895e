"""Depthwise convolutions that are fast on a CPU, in training above all.

oneDNN, which computes torch's convolutions on a CPU, has fast code for the forward pass of depthwise convolutions
without dilation, and little else. So everything is made of that here, with the numbers of torch's own convolution:

- one with dilation d is d convolutions without, an axis: of the pixels that are d apart;
- the gradient with respect to the input is a depthwise convolution of the output's, with the kernel turned around;
- the gradient with respect to the weights is one of the input, with the output's gradient as its kernel and dilation
  and stride exchanged. For kernels of 3 and for strides oneDNN's own is faster.

All are in 2-D and 3-D. On other devices, and in networks that are compiled or exported, torch's own code runs.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
_CONVOLUTION = {2: torch.conv2d, 3: torch.conv3d}


class _DepthwiseConvolution(torch.autograd.Function):
    """``conv2d`` or ``conv3d`` with one group a channel; with dilation it has stride 1 and keeps the size."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.has_bias, ctx.stride, ctx.padding, ctx.dilation = bias is not None, stride, padding, dilation
        return _convolve(x, weight, bias, stride, padding, dilation)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.stride, ctx.padding, ctx.dilation
        (gradient,) = gradients
        axes = tuple(range(2, x.ndim))
        of_input = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            spread = _spread(gradient, x.shape[2:], weight.shape[2:], stride, padding)
            reach = [rate * (kernel - 1) for rate, kernel in zip(dilation, weight.shape[2:], strict=True)]
            around = [far - pad for far, pad in zip(reach, padding, strict=True)]
            of_input = _convolve(spread, weight.flip(axes), None, [1] * len(axes), around, dilation)
        if ctx.needs_input_grad[1]:
            of_weight = _gradient_of_weight(x, gradient, weight, stride, padding, dilation)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            of_bias = gradient.sum((0, *axes))
        return of_input, of_weight, of_bias, None, None, None


def _convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    axes = x.ndim - 2
    size = x.shape[2:]
    dilated = any(rate > 1 for rate in dilation)
    if dilated:
        batch = len(x)
        x = _to_sub_grids(x, dilation)
        padding = [pad // rate for pad, rate in zip(padding, dilation, strict=True)]
    x = x.contiguous(memory_format=_CHANNELS_LAST[axes])
    result = _CONVOLUTION[axes](x, weight, bias, list(stride), list(padding), 1, len(weight))
    return _from_sub_grids(result, batch, size, dilation) if dilated else result


def _to_sub_grids(x: torch.Tensor, rates: Sequence[int]) -> torch.Tensor:
    """(B, C, grid), zeros added, to (offsets * B, C, grid / rates): pixels ``rates`` apart become neighbours."""
    axes = len(rates)
    missing = [-size % rate for size, rate in zip(x.shape[2:], rates, strict=True)]
    if any(missing):
        x = functional.pad(x, [pad for amount in reversed(missing) for pad in (0, amount)])
    split = [part for size, rate in zip(x.shape[2:], rates, strict=True) for part in (size // rate, rate)]
    x = x.reshape(*x.shape[:2], *split)
    offsets, positions = range(3, 2 * axes + 2, 2), range(2, 2 * axes + 2, 2)
    x = x.permute(*offsets, 0, *positions, 1).flatten(0, axes)  # one copy, channels last
    return x.movedim(-1, 1)


def _from_sub_grids(x: torch.Tensor, batch: int, size: Sequence[int], rates: Sequence[int]) -> torch.Tensor:
    """The way back, to ``size``."""
    axes = len(rates)
    x = x.reshape(*rates, batch, *x.shape[1:])
    interleaved = [axis for i in range(axes) for axis in (axes + 2 + i, i)]
    x = x.permute(axes, axes + 1, *interleaved)
    x = x.reshape(*x.shape[:2], *(x.shape[2 + 2 * i] * x.shape[3 + 2 * i] for i in range(axes)))
    for axis, edge in enumerate(size, start=2):
        x = x.narrow(axis, 0, edge)
    return x


def _spread(
    gradient: torch.Tensor, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> torch.Tensor:
    """The output's gradient, with zeros where the forward pass did not step."""
    if all(step == 1 for step in stride):
        return gradient
    edges = [edge + 2 * pad - k + 1 for edge, pad, k in zip(size, padding, kernel, strict=True)]
    spread = gradient.new_zeros(*gradient.shape[:2], *edges)
    stepped: tuple[Any, ...] = (..., *(slice(None, None, step) for step in stride))
    spread[stepped] = gradient
    return spread


def _gradient_of_weight(
    x: torch.Tensor,
    gradient: torch.Tensor,
    weight: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> torch.Tensor:
    axes = x.ndim - 2
    kernel = weight.shape[2:]
    x, gradient = (part if set(kernel) == {3} and axes == 2 else part.float() for part in (x, gradient))
    if all(step == 1 for step in stride) and set(kernel) != {3}:
        channels = x.shape[0] * x.shape[1]
        x = x.reshape(1, channels, *x.shape[2:])
        as_kernel = gradient.reshape(channels, 1, *gradient.shape[2:])
        products = _CONVOLUTION[axes](x, as_kernel, None, list(dilation), list(padding), 1, channels)
        return products.reshape(-1, *weight.shape).sum(0).to(weight.dtype)
    x, gradient = (part.contiguous(memory_format=_CHANNELS_LAST[axes]) for part in (x, gradient))
    return torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight.to(x.dtype),
        None,
        list(stride),
        list(padding),
        list(dilation),
        False,
        [0] * axes,
        len(weight),
        [False, True, False],
    )[1].to(weight.dtype)


class _Depthwise:
    """Takes the place of torch's convolution in a forward pass, where this module's is faster."""

    stride: Any
    padding: Any
    dilation: Any

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        # not for the fake tensors that count multiply-adds, nor for traced ones
        ours = x.device.type == "cpu" and type(x) is torch.Tensor and not torch.compiler.is_compiling()
        if not ours or torch.jit.is_tracing():
            return super()._conv_forward(x, weight, bias)  # type: ignore[misc]
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        return _DepthwiseConvolution.apply(x, weight, bias, self.stride, self.padding, self.dilation)


class DepthwiseConv2d(_Depthwise, nn.Conv2d):
    """A depthwise convolution with the parameters of torch's, see the module's docstring."""


class DepthwiseConv3d(_Depthwise, nn.Conv3d):
    """The same in 3-D."""


class DepthwiseConv2dSame(_Depthwise, nn.Conv2d):
    """The same, padded as TensorFlow pads (timm's ``Conv2dSame``): to size / stride, the odd pixel at the end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, Y, X) to (B, C, Y / stride, X / stride), rounded up."""
        pads: list[int] = []
        for edge, kernel, stride in zip(x.shape[2:], self.kernel_size, self.stride, strict=True):
            missing = max((-(-edge // stride) - 1) * stride + kernel - edge, 0)
            pads = [missing // 2, missing - missing // 2, *pads]
        return super().forward(functional.pad(x, pads))


_REPLACEMENT = {"Conv2d": DepthwiseConv2d, "Conv3d": DepthwiseConv3d, "Conv2dSame": DepthwiseConv2dSame}


def can_replace(module: nn.Module) -> bool:
    """Whether a module is a depthwise convolution that this module computes."""
    if type(module).__name__ not in _REPLACEMENT or not isinstance(module, nn.Conv2d | nn.Conv3d):
        return False
    if not module.groups == module.in_channels == module.out_channels > 1 or not isinstance(module.padding, tuple):
        return False
    axes = list(zip(module.kernel_size, module.stride, module.padding, module.dilation, strict=True))
    if all(rate == 1 for rate in module.dilation):
        return all(2 * pad <= kernel for kernel, _, pad, _ in axes)
    keeps_size = all(kernel % 2 and 2 * pad == rate * (kernel - 1) for kernel, _, pad, rate in axes)
    return keeps_size and all(step == 1 for step in module.stride)


def replace_depthwise(network: nn.Module) -> int:
    """Replace the depthwise convolutions within a network; names and parameters stay.

    Returns:
        How many there were.
    """
    count = 0
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d | nn.Conv3d) and can_replace(child):
                setattr(parent, name, _replacement(child))
                count += 1
    return count


def _replacement(convolution: nn.Conv2d | nn.Conv3d) -> nn.Module:
    """The same convolution of ours, with the same parameters."""
    arguments: dict[str, Any] = {
        name: getattr(convolution, name)
        for name in ("kernel_size", "stride", "padding", "dilation", "groups", "in_channels", "out_channels")
    }
    ours = _REPLACEMENT[type(convolution).__name__](**arguments, bias=False, device="meta")
    ours.weight, ours.bias = convolution.weight, convolution.bias
    return ours
