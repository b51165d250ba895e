"""Images as users have them: pictures, DICOM slices and volumes, read as slices that stand upright."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image, ImageOps

from braintum.conversion.building.slices import ARRAY_AXIS, choose_plane, stack_slices, to_anatomical
from braintum.conversion.building.volume_reading import read_any
from braintum.conversion.files.atomic import atomic_path
from braintum.conversion.files.file_checks import MAX_PIXELS, check_file
from braintum.conversion.files.volumes import VOLUME_ENDINGS, image_like, is_volume_file, read_volume, write_image

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
DICOM_ENDING = ".dcm"

_COLOUR_DIFFERENCE = 12  # between channels of 8 bits: what JPEG makes of grey stays below
_COLOURED_SHARE = 0.01  # of the pixels: a caption or a coloured arrow is no photograph


@dataclass(frozen=True, eq=False)
class OwnImage:
    """An image and how to write a mask of it.

    Attributes:
        name: of the file, without its ending.
        slices: (Z, Y, X) float32, upright: the head or the front on top.
        spacing: of z, y and x in mm; None for pictures, which have none.
        coloured_share: of the pixels, for pictures.
        geometry: of a volume in LPS orientation, or of a single slice; None for pictures.
        plane: that a volume was cut in.
        original: a volume's own orientation.
    """

    name: str
    slices: np.ndarray
    spacing: tuple[float, float, float] | None
    coloured_share: float = 0.0
    geometry: sitk.Image | None = None
    plane: str = "axial"
    original: str = "LPS"

    @property
    def is_coloured(self) -> bool:
        """Whether it shows colours, as MRI does not."""
        return self.coloured_share > _COLOURED_SHARE

    @property
    def mask_ending(self) -> str:
        """Of the file that :meth:`write_mask` writes."""
        return ".png" if self.geometry is None else ".nii.gz"

    def write_mask(self, mask: np.ndarray, folder: Path) -> Path:
        """Write a label map on the image's own grid, completely or not at all.

        Args:
            mask: (Z, Y, X) as :attr:`slices`, integers below 256.
            folder: that gets it.
        """
        file = folder / f"{self.name}{self.mask_ending}"
        if self.geometry is None:
            with atomic_path(file) as partial:
                Image.fromarray(mask[0].astype(np.uint8)).save(partial, format="PNG")
            return file
        if self.geometry.GetDimension() == 2:
            write_image(image_like(mask[0].astype(np.uint8), self.geometry), file)
            return file
        stack = mask if self.plane == "axial" else mask[:, ::-1]
        array = np.ascontiguousarray(np.moveaxis(stack, 0, ARRAY_AXIS[self.plane]).astype(np.uint8))
        upright = image_like(array, self.geometry)
        write_image(sitk.DICOMOrient(upright, self.original), file)
        return file


def find_images(folder: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """Images directly in a folder by name, and those that cannot be told apart by it.

    nnU-Net's channel number at the end of a name is left out of it.

    Args:
        folder: of images; a file is taken for the only one.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
    """
    if not folder.exists():
        raise FileNotFoundError(f"the input folder {folder} does not exist")
    files = [folder] if folder.is_file() else sorted(path for path in folder.iterdir() if path.is_file())
    endings = (*PICTURE_ENDINGS, DICOM_ENDING, *VOLUME_ENDINGS)
    files = [path for path in files if not path.name.startswith(".") and path.name.lower().endswith(endings)]
    if not files:
        raise FileNotFoundError(f"{folder} holds no image ({', '.join(endings)})")
    found: dict[str, Path] = {}
    failed: dict[str, str] = {}
    for path in files:
        name = _name(path)
        if name in found:
            failed[path.name] = f"{path} and {found[name]} would both be called {name}; rename one of them"
        else:
            found[name] = path
    return found, failed


def read_image(path: Path) -> OwnImage:
    """Read an image.

    Raises:
        ValueError: it cannot be read, or is not one grey value a pixel.
    """
    name = path.name.lower()
    if name.endswith(PICTURE_ENDINGS):
        return _read_picture(path)
    if is_volume_file(path) and sitk_dimension(path) != 2:
        return _of_volume(path, read_volume(path))
    return _read_slice(path)


def sitk_dimension(path: Path) -> int:
    """Number of axes that a medical image declares; 0 where its header cannot be read."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return 0
    return int(reader.GetDimension())


def _read_picture(path: Path) -> OwnImage:
    try:
        check_file(path)
        with Image.open(path) as image:
            if max(image.size) > MAX_PIXELS:
                raise ValueError(f"declares {image.width}×{image.height} pixels")
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith(("I", "F")):
                return OwnImage(_name(path), np.asarray(upright, np.float32)[None], None)
            colours = np.asarray(upright.convert("RGB"), np.int16)
            grey = np.asarray(upright if upright.mode == "L" else upright.convert("RGB").convert("L"), np.float32)
    except Exception as error:  # Pillow's decoders raise errors of many types for corrupt files
        fault = " ".join(str(error).removeprefix(f"{path}: ").split())
        raise ValueError(f"{path}: not a complete picture ({fault}); export it again") from error
    coloured = (colours.max(2) - colours.min(2)) > _COLOUR_DIFFERENCE
    return OwnImage(_name(path), grey[None], None, float(coloured.mean()))


def _read_slice(path: Path) -> OwnImage:
    """A single slice that knows its spacing: DICOM, or a 2-D NIfTI file as nnU-Net has them."""
    try:
        check_file(path)
        image = sitk.ReadImage(str(path))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split()).rpartition("ERROR:")[2].strip()
        raise ValueError(f"{path}: cannot be read ({reason}); export it again") from error
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    if image.GetNumberOfComponentsPerPixel() == 3:
        array = array @ np.array([0.299, 0.587, 0.114], np.float32)
    elif image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"{path}: {image.GetNumberOfComponentsPerPixel()} values a pixel; export one a file")
    if array.ndim == 3 and array.shape[0] != 1:
        return _of_volume(path, read_any(path))  # an enhanced DICOM object, whose frames ITK only stacks
    x, y = image.GetSpacing()[:2]
    array = array.reshape(1, *array.shape[-2:])
    if not np.isfinite(array).all():
        raise ValueError(f"{path}: NaN or infinite intensities; repair the image")
    flat = sitk.GetImageFromArray(array[0])
    flat.SetSpacing((x, y))
    return OwnImage(_name(path), array, (1.0, float(y), float(x)), geometry=flat)


def _of_volume(path: Path, image: sitk.Image) -> OwnImage:
    original = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(image.GetDirection())
    upright = to_anatomical(image)
    plane = choose_plane(upright)
    slices = stack_slices(sitk.GetArrayFromImage(upright).astype(np.float32), plane)
    across = upright.GetSpacing()[::-1]
    axis = ARRAY_AXIS[plane]
    in_plane: Sequence[float] = [value for index, value in enumerate(across) if index != axis]
    spacing = (float(across[axis]), float(in_plane[0]), float(in_plane[1]))
    return OwnImage(_name(path), slices, spacing, geometry=upright, plane=plane, original=original)


def _name(path: Path) -> str:
    name = path.name
    for ending in (*VOLUME_ENDINGS, *PICTURE_ENDINGS, DICOM_ENDING):
        if name.lower().endswith(ending):
            name = name[: -len(ending)]
            break
    return re.sub(r"_0000$", "", name)
