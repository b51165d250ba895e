"""Gradients in the memory format of what they belong to, for backward passes on a CPU.

A feature map that is concatenated, or pooled by a product, gets a slice or a transposed view for its gradient. torch's
batch norm and activations on a CPU then take an elementwise path: with channels last, ten times as long and more.
Copying the gradient first costs next to nothing.
"""

from typing import Any

import torch


class _DenseGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0].contiguous(memory_format=torch.channels_last)


def with_dense_gradient(x: torch.Tensor) -> torch.Tensor:
    """The same feature map (B, C, Y, X); what computed it gets its gradient with channels last, if it has them last.

    Elsewhere than on a CPU, in 3-D and without gradients it is returned as it is.
    """
    if x.device.type != "cpu" or not x.requires_grad or x.dim() != 4:
        return x
    return _DenseGradient.apply(x) if x.is_contiguous(memory_format=torch.channels_last) else x
