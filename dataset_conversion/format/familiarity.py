"""Whether an image looks to a network's encoder like those of its data set: what the model folder carries for it.

Lee et al. 2018 (https://arxiv.org/abs/1807.03888) tell images of another kind by the Mahalanobis distance of the
network's features. Ours keeps it small, because it travels in ``dataset.json``: the features are reduced to their main
directions, each scaled to unit variance, and what these leave over counts as one direction more.
"""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

FEATURES_FILE = "encoder_features.npy"
"""Of a fold's validation: means of the encoder's deepest features, a row a case, as in ``classification.json``."""
_DIRECTIONS = 24
_ROUNDING = 0.01  # of the features' spread: less is lost in half precision, and tells nothing


@dataclass(frozen=True, eq=False)
class Familiarity:
    """Distribution of one fold's encoder features over cases that it was not trained on.

    Attributes:
        mean: (features,).
        directions: (directions, features), orthogonal; a familiar image has a variance of about one along each.
        rest: standard deviation of a familiar image's distance from what the directions span.
        limit: distance beyond which an image is unfamiliar.
    """

    mean: np.ndarray
    directions: np.ndarray
    rest: float
    limit: float = float("inf")

    @classmethod
    def fit(cls, features: np.ndarray) -> "Familiarity":
        """Fit to features of familiar images, (images, features); the limit stays open.

        Raises:
            ValueError: too few images.
        """
        if len(features) < 2:
            raise ValueError("one image does not tell what images look like")
        mean = features.mean(0)
        _, scales, rows = np.linalg.svd(features - mean, full_matrices=False)
        if scales[0] == 0:
            raise ValueError("all images look alike to the encoder")
        count = min(_DIRECTIONS, len(features) // 4 + 1, int((scales > 1e-6 * scales[0]).sum()))
        deviations = scales[:count] / np.sqrt(len(features))
        total = (scales**2).sum() / len(features)
        rest = float(np.sqrt(max((scales[count:] ** 2).sum() / len(features), _ROUNDING**2 * total)))
        return cls(mean, rows[:count] / deviations[:, None], rest)

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Distance of each row of (images, features): (images,), about the root of the number of directions."""
        centred = np.asarray(features, np.float64) - self.mean
        along = centred @ self.directions.T
        norms = (self.directions**2).sum(1)
        left = centred - (along / norms) @ self.directions
        return np.sqrt((along**2).sum(1) + (left**2).sum(1) / self.rest**2)

    def to_json(self) -> dict[str, Any]:
        """Arrays in half precision as base64."""
        scale = float(np.abs(self.directions).max())  # half precision knows nothing above 65504
        return {
            "mean": _encoded(self.mean),
            "directions": _encoded(self.directions / scale),
            "scale": scale,
            "rest": self.rest,
            "limit": self.limit,
        }

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Familiarity":
        """What :meth:`to_json` gave.

        Raises:
            ValueError: it is damaged.
        """
        try:
            mean = _decoded(entry["mean"])
            directions = _decoded(entry["directions"]).reshape(-1, len(mean)) * float(entry["scale"])
            return cls(mean, directions, float(entry["rest"]), float(entry["limit"]))
        except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
            raise ValueError(
                f'"trust" in dataset.json of the model is damaged ({error}); run braintum_calibrate again'
            ) from error


def _encoded(array: np.ndarray) -> str:
    return base64.b64encode(array.astype("<f2").tobytes()).decode("ascii")


def _decoded(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), "<f2").astype(np.float64)
