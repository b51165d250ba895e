"""How much memory feature maps take, counted on a network itself."""

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd


def convolution_elements(network: nn.Module, input_size: Sequence[int]) -> int:
    """Elements of the outputs of all convolutions for one patch, in the unit of nnU-Net's memory estimate.

    The network runs once on the meta device, without memory or arithmetic.

    Args:
        network: whose first convolution reads the image.
        input_size: ([Z,] Y, X).
    """
    elements: list[int] = []
    network = copy.deepcopy(network).to("meta").eval()
    convolutions = [module for module in network.modules() if isinstance(module, _ConvNd)]
    for module in convolutions:
        module.register_forward_hook(lambda _, inputs, output: elements.append(output.numel()))
    with torch.no_grad():
        network(torch.empty(1, convolutions[0].in_channels, *input_size, device="meta"))
    return sum(elements)
