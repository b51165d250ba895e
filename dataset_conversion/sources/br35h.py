"""Br35H: slices with a tumour of unnamed type or none, and outlines for 800 of them.

Source: Hamada, Br35H :: Brain Tumor Detection 2020, https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection.
The original layout:

- `yes/` and `no/`: 1500 images each, without outlines;
- `Br35H-Mask-RCNN/{TRAIN,VAL,TEST}/`: 500, 200 and 100 images with `annotations_{train,val,test}.json`, which the VGG
  Image Annotator (VIA) wrote: an entry an image, its key being file name and size; each region is a polygon, an ellipse
  (rotated by `theta`) or a circle.

All outlined images are in `yes/` as well: byte-identical ones are one case. The other images of `yes/` have an unknown
mask (nnU-Net's ignore label), those of `no/` an empty one. TEST goes to imagesTs. Upper and lower case of file names
varies (`No12.jpg`, `no609.jpg`), and some `.jpg` files hold PNG. `pred/`, 60 images without any label, is left out.
"""

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from braintum.conversion.building.inspection import SourceError, nothing_found
from braintum.conversion.building.natural_images import (
    AGAIN,
    FILE_ENDING,
    ImageItem,
    Listing,
    MaskReader,
    convert_images,
    empty_mask,
    find_folder,
    find_images,
    log_counts,
    source_name,
    unique_case_names,
    unknown_mask,
)
from braintum.conversion.building.raw_dataset import ConversionRequest, ConversionResult, RawDataset
from braintum.conversion.building.selection import byte_identical_groups
from braintum.conversion.building.via import Annotation, draw_regions, read_annotations
from braintum.conversion.files.folders import subfolders
from braintum.conversion.format.cases import Case
from braintum.conversion.format.class_names import NEGATIVE_CLASS, UNSPECIFIC_CLASS, known_name, unified_schema
from braintum.conversion.format.splits import Splits, patient_splits

logger = logging.getLogger(__name__)

KIND = "br35h"
DEFAULT_NAME = "Br35H"
DESCRIPTION = "Br35H: the folders yes and no, and the outlined images of TRAIN, VAL and TEST"

PARTS = {"TRAIN": "train", "VAL": "train", "TEST": "test"}
UNLABELLED = "pred"

DATASET_JSON: dict[str, Any] = {
    "channel_names": {"0": "MRI"},
    "overwrite_image_reader_writer": "NaturalImage2DIO",
    "description": "MRI slices of several sequences with a tumour or none; outlines of some tumours",
    "reference": "Hamada, A. Br35H :: Brain Tumor Detection 2020. "
    "https://www.kaggle.com/datasets/ahmedhamada0/brain-tumor-detection",
    "licence": "see the source",
    "classification": unified_schema((UNSPECIFIC_CLASS, NEGATIVE_CLASS)).to_json(),
}


@dataclass(frozen=True)
class FoundImage:
    """One file: the folder it is in (`TRAIN`, `VAL`, `TEST`, `yes` or `no`), and its outlines."""

    path: Path
    folder: str
    annotation: Annotation | None = None

    @property
    def tumour_class(self) -> str:
        """The class that the folder stands for."""
        return NEGATIVE_CLASS if self.folder == "no" else UNSPECIFIC_CLASS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this source's own options."""
    parser.add_argument("--pool", action="store_true", help="put TEST into the cross-validation as well")
    parser.add_argument(
        "--official-split",
        action="store_true",
        help="one split that validates on VAL, instead of five-fold cross-validation",
    )
    parser.add_argument(
        "--outlined-only",
        action="store_true",
        help="leave out images without an outline: the 500, 200 and 100 of TRAIN, VAL and TEST remain",
    )


def convert(
    request: ConversionRequest, pool: bool = False, official_split: bool = False, outlined_only: bool = False
) -> ConversionResult:
    """Converts the data set to PNG in nnU-Net's raw layout, or only checks it (`request.dry_run`).

    Args:
        request: source, target and how to convert.
        pool: put TEST into imagesTr and into the splits; otherwise it goes to imagesTs.
        official_split: the only split validates on VAL, as in the original; TRAIN, `yes` and `no` are for training.
        outlined_only: leave out images without an outline, with or without a tumour; no label is ignored then.

    Returns:
        The data set's folder and summary.

    Raises:
        SourceError: the source has faults; all of them are listed, and nothing is written.
        ValueError: both options at once.
        DatasetTakenError: the data-set number is in use.
        FileNotFoundError: no images in the source folder.
    """
    if pool and official_split:
        raise ValueError("--pool and --official-split contradict each other; give one of them")
    options = {"pool": pool, "official_split": official_split, "outlined_only": outlined_only}
    dataset = RawDataset.open(request, KIND, options, FILE_ENDING)
    listing, validation = list_images(request.source, outlined_only)
    make_splits: Callable[[Sequence[Case]], Splits] = (
        partial(validate_on, validation) if official_split else patient_splits
    )
    return convert_images(request, dataset, listing, DATASET_JSON, pool, make_splits)


def validate_on(validation: frozenset[str], cases: Sequence[Case]) -> Splits:
    """Makes the official split.

    Raises:
        ValueError: one of its sides is empty.
    """
    names = sorted(case.case for case in cases if case.split != "test")
    split = {
        "train": [name for name in names if name not in validation],
        "val": [name for name in names if name in validation],
    }
    if not split["train"] or not split["val"]:
        raise ValueError("the official split has no images on one side; leave out --official-split")
    return [split]


def list_images(source: Path, outlined_only: bool = False) -> tuple[Listing, frozenset[str]]:
    """Finds all images, or those with an outline.

    Returns:
        The images, and the names of the cases of VAL.

    Raises:
        FileNotFoundError: there are none.
    """
    listing = Listing()
    found = _find_annotated(source, listing)
    for folder, tumour_class in (("yes", UNSPECIFIC_CLASS), ("no", NEGATIVE_CLASS)):
        for path in find_images(_find_class_folder(source, tumour_class) or source / folder):
            found.append(FoundImage(path, folder))
    if not found and not listing.problems:
        remedy = "give the folder that holds yes, no and Br35H-Mask-RCNN"
        raise nothing_found(source, "images in yes, no, TRAIN, VAL or TEST", remedy)
    listing.accounted = [source / UNLABELLED, *(image.path for image in found)]
    if outlined_only:
        found = [image for image in found if image.annotation is not None and image.annotation.regions]
        if not found and not listing.problems:
            raise nothing_found(source, "outlined images in TRAIN, VAL or TEST", "give the folder of Br35H-Mask-RCNN")
    found = merge_copies(found)
    names = unique_case_names(f"br35h_{image.path.stem.lower()}" for image in found)
    validation = set()
    for name, image in zip(names, found, strict=True):
        part = PARTS.get(image.folder, "train")
        case = Case(name, image.tumour_class, split=part, source=source_name(image.path, source))
        reader, known = _mask_reader(image)
        files = (image.annotation.file,) if image.annotation else ()
        listing.items.append(ImageItem(case, image.path, reader, known, files))
        if image.folder == "VAL":
            validation.add(name)
    log_counts([item.case for item in listing.items], source)
    return listing, frozenset(validation)


def merge_copies(found: Sequence[FoundImage]) -> list[FoundImage]:
    """Leaves out the images of `yes` that are byte-identical to one of TRAIN, VAL or TEST: both are one case.

    Images that are twice in those, and copies within `yes` or `no`, stay cases of their own; they share a group later.
    """
    left_out: set[int] = set()
    for group in byte_identical_groups([image.path for image in found]):
        if any(found[number].folder in PARTS for number in group):
            left_out.update(number for number in group if found[number].folder == "yes")
    logger.info("%d images of yes are in TRAIN, VAL or TEST too: merged with them", len(left_out))
    return [image for number, image in enumerate(found) if number not in left_out]


def _find_class_folder(source: Path, tumour_class: str) -> Path | None:
    return next((path for path in subfolders(source) if known_name(path.name) == tumour_class), None)


def _mask_reader(image: FoundImage) -> tuple[MaskReader, bool]:
    if image.folder == "no":
        return empty_mask, True
    if image.annotation is None or not image.annotation.regions:
        return unknown_mask, False
    return partial(draw_regions, image.annotation), True


def _find_annotated(source: Path, listing: Listing) -> list[FoundImage]:
    """Returns the images of TRAIN, VAL and TEST; without an annotation where they have none."""
    problems = listing.problems
    parent = next((path for path in (find_folder(source, "Br35H-Mask-RCNN"), source) if path is not None), source)
    found = []
    for part in PARTS:
        folder = find_folder(parent, part)
        if folder is None:
            continue
        annotations: dict[str, list[Annotation]] = {}
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".json" and path.name[0] != ".")
        if not files:
            problems.append(f"{folder}: there is no annotations_{part.lower()}.json; {AGAIN}")
            listing.concerns_all = True  # without it, outlined images would count as not outlined
        for file in files:
            try:
                for annotation in read_annotations(file):
                    annotations.setdefault(annotation.image, []).append(annotation)
            except SourceError as error:
                problems.append(str(error))
                listing.concerns_all = True
        for path in find_images(folder):
            try:
                found.append(FoundImage(path, part, _choose(path, annotations.pop(path.name, []))))
            except SourceError as error:
                problems.append(str(error))
        problems += [
            f"{folder / name}: there is no such image, but {entries[0].file.name} has its outlines; {AGAIN}"
            for name, entries in sorted(annotations.items())
        ]
    return found


def _choose(path: Path, entries: Sequence[Annotation]) -> Annotation | None:
    """Returns the annotation of an image: VIA keeps one for each file size that it saw under the name.

    Raises:
        SourceError: there are annotations, but of another file; or there is no file.
    """
    if not path.is_file():
        raise SourceError(f"{path}: is no file, but a folder or a broken link; {AGAIN}, or remove it")
    if not entries:
        return None
    size = path.stat().st_size
    fitting = [entry for entry in entries if entry.size in (size, None)]
    if fitting:
        return fitting[0] if len(fitting) == 1 else replace(fitting[0], regions=sum((x.regions for x in fitting), ()))
    raise SourceError(
        f"{path}: has {size} bytes, but {entries[0].file.name} outlines a file of {entries[0].size} bytes; {AGAIN}"
    )
