"""BRISC 2025: 6000 T1 slices with glioma, meningioma, pituitary tumour or none, and masks of the tumours.

Source: Fateh et al. 2025, https://arxiv.org/abs/2506.14318 (CC BY 4.0). The original layout holds two tasks, converted
together:

- `classification_task/{train,test}/{glioma,meningioma,no_tumor,pituitary}/*.jpg`;
- `segmentation_task/{train,test}/images/*.jpg` and `…/masks/*.png`, of the images with a tumour.

An image of both tasks, told by its name, is one case. File names hold split, number, class, plane and sequence:
`brisc2025_train_00009_gl_ax_t1.jpg`; the class code of images without a tumour is `no` (the source's README says `nt`).
`manifest.csv` (paths with backslashes) names planes in full and is used where a name tells less. Masks are compressed:
grey values 0 to 10 and 245 to 255. Images without a tumour have no mask, and an empty one is the truth.

The official test part leaks: identical, and many mirrored, copies of training slices are in it. `--pool` puts all
images together and makes splits that keep such copies on one side.
"""

import argparse
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from braintum.conversion.building.inspection import SourceError, nothing_found
from braintum.conversion.building.natural_images import (
    AGAIN,
    FILE_ENDING,
    GreyImage,
    ImageItem,
    Listing,
    MaskReader,
    convert_images,
    empty_mask,
    find_folder,
    find_images,
    log_counts,
    mask_from_file,
    read_grey,
    source_name,
    threshold_mask,
    unknown_mask,
)
from braintum.conversion.building.raw_dataset import ConversionRequest, ConversionResult, RawDataset
from braintum.conversion.building.source_tables import read_rows
from braintum.conversion.files.folders import subfolders
from braintum.conversion.format.cases import Case
from braintum.conversion.format.class_names import NEGATIVE_CLASS, known_name, unified_schema

logger = logging.getLogger(__name__)

KIND = "brisc"
DEFAULT_NAME = "BRISC"
DESCRIPTION = "BRISC 2025: classification_task and segmentation_task together"

PLANES = {"ax": "axial", "co": "coronal", "sa": "sagittal"}
PARTS = ("train", "test")
MANIFEST = "manifest.csv"
NAME_PATTERN = re.compile(r"brisc2025_(train|test)_([0-9]+)_([a-z]+)_([a-z]+)_([a-z0-9]+)", re.IGNORECASE)
MAX_DIFFERENCE = 10
"""Mean difference of grey values above which two images of the same name are not the same."""

DATASET_JSON: dict[str, Any] = {
    "channel_names": {"0": "T1"},
    "overwrite_image_reader_writer": "NaturalImage2DIO",
    "description": "T1 slices with glioma, meningioma, pituitary tumour or none; masks of the tumours",
    "reference": "Fateh et al. BRISC: annotated dataset for brain tumor segmentation and classification (2025). "
    "https://arxiv.org/abs/2506.14318",
    "licence": "CC BY 4.0",
    "classification": unified_schema(("glioma", "meningioma", "pituitary", NEGATIVE_CLASS)).to_json(),
}


@dataclass(frozen=True)
class NameParts:
    """What a file name says: part and class (empty: nothing), and plane."""

    split: str = ""
    tumour_class: str = ""
    plane: str = ""


@dataclass
class Found:
    """Where one image was found, and what its folders say."""

    split: str
    classified: Path | None = None
    tumour_class: str = ""
    segmented: Path | None = None
    mask: Path | None = None
    is_ambiguous: bool = False

    @property
    def path(self) -> Path | None:
        """The image; the copy beside the mask comes first."""
        return self.segmented or self.classified


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this source's own options."""
    parser.add_argument(
        "--pool", action="store_true", help="put the official test part into the cross-validation as well"
    )


def convert(request: ConversionRequest, pool: bool = False) -> ConversionResult:
    """Converts the data set to PNG in nnU-Net's raw layout, or only checks it (`request.dry_run`).

    Args:
        request: source, target and how to convert.
        pool: put the official test part into imagesTr and into the splits; otherwise it goes to imagesTs.

    Returns:
        The data set's folder and summary.

    Raises:
        SourceError: the source has faults; all of them are listed, and nothing is written.
        DatasetTakenError: the data-set number is in use.
        FileNotFoundError: no images in the source folder.
    """
    dataset = RawDataset.open(request, KIND, {"pool": pool}, FILE_ENDING)
    listing = list_images(request.source)
    return convert_images(request, dataset, listing, DATASET_JSON, pool)


def list_images(source: Path) -> Listing:
    """Finds images and masks of both tasks.

    Raises:
        FileNotFoundError: there are no images.
        SourceError: the manifest cannot be read.
    """
    listing = Listing()
    found: dict[str, Found] = {}
    _list_classification(source, found, listing.problems)
    _list_segmentation(source, found, listing.problems)
    if not any(entry.path for entry in found.values()):
        raise nothing_found(source, "images in classification_task/train/glioma and the like, nor in segmentation_task")
    manifest = read_manifest(source)
    if manifest and not manifest.keys() & found.keys():
        listing.problems.append(f"{source / MANIFEST}: none of its rows fits an image; {AGAIN}, or remove it")
    for stem, entry in sorted(found.items()):
        if entry.is_ambiguous:  # which of the files is right is not known
            continue
        if entry.path is None:
            listing.problems.append(f"{entry.mask}: there is no image of this name; {AGAIN}, or remove the mask")
            continue
        item = _make_item(stem, entry, entry.path, manifest.get(stem, NameParts()), source, listing.problems)
        if item is not None:
            listing.items.append(item)
    log_counts([item.case for item in listing.items], source)
    return listing


def _list_classification(source: Path, found: dict[str, Found], problems: list[str]) -> None:
    task = find_folder(source, "classification_task") or source / "classification_task"
    for part in PARTS:
        parent = find_folder(task, part)
        for folder in subfolders(parent) if parent else []:
            tumour_class = known_name(folder.name)
            if tumour_class not in DATASET_JSON["classification"]["class_names"]:
                problems.append(f"{folder}: no class has this name; rename or remove the folder")
                continue
            for path in find_images(folder):
                other = found.get(path.stem)
                if other is not None:
                    problems.append(f"{path}: occurs twice, also as {other.path}; remove the wrong one")
                    other.is_ambiguous = True
                else:
                    found[path.stem] = Found(part, classified=path, tumour_class=tumour_class or "")


def _list_segmentation(source: Path, found: dict[str, Found], problems: list[str]) -> None:
    task = find_folder(source, "segmentation_task") or source / "segmentation_task"
    for part in PARTS:
        folder = find_folder(task, part)
        if folder is None:
            continue
        for path in find_images(find_folder(folder, "images") or folder / "images"):
            entry = found.setdefault(path.stem, Found(part))
            if entry.segmented is not None:
                problems.append(f"{path}: occurs twice, also as {entry.segmented}; remove the wrong one")
                entry.is_ambiguous = True
            elif entry.split != part:
                problems.append(f"{path}: is in the {entry.split} part too, as {entry.path}; remove the wrong one")
                entry.is_ambiguous = True
            else:
                entry.segmented = path
        for path in find_images(find_folder(folder, "masks") or folder / "masks"):
            entry = found.setdefault(path.stem, Found(part))
            if entry.mask is not None:
                problems.append(f"{path}: occurs twice, also as {entry.mask}; remove the wrong one")
                entry.is_ambiguous = True
            elif entry.split != part:
                problems.append(f"{path}: its image is in the {entry.split} part, {entry.path}; remove the wrong one")
                entry.is_ambiguous = True
            else:
                entry.mask = path


def _make_item(
    stem: str, entry: Found, path: Path, from_manifest: NameParts, source: Path, problems: list[str]
) -> ImageItem | None:
    """Returns the case of one image, or notes why there is none."""
    named = read_name(stem)
    classes = {
        place: name
        for place, name in (
            ("folder", entry.tumour_class),
            ("file name", named.tumour_class),
            (MANIFEST, from_manifest.tumour_class),
        )
        if name
    }
    if not classes:
        problems.append(f"{path}: neither folder, file name nor {MANIFEST} tells its class; {AGAIN}, or remove it")
        return None
    if len(set(classes.values())) > 1:
        said = ", ".join(f"{place} {name}" for place, name in classes.items())
        problems.append(f"{path}: its class is contradictory ({said}); {AGAIN}, or remove it")
        return None
    if named.split and named.split != entry.split:
        problems.append(f"{path}: is in the {entry.split} part, but its name says {named.split}; move or remove it")
        return None
    tumour_class = next(iter(classes.values()))
    case = Case(
        case=stem,
        tumour_class=tumour_class,
        split=entry.split,
        plane=named.plane or from_manifest.plane,
        source=source_name(path, source),
    )
    copies = (entry.classified,) if entry.classified and entry.segmented else ()
    reader: MaskReader
    if tumour_class == NEGATIVE_CLASS:
        reader = empty_mask if entry.mask is None else partial(read_empty_mask, entry.mask)
    else:
        reader = unknown_mask if entry.mask is None else mask_from_file(entry.mask)
    known = tumour_class == NEGATIVE_CLASS or entry.mask is not None
    if copies:
        reader = partial(compare_copies, path, copies[0], reader)
    masks = (entry.mask,) if entry.mask else ()
    return ImageItem(case, path, reader, known, (*masks, *copies))


def read_empty_mask(path: Path, image: GreyImage) -> np.ndarray:
    """Returns the empty label map of an image without a tumour, whose mask has to be empty, too.

    Raises:
        SourceError: the mask shows something.
    """
    mask = threshold_mask(path, image)
    if mask.any():
        raise SourceError(
            f"{path}: shows a tumour, but its image is in the class {NEGATIVE_CLASS}; remove the wrong one"
        )
    return mask


def compare_copies(path: Path, copy: Path, reader: MaskReader, image: GreyImage) -> np.ndarray:
    """Returns the label map of an image that is in both tasks, after a look whether both show the same.

    Raises:
        SourceError: they do not.
    """
    if not copy.is_file() or copy.stat().st_size != path.stat().st_size or copy.read_bytes() != path.read_bytes():
        other = read_grey(copy).pixels
        # a copy that was saved again differs a little
        same_size = other.shape == image.pixels.shape
        if not same_size or np.abs(other.astype(np.int16) - image.pixels).mean() > MAX_DIFFERENCE:
            raise SourceError(f"{path}: shows something else than the image of the same name {copy}; {AGAIN}")
    return reader(image)


def read_name(stem: str) -> NameParts:
    """Reads part, class and plane from a file name; empty for names of another kind."""
    match = NAME_PATTERN.fullmatch(stem)
    if match is None:
        return NameParts()
    split, _, tumour_code, plane_code, _ = (text.lower() for text in match.groups())
    return NameParts(split, known_name(tumour_code) or "", PLANES.get(plane_code, ""))


def read_manifest(source: Path) -> Mapping[str, NameParts]:
    """Reads class and plane of every image from `manifest.csv`, if it is there.

    Raises:
        SourceError: it is no CSV file with the columns that are needed.
    """
    path = source / MANIFEST
    if not path.is_file():
        return {}
    try:
        rows = [row for _, row in read_rows(path)[1]]
        return {
            # a Windows path, on whatever system
            PureWindowsPath(row["relative_path"]).stem: NameParts(
                row["split"].lower(), known_name(row["tumor_label"]) or "", row["plane_label"].lower()
            )
            for row in rows
        }
    except KeyError as error:
        raise SourceError(f"{path}: has no column {error}; {AGAIN}, or remove it: names tell the same") from error
