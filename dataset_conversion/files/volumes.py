"""Reading, checking and writing of volumes: NIfTI, NRRD, MetaImage and DICOM series.

Everything here keeps the geometry: spacing, origin and direction of a written volume are those of the read one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from braintum.commands.errors import InputError
from braintum.conversion.files.atomic import atomic_path
from braintum.conversion.files.file_checks import DamagedFileError, check_file, check_name

VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
DICOM_ENDINGS = (".dcm", ".ima")

SPACING_TOLERANCE_MM = 0.001
ORIGIN_TOLERANCE_MM = 0.01
DIRECTION_TOLERANCE = 0.001
"""Of direction cosines. Volumes on one grid differ by less, through the rounding of their file formats."""
SLICE_DISTANCE_TOLERANCE = 0.02
"""Of the median distance between the slices of a DICOM series: positions are rounded to text in the files."""

MIN_SPACING_MM = 0.01
"""Finer than any scanner of heads: the header's unit is not mm."""

_POSITION, _ORIENTATION = "0020|0032", "0020|0037"
"""DICOM tags: image position and image orientation (patient)."""
_NAMES = ("0008|103e", "0018|1030", "0018|0024")
"""SeriesDescription, ProtocolName, SequenceName."""
_STUDY = ("0010|0020", "0020|000d", "0008|0020")
"""PatientID, StudyInstanceUID, StudyDate."""
_DESCRIPTIONS = (*_NAMES, *_STUDY)


_SHEARED = (
    "its axes are not at right angles (sheared, or singular): write it on a grid with right angles, by resampling with "
    "FSL's flirt or ANTs, for instance, or export it again without shear (from the registration or gantry tilt)"
)
_NO_IMAGES = {
    b"1.2.840.10008.5.1.4.1.1.66.4": "a DICOM segmentation object (SEG), whose frames are segments and not slices",
    b"1.2.840.10008.5.1.4.1.1.481.3": "a DICOM structure set (RTSTRUCT), contours and no image",
}
"""SOP classes that stand in the first bytes of a file."""


class VolumeError(InputError):
    """A volume cannot be used.

    Attributes:
        problems: all that was found, each naming file, fault and remedy.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class DicomSeries:
    """A DICOM series, alone or with others in its folder.

    Attributes:
        folder: with its files.
        uid: SeriesInstanceUID.
        names: SeriesDescription, ProtocolName and SequenceName, as far as they are there.
        patient: PatientID.
        study: StudyInstanceUID.
        date: StudyDate.
    """

    folder: Path
    uid: str
    names: tuple[str, ...] = ()
    patient: str = ""
    study: str = ""
    date: str = ""

    @property
    def title(self) -> str:
        """What a person calls it."""
        return self.names[0] if self.names else self.uid

    def __str__(self) -> str:
        return f"{self.folder} ({self.title})"


Volume = Path | DicomSeries
"""A file, the folder of the only DICOM series in it, or a series."""


def is_volume_file(path: Path) -> bool:
    """Tells by its name whether a file is a volume; hidden files (`._x.nii.gz` of macOS) are not."""
    return not path.name.startswith(".") and path.name.lower().endswith(VOLUME_ENDINGS)


def dicom_files(folder: Path) -> list[Path]:
    """Returns the DICOM files directly in a folder, sorted: by their ending, or by the mark within them."""
    return [path for path in sorted(folder.iterdir()) if path.is_file() and _is_dicom(path)]


def _is_dicom(path: Path) -> bool:
    if path.name.startswith(".") or path.name == "DICOMDIR" or is_volume_file(path):
        return False
    if path.name.lower().endswith(DICOM_ENDINGS):
        return True
    with open(path, "rb") as file:
        file.seek(128)
        return file.read(4) == b"DICM"


def dicom_series(folder: Path) -> list[DicomSeries]:
    """Returns the DICOM series directly in a folder, by their descriptions; none where the path is not valid text."""
    try:
        check_name(folder)
    except DamagedFileError:
        return []  # of which reading will tell
    found = []
    for uid in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
        reader = sitk.ImageFileReader()
        reader.SetFileName(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)[0])
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            continue
        tags = {tag: reader.GetMetaData(tag).strip() for tag in reader.GetMetaDataKeys() if tag in _DESCRIPTIONS}
        names = tuple(tags[tag] for tag in _NAMES if tags.get(tag))
        found.append(DicomSeries(folder, uid, names, *(tags.get(tag, "") for tag in _STUDY)))
    return sorted(found, key=lambda series: (series.title, series.uid))


def files_of(volume: Volume) -> list[Path]:
    """Returns the files that a volume consists of: the file itself, or those of a DICOM series."""
    if isinstance(volume, DicomSeries):
        names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(volume.folder), volume.uid)
        return [Path(name) for name in names]
    return dicom_files(volume) if volume.is_dir() else [volume]


def read_volume(path: Volume) -> sitk.Image:
    """Reads one volume.

    Args:
        path: a file, the folder of a DICOM series, or a series.

    Returns:
        A 3-D image with one finite value a voxel. (In NIfTI files ITK, and thus nnU-Net, reads NaN and infinity as 0.)

    Raises:
        VolumeError: it cannot be read, is not such an image, or is a DICOM series with gaps or more than one series.
    """
    if isinstance(path, DicomSeries):
        names = _series_files(path.folder, path.uid)
    else:
        names = _series_files(path) if path.is_dir() and not is_volume_file(path) else [str(path)]
    try:
        for name in names:
            check_file(name)
    except DamagedFileError as error:
        raise VolumeError(f"{error}; copy or export it again") from error
    _check_is_image(names[0])
    try:
        image = sitk.ReadImage(names[0]) if len(names) == 1 else sitk.ReadImage(names)
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


def _series_files(folder: Path, uid: str = "") -> list[str]:
    """Returns the files of a DICOM series in a folder, in the order of their positions.

    Args:
        folder: to look in.
        uid: of the series; empty: of the only one.

    Raises:
        VolumeError: there is no such series, there are several to choose from, or its slices are not parallel and
            evenly spaced.
    """
    try:
        check_name(folder)
    except DamagedFileError as error:
        raise VolumeError(str(error)) from error
    files = dicom_files(folder)
    for file in files:
        _check_is_image(file)
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)) if files else ()
    if not series or uid not in ("", *series):
        raise VolumeError(f"{folder}: no readable DICOM series; export it again")
    if len(series) > 1 and not uid:
        raise VolumeError(
            f"{folder}: holds {len(series)} DICOM series mixed with each other; put each into a folder of its own, or "
            "choose one by a pattern of its SeriesDescription"
        )
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid or series[0])
    if len(names) != len(files) and len(series) == 1:
        raise VolumeError(
            f"{folder}: {len(files) - len(names)} of {len(files)} DICOM files do not belong to the series or are "
            "damaged; remove them, or export the series again"
        )
    if len(names) > 1:
        _check_slices(folder, names)
    return list(names)


def _check_is_image(file: str | Path) -> None:
    """Refuses DICOM objects that no reader of images reads as they are meant."""
    with open(file, "rb") as stream:
        start = stream.read(2048)
    if start[128:132] != b"DICM":
        return
    for identifier, what in _NO_IMAGES.items():
        if identifier in start:
            raise VolumeError(
                f"{file}: {what}; write it as a label map (NIfTI) on the image's grid first, with 3D Slicer or dcmqi's "
                "segimage2itkimage, for instance"
            )


def _check_slices(folder: Path, names: Sequence[str]) -> None:
    positions, orientations, sizes = [], [], set()
    for name in names:
        reader = sitk.ImageFileReader()
        reader.SetFileName(name)
        try:
            reader.ReadImageInformation()
            positions.append(_numbers(reader.GetMetaData(_POSITION), 3))
            orientations.append(_numbers(reader.GetMetaData(_ORIENTATION), 6))
        except (RuntimeError, ValueError) as error:
            raise VolumeError(
                f"{name}: no position or orientation in the DICOM header; export the series again, as original images"
            ) from error
        sizes.add(reader.GetSize()[:2])
    if len(sizes) > 1:
        shown = ", ".join(f"{x}×{y}" for x, y in sorted(sizes))
        raise VolumeError(f"{folder}: slices of different sizes ({shown}); export one series a folder")
    if np.ptp(orientations, axis=0).max() > DIRECTION_TOLERANCE:
        raise VolumeError(
            f"{folder}: slices of different orientations (a localiser, or several series); export one series a folder"
        )
    normal = np.cross(orientations[0][:3], orientations[0][3:])
    along = np.sort(np.asarray(positions) @ normal)
    distances = np.diff(along)
    usual = float(np.median(distances))
    if (distances <= max(usual, 1.0) * 1e-3).any():
        raise VolumeError(
            f"{folder}: several slices at one position (time points, echoes, or copies); export one volume a folder"
        )
    if np.abs(distances - usual).max() > SLICE_DISTANCE_TOLERANCE * usual:
        raise VolumeError(
            f"{folder}: distances between slices are not the same ({distances.min():.3g} to {distances.max():.3g} mm, "
            f"mostly {usual:.3g} mm): slices are missing or belong to another series; export the series again"
        )


def _numbers(text: str, count: int) -> list[float]:
    values = [float(value) for value in text.split("\\")]
    if len(values) != count:
        raise ValueError(f"{len(values)} numbers instead of {count}")
    return values


def check_images(files: Sequence[str]) -> None:
    """Checks the channels of a case before they are read: the files, and that all lie on one grid.

    Args:
        files: one a channel, of any format.

    Raises:
        DamagedFileError: see :func:`braintum.conversion.files.file_checks.check_file`.
        VolumeError: their grids differ, or are none: nnU-Net would only warn of that.
    """
    headers: dict[Volume, sitk.ImageFileReader] = {}
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


def _check_grid(path: Volume, image: sitk.Image | sitk.ImageFileReader) -> None:
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


def geometry_problems(volumes: Mapping[Volume, sitk.Image | sitk.ImageFileReader]) -> list[str]:
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
                f"{path}: not on the grid of {first}: {'; '.join(differences)}. Resample them onto one grid with "
                "--resample-to CHANNEL of braintum_convert folder, or of braintum_predict "
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


def whole_numbers(image: sitk.Image, path: Volume) -> np.ndarray:
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


def read_volumes(paths: Iterable[Volume]) -> tuple[dict[Volume, sitk.Image], list[str]]:
    """Reads volumes; returns those that can be read, and what is wrong with the others."""
    volumes: dict[Volume, sitk.Image] = {}
    problems: list[str] = []
    for path in paths:
        try:
            volumes[path] = read_volume(path)
        except VolumeError as error:
            problems += error.problems
    return volumes, problems


def read_case(
    channels: Sequence[Volume], mask: Volume | None, map_labels: Callable[[np.ndarray, Volume], np.ndarray]
) -> tuple[tuple[sitk.Image, ...], np.ndarray | None]:
    """Reads and checks the volumes of a case, which have to lie on one grid.

    Args:
        channels: file, DICOM folder or DICOM series of each.
        mask: likewise; None where there is none.
        map_labels: makes the mask's whole numbers, shape (Z, Y, X), the labels of the data set; gets the path too, for
            its errors, which are `VolumeError`.

    Returns:
        The channels, and the labels; None without a mask.

    Raises:
        VolumeError: with the problems of all of them.
    """
    volumes, problems = read_volumes([*channels, *([mask] if mask else [])])
    problems += geometry_problems(volumes) if len(volumes) > 1 else []
    labels = None
    if mask is not None and mask in volumes:
        try:
            labels = map_labels(whole_numbers(volumes[mask], mask), mask)
        except VolumeError as error:
            problems += error.problems
    if problems:
        raise VolumeError(*problems)
    return tuple(volumes[path] for path in channels), labels


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


def _unreadable(path: str | Volume, error: RuntimeError) -> str:
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
