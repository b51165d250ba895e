"""Averages over a coarser grid are torch's adaptive pooling."""

from itertools import product

import pytest
import torch
from torch.nn import functional

from braintum.architectures.blocks.averaging import average_to

ADAPTIVE = {2: functional.adaptive_avg_pool2d, 3: functional.adaptive_avg_pool3d}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((8, 12), (4, 3)),
        ((8, 12), (8, 12)),
        ((7, 12), (4, 4)),
        ((20, 20), (16, 16)),
        ((8, 12, 4), (4, 4, 4)),
        ((14, 10, 20), (8, 8, 8)),
        ((3, 5, 8), (3, 2, 1)),
    ],
)
def test_averages_are_those_of_adaptive_pooling(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours = torch.randn(2, 3, *before, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    found, expected = average_to(ours, after), ADAPTIVE[len(before)](theirs, after)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    weights = torch.randn(expected.shape)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-5)


def test_averages_are_the_means_of_blocks() -> None:
    x = torch.randn(1, 2, 4, 6)
    averaged = average_to(x, (2, 3))
    for y, z in product(range(2), range(3)):
        torch.testing.assert_close(averaged[..., y, z], x[..., 2 * y : 2 * y + 2, 2 * z : 2 * z + 2].mean((2, 3)))


def test_type_is_kept_and_autocast_lowers_no_precision() -> None:
    x = 1000 + torch.rand(1, 1, 14, 14)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert average_to(x.half(), (8, 8)).dtype == torch.float16
        torch.testing.assert_close(average_to(x, (8, 8)), ADAPTIVE[2](x, (8, 8)), atol=1e-3, rtol=0)


def test_shapes_without_values() -> None:
    assert average_to(torch.empty(1, 2, 14, 10, 20, device="meta"), (8, 8, 8)).shape == (1, 2, 8, 8, 8)
