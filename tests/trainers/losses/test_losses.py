"""The papers' losses against literal, slow versions of their equations in double precision."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from literal_losses import (
    IGNORE,
    assert_same,
    label_manager,
    literal_bce_dice,
    literal_binary_cross_entropy,
    literal_cross_entropy,
    literal_mean,
    literal_squared_dice,
    literal_tversky,
    logits_and_target,
    one_hot,
    softmax,
    value_and_gradient,
)
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

BUILDERS = [dice_cross_entropy_loss, bce_dice_loss, bce_loss, weighted_cross_entropy_tversky_loss]


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


@pytest.mark.slow
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
