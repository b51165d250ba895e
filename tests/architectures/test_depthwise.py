"""Depthwise convolutions with a backward pass of their own: the same numbers as torch's."""

import copy
from typing import Any

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from braintum.architectures.blocks.depthwise import can_replace, replace_depthwise


def convolution(kernel: int, stride: int, same: bool = False) -> nn.Conv2d:
    kind = Conv2dSame if same else nn.Conv2d
    return kind(6, 6, kernel, stride, 0 if same else kernel // 2, groups=6, bias=False)


def large(dimensions: int, kernel: int | tuple[int, ...], dilation: int, bias: bool) -> nn.Module:
    edges = [kernel] * dimensions if isinstance(kernel, int) else list(kernel)
    kind: Any = nn.Conv2d if dimensions == 2 else nn.Conv3d
    padding = [dilation * (edge - 1) // 2 for edge in edges]
    return kind(6, 6, edges, padding=padding, dilation=dilation, groups=6, bias=bias)


def replaced(module: nn.Module) -> nn.Module:
    network = nn.Sequential(copy.deepcopy(module))
    assert replace_depthwise(network) == 1
    return network[0]


def compare(theirs: nn.Module, x: torch.Tensor, autocast: bool, tolerance: float) -> None:
    """Result, gradients of input, weight and bias; as shares of the largest."""
    ours = replaced(theirs)
    results = []
    theirs.zero_grad()
    for module, half in ((theirs, False), (ours, autocast)):
        data = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            output = module(data)
        (output.float().square() * torch.linspace(0.5, 1, output.shape[-1])).sum().backward()
        results.append((output.float(), data.grad, *(parameter.grad for parameter in module.parameters())))
    for expected, found in zip(*results, strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("size", [(11, 14), (8, 8)])
def test_result_and_gradients_are_torchs(kernel: int, stride: int, same: bool, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    theirs = convolution(kernel, stride, same)
    x = torch.randn(2, 6, *size).bfloat16().float()  # what autocast reads is exact in either
    theirs.weight.data = theirs.weight.data.bfloat16().float()
    compare(theirs, x, autocast=True, tolerance=0.02)
    compare(theirs, x, autocast=False, tolerance=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("size", "kernel", "dilation"),
    [
        ((11, 14), 7, 3),
        ((8, 8), 5, 2),
        ((7, 9, 10), 5, 1),
        ((7, 9, 10), 7, 3),
        ((6, 6, 6), 3, 1),
        ((5, 9, 10), (1, 5, 7), 2),
        ((4, 9, 10), (3, 5, 5), 1),
    ],
)
def test_dilation_and_volumes(size: tuple[int, ...], kernel: int | tuple[int, ...], dilation: int, bias: bool) -> None:
    torch.manual_seed(0)
    theirs = large(len(size), kernel, dilation, bias)
    compare(theirs, torch.randn(2, 6, *size), autocast=False, tolerance=1e-5)


def test_float32_is_torchs_own_bit_for_bit() -> None:
    theirs = convolution(5, 2)
    ours = replaced(theirs)
    x = torch.randn(2, 6, 9, 9)
    assert torch.equal(ours(x), theirs(x))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), theirs(x))


def test_a_compiled_or_exported_network_holds_the_convolution_itself() -> None:
    ours = replaced(large(2, 7, 3, bias=True))
    exported = torch.export.export(ours, (torch.randn(1, 6, 9, 9),))
    called = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert called == ["aten.conv2d.default"]
    traced: Any = torch.jit.trace(ours, torch.randn(1, 6, 9, 9))
    assert [node.kind() for node in traced.inlined_graph.nodes() if "conv" in node.kind()] == ["aten::_convolution"]


def test_replaces_depthwise_convolutions_and_no_others() -> None:
    network = nn.Sequential(
        convolution(3, 1),
        nn.Conv2d(6, 6, 4, groups=6, dilation=2),  # of another size
        nn.Conv2d(6, 6, 3, groups=3, bias=False),
        nn.Conv2d(6, 6, 3, 2, padding=2, groups=6, dilation=2),  # strides and dilation
        nn.Sequential(convolution(5, 2, same=True)),
    )
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert replace_depthwise(network) == 2
    assert [type(module).__name__ for module in network[:4]] == ["DepthwiseConv2d", "Conv2d", "Conv2d", "Conv2d"]
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not any(can_replace(module) for module in network.modules())
    copied = copy.deepcopy(network)  # with weights of its own
    copied[0].weight.data.zero_()
    assert network[0].weight.abs().sum() > 0
