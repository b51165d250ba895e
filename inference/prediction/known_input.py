"""An image that is to be predicted against the images that a model was trained on.

A network answers whatever it is given. What nnU-Net's (and our) fingerprint in the model folder tells of the training
images shows where the answer means little: CT in place of MRI, another size, another spacing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import get_bbox_from_mask

from braintum.conversion.files.json_files import read_json_object
from braintum.conversion.files.volumes import VolumeError
from braintum.inference.models.model_files import FINGERPRINT_FILE

LOWEST_MRI = -100
"""Magnitude images of MRI have no negative values; Hounsfield units of air are -1000."""
_FACTOR = 2.0
"""Beyond the training's range by more than this factor, a size or a spacing is of another class."""
_FEW_CASES = 3
"""Of fewer training cases the range says nothing."""

Range = tuple[float, float]


def ct_warning(lowest: float) -> str | None:
    """What is to be said of an image with such intensities; None for nothing."""
    if lowest >= LOWEST_MRI:
        return None
    return f"intensities from {lowest:g} on, like Hounsfield units of CT: the model knows MRI only"


@dataclass(frozen=True)
class KnownInput:
    """What is known of the training images.

    Attributes:
        knows_ct: whether intensities below :data:`LOWEST_MRI` were there, or are to be expected.
        sizes: axis → smallest and largest number of voxels of the box around what is not zero; empty if not known.
        spacings: axis → smallest and largest, in mm; empty if not known.
        absent: channels that were empty in some training images.
    """

    knows_ct: bool = False
    sizes: Mapping[str, Range] = field(default_factory=dict)
    spacings: Mapping[str, Range] = field(default_factory=dict)
    absent: frozenset[int] = frozenset()

    @staticmethod
    def of(model_folder: Path | None, normalization_schemes: Sequence[str]) -> "KnownInput":
        """From the fingerprint in a model folder, as far as it is there.

        Args:
            model_folder: None for a network that is in memory only.
            normalization_schemes: of the configuration, one a channel.

        Raises:
            ValueError: the fingerprint is damaged.
        """
        is_ct = "CTNormalization" in normalization_schemes
        file = None if model_folder is None else model_folder / FINGERPRINT_FILE
        if file is None or not file.is_file():
            return KnownInput(is_ct)
        content = read_json_object(file, "copy the model again")
        try:
            channels = content.get("braintum", {}).get("channels", [])
            shapes, spacings = (np.array(content.get(name, []), float) for name in ("shapes_after_crop", "spacings"))
            is_known = len(shapes) >= _FEW_CASES and shapes.shape == spacings.shape == (len(shapes), 3)
            axes = "yx" if is_known and (shapes[:, 0] == 1).all() else "zyx"
            return KnownInput(
                is_ct or any(channel["minimum"] < LOWEST_MRI for channel in channels),
                _ranges(shapes, axes) if is_known else {},
                _ranges(spacings, axes) if is_known else {},
                frozenset(number for number, channel in enumerate(channels) if channel["missing_images"]),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file} is damaged ({error}); copy the model again") from error

    def doubts(self, image: np.ndarray, spacing: Sequence[float], name: str) -> list[str]:
        """What is to be said of an image; empty for nothing.

        Args:
            image: (C, Z, Y, X), as read.
            spacing: Z, Y, X, as nnU-Net's readers give it.
            name: of the image, for the error.

        Raises:
            VolumeError: the image is empty: all voxels of each channel have one value.
        """
        lowest, highest = image.min((1, 2, 3)), image.max((1, 2, 3))
        empty = np.flatnonzero(lowest == highest)
        if len(empty) == len(image):
            raise VolumeError(f"{name}: an empty image, all voxels have one value; export it again")
        doubts = [
            f"channel {channel:04d} is empty, all voxels have one value: is the sequence missing?"
            for channel in empty.tolist()
            if channel not in self.absent
        ]
        if not self.knows_ct and (warning := ct_warning(float(lowest.min()))) is not None:
            doubts.append(warning)
        box = get_bbox_from_mask((image != 0).any(0))
        sizes = dict(zip("zyx", (high - low for low, high in box), strict=True))
        doubts += _outside(sizes, self.sizes, "{:.0f} voxels along {}")
        edges = dict(zip("zyx", spacing, strict=True))
        if image.shape[1] == 1:
            edges.pop("z")  # a placeholder
        return [*doubts, *_outside(edges, self.spacings, "a spacing of {:.3g} mm along {}")]


def _ranges(values: np.ndarray, axes: str) -> dict[str, Range]:
    return {
        axis: (float(values[:, "zyx".index(axis)].min()), float(values[:, "zyx".index(axis)].max())) for axis in axes
    }


def _outside(found: Mapping[str, float], known: Mapping[str, Range], text: str) -> list[str]:
    """A sentence for each axis along which a value is far beyond those of the training."""
    return [
        f"{text.format(found[axis], axis)}, {low:.4g} to {high:.4g} in training: an image of another kind"
        for axis, (low, high) in known.items()
        if axis in found and not low / _FACTOR <= found[axis] <= high * _FACTOR
    ]
