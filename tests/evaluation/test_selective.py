"""Risk, coverage and the threshold for a target accuracy, against brute force and simulation."""

import numpy as np
import pytest
from scipy.stats import binomtest

from braintum.evaluation.metrics.selective import accuracy_bound, risk_coverage, threshold_for


def test_curve_against_brute_force():
    random = np.random.default_rng(0)
    confidence = random.choice(np.linspace(0.4, 1, 25), 90)  # with ties
    correct = random.random(90) < confidence
    curve = risk_coverage(confidence, correct)
    expected = []
    for threshold in sorted(set(confidence), reverse=True):
        accepted = [right for value, right in zip(confidence, correct, strict=True) if value >= threshold]
        expected.append((threshold, len(accepted) / 90, accepted.count(False) / len(accepted)))
    found = np.stack([curve.thresholds, curve.coverage, curve.risk], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    area = np.mean([1 - correct[confidence >= own].mean() for own in confidence])
    assert curve.area == pytest.approx(area)
    assert curve.coverage[-1] == 1 and curve.risk[-1] == pytest.approx(1 - correct.mean())


def test_area_of_a_perfect_and_of_the_worst_ranking():
    confidence, right = np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, True, False])
    assert risk_coverage(confidence, right).area == pytest.approx((0 + 0 + 0 + 1 / 4) / 4)
    assert risk_coverage(confidence, right[::-1]).area == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)


@pytest.mark.parametrize(("errors", "cases"), [(1, 60), (7, 100), (40, 400)])
def test_bound_of_independent_cases_is_nearly_clopper_and_pearsons(errors, cases):
    correct = np.arange(cases) >= errors
    exact = binomtest(cases - errors, cases).proportion_ci(0.9, "exact").low  # two-sided 90 %: one-sided 95 %
    found = accuracy_bound(correct, np.arange(cases), 0.05)
    assert exact - 0.005 < found <= exact


def test_bound_without_errors_counts_patients():
    correct, patients = np.ones(120, bool), np.repeat(np.arange(40), 3)
    assert accuracy_bound(correct, patients, 0.05) == pytest.approx(0.05 ** (1 / 40))
    assert accuracy_bound(correct, np.arange(120), 0.05) == pytest.approx(0.05 ** (1 / 120))


def test_bound_of_copies_is_that_of_the_originals():
    correct = np.arange(80) >= 8
    single = accuracy_bound(correct, np.arange(80), 0.05)
    copied = accuracy_bound(np.repeat(correct, 6), np.repeat(np.arange(80), 6), 0.05)
    assert copied == pytest.approx(single, abs=0.004)
    assert copied < accuracy_bound(np.repeat(correct, 6), np.arange(480), 0.05) - 0.02


def test_bound_of_next_to_nothing():
    assert accuracy_bound(np.array([True, True]), ["a", "a"], 0.05) == 0
    assert accuracy_bound(np.array([False, False]), ["a", "b"], 0.05) == 0


def test_bound_holds_for_patients_whose_cases_correlate():
    random = np.random.default_rng(1)
    patients = np.repeat(np.arange(60), 4)
    held = 0
    for _ in range(400):
        of_patient = random.beta(4.5, 0.5, 60)  # mean 0.9, correlation within a patient 1/6
        correct = random.random(240) < of_patient[patients]
        held += accuracy_bound(correct, patients, 0.05) <= 0.9
    assert held / 400 >= 0.93


def population(random, cases):
    """Cases that are right as often as they are certain."""
    confidence = random.uniform(0.5, 1, cases)
    return confidence, random.random(cases) < confidence


@pytest.mark.slow
def test_threshold_reaches_the_target_in_the_population():
    """From threshold t on, cases of this population are right with probability (1 + t) / 2."""
    random = np.random.default_rng(2)
    found = [threshold_for(0.85, *population(random, 400), np.arange(400)) for _ in range(200)]
    chosen = np.array([value for value in found if value is not None])
    assert len(chosen) > 100  # of 200; the others promise nothing
    assert ((1 + chosen) / 2 < 0.85).sum() / 200 <= 0.05
    assert np.median(chosen) < 0.87  # 0.7 would be enough if the population were known


def test_threshold_of_a_clear_case():
    confidence = np.concatenate([np.linspace(0.8, 1, 300), np.linspace(0.3, 0.7, 100)])
    correct = np.concatenate([np.ones(300, bool), np.arange(100) % 2 == 0])
    threshold = threshold_for(0.95, confidence, correct, np.arange(400))
    assert threshold is not None and 0.3 < threshold <= 0.8
    accepted = confidence >= threshold
    looks = 9  # a binary search in 400 thresholds
    assert accuracy_bound(correct[accepted], np.arange(accepted.sum()), 0.05 / looks) >= 0.95
    assert threshold_for(0.6, confidence, correct, np.arange(400)) == 0.3  # everything is accepted


def test_target_out_of_reach():
    confidence, correct = np.linspace(0.5, 1, 40), np.ones(40, bool)
    assert threshold_for(0.95, confidence, correct, np.arange(40)) is None  # 40 right ones promise less
    assert threshold_for(0.7, confidence, correct, np.arange(40)) is not None
    assert threshold_for(0.7, confidence, correct, np.zeros(40)) is None  # all of one patient


def test_bad_input():
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        threshold_for(1.0, np.array([0.5]), np.array([True]), ["a"])
    with pytest.raises(ValueError, match="no case"):
        threshold_for(0.9, np.array([]), np.array([]), [])
    with pytest.raises(ValueError, match="no case"):
        risk_coverage(np.array([]), np.array([]))
