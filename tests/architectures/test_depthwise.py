"""Depthwise convolutions with a backward pass of their own: the same numbers as torch's."""

import copy

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from braintum.architectures.blocks.depthwise import DepthwiseConv2d, can_replace, replace_depthwise


def convolution(kernel: int, stride: int, same: bool = False) -> nn.Conv2d:
    kind = Conv2dSame if same else nn.Conv2d
    return kind(6, 6, kernel, stride, 0 if same else kernel // 2, groups=6, bias=False)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("size", [(11, 14), (8, 8)])
def test_result_and_gradients_are_torchs(kernel: int, stride: int, same: bool, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    theirs = convolution(kernel, stride, same)
    ours = DepthwiseConv2d(copy.deepcopy(theirs))
    x = torch.randn(2, 6, *size).bfloat16().float()  # what autocast reads is exact in either
    for module in (theirs, ours):
        module.weight.data = module.weight.data.bfloat16().float()
    results = []
    for module, autocast in ((theirs, False), (ours, True)):
        data = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = module(data)
        output.float().square().sum().backward()
        results.append((output.float(), data.grad, module.weight.grad))
    for name, expected, found in zip(("output", "input", "weight"), *results, strict=True):
        scale = expected.abs().max()
        torch.testing.assert_close(
            found / scale, expected / scale, rtol=0, atol=0.02, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_float32_is_torchs_own_bit_for_bit() -> None:
    theirs = convolution(5, 2)
    ours = DepthwiseConv2d(theirs)
    x = torch.randn(2, 6, 9, 9)
    assert torch.equal(ours(x), theirs(x))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), theirs(x))


def test_replaces_depthwise_convolutions_and_no_others() -> None:
    network = nn.Sequential(
        convolution(3, 1),
        nn.Conv2d(6, 6, 3, groups=6),  # with a bias
        nn.Conv2d(6, 6, 3, groups=3, bias=False),
        nn.Conv2d(6, 6, 3, groups=6, bias=False, dilation=2),
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
