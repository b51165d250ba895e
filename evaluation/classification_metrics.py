"""Metrics of the predicted tumour type, from scikit-learn."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support


def classification_metrics(
    labels: Sequence[int], predictions: Sequence[int], class_names: Sequence[str]
) -> dict[str, Any]:
    """Accuracy, balanced accuracy, macro-F1, confusion matrix and figures per class.

    A class that neither occurs nor is predicted has no F1 (None) and stays out of the means; balanced accuracy is the
    mean sensitivity over the classes that occur.

    Args:
        labels: true class of each case, as an index into ``class_names``.
        predictions: predicted class of each case.
        class_names: all classes of the model.

    Returns:
        ``num_cases``, ``accuracy``, ``balanced_accuracy``, ``macro_f1`` (NaN without cases), ``majority_rate`` (share
        of the most frequent class: what a guess reaches), ``confusion_matrix`` (rows true, columns predicted) and
        ``per_class`` with ``sensitivity``, ``precision``, ``f1`` and ``num_cases``.

    Raises:
        ValueError: lists of different lengths.
    """
    if len(labels) != len(predictions):
        raise ValueError(f"{len(labels)} labels but {len(predictions)} predictions")
    indices = list(range(len(class_names)))
    if not len(labels):
        nothing = {name: {"sensitivity": None, "precision": None, "f1": None, "num_cases": 0} for name in class_names}
        empty = [[0] * len(class_names) for _ in class_names]
        undefined = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "majority_rate"), float("nan"))
        return {"num_cases": 0, **undefined, "confusion_matrix": empty, "per_class": nothing}
    matrix = confusion_matrix(labels, predictions, labels=indices)
    precision, sensitivity, f1, support = precision_recall_fscore_support(
        labels, predictions, labels=indices, zero_division=np.nan
    )
    concerned = matrix.sum(0) + matrix.sum(1) > 0
    f1 = np.where(concerned, np.nan_to_num(f1), np.nan)  # a class never predicted has no precision, but an F1 of zero
    return {
        "num_cases": len(labels),
        "accuracy": float(np.trace(matrix) / matrix.sum()),
        "balanced_accuracy": float(sensitivity[support > 0].mean()),
        "macro_f1": float(np.nanmean(f1)),
        "majority_rate": float(support.max() / support.sum()),
        "confusion_matrix": matrix.tolist(),
        "per_class": {
            name: {
                "sensitivity": _defined(sensitivity[index]),
                "precision": _defined(precision[index]),
                "f1": _defined(f1[index]),
                "num_cases": int(support[index]),
            }
            for index, name in enumerate(class_names)
        },
    }


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
