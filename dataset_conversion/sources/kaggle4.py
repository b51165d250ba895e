"""The Kaggle four-class sets: slices with glioma, meningioma, pituitary tumour or none, without masks.

Two distributions share the layout and many images:

- "Brain Tumor MRI Dataset" (Nickparvar, 7023 images): `Training/` and `Testing/` with the folders `glioma`,
  `meningioma`, `notumor`, `pituitary`;
- "Brain Tumor Classification (MRI)" (SARTAJ, 3264 images): the same with `glioma_tumor`, `meningioma_tumor`,
  `no_tumor`, `pituitary_tumor`, and file names such as `image(12).jpg` that occur in every folder.

Masks of tumours are unknown: their label maps hold nnU-Net's ignore label everywhere, and train the class only. Images
without a tumour have an empty mask. Many images occur more than once, also in both parts; copies share a group.
"""

import argparse
from pathlib import Path
from typing import Any

from braintum.conversion.building.inspection import nothing_found
from braintum.conversion.building.natural_images import (
    FILE_ENDING,
    ImageItem,
    Listing,
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
from braintum.conversion.files.folders import subfolders
from braintum.conversion.format.cases import Case
from braintum.conversion.format.class_names import NEGATIVE_CLASS, known_name, unified_schema

KIND = "kaggle4"
DEFAULT_NAME = "Kaggle4"
DESCRIPTION = "the Kaggle four-class sets (Nickparvar, SARTAJ): Training and Testing with a folder a class, no masks"

PARTS = {"train": ("training", "train"), "test": ("testing", "test")}
CLASSES = ("glioma", "meningioma", "pituitary", NEGATIVE_CLASS)

DATASET_JSON: dict[str, Any] = {
    "channel_names": {"0": "MRI"},
    "overwrite_image_reader_writer": "NaturalImage2DIO",
    "description": "MRI slices of several sequences with glioma, meningioma, pituitary tumour or none; no masks",
    "reference": "https://www.kaggle.com/datasets/masoudnickparvar/brain-tumor-mri-dataset, "
    "https://www.kaggle.com/datasets/sartajbhuvaji/brain-tumor-classification-mri",
    "licence": "see the source",
    "classification": unified_schema(CLASSES).to_json(),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this source's own options."""
    parser.add_argument("--pool", action="store_true", help="put Testing into the cross-validation as well")


def convert(request: ConversionRequest, pool: bool = False) -> ConversionResult:
    """Converts the data set to PNG in nnU-Net's raw layout, or only checks it (`request.dry_run`).

    Args:
        request: source, target and how to convert.
        pool: put Testing into imagesTr and into the splits; otherwise it goes to imagesTs.

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
    """Finds the images of all classes in both parts.

    Raises:
        FileNotFoundError: there are none.
    """
    listing = Listing()
    found: list[tuple[str, str, Path]] = []
    for part, names in PARTS.items():
        parent = find_folder(source, *names)
        for folder in subfolders(parent) if parent else []:
            tumour_class = known_name(folder.name)
            if tumour_class in CLASSES:
                found += [(part, str(tumour_class), path) for path in find_images(folder)]
            elif find_images(folder):
                listing.problems.append(
                    f"{folder}: no class has this name; known: {', '.join(CLASSES)}; rename or remove the folder"
                )
    if not found:
        remedy = "give the folder that holds Training and Testing"
        raise nothing_found(source, "images in Training/glioma and the like", remedy)
    # names repeat between folders, so that part and class have to be in the case's name
    names_of_cases = unique_case_names(f"{part}_{tumour_class}_{path.stem}" for part, tumour_class, path in found)
    for name, (part, tumour_class, path) in zip(names_of_cases, found, strict=True):
        case = Case(name, tumour_class, split=part, source=source_name(path, source))
        negative = tumour_class == NEGATIVE_CLASS
        listing.items.append(ImageItem(case, path, empty_mask if negative else unknown_mask, negative))
    log_counts([item.case for item in listing.items], source)
    return listing
