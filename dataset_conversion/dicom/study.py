"""Finds the series in what an archive exports: a folder in any nesting, or a ZIP archive.

Files are known by their content. A series becomes one volume, or several where it holds several: slices of other sizes
or orientations are volumes of their own, and where slices lie at one position, the header's entries tell which of them
belong together (echo, part of a complex image, diffusion weighting, time point, …), in this order. Where nothing tells
them apart, the series is left out, as is one whose slices are on no grid with right angles.
"""

import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pydicom

from braintum.conversion.dicom.frames import Frame, Place, frames_of, read_dataset, readable
from braintum.conversion.dicom.series import Grid, SeriesFiles, position_along_normal, sorted_along_normal
from braintum.conversion.files.file_checks import MAX_BYTES
from braintum.conversion.files.folders import DICOM_ENDINGS, IMAGE_ENDINGS, is_dicom_start, walk
from braintum.conversion.files.volumes import DIRECTION_TOLERANCE, VolumeError

SEGMENTATION = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
STRUCTURE_SET = "1.2.840.10008.5.1.4.1.1.481.3"
"""SOP classes of masks: segmentations (BINARY or FRACTIONAL, and LABELMAP), and contours."""

_TELLING = (
    *("EchoTime", "ImageType", "DiffusionBValue", "InversionTime", "FlipAngle", "TemporalPositionIdentifier"),
    *("TriggerTime", "AcquisitionNumber", "ContrastBolusAgent", "AcquisitionDateTime", "AcquisitionTime"),
)
"""Keywords whose values tell slices at one position apart."""
_SAME_POSITION_MM = 1e-3


@dataclass(frozen=True, eq=False)
class MaskFile:
    """A DICOM object with segments or contours.

    Attributes:
        file: that holds it.
        facts: its header's values by DICOM keyword.
    """

    file: Place
    facts: dict[str, Any]

    @property
    def title(self) -> str:
        """What a person calls it."""
        return str(self.facts.get("SeriesDescription") or self.facts.get("SeriesInstanceUID", ""))

    @property
    def names(self) -> tuple[str, ...]:
        """What a pattern may match."""
        return (self.title,)

    @property
    def files(self) -> list[Place]:
        """The file."""
        return [self.file]

    def read(self) -> NoReturn:
        """Raises `VolumeError`: it is no image."""
        raise VolumeError(f"{self.file}: a DICOM segmentation or structure set, no image: name it with --mask")


@dataclass
class FoundSeries:
    """What :func:`find_series` found.

    Attributes:
        series: readable volumes, sorted by patient, study, number and description.
        masks: segmentations and structure sets.
        faulty: series that are left out, whose `fault` says why.
        left_out: file, folder or series -> why it is not among them.
        copies: file that was passed over -> the same file under another name.
    """

    series: list[SeriesFiles] = field(default_factory=list)
    masks: list[MaskFile] = field(default_factory=list)
    faulty: list[SeriesFiles] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)


def find_series(source: Path, directly: bool = False) -> FoundSeries:
    """Finds the series in a folder or ZIP archive; only headers are read.

    Args:
        source: folder, ZIP archive, or a single DICOM file.
        directly: look at the files directly in the folder only.

    Raises:
        FileNotFoundError: there is no such file or folder.
        VolumeError: it is no readable archive.
    """
    found = FoundSeries()
    frames: dict[str, list[Frame]] = defaultdict(list)
    for file in _files(Path(source), directly):
        try:
            if file.name.upper() == "DICOMDIR":  # the list of files on a medium, which may be stale
                continue
            if not _is_dicom(file):
                if file.name.lower().endswith(IMAGE_ENDINGS):
                    found.left_out[str(file)] = "no DICOM file, although its name is that of an image"
                continue
            header = read_dataset(file, with_pixels=False)
            with readable(file):
                _take(file, header, frames, found)
        except VolumeError as error:
            found.left_out[str(file)] = str(error).removeprefix(f"{file}: ")
    for of_series in frames.values():
        _add_volumes(of_series, found)
    found.series.sort(key=_order)
    return found


def _order(series: SeriesFiles) -> tuple[Any, ...]:
    study = map(series.text, ("PatientID", "StudyDate", "StudyInstanceUID"))
    number = series.facts.get("SeriesNumber")
    return *study, number if isinstance(number, float) else 0.0, series.title


def _files(source: Path, directly: bool) -> Iterator[Place]:
    if source.is_dir():
        for path in walk(source):
            # a broken link too, for reading it to fail and to say so
            if (path.is_file() or path.is_symlink() and not path.is_dir()) and (not directly or path.parent == source):
                yield path
        return
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if not zipfile.is_zipfile(source):
        yield source
        return
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile as error:
        raise VolumeError(f"{source}: a damaged ZIP archive ({error}); export it again") from error
    for entry in sorted(archive.infolist(), key=lambda entry: entry.filename):
        if entry.flag_bits & 1:
            raise VolumeError(f"{source}: packed with a password; unpack it, and give the folder")
        if entry.file_size > MAX_BYTES:
            raise VolumeError(f"{source}: {entry.filename} declares {entry.file_size / 2**30:.0f} GiB")
        is_hidden = any(part.startswith((".", "__MACOSX")) for part in entry.filename.split("/"))
        if not entry.is_dir() and not is_hidden:
            yield zipfile.Path(archive, entry.filename)


def _is_dicom(file: Place) -> bool:
    with readable(file), file.open("rb") as stream:
        return is_dicom_start(stream.read(132)) or file.name.lower().endswith(DICOM_ENDINGS)


def _take(file: Place, header: pydicom.Dataset, frames: dict[str, list[Frame]], found: FoundSeries) -> None:
    """Puts a file where it belongs."""
    kind = header.SOPClassUID
    listed = frames_of(file, header)
    if kind in (*SEGMENTATION, STRUCTURE_SET):
        found.masks.append(MaskFile(file, dict(listed[0].facts)))
        return
    if "Rows" not in header:
        found.left_out[str(file)] = f"no image ({kind.name})"
        return
    needed = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    if missing := [name for name in needed if any(name not in frame.facts for frame in listed)]:
        found.left_out[str(file)] = (
            f"no {' and no '.join(missing)} in the header: not a slice of a volume as it was taken ({kind.name}); "
            "export original images"
        )
    elif header.get("SamplesPerPixel", 1) != 1:
        found.left_out[str(file)] = "a coloured picture"
    else:
        frames[listed[0].facts.get("SeriesInstanceUID", "")] += listed


def _add_volumes(frames: Sequence[Frame], found: FoundSeries) -> None:
    """Sorts the frames of a series into volumes."""
    title = SeriesFiles(tuple(frames[:1])).title
    where = f"{str(frames[0].file.parent).rstrip('/')} ({title})"
    try:
        with readable(frames[0].file):
            different = _without_copies(frames, found)
            parts = [part for group in _alike(different) for part in _volumes(group)]
    except VolumeError as error:
        _leave_out(SeriesFiles(tuple(frames)), where, error, found)
        return
    for number, part in enumerate(parts, start=1):
        volume = part if len({one.part for one in parts}) == len(parts) else replace(part, part=_shape(part, number))
        try:
            with readable(part.frames[0].file):
                Grid.of(volume)
        except VolumeError as error:
            _leave_out(volume, f"{where}{f' {volume.part}' if volume.part else ''}", error, found)
        else:
            found.series.append(volume)


def _leave_out(series: SeriesFiles, where: str, error: VolumeError, found: FoundSeries) -> None:
    found.left_out[where] = str(error)
    found.faulty.append(replace(series, fault=f"{where}: {error}"))


def _shape(series: SeriesFiles, number: int) -> str:
    """A name for one of the volumes of a series that have different shapes."""
    size = "{Columns:.0f}×{Rows:.0f}".format(**series.facts)
    return ", ".join(filter(None, (series.part, f"volume {number}: {len(series.frames)} slices of {size}")))


def _without_copies(frames: Sequence[Frame], found: FoundSeries) -> list[Frame]:
    """Leaves out copies of a file; raises `VolumeError` where two differ but claim to be the same object."""
    kept: dict[tuple[str, int], Frame] = {}
    for frame in frames:
        first = kept.setdefault((str(frame.facts.get("SOPInstanceUID", frame.file)), frame.number), frame)
        if first is frame or frame.number > 1:
            continue
        with first.file.open("rb") as one, frame.file.open("rb") as other:
            if one.read() != other.read():
                raise VolumeError(
                    f"{first.file} and {frame.file} differ, but have one SOPInstanceUID; export the series again"
                )
        found.copies[str(frame.file)] = str(first.file)
    return list(kept.values())


def _alike(frames: Sequence[Frame]) -> list[list[Frame]]:
    """Groups frames of one size, pixel spacing and orientation."""
    groups: list[list[Frame]] = []
    for frame in frames:
        for group in groups:
            first = group[0]
            same = all(
                frame.facts.get(name) == first.facts.get(name) for name in ("Rows", "Columns", "FrameOfReferenceUID")
            )
            if same and all(
                np.allclose(frame.facts[name], first.facts[name], rtol=0, atol=DIRECTION_TOLERANCE)
                for name in ("PixelSpacing", "ImageOrientationPatient")
            ):
                group.append(frame)
                break
        else:
            groups.append([frame])
    return groups


def _volumes(frames: Sequence[Frame], part: str = "") -> list[SeriesFiles]:
    """Divides frames until no two of a volume lie at one position.

    Raises:
        VolumeError: nothing tells those at one position apart.
    """
    most = _most_at_one_position(frames)
    if most == 1:
        return [SeriesFiles(sorted_along_normal(frames), part)]
    tried = []
    for name in _TELLING:
        groups: dict[Any, list[Frame]] = defaultdict(list)
        for frame in frames:
            groups[frame.facts.get(name)].append(frame)
        if len(groups) > 1:
            tried.append(f"{name}: {', '.join(f'{_shown(value)} ×{len(group)}' for value, group in groups.items())}")
        if 1 < len(groups) <= most and max(map(_most_at_one_position, groups.values())) < most:
            return [
                volume
                for value, group in groups.items()
                for volume in _volumes(group, f"{part}, " * bool(part) + f"{name} {_shown(value)}")
            ]
    found = "; ".join(tried[:4]) or "all of their headers are alike"
    raise VolumeError(
        f"up to {most} slices at one position (time points, echoes, or copies), and nothing tells which belong "
        f"together ({found[:400]}); export one volume a series"
    )


def _most_at_one_position(frames: Sequence[Frame]) -> int:
    positions = sorted(position_along_normal(frame) for frame in frames)
    numbers = Counter(np.cumsum([0, *(np.diff(positions) > _SAME_POSITION_MM)]).tolist())
    return max(numbers.values())


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "/".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
