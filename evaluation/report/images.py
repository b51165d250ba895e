"""Pictures of cases: the image as a small WebP in a data URI, the outlines of truth and prediction as SVG paths."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import region_or_label_to_mask
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from PIL import Image, UnidentifiedImageError

from braintum.conversion.files.orientation import display_flips, plane_across
from braintum.evaluation.results.case_table import CaseTable

MAX_EDGE = 384
"""Pixels of a picture's longer edge."""
_ZOOM_MARGIN = 0.35
"""Of the tumour's extent, on each side."""
_MIN_ZOOM = 0.2
"""Smallest edge of a close-up, as a share of the picture's longer edge."""
_QUALITY = 80
_ZERO_OF_PNG = 2**15


@dataclass(frozen=True)
class CasePicture:
    """One slice of a case.

    Attributes:
        uri: the image, a data URI.
        width: pixels.
        height: pixels.
        truth: outline of the true mask, data of an SVG path in the picture's pixels; empty without a mask.
        prediction: of the predicted mask.
        explanation: the image under its explanation, a data URI; empty without one.
        zoom: left, top, width and height of a close-up of both masks; None where there is no mask.
        where: plane and number of the slice of a volume, and its channel; empty for an image of one slice.
    """

    uri: str
    width: int
    height: int
    truth: str
    prediction: str
    explanation: str
    zoom: tuple[int, int, int, int] | None
    where: str


@dataclass(frozen=True)
class CaseSlice:
    """The slice of a case that shows most of its true tumour, turned for the eye.

    Attributes:
        grey: the first channel, with square pixels.
        truth: true mask, (Y, X) bool, in the image's own pixels.
        prediction: predicted mask, likewise.
        index: of the slice.
        flips: axes of the slice (0: Y, 1: X) that are turned.
        shape: of the whole image, (Z, Y, X).
        plane: of the slice; empty where the file tells no directions.
    """

    grey: Image.Image
    truth: np.ndarray
    prediction: np.ndarray
    index: int
    flips: tuple[int, ...]
    shape: tuple[int, ...]
    plane: str


def case_slice(table: CaseTable, row: int, files: Sequence[str]) -> CaseSlice:
    """The slice of a case that shows most of its true tumour; of the predicted one where there is none.

    The first channel is shown. Of a volume, the slice across the first axis of nnU-Net's arrays; turned so that
    anterior is up and the patient's right is left, where the file tells directions.

    Args:
        table: figures of each case.
        row: which case.
        files: its channels.

    Raises:
        ValueError: image and masks do not match, or a file cannot be read.
    """
    case = table.cases[row]
    reader = table.predictions.reader_writer
    label = table.labels[table.whole_tumour]
    try:
        channels, properties = reader.read_images(list(files))
        true_map, _ = reader.read_seg(str(table.predictions.references[case]))
        predicted_map, _ = reader.read_seg(str(table.predictions.masks[case]))
    except (RuntimeError, UnidentifiedImageError, AssertionError) as error:  # what readers raise for damaged files
        raise ValueError(f"{files[0]} or a mask of {case} cannot be read: {error}") from error
    image = channels[0]
    truth, prediction = (region_or_label_to_mask(found[0], label) for found in (true_map, predicted_map))
    if not image.shape == truth.shape == prediction.shape:
        raise ValueError(
            f"{files[0]} has shape {image.shape}, its masks {truth.shape} and {prediction.shape}; set nnUNet_raw to "
            "where the data set is that the model was trained on"
        )
    index = _telling_slice(image, truth, prediction)
    flips = tuple(axis - 1 for axis in display_flips(properties) if axis)
    planes = [np.flip(array[index], flips) for array in (image, truth, prediction)]
    spacing = [float(value) for value in properties["spacing"]]
    return CaseSlice(
        _grey(planes[0], spacing[1] / spacing[2]),
        planes[1],
        planes[2],
        index,
        flips,
        image.shape,
        plane_across(0, properties),
    )


def case_picture(table: CaseTable, row: int, files: Sequence[str], map_file: Path | None = None) -> CasePicture:
    """A case for a page, see :func:`case_slice`.

    Args:
        table: figures of each case.
        row: which case.
        files: its channels.
        map_file: explanation of its class, as ``braintum_explain`` writes it.

    Raises:
        ValueError: image and masks do not match, or a file cannot be read.
    """
    shown = case_slice(table, row, files)
    grey, reader = shown.grey, table.predictions.reader_writer
    scale = (grey.width / shown.truth.shape[1], grey.height / shown.truth.shape[0])
    explained = ""
    if map_file is not None:
        explained = _explained(grey, _attribution(reader, map_file, shown.shape), shown.index, shown.flips)
    return CasePicture(
        _data_uri(grey),
        grey.width,
        grey.height,
        _outline(shown.truth, scale),
        _outline(shown.prediction, scale),
        explained,
        _zoom(shown.truth | shown.prediction, scale, grey.size),
        _where(shown, table) if shown.shape[0] > 1 else "",
    )


def _where(shown: CaseSlice, table: CaseTable) -> str:
    names = table.predictions.dataset_json.get("channel_names") or {}
    parts = (names.get("0", ""), shown.plane, f"slice {shown.index + 1} of {shown.shape[0]}")
    return ", ".join(part for part in parts if part)


def _telling_slice(image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> int:
    """Through the largest extent of the truth, else of the prediction, else of what is not background."""
    marked = next((found for found in (truth, prediction) if found.any()), image > image.min())
    return int(marked.sum((1, 2)).argmax())


def _grey(plane: np.ndarray, aspect: float) -> Image.Image:
    """A slice with square pixels between its percentiles 0.5 and 99.5, at most :data:`MAX_EDGE` wide and high."""
    finite = plane[np.isfinite(plane)]
    low, high = np.percentile(finite, (0.5, 99.5)) if len(finite) else (0.0, 1.0)
    scaled = np.clip((np.nan_to_num(plane, nan=low) - low) * (255 / max(high - low, 1e-6)), 0, 255)
    height, width = plane.shape[0] * max(aspect, 1.0), plane.shape[1] * max(1 / aspect, 1.0)
    shrink = min(1.0, MAX_EDGE / max(height, width))
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    return Image.fromarray(scaled.astype(np.uint8)).resize(size, Image.Resampling.LANCZOS)


def _attribution(reader: BaseReaderWriter, file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """An explanation, (Z, Y, X), between -1 and 1: 1 is the strongest attribution of the image.

    Raises:
        ValueError: it is of another size than the image, or cannot be read.
    """
    try:
        values = reader.read_images([str(file)])[0][0].astype(np.float64)
    except (RuntimeError, UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file} cannot be read: {error}; make the explanations again") from error
    if values.shape != shape:
        raise ValueError(f"{file} has shape {values.shape}, the image {shape}; explain the images of this data set")
    if isinstance(reader, NaturalImage2DIO):  # 16 bits, in which the middle stands for 0
        values = values - _ZERO_OF_PNG
    return values / (np.abs(values).max() or 1.0)


def _explained(grey: Image.Image, attribution: np.ndarray, index: int, flips: tuple[int, ...]) -> str:
    """A slice with its attribution in colour: the stronger, the less transparent."""
    from matplotlib import colormaps

    plane = np.flip(attribution[index], flips).astype(np.float32)
    strength = np.asarray(Image.fromarray(plane).resize(grey.size, Image.Resampling.BILINEAR), np.float64)
    signed = bool((attribution < 0).any())
    colours = colormaps["RdBu_r"](strength / 2 + 0.5) if signed else colormaps["inferno"](strength)
    opacity = np.clip(np.abs(strength) * 1.5, 0, 0.75)[..., None]
    blended = np.asarray(grey, np.float64)[..., None] * (1 - opacity) + 255 * colours[..., :3] * opacity
    return _data_uri(Image.fromarray(np.rint(blended).astype(np.uint8)))


def _outline(mask: np.ndarray, scale: tuple[float, float]) -> str:
    """Borders of a mask as data of an SVG path; they run between pixels, and close at the border of the image."""
    from skimage.measure import approximate_polygon, find_contours

    parts = []
    for contour in find_contours(np.pad(mask, 1).astype(np.float32), 0.5):
        points = approximate_polygon((contour - 0.5) * (scale[1], scale[0]), tolerance=0.3)
        if len(points) > 2:
            parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for y, x in points[:-1]) + "Z")
    return "".join(parts)


def _zoom(mask: np.ndarray, scale: tuple[float, float], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """A square around a mask, with a margin, within the picture as far as possible."""
    if not mask.any():
        return None
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom = rows[0] * scale[1], (rows[-1] + 1) * scale[1]
    left, right = columns[0] * scale[0], (columns[-1] + 1) * scale[0]
    extent = max(bottom - top, right - left) * (1 + 2 * _ZOOM_MARGIN)
    edge = round(min(max(extent, _MIN_ZOOM * max(size)), max(size)))
    corner = []
    for low, high, length in ((left, right, size[0]), (top, bottom, size[1])):
        start = (low + high - edge) / 2
        corner.append(round(min(max(start, 0), length - edge) if edge <= length else (length - edge) / 2))
    return corner[0], corner[1], edge, edge


def embedded_picture(file: Path) -> tuple[str, int, int]:
    """A picture from a file, at most :data:`MAX_EDGE` wide and high: data URI, width and height.

    Raises:
        ValueError: it is no picture.
    """
    try:
        with Image.open(file) as image:
            picture = image.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file} is no picture: {error}; make the explanations again") from error
    picture.thumbnail((MAX_EDGE, MAX_EDGE), Image.Resampling.LANCZOS)
    return _data_uri(picture), picture.width, picture.height


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=_QUALITY, method=6)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
