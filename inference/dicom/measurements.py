"""Volume and diameters of what a mask outlines."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist, squareform
from skimage.measure import find_contours


@dataclass(frozen=True)
class Measurements:
    """Size of an object.

    Attributes:
        volume: in mm3.
        longest: the longest diameter within one slice, in mm.
        perpendicular: the longest at right angles to it, in the same slice and the same part, in mm.
        slice_index: of that slice.
    """

    volume: float
    longest: float
    perpendicular: float
    slice_index: int


def measure(mask: np.ndarray, geometry: sitk.Image) -> Measurements | None:
    """Measure an object; None where there is none.

    The product of both diameters is the bidimensional measure of the RANO criteria (Wen et al., J Clin Oncol 2010),
    here of the outlines that :func:`outlines` gives, and of whatever the mask holds: nothing is left out as cystic.

    Args:
        mask: (Z, Y, X), boolean.
        geometry: of its grid, in mm.
    """
    if not mask.any():
        return None
    x, y, z = geometry.GetSpacing()
    polygons = [
        (int(index), outline[:, ::-1] * (x, y))
        for index in np.flatnonzero(mask.any((1, 2)))
        for outline in outlines(mask[index])
    ]
    axes = [_long_axis(polygon) for _, polygon in polygons]
    lengths = [float(np.linalg.norm(axis)) for axis in axes]
    widest = int(np.argmax(lengths))
    index, polygon = polygons[widest]
    perpendicular = _longest_chord(polygon, axes[widest] / lengths[widest])
    return Measurements(float(mask.sum()) * x * y * z, lengths[widest], perpendicular, index)


def outlines(plane: np.ndarray) -> Iterator[np.ndarray]:
    """Outlines of an object and of its holes, half-way between the pixels inside and those outside.

    Args:
        plane: (Y, X), boolean.

    Yields:
        Closed polygons (points, 2) of y and x in pixels, whose last point is the first one.
    """
    for outline in find_contours(np.pad(plane.astype(np.float32), 1), 0.5):
        yield outline - 1


def _long_axis(points: np.ndarray) -> np.ndarray:
    """From one to the other of the two points (points, 2) that are farthest from each other."""
    corners = points[ConvexHull(points).vertices]
    distances = squareform(pdist(corners))
    start, end = np.unravel_index(distances.argmax(), distances.shape)
    return corners[end] - corners[start]


def _longest_chord(polygon: np.ndarray, axis: np.ndarray) -> float:
    """Length of the longest line within a closed polygon (points, 2) at right angles to a unit vector."""
    turned = polygon @ np.array([[axis[0], -axis[1]], [axis[1], axis[0]]])  # the axis along x
    return max(_chord(turned, x) for x in turned[:, 0])


def _chord(polygon: np.ndarray, x: float) -> float:
    """Length of the longest piece of the line at x within a polygon."""
    begin, end = polygon[:-1], polygon[1:]
    crosses = (begin[:, 0] <= x) != (end[:, 0] <= x)
    begin, end = begin[crosses], end[crosses]
    y = np.sort(begin[:, 1] + (x - begin[:, 0]) / (end[:, 0] - begin[:, 0]) * (end[:, 1] - begin[:, 1]))
    return float((y[1::2] - y[::2]).max(initial=0.0))
