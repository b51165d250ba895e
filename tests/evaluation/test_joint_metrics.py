"""Figures of mask and class together, counted by hand."""

import math
from typing import Any

import numpy as np
import pytest

from braintum.evaluation.metrics.joint_metrics import (
    contradictions,
    healthy_and_tumour_cases,
    joint_metrics,
    joint_rates,
)

GLIOMA, PITUITARY, HEALTHY, UNKNOWN = 0, 1, 2, -1
NAN = math.nan

# true class, predicted class, Dice, predicted volume, true volume
CASES = [
    (GLIOMA, GLIOMA, 0.9, 10.0, 11.0),  # both right
    (GLIOMA, GLIOMA, 0.4, 3.0, 11.0),  # class right, mask wrong
    (PITUITARY, GLIOMA, 0.8, 5.0, 5.0),  # mask right, class wrong
    (PITUITARY, PITUITARY, 0.0, 0.0, 4.0),  # missed, and called a tumour
    (GLIOMA, HEALTHY, 0.7, 8.0, 9.0),  # called healthy, with a mask
    (HEALTHY, HEALTHY, NAN, 0.0, 0.0),  # both right
    (HEALTHY, HEALTHY, 0.0, 2.0, 0.0),  # false mask, called healthy
    (HEALTHY, GLIOMA, 0.0, 6.0, 0.0),  # false mask and false tumour class
    (HEALTHY, PITUITARY, NAN, 0.0, 0.0),  # called a tumour, without a mask
    (UNKNOWN, HEALTHY, 0.0, 1.0, 0.0),  # healthy by its empty mask: false mask
    (UNKNOWN, GLIOMA, 0.9, 7.0, 7.0),  # a tumour by its mask
    (GLIOMA, GLIOMA, NAN, 0.0, NAN),  # a tumour by its class, without reference mask: missed
    (GLIOMA, GLIOMA, 0.0, 3.0, 0.0),  # slice beside a glioma: neither
    (UNKNOWN, GLIOMA, NAN, 3.0, NAN),  # nothing known
    (GLIOMA, UNKNOWN, 0.9, 9.0, 9.0),  # no class predicted
]


def metrics_of(cases: list[tuple], **options: Any) -> dict[str, Any]:
    labels, predictions, dice, predicted_volume, true_volume = (np.array(column) for column in zip(*cases, strict=True))
    return joint_metrics(labels, predictions, dice, predicted_volume, true_volume, **options)


def figures(count: int, num_cases: int) -> dict[str, Any]:
    return {"count": count, "rate": pytest.approx(count / num_cases), "num_cases": num_cases}


def test_counted_by_hand() -> None:
    metrics = metrics_of(CASES, negative_class=HEALTHY)
    assert metrics == {
        "num_cases": 15,
        "num_healthy": 5,
        "num_tumour": 8,
        "both_correct": figures(2, 9),  # of rows 1 to 9
        "healthy_class_with_mask": figures(3, 4),  # rows 5, 7, 10; of these and row 6
        "tumour_class_without_mask": figures(3, 10),  # rows 4, 9, 12
        "contradictions": figures(6, 14),
        "false_masks": {**figures(3, 5), "mean_volume": pytest.approx(3), "median_volume": pytest.approx(2)},
        "missed_tumours": figures(2, 8),  # rows 4 and 12
    }


def test_case_whose_predicted_mask_is_not_counted_stays_out_of_all_rates() -> None:
    expected = metrics_of(CASES, negative_class=HEALTHY)
    ignored = [(true, predicted, NAN, NAN, NAN) for true in (GLIOMA, HEALTHY) for predicted in (GLIOMA, HEALTHY)]
    found = metrics_of([*CASES, *ignored], negative_class=HEALTHY)
    assert found == expected | {"num_cases": 19, "num_healthy": 7, "num_tumour": 10}


def test_threshold_of_a_right_mask_is_inclusive() -> None:
    cases = [(GLIOMA, GLIOMA, dice, 1.0, 1.0) for dice in (0.4, 0.5, 0.6)]
    assert metrics_of(cases)["both_correct"]["count"] == 2
    assert metrics_of(cases, dice_threshold=0.4)["both_correct"]["count"] == 3
    assert metrics_of(cases, dice_threshold=0.7)["both_correct"]["count"] == 0


def test_without_a_negative_class_only_empty_masks_of_unknown_class_are_healthy() -> None:
    metrics = metrics_of(CASES)
    assert metrics["num_healthy"] == 1
    assert metrics["healthy_class_with_mask"]["num_cases"] == 0
    assert math.isnan(metrics["healthy_class_with_mask"]["rate"])
    assert metrics["tumour_class_without_mask"] == figures(4, 14)  # row 6 too


def test_without_predicted_classes_masks_are_still_judged() -> None:
    """As of stock nnU-Net."""
    metrics = metrics_of([(case[0], UNKNOWN, *case[2:]) for case in CASES], negative_class=HEALTHY)
    for name in ("both_correct", "contradictions", "healthy_class_with_mask", "tumour_class_without_mask"):
        assert metrics[name]["num_cases"] == 0 and math.isnan(metrics[name]["rate"])
    assert metrics["false_masks"]["count"] == 3 and metrics["missed_tumours"]["count"] == 2


def test_without_false_masks_their_volume_is_undefined() -> None:
    false_masks = metrics_of([CASES[5]], negative_class=HEALTHY)["false_masks"]
    assert false_masks["rate"] == 0 and false_masks["num_cases"] == 1
    assert math.isnan(false_masks["mean_volume"]) and math.isnan(false_masks["median_volume"])


def test_without_cases_rates_are_undefined() -> None:
    metrics = joint_metrics([], [], [], [], [], HEALTHY)
    assert metrics["num_cases"] == 0
    assert all(math.isnan(value["rate"]) for value in metrics.values() if isinstance(value, dict))


@pytest.mark.parametrize("seed", range(5))
def test_weighted_cases_have_the_rates_of_repeated_ones(seed: int) -> None:
    weights = np.random.default_rng(seed).integers(0, 4, len(CASES))
    weights[[0, 6]] = 2, 3  # something right, and some false masks
    repeated = [case for case, weight in zip(CASES, weights, strict=True) for _ in range(weight)]
    expected = metrics_of(repeated, negative_class=HEALTHY)
    columns = [np.array(column) for column in zip(*CASES, strict=True)]
    for name, (hits, cases) in joint_rates(*columns, negative_class=HEALTHY).items():
        assert (hits @ weights, cases @ weights) == (expected[name]["count"], expected[name]["num_cases"])


def test_truth_of_each_case() -> None:
    labels, volumes = np.array([case[0] for case in CASES]), np.array([case[4] for case in CASES])
    healthy, tumour = healthy_and_tumour_cases(labels, volumes, HEALTHY)
    assert np.flatnonzero(healthy).tolist() == [5, 6, 7, 8, 9]
    assert np.flatnonzero(~healthy & ~tumour).tolist() == [12, 13]
    assert not (healthy & tumour).any()


def test_a_case_of_the_negative_class_is_healthy_without_a_reference_mask() -> None:
    healthy, tumour = healthy_and_tumour_cases(np.array([HEALTHY]), np.array([NAN]), HEALTHY)
    assert healthy.tolist() == [True] and tumour.tolist() == [False]


def test_contradictions_of_each_case() -> None:
    predictions, volumes = np.array([case[1] for case in CASES]), np.array([case[3] for case in CASES])
    with_mask, without_mask = contradictions(predictions, volumes, HEALTHY)
    assert np.flatnonzero(with_mask).tolist() == [4, 6, 9]
    assert np.flatnonzero(without_mask).tolist() == [3, 8, 11]
    of_no_class = contradictions(np.array([UNKNOWN, UNKNOWN]), np.array([0.0, 1.0]), HEALTHY)
    assert not np.any(of_no_class)


def test_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="different lengths: 2, 1, 1, 1, 1 cases"):
        joint_metrics([0, 1], [0], [1.0], [1.0], [1.0])
