"""Selective classification: how often the class is right where the model is certain enough to name it.

The threshold for a target accuracy is chosen as Geifman & El-Yaniv choose it (Selective Classification for Deep Neural
Networks, NeurIPS 2017, https://arxiv.org/abs/1705.08500, algorithm 1): a binary search over the confidences, in which
every threshold that is looked at has to pass with its share of the error probability, so that the search itself cannot
make a threshold look good. Ours differs in the bound, because cases of a patient are not independent: see
:func:`accuracy_bound`.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, t

from braintum.evaluation.metrics.statistics import CONFIDENCE


@dataclass(frozen=True)
class RiskCoverage:
    """Share of errors among the accepted cases (risk) against the share of accepted cases (coverage).

    Attributes:
        thresholds: (n,), the distinct confidences, highest first; a case is accepted at its confidence or above.
        coverage: (n,).
        risk: (n,).
        area: AURC, mean over all cases of the risk at the case's own confidence (Geifman et al. 2019).
    """

    thresholds: np.ndarray
    coverage: np.ndarray
    risk: np.ndarray
    area: float


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> RiskCoverage:
    """The risk-coverage curve.

    Args:
        confidence: (cases,), of the predicted class.
        correct: (cases,) bool.

    Raises:
        ValueError: no case.
    """
    if not len(confidence):
        raise ValueError("no case to compute a risk-coverage curve of")
    ascending, counts = np.unique(confidence, return_counts=True)
    errors = np.zeros(len(ascending))
    np.add.at(errors, np.searchsorted(ascending, confidence), ~np.asarray(correct, dtype=bool))
    accepted, wrong = np.cumsum(counts[::-1]), np.cumsum(errors[::-1])
    risk = wrong / accepted
    area = float((risk * counts[::-1]).sum() / len(confidence))
    return RiskCoverage(ascending[::-1], accepted / len(confidence), risk, area)


def accuracy_bound(correct: np.ndarray, clusters: Sequence[Hashable] | np.ndarray, error_probability: float) -> float:
    """Lower confidence bound of the accuracy over cases that come in clusters, such as patients.

    Clopper and Pearson's exact bound at an effective number of cases (Korn & Graubard 1998, Survey Methodology 24,
    193–201): the number of independent cases whose accuracy would scatter as much as that of these clusters does,
    reduced for the few clusters that the scatter is estimated from, and never more than the cases. Where none or all
    are wrong nothing scatters, and cases of a cluster count as one observation (Kish's effective number).

    Args:
        correct: (cases,) bool.
        clusters: of each case.
        error_probability: that the accuracy is below the bound.

    Returns:
        Between 0 and 1; 0 for fewer than two clusters.
    """
    correct = np.asarray(correct, dtype=np.float64)
    _, cluster_of_case, sizes = np.unique(np.asarray(clusters, dtype=str), return_inverse=True, return_counts=True)
    num_cases, num_clusters = len(correct), len(sizes)
    if num_clusters < 2:
        return 0.0
    accuracy = correct.mean()
    if accuracy in (0.0, 1.0):
        effective = num_cases**2 / float((sizes**2).sum())
    else:
        residuals = np.bincount(cluster_of_case, correct - accuracy) / num_cases  # of the ratio estimator, linearised
        variance = num_clusters / (num_clusters - 1) * float((residuals**2).sum())
        quantile = 1 - error_probability
        few_clusters = t.ppf(quantile, max(num_cases - 1, 1)) / t.ppf(quantile, num_clusters - 1)
        effective = min(num_cases, accuracy * (1 - accuracy) / variance * few_clusters**2) if variance else num_cases
    successes = accuracy * effective
    if successes == 0:
        return 0.0
    return float(beta.ppf(error_probability, successes, effective - successes + 1))


def threshold_for(
    target_accuracy: float,
    confidence: np.ndarray,
    correct: np.ndarray,
    clusters: Sequence[Hashable] | np.ndarray,
    certainty: float = CONFIDENCE,
) -> float | None:
    """A confidence from which on cases reach a target accuracy, as low as the evidence allows.

    Args:
        target_accuracy: between 0 and 1, both excluded.
        confidence: (cases,), of held-out cases.
        correct: (cases,) bool.
        clusters: of each case, such as the patient.
        certainty: probability with which the accepted cases of the population reach the target.

    Returns:
        One of the confidences; None where no threshold can be shown to reach the target.

    Raises:
        ValueError: an impossible target, or no case.
    """
    if not 0 < target_accuracy < 1:
        raise ValueError(f"the target accuracy has to lie between 0 and 1, got {target_accuracy}")
    if not len(confidence):
        raise ValueError("no case to choose a threshold from")
    candidates = np.unique(confidence)  # ascending: the first accepts all cases
    clusters = np.asarray(clusters, dtype=str)
    num_looks = max(1, math.ceil(math.log2(len(candidates) + 1)))
    found = None
    lowest, highest = 0, len(candidates) - 1
    while lowest <= highest:
        middle = (lowest + highest) // 2
        accepted = confidence >= candidates[middle]
        bound = accuracy_bound(correct[accepted], clusters[accepted], (1 - certainty) / num_looks)
        if bound >= target_accuracy:
            found, highest = float(candidates[middle]), middle - 1
        else:
            lowest = middle + 1
    return found
