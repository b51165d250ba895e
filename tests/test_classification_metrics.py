"""Class metrics against scikit-learn's own functions and against hand-computed corner cases."""

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score

from evaluation.classification_metrics import classification_metrics

NAMES = ("meningioma", "glioma", "pituitary")


@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, predictions = random.integers(0, 3, 40).tolist(), random.integers(0, 3, 40).tolist()
    metrics = classification_metrics(labels, predictions, NAMES)
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, predictions))
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predictions))
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, predictions, average="macro"))


def test_absent_and_never_predicted_classes() -> None:
    metrics = classification_metrics([0, 0, 1], [0, 0, 0], NAMES)
    assert metrics["confusion_matrix"] == [[2, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert metrics["per_class"]["glioma"] == {"sensitivity": 0.0, "precision": None, "f1": 0.0, "num_cases": 1}
    assert metrics["per_class"]["pituitary"] == {"sensitivity": None, "precision": None, "f1": None, "num_cases": 0}
    assert metrics["balanced_accuracy"] == pytest.approx(0.5)
    assert metrics["macro_f1"] == pytest.approx((0.8 + 0) / 2)  # of the two classes that occur
    assert metrics["majority_rate"] == pytest.approx(2 / 3)


def test_without_cases_everything_is_undefined() -> None:
    metrics = classification_metrics([], [], NAMES)
    assert metrics["num_cases"] == 0 and math.isnan(metrics["accuracy"]) and math.isnan(metrics["macro_f1"])


def test_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 labels but 1 predictions"):
        classification_metrics([0, 1], [0], NAMES)
