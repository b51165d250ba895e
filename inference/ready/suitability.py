"""Whether an image is of the kind that a model was trained on, so that its answer means something.

Two questions. Plain ones about the file: colours, an empty image, intensities that are Hounsfield units. And one to the
network: how far its deepest features of the image lie from those of the training images, as a Mahalanobis distance with
the shrunk covariance of Ledoit and Wolf (Lee et al. 2018 detect images of another kind so). The limit is the quantile
of the training images that the model's card states.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from braintum.conversion.files.atomic import atomic_path
from braintum.inference.prediction.known_input import ct_warning
from braintum.inference.ready.own_images import OwnImage

SUITABILITY_FILE = "suitability.npz"

_SMALLEST_EDGE = 48
_MOST_SLICES = 16  # of a volume


@dataclass(frozen=True, eq=False)
class Suitability:
    """Distribution of a network's features over images that suit it.

    Attributes:
        mean: (features,).
        precision: inverse covariance, (features, features).
        limit: largest distance of a suitable image.
        quantile: of the images that it was fitted on, that the limit is.
    """

    mean: np.ndarray
    precision: np.ndarray
    limit: float
    quantile: float

    @classmethod
    def fit(cls, features: np.ndarray, held_out: np.ndarray | None = None, quantile: float = 0.999) -> "Suitability":
        """Fit to features of suitable images.

        Args:
            features: (images, features).
            held_out: of images that the limit is taken from; None for the same.
            quantile: of them that is to be accepted.
        """
        from sklearn.covariance import LedoitWolf  # late: prediction does without

        fitted = LedoitWolf().fit(features)
        found = cls(fitted.location_.astype(np.float32), fitted.precision_.astype(np.float32), np.inf, quantile)
        distances = found.distance(features if held_out is None else held_out)
        return cls(found.mean, found.precision, float(np.quantile(distances, quantile)), quantile)

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Mahalanobis distance of each row, (images,)."""
        difference = features.astype(np.float64) - self.mean
        return np.sqrt(
            np.maximum(np.einsum("if,fg,ig->i", difference, self.precision.astype(np.float64), difference), 0)
        )

    def save(self, file: Path) -> None:
        """Write it, completely or not at all."""
        with atomic_path(file) as partial, partial.open("wb") as stream:
            np.savez_compressed(
                stream,
                mean=self.mean,
                precision=self.precision.astype(np.float16 if np.abs(self.precision).max() < 6e4 else np.float32),
                limit=self.limit,
                quantile=self.quantile,
            )

    @classmethod
    def load(cls, file: Path) -> "Suitability":
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is damaged.
        """
        try:
            with np.load(file, allow_pickle=False) as content:
                return cls(
                    content["mean"].astype(np.float32),
                    content["precision"].astype(np.float32),
                    float(content["limit"]),
                    float(content["quantile"]),
                )
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise ValueError(f"{file} is damaged ({error}); install the model again") from error


@torch.no_grad()
def deepest_features(network: Any, batches: Iterable[torch.Tensor]) -> np.ndarray:
    """Means of the encoder's deepest feature maps, (slices, features).

    Args:
        network: with ``encoder``, in evaluation mode.
        batches: preprocessed slices (B, C, Y, X), whose edges the network's strides divide.
    """
    return np.concatenate([network.encoder(batch)[-1].float().mean((2, 3)).cpu().numpy() for batch in batches])


def plain_warnings(image: OwnImage) -> list[str]:
    """What can be said of an image without a network; empty for nothing."""
    warnings = []
    if image.is_coloured:
        warnings.append(f"{image.coloured_share:.0%} of the pixels have a colour: no MRI slice as scanners export it")
    if (warning := ct_warning(float(image.slices.min()))) is not None:
        warnings.append(warning)
    if min(image.slices.shape[1:]) < _SMALLEST_EDGE:
        warnings.append(f"only {image.slices.shape[2]}×{image.slices.shape[1]} pixels: too few to see a tumour")
    return warnings


def feature_warning(network: Any, slices: torch.Tensor, suitability: Suitability) -> str | None:
    """What the network's features say of an image; None where it is of the known kind.

    Args:
        network: see :func:`deepest_features`.
        slices: preprocessed, (Z, C, Y, X); of many, some are looked at, and their median decides.
        suitability: of the model.
    """
    chosen = np.unique(np.linspace(0, len(slices) - 1, min(len(slices), _MOST_SLICES)).round().astype(int))
    distance = float(np.median(suitability.distance(deepest_features(network, [slices[chosen]]))))
    if distance <= suitability.limit:
        return None
    return (
        f"unlike the images that the model was trained on (distance {distance:.1f}, limit {suitability.limit:.1f}): "
        "another sequence, plane, part of the body or kind of picture? Do not rely on the answer"
    )
