"""What is known of the intensities of a channel: of one image, and of all images together.

Minimum, maximum, mean and standard deviation are exact, percentiles come from a sample: evenly spaced voxels of each
image, the same number from each, so that every image counts the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

PERCENTILES = (0.5, 5.0, 25.0, 50.0, 75.0, 95.0, 99.5)
ZERO_BORDER_SHARE = 0.98
"""An image is skull-stripped if at least this share of its slices' edges is exactly zero; noise outside the head is
not zero. A head whose surrounding air was set to zero looks the same, and is to be normalised the same way."""
SKULL_STRIPPED_SHARE = 0.9
"""A channel is skull-stripped if at least this share of its images is."""
SATURATED_SHARE = 0.01
"""An image is saturated if more than this share of its non-zero voxels has its largest value."""
_TYPE_LIMITS = tuple(2**bits - 1 for bits in (8, 12, 15, 16))
_LISTED_CASES = 20


@dataclass(frozen=True)
class ChannelStatistics:
    """One channel of one image.

    Attributes:
        voxels: number of voxels.
        nonzero_voxels: number of voxels that are not exactly zero.
        total: sum of all intensities.
        total_of_squares: sum of their squares.
        minimum: smallest intensity.
        maximum: largest intensity.
        nonzero_minimum: smallest intensity that is not zero; NaN if there is none.
        nonzero_maximum: largest intensity that is not zero; NaN if there is none.
        integer: all intensities are whole numbers.
        border_zero_share: share of exact zeros on the edges of the slices.
        saturated_share: share of the non-zero voxels that have the largest intensity.
        sample: evenly spaced voxels.
        nonzero_sample: evenly spaced non-zero voxels.
    """

    voxels: int
    nonzero_voxels: int
    total: float
    total_of_squares: float
    minimum: float
    maximum: float
    nonzero_minimum: float
    nonzero_maximum: float
    integer: bool
    border_zero_share: float
    saturated_share: float
    sample: np.ndarray
    nonzero_sample: np.ndarray

    @property
    def is_constant(self) -> bool:
        """Whether all voxels are equal: the sequence is missing."""
        return self.minimum == self.maximum

    @property
    def is_skull_stripped(self) -> bool:
        """Whether the surroundings are exactly zero, see :data:`ZERO_BORDER_SHARE`."""
        return not self.is_constant and self.border_zero_share >= ZERO_BORDER_SHARE


def channel_statistics(image: np.ndarray, num_samples: int) -> ChannelStatistics:
    """Statistics of one channel of one image.

    Args:
        image: (Z, Y, X), finite.
        num_samples: largest number of voxels in each sample.
    """
    voxels = image.ravel()
    nonzero = voxels[voxels != 0]
    exact = nonzero.astype(np.float64)  # squares of 16-bit intensities overflow the precision of float32
    minimum, maximum = float(voxels.min()), float(voxels.max())
    edges = np.concatenate([image[:, [0, -1]].ravel(), image[:, :, [0, -1]].ravel()])
    return ChannelStatistics(
        voxels=voxels.size,
        nonzero_voxels=nonzero.size,
        total=float(exact.sum()),
        # not `@`: BLAS would start threads of its own in every worker, which then wait for each other
        total_of_squares=float(np.einsum("i,i->", exact, exact)),
        minimum=minimum,
        maximum=maximum,
        nonzero_minimum=float(nonzero.min()) if nonzero.size else np.nan,
        nonzero_maximum=float(nonzero.max()) if nonzero.size else np.nan,
        integer=bool((nonzero == np.rint(nonzero)).all()),
        border_zero_share=float((edges == 0).mean()),
        saturated_share=float((nonzero == maximum).mean()) if nonzero.size else 0.0,
        sample=_evenly_spaced(voxels, num_samples),
        nonzero_sample=_evenly_spaced(nonzero, num_samples),
    )


def _evenly_spaced(voxels: np.ndarray, number: int) -> np.ndarray:
    if voxels.size <= number:
        return voxels.copy()
    return voxels[np.linspace(0, voxels.size - 1, number, dtype=np.int64)]


def summarise_channel(name: str, images: Mapping[str, ChannelStatistics]) -> dict[str, Any]:
    """The entry of one channel in the fingerprint.

    Args:
        name: of the channel in ``dataset.json``.
        images: case -> its statistics.

    Returns:
        JSON-ready: ``name``, ``integer``, ``minimum``, ``maximum``, ``bit_depth`` (None for floats), ``at_type_limit``,
        ``skull_stripped``, ``missing_in`` (cases whose channel is constant), ``whole_image`` and ``nonzero`` (mean,
        std, min, max, percentiles; None where there is no non-zero voxel), and more of what a person wants to know.
    """
    present = {case: image for case, image in images.items() if not image.is_constant}
    all_images = list(images.values())
    integer = all(image.integer for image in all_images)
    minimum, maximum = min(image.minimum for image in all_images), max(image.maximum for image in all_images)
    missing = [case for case in images if case not in present]
    return {
        "name": name,
        "integer": integer,
        "minimum": minimum,
        "maximum": maximum,
        "bit_depth": _bit_depth(minimum, maximum) if integer else None,
        "at_type_limit": integer and maximum in _TYPE_LIMITS,
        "skull_stripped": _share(present, "is_skull_stripped") >= SKULL_STRIPPED_SHARE,
        "skull_stripped_share": _share(present, "is_skull_stripped"),
        "nonzero_share": sum(image.nonzero_voxels for image in all_images) / sum(image.voxels for image in all_images),
        "saturated_images": sum(image.saturated_share > SATURATED_SHARE for image in present.values()),
        "largest_saturated_share": max((image.saturated_share for image in present.values()), default=0.0),
        "image_maximum": quantiles([image.maximum for image in present.values()]),
        "missing_images": len(missing),
        "missing_in": missing[:_LISTED_CASES],
        "whole_image": _region(all_images, "voxels", "minimum", "maximum", "sample"),
        "nonzero": _region(all_images, "nonzero_voxels", "nonzero_minimum", "nonzero_maximum", "nonzero_sample"),
    }


def quantiles(values: Sequence[float] | np.ndarray) -> dict[str, float] | None:
    """Smallest, 5th percentile, median, 95th percentile and largest of some values; None if there are none."""
    if not len(values):
        return None
    names = ("min", "percentile_05", "median", "percentile_95", "max")
    return dict(zip(names, np.percentile(values, (0, 5, 50, 95, 100)).tolist(), strict=True))


def _bit_depth(minimum: float, maximum: float) -> int:
    """Bits that hold the range: one is the sign where there are negative intensities."""
    largest = max(int(maximum), -int(minimum) - 1)
    return max(largest.bit_length(), 1) + (minimum < 0)


def _share(images: Mapping[str, ChannelStatistics], attribute: str) -> float:
    return sum(getattr(image, attribute) for image in images.values()) / len(images) if images else 0.0


def _region(
    images: Sequence[ChannelStatistics], voxels: str, minimum: str, maximum: str, sample: str
) -> dict[str, float | None]:
    names = [f"percentile_{percentile:04.1f}".replace(".", "_") for percentile in PERCENTILES]
    number = sum(getattr(image, voxels) for image in images)
    if not number:
        return dict.fromkeys(("mean", "std", "min", "max", *names))
    # voxels that are zero add nothing to either sum: both regions share them
    mean = sum(image.total for image in images) / number
    variance = sum(image.total_of_squares for image in images) / number - mean**2
    pooled = np.concatenate([getattr(image, sample) for image in images])
    return {
        "mean": mean,
        "std": max(variance, 0.0) ** 0.5,
        "min": float(np.nanmin([getattr(image, minimum) for image in images])),
        "max": float(np.nanmax([getattr(image, maximum) for image in images])),
        **dict(zip(names, np.percentile(pooled, PERCENTILES).tolist(), strict=True)),
    }
