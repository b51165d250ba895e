"""Converted images as arrays, PNG and whatever SimpleITK reads."""

from pathlib import Path

import numpy as np


def read_array(path: Path) -> np.ndarray:
    """Returns the values of an image: of a picture shape (Y, X[, channel]), of a volume (Z, Y, X)."""
    if path.suffix.lower() == ".png":
        from PIL import Image

        with Image.open(path) as image:
            return np.asarray(image)
    import SimpleITK as sitk  # noqa: N813

    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def replace_label(path: Path, target: Path, old: int, new: int) -> None:
    """Writes a label map to `target` with one value replaced by another; the geometry stays."""
    array = read_array(path)
    array = np.where(array == old, np.uint8(new), array).astype(array.dtype)
    if path.suffix.lower() == ".png":
        from braintum.conversion.building.natural_images import write_png

        write_png(target, array)
        return
    import SimpleITK as sitk  # noqa: N813

    image = sitk.GetImageFromArray(array)
    image.CopyInformation(sitk.ReadImage(str(path)))
    sitk.WriteImage(image, str(target), useCompression=True)


def write_slice(array: np.ndarray, target: Path) -> None:
    """Writes an array of shape (Y, X) as a 2-D NIfTI file whose pixels count as 1 mm."""
    import SimpleITK as sitk  # noqa: N813

    sitk.WriteImage(sitk.GetImageFromArray(array), str(target), useCompression=True)
