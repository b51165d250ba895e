"""Temperature scaling, against scikit-learn, torch and torchmetrics."""

import json
from dataclasses import replace

import numpy as np
import pytest
import scipy.special
import torch
from calibration_data import NAMES, held_out, simulated
from sklearn.metrics import log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from braintum.conversion.format.calibration import at_temperature
from braintum.evaluation.calibration.calibration import calibrate, cross_fitted
from braintum.evaluation.calibration.reliability import CalibrationFigures, negative_log_likelihood, reliability
from braintum.evaluation.calibration.temperature import NoTemperatureError, fit_temperature
from braintum.evaluation.metrics.classification_metrics import classification_metrics


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_known_temperature_is_found(temperature):
    probabilities, labels = simulated(temperature, cases=20000)
    assert fit_temperature(probabilities, labels) == pytest.approx(temperature, rel=0.03)


def test_fit_minimises_scikit_learns_log_loss():
    probabilities, labels = simulated(2.5)
    found = fit_temperature(probabilities, labels)

    def loss(temperature):
        scaled = scipy.special.softmax(np.log(probabilities) / temperature, axis=1)
        return log_loss(labels, scaled, labels=[0, 1, 2])

    grid = np.linspace(2, 3, 201)
    assert found == pytest.approx(grid[np.argmin([loss(value) for value in grid])], abs=0.005)
    scaled = at_temperature(probabilities, found)
    assert negative_log_likelihood(scaled, labels).mean() == pytest.approx(loss(found), rel=1e-9)


def test_weights_count_as_repetitions():
    probabilities, labels = simulated(2.0, cases=80)
    weights = np.random.default_rng(1).integers(0, 4, 80)
    repeated = np.repeat(np.arange(80), weights)
    assert fit_temperature(probabilities, labels, weights) == pytest.approx(
        fit_temperature(probabilities[repeated], labels[repeated]), rel=1e-4
    )


def test_patients_count_alike():
    cases = held_out(cases=60, cases_a_patient=3)
    assert cases.patient_weights == pytest.approx(np.full(60, 1 / 3))
    many = np.concatenate([np.arange(60), np.repeat([3, 4, 5], 40)])  # a patient with forty times as many slices
    crowded = replace(
        cases,
        names=tuple(map(str, range(len(many)))),
        **{name: getattr(cases, name)[many] for name in ("probabilities", "labels", "folds", "clusters")},
    )
    expected = calibrate(cases, NAMES, num_resamples=100)["temperature"]
    assert calibrate(crowded, NAMES, num_resamples=100)["temperature"] == pytest.approx(expected, rel=1e-4)
    assert abs(fit_temperature(crowded.probabilities, crowded.labels) - expected) > 0.1


def test_scaling_is_that_of_the_logits():
    logits = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probabilities = torch.softmax(logits, 1).numpy()
    np.testing.assert_allclose(at_temperature(probabilities, 1.7), torch.softmax(logits / 1.7, 1).numpy(), rtol=1e-9)
    np.testing.assert_allclose(at_temperature(probabilities, 1.0), probabilities, rtol=1e-9)
    certain = at_temperature(np.array([1.0, 0.0, 0.0]), 2.0)
    assert certain == pytest.approx([1, 1e-6, 1e-6], rel=1e-4)  # a zero counts as 1e-12


def test_figures_against_libraries():
    probabilities, labels = simulated(2.5, cases=200)
    figures = CalibrationFigures(probabilities, labels)
    multiplicity = np.random.default_rng(3).integers(0, 3, 200)
    for weights in (np.ones(200, np.int64), multiplicity):
        expected = classification_metrics(labels, probabilities.argmax(1), NAMES, probabilities, weights)
        found = figures(weights)
        assert found["ece"] == pytest.approx(expected["calibration_error"], rel=1e-6)
        assert found["brier"] == pytest.approx(expected["brier_score"])
        assert found["nll"] == pytest.approx(log_loss(labels, probabilities, sample_weight=weights, labels=[0, 1, 2]))
    bins = reliability(probabilities, labels)
    assert sum(point["count"] for point in bins) == 200
    error = sum(point["count"] * abs(point["accuracy"] - point["confidence"]) for point in bins) / 200
    torchmetrics_error = multiclass_calibration_error(
        torch.from_numpy(probabilities), torch.from_numpy(labels), num_classes=3, n_bins=15
    )
    assert error == pytest.approx(float(torchmetrics_error), rel=1e-6)


def test_each_fold_is_scaled_with_the_temperature_of_the_others():
    cases = held_out()
    scaled, temperatures = cross_fitted(cases)
    assert list(temperatures) == ["0", "1", "2"]
    for fold in range(3):
        others = cases.folds != fold
        expected = fit_temperature(cases.probabilities[others], cases.labels[others])  # all patients have two cases
        assert temperatures[str(fold)] == pytest.approx(expected)
        own = scipy.special.softmax(np.log(cases.probabilities[~others]) / expected, axis=1)
        np.testing.assert_allclose(scaled[~others], own, rtol=1e-6)


def test_a_single_fold_is_divided_by_patients():
    cases = held_out(folds=1)
    scaled, temperatures = cross_fitted(cases)
    assert len(temperatures) == 5
    by_case = np.log(scaled[:, 0] / scaled[:, 1]) / np.log(cases.probabilities[:, 0] / cases.probabilities[:, 1])
    np.testing.assert_allclose(by_case[::2], by_case[1::2], rtol=1e-6)  # the two cases of a patient: one temperature
    assert set(np.round(1 / by_case, 6)) == {round(value, 6) for value in temperatures.values()}


def test_calibration_of_an_overconfident_model():
    cases = held_out(temperature=3.0)
    found = calibrate(cases, NAMES, target_accuracy=0.8, num_resamples=200)
    assert found["temperature_low"] < 3.0 < found["temperature_high"]
    assert (found["folds"], found["num_cases"], found["num_patients"]) == ([0, 1, 2], 300, 150)
    assert found["after"]["ece"] < found["before"]["ece"] / 2 and found["after"]["nll"] < found["before"]["nll"]
    assert found["before"]["ece_low"] < found["before"]["ece"] < found["before"]["ece_high"]
    assert found["before"]["nll"] == pytest.approx(log_loss(cases.labels, cases.probabilities))
    confidence = scipy.special.softmax(np.log(cases.probabilities) / found["temperature"], axis=1).max(1)
    accepted = confidence >= found["threshold"] - 1e-9
    assert found["coverage_at_threshold"] == pytest.approx(accepted.mean())
    assert found["accuracy_at_threshold"] == pytest.approx(cases.is_correct[accepted].mean()) and accepted.mean() < 1
    assert found["risk_coverage"][-1]["risk"] == pytest.approx(1 - cases.is_correct.mean())
    assert found["warnings"] == []
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(300, np.int64)}, "all held-out cases are meningioma"),
        ({"labels": simulated(3.0, 300)[0].argmax(1)}, "classified right"),
        ({"labels": simulated(3.0, 300)[0].argmin(1)}, "say nothing of the class"),
    ],
    ids=["one class", "no error", "always wrong"],
)
def test_cases_that_determine_no_temperature(change, message):
    with pytest.raises(ValueError, match=message):
        calibrate(replace(held_out(), **change), NAMES)


def test_too_few_cases():
    with pytest.raises(ValueError, match="20 held-out cases .*at least 30.*more folds, .*or add"):
        calibrate(held_out(cases=20), NAMES)
    with pytest.raises(ValueError, match="20 held-out cases .*; add cases: all 5 folds are validated"):
        calibrate(held_out(cases=20, folds=5), NAMES)


def test_doubtful_calibrations_come_with_warnings():
    cases = held_out(cases=60)
    labels = cases.probabilities.argmax(1)
    labels[0] = cases.probabilities[0].argmin()  # one error, in fold 0: without it nothing determines a temperature
    found = calibrate(replace(cases, labels=labels), NAMES, 0.999, num_resamples=100)
    assert found["after"] == dict.fromkeys(found["after"]) and found["reliability"]["after"] == []
    assert (found["threshold"], found["coverage_at_threshold"]) == (None, None)
    told = " | ".join(found["warnings"])
    assert "only 1 of 60" in told and "without fold or part 0" in told and "0.999 cannot be promised" in told
    one_patient = replace(cases, clusters=np.full(60, "P"), folds=np.zeros(60, np.int64))
    found = calibrate(one_patient, NAMES, num_resamples=100)
    assert found["temperature_low"] is None and "fewer than 5 patients" in found["warnings"][0]
    with pytest.raises(NoTemperatureError, match="of one patient"):
        cross_fitted(one_patient)
