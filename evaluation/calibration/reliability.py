"""How far class probabilities are from how often the class is right."""

import numpy as np

from braintum.conversion.format.calibration import relative_logs
from braintum.evaluation.metrics.classification_metrics import CALIBRATION_BINS


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of each case, (cases,), in nats; a probability counts as 1e-12 at least."""
    logs = relative_logs(probabilities)
    return np.log(np.exp(logs).sum(1)) - logs[np.arange(len(labels)), labels]


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> list[dict[str, float]]:
    """Mean confidence, accuracy and number of the cases in each of 15 bins of equal width; empty bins left out.

    Bins hold their lower edge, and a confidence of exactly 1 has a bin of its own, as in torchmetrics, so that the
    mean of the gaps, weighted with the counts, is the calibration error that ``braintum_evaluate`` tells.
    """
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    bins = _bins(confidence)
    return [
        {
            "confidence": float(confidence[bins == index].mean()),
            "accuracy": float(correct[bins == index].mean()),
            "count": int((bins == index).sum()),
        }
        for index in np.unique(bins)
    ]


def _bins(confidence: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.linspace(0, 1, CALIBRATION_BINS + 1), confidence, side="right") - 1


class CalibrationFigures:
    """Calibration error, negative log-likelihood and Brier score under any multiplicity of the cases."""

    def __init__(self, probabilities: np.ndarray, labels: np.ndarray) -> None:
        confidence = probabilities.max(1)
        self._gap = (probabilities.argmax(1) == labels) - confidence
        self._bins = _bins(confidence)
        self._losses = negative_log_likelihood(probabilities, labels)
        self._squares = ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(1)

    def __call__(self, multiplicity: np.ndarray) -> dict[str, float]:
        total = multiplicity.sum()
        return {
            "ece": float(np.abs(np.bincount(self._bins, self._gap * multiplicity)).sum() / total),
            "nll": float(self._losses @ multiplicity / total),
            "brier": float(self._squares @ multiplicity / total),
        }
