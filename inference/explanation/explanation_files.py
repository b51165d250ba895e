"""What ``braintum_explain`` writes of a case: the map in the geometry of the image, and a picture of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
from matplotlib.figure import Figure
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from PIL import Image

from braintum.conversion.files.atomic import atomic_path
from braintum.conversion.files.orientation import display_flips, orientation_of, plane_across

_MIDDLE = 2**15  # of 16 bits; stands for 0
_PREDICTED, _TRUE = "#00e5ff", "#76ff03"


def map_file_ending(reader_writer_class: type, file_ending: str) -> str:
    """Ending of the files that hold a map.

    Args:
        reader_writer_class: nnU-Net's, of the model.
        file_ending: of the images.

    Raises:
        NotImplementedError: for 3-D TIFF, whose spacing is in another file.
    """
    if issubclass(reader_writer_class, Tiff3DIO):
        raise NotImplementedError("explanations of 3-D TIFF are not supported; convert the images to NIfTI")
    return ".png" if issubclass(reader_writer_class, NaturalImage2DIO) else file_ending


def write_map(
    file: Path, attribution: np.ndarray, image_file: str, reader_writer_class: type, properties: Mapping[str, Any]
) -> None:
    """Write a map in the geometry of the image.

    A PNG holds 16 bits: 32768 stands for 0, and 1 or 65535 for the strongest attribution of the image.

    Args:
        file: replaced as a whole.
        attribution: (Z, Y, X), on the grid in which nnU-Net reads the image.
        image_file: of the image.
        reader_writer_class: nnU-Net's, of the model.
        properties: that it noted of the image.

    Raises:
        ValueError: the image has another size.
    """
    if issubclass(reader_writer_class, NaturalImage2DIO):
        strongest = float(np.abs(attribution).max()) or 1.0
        grey = np.rint(attribution[0] / strongest * (_MIDDLE - 1)) + _MIDDLE
        with atomic_path(file) as partial:
            Image.fromarray(grey.astype(np.uint16)).save(partial)
        return
    geometry = SimpleITK.ReadImage(image_file)
    if geometry.GetDimension() == 4:  # channels in one file
        geometry = geometry[..., 0]
    orientation = None
    if (read := orientation_of(properties)) and geometry.GetDimension() == 3:
        orientation = orientation_of({"sitk_stuff": {"direction": geometry.GetDirection()}})
        geometry = SimpleITK.DICOMOrient(geometry, read)
    array = attribution[0] if geometry.GetDimension() == 2 else attribution
    if array.shape != geometry.GetSize()[::-1]:
        raise ValueError(f"{image_file}: size {geometry.GetSize()[::-1]}, but its explanation has {array.shape}")
    image = SimpleITK.GetImageFromArray(array.astype(np.float32))
    image.CopyInformation(geometry)
    if orientation is not None:
        image = SimpleITK.DICOMOrient(image, orientation)
    with atomic_path(file) as partial:
        SimpleITK.WriteImage(image, str(partial), True)


def centre_of_interest(attribution: np.ndarray, mask: np.ndarray) -> tuple[int, int, int]:
    """Along each axis the slice with most of a mask, or with most attribution where it is empty."""
    amount = mask if mask.any() else np.abs(attribution)
    sums = (amount.sum(tuple(other for other in range(3) if other != axis)) for axis in range(3))
    z, y, x = (int(values.argmax()) for values in sums)
    return z, y, x


def write_overlay(
    file: Path,
    image: np.ndarray,
    attribution: np.ndarray,
    masks: Sequence[np.ndarray | None],
    properties: Mapping[str, Any],
    title: str,
    label: str = "attribution",
) -> None:
    """A picture: the image above, the map on it below; one column in 2-D, three orthogonal views of a volume.

    Args:
        file: PNG, replaced as a whole.
        image: (Z, Y, X).
        attribution: (Z, Y, X); what is shown in colours.
        masks: bool (Z, Y, X), the predicted one and the true one or None; drawn as outlines.
        properties: of the image, as nnU-Net's reader notes them.
        title: one or two lines.
        label: of the colours.
    """
    spacing, flips = properties["spacing"], display_flips(properties)
    image, attribution = np.flip(image, flips), np.flip(attribution, flips)
    predicted, true = (None if mask is None else np.flip(mask, flips) for mask in masks)
    marked = next((mask for mask in (true, predicted) if mask is not None and mask.any()), np.zeros(image.shape, bool))
    centre = centre_of_interest(attribution, marked)
    views = [0] if image.shape[0] == 1 else [0, 1, 2]
    strongest = float(np.abs(attribution).max()) or 1.0
    low, high = np.percentile(image, (0.5, 99.5))
    figure = Figure(figsize=(4 * len(views) + 0.9, 8.4), layout="constrained")
    axes = figure.subplots(2, len(views), squeeze=False)
    signed = bool((attribution < 0).any())
    heat: Any = None
    for column, axis in enumerate(views):
        across = [other for other in range(3) if other != axis]
        aspect = spacing[across[0]] / spacing[across[1]]
        origin = "upper" if axis == 0 else "lower"  # volumes of nnU-Net count z from the feet up

        def section(volume: np.ndarray, axis: int = axis) -> np.ndarray:
            return volume.take(centre[axis], axis)

        for panel in axes[:, column]:
            panel.imshow(section(image), cmap="gray", vmin=low, vmax=high or None, aspect=aspect, origin=origin)
            panel.set_axis_off()
        if len(views) > 1:
            number = centre[axis] + 1 if axis not in flips else image.shape[axis] - centre[axis]
            axes[0, column].set_title(f"{plane_across(axis, properties)} {number} of {image.shape[axis]}", fontsize=9)
        strength = section(attribution)
        heat = axes[1, column].imshow(
            strength,
            cmap="RdBu_r" if signed else "inferno",
            vmin=-strongest if signed else 0,
            vmax=strongest,
            alpha=np.clip(np.abs(strength) / strongest * 1.5, 0, 0.75),
            aspect=aspect,
            origin=origin,
        )
        for mask, colour in ((predicted, _PREDICTED), (true, _TRUE)):
            if mask is not None and section(mask).any() and not section(mask).all():
                axes[1, column].contour(section(mask), levels=[0.5], colors=colour, linewidths=1)
    figure.colorbar(heat, ax=axes[1, :].tolist(), shrink=0.8, label=label)
    outlines = "outlines: predicted mask cyan" + (", true mask green" if true is not None else "")
    figure.suptitle(f"{title}\n{outlines}", fontsize=9)
    with atomic_path(file) as partial:
        figure.savefig(partial, dpi=110, format="png", metadata={"Software": None})
