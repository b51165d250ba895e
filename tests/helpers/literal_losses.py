"""Literal, slow versions of the papers' segmentation losses in double precision, and logits to compare on."""

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

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


def literal_binary_cross_entropy(
    probability: torch.Tensor, truth: torch.Tensor, positive_weight: float
) -> torch.Tensor:
    terms = [
        -positive_weight * g * torch.log(p) - (1 - g) * torch.log(1 - p)
        for p, g in zip(probability.flatten(), truth.flatten(), strict=True)
    ]
    return torch.stack(terms).mean()


def literal_bce_dice(probability: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Equations 1 and 2 of paper 001."""
    true_positive, false_positive, false_negative = counts(probability, truth)
    dice = (2 * true_positive + EPSILON) / (2 * true_positive + false_positive + false_negative + EPSILON)
    return literal_binary_cross_entropy(probability, truth, 1) + 1 - dice
