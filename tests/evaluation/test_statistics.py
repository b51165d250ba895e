"""Bootstrap and permutation tests: against scipy and statsmodels, by hand, and by simulated coverage and errors."""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy import stats

from braintum.evaluation.metrics import statistics
from braintum.evaluation.metrics.classification_metrics import classification_metrics
from braintum.evaluation.metrics.joint_metrics import joint_rates
from braintum.evaluation.metrics.statistics import (
    Estimate,
    bootstrap_means,
    bootstrap_multiplicities,
    cluster_bootstrap,
    compare_models,
    flat_figures,
    holm,
)

pytestmark = pytest.mark.filterwarnings("error")

NAN = math.nan


def clustered(
    random: np.random.Generator, num_patients: int, num_models: int = 1
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Patients of 2 to 14 cases each, and values of mean zero whose patients differ far more than a patient's cases."""
    patients = np.repeat(np.arange(num_patients), random.integers(2, 15, num_patients))
    values = [
        random.normal(0, 1, num_patients)[patients] + random.normal(0, 0.3, len(patients)) for _ in range(num_models)
    ]
    return patients, values


def mean_of(values: np.ndarray, clusters: np.ndarray, **options: Any) -> Estimate:
    return bootstrap_means({"mean": values}, clusters, **options)["mean"]


def covers(estimate: Estimate, truth: float) -> bool:
    return estimate.interval is not None and estimate.interval[0] <= truth <= estimate.interval[1]


# --- resampling -------------------------------------------------------------------------------------------------------


def test_each_resample_has_as_many_clusters_as_there_are() -> None:
    multiplicities = bootstrap_multiplicities(7, 200, 0)
    assert multiplicities.shape == (200, 7) and multiplicities.min() == 0
    assert (multiplicities.sum(1) == 7).all()
    assert multiplicities.mean(0) == pytest.approx(np.ones(7), abs=0.3)


def test_resamples_drawn_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded by drawing a few at a time; 23 patients and 40 resamples, three of these a part."""
    patients, columns = clustered(np.random.default_rng(4), 23, num_models=2)
    scores = dict(zip("ab", columns, strict=True))

    def results() -> tuple[Any, ...]:
        right = columns[0] > 0
        generic = cluster_bootstrap(lambda weights: {"": float(np.average(right, weights=weights))}, patients, 40)
        compared = compare_models(scores, patients, 40, 500)
        intervals = [generic[""].interval, bootstrap_means(scores, patients, 40)["a"].interval]
        return compared[0].p_value, np.array([*intervals, compared[0].difference.interval])

    whole, (p_value, intervals) = bootstrap_multiplicities(23, 40, 0), results()
    monkeypatch.setattr(statistics, "_MAX_DRAWN", 3 * 23 + 5)
    assert (bootstrap_multiplicities(23, 40, 0) == whole).all()
    assert results()[0] == p_value and results()[1] == pytest.approx(intervals, rel=1e-12)


def test_against_scipy_with_one_case_a_cluster() -> None:
    """The same indices from the same seed, so the intervals agree exactly, of a mean and of a standard deviation."""
    values = np.random.default_rng(1).gamma(2.0, size=30)

    def of_resample(weights: np.ndarray) -> dict[str, float]:
        sample = np.repeat(values, weights)
        return {"mean": sample.mean(), "deviation": sample.std()}

    found = cluster_bootstrap(of_resample, range(30), num_resamples=500, confidence=0.9, seed=3)
    for name, statistic in (("mean", np.mean), ("deviation", np.std)):
        expected = stats.bootstrap(
            (values,),
            statistic,
            n_resamples=500,
            confidence_level=0.9,
            method="percentile",
            random_state=np.random.default_rng(3),
        ).confidence_interval
        assert found[name].interval == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_a_resampled_patient_brings_all_its_cases() -> None:
    random = np.random.default_rng(0)
    patients, (values,) = clustered(random, 12)
    by_patient = [values[patients == patient] for patient in range(12)]
    drawn = np.random.default_rng(5).integers(0, 12, (400, 12))
    means = [np.concatenate([by_patient[patient] for patient in row]).mean() for row in drawn]
    expected = np.percentile(means, [2.5, 97.5])
    assert mean_of(values, patients, num_resamples=400, seed=5).interval == pytest.approx(tuple(expected))


def test_products_of_matrices_equal_a_call_a_resample() -> None:
    random = np.random.default_rng(2)
    patients, columns = clustered(random, 15, num_models=3)
    columns[1][random.random(len(patients)) < 0.3] = NAN
    values = dict(zip("abc", columns, strict=True))

    def of_resample(weights: np.ndarray) -> dict[str, float]:
        return {name: float(np.nanmean(np.repeat(column, weights))) for name, column in values.items()}

    fast = bootstrap_means(values, patients, num_resamples=200, seed=4)
    slow = cluster_bootstrap(of_resample, patients, num_resamples=200, seed=4)
    for name in values:
        assert fast[name].value == pytest.approx(slow[name].value)
        assert fast[name].interval == pytest.approx(slow[name].interval)


@pytest.mark.parametrize("seed", range(4))
def test_figure_that_resampling_raises_lies_in_its_interval(seed: int) -> None:
    """Calibration error of well calibrated cases, and the share of the most frequent of three equal classes."""
    random = np.random.default_rng(seed)
    confidence = random.uniform(0.4, 1, 24)
    gaps, classes = (random.random(24) < confidence) - confidence, np.arange(24) % 3
    bins = (confidence * 15).astype(int)

    def of_resample(weights: np.ndarray) -> dict[str, float]:
        return {
            "ece": np.abs(np.bincount(bins, gaps * weights)).sum() / weights.sum(),
            "majority": np.bincount(classes, weights).max() / weights.sum(),
        }

    found = cluster_bootstrap(of_resample, range(24), seed=seed)
    replicates = [of_resample(weights) for weights in bootstrap_multiplicities(24, 1000, seed)]
    for name, estimate in found.items():
        assert covers(estimate, estimate.value) and estimate.interval is not None
        moved = np.array([figures[name] for figures in replicates])
        assert moved.mean() > estimate.value  # what is subtracted
        expected = np.percentile(moved, [2.5, 97.5]) - (moved.mean() - estimate.value)
        assert estimate.interval == pytest.approx(tuple(np.maximum(expected, 0)))
    assert found["majority"].value == pytest.approx(1 / 3)


def test_resamples_that_cannot_hold_the_value_give_no_interval() -> None:
    first = iter([1.0])
    random = np.random.default_rng(0)

    def of_resample(weights: np.ndarray) -> dict[str, float]:
        return {"odd": next(first, 0.0 if random.random() < 0.97 else -1e3)}

    assert cluster_bootstrap(of_resample, range(9))["odd"].interval is None


def test_seeds() -> None:
    patients, (values,) = clustered(np.random.default_rng(0), 20)
    first, again, other = (mean_of(values, patients, seed=seed) for seed in (0, 0, 1))
    assert first == again and first.interval != other.interval


def test_names_of_clusters_and_order_of_cases_do_not_matter() -> None:
    random = np.random.default_rng(6)
    patients, (values,) = clustered(random, 10)
    named = bootstrap_means({"mean": values}, [f"patient {patient}" for patient in patients])["mean"]
    assert named == mean_of(values, patients)
    within = np.argsort(patients + random.random(len(patients)) * 0.5)  # shuffles the cases of each patient
    assert mean_of(values[within], patients[within]).interval == pytest.approx(named.interval)


def test_wider_for_more_confidence() -> None:
    patients, (values,) = clustered(np.random.default_rng(0), 20)
    low, high = mean_of(values, patients, confidence=0.99).interval or (NAN, NAN)
    inner_low, inner_high = mean_of(values, patients, confidence=0.5).interval or (NAN, NAN)
    assert low < inner_low < inner_high < high


# --- coverage ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_coverage_over_patients_and_over_cases() -> None:
    """300 experiments of 40 patients: intervals over patients hold what they promise, intervals over cases do not."""
    random = np.random.default_rng(2024)
    over_patients = over_cases = 0
    for seed in range(300):
        patients, (values,) = clustered(random, 40)
        over_patients += covers(mean_of(values, patients, seed=seed), 0.0)
        over_cases += covers(mean_of(values, np.arange(len(values)), seed=seed), 0.0)
    assert 0.90 <= over_patients / 300 <= 0.98
    assert over_cases / 300 < 0.65


@pytest.mark.slow
def test_coverage_of_accuracy() -> None:
    """The same for a figure of classes, whose patients are right in all their cases or in none (seven of ten are)."""
    random = np.random.default_rng(7)
    covered = 0
    for seed in range(200):
        patients = np.repeat(np.arange(40), random.integers(1, 6, 40))
        right = (random.random(40) < 0.7)[patients]

        def accuracy(weights: np.ndarray, right: np.ndarray = right) -> dict[str, float]:
            return {"accuracy": float(np.average(right, weights=weights))}

        covered += covers(cluster_bootstrap(accuracy, patients, 300, seed=seed)["accuracy"], 0.7)
    assert 0.88 <= covered / 200 <= 0.98


# --- no interval where there is none ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_patients", "has_interval"), [(1, False), (4, False), (5, True)])
def test_few_patients_have_no_interval(num_patients: int, has_interval: bool) -> None:
    patients = np.repeat(np.arange(num_patients), 20)
    values = np.random.default_rng(0).normal(size=len(patients))
    estimate = mean_of(values, patients)
    generic = cluster_bootstrap(lambda weights: {"mean": float(np.average(values, weights=weights))}, patients)["mean"]
    for found in (estimate, generic):
        assert found.value == pytest.approx(values.mean())
        assert (found.interval is not None) == has_interval
        assert found.num_clusters == num_patients and found.num_undefined == 0


def test_patients_without_a_value_do_not_count_as_patients() -> None:
    values = np.array([NAN] * 6 + [0.2, 0.4, 0.6, 0.8])
    estimate = mean_of(values, np.arange(10))
    assert estimate.num_clusters == 4 and estimate.interval is None
    assert estimate.value == pytest.approx(0.5)


@pytest.mark.slow
def test_a_figure_of_too_few_patients_has_no_interval() -> None:
    """Sensitivity of a class with two patients of forty: undefined in about exp(-2) of the resamples."""
    labels = np.array([1] * 2 + [0] * 38)
    predictions = np.where(np.arange(40) % 4 == 1, 1 - labels, labels)

    def figures(weights: np.ndarray) -> dict[str, float]:
        return flat_figures(classification_metrics(labels, predictions, ("common", "rare"), weights=weights))

    found = cluster_bootstrap(figures, range(40), num_resamples=300)
    rare, common = found["per_class.rare.sensitivity"], found["per_class.common.sensitivity"]
    assert rare.value == pytest.approx(0.5) and rare.interval is None
    assert rare.num_undefined / 300 == pytest.approx((1 - 2 / 40) ** 40, abs=0.06)
    assert common.interval is not None and common.num_undefined == 0


def test_few_undefined_resamples_are_left_out_and_counted() -> None:
    """Six of twelve patients have a value: no resample is without, until the statistic says so."""
    values = np.random.default_rng(0).normal(size=12)
    calls = []

    def sometimes_undefined(weights: np.ndarray) -> dict[str, float]:
        calls.append(weights)
        return {"mean": NAN if len(calls) == 3 else float(np.average(values, weights=weights))}

    found = cluster_bootstrap(sometimes_undefined, range(12), num_resamples=200)["mean"]
    means = [np.average(values, weights=weights) for number, weights in enumerate(calls[1:], start=2) if number != 3]
    assert len(means) == 199 and found.num_undefined == 1
    assert found.interval == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_resamples_that_all_agree_say_nothing() -> None:
    right = mean_of(np.full(30, 0.9), np.arange(30))
    assert right.value == pytest.approx(0.9) and right.interval is None


def test_an_undefined_figure_stays_undefined() -> None:
    estimate = mean_of(np.full(10, NAN), np.arange(10))
    assert math.isnan(estimate.value) and estimate.interval is None and estimate.num_clusters == 0


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="no case"):
        bootstrap_means({"mean": []}, [])
    with pytest.raises(ValueError, match="'mean': 2 values, but clusters of 3 cases"):
        bootstrap_means({"mean": [0.1, 0.2]}, [1, 2, 3])
    with pytest.raises(ValueError, match="'b': 1 values, but clusters of 2 cases"):
        compare_models({"a": [0.1, 0.2], "b": [0.1]}, [1, 2])


# --- figures of this package ------------------------------------------------------------------------------------------


def test_figures_of_classes_and_masks_together() -> None:
    random = np.random.default_rng(0)
    patients = np.repeat(np.arange(25), 3)
    labels = random.integers(0, 3, 25)[patients]
    scores = random.dirichlet(np.ones(3), 75) + 0.2 * np.eye(3)[labels]
    scores /= scores.sum(1, keepdims=True)
    predictions, dice = scores.argmax(1), random.random(75)
    volume = np.full(75, 9.0)
    right, judged = joint_rates(labels, predictions, dice, volume, volume)["both_correct"]

    def figures(weights: np.ndarray) -> dict[str, float]:
        classes = classification_metrics(labels, predictions, "abc", scores, weights)
        return {**flat_figures(classes), "both_correct": float(right @ weights / (judged @ weights))}

    found = cluster_bootstrap(figures, patients, num_resamples=50)
    names = ("macro_f1", "macro_auc", "brier_score", "calibration_error", "per_class.a.auc", "both_correct")
    for name in names:
        low, high = found[name].interval or (NAN, NAN)
        assert low < high and found[name].num_clusters == 25
        assert low < found[name].value < high or name == "calibration_error"  # which is biased upwards in resamples
    accuracy = mean_of(np.asarray(labels == predictions, dtype=float), patients, num_resamples=50)
    assert found["accuracy"].interval == pytest.approx(accuracy.interval)
    assert not any("num_" in name or name.endswith("count") for name in found)


def test_flat_figures() -> None:
    nested = {"accuracy": 0.5, "num_cases": 4, "matrix": [[1]], "per_class": {"a": {"f1": None, "auc": np.float64(1)}}}
    flat = flat_figures(nested)
    assert flat.keys() == {"accuracy", "per_class.a.f1", "per_class.a.auc"}
    assert flat["accuracy"] == 0.5 and math.isnan(flat["per_class.a.f1"]) and flat["per_class.a.auc"] == 1


# --- comparison of models ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
def test_p_value_by_hand(ties: bool) -> None:
    """Share of all 2^8 sign flips whose mean lies as far from zero."""
    differences = np.random.default_rng(3).normal(0.5, 1, 8)
    if ties:
        differences = np.array([1.0, 1, 0, 2, -1, 1, 2, 0])
    signs = np.array(list(product([1, -1], repeat=8)))
    means = abs((signs * differences).mean(1))
    expected = (means >= abs(differences.mean()) - 1e-12).mean()
    (found,) = compare_models({"a": 0.3 + differences, "b": np.full(8, 0.3)}, range(8))
    assert found.p_value == pytest.approx(expected) and 0 < expected < 1
    assert found.corrected_p_value == found.p_value
    assert found.difference.value == pytest.approx(differences.mean())


def test_patients_count_alike_whatever_their_number_of_cases() -> None:
    patients = [0] * 10 + [1, 2, 3, 4, 5]
    first = np.array([1.0] * 10 + [0.0] * 5)
    (found,) = compare_models({"first": first, "second": np.zeros(15)}, patients)
    assert found.difference.value == pytest.approx(1 / 6) and found.difference.num_clusters == 6
    assert found.num_cases == 15
    (reverse,) = compare_models({"second": np.zeros(15), "first": first}, patients)
    assert reverse.difference.value == pytest.approx(-1 / 6) and reverse.p_value == found.p_value


def test_cases_that_one_model_has_no_score_of_are_left_out() -> None:
    patients = [0, 0, 1, 2, 3, 4, 5]
    first = [0.9, NAN, 0.8, 0.7, 0.8, 0.9, NAN]
    second = [0.4, 0.1, 0.3, 0.2, 0.3, 0.4, 0.5]
    (found,) = compare_models({"first": first, "second": second}, patients)
    assert found.num_cases == 5 and found.difference.num_clusters == 5
    assert found.difference.value == pytest.approx(0.5)
    assert found.p_value == pytest.approx(2 / 2**5)


def test_equal_models_do_not_differ() -> None:
    scores = np.random.default_rng(0).random(20)
    (found,) = compare_models({"a": scores, "b": scores.copy()}, range(20))
    assert found.p_value == 1 and found.difference.value == 0


@pytest.mark.parametrize("num_patients", [1, 4])
def test_few_patients_are_not_tested(num_patients: int) -> None:
    scores = {"a": np.full(num_patients, 0.9), "b": np.linspace(0.1, 0.2, num_patients)}
    (found,) = compare_models(scores, range(num_patients))
    assert found.p_value is None and found.corrected_p_value is None and found.difference.interval is None
    assert found.difference.value > 0.6


def test_models_without_a_common_case() -> None:
    (found,) = compare_models({"a": [0.5, NAN], "b": [NAN, 0.5]}, [0, 1])
    assert math.isnan(found.difference.value) and found.p_value is None and found.num_cases == 0


def test_three_models_are_compared_pairwise_and_corrected() -> None:
    random = np.random.default_rng(1)
    patients = np.repeat(np.arange(30), 2)
    base = random.random(30)[patients]
    scores = {"base": base, "same": base + random.normal(0, 0.1, 60), "better": base + random.normal(0.2, 0.1, 60)}
    found = compare_models(scores, patients, seed=5)
    assert [(pair.first, pair.second) for pair in found] == [("base", "same"), ("base", "better"), ("same", "better")]
    assert [pair.corrected_p_value for pair in found] == pytest.approx(holm([pair.p_value or NAN for pair in found]))
    unlike, alike = found[1], found[0]
    assert alike.p_value is not None and alike.p_value > 0.05 and covers(alike.difference, 0)
    assert unlike.corrected_p_value is not None and unlike.corrected_p_value < 0.01 and covers(unlike.difference, -0.2)
    assert compare_models(scores, patients, seed=5) == found


def test_a_pair_that_cannot_be_tested_does_not_count_in_the_correction() -> None:
    random = np.random.default_rng(1)
    few = np.where(np.arange(20) < 3, 0.5, NAN)
    found = compare_models({"a": random.random(20), "few": few, "b": random.random(20)}, range(20))
    assert [pair.p_value is None for pair in found] == [True, False, True]
    assert found[1].corrected_p_value == found[1].p_value and found[0].corrected_p_value is None


@pytest.mark.slow
def test_false_positives_under_the_null() -> None:
    """Two models alike: by patient, one test in twenty says otherwise; by case, most do."""
    random = np.random.default_rng(11)
    by_patient = by_case = 0
    for seed in range(300):
        patients, (first, second) = clustered(random, 20, num_models=2)
        options: dict[str, Any] = {"num_permutations": 500, "num_resamples": 10, "seed": seed}
        by_patient += (compare_models({"a": first, "b": second}, patients, **options)[0].p_value or 0) <= 0.05
        by_case += (compare_models({"a": first, "b": second}, range(len(first)), **options)[0].p_value or 0) <= 0.05
    assert 0.02 <= by_patient / 300 <= 0.09
    assert by_case / 300 > 0.3


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_holm_against_statsmodels(seed: int) -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p_values = (np.random.default_rng(seed).random(9) ** 3).round(2)  # with ties
    assert holm(p_values) == pytest.approx(multitest.multipletests(p_values, method="holm")[1])
