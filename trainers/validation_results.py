"""What the final validation writes about classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset_conversion.atomic import write_json_atomic
from dataset_conversion.cases import ClassSchema
from evaluation.classification_metrics import classification_metrics
from inference.results import write_classes_csv


def write_validation_results(
    folder: Path, results: Sequence[Mapping[str, Any]], schema: ClassSchema, label_of_case: Mapping[str, int]
) -> dict[str, Any]:
    """``classes.csv`` (with the true class) and ``classification.json`` of a validation.

    Args:
        folder: the fold's ``validation``.
        results: one a case, as of :func:`inference.results.case_result`.
        schema: class names.
        label_of_case: true class of the cases that have one.

    Returns:
        The metrics over the cases whose class is known.
    """
    known = [result for result in results if result["case"] in label_of_case]
    metrics = classification_metrics(
        [label_of_case[result["case"]] for result in known],
        [schema.index(result["predicted_class"]) for result in known],
        schema.class_names,
    )
    true_class = {case: schema.class_names[label] for case, label in label_of_case.items()}
    write_classes_csv(folder / "classes.csv", results, schema, true_class=true_class)
    defined = {key: None if isinstance(value, float) and np.isnan(value) else value for key, value in metrics.items()}
    write_json_atomic(
        folder / "classification.json",
        {"class_names": list(schema.class_names), **defined, "cases": {result["case"]: result for result in results}},
    )
    return metrics
