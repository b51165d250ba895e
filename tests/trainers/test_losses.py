"""Segmentation losses against literal, slow versions of the papers' equations in double precision."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn
from torch.nn import functional

from braintum.trainers.losses.losses import (
    UpsamplingDeepSupervisionLoss,
    bce_dice_loss,
    bce_loss,
    dice_cross_entropy_loss,
    weighted_cross_entropy_tversky_loss,
)
from braintum.trainers.losses.overlap_losses import (
    AdaptiveTverskyLoss,
    OverlapLoss,
    SquaredSoftDiceLoss,
    adaptive_weights,
)

BUILDERS = [dice_cross_entropy_loss, bce_dice_loss, bce_loss, weighted_cross_entropy_tversky_loss]
IGNORE = 3
EPSILON = 1e-5


def softmax(logits: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits, 1)


def label_manager(regions: bool = False, ignore: bool = False) -> LabelManager:
    """Background and two labels; as regions, the second lies in the first."""
    labels: dict[str, Any] = {"background": 0, "whole": [1, 2] if regions else 1, "core": [2] if regions else 2}
    return LabelManager({**labels, **({"ignore": IGNORE} if ignore else {})}, [1, 2] if regions else None)


def logits_and_target(
    shape: tuple[int, ...] = (2, 6, 5), regions: bool = False, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (B, C, …) and, as nnU-Net's loader gives it, a target (B, 1, …), or one channel a region."""
    generator = torch.Generator().manual_seed(seed)
    cases, *size = shape
    labels = torch.randint(0, 3, (cases, 1, *size), generator=generator)
    target = torch.cat([labels > 0, labels == 2], 1).float() if regions else labels.float()
    return torch.randn(cases, 2 if regions else 3, *size, generator=generator) * 2, target


# ------------------------------------------------------------------ literal equations


def counts(probability: torch.Tensor, truth: torch.Tensor) -> list[torch.Tensor]:
    """Soft TP, FP and FN, voxel by voxel."""
    totals = [torch.zeros((), dtype=torch.double) for _ in range(3)]
    for p, g in zip(probability.flatten(), truth.flatten(), strict=True):
        totals[0] = totals[0] + p * g
        totals[1] = totals[1] + p * (1 - g)
        totals[2] = totals[2] + (1 - p) * g
    return totals


def literal_squared_dice(probability: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """1 minus equation 5 of paper 000 for one class, smoothed."""
    numerator = denominator = torch.zeros((), dtype=torch.double)
    for p, g in zip(probability.flatten(), truth.flatten(), strict=True):
        numerator = numerator + 2 * p * g
        denominator = denominator + p**2 + g**2
    return 1 - (numerator + EPSILON) / (denominator + EPSILON)


def literal_tversky(probability: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Equations 13 and 14 of paper 002 for one class, weights as constants."""
    true_positive, false_positive, false_negative = counts(probability, truth)
    alpha = min(max(float((false_positive / (false_positive + false_negative)).detach()), 0.2), 0.8)
    beta = 1 - alpha
    return 1 - true_positive / (true_positive + alpha * false_positive + beta * false_negative + EPSILON)


def literal_mean(
    term: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    probability: torch.Tensor,
    truth: torch.Tensor,
    batch_dice: bool,
    do_bg: bool,
) -> torch.Tensor:
    """Mean of a one-class term over classes, and over cases without batch Dice."""
    channels = range(0 if do_bg else 1, probability.shape[1])
    if batch_dice:
        return torch.stack([term(probability[:, c], truth[:, c]) for c in channels]).mean()
    cases = range(len(probability))
    return torch.stack([term(probability[b, c], truth[b, c]) for b, c in product(cases, channels)]).mean()


def one_hot(target: torch.Tensor, num_classes: int = 3) -> torch.Tensor:
    return torch.cat([(target == c) for c in range(num_classes)], 1).double()


def literal_cross_entropy(probability: torch.Tensor, truth: torch.Tensor, weights: list[float]) -> torch.Tensor:
    """Equation 11 of paper 002, averaged over voxels with their weights."""
    total, weight_sum = torch.zeros((), dtype=torch.double), 0.0
    for b, c in product(range(len(probability)), range(probability.shape[1])):
        for p, g in zip(probability[b, c].flatten(), truth[b, c].flatten(), strict=True):
            total = total - weights[c] * g * torch.log(p)
            weight_sum += weights[c] * float(g)
    return total / weight_sum


def value_and_gradient(loss: Callable[[torch.Tensor], torch.Tensor], logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    logits = logits.clone().requires_grad_()
    value = loss(logits)
    value.backward()
    return value.detach().float(), logits.grad.float()


def assert_same(
    ours: Callable[[torch.Tensor], torch.Tensor],
    literal: Callable[[torch.Tensor], torch.Tensor],
    logits: torch.Tensor,
) -> None:
    """Same value and same gradient; the literal version runs in double precision."""
    for mine, expected in zip(
        value_and_gradient(ours, logits), value_and_gradient(literal, logits.double()), strict=True
    ):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------ overlap terms

OVERLAPS = [(SquaredSoftDiceLoss, literal_squared_dice), (AdaptiveTverskyLoss, literal_tversky)]


@pytest.mark.parametrize("shape", [(2, 6, 5), (3, 3, 4, 3)], ids=["2d", "3d"])
@pytest.mark.parametrize("do_bg", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize(("loss_class", "term"), OVERLAPS)
def test_overlap_follows_its_equation(
    loss_class: type[OverlapLoss], term: Callable, batch_dice: bool, do_bg: bool, shape: tuple[int, ...]
) -> None:
    logits, target = logits_and_target(shape)
    loss = loss_class(softmax, batch_dice=batch_dice, do_bg=do_bg, ddp=False)
    assert_same(
        lambda x: loss(x, target),
        lambda x: literal_mean(term, softmax(x), one_hot(target), batch_dice, do_bg),
        logits,
    )


@pytest.mark.parametrize("loss_class", [SquaredSoftDiceLoss, AdaptiveTverskyLoss])
def test_perfect_and_wrong_predictions(loss_class: type[OverlapLoss]) -> None:
    _, target = logits_and_target()
    right = 100 * one_hot(target).float() - 50
    loss = loss_class(softmax, ddp=False)
    assert loss(right, target) == pytest.approx(0, abs=1e-5)
    assert loss(right.roll(1, 1), target) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("false_positive", "false_negative", "alpha"),
    [(1, 1, 0.5), (3, 7, 0.3), (7, 3, 0.7), (1, 9, 0.2), (0, 5, 0.2), (9, 1, 0.8), (5, 0, 0.8), (0, 0, 0.2)],
)
def test_tversky_weights_follow_equation_14(false_positive: float, false_negative: float, alpha: float) -> None:
    weights = adaptive_weights(torch.tensor(float(false_positive)), torch.tensor(float(false_negative)))
    assert [float(weight) for weight in weights] == pytest.approx([alpha, 1 - alpha])


def test_tversky_never_rewards_false_positives() -> None:
    """Few false positives beside many false negatives: the weights' own gradient would turn the sign."""
    probability = torch.full((1, 1, 1, 20), 0.2)
    probability[..., :6] = 0.5
    target = torch.ones_like(probability)
    target[..., :6] = 0
    false_positive, false_negative = 6 * 0.5, 14 * 0.8
    assert 0.25 < false_positive / false_negative < 0.41  # above the clamp, below the turning point
    logits = torch.logit(probability).requires_grad_()
    AdaptiveTverskyLoss(torch.sigmoid, ddp=False)(logits, target).backward()
    assert (logits.grad[..., :6] > 0).all() and (logits.grad[..., 6:] < 0).all()


def test_absent_class_costs_tversky_a_constant_without_gradient() -> None:
    logits, target = logits_and_target((1, 4, 4), regions=True)
    target[:, 1] = 0
    loss = AdaptiveTverskyLoss(torch.sigmoid, ddp=False)
    _, gradient = value_and_gradient(lambda x: loss(x, target), logits)
    assert gradient[:, 1].abs().max() == 0 and gradient[:, 0].abs().max() > 0


@pytest.mark.parametrize("loss_class", [SquaredSoftDiceLoss, AdaptiveTverskyLoss])
def test_overlap_compiles_in_one_graph(loss_class: type[OverlapLoss]) -> None:
    logits, target = logits_and_target()
    mask = target != 2
    loss = loss_class(softmax, batch_dice=True, ddp=False)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(logits, target, loss_mask=mask), loss(logits, target, loss_mask=mask))
    torch._dynamo.reset()


# ------------------------------------------------------------------ the papers' losses


@pytest.mark.parametrize("batch_dice", [False, True])
def test_dice_cross_entropy_for_labels(batch_dice: bool) -> None:
    logits, target = logits_and_target()
    loss, truth = dice_cross_entropy_loss(label_manager(), batch_dice, ddp=False), one_hot(target)
    assert_same(
        lambda x: loss(x, target),
        lambda x: (
            literal_mean(literal_squared_dice, softmax(x), truth, batch_dice, do_bg=False)
            + literal_cross_entropy(softmax(x), truth, [1, 1, 1])
        ),
        logits,
    )


def test_weighted_cross_entropy_tversky_for_labels() -> None:
    logits, target = logits_and_target()
    loss, truth = weighted_cross_entropy_tversky_loss(label_manager(), True, ddp=False), one_hot(target)
    assert_same(
        lambda x: loss(x, target),
        lambda x: (
            literal_mean(literal_tversky, softmax(x), truth, batch_dice=True, do_bg=True)
            + literal_cross_entropy(softmax(x), truth, [0.1, 1, 1])
        ),
        logits,
    )


def test_class_weights_move_with_the_loss() -> None:
    loss = weighted_cross_entropy_tversky_loss(label_manager(), True, ddp=False)
    assert loss.to("meta").ce.weight.is_meta
    regions = weighted_cross_entropy_tversky_loss(label_manager(regions=True), True, ddp=False)
    assert regions.to("meta").ce.pos_weight.is_meta


def literal_binary_cross_entropy(
    probability: torch.Tensor, truth: torch.Tensor, positive_weight: float
) -> torch.Tensor:
    terms = [
        -positive_weight * g * torch.log(p) - (1 - g) * torch.log(1 - p)
        for p, g in zip(probability.flatten(), truth.flatten(), strict=True)
    ]
    return torch.stack(terms).mean()


@pytest.mark.parametrize(
    ("builder", "term", "positive_weight"),
    [
        (dice_cross_entropy_loss, literal_squared_dice, 1),
        (weighted_cross_entropy_tversky_loss, literal_tversky, 10),
    ],
)
def test_regions(builder: Callable[..., nn.Module], term: Callable, positive_weight: float) -> None:
    logits, target = logits_and_target(regions=True)
    loss = builder(label_manager(regions=True), True, ddp=False)
    assert_same(
        lambda x: loss(x, target),
        lambda x: (
            literal_mean(term, torch.sigmoid(x), target.double(), batch_dice=True, do_bg=True)
            + literal_binary_cross_entropy(torch.sigmoid(x), target.double(), positive_weight)
        ),
        logits,
    )


def literal_bce_dice(probability: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Equations 1 and 2 of paper 001."""
    true_positive, false_positive, false_negative = counts(probability, truth)
    dice = (2 * true_positive + EPSILON) / (2 * true_positive + false_positive + false_negative + EPSILON)
    return literal_binary_cross_entropy(probability, truth, 1) + 1 - dice


def test_two_labels_give_the_binary_loss_of_paper_001() -> None:
    logits, target = logits_and_target()
    logits, target = logits[:, :2], (target > 0).float()
    binary = LabelManager({"background": 0, "tumour": 1}, None)
    loss, cross_entropy = bce_dice_loss(binary, True, ddp=False), bce_loss(binary, True, ddp=False)
    assert_same(
        lambda x: loss(x, target) + 1,
        lambda x: literal_bce_dice(torch.sigmoid(x[:, 1] - x[:, 0]), target.double()),
        logits,
    )
    assert_same(
        lambda x: cross_entropy(x, target),
        lambda x: literal_binary_cross_entropy(torch.sigmoid(x[:, 1] - x[:, 0]), target.double(), 1),
        logits,
    )


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("regions", [False, True])
def test_ignored_voxels_are_as_if_cut_out(builder: Callable[..., nn.Module], batch_dice: bool, regions: bool) -> None:
    logits, target = logits_and_target((2, 6, 8), regions=regions)
    ignored = target.clone()
    if regions:
        ignored = torch.cat([target, torch.zeros_like(target[:, :1])], 1)
        ignored[..., 5:] = 1  # as nnU-Net converts the label: the ignore channel is the last
    else:
        ignored[..., 5:] = IGNORE
    with_ignore = builder(label_manager(regions, ignore=True), batch_dice, ddp=False)
    without = builder(label_manager(regions), batch_dice, ddp=False)
    value, gradient = value_and_gradient(lambda x: with_ignore(x, ignored), logits)
    cut_value, cut_gradient = value_and_gradient(lambda x: without(x, target[..., :5]), logits[..., :5])
    torch.testing.assert_close(value, cut_value)
    torch.testing.assert_close(gradient[..., :5], cut_gradient)
    assert gradient[..., 5:].abs().max() == 0


@pytest.mark.parametrize("builder", [dice_cross_entropy_loss, weighted_cross_entropy_tversky_loss])
@pytest.mark.parametrize("regions", [False, True])
def test_nothing_annotated_gives_no_gradient(builder: Callable[..., nn.Module], regions: bool) -> None:
    logits, target = logits_and_target(regions=regions)
    target = torch.cat([target, torch.ones_like(target[:, :1])], 1) if regions else torch.full_like(target, IGNORE)
    loss = builder(label_manager(regions, ignore=True), True, ddp=False)
    value, gradient = value_and_gradient(lambda x: loss(x, target), logits)
    assert torch.isfinite(value) and gradient.abs().max() == 0


@pytest.mark.parametrize("builder", [dice_cross_entropy_loss, weighted_cross_entropy_tversky_loss])
@pytest.mark.parametrize("regions", [False, True])
def test_float32_under_autocast(builder: Callable[..., nn.Module], regions: bool) -> None:
    logits, target = logits_and_target((2, 64, 64), regions=regions)
    logits = logits.bfloat16()
    loss = builder(label_manager(regions), True, ddp=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(logits.float(), target))


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("regions", [False, True])
def test_descent_finds_the_reference(builder: Callable[..., nn.Module], regions: bool) -> None:
    logits, target = logits_and_target((2, 8, 8), regions=regions)
    logits.requires_grad_()
    loss = builder(label_manager(regions), False, ddp=False)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(80):
        optimizer.zero_grad()
        loss(logits, target).backward()
        optimizer.step()
    predicted = (logits > 0).float() if regions else logits.argmax(1, keepdim=True).float()
    assert torch.equal(predicted, target)


# ------------------------------------------------------------------ deep supervision


@pytest.mark.parametrize(("num_outputs", "dimensions"), [(1, 2), (3, 2), (4, 3), (6, 2)])
def test_deep_supervision_upsamples_and_weighs(num_outputs: int, dimensions: int) -> None:
    edges = [32 // 2**level for level in range(num_outputs)]
    outputs = [logits_and_target((2, *[edge] * dimensions), seed=edge)[0] for edge in edges]
    target = [logits_and_target((2, *[edge] * dimensions), seed=edge)[1] for edge in edges]
    for logits in outputs:
        logits.requires_grad_()
    inner = weighted_cross_entropy_tversky_loss(label_manager(), True, ddp=False)
    value = UpsamplingDeepSupervisionLoss(inner)(outputs, target)
    full = [
        functional.interpolate(
            logits.detach(), size=(32,) * dimensions, mode="bilinear" if dimensions == 2 else "trilinear"
        )
        for logits in outputs[:4]
    ]
    expected = sum(weight * inner(logits, target[0]) for weight, logits in zip((1, 0.4, 0.3, 0.2), full, strict=False))
    torch.testing.assert_close(value, expected)
    value.backward()
    assert all(logits.grad.abs().max() > 0 for logits in outputs[:4])
    assert all(logits.grad is not None and logits.grad.abs().max() == 0 for logits in outputs[4:])


def test_deep_supervision_with_regions_and_ignore_channel_reads_the_full_resolution_only() -> None:
    logits, target = logits_and_target((2, 8, 8), regions=True)
    target = torch.cat([target, (torch.arange(8) > 5).float().expand(2, 1, 8, 8)], 1)
    coarse = logits_and_target((2, 4, 4), regions=True)[0]
    inner = dice_cross_entropy_loss(label_manager(regions=True, ignore=True), True, ddp=False)
    value = UpsamplingDeepSupervisionLoss(inner, weights=(1.0, 0.5))([logits, coarse], [target])
    upsampled = functional.interpolate(coarse, scale_factor=2, mode="bilinear")
    torch.testing.assert_close(value, inner(logits, target) + 0.5 * inner(upsampled, target))


def test_deep_supervision_refuses_a_single_output() -> None:
    logits, target = logits_and_target()
    loss = UpsamplingDeepSupervisionLoss(dice_cross_entropy_loss(label_manager(), True, ddp=False))
    with pytest.raises(TypeError, match="without deep supervision"):
        loss(logits, target)


# ------------------------------------------------------------------ several processes


def _half_of_the_batch(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {}
    for builder in (dice_cross_entropy_loss, weighted_cross_entropy_tversky_loss):
        logits, target = logits_and_target((4, 6, 5))
        part = slice(2 * rank, 2 * rank + 2)
        dice = builder(label_manager(), True, ddp=True).dc
        results[builder.__name__] = value_and_gradient(lambda x: dice(x, target[part]), logits[part])  # noqa: B023
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_batch_dice_sums_over_processes(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_half_of_the_batch, args=(str(tmp_path),), nprocs=2)
    per_rank = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert set(per_rank[0]) == {"dice_cross_entropy_loss", "weighted_cross_entropy_tversky_loss"}
    logits, target = logits_and_target((4, 6, 5))
    for builder in (dice_cross_entropy_loss, weighted_cross_entropy_tversky_loss):
        dice = builder(label_manager(), True, ddp=False).dc
        value, gradient = value_and_gradient(lambda x: dice(x, target), logits)  # noqa: B023
        values, gradients = zip(*(results[builder.__name__] for results in per_rank), strict=True)
        torch.testing.assert_close(torch.stack(values), value.expand(2))
        torch.testing.assert_close(torch.cat(gradients) / 2, gradient)  # DDP divides by the number of processes
