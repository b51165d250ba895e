"""Class metrics against scikit-learn, torchmetrics and hand-computed corner cases."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    recall_score,
    roc_auc_score,
)
from torchmetrics.functional import classification as torchmetrics

from braintum.evaluation.metrics.classification_metrics import ResampledClassification, classification_metrics
from braintum.evaluation.metrics.statistics import flat_figures

pytestmark = pytest.mark.filterwarnings("error")

NAMES = ("meningioma", "glioma", "pituitary")
OVERALL_OF_PROBABILITIES = (
    "macro_auc",
    "macro_average_precision",
    "num_ranked_classes",
    "brier_score",
    "calibration_error",
)


def random_cases(seed: int, num_cases: int = 60, num_classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities that know something of them; rounded, so that ties occur."""
    random = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(num_classes), random.integers(0, num_classes, num_cases - num_classes)])
    scores = random.dirichlet(np.ones(num_classes), num_cases).round(1) + 0.4 * np.eye(num_classes)[labels]
    return labels, scores / scores.sum(1, keepdims=True)


def of_class(metrics: dict[str, Any], key: str) -> list[float | None]:
    return [figures[key] for figures in metrics["per_class"].values()]


@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, predictions = random.integers(0, 3, 40).tolist(), random.integers(0, 3, 40).tolist()
    metrics = classification_metrics(labels, predictions, NAMES)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, predictions))
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, predictions, average="macro"))
    assert metrics["weighted_f1"] == pytest.approx(f1_score(labels, predictions, average="weighted"))
    others = [recall_score(np.array(labels) != k, np.array(predictions) != k) for k in range(3)]
    assert of_class(metrics, "specificity") == pytest.approx(others)


@pytest.mark.parametrize("seed", range(5))
def test_predictions_against_torchmetrics(seed: int) -> None:
    labels, scores = random_cases(seed)
    predictions = scores.argmax(1)
    metrics = classification_metrics(labels, predictions, NAMES)
    arguments = torch.from_numpy(predictions), torch.from_numpy(labels), 3
    matrix = torchmetrics.multiclass_confusion_matrix(*arguments)
    assert metrics["confusion_matrix"] == matrix.tolist()
    assert metrics["macro_f1"] == pytest.approx(float(torchmetrics.multiclass_f1_score(*arguments)), abs=1e-6)
    per_class = {
        "f1": torchmetrics.multiclass_f1_score(*arguments, average=None),
        "sensitivity": torchmetrics.multiclass_recall(*arguments, average=None),
        "specificity": torchmetrics.multiclass_specificity(*arguments, average=None),
        "precision": torchmetrics.multiclass_precision(*arguments, average=None),
    }
    for key, expected in per_class.items():
        assert of_class(metrics, key) == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("seed", range(3))
def test_probabilities_against_torchmetrics(seed: int, num_classes: int) -> None:
    labels, scores = random_cases(seed, num_classes=num_classes)
    metrics = classification_metrics(labels, scores.argmax(1), [str(k) for k in range(num_classes)], scores)
    arguments = torch.from_numpy(scores), torch.from_numpy(labels), num_classes
    auc = torchmetrics.multiclass_auroc(*arguments, average=None)
    precision = torchmetrics.multiclass_average_precision(*arguments, average=None)
    assert of_class(metrics, "auc") == pytest.approx(auc.tolist(), abs=1e-6)
    assert of_class(metrics, "average_precision") == pytest.approx(precision.tolist(), abs=1e-6)
    assert metrics["macro_auc"] == pytest.approx(float(auc.mean()), abs=1e-6)
    assert metrics["macro_average_precision"] == pytest.approx(float(precision.mean()), abs=1e-6)
    assert metrics["num_ranked_classes"] == num_classes


@pytest.mark.parametrize("seed", range(3))
def test_macro_auc_against_scikit_learn(seed: int) -> None:
    labels, scores = random_cases(seed)
    expected = roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert classification_metrics(labels, scores.argmax(1), NAMES, scores)["macro_auc"] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_calibration_error_recomputed_from_scikit_learns_curve(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, scores = random.integers(0, 3, 200), random.dirichlet(np.ones(3), 200)
    confidence, correct = scores.max(1), scores.argmax(1) == labels
    accuracy, mean_confidence = calibration_curve(correct, confidence, n_bins=15)
    counts = np.histogram(confidence, 15, (0, 1))[0]
    expected = (abs(accuracy - mean_confidence) * counts[counts > 0]).sum() / 200
    found = classification_metrics(labels, scores.argmax(1), NAMES, scores)["calibration_error"]
    assert found == pytest.approx(expected, abs=1e-6)  # torchmetrics bins in float32


def test_calibration_error_by_hand() -> None:
    """Two cases at 0.9, one of them right, and two at 0.6, both right: (2 · 0.4 + 2 · 0.4) / 4."""
    scores = [[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]]
    metrics = classification_metrics([0, 1, 0, 1], [0, 0, 0, 1], ("a", "b"), scores)
    assert metrics["calibration_error"] == pytest.approx(0.4, abs=1e-6)


def test_calibration_error_is_that_of_the_top_class_whatever_is_predicted() -> None:
    labels, scores = random_cases(0)
    best, other = (classification_metrics(labels, p, NAMES, scores) for p in (scores.argmax(1), scores.argmin(1)))
    assert best["accuracy"] > other["accuracy"]
    assert all(best[key] == other[key] for key in OVERALL_OF_PROBABILITIES)


def test_brier_score_by_hand() -> None:
    metrics = classification_metrics([0, 2], [0, 1], NAMES, [[0.7, 0.2, 0.1], [0.1, 0.6, 0.3]])
    expected = ((0.3**2 + 0.2**2 + 0.1**2) + (0.1**2 + 0.6**2 + 0.7**2)) / 2
    assert metrics["brier_score"] == pytest.approx(expected, abs=1e-12)


def test_binary_brier_score_is_twice_scikit_learns() -> None:
    labels, scores = random_cases(0, num_classes=2)
    metrics = classification_metrics(labels, scores.argmax(1), ("a", "b"), scores)
    assert metrics["brier_score"] == pytest.approx(2 * brier_score_loss(labels, scores[:, 1]))


@pytest.mark.parametrize("seed", range(3))
def test_integer_weights_are_repeated_cases(seed: int) -> None:
    labels, scores = random_cases(seed)
    predictions = scores.argmax(1)
    weights = np.random.default_rng(seed).integers(0, 4, len(labels))
    # one by one, not by the function that the module uses
    cases = [case for case, weight in enumerate(weights) for _ in range(weight)]
    expected = classification_metrics(labels[cases], predictions[cases], NAMES, scores[cases])
    found = classification_metrics(labels, predictions, NAMES, scores, weights)
    assert found == expected
    assert found["num_cases"] == weights.sum() and found["brier_score"] > 0


@pytest.mark.parametrize("classes", [3, 4])  # the fourth one neither occurs nor is predicted
@pytest.mark.parametrize("with_scores", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_figures_of_a_resample_are_those_of_repeated_cases(seed: int, with_scores: bool, classes: int) -> None:
    labels, scores = random_cases(seed)
    scores = np.pad(scores, ((0, 0), (0, classes - 3)))
    predictions, names = scores.argmax(1), (*NAMES, "other")[:classes]
    weights = np.random.default_rng(seed).integers(0, 4, len(labels))
    if seed == 2:
        weights[labels == 1] = 0  # a class that the resample lacks
    given = scores if with_scores else None
    expected = flat_figures(classification_metrics(labels, predictions, names, given, weights))
    found = flat_figures(ResampledClassification(labels, predictions, names, given)(weights))
    assert found.keys() == expected.keys() and len(found) >= 5 + 4 * classes
    if with_scores:  # torchmetrics counts in single precision
        assert found.pop("calibration_error") == pytest.approx(expected.pop("calibration_error"), abs=1e-6)
    assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_weights_against_scikit_learns_sample_weight() -> None:
    labels, scores = random_cases(1)
    weights = np.random.default_rng(1).integers(0, 4, len(labels))
    metrics = classification_metrics(labels, scores.argmax(1), NAMES, scores, weights)
    expected = [roc_auc_score(labels == k, scores[:, k], sample_weight=weights) for k in range(3)]
    assert of_class(metrics, "auc") == pytest.approx(expected)
    expected = f1_score(labels, scores.argmax(1), average="weighted", sample_weight=weights)
    assert metrics["weighted_f1"] == pytest.approx(expected)


def test_weights_of_one_change_nothing() -> None:
    labels, scores = random_cases(2)
    ones = np.ones(len(labels), dtype=int)
    plain = classification_metrics(labels, scores.argmax(1), NAMES, scores)
    assert classification_metrics(labels, scores.argmax(1), NAMES, scores, ones) == plain


def test_absent_and_never_predicted_classes() -> None:
    metrics = classification_metrics([0, 0, 1], [0, 0, 0], NAMES)
    assert metrics["confusion_matrix"] == [[2, 0, 0], [1, 0, 0], [0, 0, 0]]
    undefined = {"precision": None, "specificity": 1.0}
    assert metrics["per_class"]["glioma"] == {"sensitivity": 0.0, "f1": 0.0, "num_cases": 1, **undefined}
    assert metrics["per_class"]["pituitary"] == {"sensitivity": None, "f1": None, "num_cases": 0, **undefined}
    assert metrics["balanced_accuracy"] == pytest.approx(0.5)
    assert metrics["macro_f1"] == pytest.approx((0.8 + 0) / 2)  # of the two classes that occur
    assert metrics["weighted_f1"] == pytest.approx((2 * 0.8 + 0) / 3)
    assert metrics["majority_rate"] == pytest.approx(2 / 3)


def test_a_class_that_is_predicted_but_does_not_occur_has_an_f1_of_zero() -> None:
    metrics = classification_metrics([0, 0], [0, 1], NAMES)
    assert of_class(metrics, "f1") == [pytest.approx(2 / 3), 0.0, None]
    assert metrics["macro_f1"] == pytest.approx(1 / 3)
    assert metrics["weighted_f1"] == pytest.approx(2 / 3)
    assert of_class(metrics, "specificity") == [None, 0.5, 1.0]


def test_auc_of_an_absent_class_is_undefined_and_left_out() -> None:
    scores = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.4, 0.3, 0.3]])
    metrics = classification_metrics([0, 1, 1], scores.argmax(1), NAMES, scores)
    assert of_class(metrics, "auc") == [1.0, 1.0, None]
    assert of_class(metrics, "average_precision") == [1.0, 1.0, None]
    assert metrics["macro_auc"] == 1.0 and metrics["num_ranked_classes"] == 2


def test_one_class_alone_cannot_be_ranked() -> None:
    metrics = classification_metrics([1, 1], [1, 0], NAMES, [[0.1, 0.8, 0.1], [0.5, 0.4, 0.1]])
    assert of_class(metrics, "auc") == [None, None, None]
    assert math.isnan(metrics["macro_auc"]) and math.isnan(metrics["macro_average_precision"])
    assert metrics["num_ranked_classes"] == 0 and metrics["brier_score"] > 0


def test_without_cases_everything_is_undefined() -> None:
    metrics = classification_metrics([], [], NAMES)
    assert metrics["num_cases"] == 0 and math.isnan(metrics["accuracy"]) and math.isnan(metrics["macro_f1"])
    assert metrics["confusion_matrix"] == [[0, 0, 0]] * 3
    assert of_class(metrics, "sensitivity") == [None, None, None]


def test_without_cases_the_keys_are_the_same() -> None:
    labels, scores = random_cases(0)
    full = classification_metrics(labels, scores.argmax(1), NAMES, scores)
    empty = classification_metrics([], [], NAMES, [])
    weightless = classification_metrics(labels, scores.argmax(1), NAMES, scores, np.zeros(len(labels), dtype=int))
    assert empty.keys() == full.keys() == weightless.keys()
    assert empty["per_class"]["glioma"].keys() == full["per_class"]["glioma"].keys()
    assert all(math.isnan(empty[key]) for key in OVERALL_OF_PROBABILITIES if not key.startswith("num_"))


def test_without_probabilities_there_are_no_figures_of_them() -> None:
    metrics = classification_metrics([0, 1], [0, 1], NAMES)
    assert not metrics.keys() & set(OVERALL_OF_PROBABILITIES) and "auc" not in metrics["per_class"]["glioma"]


def test_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 labels but 1 predictions"):
        classification_metrics([0, 1], [0], NAMES)


@pytest.mark.parametrize("labels", [[0, 3], [-1, 0]])
def test_a_class_that_is_none_is_refused(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="classes have to be 0 to 2"):
        classification_metrics(labels, [0, 1], NAMES)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([[0.5, 0.5]], r"shape \(1, 2\); 1 cases and 3 classes need \(1, 3\)"),
        ([[2.0, -1.0, 0.0]], "apply a softmax"),
        ([[0.5, 0.4, 0.4]], "apply a softmax"),
        ([[math.nan, 0.5, 0.5]], "apply a softmax"),
        ([], r"shape \(0,\)"),
    ],
)
def test_what_is_no_probability_is_refused(scores: list[list[float]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classification_metrics([0], [0], NAMES, scores)


@pytest.mark.parametrize("weights", [[1], [1, -1], [0.5, 0.5], [True, False]])
def test_weights_that_are_no_counts_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="weights have to be 2 integers"):
        classification_metrics([0, 1], [0, 1], NAMES, weights=np.array(weights))


@pytest.mark.slow
def test_torchmetrics_is_imported_for_probabilities_only() -> None:
    """It takes seconds, and a trainer calls this every epoch."""
    source = (
        "import sys; from braintum.evaluation.metrics.classification_metrics import classification_metrics as metrics\n"
        "metrics([0, 1], [0, 1], 'ab'); early = 'torchmetrics' in sys.modules\n"
        "metrics([0, 1], [0, 1], 'ab', [[0.9, 0.1], [0.2, 0.8]]); print(early, 'torchmetrics' in sys.modules)"
    )
    finished = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert finished.stdout.split() == ["False", "True"]
