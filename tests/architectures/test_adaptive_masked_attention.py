"""Adaptive masked attention against a literal computation: loops over heads, windows and tokens."""

from itertools import product
from typing import Any

import pytest
import torch

from braintum.architectures.blocks import adaptive_masked_attention
from braintum.architectures.blocks.adaptive_masked_attention import AdaptiveMaskedAttention

FEATURES, LOW_LEVEL_FEATURES, HEADS = 6, 3, 2
GRIDS = [  # grid, window: exact, odd sizes that need padding, a grid smaller than the window
    ((4, 6), (2, 3)),
    ((5, 7), (3, 4)),
    ((2, 3), (8, 8)),
    ((4, 2, 4), (2, 2, 2)),
    ((3, 5, 2), (2, 3, 4)),
]
every_grid = pytest.mark.parametrize(("grid", "window"), GRIDS, ids=["x".join(map(str, grid)) for grid, _ in GRIDS])


def attention(window: tuple[int, ...], num_global_tokens: int = 5) -> AdaptiveMaskedAttention:
    torch.manual_seed(0)
    block = AdaptiveMaskedAttention(FEATURES, LOW_LEVEL_FEATURES, HEADS, window, num_global_tokens, mask_features=4)
    torch.nn.init.normal_(block.mixture)
    torch.nn.init.normal_(block.mixture_of_input)
    return block.double()


def inputs(grid: tuple[int, ...], cases: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (cases, *grid)
    return (
        torch.randn(*shape, FEATURES, generator=generator, dtype=torch.double),
        torch.randn(*shape, LOW_LEVEL_FEATURES, generator=generator, dtype=torch.double),
    )


def attend(query: torch.Tensor, keys: list[torch.Tensor], values: list[torch.Tensor]) -> torch.Tensor:
    """One query: softmax of its dot products with the keys, over the root of d, weighs the values."""
    exponentials = [torch.exp(query @ key / len(query) ** 0.5) for key in keys]
    return sum(e * value for e, value in zip(exponentials, values, strict=True)) / sum(exponentials)


def projections(block: Any, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Queries, keys and values (B, *grid, heads, d)."""
    parts = block.queries_keys_values(tokens).split(FEATURES, -1)
    return [part.reshape(*tokens.shape[:-1], HEADS, FEATURES // HEADS) for part in parts]


def literal_local(window: tuple[int, ...], queries: Any, keys: Any, values: Any) -> torch.Tensor:
    attended = torch.zeros_like(queries)
    cases, *grid, heads, _ = queries.shape
    places = list(product(*map(range, grid)))
    for case, head, place in product(range(cases), range(heads), places):
        of_window = [tuple(p // w for p, w in zip(other, window, strict=True)) for other in places]
        mine = tuple(p // w for p, w in zip(place, window, strict=True))
        neighbours = [other for other, index in zip(places, of_window, strict=True) if index == mine]
        attended[(case, *place, head)] = attend(
            queries[(case, *place, head)],
            [keys[(case, *other, head)] for other in neighbours],
            [values[(case, *other, head)] for other in neighbours],
        )
    return attended


def literal_global(count: int, queries: Any, keys: Any, values: Any, masks: Any) -> torch.Tensor:
    attended = torch.zeros_like(queries)
    cases, *grid, heads, _ = queries.shape
    places = list(product(*map(range, grid)))
    for case, head in product(range(cases), range(heads)):
        best = sorted(places, key=lambda place: -masks[(case, *place, head)].item())[:count]
        for place in places:
            attended[(case, *place, head)] = attend(
                queries[(case, *place, head)],
                [keys[(case, *other, head)] for other in best],
                [values[(case, *other, head)] for other in best],
            )
    return attended


@every_grid
@torch.no_grad()
def test_equals_a_literal_computation(grid: tuple[int, ...], window: tuple[int, ...]) -> None:
    block = attention(window)
    tokens, low_level = inputs(grid)
    norm, widen, activation, narrow = block.mask
    logits = narrow(activation(widen(norm(torch.cat((tokens, low_level), -1)))))
    masks = 1 / (1 + torch.exp(-logits.float()))
    queries, keys, values = projections(block, tokens)
    gated = torch.zeros_like(values)
    for case, place, head in product(range(len(tokens)), product(*map(range, grid)), range(HEADS)):
        gated[(case, *place, head)] = masks[(case, *place, head)] * values[(case, *place, head)]
    nearby = literal_local(window, queries, keys, gated)
    anywhere = literal_global(5, queries, keys, gated, masks)
    mixed = torch.zeros_like(nearby)
    for case, head in product(range(len(tokens)), range(HEADS)):
        of_input = (tokens[case].flatten(0, -2).mean(0) * block.mixture_of_input[head]).sum()
        share = 1 / (1 + torch.exp(-block.mixture[head] - of_input))
        mixed[case, ..., head, :] = share * nearby[case, ..., head, :] + (1 - share) * anywhere[case, ..., head, :]
    torch.testing.assert_close(block(tokens, low_level), block.project(mixed.flatten(-2)), rtol=1e-6, atol=1e-7)


@every_grid
@torch.no_grad()
def test_masks_lie_between_0_and_1_and_differ_by_head(grid: tuple[int, ...], window: tuple[int, ...]) -> None:
    masks = attention(window).masks(*inputs(grid))
    assert masks.shape == (2, *grid, HEADS)
    assert ((masks > 0) & (masks < 1)).all()
    assert (masks[..., 0] - masks[..., 1]).abs().min() > 0


@torch.no_grad()
def test_masks_stay_below_1_under_autocast() -> None:
    block = attention((2, 3)).float()
    block.mask[-1].bias.fill_(8.0)  # bfloat16 rounds its sigmoid to 1
    with torch.autocast("cpu", torch.bfloat16):
        masks = block.masks(*(part.float() for part in inputs((4, 6))))
    assert masks.dtype == torch.float32
    assert (masks.bfloat16() == 1).any() and (masks < 1).all()


@torch.no_grad()
def test_masks_depend_on_low_and_high_level_features() -> None:
    block = attention((2, 3))
    tokens, low_level = inputs((4, 6))
    masks = block.masks(tokens, low_level)
    assert (block.masks(tokens + torch.randn_like(tokens), low_level) != masks).all()
    assert (block.masks(tokens, low_level + torch.randn_like(low_level)) != masks).all()


@every_grid
@torch.no_grad()
def test_sparse_branch_attends_to_the_chosen_tokens_only(grid: tuple[int, ...], window: tuple[int, ...]) -> None:
    count = 4
    block = attention(window, num_global_tokens=count)
    tokens, low_level = inputs(grid, cases=1)
    queries, keys, values = projections(block, tokens)
    masks = block.masks(tokens, low_level)
    before = block.global_attention(queries, keys, values, masks)
    for head in range(HEADS):
        ranked = sorted(product(*map(range, grid)), key=lambda place: -masks[(0, *place, head)].item())
        for rank, place in enumerate(ranked):
            changed_keys, changed_values = keys.clone(), values.clone()
            changed_keys[(0, *place, head)] += 1
            changed_values[(0, *place, head)] += 1
            after = block.global_attention(queries, changed_keys, changed_values, masks)
            changed = (after != before).any(-1)[0]
            assert changed[..., head].all() == (rank < count)
            assert changed.any() == (rank < count)
            assert not changed[..., 1 - head].any()


@torch.no_grad()
def test_local_branch_stays_within_its_window() -> None:
    block = attention((3, 4))
    queries, keys, values = projections(block, inputs((5, 7), cases=1)[0])
    before = block.local_attention(queries, keys, values)
    changed_values = values.clone()
    changed_values[0, 4, 5, 0] += 1  # in the last window, of 2 x 3 tokens
    changed = (block.local_attention(queries, keys, changed_values) != before).any(-1)[0]
    expected = torch.zeros(5, 7, HEADS, dtype=torch.bool)
    expected[3:, 4:, 0] = True
    assert torch.equal(changed, expected)


@torch.no_grad()
def test_fully_masked_tokens_give_nothing() -> None:
    block = attention((2, 3))
    block.mask[-1].bias.fill_(-100.0)
    tokens, low_level = inputs((4, 6))
    torch.testing.assert_close(block(tokens, low_level), block.project.bias.expand_as(tokens))


def test_gradient_reaches_every_parameter_and_both_inputs() -> None:
    block = attention((2, 3))
    tokens, low_level = (part.requires_grad_() for part in inputs((4, 6)))
    block(tokens, low_level).square().sum().backward()
    for name, parameter in [*block.named_parameters(), ("tokens", tokens), ("low_level", low_level)]:
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-12, name


@every_grid
def test_gradients_are_those_of_finite_differences(grid: tuple[int, ...], window: tuple[int, ...]) -> None:
    """On k = N: where tokens are chosen, a finite step may change the choice."""
    block = attention(window, num_global_tokens=10**6)
    tokens, low_level = inputs(grid, cases=1)
    queries, keys, values = (part.detach().requires_grad_() for part in projections(block, tokens))
    masks = block.masks(tokens, low_level).double().detach()
    assert torch.autograd.gradcheck(block.local_attention, (queries, keys, values), fast_mode=True)
    assert torch.autograd.gradcheck(
        lambda *parts: block.global_attention(*parts, masks), (queries, keys, values), fast_mode=True
    )


def test_large_grids_are_computed_head_by_head_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    block = attention((2, 3))
    scores: list[torch.Tensor] = []
    block.mask.register_forward_hook(
        lambda module, inputs, output: scores.append(output)
    )  # as supervision of masks has
    results = []
    for many in (10**6, 1):
        monkeypatch.setattr(adaptive_masked_attention, "_MANY_TOKENS", many)
        tokens, low_level = (part.requires_grad_() for part in inputs((4, 6)))
        block.zero_grad()
        attended = block(tokens, low_level)
        (attended.square().sum() + scores[-1].sum()).backward()
        results.append([attended, tokens.grad, low_level.grad, *(weight.grad for weight in block.parameters())])
    for at_once, by_head in zip(*results, strict=True):
        torch.testing.assert_close(by_head, at_once)


@torch.no_grad()
def test_mixture_weighs_both_branches() -> None:
    block = attention((2, 3))
    tokens, low_level = inputs((4, 6))
    queries, keys, values = projections(block, tokens)
    masks = block.masks(tokens, low_level)
    values = values * masks.unsqueeze(-1)
    for bias, branch in (
        (100.0, block.local_attention(queries, keys, values)),
        (-100.0, block.global_attention(queries, keys, values, masks)),
    ):
        block.mixture.fill_(bias)
        torch.testing.assert_close(block(tokens, low_level), block.project(branch.flatten(-2)))


@torch.no_grad()
def test_mixture_depends_on_the_input() -> None:
    block = attention((2, 3))
    tokens, _ = inputs((4, 6))
    share = block.local_share(tokens)
    assert share.shape == (2, 1, 1, HEADS, 1) and not torch.allclose(share[0], share[1])
    block.mixture_of_input.zero_()
    torch.testing.assert_close(block.local_share(tokens)[1, 0, 0, :, 0], torch.sigmoid(block.mixture))


def test_what_mixes_the_branches_is_learned() -> None:
    block = attention((2, 3))
    block(*inputs((4, 6))).square().sum().backward()
    for parameter in (block.mixture, block.mixture_of_input):
        assert parameter.grad is not None and parameter.grad.abs().min() > 0


def test_weights_of_version_0_1_load_with_a_share_for_all_inputs() -> None:
    old = {name: value for name, value in attention((2, 3)).state_dict().items() if name != "mixture_of_input"}
    block = attention((2, 3))
    block.load_state_dict(old)
    assert not block.mixture_of_input.any()
    outer = torch.nn.Sequential(attention((2, 3)))
    outer.load_state_dict({f"0.{name}": value for name, value in old.items()})
    assert not outer[0].mixture_of_input.any()


def test_no_tensor_grows_with_the_square_of_the_tokens() -> None:
    """The largest tensor that autograd keeps: of N x k elements a head, N x N would be."""
    sizes = {}
    for edge in (32, 64):
        block = attention((4, 4), num_global_tokens=16).float()
        kept: list[int] = []

        def keep(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            block(*(part.float() for part in inputs((edge, edge), cases=1)))
        sizes[edge] = max(kept)
    assert sizes[64] == 4 * sizes[32]
    assert sizes[64] < 4096 * 4096


@every_grid
def test_compiles_without_breaks(grid: tuple[int, ...], window: tuple[int, ...]) -> None:
    block = attention(window).eval()
    torch._dynamo.reset()
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs(grid)), block(*inputs(grid)))


@torch.no_grad()
def test_autocast_is_close_to_float32() -> None:
    block = attention((3, 4)).float()
    tokens, low_level = (part.float() for part in inputs((5, 7)))
    exact = block(tokens, low_level)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = block(tokens, low_level)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)


def test_features_that_do_not_divide_into_heads_are_refused() -> None:
    with pytest.raises(ValueError, match="7 features do not divide into 2 heads"):
        AdaptiveMaskedAttention(7, 3, 2, (4, 4))
