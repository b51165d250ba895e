"""How the axes of a volume lie in the patient."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import SimpleITK as sitk

ORIENTATIONS_ENTRY = "orientations"
"""In a fingerprint and in plans: orientation → number of volumes, as nnU-Net read them."""
PLANES_ACROSS = {"axial": "SI", "coronal": "AP", "sagittal": "RL"}
"""Plane → the directions that are at right angles to it."""


def orientation_of(properties: Mapping[str, Any]) -> str:
    """Orientation of an array, such as ``LPS``, from what nnU-Net's reader noted; empty for slices and pictures."""
    direction = properties.get("sitk_stuff", {}).get("direction", ())
    if (affine := properties.get("nibabel_stuff", {}).get("original_affine")) is not None:
        axes = np.asarray(properties["nibabel_stuff"].get("reoriented_affine", affine))[:3, :3]
        direction = (np.diag((-1, -1, 1)) @ (axes / np.linalg.norm(axes, axis=0))).ravel()  # from RAS
    if len(direction) != 9:
        return ""
    return sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines([float(value) for value in direction])


def display_flips(properties: Mapping[str, Any]) -> tuple[int, ...]:
    """Axes of an array (Z, Y, X) to turn for the eye: feet first, the front of a slice up, the patient's right left."""
    orientation = orientation_of(properties)
    return tuple(axis for axis, letter in enumerate(reversed(orientation)) if letter in "IAR")


def plane_across(axis: int, properties: Mapping[str, Any]) -> str:
    """Plane of the slices across an axis of an array (Z, Y, X); empty where the file tells no directions."""
    letter = orientation_of(properties)[2 - axis :][:1]
    return next((plane for plane, ends in PLANES_ACROSS.items() if letter and letter in ends), "")
