"""Reads any image as a small grey one: for the duplicate search and the audit, which need speed and no geometry."""

import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from braintum.commands.errors import InputError
from braintum.conversion.files.file_checks import MAX_PIXELS, DamagedFileError, check_file

PIL_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
SITK_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".dcm")
IMAGE_ENDINGS = PIL_ENDINGS + SITK_ENDINGS

MIN_DECODED = 192
"""JPEG images are decoded at a half, quarter or eighth of their size, as long as neither side gets below this."""


class UnreadableImageError(InputError):
    """An image cannot be read; the message names file and fault."""


@dataclass(frozen=True)
class GreyImage:
    """An image as the duplicate search sees it.

    Attributes:
        pixels: float32, shape (Y, X); possibly decoded at reduced size. Of a volume: its central slice.
        size: the file's own size in pixels: x, y[, z].
        is_constant: all pixels (of a volume: all voxels) have one value.
    """

    pixels: np.ndarray
    size: tuple[int, ...]
    is_constant: bool


def is_image(path: str | os.PathLike[str]) -> bool:
    """Tells by the file's name whether it is an image; hidden files are none."""
    name = Path(path).name
    return name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")


def read_grey(path: str | os.PathLike[str]) -> GreyImage:
    """Reads an image as grey values.

    Colours become luminance, a palette is applied, transparency is ignored. A volume is represented by the central
    slice of its content (what is brighter than the mean) along its coarsest axis, the last one if all are equal.

    Raises:
        UnreadableImageError: the file is no image of a known format, or is corrupt or truncated.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        if path.is_dir() or path.is_symlink():
            raise UnreadableImageError(f"{path}: is no file, but a folder or a broken link")
        raise FileNotFoundError(f"{path}: no such file")
    if path.name.lower().endswith(PIL_ENDINGS):
        return _read_picture(path)
    if path.name.lower().endswith(SITK_ENDINGS):
        return _read_medical(path)
    raise UnreadableImageError(f"{path}: not an image of a known ending ({', '.join(IMAGE_ENDINGS)})")


def _read_picture(path: Path) -> GreyImage:
    if path.stat().st_size == 0:
        raise UnreadableImageError(f"{path}: the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # transparency in palettes, odd metadata
            check_file(path)
            with Image.open(path) as image:
                if max(image.size) > MAX_PIXELS:
                    raise ValueError(f"declares {image.width}×{image.height} pixels")
                size = image.size
                if isinstance(image, ImageFile.ImageFile) and image.format == "JPEG":
                    image.draft("L", (MIN_DECODED, MIN_DECODED))
                if image.mode == "P":
                    image = image.convert("RGB")
                # modes of more than 8 bits (I;16, I, F) would be clipped by convert
                grey = image if image.mode in ("L", "I", "F") or image.mode.startswith("I;16") else image.convert("L")
                pixels = np.asarray(grey, np.float32)
                if not np.isfinite(pixels).all():
                    raise ValueError("holds NaN or infinity")
    except Exception as error:  # Pillow's decoders raise errors of many types for corrupt files
        raise _unreadable(path, error) from error
    return GreyImage(pixels, size, _is_constant(pixels))


def _read_medical(path: Path) -> GreyImage:
    array, size, spacing = _read_array(path)
    array = array.astype(np.float32)
    if array.ndim > len(size):  # a vector a pixel
        array = array.mean(axis=-1)
    if not np.isfinite(array).all():
        raise UnreadableImageError(f"{path}: holds NaN or infinity")
    is_constant = _is_constant(array)
    while array.ndim > 3:
        array = array[0]
    if array.ndim == 3:
        # a single slice; else the coarsest axis, the first of equals in z, y, x: axial
        single = array.shape.index(1) if 1 in array.shape else None
        array = central_slice(array, int(np.argmax(np.round(spacing[:3], 3)[::-1])) if single is None else single)
    return GreyImage(np.ascontiguousarray(array), size, is_constant)


def _read_array(path: Path) -> tuple[np.ndarray, tuple[int, ...], tuple[float, ...]]:
    """Returns pixels, in SimpleITK's order, size and spacing."""
    import SimpleITK as sitk  # takes half a second, and folders of pictures do not need it

    try:
        check_file(path)
        image = sitk.ReadImage(str(path))
    except (RuntimeError, DamagedFileError) as error:
        raise _unreadable(path, error) from error
    return sitk.GetArrayFromImage(image), image.GetSize(), image.GetSpacing()


def read_labels(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a label map as it is.

    Raises:
        UnreadableImageError: the file is no image, or is corrupt.
    """
    path = Path(path)
    if not path.name.lower().endswith(PIL_ENDINGS):
        return _read_array(path)[0]
    try:
        check_file(path)
        with Image.open(path) as image:
            if max(image.size) > MAX_PIXELS:
                raise ValueError(f"declares {image.width}×{image.height} pixels")
            return np.asarray(image)
    except Exception as error:  # see _read_picture
        raise _unreadable(path, error) from error


def central_slice(volume: np.ndarray, axis: int) -> np.ndarray:
    """Returns the slice in the middle of a volume's content.

    A mirrored or padded copy of a volume has the same one, give or take a slice.

    Args:
        volume: shape (Z, Y, X).
        axis: along which to slice.
    """
    profile = (volume > volume.mean()).sum(axis=tuple(other for other in range(3) if other != axis))
    content = np.flatnonzero(profile > 0.05 * profile.max())
    middle = (content[0] + content[-1]) // 2 if len(content) else volume.shape[axis] // 2
    return np.take(volume, middle, axis=axis)


def _unreadable(path: Path, error: Exception) -> UnreadableImageError:
    if isinstance(error, UnidentifiedImageError):
        reason = "of no known format"
    else:  # the last line of what the libraries say; without folders, which reports should not show
        text = str(error).removeprefix(f"{path}: ")
        reason = (text.strip().splitlines() or [type(error).__name__])[-1].strip().replace(str(path), path.name)
    return UnreadableImageError(f"{path}: cannot be read as an image ({reason})")


def _is_constant(array: np.ndarray) -> bool:
    return array.size == 0 or bool(array.min() == array.max())
