"""A DICOM series as a volume: its frames in the order of their positions, on the grid that the files describe."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk

from braintum.conversion.dicom.frames import Frame, Place, read_dataset, readable
from braintum.conversion.files.file_checks import MAX_BYTES
from braintum.conversion.files.volumes import DIRECTION_TOLERANCE, MIN_SPACING_MM, VolumeError, compact

DISTANCE_TOLERANCE = 0.02
"""Of the median distance between slices: positions are rounded to text in the files."""
TILT_TOLERANCE = 0.1
"""Of a pixel: how far the last slice may be shifted sideways against the first."""


@dataclass(frozen=True, eq=False)
class Series:
    """A volume and the DICOM objects that it was read from.

    Attributes:
        instances: the objects, pixels included: one a slice in ascending position along the slices' normal, or the
            enhanced multi-frame object.
        image: values after rescaling, slices in ascending position along the normal, LPS geometry of the files.
        frames: of each slice of the image, the index of its instance and the number of its frame, from 1.
    """

    instances: tuple[pydicom.Dataset, ...]
    image: sitk.Image = field(repr=False)
    frames: tuple[tuple[int, int], ...]

    def _text(self, keyword: str) -> str:
        return str(self.instances[0].get(keyword) or "").strip()

    @property
    def description(self) -> str:
        """SeriesDescription."""
        return self._text("SeriesDescription")

    @property
    def modality(self) -> str:
        """Such as MR."""
        return self._text("Modality")

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID."""
        return self._text("SeriesInstanceUID")

    @property
    def study_uid(self) -> str:
        """StudyInstanceUID."""
        return self._text("StudyInstanceUID")

    @property
    def patient_id(self) -> str:
        """PatientID."""
        return self._text("PatientID")

    @property
    def frame_of_reference(self) -> str:
        """FrameOfReferenceUID; empty where there is none."""
        return self._text("FrameOfReferenceUID")


@dataclass(frozen=True, eq=False)
class SeriesFiles:
    """A volume of a series, of which only the headers were read.

    Attributes:
        frames: in ascending position along the normal.
        part: what tells it from other volumes of the same series, such as ``EchoTime 80``; empty for the only one.
        fault: why it cannot be read, where that is known.
    """

    frames: tuple[Frame, ...] = field(repr=False)
    part: str = ""
    fault: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """Of its first frame, by DICOM keyword."""
        return dict(self.frames[0].facts)

    def text(self, keyword: str) -> str:
        """A header's value; empty where there is none."""
        return str(self.facts.get(keyword, ""))

    @property
    def image_type(self) -> frozenset[str]:
        """The values of ImageType."""
        value = self.facts.get("ImageType", ())
        return frozenset((value,) if isinstance(value, str) else value)

    @property
    def names(self) -> tuple[str, ...]:
        """What a pattern may match: SeriesDescription (with the part, too), ProtocolName, SequenceName."""
        description = self.text("SeriesDescription")
        described = f"{description} {self.part}".strip() if self.part else ""
        keywords = ("ProtocolName", "SequenceName", "PulseSequenceName")
        return tuple(filter(None, (description, described, *(self.text(keyword) for keyword in keywords))))

    @property
    def title(self) -> str:
        """What a person calls it."""
        named = self.text("SeriesDescription") or self.text("ProtocolName") or self.text("SeriesInstanceUID")
        return f"{named} ({self.part})" if self.part else named

    @property
    def files(self) -> list[Place]:
        """Each file once, in the order of the frames."""
        return list(dict.fromkeys(frame.file for frame in self.frames))

    @cached_property
    def grid(self) -> "Grid":
        """Where the voxels are.

        Raises:
            VolumeError: the frames are on no grid with right angles.
        """
        if self.fault:
            raise VolumeError(self.fault)
        return Grid.of(self)

    def read(self) -> Series:
        """Reads the pixels.

        Raises:
            VolumeError: a file is damaged, its pixels cannot be decoded, or its frames are on no grid.
        """
        files, grid = self.files, self.grid
        instances = tuple(read_dataset(file) for file in files)
        pixels = [pixels_of(file, dataset) for file, dataset in zip(files, instances, strict=True)]
        places = tuple((files.index(frame.file), frame.number) for frame in self.frames)
        slices = [
            _rescaled(pixels[index][number - 1], frame)
            for (index, number), frame in zip(places, self.frames, strict=True)
        ]
        stack = np.stack(slices)
        if not np.isfinite(stack).all():
            raise VolumeError(f"{files[0]}: holds NaN or infinity; export the series again")
        return Series(instances, grid.image_of(compact(stack)), places)


@dataclass(frozen=True)
class Grid:
    """A grid with right angles.

    Attributes:
        size: voxels along x (within a row), y and z (the normal).
        spacing: in mm.
        origin: centre of the first voxel, in mm, LPS.
        direction: cosines, row by row, as SimpleITK has them.
    """

    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, series: SeriesFiles) -> "Grid":
        """The grid of a volume.

        Raises:
            VolumeError: slices are missing, unevenly spaced, or shifted sideways (a tilted gantry).
        """
        first, where = series.frames[0], f"'{series.title}'"
        row, column = np.reshape(first.orientation, (2, 3))
        normal = np.cross(row, column)
        axes = np.stack((row, column, normal / np.linalg.norm(normal)), axis=1)
        if not np.abs(axes.T @ axes - np.eye(3)).max() < DIRECTION_TOLERANCE:  # NaN too
            raise VolumeError(f"{where}: rows and columns are not at right angles; export the series again")
        y, x = first.facts["PixelSpacing"]
        positions = np.array([frame.position for frame in series.frames])
        z = first.facts.get("SpacingBetweenSlices") or first.facts.get("SliceThickness") or 1.0
        if len(positions) > 1:
            z = _distance(where, positions @ axes[:, 2])
            _check_tilt(where, (positions - positions[0]) @ axes, min(x, y))
        if not min(x, y, z) >= MIN_SPACING_MM:
            raise VolumeError(f"{where}: a spacing of {min(x, y, z):.3g} mm cannot be (metres, not mm?)")
        size = (int(first.facts["Columns"]), int(first.facts["Rows"]), len(positions))
        return cls(size, (x, y, z), tuple(positions[0].tolist()), tuple(axes.ravel().tolist()))

    def image_of(self, array: np.ndarray) -> sitk.Image:
        """An image of an array (Z, Y, X) on this grid."""
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image


def _distance(where: str, along: np.ndarray) -> float:
    """The distance of slices in mm, if it is one and the same."""
    distances = np.diff(along)
    usual = float(np.median(distances))
    if np.abs(distances - usual).max() <= DISTANCE_TOLERANCE * usual:
        return float(distances.mean())
    found = ", ".join(f"{distance:g} mm ×{number}" for distance, number in _counted(distances))
    steps = distances / distances.min()
    if np.abs(steps - np.rint(steps)).max() <= DISTANCE_TOLERANCE * steps.max():
        missing = int(np.rint(steps).sum()) - len(distances)
        raise VolumeError(
            f"{where}: {missing} slices are missing, or belong to another series: distances between slices are not "
            f"the same ({found}); export the series again"
        )
    raise VolumeError(
        f"{where}: distances between slices are not the same ({found}), unevenly spaced; resample it onto an even "
        "grid, or export the series again"
    )


def _counted(distances: np.ndarray) -> list[tuple[float, int]]:
    return Counter(np.round(distances, 3).tolist()).most_common(4)


def _check_tilt(where: str, offsets: np.ndarray, pixel: float) -> None:
    sideways, length = np.abs(offsets[:, :2]).max(), offsets[-1, 2]
    if sideways > max(TILT_TOLERANCE * pixel, DIRECTION_TOLERANCE * length):
        angle = np.degrees(np.arctan2(np.hypot(*offsets[-1, :2]), length))
        raise VolumeError(
            f"{where}: slices are shifted sideways against each other (up to {sideways:.3g} mm, {angle:.1f}°: a tilted "
            "gantry?), so that the volume is sheared; resample it onto a grid with right angles first"
        )


def pixels_of(file: Place, dataset: pydicom.Dataset) -> np.ndarray:
    """Stored values, (frames, Y, X), without bits that do not belong to them; bright is large."""
    with readable(file):
        if int(dataset.Rows) * int(dataset.Columns) * int(dataset.get("NumberOfFrames") or 1) * 4 > MAX_BYTES:
            raise ValueError("declares more pixels than a scan of a head takes")
        try:
            stored = dataset.pixel_array
        except (RuntimeError, NotImplementedError) as error:
            syntax = dataset.file_meta.TransferSyntaxUID
            raise VolumeError(f"{file}: pixels packed as {syntax.name} cannot be decoded ({error})") from error
        if dataset.get("SamplesPerPixel", 1) != 1:
            raise ValueError("coloured")
        stored = stored.reshape(-1, int(dataset.Rows), int(dataset.Columns))
        if stored.dtype.kind == "f":
            return stored
        bits, is_signed = int(dataset.BitsStored), bool(dataset.PixelRepresentation)
        values = stored.astype(np.int32 if bits < 32 else np.int64) >> (
            int(dataset.get("HighBit", bits - 1)) - bits + 1
        )
        values &= (1 << bits) - 1
        if is_signed:
            values -= (values >> (bits - 1)) << bits
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            values = (-1 if is_signed else (1 << bits) - 1) - values
        return values


def _rescaled(stored: np.ndarray, frame: Frame) -> np.ndarray:
    slope, intercept = frame.facts.get("RescaleSlope", 1.0), frame.facts.get("RescaleIntercept", 0.0)
    return stored if (slope, intercept) == (1.0, 0.0) else (stored * slope + intercept).astype(np.float32)


def sorted_along_normal(frames: Sequence[Frame]) -> tuple[Frame, ...]:
    """Frames in ascending position along their normal."""
    return tuple(sorted(frames, key=position_along_normal))


def position_along_normal(frame: Frame) -> float:
    """In mm."""
    row, column = np.reshape(frame.orientation, (2, 3))
    return float(np.dot(np.cross(row, column), frame.position))
