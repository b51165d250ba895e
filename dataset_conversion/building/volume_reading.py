"""Reading of the volumes of a case, whatever they are: files of volumes, DICOM series, and DICOM masks."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeGuard, Union

import numpy as np
import SimpleITK as sitk

from braintum.conversion.files.file_checks import DamagedFileError, check_name
from braintum.conversion.files.folders import DICOM_ENDINGS, has_dicom_beginning
from braintum.conversion.files.volumes import (
    VolumeError,
    geometry_problems,
    image_like,
    is_volume_file,
    read_volume,
    whole_numbers,
)

if TYPE_CHECKING:  # needs pydicom, which is not always there
    from braintum.conversion.dicom.series import SeriesFiles
    from braintum.conversion.dicom.study import FoundSeries, MaskFile

DicomVolume: TypeAlias = Union["SeriesFiles", "MaskFile"]
Volume: TypeAlias = Union[Path, "SeriesFiles", "MaskFile"]
"""A file, the folder of the only DICOM series or mask in it, a series, or a DICOM mask."""


def dicom_files(folder: Path) -> list[Path]:
    """Returns the DICOM files directly in a folder, sorted: by their ending, or by the mark within them."""
    return [path for path in sorted(folder.iterdir()) if path.is_file() and _is_dicom(path)]


def _is_dicom(path: Path) -> bool:
    if path.name.startswith(".") or path.name == "DICOMDIR" or is_volume_file(path):
        return False
    return path.name.lower().endswith(DICOM_ENDINGS) or has_dicom_beginning(path)


def dicom_series(folder: Path) -> list[DicomVolume]:
    """Returns the DICOM series and masks directly in a folder, those too that reading will refuse."""
    try:
        found = _find(folder)
    except VolumeError:
        return []  # of which reading will tell
    return [*found.series, *found.masks, *found.faulty]


def _find(folder: Path) -> "FoundSeries":
    from braintum.conversion.dicom.study import find_series

    try:
        check_name(folder)
    except DamagedFileError as error:
        raise VolumeError(str(error)) from error
    return find_series(folder, directly=True)


def files_of(volume: Volume) -> list[Path]:
    """Returns the files that a volume consists of: the file itself, or those of a DICOM series."""
    if not isinstance(volume, Path):
        return [Path(str(file)) for file in volume.files]
    return dicom_files(volume) if volume.is_dir() else [volume]


def _opened(volume: Volume) -> Volume:
    """The only series, or mask, of a folder; anything else as it is."""
    if not isinstance(volume, Path) or is_volume_file(volume) or not (volume.is_dir() or _is_dicom(volume)):
        return volume
    found = _find(volume)
    volumes: list[DicomVolume] = [*found.series, *found.masks]
    if len({one.facts.get("SeriesInstanceUID") for one in volumes}) > 1:
        raise VolumeError(
            f"{volume}: holds {len(volumes)} DICOM series mixed with each other ({_listed(volumes)}); put each into a "
            "folder of its own, or choose one by a pattern of its SeriesDescription"
        )
    found.left_out |= {file: f"a copy of {first}; remove one" for file, first in found.copies.items()}
    if found.left_out:
        raise VolumeError(
            f"{volume}: not one readable DICOM series: "
            + "; ".join(f"{name}: {fault}" for name, fault in list(found.left_out.items())[:3])
        )
    if not volumes:
        raise VolumeError(f"{volume}: no readable DICOM series; export it again")
    if len(volumes) > 1:
        raise VolumeError(
            f"{volume}: its DICOM series holds {len(volumes)} volumes ({_listed(volumes)}); choose one by a pattern, "
            "such as '*EchoTime 80', or export one a series"
        )
    return volumes[0]


def _listed(volumes: Sequence[DicomVolume]) -> str:
    return ", ".join(volume.title for volume in volumes)


def read_any(volume: Volume) -> sitk.Image:
    """Reads one volume of any kind.

    Raises:
        VolumeError: see :func:`braintum.conversion.files.volumes.read_volume`; or it is a DICOM series with gaps,
            several series, or a mask.
    """
    opened = _opened(volume)
    if isinstance(opened, Path):
        return read_volume(opened)
    return opened.read().image


def _is_mask(volume: Volume) -> TypeGuard["MaskFile"]:
    return hasattr(volume, "file")


def read_volumes(channels: Sequence[Volume], mask: Volume | None) -> tuple[dict[Volume, sitk.Image], list[str]]:
    """Reads the volumes of a case, a DICOM mask on the grid of the channel that it was drawn on.

    Returns:
        Those that can be read, and what is wrong with the others.
    """
    volumes: dict[Volume, sitk.Image] = {}
    problems: list[str] = []
    for volume in channels:
        try:
            volumes[volume] = read_any(volume)
        except VolumeError as error:
            problems += error.problems
    if mask is not None:
        try:
            opened = _opened(mask)
            if not isinstance(opened, Path) and _is_mask(opened):
                volumes[mask] = _on_its_grid(opened, list(volumes.values()))
            else:
                volumes[mask] = read_any(opened)
        except VolumeError as error:
            problems += error.problems
    return volumes, problems


def _on_its_grid(mask: "MaskFile", images: Sequence[sitk.Image]) -> sitk.Image:
    from braintum.conversion.dicom.masks import read_mask

    fault = VolumeError(f"{mask.file}: no image is readable that it may have been drawn on")
    for image in images:
        try:
            return image_like(read_mask(mask, image), image)
        except VolumeError as error:
            fault = error
    raise fault


def read_case(
    channels: Sequence[Volume], mask: Volume | None, map_labels: Callable[[np.ndarray, Volume], np.ndarray]
) -> tuple[tuple[sitk.Image, ...], np.ndarray | None]:
    """Reads and checks the volumes of a case, which have to lie on one grid.

    Args:
        channels: one or more.
        mask: None where there is none.
        map_labels: makes the mask's whole numbers, shape (Z, Y, X), the labels of the data set; gets the path too, for
            its errors, which are `VolumeError`.

    Returns:
        The channels, and the labels; None without a mask.

    Raises:
        VolumeError: with the problems of all of them.
    """
    volumes, problems = read_volumes(channels, mask)
    problems += geometry_problems(volumes) if len(volumes) > 1 else []
    labels = None
    if mask is not None and mask in volumes:
        try:
            labels = map_labels(whole_numbers(volumes[mask], mask), mask)
        except VolumeError as error:
            problems += error.problems
    if problems:
        raise VolumeError(*problems)
    return tuple(volumes[volume] for volume in channels), labels
