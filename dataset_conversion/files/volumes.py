"""Reading, checking and writing of files of volumes: NIfTI, NRRD and MetaImage.

Everything here keeps the geometry: spacing, origin and direction of a written volume are those of the read one.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from braintum.commands.errors import InputError
from braintum.conversion.files.atomic import atomic_path
from braintum.conversion.files.file_checks import DamagedFileError, check_file, check_name
from braintum.conversion.files.folders import DICOM_ENDINGS

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")

SPACING_TOLERANCE_MM = 0.001
ORIGIN_TOLERANCE_MM = 0.01
DIRECTION_TOLERANCE = 0.001
"""Of direction cosines. Volumes on one grid differ by less, through the rounding of their file formats."""
MIN_SPACING_MM = 0.01
"""Finer than any scanner of heads: the header's unit is not mm."""

_SHEARED = (
    "its axes are not at right angles (sheared, or singular): write it on a grid with right angles, by resampling with "
    "FSL's flirt or ANTs, for instance, or export it again without shear (from the registration or gantry tilt)"
)


class VolumeError(InputError):
    """A volume cannot be used.

    Attributes:
        problems: all that was found, each naming file, fault and remedy.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def is_volume_file(path: Path) -> bool:
    """Tells by its name whether a file is a volume; hidden files (`._x.nii.gz` of macOS) are not."""
    return not path.name.startswith(".") and path.name.lower().endswith(VOLUME_ENDINGS)


def read_volume(path: Path) -> sitk.Image:
    """Reads one volume.

    Args:
        path: a file.

    Returns:
        A 3-D image with one finite value a voxel. (In NIfTI files ITK, and thus nnU-Net, reads NaN and infinity as 0.)

    Raises:
        VolumeError: it cannot be read, or is not such an image.
    """
    try:
        check_file(path)
    except DamagedFileError as error:
        raise VolumeError(f"{error}; copy or export it again") from error
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise VolumeError(_unreadable(path, error)) from error
    if image.GetDimension() != 3:
        raise VolumeError(f"{path}: has {image.GetDimension()} dimensions; a volume has 3: export it as one")
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise VolumeError(
            f"{path}: has {image.GetNumberOfComponentsPerPixel()} values a voxel; export each as a volume of its own"
        )
    _check_grid(path, image)
    array = sitk.GetArrayViewFromImage(image)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise VolumeError(f"{path}: holds NaN or infinity; replace these values, for example with 0")
    return image


def check_images(files: Sequence[str]) -> None:
    """Checks the channels of a case before they are read: the files, and that all lie on one grid.

    Args:
        files: one a channel, of any format.

    Raises:
        DamagedFileError: see :func:`braintum.conversion.files.file_checks.check_file`.
        VolumeError: their grids differ, or are none: nnU-Net would only warn of that.
    """
    headers: dict[Path, sitk.ImageFileReader] = {}
    for file in files:
        check_name(Path(file))  # of pictures too: a table of cases could not hold it
        check_file(file)
        if file.lower().endswith((*VOLUME_ENDINGS, *DICOM_ENDINGS)):
            reader = sitk.ImageFileReader()
            reader.SetFileName(file)
            try:
                reader.ReadImageInformation()
            except RuntimeError as error:
                raise VolumeError(_unreadable(file, error)) from error
            _check_grid(Path(file), reader)
            headers[Path(file)] = reader
    if len(headers) > 1 and (problems := geometry_problems(headers)):
        raise VolumeError(*problems)


def first_undamaged(files: Iterable[Path]) -> Path:
    """Returns the first file that passes :func:`check_images`: nnU-Net reads one of a folder to choose its reader.

    Raises:
        ValueError: none does; the message is that of the first.
    """
    fault: Exception | None = None
    for file in files:
        try:
            check_images([str(file)])
        except (DamagedFileError, VolumeError) as error:
            fault = fault or error
        else:
            return file
    raise ValueError(f"{fault}; nor is any other file beside it readable") from fault


def _check_grid(path: object, image: sitk.Image | sitk.ImageFileReader) -> None:
    dimension = image.GetDimension()
    if dimension not in (2, 3):
        raise VolumeError(f"{path}: has {dimension} dimensions; a volume has 3: export each time point as a file")
    axes = np.array(image.GetDirection()).reshape(dimension, dimension)
    if not np.abs(axes.T @ axes - np.eye(dimension)).max() < DIRECTION_TOLERANCE:  # NaN too
        raise VolumeError(f"{path}: {_SHEARED}")
    if not np.isfinite([*image.GetSpacing(), *image.GetOrigin()]).all() or min(image.GetSpacing()) <= 0:
        raise VolumeError(f"{path}: spacing or origin is not finite; export it again")
    if (finest := min(image.GetSpacing())) < MIN_SPACING_MM:
        raise VolumeError(f"{path}: a spacing of {finest:.3g} mm cannot be (metres, not mm?); correct the header")


def geometry_problems(volumes: Mapping[Any, sitk.Image | sitk.ImageFileReader]) -> list[str]:
    """Compares the grids of volumes that belong together.

    Args:
        volumes: file -> volume, or reader that knows its header; all are compared with the first.

    Returns:
        One problem for each volume on another grid; it names both files and the differences.
    """
    (first, reference), *others = volumes.items()
    problems = []
    for path, image in others:
        differences = geometry_differences(reference, image)
        if differences:
            problems.append(
                f"{path}: not on the grid of {first}: {'; '.join(differences)}. Resample one onto the other "
                f"(tolerances: {SPACING_TOLERANCE_MM} mm in spacing, {ORIGIN_TOLERANCE_MM} mm in origin, "
                f"{DIRECTION_TOLERANCE} in direction)"
            )
    return problems


def geometry_differences(one: sitk.Image | sitk.ImageFileReader, other: sitk.Image | sitk.ImageFileReader) -> list[str]:
    """Returns in which respects the grids of two volumes differ by more than the tolerances, with the values."""
    differences = []
    if one.GetDimension() != other.GetDimension():
        return [f"{other.GetDimension()} dimensions instead of {one.GetDimension()}"]
    if one.GetSize() != other.GetSize():
        differences.append(f"size {_by(other.GetSize())} instead of {_by(one.GetSize())}")
    for name, values, expected, tolerance, unit in (
        ("spacing", other.GetSpacing(), one.GetSpacing(), SPACING_TOLERANCE_MM, " mm"),
        ("origin", other.GetOrigin(), one.GetOrigin(), ORIGIN_TOLERANCE_MM, " mm"),
        ("direction", other.GetDirection(), one.GetDirection(), DIRECTION_TOLERANCE, ""),
    ):
        difference = float(np.abs(np.subtract(values, expected)).max())
        if difference > tolerance:
            differences.append(
                f"{name} ({_listed(values)}) instead of ({_listed(expected)}){unit}, difference {difference:.4g}{unit}"
            )
    return differences


def whole_numbers(image: sitk.Image, path: object) -> np.ndarray:
    """Returns the values of a label map as integers, shape (Z, Y, X).

    Raises:
        VolumeError: it holds fractions, as a mask does that was resampled with interpolation.
    """
    array = sitk.GetArrayFromImage(image)
    if array.dtype.kind != "f":
        return array
    rounded = np.rint(array)
    if (array != rounded).any():
        raise VolumeError(
            f"{path}: a mask with fractions ({array.min():.3g} to {array.max():.3g}), as after resampling with "
            "interpolation; resample it with nearest neighbour, or threshold it"
        )
    return rounded.astype(np.int64)


def compact(array: np.ndarray) -> np.ndarray:
    """Returns the same values in a smaller type: uint8 stays, whole numbers become int16 if they fit, else float32."""
    if array.dtype in (np.uint8, np.int16):
        return array
    limits = np.iinfo(np.int16)
    if array.min() >= limits.min and array.max() <= limits.max:
        whole = array.astype(np.int16)
        if array.dtype.kind != "f" or (whole == array).all():
            return whole
    return array.astype(np.float32)


def image_like(array: np.ndarray, reference: sitk.Image) -> sitk.Image:
    """Makes an image of an array of shape (Z, Y, X) with the geometry of another one."""
    image = sitk.GetImageFromArray(array)
    image.CopyInformation(reference)
    return image


def write_image(image: sitk.Image, path: Path) -> None:
    """Writes an image atomically, compressed where the format can be, without what its header says in words.

    DICOM tags and the free texts of NIfTI headers name patients and hospitals.
    """
    nameless = image_like(sitk.GetArrayViewFromImage(image), image)
    with atomic_path(path) as partial:
        sitk.WriteImage(nameless, str(partial), useCompression=True)


def spacing_text(spacing: Sequence[float]) -> str:
    """Returns a spacing as `cases.csv` holds it: in mm, x y [z], separated by blanks."""
    return " ".join(f"{value:.6g}" for value in spacing)


def _unreadable(path: object, error: RuntimeError) -> str:
    if "orthonormal" in str(error):  # ITK does not read such headers at all
        return f"{path}: {_SHEARED}"
    return f"{path}: not readable ({_last_line(error)}); copy or export it again"


def _by(values: Sequence[int]) -> str:
    return "×".join(map(str, values))


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
