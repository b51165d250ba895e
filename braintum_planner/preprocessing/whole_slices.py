"""Slices as one size: cropped to the head and resampled, whatever their spacing, for pictures that have none.

A configuration of the plans that names ``slice_edge: n`` gives every image this treatment instead of nnU-Net's
resampling to one spacing, without the crop where it says ``slice_crop: false``: public slices come as pictures of 200
to 1400 pixels, some with a wide black border, and heads differ in size far less than pixels do.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

__all__ = ["SLICE_CROP", "SLICE_EDGE", "head_box", "resized", "slice_edge"]

SLICE_EDGE = "slice_edge"
SLICE_CROP = "slice_crop"

_BACKGROUND = 0.1  # of the 99th percentile of a slice: noise and the halo of JPEG are below
_MARGIN = 0.02  # of the head's longer edge, on each side
_OPENING = 170  # strips thinner than this part of the image, such as a caption's letters, do not count


def slice_edge(configuration: Mapping[str, Any]) -> int | None:
    """Edge that the longer side of each slice gets, in pixels; None where nnU-Net's spacing decides.

    Args:
        configuration: one entry of the plans' ``configurations``.

    Raises:
        ValueError: no positive whole number, or a 3-D configuration.
    """
    edge = configuration.get(SLICE_EDGE)
    if edge is None:
        return None
    if not isinstance(edge, int) or isinstance(edge, bool) or edge < 1:
        raise ValueError(f'"{SLICE_EDGE}" of the plans is {edge!r}; write a whole number of pixels, such as 192')
    if len(configuration["patch_size"]) != 2:
        raise ValueError(
            f'"{SLICE_EDGE}" belongs to 2-D configurations, the patch size here is '
            f"{list(configuration['patch_size'])}; remove it from the plans"
        )
    return edge


def head_box(image: np.ndarray) -> list[list[int]]:
    """Box around the largest bright part, with a small margin; the whole image where there is none.

    Args:
        image: (C, Z, Y, X); the brightest of all channels and slices counts.

    Returns:
        Start and stop along Z, Y and X; all of Z.
    """
    flat = image.max((0, 1)).astype(np.float32)
    flat -= flat.min()
    height, width = flat.shape
    bright = ndimage.binary_opening(
        flat > _BACKGROUND * np.percentile(flat, 99), iterations=max(1, min(flat.shape) // _OPENING)
    )
    parts, count = ndimage.label(bright)
    if count == 0:
        return [[0, image.shape[1]], [0, height], [0, width]]
    largest = 1 + int(np.bincount(parts.ravel())[1:].argmax())
    rows, columns = ndimage.find_objects(parts)[largest - 1]
    margin = round(_MARGIN * max(rows.stop - rows.start, columns.stop - columns.start))
    return [
        [0, image.shape[1]],
        *(
            [max(0, part.start - margin), min(edge, part.stop + margin)]
            for part, edge in ((rows, height), (columns, width))
        ),
    ]


def resized(array: np.ndarray, shape: Sequence[int], is_labels: bool) -> np.ndarray:
    """Slices at another size: images linearly and without aliasing, labels by the nearest pixel.

    Args:
        array: (C, Z, Y, X).
        shape: wanted (Y, X).
        is_labels: whether the values are labels.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    size = list(shape)
    if is_labels:
        return functional.interpolate(tensor, size=size, mode="nearest-exact").numpy().astype(array.dtype)
    return functional.interpolate(tensor, size=size, mode="bilinear", antialias=True).numpy()
