"""Metrics of the predicted tumour type, from scikit-learn and torchmetrics."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score, roc_auc_score

CALIBRATION_BINS = 15


def classification_metrics(
    labels: Sequence[int] | np.ndarray,
    predictions: Sequence[int] | np.ndarray,
    class_names: Sequence[str],
    probabilities: Sequence[Sequence[float]] | np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> dict[str, Any]:
    """Figures of all classes and of each class against the rest; with probabilities, ranking and calibration too.

    A class that neither occurs nor is predicted has no F1 (None) and stays out of the means; balanced accuracy is the
    mean sensitivity over the classes that occur. AUC and average precision of a class need cases of it and cases of
    others; otherwise they are None and stay out of the macro means.

    Args:
        labels: true class of each case, as an index into ``class_names``.
        predictions: predicted class of each case.
        class_names: all classes of the model.
        probabilities: (cases, classes), each row summing to one; AUC, average precision, Brier score and calibration
            error come from these alone, everything else from ``predictions``.
        weights: (cases,), how often each case counts, such as in a bootstrap sample; integers. None counts each once.

    Returns:
        ``num_cases``, ``accuracy``, ``balanced_accuracy``, ``macro_f1``, ``weighted_f1`` (by the cases of a class),
        ``majority_rate`` (share of the most frequent class: what a guess reaches), NaN without cases;
        ``confusion_matrix`` (rows true, columns predicted) and ``per_class`` with ``sensitivity``, ``specificity``,
        ``precision``, ``f1`` and ``num_cases``. With probabilities also ``macro_auc`` and
        ``macro_average_precision`` with ``num_ranked_classes``, over which these two are means; ``brier_score``, the
        mean over cases of the squared differences summed over all classes (0 to 2: twice the binary score for two
        classes; Brier 1950); ``calibration_error``, the expected calibration error of the top class over 15 bins of
        equal width (Guo et al. 2017, eq. 3); and ``auc`` and ``average_precision`` of each class.

    Raises:
        ValueError: lists of different lengths, a class that is none, weights that are no counts, or rows that are no
            probabilities.
    """
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} labels but {len(predictions)} predictions")
    true, predicted = np.asarray(labels, dtype=np.int64), np.asarray(predictions, dtype=np.int64)
    concerned = np.concatenate([true, predicted])
    if ((concerned < 0) | (concerned >= len(class_names))).any():
        raise ValueError(f"classes have to be 0 to {len(class_names) - 1}; leave out cases whose class is not known")
    scores = None if probabilities is None else _checked(probabilities, len(true), len(class_names))
    if weights is not None:
        # repeated rather than weighted: one meaning for every figure, those of libraries without weights included
        repeated = repeated_cases(weights, len(true))
        true, predicted = true[repeated], predicted[repeated]
        scores = None if scores is None else scores[repeated]
    cells = _cells(true, predicted, len(class_names))
    metrics = _figures_of_matrix(_matrix(cells, len(class_names)), class_names)
    if scores is not None:
        overall, per_class = _figures_of_probabilities(true, scores)
        metrics |= overall
        for index, name in enumerate(class_names):
            metrics["per_class"][name] |= {key: _defined(values[index]) for key, values in per_class.items()}
    return metrics


def repeated_cases(weights: np.ndarray, num_cases: int) -> np.ndarray:
    """Index of every case as often as it counts.

    Args:
        weights: (cases,), integers of at least 0.
        num_cases: how many there have to be.

    Raises:
        ValueError: ``weights`` are no such integers, or too many or few.
    """
    weights = np.asarray(weights)
    if weights.shape != (num_cases,) or weights.dtype.kind not in "iu" or (weights < 0).any():
        raise ValueError(
            f"weights have to be {num_cases} integers of at least 0, one a case, not {weights.dtype} of shape "
            f"{weights.shape}"
        )
    return np.repeat(np.arange(num_cases), weights)


class ResampledClassification:
    """Figures of :func:`classification_metrics` for cases that count as often as a resample holds them.

    The same figures as of repeated cases, up to rounding, for a bootstrap of a thousand of them: cases are sorted once,
    not again in each resample, and counted by their weights.

    Args:
        labels: see :func:`classification_metrics`, as are the others.
        predictions: predicted class of each case.
        class_names: all classes of the model.
        probabilities: (cases, classes).
    """

    def __init__(
        self, labels: np.ndarray, predictions: np.ndarray, class_names: Sequence[str], probabilities: np.ndarray | None
    ) -> None:
        self._class_names = class_names
        self._cells = _cells(labels, predictions, len(class_names))
        self._rankings = []
        if probabilities is not None:
            is_class = labels[:, None] == np.arange(len(class_names))
            self._rankings = [_Ranking(*columns) for columns in zip(probabilities.T, is_class.T, strict=True)]
            self._squares = ((probabilities - is_class) ** 2).sum(1)
            confidence = probabilities.max(1).astype(np.float32)  # as torchmetrics bins them
            self._gaps = (probabilities.argmax(1) == labels) - confidence.astype(np.float64)
            self._bins = _calibration_bins(confidence)

    def __call__(self, weights: np.ndarray) -> dict[str, Any]:
        """Figures, of which the counts are left out; ``weights`` (cases,), integers."""
        metrics = _figures_of_matrix(_matrix(self._cells, len(self._class_names), weights), self._class_names)
        if self._rankings:
            total = weights.sum()
            auc, average_precision = np.array([ranking(weights) for ranking in self._rankings]).T
            for name, *values in zip(self._class_names, auc, average_precision, strict=True):
                metrics["per_class"][name] |= dict(zip(("auc", "average_precision"), map(float, values), strict=True))
            metrics |= {
                "macro_auc": _mean(auc),
                "macro_average_precision": _mean(average_precision),
                "brier_score": _ratio(self._squares @ weights, total),
                "calibration_error": _ratio(np.abs(np.bincount(self._bins, self._gaps * weights)).sum(), total),
            }
        return metrics


class _Ranking:
    """Area under the ROC curve and average precision of a class under any weights; NaN without cases or rest."""

    def __init__(self, scores: np.ndarray, is_class: np.ndarray) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ranked = scores[self._order]
        self._last_of_ties = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        self._is_class = is_class[self._order]

    def __call__(self, weights: np.ndarray) -> tuple[float, float]:
        weights = weights[self._order]
        accepted = np.cumsum(weights)[self._last_of_ties]
        right = np.cumsum(weights * self._is_class)[self._last_of_ties]
        wrong = accepted - right
        if not right[-1] or not wrong[-1]:
            return float("nan"), float("nan")
        steps = np.diff(right, prepend=0)
        # twice the area, in whole numbers: of each step to the right the mean height
        area = (np.diff(wrong, prepend=0) * (2 * right - steps)).sum()
        precision = right / np.maximum(accepted, 1)
        return area / (2 * right[-1] * wrong[-1]), (steps * precision).sum() / right[-1]


def _cells(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Of each case the place in the flattened confusion matrix."""
    return labels * num_classes + predictions


def _matrix(cells: np.ndarray, num_classes: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Confusion matrix (true, predicted), int64."""
    counts = np.bincount(cells, weights, minlength=num_classes**2)
    return counts.astype(np.int64).reshape(num_classes, num_classes)


def _figures_of_matrix(matrix: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    right, support, predicted = np.diagonal(matrix), matrix.sum(1), matrix.sum(0)
    sensitivity, precision = _divided(right, support), _divided(right, predicted)
    f1 = _divided(2 * right, support + predicted)  # of a class never predicted 0, though it has no precision
    others = matrix.sum() - support
    specificity = _divided(others - predicted + right, others)
    return {
        "num_cases": int(matrix.sum()),
        "accuracy": _ratio(right.sum(), matrix.sum()),
        "balanced_accuracy": _mean(sensitivity),
        "macro_f1": _mean(f1),
        "weighted_f1": _ratio(np.sum(np.nan_to_num(f1) * support), support.sum()),
        "majority_rate": _ratio(support.max(), support.sum()),
        "confusion_matrix": matrix.tolist(),
        "per_class": {
            name: {
                "sensitivity": _defined(sensitivity[index]),
                "specificity": _defined(specificity[index]),
                "precision": _defined(precision[index]),
                "f1": _defined(f1[index]),
                "num_cases": int(support[index]),
            }
            for index, name in enumerate(class_names)
        },
    }


def _figures_of_probabilities(labels: np.ndarray, scores: np.ndarray) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Overall figures, and (classes,) arrays of figures per class, NaN where undefined."""
    is_class = labels[:, None] == np.arange(scores.shape[1])  # (cases, classes)
    ranked = is_class.any(0) & ~is_class.all(0)
    auc, average_precision = np.full((2, scores.shape[1]), np.nan)
    if ranked.any():  # then of two classes at least: where one has others, one of these has others too
        auc[ranked] = roc_auc_score(is_class[:, ranked], scores[:, ranked], average=None)
        average_precision[ranked] = average_precision_score(is_class[:, ranked], scores[:, ranked], average=None)
    overall = {
        "macro_auc": _mean(auc),
        "macro_average_precision": _mean(average_precision),
        "num_ranked_classes": int(ranked.sum()),
        "brier_score": _ratio(np.sum((scores - is_class) ** 2), len(labels)),
        "calibration_error": _calibration_error(labels, scores),
    }
    return overall, {"auc": auc, "average_precision": average_precision}


def _calibration_error(labels: np.ndarray, scores: np.ndarray) -> float:
    if not len(labels):
        return float("nan")
    import torch  # with torchmetrics, seconds that nobody should wait for who evaluates no probabilities
    from torchmetrics.functional.classification import multiclass_calibration_error

    return float(
        multiclass_calibration_error(
            torch.from_numpy(scores),
            torch.from_numpy(labels),
            num_classes=scores.shape[1],
            n_bins=CALIBRATION_BINS,
            validate_args=False,
        )
    )


def _calibration_bins(confidence: np.ndarray) -> np.ndarray:
    """Bin of each confidence, (cases,) float32, where torchmetrics puts it: many stand exactly on an edge."""
    import torch

    return np.searchsorted(torch.linspace(0, 1, CALIBRATION_BINS + 1).numpy(), confidence, side="right") - 1


def _checked(probabilities: Sequence[Sequence[float]] | np.ndarray, num_cases: int, num_classes: int) -> np.ndarray:
    scores = np.asarray(probabilities, dtype=np.float64)
    if scores.shape != (num_cases, num_classes) and (num_cases or scores.size):
        raise ValueError(
            f"probabilities of shape {scores.shape}; {num_cases} cases and {num_classes} classes need "
            f"({num_cases}, {num_classes})"
        )
    scores = scores.reshape(num_cases, num_classes)  # an empty list has no columns
    # torchmetrics takes anything else for logits, without a word
    if not ((scores >= 0) & (scores <= 1)).all() or (abs(scores.sum(1) - 1) > 1e-3).any():
        raise ValueError("probabilities of each case have to lie between 0 and 1 and to sum to one; apply a softmax")
    return scores


def _mean(values: np.ndarray) -> float:
    """Over the values that are defined; NaN without any."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _divided(parts: np.ndarray, wholes: np.ndarray) -> np.ndarray:
    return np.divide(parts, wholes, out=np.full(len(parts), np.nan), where=wholes > 0)


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
