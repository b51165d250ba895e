"""Annotations of the VGG Image Annotator (VIA, versions 1 and 2), and label maps from their regions.

https://www.robots.ox.ac.uk/~vgg/software/via. The file holds an object with an entry an image, under the key file name
and size in bytes (`y0.jpg19127`), or a VIA project with that object under `_via_img_metadata`. Coordinates are pixels
with x to the right and y downwards; integers are pixel centres here, as in scikit-image. An ellipse is rotated by
`theta`, in radians and clockwise as one sees it, about its centre.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from skimage.draw import polygon

from braintum.conversion.building.inspection import SourceError
from braintum.conversion.building.natural_images import AGAIN, TUMOUR_LABEL, GreyImage
from braintum.conversion.files.json_files import read_json


@dataclass(frozen=True)
class Region:
    """One shape.

    Attributes:
        shape: `polygon` or `ellipse`; circles and rectangles are turned into these.
        values: for a polygon x and y of all points (two tuples of the same length); for an ellipse centre x and y,
            radii in x and y, and theta (a tuple of one each).
    """

    shape: str
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Annotation:
    """The regions of one image.

    Attributes:
        file: the annotation file.
        image: the image's file name.
        size: of the image file, in bytes; None where the entry does not tell.
        regions: in the order of the file; empty for an image that was looked at and left without any.
    """

    file: Path
    image: str
    size: int | None
    regions: tuple[Region, ...]


def read_annotations(path: Path) -> list[Annotation]:
    """Reads an annotation file.

    Raises:
        SourceError: it is not one, or holds regions of an unknown kind; all faults are listed.
    """
    try:
        content = read_json(path, AGAIN)
    except ValueError as error:
        raise SourceError(str(error)) from error
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror or error}); {AGAIN}") from error
    if isinstance(content, Mapping):
        content = content.get("_via_img_metadata", content)
    if not isinstance(content, Mapping) or not all(isinstance(entry, Mapping) for entry in content.values()):
        raise SourceError(f"{path}: not an annotation file of VIA; {AGAIN}")
    annotations, faults = [], []
    for key, entry in content.items():
        regions = entry.get("regions", [])
        if not isinstance(entry.get("filename"), str) or not isinstance(regions, (list, Mapping)):
            faults.append(f"entry {key!r} has no filename or no regions")
            continue
        found = []
        # VIA 1 numbers the regions, VIA 2 lists them
        for region in regions.values() if isinstance(regions, Mapping) else regions:
            try:
                found.append(_read_region(region["shape_attributes"]))
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                fault = f"misses {error}" if isinstance(error, KeyError) else error
                faults.append(f"a region of {entry['filename']} cannot be read: {fault}")
        size = entry.get("size")
        annotations.append(
            Annotation(path, entry["filename"], size if isinstance(size, int) and size >= 0 else None, tuple(found))
        )
    if faults:
        raise SourceError(f"{path}: {'; '.join(faults)}; {AGAIN}, or correct it in VIA")
    return annotations


def _read_region(shape: Mapping[str, Any]) -> Region:
    name = shape["name"]
    if name in ("polygon", "polyline"):
        points = tuple(tuple(float(value) for value in shape[f"all_points_{axis}"]) for axis in "xy")
        if len(points[0]) != len(points[1]) or len(points[0]) < 3:
            raise ValueError(f"{len(points[0])} x and {len(points[1])} y, at least three points are needed")
        return Region("polygon", _finite(points))
    if name == "rect":
        x, y, width, height = (float(shape[key]) for key in ("x", "y", "width", "height"))
        return Region("polygon", _finite(((x, x + width, x + width, x), (y, y, y + height, y + height))))
    if name == "circle":
        radii = (float(shape["r"]),) * 2
    elif name == "ellipse":
        radii = (float(shape["rx"]), float(shape["ry"]))
    else:
        raise ValueError(f"shape {name!r} has no area")
    if min(radii) < 0:
        raise ValueError(f"a radius of {min(radii):g}")
    theta = float(shape.get("theta") or 0) if name == "ellipse" else 0.0
    values = (float(shape["cx"]), float(shape["cy"]), *radii, theta)
    return Region("ellipse", _finite(tuple((value,) for value in values)))


def _finite(values: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    if not all(math.isfinite(value) for row in values for value in row):
        raise ValueError("a coordinate is not a finite number")
    return values


def draw_regions(annotation: Annotation, image: GreyImage) -> np.ndarray:
    """Makes the label map of an image: the union of its regions, as far as they are within the image.

    Raises:
        SourceError: a region lies outside the image, or it is not clear which way up the outlines are meant.
    """
    if image.turned:
        raise SourceError(
            f"{annotation.file}: EXIF turns the image {annotation.image}, so that it is not clear how its outlines "
            "match; save the image upright and outline it again, or remove the entry"
        )
    label_map = np.zeros(image.pixels.shape, np.uint8)
    for number, region in enumerate(annotation.regions, start=1):
        inside = region_mask(region, image.pixels.shape)
        if not inside.any():
            raise SourceError(
                f"{annotation.file}: region {number} of {annotation.image} covers no pixel of the image; "
                f"correct or remove it"
            )
        label_map[inside] = TUMOUR_LABEL
    return label_map


def region_mask(region: Region, shape: tuple[int, ...]) -> np.ndarray:
    """Returns which pixels (bool, shape (Y, X)) have their centre in the region."""
    inside = np.zeros(shape, bool)
    if region.shape == "polygon":
        points_x, points_y = region.values
        inside[polygon(points_y, points_x, shape)] = True
        return inside
    if region.shape == "ellipse":
        (center_x,), (center_y,), (radius_x,), (radius_y,), (theta,) = region.values
        if not radius_x or not radius_y:
            return inside
        rows, columns = np.ogrid[: shape[0], : shape[1]]
        x, y = columns - center_x, rows - center_y
        # y points down: this turns the axes clockwise by theta, as the canvas that VIA draws on does
        along = (x * math.cos(theta) + y * math.sin(theta)) / radius_x
        across = (y * math.cos(theta) - x * math.sin(theta)) / radius_y
        return np.asarray(along**2 + across**2 <= 1)
    raise ValueError(f"unknown shape {region.shape!r}")
