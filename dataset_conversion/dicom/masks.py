"""DICOM segmentations (SEG) and structure sets (RTSTRUCT) as label maps on the grid of an image.

A SEG leaves out empty frames, and its own order of frames means nothing: each frame is put where its position is. A
contour belongs to the slice that it lies in; contours within others are holes.
"""

from collections.abc import Mapping

import numpy as np
import pydicom
import SimpleITK as sitk
from skimage.draw import polygon

from braintum.conversion.dicom.frames import frames_of, read_dataset, readable
from braintum.conversion.dicom.series import Grid, SeriesFiles, pixels_of
from braintum.conversion.dicom.study import STRUCTURE_SET, MaskFile
from braintum.conversion.files.volumes import VolumeError

_OFF_GRID = 0.05
"""Of a voxel: how far a frame of a segmentation may lie off the image's grid."""
_OFF_SLICE = 0.1
"""Of the distance between slices: how far a contour may lie off a slice; positions are rounded to text."""


def read_mask(mask: MaskFile, reference: sitk.Image) -> np.ndarray:
    """Reads segments, or contours, as labels.

    Args:
        mask: the object.
        reference: whose grid it has to be on.

    Returns:
        (Z, Y, X), the numbers of segments or regions of interest; 0 is background. Of nested ones the inner is on top.

    Raises:
        VolumeError: the file is damaged, lies on another grid, or its segments overlap without being nested.
    """
    dataset = read_dataset(mask.file)
    with readable(mask.file):
        if dataset.SOPClassUID == STRUCTURE_SET:
            segments = _contours(mask, dataset, reference)
        else:
            segments = _segments(mask, dataset, reference)
    return _one_label_a_voxel(mask, {number: array for number, array in segments.items() if array.any()}, reference)


def _one_label_a_voxel(mask: MaskFile, segments: Mapping[int, np.ndarray], reference: sitk.Image) -> np.ndarray:
    highest = max(segments, default=0)
    labels = np.zeros(reference.GetSize()[::-1], np.uint8 if highest < 256 else np.uint16)
    for number in sorted(segments, key=lambda number: -np.count_nonzero(segments[number])):
        below = labels[segments[number]]
        if (below != below[0]).any():
            others = ", ".join(map(str, sorted({*np.unique(below).tolist()} - {0})))
            raise VolumeError(
                f"{mask.file}: segment {number} overlaps {others} without lying within; export segments that are "
                "nested, or do not overlap"
            )
        labels[segments[number]] = number
    return labels


def _segments(mask: MaskFile, dataset: pydicom.Dataset, reference: sitk.Image) -> dict[int, np.ndarray]:
    """Segment number -> where it is, (Z, Y, X)."""
    frames, pixels = frames_of(mask.file, dataset), pixels_of(mask.file, dataset)
    segments: dict[int, np.ndarray] = {}
    for frame, group, stored in zip(frames, dataset.PerFrameFunctionalGroupsSequence, pixels, strict=True):
        if not stored.any():
            continue
        grid = Grid.of(SeriesFiles((frame,)))
        where = _voxels(mask, grid, np.argwhere(stored), reference)
        values = stored[stored != 0]
        if dataset.get("SegmentationType") == "LABELMAP":
            numbered = {int(value): where[values == value] for value in np.unique(values)}
        else:
            identification = group.get("SegmentIdentificationSequence")
            identification = identification or dataset.SharedFunctionalGroupsSequence[0].SegmentIdentificationSequence
            # FRACTIONAL: probabilities or shares of a voxel
            inside = values * 2 >= dataset.get("MaximumFractionalValue", 1)
            numbered = {int(identification[0].ReferencedSegmentNumber): where[inside]}
        for number, indices in numbered.items():
            array = segments.setdefault(number, np.zeros(reference.GetSize()[::-1], bool))
            array[tuple(indices.T)] = True
    return segments


def _voxels(mask: MaskFile, grid: Grid, pixels: np.ndarray, reference: sitk.Image) -> np.ndarray:
    """Indices (n, 3) in z, y, x of a reference, of pixels (n, 2) in row and column of a grid."""
    axes = np.reshape(grid.direction, (3, 3))[:, :2] * grid.spacing[:2]
    continuous = _indices(np.array(grid.origin) + pixels[:, ::-1] @ axes.T, reference)
    nearest = np.rint(continuous).astype(int)
    if np.abs(continuous - nearest).max() > _OFF_GRID:
        raise VolumeError(f"{mask.file}: not on the grid of the image; give the image that it was drawn on")
    if (nearest < 0).any() or (nearest >= reference.GetSize()).any():
        raise VolumeError(f"{mask.file}: reaches beyond the image; give the image that it was drawn on")
    return nearest[:, ::-1]


def _indices(points: np.ndarray, reference: sitk.Image) -> np.ndarray:
    """Continuous indices (n, 3) in x, y, z of points in mm."""
    axes = np.reshape(reference.GetDirection(), (3, 3)) * reference.GetSpacing()
    return np.linalg.solve(axes, (points - reference.GetOrigin()).T).T


def _contours(mask: MaskFile, dataset: pydicom.Dataset, reference: sitk.Image) -> dict[int, np.ndarray]:
    """Number of the region of interest -> where it is, (Z, Y, X)."""
    regions: dict[int, np.ndarray] = {}
    shape = reference.GetSize()[::-1]
    for region in dataset.ROIContourSequence:
        array = regions.setdefault(int(region.ReferencedROINumber), np.zeros(shape, bool))
        for contour in region.get("ContourSequence") or ():
            if contour.ContourGeometricType != "CLOSED_PLANAR":
                continue  # points and lines have no inside
            corners = _indices(np.reshape(contour.ContourData, (-1, 3)).astype(float), reference)
            z = int(np.rint(corners[:, 2].mean()))
            if np.abs(corners[:, 2] - z).max() > _OFF_SLICE or not 0 <= z < shape[0]:
                raise VolumeError(f"{mask.file}: a contour lies in no slice of the image that is given")
            array[z][polygon(corners[:, 1], corners[:, 0], shape[1:])] ^= True
    return regions
