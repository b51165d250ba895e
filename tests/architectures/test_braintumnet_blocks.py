"""BrainTumNet's blocks and its classification head against literal reference computations."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from braintum.architectures.blocks.bt_block import BTBlock, SelfAttention
from braintum.architectures.blocks.cbam import CBAM
from braintum.architectures.blocks.pyramid_fusion import PyramidFusion
from braintum.architectures.heads.t_inception import (
    ParallelConvolutions,
    TInceptionBlock,
    TInceptionNet,
    inception_kernels,
)

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
GRID = {2: (5, 7), 3: (3, 2, 5)}


def ready(module: nn.Module) -> Any:
    """Evaluation mode and double precision, with norms that are not the identity."""
    torch.manual_seed(0)
    for part in module.modules():
        if isinstance(part, (nn.LayerNorm, nn.GroupNorm)):
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.normal_(part.bias)
    return module.eval().double()


def features(channels: int, dimensions: int, cases: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(dimensions)
    return torch.randn(cases, channels, *GRID[dimensions], generator=generator, dtype=torch.double)


def positions(x: torch.Tensor) -> list[tuple[int, ...]]:
    """All grid positions of (B, C, [Z,] Y, X)."""
    return list(product(*map(range, x.shape[2:])))


@pytest.mark.parametrize("dimensions", [2, 3])
@torch.no_grad()
def test_cbam_equals_a_literal_computation(dimensions: int) -> None:
    block = ready(CBAM(CONV[dimensions], 5, kernel_size=3))
    x = features(5, dimensions)
    first, _, second = block.channel_attention
    expected = torch.zeros_like(x)
    for case in range(len(x)):
        summaries = [
            torch.stack([reduce(channel) for channel in x[case]])
            for reduce in (torch.mean, lambda channel: channel.max())
        ]
        logits = torch.zeros(5, dtype=torch.double)
        for summary in summaries:
            hidden = torch.relu(first.weight.flatten(1) @ summary + first.bias)
            logits += second.weight.flatten(1) @ hidden + second.bias
        gated = x[case] * torch.sigmoid(logits).reshape(-1, *[1] * dimensions)
        for position in positions(x):
            total = block.spatial_attention.bias[0].clone()
            for tap in product(range(3), repeat=dimensions):
                source = tuple(p + t - 1 for p, t in zip(position, tap, strict=True))
                if all(0 <= s < size for s, size in zip(source, x.shape[2:], strict=True)):
                    here = gated[(slice(None), *source)]
                    total += block.spatial_attention.weight[(0, 0, *tap)] * here.mean()
                    total += block.spatial_attention.weight[(0, 1, *tap)] * here.max()
            at = (slice(None), *position)
            expected[case][at] = gated[at] * torch.sigmoid(total)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("dimensions", [2, 3])
@torch.no_grad()
def test_each_level_of_the_pyramid_is_the_interpolated_sum_of_the_coarser_ones(dimensions: int) -> None:
    fusion = ready(PyramidFusion(CONV[dimensions], (6, 5, 3), 4))
    shapes = [(2,) * dimensions, (4,) * dimensions, (8,) * dimensions]
    levels = [
        torch.randn(1, channels, *shape, dtype=torch.double) for channels, shape in zip((6, 5, 3), shapes, strict=True)
    ]
    outputs = fusion(levels)
    assert [tuple(level.shape[2:]) for level in outputs] == shapes
    carried = None
    for level, lateral, output in zip(levels, fusion.laterals, outputs, strict=True):
        expected = torch.einsum("oc,bc...->bo...", lateral.weight.flatten(1), level)
        expected = expected + lateral.bias.reshape(-1, *[1] * dimensions)
        if carried is not None:
            for axis in range(2, 2 + dimensions):  # linear interpolation to twice the size, axis by axis
                carried = doubled(carried, axis)
            expected = expected + carried
        torch.testing.assert_close(output, expected)
        carried = expected


def doubled(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Linear interpolation to twice the size along an axis: each new sample lies a quarter off an old one."""
    last = x.shape[axis] - 1
    samples = []
    for index in range(2 * (last + 1)):
        at = min(max((index + 0.5) / 2 - 0.5, 0), last)
        low = int(at)
        high = min(low + 1, last)
        samples.append(x.select(axis, low) * (1 - (at - low)) + x.select(axis, high) * (at - low))
    return torch.stack(samples, axis)


def literal_attention(module: SelfAttention, tokens: torch.Tensor, keys_from: torch.Tensor) -> torch.Tensor:
    """Multi-head attention of (N, F) tokens to (K, F) tokens, query by query."""
    size = tokens.shape[1]
    heads, d = module.heads, size // module.heads
    queries = module.queries(tokens)
    keys, values = module.keys_values(keys_from).split(size, -1)
    attended = torch.zeros_like(tokens)
    for head in range(heads):
        part = slice(head * d, (head + 1) * d)
        for query in range(len(tokens)):
            logits = torch.stack([queries[query, part] @ key[part] for key in keys]) / d**0.5
            attended[query, part] = torch.softmax(logits, 0) @ values[:, part]
    return module.project(attended)


def literal_self_attention(layer: Any, tokens: torch.Tensor) -> torch.Tensor:
    """What a transformer layer's attention adds to (B, [Z,] Y, X, F) tokens."""
    normed = layer.norm(tokens).flatten(1, -2)
    attended = torch.stack([literal_attention(layer.attention, case, case) for case in normed])
    return attended.reshape(tokens.shape)


@pytest.mark.parametrize("key_grid", [(16, 16), (2, 3)], ids=["dense", "averaged keys"])
@torch.no_grad()
def test_self_attention_equals_a_literal_computation(key_grid: tuple[int, int]) -> None:
    module = ready(SelfAttention(6, 2, key_grid))
    tokens = torch.randn(2, 4, 6, 6, dtype=torch.double)
    attended = module(tokens)
    for case in range(2):
        keys_from = tokens[case].flatten(0, 1)
        if key_grid == (2, 3):  # of 4 x 6: means of 2 x 2
            keys_from = torch.stack(
                [tokens[case, y : y + 2, x : x + 2].mean((0, 1)) for y in (0, 2) for x in (0, 2, 4)]
            )
        expected = literal_attention(module, tokens[case].flatten(0, 1), keys_from)
        torch.testing.assert_close(attended[case].flatten(0, 1), expected)


@pytest.mark.parametrize("dimensions", [2, 3])
@torch.no_grad()
def test_bt_block_is_three_residual_sublayers_between_two_projections(dimensions: int) -> None:
    block = ready(BTBlock(CONV[dimensions], 5, 3))
    x, low_level = features(5, dimensions), features(3, dimensions)
    tokens = functional.linear(x.movedim(1, -1), block.embed.weight.flatten(1), block.embed.bias)
    tokens = tokens + block.masked_attention(block.norm(tokens), low_level.movedim(1, -1))
    layer = block.transformer
    tokens = tokens + literal_self_attention(layer, tokens)
    norm, widen, activation, narrow = layer.feed_forward
    tokens = tokens + narrow(activation(widen(norm(tokens))))
    restored = functional.linear(tokens, block.restore.weight.flatten(1), block.restore.bias)
    torch.testing.assert_close(block(x, low_level), x + restored.movedim(-1, 1))


@pytest.mark.parametrize("dimensions", [2, 3])
@torch.no_grad()
def test_finer_low_level_features_are_averaged_to_the_tokens(dimensions: int) -> None:
    block = ready(BTBlock(CONV[dimensions], 4, 3))
    x, low_level = features(4, dimensions), features(3, dimensions)
    finer = low_level
    for axis in range(2, 2 + dimensions):
        finer = finer.repeat_interleave(2, axis)
    torch.testing.assert_close(block(x, finer), block(x, low_level))
    assert (block(x, finer + torch.randn_like(finer)) - block(x, finer)).abs().max() > 1e-6


def test_kernels_of_the_t_inception_branches() -> None:
    assert set(inception_kernels(2)) == {(1, 1), (3, 3), (1, 3), (3, 1)}
    assert set(inception_kernels(3)) == {(1, 1, 1), (3, 3, 3), (1, 1, 3), (1, 3, 1), (3, 1, 1)}
    for dimensions in (2, 3):
        parallel = TInceptionBlock(CONV[dimensions], 5, heads=3).convolutions[0]
        assert [branch.kernel_size for branch in parallel.branches] == inception_kernels(dimensions)
        widths = [branch.out_channels for branch in parallel.branches]
        assert sum(widths) == 96 and max(widths) - min(widths) <= 1


@pytest.mark.parametrize("dimensions", [2, 3])
@torch.no_grad()
def test_branches_see_their_neighbourhood_only_and_stand_side_by_side(dimensions: int) -> None:
    kernels = inception_kernels(dimensions)
    block = ready(ParallelConvolutions(CONV[dimensions], 2, [(2, kernel) for kernel in kernels]))
    x = torch.zeros(1, 2, *[5] * dimensions, dtype=torch.double)
    x[(0, slice(None), *[2] * dimensions)] = 1
    response = block(x) - block(torch.zeros_like(x))
    for index, kernel in enumerate(kernels):
        reached = response[0, 2 * index : 2 * index + 2].abs().amax(0) > 0
        expected = torch.zeros_like(reached)
        expected[tuple(slice(2 - edge // 2, 3 + edge // 2) for edge in kernel)] = True
        assert torch.equal(reached, expected)


@pytest.mark.parametrize("dimensions", [2, 3])
@torch.no_grad()
def test_t_inception_block_equals_a_literal_computation(dimensions: int) -> None:
    block = ready(TInceptionBlock(CONV[dimensions], 3, heads=2))
    x = features(3, dimensions)
    parallel, norm, activation = block.convolutions
    convolve = getattr(functional, f"conv{dimensions}d")
    branches = [
        convolve(x, branch.weight, branch.bias, padding=tuple(edge // 2 for edge in branch.kernel_size))
        for branch in parallel.branches
    ]
    y = convolve(x, block.shortcut.weight, block.shortcut.bias) + activation(norm(torch.cat(branches, 1)))
    tokens = y.movedim(1, -1)
    layer = block.transformer
    tokens = tokens + literal_self_attention(layer, tokens)
    tokens = tokens + layer.feed_forward(tokens)
    torch.testing.assert_close(block(x), tokens.movedim(-1, 1))


def t_inception_net(**kwargs: Any) -> TInceptionNet:
    return ready(TInceptionNet(nn.Conv2d, (3, 5), 4, **kwargs))


@pytest.mark.parametrize("use_inception", [True, False])
@torch.no_grad()
def test_t_inception_net_equals_a_literal_computation(use_inception: bool) -> None:
    net = t_inception_net(use_inception=use_inception)
    levels = [torch.randn(2, 3, 8, 8).double(), torch.randn(2, 5, 4, 4).double()]
    logits = torch.randn(2, 3, 16, 16).double()
    tumour = 1 - torch.softmax(logits.float(), 1)[:, :1]
    means = [functional.avg_pool2d(tumour, 2), functional.avg_pool2d(tumour, 4)]
    first, second = net.seg_layers["blocks"]
    x = first(levels[0] * means[0])
    x = second(torch.cat((functional.avg_pool2d(x, 2), levels[1] * means[1]), 1))
    pooled = torch.zeros(2, x.shape[1])
    for case in range(2):
        weights = torch.zeros(())
        for y, z in product(range(4), range(4)):
            weight = means[1][case, 0, y, z] + net.background_weight
            pooled[case] += weight * x[case, :, y, z].float()
            weights += weight
        pooled[case] /= weights
    norm, dropout, linear = net.seg_layers["classify"]
    expected = linear.float()(norm.float()(pooled))
    torch.testing.assert_close(net.float()([level.float() for level in levels], logits.float()), expected)
    assert isinstance(dropout, nn.Dropout)
    assert isinstance(first, TInceptionBlock) == use_inception


def test_features_outside_the_tumour_do_not_matter_and_those_inside_do() -> None:
    net = t_inception_net().float()
    logits = torch.zeros(1, 2, 16, 16)
    logits[:, 1] = -200  # surely no tumour
    logits[:, 1, :8, :8] = 200  # surely tumour
    levels = [torch.randn(1, 3, 8, 8), torch.randn(1, 5, 4, 4)]
    changed = [level.clone() for level in levels]
    for level in changed:
        half = level.shape[-1] // 2
        level[..., half:, :] += 10
        level[..., :, half:] += 10
    torch.testing.assert_close(net(changed, logits), net(levels, logits), rtol=0, atol=0)
    inside = [level.clone() for level in levels]
    inside[1][..., 0, 0] += 10
    assert (net(inside, logits) - net(levels, logits)).abs().max() > 1e-3


def test_class_loss_reaches_segmentation_through_the_gate() -> None:
    net = t_inception_net().float()
    logits = torch.randn(2, 2, 16, 16, requires_grad=True)
    net([torch.randn(2, 3, 8, 8), torch.randn(2, 5, 4, 4)], logits)[:, 0].sum().backward()
    assert logits.grad is not None and logits.grad.any()


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="two classes"):
        TInceptionNet(nn.Conv2d, (4, 6), 1)
