"""Thresholds with a guarantee for the next patient, whatever the model is worth.

Split conformal prediction takes the quantile of the scores of n held-out cases at rank ⌈(n + 1)(1 − α)⌉. Cases of one
patient resemble each other, so that n is not the number of cases. Here patients are the unit, as Lee, Barber & Willett
2023 (Distribution-free inference with hierarchical data, https://arxiv.org/abs/2306.06342) have it: each patient weighs
1 / (patients + 1), divided among the patient's cases, and the next patient's share lies at infinity. With a case a
patient this is split conformal prediction, and the tests compare it with MAPIE, which knows no patients.

Thresholds of masks control a mean, not a quantile: conformal risk control (Angelopoulos et al. 2022,
https://arxiv.org/abs/2208.02814), with each patient's mean as the loss.
"""

import numpy as np


def conformal_quantile(scores: np.ndarray, units: np.ndarray, error: float) -> float:
    """The score that a random case of the next unit exceeds with a probability of ``error`` at most.

    Args:
        scores: (cases,), of held-out cases; high means unusual.
        units: (cases,), what is exchangeable, such as the patient.
        error: between 0 and 1.

    Returns:
        One of the scores; infinity where the units are too few to promise anything.
    """
    if not len(scores):
        return float("inf")
    _, unit_of_case, sizes = np.unique(units, return_inverse=True, return_counts=True)
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(1 / sizes[unit_of_case][order]) / (len(sizes) + 1)
    rank = int(np.searchsorted(reached, 1 - error - 1e-9))
    return float(scores[order[rank]]) if rank < len(scores) else float("inf")


def risk_controlled(losses: np.ndarray, units: np.ndarray, largest_loss: float) -> int | None:
    """The first of several settings whose mean loss over a random case of the next unit is small enough.

    Args:
        losses: (cases, settings), between 0 and 1; no setting loses more than the one before it.
        units: (cases,), what is exchangeable, such as the patient.
        largest_loss: that the mean is to have.

    Returns:
        Number of the setting; None where none can be promised to keep it.
    """
    _, unit_of_case, sizes = np.unique(units, return_inverse=True, return_counts=True)
    sums = (losses / sizes[unit_of_case][:, None]).sum(0)
    kept = np.flatnonzero((sums + 1) / (len(sizes) + 1) <= largest_loss)
    return int(kept[0]) if len(kept) else None
