"""Volumes in the orientation that a model was trained on, and its answers in theirs.

nnU-Net's default reader leaves volumes as their files store them. A network that has seen heads lying one way finds
next to nothing in the same head stored another way. Its reader ``SimpleITKIOWithReorient``, which converted volumes ask
for, turns them all alike; this does the same for a model without it whose plans tell that its volumes lay one way.
"""

from collections.abc import Iterable, Mapping
from functools import partialmethod
from typing import Any

import numpy as np
import SimpleITK as sitk
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from braintum.conversion.files.orientation import ORIENTATIONS_ENTRY


class OrientedPlansManager(PlansManager):
    """nnU-Net's, with a reader that brings volumes into the one orientation of the training."""

    @property
    def image_reader_writer_class(self) -> type:
        """The plans' reader where it turns volumes itself, reads none, or the training had no one orientation."""
        reader = super().image_reader_writer_class
        orientations = self.plans.get(ORIENTATIONS_ENTRY, {})
        if reader is not SimpleITKIO or len(orientations) != 1:
            return reader
        turned = partialmethod(SimpleITKIOWithReorient.read_images, orientation=next(iter(orientations)))
        return type("OrientedReader", (SimpleITKIOWithReorient,), {"read_images": turned})


def orientation_warning(plans: PlansManager) -> str | None:
    """What is to be said of a model that was trained on volumes in several orientations."""
    orientations = plans.plans.get(ORIENTATIONS_ENTRY, {})
    if len(orientations) < 2:
        return None
    listed = ", ".join(f"{name} {count}" for name, count in orientations.items())
    return (
        f"the model was trained on volumes in different orientations ({listed}), each as its file stores it; what it "
        "finds depends on how a volume is stored"
    )


def turned_back(
    arrays: Iterable[np.ndarray], properties: Mapping[str, Any]
) -> tuple[list[np.ndarray], tuple[float, ...] | None]:
    """Arrays as the file stores its volume, and the spacing along their axes in mm.

    Args:
        arrays: (Z, Y, X) each, in the orientation of the network.
        properties: that the reader noted.

    Returns:
        Arrays and spacing; the same arrays and None where the reader turned nothing.
    """
    geometry = properties.get("sitk_stuff", {})
    if "original_orientation" not in geometry:
        return list(arrays), None
    images = [sitk.GetImageFromArray(array) for array in arrays]
    for image in images:
        image.SetDirection(geometry["direction"])
        image.SetSpacing(geometry["spacing"])
    turned = [sitk.DICOMOrient(image, geometry["original_orientation"]) for image in images]
    return [sitk.GetArrayFromImage(image) for image in turned], turned[0].GetSpacing()[::-1]
