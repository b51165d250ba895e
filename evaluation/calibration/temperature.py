"""The temperature that makes class probabilities as certain as they are right."""

import numpy as np
from scipy.optimize import minimize_scalar

from braintum.commands.errors import InputError
from braintum.conversion.format.calibration import relative_logs

TEMPERATURE_BOUNDS = (0.05, 20.0)
_MARGIN = 0.01  # of log T: a minimum nearer to a bound than this is none


class NoTemperatureError(InputError):
    """The cases determine no temperature."""


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The temperature that minimises the negative log-likelihood.

    In 1/T the likelihood is convex, so that a bounded search in log T finds the only minimum.

    Args:
        probabilities: (cases, classes).
        labels: (cases,), index of the true class.
        weights: (cases,), how much each counts; None counts all alike.

    Raises:
        NoTemperatureError: there is no minimum between 0.05 and 20.
    """
    logs = relative_logs(probabilities)  # the highest is 0: no exponential overflows, none of the sums is below 1
    true = logs[np.arange(len(labels)), labels]
    share = np.ones(len(labels)) if weights is None else np.asarray(weights, dtype=np.float64)
    share = share / share.sum()

    def loss(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        return float(share @ (np.log(np.exp(logs * inverse).sum(1)) - true * inverse))

    low, high = np.log(TEMPERATURE_BOUNDS)
    found = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-6})
    if found.x < low + _MARGIN:
        raise NoTemperatureError(
            "all cases, or nearly all, are classified right, whatever the model's certainty: the likelihood grows "
            f"down to a temperature of {TEMPERATURE_BOUNDS[0]} and beyond, so there is none to choose; more held-out "
            "cases (of further folds, or new ones) may hold errors"
        )
    if found.x > high - _MARGIN:
        raise NoTemperatureError(
            "the probabilities say nothing of the class, or the opposite: the likelihood grows up to a temperature of "
            f"{TEMPERATURE_BOUNDS[1]:.0f} and beyond; train the model longer before it is calibrated"
        )
    return float(np.exp(found.x))
