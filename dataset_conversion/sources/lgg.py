"""TCGA-LGG as published on Kaggle (`kaggle_3m`): 110 patients with lower-grade glioma, 3929 slices of three sequences.

Source: https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation; Buda, Saha & Mazurowski 2019, Comput. Biol.
Med. 109: 218-225.

The original layout is a folder a patient, `TCGA_<institution>_<patient>_<date>`, with `<folder>_N.tif` (256 × 256 × 3,
uint8: pre-contrast T1, FLAIR, post-contrast T1) and `<folder>_N_mask.tif` (0 and 255: the FLAIR abnormality), N = 1, 2,
and so on; and `data.csv` with a row a patient, whose names lack the date.

- A missing pre- or post-contrast sequence was replaced with FLAIR by the authors. It is recognised by a channel that
  equals FLAIR in the whole volume, written as it is, and reported (`remarks` in `dataset.json` names the cases).
- `neoplasm_histologic_grade`: 1 and 2 stand for WHO grade II and III (51 and 58 patients, as published);
  `histological_type`: 1 astrocytoma, 2 oligoastrocytoma, 3 oligodendroglioma. The source has no legend: these are the
  categories of TCGA in alphabetical order, and 3 goes with the 1p/19q co-deleted cluster. A blank is an unknown class.
- The files have no spacing: the authors resized all slices to 256 × 256. A volume is written with 1 × 1 × 1 mm, which
  stands for "one voxel", unless `--spacing` gives one; sizes and distances are in voxels then. The real distance of
  slices is several times the pixel size for most patients, so that 2-D networks are the better choice. Slices are PNG
  files, which have no spacing at all.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from PIL import Image

from braintum.conversion.building.inspection import SourceError, nothing_found, raise_problems
from braintum.conversion.building.raw_dataset import ConversionRequest, ConversionResult, RawDataset
from braintum.conversion.building.slices import add_slice_arguments, slice_choice
from braintum.conversion.building.source_tables import read_rows
from braintum.conversion.building.volume_cases import LoadedVolume, Target, convert_volumes
from braintum.conversion.files.file_checks import MAX_PIXELS, check_file, one_line
from braintum.conversion.files.folders import walk
from braintum.conversion.files.volumes import VolumeError
from braintum.conversion.format.cases import Case, ClassSchema
from braintum.conversion.format.class_names import NEGATIVE_CLASS, UNSPECIFIC_CLASS

KIND = "lgg"
DEFAULT_NAME = "TCGALGG"
DESCRIPTION = "TCGA-LGG of Kaggle (kaggle_3m): a folder of TIFF slices and masks a patient, and data.csv"

CHANNEL_NAMES = ("T1", "FLAIR", "T1ce")
FLAIR = 1
LABELS = {"background": 0, "tumour": 1}
CLASS_TABLE = "data.csv"
INVALID = "?"
"""Stands for a class that cannot be: the patient is left out."""
AGAIN = "download it again"

CLASSES: dict[str, tuple[str, dict[str, str]]] = {
    "grade": ("neoplasm_histologic_grade", {"1": "grade_2", "2": "grade_3"}),
    "histology": ("histological_type", {"1": "astrocytoma", "2": "oligoastrocytoma", "3": "oligodendroglioma"}),
}
"""`--class-by` -> column of `data.csv`, and its codes -> class."""
TUMOUR = "tumour"
SCHEMAS = {
    **{key: ClassSchema(tuple(names.values())) for key, (_, names) in CLASSES.items()},
    TUMOUR: ClassSchema((UNSPECIFIC_CLASS, NEGATIVE_CLASS), NEGATIVE_CLASS),
}

_SLICE = re.compile(r"(?P<case>.+)_(?P<number>[0-9]+)(?P<mask>_mask)?\.tiff?", re.IGNORECASE)
_PATIENT = re.compile(r"(TCGA_[A-Z0-9]+_[A-Z0-9]+)(_[0-9]{8})?", re.IGNORECASE)


@dataclass(frozen=True)
class LggCase:
    """One patient: `case` as known without reading, the slices and their masks in numerical order, and the spacing."""

    case: Case
    slices: tuple[Path, ...]
    masks: tuple[Path, ...]
    spacing: tuple[float, float, float]

    @property
    def has_mask(self) -> bool:
        """All patients have one."""
        return True

    def files(self) -> list[Path]:
        """Returns slices and masks."""
        return [*self.slices, *self.masks]

    def load(self) -> LoadedVolume:
        """Reads and checks the patient; raises `VolumeError`."""
        problems: list[str] = []
        images = [_read(path, "RGB", problems) for path in self.slices]
        masks = [_read(path, "L", problems) for path in self.masks]
        for path, mask in zip(self.masks, masks, strict=True):
            if mask is not None and not np.isin(mask, (0, 255)).all():
                problems.append(f"{path}: a mask with values other than 0 and 255; {AGAIN}")
        sizes = {array.shape[:2] for array in (*images, *masks) if array is not None}
        if len(sizes) > 1:
            shown = ", ".join(f"{x}×{y}" for y, x in sorted(sizes))
            problems.append(f"{self.slices[0].parent}: slices and masks of different sizes ({shown}); {AGAIN}")
        if problems:
            raise VolumeError(*problems)
        stack = np.stack([array for array in images if array is not None])
        mask = (np.stack([array for array in masks if array is not None]) > 0).astype(np.uint8)
        channels = []
        for channel in range(len(CHANNEL_NAMES)):
            image = sitk.GetImageFromArray(np.ascontiguousarray(stack[..., channel]))
            image.SetSpacing(self.spacing)
            channels.append(image)
        missing = [
            f"{name} is missing (a copy of FLAIR stands in its place)"
            for channel, name in enumerate(CHANNEL_NAMES)
            if channel != FLAIR and np.array_equal(stack[..., channel], stack[..., FLAIR])
        ]
        numbers = [int(path.stem.rpartition("_")[2]) for path in self.slices]
        sources = tuple(
            (number, f"{self.case.source}/{path.name}") for number, path in zip(numbers, self.slices, strict=True)
        )
        return LoadedVolume(tuple(channels), mask, tuple(missing), sources)


def _read(path: Path, mode: str, problems: list[str]) -> np.ndarray | None:
    """Reads a TIFF file of 8 bits a channel; notes what is wrong with it."""
    try:
        check_file(path)
        with Image.open(path) as image:
            if max(image.size) > MAX_PIXELS:
                problems.append(f"{path}: declares {image.width}×{image.height} pixels; {AGAIN}")
            elif image.mode == mode:
                return np.asarray(image)
            else:
                problems.append(f"{path}: has pixels of mode {image.mode}, not {mode}; {AGAIN}")
    except Exception as error:  # Pillow's decoders raise errors of many types for corrupt files
        problems.append(f"{path}: not a complete TIFF file ({one_line(error)}); {AGAIN}")
    return None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this source's own options."""
    add_slice_arguments(parser, default="all")
    parser.add_argument(
        "--class-by",
        choices=tuple(SCHEMAS),
        default="grade",
        help="the classes: WHO grade, histology, or (with --slices) tumour or none in a slice (default: %(default)s)",
    )
    parser.add_argument(
        "--spacing",
        type=float,
        nargs=3,
        metavar=("X", "Y", "Z"),
        help="the volumes' spacing in mm, if you know it: the source has none",
    )


def convert(
    request: ConversionRequest,
    slices: str | None = None,
    slice_margin: int = 0,
    healthy_slices: int = 0,
    class_by: str = "grade",
    spacing: Sequence[float] | None = None,
) -> ConversionResult:
    """Converts the data set to nnU-Net's raw layout, or only checks it (`request.dry_run`).

    Args:
        request: source, target and how to convert.
        slices: None for volumes (NIfTI); `all` or `tumour` for slices (PNG, one file a channel; see `SliceChoice`).
        slice_margin: with `tumour`: further slices on either side of the tumour.
        healthy_slices: with `tumour`: slices without tumour, of each patient.
        class_by: `grade` or `histology` (of the patient), or `tumour` (`tumor` or `no_tumor`, of the slice).
        spacing: in mm, x y z; None where it is not known, as in the source.

    Returns:
        The data set's folder and summary.

    Raises:
        SourceError: the source has faults; all of them are listed, and nothing is written.
        DatasetTakenError: the data-set number is in use.
        FileNotFoundError: no patients in the source folder.
        ValueError: options that contradict each other.
    """
    choice = slice_choice(slices, slice_margin, healthy_slices)
    if class_by not in SCHEMAS:
        raise ValueError(f"--class-by {class_by!r} is not one of {', '.join(SCHEMAS)}")
    if class_by == TUMOUR and choice is None:
        raise ValueError("--class-by tumour is the class of a slice (each volume has a tumour); add --slices")
    if spacing is not None and (choice is not None or len(spacing) != 3 or min(spacing) <= 0):
        raise ValueError("--spacing takes three positive numbers, for volumes only: slices are PNG, without a spacing")
    options = {
        "slices": slices,
        "slice_margin": slice_margin,
        "healthy_slices": healthy_slices,
        "class_by": class_by,
        "spacing": None if spacing is None else list(spacing),
    }
    dataset = RawDataset.open(request, KIND, options, ".nii.gz" if choice is None else ".png")
    sources, problems, notes, doubles = find_patients(request.source, class_by, spacing)
    content: dict[str, Any] = {
        "description": "Lower-grade glioma: T1, FLAIR and contrast-enhanced T1, with the FLAIR abnormality",
        "reference": "Buda, Saha & Mazurowski 2019, https://www.kaggle.com/datasets/mateuszbuda/lgg-mri-segmentation",
        "licence": "CC BY-NC-SA 4.0",
        "classification": SCHEMAS[class_by].to_json(),
    }
    if choice is not None:
        notes.append("The source has no spacing: the PNG files have none, sizes and distances are in pixels.")
    elif spacing is None:
        note = "The source has no spacing: 1 × 1 × 1 mm is written and stands for one voxel, sizes are in voxels"
        content["spacing_note"] = note
        notes.append(f"{note}. Slices lie further apart than pixels: prefer the configuration 2d, or give --spacing.")
    target = Target(
        LABELS,
        CHANNEL_NAMES,
        choice,
        plane="axial",
        spacing_known=choice is None and spacing is not None,
        file_ending=dataset.file_ending,
        slice_classes=(UNSPECIFIC_CLASS, NEGATIVE_CLASS) if class_by == TUMOUR else None,
    )
    return convert_volumes(request, dataset, sources, target, content, problems, notes, doubles)


def find_patients(
    source: Path, class_by: str, spacing: Sequence[float] | None = None
) -> tuple[list[LggCase], list[str], list[str], list[Path]]:
    """Finds all patients below a folder.

    Args:
        source: the folder; `kaggle_3m` may lie anywhere below it.
        class_by: key of `SCHEMAS`.
        spacing: of the volumes in mm; None writes 1 × 1 × 1.

    Returns:
        The patients, sorted by name; the problems; sentences for the summary; and folders that are there twice.

    Raises:
        FileNotFoundError: there are none.
    """
    folders: dict[str, Path] = {}
    ambiguous: set[str] = set()
    accounted: list[Path] = []
    problems = []
    for path in walk(source):
        is_patient = path.is_dir() and _PATIENT.fullmatch(path.name)
        if is_patient and any(_SLICE.fullmatch(file.name) for file in path.iterdir()):
            if path.name in folders:  # the download holds a second copy, lgg-mri-segmentation/kaggle_3m
                if not _same_files(path, folders[path.name]):
                    problems.append(f"{path}: differs from {folders[path.name]}; remove the wrong one of the two")
                    ambiguous.add(path.name)
                accounted.append(path)
                continue
            folders[path.name] = path
    if not folders:
        raise nothing_found(source, "folders such as TCGA_CS_4941_19960909 with TIFF files in this folder or below")
    names = sorted(folders)
    classes, table_problems, notes = read_classes(source, class_by, [_patient(name) for name in names])
    problems += table_problems
    mm = (1.0, 1.0, 1.0) if spacing is None else (float(spacing[0]), float(spacing[1]), float(spacing[2]))
    patients = []
    for name in names:
        slices, masks, faults = _find_slices(folders[name])
        problems += faults
        patient = _patient(name)
        place = folders[name].relative_to(source).as_posix()
        if not faults and classes.get(patient) != INVALID and name not in ambiguous:
            patients.append(LggCase(Case(name, classes.get(patient, ""), patient, source=place), slices, masks, mm))
    return patients, problems, notes, accounted


def _patient(folder_name: str) -> str:
    """Returns the patient's name without the date."""
    match = _PATIENT.fullmatch(folder_name)
    return match[1].upper() if match else folder_name


def _same_files(one: Path, other: Path) -> bool:
    sizes = [{path.name: path.stat().st_size for path in folder.iterdir()} for folder in (one, other)]
    return sizes[0] == sizes[1]


def _find_slices(folder: Path) -> tuple[tuple[Path, ...], tuple[Path, ...], list[str]]:
    """Returns slices and masks in the order of their numbers, and the problems."""
    slices: dict[int, Path] = {}
    masks: dict[int, Path] = {}
    problems = []
    for path in sorted(folder.iterdir()):
        match = _SLICE.fullmatch(path.name)
        if match is None or path.name.startswith("."):
            continue
        if match["case"] != folder.name:
            problems.append(f"{path}: belongs to another patient by its name; move it, or remove it")
            continue
        (masks if match["mask"] else slices)[int(match["number"])] = path
    for number in sorted(slices.keys() ^ masks.keys()):
        lacks, path = ("mask", slices[number]) if number in slices else ("slice", masks[number])
        problems.append(f"{path}: has no {lacks}; {AGAIN}, or remove it")
    numbers = sorted(slices)
    gaps = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers)) if numbers else []
    if gaps or not numbers:
        missing = f"slice(s) {', '.join(map(str, gaps[:5]))} of {numbers[-1]} are missing" if gaps else "no slices"
        problems.append(f"{folder}: {missing}; {AGAIN}")
    # numerically: in alphabetical order, 10 comes before 2
    return tuple(slices[n] for n in numbers), tuple(masks[n] for n in numbers if n in masks), problems


def read_classes(source: Path, class_by: str, patients: Sequence[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Reads the patients' classes from `data.csv`.

    Args:
        source: the folder; the file may lie anywhere below it.
        class_by: key of `SCHEMAS`.
        patients: those that are there.

    Returns:
        Patient -> class, without those of unknown class; the problems; and sentences for the summary.
    """
    if class_by == TUMOUR:
        return {}, [], []
    column, names = CLASSES[class_by]
    path = next((path for path in walk(source) if path.name.lower() == CLASS_TABLE), None)
    if path is None:
        remedy = "copy it from the download, or choose --slices --class-by tumour, which needs no table"
        raise_problems([f"{source / CLASS_TABLE}: no such file, here or below; {remedy}"], source)
        return {}, [], []
    classes: dict[str, str] = {}
    problems = []
    columns, rows = read_rows(path)
    lacks = [name for name in ("Patient", column) if name not in columns]
    if lacks:
        raise_problems([f"{path}: has no column {', '.join(lacks)}; {AGAIN}"], source)
    for line, row in rows:
        code, patient = row[column].removesuffix(".0"), row["Patient"].upper()
        if code in names:
            if classes.setdefault(patient, names[code]) != names[code]:
                raise SourceError(f"{path}, line {line}: {patient} is there twice with different classes; {AGAIN}")
        elif code:
            problems.append(f"{path}, line {line}: {column} is {code!r}, not one of {', '.join(names)}; {AGAIN}")
            classes[patient] = INVALID
    if not {row["Patient"].upper() for _, row in rows} & set(patients):
        raise_problems([f"{path}: none of its rows fits a patient; {AGAIN}"], source)
    unknown = [patient for patient in patients if patient not in classes]
    shown = f"Class unknown, {column} blank in {CLASS_TABLE} or patient not in it: {', '.join(unknown)}."
    return classes, problems, [shown] if unknown else []
