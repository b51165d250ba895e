"""Several models on the same cases: side by side, tested pairwise, and which is best."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from braintum.evaluation.metrics.joint_metrics import UNKNOWN
from braintum.evaluation.metrics.statistics import NUM_RESAMPLES, compare_models
from braintum.evaluation.results.case_table import CaseTable
from braintum.evaluation.results.summary import figure
from braintum.evaluation.results.tables import Table, interval, number

CRITERIA = ("Dice", "macro_f1", "joint")
"""By what the best model may be chosen."""
_HEADER = ("model", "Dice", "accuracy", "balanced accuracy", "macro-F1", "joint score", "n")


def headline(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """What models are ranked by; the joint score is the mean of Dice and macro-F1, as in training."""
    classes = summary.get("classification", {})
    figures = {"Dice": summary["dice"]["value"]}
    figures |= {
        name: classes[name]["value"] if classes else None for name in ("accuracy", "balanced_accuracy", "macro_f1")
    }
    both = (figures["Dice"], figures["macro_f1"])
    return {**figures, "joint": None if None in both else float(np.mean(both))}


def compare(
    tables: Sequence[CaseTable],
    summaries: Sequence[Mapping[str, Any]],
    criterion: str = "joint",
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Models side by side, differences tested over patients, and the best one.

    Args:
        tables: one a model, of the same cases.
        summaries: of these tables.
        criterion: one of :data:`CRITERIA`; of models without classes Dice decides whatever it is.
        num_resamples: of the intervals of the differences.
        seed: of the resamples.

    Returns:
        ``models`` (name → headline figures), ``best``, ``criterion``, ``tests`` (score → one entry a pair, see
        :class:`braintum.evaluation.metrics.statistics.Comparison`).

    Raises:
        ValueError: different cases, two models of one name, or an unknown criterion.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"unknown criterion {criterion!r}; choose one of {', '.join(CRITERIA)}")
    names = [table.predictions.name for table in tables]
    if len(set(names)) < len(names):
        raise ValueError(f"two models have the same name: {', '.join(names)}")
    first = tables[0]
    for table in tables[1:]:
        if differing := sorted(set(table.cases) ^ set(first.cases)):
            raise ValueError(
                f"{first.predictions.name} and {table.predictions.name} were evaluated on different cases, such as "
                f"{differing[0]}; a comparison needs the same ones"
            )
    models = {name: headline(summary) for name, summary in zip(names, summaries, strict=True)}
    decisive = criterion if any(figures[criterion] is not None for figures in models.values()) else "Dice"
    ranked = {name: value for name, figures in models.items() if (value := figures[decisive]) is not None}
    scores = {"Dice": {t.predictions.name: in_order(t, t.dice, first) for t in tables}}
    if classified := {t.predictions.name: in_order(t, _is_right(t), first) for t in tables if t.class_is_predicted}:
        scores["class right"] = classified
    return {
        "models": models,
        "criterion": decisive,
        "best": max(ranked, key=ranked.__getitem__) if ranked else None,
        "tests": {
            score: [
                {
                    "first": found.first,
                    "second": found.second,
                    "difference": figure(found.difference.value, found.difference),
                    "num_cases": found.num_cases,
                    "num_patients": found.difference.num_clusters,
                    "p_value": found.p_value,
                    "corrected_p_value": found.corrected_p_value,
                }
                for found in compare_models(columns, first.clusters, num_resamples, seed=seed)
            ]
            for score, columns in scores.items()
            if len(columns) > 1
        },
    }


def comparison_tables(comparison: Mapping[str, Any], num_cases: int) -> list[Table]:
    """What :func:`compare` returns, as tables."""
    rows = [
        [name + (" (best)" if name == comparison["best"] else ""), *map(number, figures.values()), str(num_cases)]
        for name, figures in comparison["models"].items()
    ]
    tables = [Table(f"Models, the best one by {comparison['criterion']}", _HEADER, rows)]
    for score, pairs in comparison["tests"].items():
        rows = [
            [
                f"{pair['first']} − {pair['second']}",
                number(pair["difference"]["value"]),
                interval(pair["difference"]),
                number(pair["p_value"]),
                number(pair["corrected_p_value"]),
                str(pair["num_patients"]),
            ]
            for pair in pairs
        ]
        header = ("pair", "difference", "95 % interval", "p", "p (Holm)", "patients")
        tables.append(Table(f"Differences of {score}, patient by patient (sign-flip permutation test)", header, rows))
    return tables


def _is_right(table: CaseTable) -> np.ndarray:
    """1 where the class is right, 0 where it is wrong or withheld, NaN where it is not known."""
    right = (table.predicted_class == table.true_class).astype(np.float64)
    return np.where(table.true_class == UNKNOWN, np.nan, right)


def in_order(table: CaseTable, values: np.ndarray, first: CaseTable) -> np.ndarray:
    """Values of a table's cases in the order of another table's."""
    position = {case: index for index, case in enumerate(table.cases)}
    return values[[position[case] for case in first.cases]]
