"""Points of the curves of a report, from scikit-learn where it has them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from braintum.evaluation.metrics.selective import risk_coverage
from braintum.evaluation.metrics.statistics import Estimate, bootstrap_means

MIN_CASES_A_SIZE = 2


@dataclass(frozen=True)
class Curve:
    """A curve of one class, or of all.

    Attributes:
        name: of the class.
        x: (points,).
        y: (points,).
        figure: what sums it up: area, average precision.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    figure: float


@dataclass(frozen=True)
class SizeGroup:
    """Cases whose tumours are of similar size.

    Attributes:
        low: smallest true volume.
        high: largest true volume.
        count: cases.
        dice: mean, with its interval.
        median: of Dice.
    """

    low: float
    high: float
    count: int
    dice: Estimate
    median: float


def roc_curves(labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]) -> list[Curve]:
    """False-positive rate against sensitivity, each class against the rest; classes without cases or rest are left out.

    Args:
        labels: (cases,) int.
        probabilities: (cases, classes).
        class_names: of the columns.
    """
    curves = []
    for index, name in enumerate(class_names):
        positive = labels == index
        if positive.any() and not positive.all():
            false_positive, sensitivity, _ = roc_curve(positive, probabilities[:, index])
            curves.append(Curve(name, false_positive, sensitivity, float(auc(false_positive, sensitivity))))
    return curves


def micro_average_roc(labels: np.ndarray, probabilities: np.ndarray) -> Curve:
    """All classes together: every class of every case is a decision of its own, so that frequent ones count for more.

    Args:
        labels: (cases,) int.
        probabilities: (cases, classes).
    """
    positive = labels[:, None] == np.arange(probabilities.shape[1])
    false_positive, sensitivity, _ = roc_curve(positive.ravel(), probabilities.ravel())
    return Curve("micro-average", false_positive, sensitivity, float(auc(false_positive, sensitivity)))


def precision_recall_curves(labels: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str]) -> list[Curve]:
    """Recall against precision, each class against the rest, with the average precision; see :func:`roc_curves`."""
    curves = []
    for index, name in enumerate(class_names):
        positive = labels == index
        if positive.any() and not positive.all():
            precision, recall, _ = precision_recall_curve(positive, probabilities[:, index])
            average = -float(np.sum(np.diff(recall) * precision[:-1]))  # as average_precision_score has it
            curves.append(Curve(name, recall, precision, average))
    return curves


def risk_coverage_of(labels: np.ndarray, probabilities: np.ndarray) -> Curve:
    """Share of errors of the most probable class among the surest cases, against the share of cases that they are.

    ``figure`` is the area under the curve, see :func:`braintum.evaluation.metrics.selective.risk_coverage`.
    """
    curve = risk_coverage(probabilities.max(1), probabilities.argmax(1) == labels)
    return Curve("", curve.coverage, curve.risk, curve.area)


def dice_by_size(
    volume: np.ndarray, dice: np.ndarray, clusters: Sequence[str], groups: int = 4, num_resamples: int = 1000
) -> list[SizeGroup]:
    """Dice of groups of (nearly) equal numbers of cases, from the smallest to the largest tumours.

    Args:
        volume: (cases,), true size.
        dice: (cases,); NaN where undefined: such cases are left out.
        clusters: of each case, such as its patient.
        groups: how many; fewer where there are not enough cases.
        num_resamples: of the intervals.
    """
    members = np.flatnonzero(np.isfinite(dice) & np.isfinite(volume) & (volume > 0))
    order = members[np.argsort(volume[members], kind="stable")]
    found = []
    for part in np.array_split(order, max(1, min(groups, len(order) // MIN_CASES_A_SIZE))):
        if len(part):
            own = [clusters[row] for row in part]
            estimate = bootstrap_means({"Dice": dice[part]}, own, num_resamples)["Dice"]
            found.append(
                SizeGroup(
                    float(volume[part].min()),
                    float(volume[part].max()),
                    len(part),
                    estimate,
                    float(np.median(dice[part])),
                )
            )
    return found
