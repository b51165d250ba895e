"""Chance level of a classifier: what it scores where labels and images have nothing to do with each other.

Slices of one patient are no independent observations, so labels are permuted among *units*: all cases of a patient (and
of near-duplicates) that have one class. The units are shuffled, and each takes the class of another one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from braintum.conversion.format.cases import Case
from braintum.conversion.format.splits import tied_cases
from braintum.evaluation.metrics.classification_metrics import classification_metrics
from braintum.evaluation.metrics.joint_metrics import UNKNOWN
from braintum.evaluation.metrics.statistics import CONFIDENCE
from braintum.evaluation.results.case_table import CaseTable

FIGURES = ("accuracy", "balanced_accuracy", "macro_f1")
"""What is compared with chance."""
NUM_PERMUTATIONS = 1000


def label_units(cases: Iterable[Case], negative_class: str | None = None) -> list[list[str]]:
    """Cases that share their label and therefore are permuted together.

    These are the cases of one patient with one class: a patient's healthy slices are a unit beside those that show the
    tumour. What is called a patient and has several tumour classes is none (in some sources that column holds a fold or
    a scanner): there, near-duplicates with one class are a unit, and other cases are units of their own.

    Args:
        cases: rows of ``cases.csv``; those without a class are left out.
        negative_class: the healthy class, if there is one.

    Returns:
        Names of the cases of each unit, sorted within and by their first.
    """
    row_of = {row.case: row for row in cases if row.tumour_class}
    units: list[list[str]] = []
    for tied in tied_cases(row_of.values()):
        parts = [tied]
        if len({row_of[case].tumour_class for case in tied} - {negative_class}) > 1:
            parts = tied_cases(replace(row_of[case], patient="") for case in tied)
        for part in parts:
            by_class: dict[str, list[str]] = {}
            for case in part:
                by_class.setdefault(row_of[case].tumour_class, []).append(case)
            units += by_class.values()
    return sorted(units)


def permuted_classes(cases: Iterable[Case], seed: int, negative_class: str | None = None) -> dict[str, str]:
    """Class of each case after the units' classes were shuffled.

    Args:
        cases: rows of ``cases.csv``; those without a class are left out.
        seed: of the permutation, which does not depend on the order of the cases.
        negative_class: the healthy class, if there is one.
    """
    rows = list(cases)
    class_of = {row.case: row.tumour_class for row in rows}
    units = label_units(rows, negative_class)
    drawn = np.random.default_rng(seed).permutation(len(units))
    return {case: class_of[units[other][0]] for unit, other in zip(units, drawn, strict=True) for case in unit}


def chance_level(table: CaseTable, num_permutations: int = NUM_PERMUTATIONS, seed: int = 0) -> dict[str, Any]:
    """Compare a model's classes with what the same predictions score for permuted labels.

    Args:
        table: of held-out cases, with predicted classes and rows of ``cases.csv``.
        num_permutations: of the true labels.
        seed: of the permutations.

    Returns:
        ``num_cases``, ``num_units``, ``majority_rate``, ``num_permutations``, and by figure (:data:`FIGURES`) its
        ``value``, the ``chance`` level (mean over permutations), ``low`` and ``high`` (between which 95 % of the
        permutations lie) and the one-sided ``p_value`` of being better than chance.

    Raises:
        ValueError: no case has a true and a predicted class.
    """
    schema = table.predictions.schema
    judged = (table.true_class != UNKNOWN) & (table.predicted_class != UNKNOWN)
    if schema is None or not judged.any():
        raise ValueError(f"{table.predictions.name}: no case has a true and a predicted class")
    names = [case for case, chosen in zip(table.cases, judged, strict=True) if chosen]
    labels, predictions = table.true_class[judged], table.predicted_class[judged]
    position = {case: number for number, case in enumerate(names)}
    units = [
        np.array([position[case] for case in unit])
        for unit in label_units((table.predictions.cases[case] for case in names), schema.negative_class)
    ]
    class_of_unit = np.array([labels[unit[0]] for unit in units])
    unit_of = np.empty(len(names), np.int64)
    for number, unit in enumerate(units):
        unit_of[unit] = number
    observed = classification_metrics(labels, predictions, schema.class_names)
    random = np.random.default_rng(seed)
    drawn = [
        classification_metrics(random.permutation(class_of_unit)[unit_of], predictions, schema.class_names)
        for _ in range(num_permutations)
    ]
    result: dict[str, Any] = {
        "num_cases": len(names),
        "num_units": len(units),
        "majority_rate": observed["majority_rate"],
        "num_permutations": num_permutations,
    }
    for figure in FIGURES:
        values = np.array([metrics[figure] for metrics in drawn])
        low, high = np.nanpercentile(values, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
        at_least = int((values >= observed[figure] - 1e-12).sum())
        result[figure] = {
            "value": float(observed[figure]),
            "chance": float(np.nanmean(values)),
            "low": float(low),
            "high": float(high),
            "p_value": (1 + at_least) / (1 + num_permutations),
        }
    return result


def share_unchanged(cases: Mapping[str, Case], permuted: Mapping[str, str]) -> float:
    """Share of the cases whose class is the same after a permutation."""
    return float(np.mean([cases[case].tumour_class == tumour_class for case, tumour_class in permuted.items()]))
