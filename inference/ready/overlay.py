"""A picture of what was found: the image beside the image with the mask's outline, and a line of text."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from braintum.conversion.files.atomic import atomic_path

_EDGE = 512  # of either half
_COLOUR = (255, 80, 0)
_TEXT_HEIGHT = 22


def write_overlay(file: Path, slices: np.ndarray, mask: np.ndarray, aspect: float, text: str) -> None:
    """Write what :func:`draw_overlay` draws as PNG, replaced as a whole."""
    with atomic_path(file) as partial:
        draw_overlay(slices, mask, aspect, text).save(partial, format="PNG")


def draw_overlay(slices: np.ndarray, mask: np.ndarray, aspect: float, text: str) -> Image.Image:
    """Draw the slice with most tumour, or the middle one where there is none.

    Args:
        slices: (Z, Y, X).
        mask: (Z, Y, X), 0 for background.
        aspect: height of a pixel relative to its width.
        text: one line.
    """
    areas = (mask != 0).sum((1, 2))
    index = int(areas.argmax()) if areas.any() else len(slices) // 2
    plane, tumour = slices[index], mask[index] != 0
    low, high = np.percentile(plane, (0.5, 99.5))
    grey = np.clip((plane - low) * (255 / max(high - low, 1e-6)), 0, 255).astype(np.uint8)
    height, width = plane.shape[0] * max(aspect, 1.0), plane.shape[1] * max(1 / aspect, 1.0)
    scale = _EDGE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    picture = Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC).convert("RGB")
    large = np.asarray(Image.fromarray(tumour.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)) > 127
    outlined = np.asarray(picture).copy()
    outlined[ndimage.binary_dilation(large) & ~ndimage.binary_erosion(large)] = _COLOUR
    both = Image.new("RGB", (2 * size[0], size[1] + _TEXT_HEIGHT))
    both.paste(picture, (0, 0))
    both.paste(Image.fromarray(outlined), (size[0], 0))
    ImageDraw.Draw(both).text((6, size[1] + 3), text, fill="white", font=ImageFont.load_default(14))
    return both
