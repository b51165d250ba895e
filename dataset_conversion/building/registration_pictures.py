"""Pictures by which a person sees whether a registration is right: before it above, after it below."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from PIL import Image, ImageDraw, ImageFont

from braintum.conversion.building.resampling import ResampledCase, extent_of
from braintum.conversion.files.atomic import atomic_path

_GAP = 4
_LINE = 14
"""Pixels between the views, and of a line of text."""


def write_registration_picture(case: ResampledCase, path: Path) -> None:
    """Writes a picture of a registered case, for each channel that was moved the three middle sections of both.

    The reference is magenta and the channel green: where they agree, they make grey; edges of one colour do not.

    Args:
        case: with `before`.
        path: of the PNG.
    """
    resampling = case.resampling
    target = resampling.names[resampling.reference]
    reference = case.channels[resampling.reference]
    blocks = []
    for number, move in enumerate(resampling.rigid):
        if move:
            shift, angle = extent_of(move)
            moved = f"{resampling.names[number]} (green) on {target} (magenta)"
            text = f"{moved}; moved {shift:.1f} mm, {angle:.1f} degrees"
            rows = [_sections(reference, image) for image in (case.before[number], case.channels[number])]
            blocks.append(_block(text, rows))
    width = max(block.width for block in blocks)
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks)))
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as partial:
        sheet.save(partial, format="PNG")


def _block(text: str, rows: Sequence[Image.Image]) -> Image.Image:
    font = ImageFont.load_default()
    width = max(round(font.getlength(f"before: {text}")) + _GAP, *(row.width for row in rows))
    block = Image.new("RGB", (width, sum(_LINE + row.height + _GAP for row in rows)))
    draw, top = ImageDraw.Draw(block), 0
    for row, when in zip(rows, ("before", "after"), strict=True):
        draw.text((2, top + 1), f"{when}: {text}", fill=(255, 255, 255), font=font)
        block.paste(row, (0, top + _LINE))
        top += _LINE + row.height + _GAP
    return block


def _sections(reference: sitk.Image, image: sitk.Image) -> Image.Image:
    """The three middle sections side by side, upright, with square pixels of the finest spacing."""
    volumes = [sitk.DICOMOrient(volume, "LPS") for volume in (reference, image)]
    spacing = volumes[0].GetSpacing()[::-1]
    arrays = [_grey(sitk.GetArrayFromImage(volume)) for volume in volumes]
    fused = np.stack([arrays[0], arrays[1], arrays[0]], axis=-1)
    views = []
    for axis in range(3):
        section = np.take(fused, fused.shape[axis] // 2, axis)
        if axis:
            section = section[::-1]  # feet down
        edges = [edge for number, edge in enumerate(spacing) if number != axis]
        height, width = (round(n * edge / min(spacing)) for n, edge in zip(section.shape[:2], edges, strict=True))
        views.append(Image.fromarray(np.ascontiguousarray(section)).resize((width, height)))
    row = Image.new("RGB", (sum(view.width + _GAP for view in views), max(view.height for view in views)))
    left = 0
    for view in views:
        row.paste(view, (left, 0))
        left += view.width + _GAP
    return row


def _grey(array: np.ndarray) -> np.ndarray:
    low, high = np.percentile(array, (1, 99.5))
    return (np.clip((array - low) / max(float(high - low), 1e-6), 0, 1) * 255).astype(np.uint8)
