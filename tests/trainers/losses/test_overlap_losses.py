"""Overlap terms of the losses against literal, slow versions of the papers' equations in double precision."""

from collections.abc import Callable

import pytest
import torch
from literal_losses import (
    assert_same,
    literal_mean,
    literal_squared_dice,
    literal_tversky,
    logits_and_target,
    one_hot,
    softmax,
    value_and_gradient,
)

from braintum.trainers.losses.overlap_losses import (
    AdaptiveTverskyLoss,
    OverlapLoss,
    SquaredSoftDiceLoss,
    adaptive_weights,
)

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
