"""Figures for mask and class together: both right, contradictions, false masks of healthy cases, missed tumours."""

from collections.abc import Sequence
from typing import Any

import numpy as np

UNKNOWN = -1


def joint_metrics(
    labels: Sequence[int] | np.ndarray,
    predictions: Sequence[int] | np.ndarray,
    dice: Sequence[float] | np.ndarray,
    predicted_volume: Sequence[float] | np.ndarray,
    true_volume: Sequence[float] | np.ndarray,
    negative_class: int | None = None,
    dice_threshold: float = 0.5,
) -> dict[str, Any]:
    """Figures of cases whose mask and class are predicted; either may be missing.

    Args:
        labels: true class of each case; -1 where unknown.
        predictions: predicted class of each case; -1 where there is none.
        dice: of the whole tumour, all foreground labels taken together; NaN where undefined.
        predicted_volume: size of the predicted foreground, 0 without any, in the unit that the volumes are to have; NaN
            where it is not known: such a case stays out of every figure of masks.
        true_volume: size of the foreground of the reference mask; NaN for a case without a reference mask.
        negative_class: the healthy class, if there is one.
        dice_threshold: from which on a mask counts as right.

    Returns:
        ``num_cases``, ``num_healthy``, ``num_tumour`` (see :func:`healthy_and_tumour_cases`; the rest is neither) and,
        each with ``count``, ``rate`` (NaN without cases) and ``num_cases``, over which the rate is taken:

        - ``both_correct``: the class is right, and so is the mask: a Dice of at least ``dice_threshold`` for a tumour,
          no mask for a healthy case; of the cases with a known and a predicted class that are healthy, or show a
          tumour and have a Dice;
        - ``healthy_class_with_mask`` and ``tumour_class_without_mask``: of cases predicted healthy, and with a tumour
          class (see :func:`contradictions`); ``contradictions``: both, of all cases with a predicted class;
        - ``false_masks``: healthy cases with a predicted mask, with ``mean_volume`` and ``median_volume`` of these
          masks (NaN without any);
        - ``missed_tumours``: tumour cases without a predicted mask.

    Raises:
        ValueError: lists of different lengths.
    """
    rates = joint_rates(labels, predictions, dice, predicted_volume, true_volume, negative_class, dice_threshold)
    healthy, tumour = healthy_and_tumour_cases(np.asarray(labels), np.asarray(true_volume), negative_class)
    false_masks = np.asarray(predicted_volume, dtype=np.float64)[rates["false_masks"][0]]
    figures: dict[str, Any] = {
        "num_cases": len(labels),
        "num_healthy": int(healthy.sum()),
        "num_tumour": int(tumour.sum()),
        **{name: _rate(int(hits.sum()), int(cases.sum())) for name, (hits, cases) in rates.items()},
    }
    figures["false_masks"] |= {
        "mean_volume": float(false_masks.mean()) if len(false_masks) else float("nan"),
        "median_volume": float(np.median(false_masks)) if len(false_masks) else float("nan"),
    }
    return figures


def joint_rates(
    labels: Sequence[int] | np.ndarray,
    predictions: Sequence[int] | np.ndarray,
    dice: Sequence[float] | np.ndarray,
    predicted_volume: Sequence[float] | np.ndarray,
    true_volume: Sequence[float] | np.ndarray,
    negative_class: int | None = None,
    dice_threshold: float = 0.5,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The cases that the rates of :func:`joint_metrics` count, and those that they are taken over: (cases,) bool each.

    Arguments and errors as there.
    """
    columns = [np.asarray(labels), np.asarray(predictions)]
    columns += [np.asarray(column, dtype=np.float64) for column in (dice, predicted_volume, true_volume)]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(f"columns of different lengths: {', '.join(str(len(column)) for column in columns)} cases")
    true_class, predicted_class, dice, predicted_volume, true_volume = columns
    healthy, tumour = healthy_and_tumour_cases(true_class, true_volume, negative_class)
    mask = predicted_volume > 0
    counted = np.isfinite(predicted_volume)
    classified = counted & (predicted_class != UNKNOWN)
    judged = classified & (true_class != UNKNOWN) & (healthy | (tumour & np.isfinite(dice)))
    right_mask = np.where(healthy, ~mask, np.nan_to_num(dice) >= dice_threshold)
    with_mask, without_mask = contradictions(predicted_class, predicted_volume, negative_class)
    called_healthy = classified & _is_negative(predicted_class, negative_class)
    rates = {
        "both_correct": ((predicted_class == true_class) & right_mask, judged),
        "healthy_class_with_mask": (with_mask, called_healthy),
        "tumour_class_without_mask": (without_mask, classified & ~called_healthy),
        "contradictions": (with_mask | without_mask, classified),
        "false_masks": (mask, healthy & counted),
        "missed_tumours": (~mask, tumour & counted),
    }
    return {name: (hits & cases, cases) for name, (hits, cases) in rates.items()}


def healthy_and_tumour_cases(
    labels: np.ndarray, true_volume: np.ndarray, negative_class: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Which cases are truly healthy, and which truly show a tumour: two (cases,) boolean arrays.

    Healthy is a case of the negative class, or of no known class with an empty reference mask. A tumour is shown by a
    case that is not healthy and has a reference mask that is not empty, or a tumour class and no reference mask. A
    case of a tumour class with an empty reference mask (a slice beside a patient's tumour) is neither, nor is one of
    which nothing is known.

    Args:
        labels: true class of each case; -1 where unknown.
        true_volume: size of the foreground of the reference mask; NaN without one.
        negative_class: the healthy class, if there is one.
    """
    labels, true_volume = np.asarray(labels), np.asarray(true_volume, dtype=np.float64)
    known = labels != UNKNOWN
    healthy = _is_negative(labels, negative_class) | (~known & (true_volume == 0))
    return healthy, ~healthy & ((true_volume > 0) | (known & np.isnan(true_volume)))


def contradictions(
    predictions: np.ndarray, predicted_volume: np.ndarray, negative_class: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Which cases are called healthy and have a mask, and which have a tumour class and no mask.

    Args:
        predictions: predicted class of each case; -1 where there is none, which contradicts nothing.
        predicted_volume: size of the predicted foreground; NaN where it is not known, which contradicts nothing.
        negative_class: the healthy class; None: every class is a tumour.

    Returns:
        Two (cases,) boolean arrays.
    """
    predictions, volume = np.asarray(predictions), np.asarray(predicted_volume)
    called_healthy = _is_negative(predictions, negative_class)
    return called_healthy & (volume > 0), (predictions != UNKNOWN) & ~called_healthy & (volume == 0)


def _is_negative(classes: np.ndarray, negative_class: int | None) -> np.ndarray:
    return np.zeros(len(classes), dtype=bool) if negative_class is None else classes == negative_class


def _rate(count: int, num_cases: int) -> dict[str, float | int]:
    return {"count": count, "rate": count / num_cases if num_cases else float("nan"), "num_cases": num_cases}
