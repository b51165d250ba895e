"""Which cases a report shows: the best, the median and the worst ones, and every failure."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from braintum.evaluation.metrics.joint_metrics import UNKNOWN, contradictions, healthy_and_tumour_cases
from braintum.evaluation.results.case_table import CaseTable


@dataclass(frozen=True)
class CaseGroup:
    """Cases that have something in common.

    Attributes:
        key: for links.
        title: what they are called.
        explanation: one sentence.
        rows: of the case table, the most telling first.
    """

    key: str
    title: str
    explanation: str
    rows: tuple[int, ...]


def ranked_cases(table: CaseTable, number: int) -> list[CaseGroup]:
    """The best, the median and the worst cases by Dice, of those that truly show a tumour; no case twice.

    Args:
        table: figures of each case.
        number: how many of each; fewer where there are not enough.
    """
    ranked = sorted(np.flatnonzero(np.isfinite(table.dice)).tolist(), key=lambda row: (table.dice[row], row))
    size = min(number, max(1, len(ranked) // 3)) if ranked else 0
    worst, rest = ranked[:size], ranked[size:]
    best, between = rest[len(rest) - min(size, len(rest)) :][::-1], rest[: max(0, len(rest) - size)]
    start = max(0, (len(between) - size) // 2)
    groups = (
        CaseGroup("best", "Best", "The highest Dice.", tuple(best)),
        CaseGroup("median", "Median", "In the middle of all cases by Dice.", tuple(between[start : start + size])),
        CaseGroup("worst", "Worst", "The lowest Dice.", tuple(worst)),
    )
    return [group for group in groups if group.rows]


def failures(table: CaseTable) -> list[CaseGroup]:
    """Everything that went wrong, by kind; the counts are those of the joint figures and of the confusion matrix.

    A case is in as many groups as it has failures. Groups without a case are left out.
    """
    true, predicted = table.true_class, table.predicted_class
    healthy, tumour = healthy_and_tumour_cases(true, table.true_volume, table.negative_index)
    mask, without = table.predicted_volume > 0, table.predicted_volume == 0  # neither where it is not known
    called_healthy, without_mask = contradictions(predicted, table.predicted_volume, table.negative_index)
    wrong = (true != UNKNOWN) & (predicted != UNKNOWN) & (true != predicted)
    certainty = np.zeros(len(true)) if table.probabilities is None else table.probabilities.max(1)
    size = np.nan_to_num(table.true_volume)
    kinds = (
        ("missed", "Missed tumours", "A tumour, but no predicted mask; the largest first.", tumour & without, size),
        (
            "false-masks",
            "False masks",
            "A healthy case with a predicted mask; the largest mask first.",
            healthy & mask,
            table.predicted_volume,
        ),
        ("wrong-class", "Wrong classes", "The wrong class; the surest error first.", wrong, certainty),
        (
            "contradictions",
            "Contradictions",
            "A mask although the class is healthy, or a tumour class without a mask.",
            called_healthy | without_mask,
            certainty,
        ),
    )
    groups = []
    for key, title, explanation, members, weight in kinds:
        rows = sorted(np.flatnonzero(members).tolist(), key=lambda row: (-weight[row], row))
        if rows:
            groups.append(CaseGroup(key, title, explanation, tuple(rows)))
    return groups


def shown_rows(groups: Sequence[CaseGroup], number: int) -> list[int]:
    """The first ``number`` cases of each group, each case once."""
    return list(dict.fromkeys(row for group in groups for row in group.rows[:number]))
