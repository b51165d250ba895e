"""Volumes in the layouts of TCGA-LGG, BraTS and a hospital's folders, small and with a geometry that is not trivial."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image

SIZE = (12, 10, 8)
SPACING = (0.9, 1.1, 2.5)
ORIGIN = (-31.5, 40.25, -7.0)
ANGLE = np.deg2rad(12)
DIRECTION = tuple(
    np.array([[-np.cos(ANGLE), np.sin(ANGLE), 0], [-np.sin(ANGLE), -np.cos(ANGLE), 0], [0, 0, 1]]).ravel().tolist()
)
"""Oblique, x to the right and y to the front (RAS), as most NIfTI files have it."""
BRATS_OLD = ("t1", "t1ce", "t2", "flair")
BRATS_NEW = ("t1n", "t1c", "t2w", "t2f")

LGG_COLUMNS = "Patient,RNASeqCluster,histological_type,neoplasm_histologic_grade,death01"


def volume_array(seed: int, size: Sequence[int] = SIZE) -> np.ndarray:
    """Returns int16 noise of shape (Z, Y, X); first and last slice are empty, one voxel has the largest value."""
    x, y, z = size
    array = np.random.default_rng(seed).integers(1, 900, (z, y, x)).astype(np.int16)
    array[[0, -1]] = 0
    array[1, 0, 0] = np.iinfo(np.int16).max
    return array


def mask_array(values: Sequence[int] = (1, 2, 4), size: Sequence[int] = SIZE) -> np.ndarray:
    """Returns a mask of shape (Z, Y, X) with blocks of the values in slices 3 and 4, none of them symmetrical."""
    x, y, z = size
    mask = np.zeros((z, y, x), np.uint8)
    for number, value in enumerate(values):
        mask[3:5, 1 + number, 2 : 5 + number] = value
    return mask


def as_image(array: np.ndarray, **geometry: Sequence[float]) -> sitk.Image:
    """Makes an image with this module's geometry, or that of `spacing`, `origin`, `direction`."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(geometry.get("spacing", SPACING))
    image.SetOrigin(geometry.get("origin", ORIGIN))
    image.SetDirection(geometry.get("direction", DIRECTION))
    return image


def write_volume_file(path: Path, array: np.ndarray, **geometry: Sequence[float]) -> Path:
    """Writes an array as a volume in the format of the file's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(as_image(array, **geometry), str(path))
    return path


def write_brats_case(
    folder: Path, name: str, mask: np.ndarray | None = None, ending: str = ".nii.gz", seed: int = 0
) -> Path:
    """Writes one BraTS case in the naming that its name belongs to; returns its folder."""
    new = name.startswith("BraTS-")
    separator = "-" if new else "_"
    for number, sequence in enumerate(BRATS_NEW if new else BRATS_OLD):
        write_volume_file(
            folder / name / f"{name}{separator}{sequence}{ending}", volume_array(100 * seed + number + len(name))
        )
    if mask is not None:
        write_volume_file(folder / name / f"{name}{separator}seg{ending}", mask)
    return folder / name


def write_lgg_patient(
    folder: Path, name: str, n_slices: int = 11, copies: Sequence[int] = (), size: int = 16, seed: int = 0
) -> Path:
    """Writes one patient of kaggle_3m; channels in `copies` (0, 2) are FLAIR; slices 5 and 6 of 1… show tumour."""
    target = folder / name
    target.mkdir(parents=True)
    for number in range(1, n_slices + 1):
        pixels = np.random.default_rng(1000 * seed + number).integers(0, 200, (size, size, 3)).astype(np.uint8)
        pixels[0, 0] = number  # tells the slices apart
        for channel in copies:
            pixels[..., channel] = pixels[..., 1]
        mask = np.zeros((size, size), np.uint8)
        if number in (5, 6):
            mask[2:4, 7:12] = 255
        Image.fromarray(pixels).save(target / f"{name}_{number}.tif")
        Image.fromarray(mask).save(target / f"{name}_{number}_mask.tif")
    return target


def write_lgg_source(folder: Path, rows: Mapping[str, tuple[str, str]]) -> Path:
    """Writes patients (name with date -> histology and grade code) and `data.csv`, whose names lack the date."""
    lines = [LGG_COLUMNS]
    for seed, (name, (histology, grade)) in enumerate(rows.items()):
        write_lgg_patient(folder / "kaggle_3m", name, seed=seed)
        lines.append(f"{name.rpartition('_')[0]},2,{histology},{grade},1")
    (folder / "kaggle_3m" / "data.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_dicom_series(
    folder: Path,
    array: np.ndarray,
    series: str = "1",
    offsets: Sequence[float] | None = None,
    prefix: str = "",
    headers: Mapping[str, str] | None = None,
) -> Path:
    """Writes a DICOM series of slices with this module's geometry, file names not in the order of positions.

    Args:
        folder: is made.
        array: int16, shape (Z, Y, X).
        series: last part of the series' identifier.
        offsets: position of each slice along the normal in mm; None: evenly spaced.
        prefix: of the file names.
        headers: further tags, and what they hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    axes = np.array(DIRECTION).reshape(3, 3)
    count = len(array)
    for number, pixels in enumerate(array):
        offset = number * SPACING[2] if offsets is None else offsets[number]
        position = np.array(ORIGIN) + axes[:, 2] * offset
        image = sitk.GetImageFromArray(pixels.astype(np.int16))
        image.SetSpacing(SPACING[:2])
        tags = {
            "0008|0060": "MR",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.4",
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.{series}.{number + 1}",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.9",
            "0020|000e": f"1.2.826.0.1.3680043.2.1125.{series}",
            "0020|0013": str(number + 1),
            "0020|0032": "\\".join(f"{value:.6f}" for value in position),
            "0020|0037": "\\".join(f"{value:.8f}" for value in (*axes[:, 0], *axes[:, 1])),
        }
        for tag, value in {**tags, **(headers or {})}.items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.SetFileName(str(folder / f"{prefix}{(7 * number) % count:04d}_{number}.dcm"))
        writer.Execute(image)
    return folder


def verify(folder: Path) -> None:
    """nnU-Net's own check of a data set in its raw format; raises where something is wrong."""
    # imported here: it takes seconds, and only the tests on real data need it
    from nnunet_runs import threads_for_processes
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity

    with threads_for_processes():
        verify_dataset_integrity(str(folder), num_processes=1)
