"""Image files with a fault: same format, type and geometry as the originals, whose names they carry with a suffix."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from braintum.conversion.files.atomic import atomic_path
from braintum.evaluation.stress.corruptions import corrupt

CLEAN = "clean"
"""Stands for images as they are."""
NATURAL_ENDINGS = (".png", ".bmp", ".tif")
ITK_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha")


@dataclass(frozen=True)
class Condition:
    """A fault and its severity; :data:`CLEAN` with severity 0 is the image itself."""

    corruption: str
    severity: int

    def case_name(self, case: str) -> str:
        """Name of a case under this condition."""
        return f"{case}__{self.corruption}_{self.severity}"


@dataclass(frozen=True)
class ImageTask:
    """One case under one condition.

    Attributes:
        case: its name.
        files: one a sequence.
        condition: what to do to it.
        target: folder to write to.
        ending: of the files.
        keep_background: see :func:`braintum.evaluation.stress.corruptions.corrupt`.
    """

    case: str
    files: tuple[Path, ...]
    condition: Condition
    target: Path
    ending: str
    keep_background: bool = False


def write_images(task: ImageTask) -> None:
    """Write the files of a case under a condition.

    Raises:
        ValueError: files that cannot be read, or do not match.
    """
    name = task.condition.case_name(task.case)
    targets = [task.target / f"{name}_{channel:04d}{task.ending}" for channel in range(len(task.files))]
    if task.condition.corruption == CLEAN:
        for source, target in zip(task.files, targets, strict=True):
            shutil.copyfile(source, target)
        return
    read = [_read(file, task.ending) for file in task.files]
    arrays = [array for array, _, _ in read]
    shapes = {(array.shape[1:], spacing) for array, spacing, _ in read}
    if len(shapes) > 1:
        raise ValueError(f"{task.case}: its sequences differ in size or spacing; put them on one grid")
    spacing = read[0][1]
    types = {array.dtype for array in arrays}
    stacked = np.concatenate(arrays if len(types) == 1 else [array.astype(np.float32) for array in arrays])
    faulty = corrupt(
        stacked, spacing, task.condition.corruption, task.condition.severity, task.case, task.keep_background
    )
    start = 0
    for (array, _, original), target in zip(read, targets, strict=True):
        part = faulty[start : start + len(array)]
        start += len(array)
        if part.dtype != array.dtype:
            part = _rounded(part, array.dtype)
        _write(part, original, target)


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if np.issubdtype(dtype, np.integer):
        values = np.clip(np.rint(values), np.iinfo(dtype).min, np.iinfo(dtype).max)
    return values.astype(dtype)


def _read(file: Path, ending: str) -> tuple[np.ndarray, tuple[float, ...], Any]:
    """Array (C, [Z,] Y, X), spacing of its spatial axes, and what :func:`_write` needs to know of the original."""
    if ending in ITK_ENDINGS:
        import SimpleITK

        try:
            image = SimpleITK.ReadImage(str(file))
        except RuntimeError as error:
            raise ValueError(f"{file}: not a readable image; repair or remove it") from error
        return SimpleITK.GetArrayFromImage(image)[None], tuple(reversed(image.GetSpacing())), image
    if ending in NATURAL_ENDINGS:
        from skimage import io

        try:
            array = io.imread(file)
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{file}: not a readable image; repair or remove it") from error
        if array.ndim == 3 and array.shape[-1] in (3, 4):
            return array.transpose(2, 0, 1), (1.0, 1.0), True
        if array.ndim == 2:
            return array[None], (1.0, 1.0), False
        raise ValueError(f"{file}: is no slice (shape {array.shape}); the stress test reads volumes as {ITK_ENDINGS}")
    raise ValueError(f"the stress test reads {', '.join(ITK_ENDINGS + NATURAL_ENDINGS)}, not *{ending} ({file})")


def _write(array: np.ndarray, original: Any, target: Path) -> None:
    with atomic_path(target) as temporary:
        if isinstance(original, bool):  # whether it has colours
            from skimage import io

            io.imsave(temporary, array.transpose(1, 2, 0) if original else array[0], check_contrast=False)
        else:
            import SimpleITK

            image = SimpleITK.GetImageFromArray(array[0])
            image.CopyInformation(original)
            SimpleITK.WriteImage(image, str(temporary), useCompression=True)
