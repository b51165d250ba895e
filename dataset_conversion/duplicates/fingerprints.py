"""What the duplicate search knows of an image: its hash, and small pictures that survive re-encoding and resizing.

Every picture is made twice: of the whole frame, which is exact for copies of the same field of view, and of the
head's bounding box, which stays what it is when a copy was cropped, padded or stretched. Both are normalised locally
(mean and contrast of the neighbourhood), so that brightness, contrast and gamma hardly change them, and the fine
structure counts that tells a slice from its neighbour.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from braintum.conversion.duplicates.image_reading import GreyImage, UnreadableImageError, read_grey

FINE = 96
"""Width and height of the pictures that decide."""
COARSE = 32
"""Width and height of the pictures that candidates are found with."""
FRAME, HEAD = 0, 1
"""Positions of the two pictures in a fingerprint's arrays."""
_STEP = FINE // COARSE
_FINE_SIGMAS = (0.7, 3.0)
_COARSE_SIGMAS = (2.0, 6.0)
_CONTRAST_FLOOR = 5.0
"""Added to the local contrast (of 255 grey values): noise in the background is not amplified."""
_INT8_SCALE = 32.0


@dataclass(frozen=True)
class Fingerprint:
    """One image.

    Attributes:
        sha256: of the file's bytes.
        size: in pixels: x, y[, z]; empty if the image is not readable.
        fine: int8, (2, FINE, FINE): whole frame and head. None without contrast or if not readable.
        coarse: int8, (2, COARSE, COARSE): the same, more blurred.
        problem: why the image was not readable; empty if it was.
        is_constant: all pixels have one value.
    """

    sha256: str
    size: tuple[int, ...] = ()
    fine: np.ndarray | None = None
    coarse: np.ndarray | None = None
    problem: str = ""
    is_constant: bool = False


def fingerprint(path: Path) -> Fingerprint:
    """Reads one image; faults of the file become `problem`."""
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:  # a copy of nothing: the name stands for the bytes
        if not path.is_symlink() and not path.exists():
            raise
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()
        return Fingerprint(digest, problem=f"{path}: cannot be read ({error.strerror or error})")
    try:
        image = read_grey(path)
    except UnreadableImageError as error:
        return Fingerprint(digest, problem=str(error))
    if image.is_constant:
        return Fingerprint(digest, image.size, is_constant=True)
    fine, coarse = describe(image)
    return Fingerprint(digest, image.size, fine, coarse)


def describe(image: GreyImage) -> tuple[np.ndarray, np.ndarray]:
    """Returns fine and coarse pictures of an image, see `Fingerprint`."""
    low, high = np.percentile(image.pixels, (1, 99.5))
    if high <= low:  # a few bright pixels on nothing
        low, high = float(image.pixels.min()), float(image.pixels.max())
    picture = Image.fromarray(np.clip((image.pixels - low) * (255 / (high - low)), 0, 255).astype(np.float32))
    frame = _resize(picture, (0, 0, picture.width, picture.height))
    head = _resize(picture, head_box(frame, picture.size))
    canvases = np.stack([frame, head])
    fine = local_normalisation(canvases, *_FINE_SIGMAS)
    coarse = local_normalisation(canvases, *_COARSE_SIGMAS)[:, _STEP // 2 :: _STEP, _STEP // 2 :: _STEP]
    return _to_int8(fine), _to_int8(coarse)


def head_box(frame: np.ndarray, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Returns the box around what is not background.

    Found on the small picture, so that it hardly depends on the resolution of the file.

    Args:
        frame: the whole image, shape (FINE, FINE), 0 to 255.
        size: of the image that the box is wanted in: x, y.

    Returns:
        Left, top, right and bottom in pixels of that image.
    """
    smooth = gaussian_filter(frame, 1.0)
    threshold = 0.25 * float(np.percentile(smooth, 90))
    content = smooth > max(threshold, 8.0)
    box = []
    for axis in (0, 1):
        profile = content.sum(axis=axis)
        filled = np.flatnonzero(profile > 0.08 * profile.max())  # not a label or a speck of noise
        first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, FINE)
        if last - first < FINE // 8:
            first, last = 0, FINE
        box.append((first * size[axis] / FINE, last * size[axis] / FINE))
    return box[0][0], box[1][0], box[0][1], box[1][1]


def local_normalisation(pictures: np.ndarray, inner: float, outer: float) -> np.ndarray:
    """Removes the mean of each pixel's neighbourhood and divides by its contrast.

    Args:
        pictures: shape (N, Y, X), 0 to 255.
        inner: standard deviation of the blur against noise, in pixels.
        outer: standard deviation of the neighbourhood.
    """
    smooth = gaussian_filter(pictures, (0, inner, inner))
    detail = smooth - gaussian_filter(smooth, (0, outer, outer))
    contrast = np.sqrt(gaussian_filter(detail * detail, (0, outer, outer)))
    return detail / (contrast + _CONTRAST_FLOOR)


def _resize(picture: Image.Image, box: tuple[float, float, float, float]) -> np.ndarray:
    return np.asarray(picture.resize((FINE, FINE), Image.Resampling.BILINEAR, box=box), np.float32)


def _to_int8(pictures: np.ndarray) -> np.ndarray:
    return np.clip(np.round(pictures * _INT8_SCALE), -127, 127).astype(np.int8)
