"""Sources of JPEG and PNG images: reading them, and converting them to 8-bit PNG with one channel.

How an image becomes grey: three equal channels give that channel, unchanged; others the luminance of ITU-R 601
(0.299 red + 0.587 green + 0.114 blue). Transparency is dropped. The content says what a file is, not its ending: `.jpg`
files that hold PNG are read as such.

The EXIF orientation is applied. It is not a subtlety: in BRISC nearly all coronal and sagittal images without a tumour
are stored upside down or lying, with the tag that puts them upright, and no image with a tumour is. A network that saw
the stored pixels would tell the classes by the way up.

These sources know no spacing, so that distances are in pixels; PNG says so by holding none.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from braintum.conversion.building.inspection import Inspection, SourceError, inspect_cases, naming_problems
from braintum.conversion.building.raw_dataset import ConversionRequest, ConversionResult, RawDataset
from braintum.conversion.building.selection import assign_groups, contradicting_classes, select_fraction, warn_of_leaks
from braintum.conversion.building.summary import CaseReport, summary_notes, summary_table
from braintum.conversion.files.atomic import atomic_path
from braintum.conversion.files.file_checks import MAX_PIXELS, check_file
from braintum.conversion.files.folders import subfolders, unused_images, unused_note
from braintum.conversion.format.cases import Case, ClassSchema
from braintum.conversion.format.splits import Splits, find_crossings, patient_splits

logger = logging.getLogger(__name__)

FILE_ENDING = ".png"
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp")
TUMOUR_LABEL = 1
IGNORE_LABEL = 2
MASK_THRESHOLD = 127
MAX_UNDECIDED = 0.05
"""A mask with a larger share of grey values between 64 and 191 is not a mask."""
ORIENTATION_TAG = 0x0112
AGAIN = "download it again"


@dataclass(frozen=True)
class GreyImage:
    """An image: its grey values (uint8, shape (Y, X)), and whether EXIF had to turn them."""

    pixels: np.ndarray
    turned: bool = False


MaskReader = Callable[[GreyImage], np.ndarray]
"""Makes the label map of an image; raises `SourceError` for a faulty mask. Workers get it: a module-level function."""


@dataclass(frozen=True)
class ImageItem:
    """One image that becomes a case.

    Attributes:
        case: its row of `cases.csv`, without the group.
        path: the image.
        read_mask: makes the label map.
        mask_known: False where the label map is the ignore label.
        mask_files: the files that the label map is made from.
    """

    case: Case
    path: Path
    read_mask: MaskReader
    mask_known: bool = True
    mask_files: tuple[Path, ...] = ()


@dataclass
class Listing:
    """What a converter found in its source's folders, before any image is read.

    Attributes:
        items: the images.
        problems: naming file, fault and remedy.
        concerns_all: a problem is one of the source as a whole, so that no image can be converted.
        accounted: files and folders that are rightly no cases.
    """

    items: list[ImageItem] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    concerns_all: bool = False
    accounted: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class WriteTask:
    """What `write_image` needs."""

    item: ImageItem
    image_path: Path
    label_path: Path


def empty_mask(image: GreyImage) -> np.ndarray:
    """Returns the label map of an image without a tumour."""
    return np.zeros(image.pixels.shape, np.uint8)


def unknown_mask(image: GreyImage) -> np.ndarray:
    """Returns the label map of an image whose mask is unknown: the ignore label everywhere."""
    return np.full(image.pixels.shape, IGNORE_LABEL, np.uint8)


def read_mask_file(path: Path, image: GreyImage) -> np.ndarray:
    """Reads the mask of a tumour.

    Raises:
        SourceError: it cannot be read, does not fit the image, is no mask, or is empty.
    """
    mask = threshold_mask(path, image)
    if not mask.any():
        raise SourceError(f"{path}: the mask is empty; {AGAIN}, or remove it to use the image for its class only")
    return mask


def threshold_mask(path: Path, image: GreyImage) -> np.ndarray:
    """Reads a mask that is an image itself: tumour is what is brighter than 127.

    Masks are JPEG-compressed somewhere on their way, and "brighter than 0" would take the noise for tumour.

    Raises:
        SourceError: it cannot be read, does not fit the image, or is no mask.
    """
    mask = read_grey(path)
    if mask.turned != image.turned:
        raise SourceError(
            f"{path}: EXIF turns the image and not the mask, or the other way round, so that it is not clear how they "
            "match; save both upright"
        )
    if mask.pixels.shape != image.pixels.shape:
        raise SourceError(f"{path}: is {_size(mask)} pixels, its image {_size(image)}; {AGAIN}, or remove it")
    if np.mean((mask.pixels > 63) & (mask.pixels < 192)) > MAX_UNDECIDED:
        raise SourceError(f"{path}: is no mask, it has many values that are neither dark nor bright; {AGAIN}")
    return (mask.pixels > MASK_THRESHOLD).astype(np.uint8) * np.uint8(TUMOUR_LABEL)


def read_grey(path: Path) -> GreyImage:
    """Reads an image of any kind that Pillow knows; see the module's docstring.

    Raises:
        SourceError: it cannot be read, or has more than 8 bits a channel.
    """
    try:
        check_file(path)
        with Image.open(path) as image:
            if max(image.size) > MAX_PIXELS:
                raise SourceError(f"{path}: declares {image.width}×{image.height} pixels; {AGAIN}, or remove it")
            if image.mode.startswith(("I", "F")):
                raise SourceError(
                    f"{path}: has more than 8 bits a pixel ({image.mode}); remove it, or convert it as NIfTI "
                    "(kind folder)"
                )
            turned = image.getexif().get(ORIENTATION_TAG, 1) not in (0, 1)
            upright = ImageOps.exif_transpose(image)
            # Pillow's L is the luminance of ITU-R 601; equal channels come through unchanged
            grey = upright if upright.mode == "L" else upright.convert("RGB").convert("L")
            return GreyImage(np.asarray(grey, dtype=np.uint8), turned)
    except SourceError:
        raise
    except Exception as error:  # Pillow's decoders raise errors of many types for corrupt files
        fault = " ".join(str(error).removeprefix(f"{path}: ").replace(f"'{path}'", "it").split())
        raise SourceError(f"{path}: not a complete image ({fault}); {AGAIN}, or remove it") from error


def find_images(folder: Path) -> list[Path]:
    """Returns what is named as an image directly in a folder, sorted; hidden files and other rubbish are left out.

    Broken links and folders of such names are among them, for reading them to fail and to say so.
    """
    if not folder.is_dir():
        return []
    return sorted(
        path for path in folder.iterdir() if path.suffix.lower() in IMAGE_ENDINGS and not path.name.startswith(".")
    )


def find_folder(parent: Path, *names: str) -> Path | None:
    """Returns the sub-folder that has one of these names, in upper or lower case."""
    wanted = {name.lower() for name in names}
    return next((path for path in subfolders(parent) if path.name.lower() in wanted), None)


def unique_case_names(names: Iterable[str]) -> list[str]:
    """Turns file names into case names: letters, digits, `_` and `-`; repeated ones get a number.

    Upper and lower case count as the same, since file systems differ in that.
    """
    used: set[str] = set()
    unique = []
    for name in names:
        base = re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "image"
        candidate, number = base, 1
        while candidate.lower() in used:
            number += 1
            candidate = f"{base}_{number}"
        used.add(candidate.lower())
        unique.append(candidate)
    return unique


def source_name(path: Path, source: Path) -> str:
    """Returns the value of the column `source`."""
    return path.relative_to(source).as_posix()


def inspect_image(item: ImageItem) -> Inspection:
    """Reads image and mask and returns the case's report, or its problems."""
    try:
        image = read_grey(item.path)
        mask = item.read_mask(image)
    except SourceError as error:
        return Inspection(problems=(str(error),))
    area = float(np.count_nonzero(mask == TUMOUR_LABEL)) if item.mask_known else None
    return Inspection(CaseReport(item.case, (image.pixels.shape[1], image.pixels.shape[0]), area))


def write_image(task: WriteTask) -> None:
    """Writes image and label map of one case.

    Raises:
        SourceError: a file is not what it was when it was checked.
    """
    image = read_grey(task.item.path)
    for array, path in ((image.pixels, task.image_path), (task.item.read_mask(image), task.label_path)):
        write_png(path, array)


def write_png(path: Path, array: np.ndarray) -> None:
    """Writes a uint8 array of shape (Y, X), atomically, and without anything that changes from run to run."""
    with atomic_path(path) as partial_path:
        Image.fromarray(array).save(partial_path, format="PNG", compress_level=6)


def convert_images(
    request: ConversionRequest,
    dataset: RawDataset,
    listing: Listing,
    dataset_json: Mapping[str, Any],
    pool: bool = False,
    make_splits: Callable[[Sequence[Case]], Splits] = patient_splits,
) -> ConversionResult:
    """Checks and converts what a converter found.

    Args:
        request: source, target and how to convert.
        dataset: the opened target.
        listing: the images.
        dataset_json: the content of `dataset.json` without labels; `classification` holds the classes.
        pool: take the test part for training as well.
        make_splits: makes the splits of the chosen cases.

    Raises:
        SourceError: the source has faults; all of them are listed, and nothing is written.
    """
    items = sorted(listing.items, key=lambda item: item.case.case)
    if pool:
        items = [replace(item, case=replace(item.case, split="train")) for item in items]
    used = [*listing.accounted, *(path for item in items for path in (item.path, *item.mask_files))]
    paths = [item.path for item in items]
    if listing.concerns_all:
        request = replace(request, strict=True)
    contradictions, copies = contradicting_classes([item.case for item in items], paths)
    items = [item for number, item in enumerate(items) if number not in copies]
    reports, problems = inspect_cases(inspect_image, items, request, [*listing.problems, *contradictions])
    faultless = {report.case.case for report in reports}
    items = [item for item in items if item.case.case in faultless]
    paths = [item.path for item in items]
    grouped = assign_groups([item.case for item in items], paths, request.n_processes)
    warn_of_leaks(grouped)
    cases = select_fraction(grouped, request.fraction, request.seed)
    with naming_problems(problems, request):
        splits = make_splits(cases)
    if find_crossings(splits, cases):
        logger.warning(
            "the source's own validation part leaks: %d patient(s) or group(s) of images of the same slice are on both "
            "sides; results on it are too good",
            len(find_crossings(splits, cases)),
        )
    with_case = {case.case: case for case in cases}
    item_of = {item.case.case: item for item in items}
    reports = [replace(report, case=with_case[report.case.case]) for report in reports if report.case.case in with_case]
    schema = ClassSchema.from_dataset_json(dataset_json)
    table = summary_table(reports, schema.class_names if schema else (), "px")
    unused = unused_images(request.source, used, problems, request.not_needed)
    text = "\n".join([table, summary_notes(reports), *unused_note(unused)])
    result = ConversionResult(dataset.folder, text, len(cases), problems=tuple(problems), unused=tuple(unused))
    if request.dry_run:
        return result
    dataset.begin(cases)
    tasks = []
    for case in cases:
        item = item_of[case.case]
        if not dataset.is_done(case, (item.path, *item.mask_files)):
            tasks.append(WriteTask(item, dataset.image_path(case), dataset.label_path(case)))
    dataset.write_cases(write_image, tasks, request.n_processes)
    content = {"name": request.dataset_name, **dataset_json, "labels": label_names(item_of[x.case] for x in cases)}
    dataset.finish(cases, splits, content, [*problems, *unused])
    return result


def label_names(items: Iterable[ImageItem]) -> dict[str, int]:
    """Returns `labels` of dataset.json; the ignore label only where an image needs it, since it changes sampling."""
    labels = {"background": 0, "tumour": TUMOUR_LABEL}
    return labels if all(item.mask_known for item in items) else {**labels, "ignore": IGNORE_LABEL}


def mask_from_file(path: Path) -> MaskReader:
    """Returns the reader of a mask file."""
    return partial(read_mask_file, path)


def log_counts(cases: Sequence[Case], source: Path) -> None:
    """Logs how many images of each part and class a source holds."""
    counts = Counter((case.split, case.tumour_class) for case in cases)
    shown = ", ".join(f"{split} {name} {number}" for (split, name), number in sorted(counts.items()))
    logger.info("%d images in %s: %s", len(cases), source, shown)


def _size(image: GreyImage) -> str:
    return "×".join(map(str, image.pixels.shape[::-1]))
