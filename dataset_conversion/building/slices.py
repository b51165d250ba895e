"""Choosing slices of a volume, and taking them out with their geometry.

Slices are numbered in the volume's anatomical orientation, not in that of the file: axial slices from the feet to the
head, coronal ones from front to back, sagittal ones from the right to the left. So they look alike whatever way round
a scanner stored the volume.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

PLANES = ("axial", "coronal", "sagittal")
ARRAY_AXIS = {"axial": 0, "coronal": 1, "sagittal": 2}
"""The axis, of an array of shape (Z, Y, X) in LPS orientation, that is at right angles to the plane."""
ACQUISITION_RATIO = 1.5
"""A volume whose coarsest spacing is that much coarser than the next one was acquired in slices."""

RESCALED_VOLUMES = "volumes_rescaled_to_0_1"
"""Entry of `dataset.json`: volumes were brought to [0, 1] before they were sliced; the planners leave that as it is."""


@dataclass(frozen=True)
class SliceChoice:
    """Which slices of a volume become cases.

    Slices that show nothing (one value only, in every channel) are never chosen, unless they hold tumour.

    Attributes:
        policy: `all`; `tumour` (those with tumour; all where there is no mask); or `representative`
            (`representative_slices`).
        margin: with `tumour`: also that many slices on either side of the tumour's extent, in slices.
        healthy: with `tumour`: also that many slices without tumour, spread evenly over the others.
        count: with `representative`: how many.
    """

    policy: str = "tumour"
    margin: int = 0
    healthy: int = 0
    count: int = 0

    def __post_init__(self) -> None:
        if self.policy not in ("all", "tumour", "representative"):
            raise ValueError(f"slice policy {self.policy!r} is not one of all, tumour, representative")
        if min(self.margin, self.healthy, self.count) < 0:
            raise ValueError("numbers of slices must not be negative")
        if self.policy == "representative" and self.count < 1:
            raise ValueError("the number of representative slices has to be at least 1")

    def select(self, content: np.ndarray, tumour: np.ndarray | None) -> list[int]:
        """Chooses slices.

        Args:
            content: for each slice, whether it shows anything.
            tumour: for each slice, whether it holds tumour; None where there is no mask.

        Returns:
            Slice numbers, ascending.
        """
        present = np.zeros(len(content), bool) if tumour is None else np.asarray(tumour, bool)
        usable = np.asarray(content, bool) | present
        if self.policy == "representative":
            return representative_slices(usable, present, self.count)
        if self.policy == "all" or tumour is None:
            return np.flatnonzero(usable).tolist()
        return tumour_slices(usable, present, self.margin, self.healthy)


def tumour_slices(usable: np.ndarray, tumour: np.ndarray, margin: int = 0, healthy: int = 0) -> list[int]:
    """Returns all slices with tumour, `margin` more on either side of each, and `healthy` ones of the others."""
    near = np.zeros(len(usable), bool)
    for number in np.flatnonzero(tumour):
        near[max(0, number - margin) : number + margin + 1] = True
    near &= usable
    return sorted(np.flatnonzero(near).tolist() + _spread(np.flatnonzero(usable & ~near).tolist(), healthy))


def representative_slices(usable: np.ndarray, tumour: np.ndarray, count: int) -> list[int]:
    """Chooses `count` slices around the tumour, as BrainTumNet takes 20 a patient.

    With at least `count` slices that hold tumour they are spread evenly over these. With fewer, all of them are taken
    and then those nearest to the tumour, the lower one first. Without a tumour the slices are spread evenly over all
    that show something. (The paper does not say how it chooses; this is our reading.)

    Args:
        usable: for each slice, whether it may be chosen.
        tumour: for each slice, whether it holds tumour.
        count: how many; all usable slices where there are fewer.

    Returns:
        Slice numbers, ascending.
    """
    inside = np.flatnonzero(tumour & usable)
    if not len(inside):
        return _spread(np.flatnonzero(usable).tolist(), count)
    if len(inside) >= count:
        return _spread(inside.tolist(), count)
    outside = np.flatnonzero(usable & ~tumour)
    distance = np.abs(outside[:, None] - inside[None]).min(axis=1)
    nearest = outside[np.lexsort((outside, distance))][: count - len(inside)]
    return sorted([*inside.tolist(), *nearest.tolist()])


def _spread(numbers: Sequence[int], count: int) -> list[int]:
    """Returns the middle ones of `count` equal parts of the numbers: the outermost slices show next to nothing."""
    if count >= len(numbers):
        return list(numbers)
    return [numbers[(2 * part + 1) * len(numbers) // (2 * count)] for part in range(count)]


def to_anatomical(image: sitk.Image) -> sitk.Image:
    """Turns and mirrors a volume so that x runs to the left, y to the back and z to the head (LPS), without resampling.

    An oblique volume stays oblique: its axes are named after the directions that they are closest to.
    """
    return sitk.DICOMOrient(image, "LPS")


def choose_plane(image: sitk.Image, plane: str = "auto") -> str:
    """Returns the plane to slice a volume in.

    Args:
        image: in LPS orientation.
        plane: one of `PLANES`, or `auto`: the plane that it was acquired in where one spacing is clearly the coarsest
            (`ACQUISITION_RATIO`), and axial otherwise.
    """
    if plane != "auto":
        if plane not in PLANES:
            raise ValueError(f"plane {plane!r} is not one of auto, {', '.join(PLANES)}")
        return plane
    spacing = image.GetSpacing()
    coarsest = int(np.argmax(spacing))
    rest = [value for axis, value in enumerate(spacing) if axis != coarsest]
    if spacing[coarsest] < ACQUISITION_RATIO * max(rest):
        return "axial"
    return ("sagittal", "coronal", "axial")[coarsest]


def slice_geometry(image: sitk.Image, plane: str) -> tuple[tuple[float, float], tuple[float, float]]:
    """Returns spacing and origin of a volume's slices, in mm, in the order x, y of the slice.

    A 2-D image has no direction in space: the origin is the first pixel's position along the slice's own axes.

    Args:
        image: in LPS orientation.
        plane: one of `PLANES`.
    """
    spacing, size = np.array(image.GetSpacing()), np.array(image.GetSize())
    direction = np.array(image.GetDirection()).reshape(3, 3)
    origin = direction.T @ np.array(image.GetOrigin())
    x, y = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}[plane]
    # z runs to the head, rows run down: coronal and sagittal slices are turned over, their first row is the highest z
    first = origin[y] if plane == "axial" else -(origin[y] + (size[y] - 1) * spacing[y])
    return (float(spacing[x]), float(spacing[y])), (float(origin[x]), float(first))


def slice_positions(image: sitk.Image, plane: str) -> np.ndarray:
    """Returns where a volume's slices lie along the normal of their plane, in mm.

    Args:
        image: in LPS orientation.
        plane: one of `PLANES`.
    """
    axis = 2 - ARRAY_AXIS[plane]
    normal = np.array(image.GetDirection()).reshape(3, 3)[:, axis]
    return float(normal @ image.GetOrigin()) + image.GetSpacing()[axis] * np.arange(image.GetSize()[axis])


def stack_slices(array: np.ndarray, plane: str) -> np.ndarray:
    """Returns an array of shape (Z, Y, X) in LPS orientation as (slice, row, column), the head or the front on top."""
    stack = np.moveaxis(array, ARRAY_AXIS[plane], 0)
    return stack if plane == "axial" else stack[:, ::-1]


def slice_image(pixels: np.ndarray, spacing: Sequence[float], origin: Sequence[float]) -> sitk.Image:
    """Makes a 2-D image with true in-plane spacing of an array of shape (Y, X)."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(pixels))
    image.SetSpacing([float(value) for value in spacing])
    image.SetOrigin([float(value) for value in origin])
    return image


def shows_something(stacks: Sequence[np.ndarray]) -> np.ndarray:
    """Tells for each slice whether any channel holds more than one value.

    Args:
        stacks: one array of shape (slice, row, column) a channel.
    """
    return np.any([stack.max(axis=(1, 2)) > stack.min(axis=(1, 2)) for stack in stacks], axis=0)


def add_slice_arguments(parser: argparse.ArgumentParser, default: str = "tumour") -> None:
    """Adds the options of `slice_choice`; `--slices` without a value means `default`."""
    parser.add_argument(
        "--slices",
        choices=("tumour", "all"),
        nargs="?",
        const=default,
        help="2-D cases: slices with tumour (all, of a volume without a mask), or all that show something (without a "
        f"value: {default})",
    )
    parser.add_argument(
        "--slice-margin",
        type=int,
        default=0,
        metavar="N",
        help="with --slices tumour: N more slices on either side (default: 0)",
    )
    parser.add_argument(
        "--healthy-slices",
        type=int,
        default=0,
        metavar="N",
        help="with --slices tumour: N slices without tumour a volume, spread evenly over the others (default: 0)",
    )


def add_orientation_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the option of volumes that are read as they are stored."""
    parser.add_argument(
        "--keep-orientation",
        action="store_true",
        help="volumes: let nnU-Net read each as its file stores it; by default all are turned alike while they are "
        "read, and predicted masks are turned back",
    )


def add_rescaling_argument(parser: argparse.ArgumentParser) -> None:
    """Adds the option of slices whose intensities are those of their volume."""
    parser.add_argument(
        "--rescale-volumes",
        action="store_true",
        help="2-D cases: bring each channel of a volume to [0, 1], from its smallest to its largest value, before it "
        "is sliced (papers 000 and 001), so that slices of one volume have one scale",
    )


def rescaled(array: np.ndarray) -> np.ndarray:
    """Returns a volume from its smallest value, 0, to its largest, 1, in float32; all 0 if it has one value."""
    low, high = float(array.min()), float(array.max())
    return ((array - low) / ((high - low) or 1.0)).astype(np.float32)


def slice_choice(slices: str | None, slice_margin: int, healthy_slices: int) -> SliceChoice | None:
    """Returns what the options of `add_slice_arguments` choose; None for volumes.

    Raises:
        ValueError: an option has no meaning beside the others.
    """
    if slices != "tumour" and (slice_margin or healthy_slices):
        raise ValueError("--slice-margin and --healthy-slices need --slices tumour; add it, or leave them out")
    return None if slices is None else SliceChoice(slices, slice_margin, healthy_slices)
