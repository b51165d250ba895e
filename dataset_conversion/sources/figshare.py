"""The Figshare brain-tumour data set of Jun Cheng: 3064 contrast-enhanced T1 slices of 233 patients, three classes.

Source: https://doi.org/10.6084/m9.figshare.1512427 (CC BY 4.0); Cheng et al. 2015, PLoS ONE 10(10): e0140381.

The original layout is `N.mat` (N = 1 to 3064) in four folders `brainTumorDataPublic_*`, or in any other, and
`cvind.mat` with the authors' five patient-level folds. Each file is MATLAB v7.3, thus HDF5, with a struct `cjdata`:

- `image` (int16) and `tumorMask` (logical): HDF5 shows MATLAB's arrays transposed, they are transposed back here;
- `label`: 1 meningioma, 2 glioma, 3 pituitary tumour;
- `PID`: the patient's identifier, as character codes;
- `tumorBorder`: points of the border, not needed beside the mask.

The documented in-plane spacing is 0.49 mm, for 512 × 512 pixels. Fifteen slices have 256 × 256 pixels and show the same
whole head: at 0.49 mm it would be 12 cm long. So the field of view is what is constant, and the spacing is
0.49 mm · 512 / size, which is 0.98 mm for these slices.
"""

import argparse
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import SimpleITK as sitk

from braintum.conversion.building.inspection import (
    Inspection,
    SourceError,
    inspect_cases,
    naming_problems,
    nothing_found,
    raise_problems,
)
from braintum.conversion.building.raw_dataset import ConversionRequest, ConversionResult, RawDataset
from braintum.conversion.building.selection import select_fraction
from braintum.conversion.building.summary import CaseReport, summary_table
from braintum.conversion.files.atomic import atomic_path
from braintum.conversion.files.file_checks import one_line
from braintum.conversion.files.folders import unused_images, unused_note, walk
from braintum.conversion.format.cases import Case, ClassSchema
from braintum.conversion.format.splits import Splits, find_crossings, official_splits, patient_splits

logger = logging.getLogger(__name__)

KIND = "figshare"
DEFAULT_NAME = "Figshare"
DESCRIPTION = "the Figshare data set of Cheng: N.mat files and cvind.mat, in any nesting of folders"

CLASS_OF_LABEL = {1: "meningioma", 2: "glioma", 3: "pituitary"}
SCHEMA = ClassSchema(tuple(CLASS_OF_LABEL.values()))
MAX_VALUES = 2**26
"""Of a field: slices have 512 × 512."""
FIELDS = ("PID", "image", "label", "tumorMask")
SPACING_MM = 0.49
SPACING_SIZE = 512
"""The image size in pixels that `SPACING_MM` is documented for."""
N_SLICES = 3064
FOLDS_FILE = "cvind.mat"
AGAIN = "download it again"

DATASET_JSON: dict[str, Any] = {
    "channel_names": {"0": "T1ce"},
    "labels": {"background": 0, "tumour": 1},
    "overwrite_image_reader_writer": "SimpleITKIO",
    "description": "Contrast-enhanced T1 slices with meningioma, glioma or pituitary tumour",
    "reference": "Cheng, J. brain tumor dataset. figshare (2017). https://doi.org/10.6084/m9.figshare.1512427",
    "licence": "CC BY 4.0",
    "classification": SCHEMA.to_json(),
}


@dataclass(frozen=True)
class SliceFile:
    """One `N.mat`.

    Attributes:
        number: N.
        path: the file.
        source: the folder that was given for the source.
    """

    number: int
    path: Path
    source: Path

    @property
    def case(self) -> str:
        """The name of the case."""
        return f"figshare_{self.number:04d}"


@dataclass(frozen=True)
class Slice:
    """The content of one `N.mat`: image (int16) and mask (uint8, 0 and 1), shape (Y, X); class and patient."""

    image: np.ndarray
    mask: np.ndarray
    tumour_class: str
    patient: str

    @property
    def spacing(self) -> float:
        """In-plane spacing in mm; see the module's docstring."""
        return round(SPACING_MM * SPACING_SIZE / max(self.image.shape), 6)


@dataclass(frozen=True)
class WriteTask:
    """What `write_slice` needs."""

    file: SliceFile
    image_path: Path
    label_path: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this source's own options: it has none."""


def convert(request: ConversionRequest) -> ConversionResult:
    """Converts the data set to 2-D NIfTI in nnU-Net's raw layout, or only checks it (`request.dry_run`).

    Splits are the authors' folds where `cvind.mat` is there (validation of split i is the i-th fold that occurs), and
    otherwise made by patient; the log says which.

    Args:
        request: source, target and how to convert.

    Returns:
        The data set's folder and summary.

    Raises:
        SourceError: the source has faults; all of them are listed, and nothing is written.
        DatasetTakenError: the data-set number is in use.
        FileNotFoundError: no slices in the source folder.
    """
    dataset = RawDataset.open(request, KIND)
    files, problems = find_slices(request.source)
    used = [*(file.path for file in files), *fold_files(request.source)]
    fold_of_case = read_folds(request.source, files)
    reports, problems = inspect_cases(inspect_slice, files, request, problems)
    cases = select_fraction([report.case for report in reports], request.fraction, request.seed)
    chosen = {case.case for case in cases}
    files = [file for file in files if file.case in chosen]
    reports = [report for report in reports if report.case.case in chosen]
    if fold_of_case is not None:
        fold_of_case = {name: fold for name, fold in fold_of_case.items() if name in chosen}
    with naming_problems(problems, request):
        splits = make_splits(cases, fold_of_case)
    unused = unused_images(request.source, used, problems, request.not_needed)
    text = "\n".join([summary_table(reports, SCHEMA.class_names), *unused_note(unused)])
    result = ConversionResult(dataset.folder, text, len(cases), problems=tuple(problems), unused=tuple(unused))
    if request.dry_run:
        return result
    dataset.begin(cases)
    tasks = [
        WriteTask(file, dataset.image_path(case), dataset.label_path(case))
        for file, case in zip(files, cases, strict=True)
        if not dataset.is_done(case, file.path)
    ]
    dataset.write_cases(write_slice, tasks, request.n_processes)
    dataset.finish(cases, splits, {"name": request.dataset_name, **DATASET_JSON}, [*problems, *unused])
    return result


def find_slices(source: Path) -> tuple[list[SliceFile], list[str]]:
    """Finds all `N.mat` below a folder, sorted by N; and the problems of numbers that occur twice, which are left out.

    Raises:
        FileNotFoundError: there are none.
        SourceError: all of them occur twice.
    """
    found: dict[int, Path] = {}
    doubles: dict[int, str] = {}
    for path in walk(source):
        if not re.fullmatch(r"[0-9]+\.mat", path.name, re.IGNORECASE):  # cvind.mat
            continue
        number = int(path.stem)
        if number in found:
            doubles[number] = f"{path}: slice {number} occurs twice, also as {found[number]}; remove one of them"
        found.setdefault(number, path)
    if not found:
        raise nothing_found(source, "slices (1.mat, 2.mat, …) in this folder or below")
    logger.info("%d of the data set's %d slices found in %s", len(found), N_SLICES, source)
    files = [SliceFile(number, found[number], source) for number in sorted(found.keys() - doubles.keys())]
    if not files:
        raise_problems(list(doubles.values()), source)
    return files, list(doubles.values())


def fold_files(source: Path) -> list[Path]:
    """Returns all files of the authors' folds: the file may lie anywhere below the source, and more than once."""
    return [path for path in walk(source) if path.name.lower() == FOLDS_FILE]


def read_folds(source: Path, files: Sequence[SliceFile]) -> dict[str, int] | None:
    """Reads the authors' folds from `cvind.mat`.

    Args:
        source: the folder; the file may lie anywhere below it.
        files: the slices that are there.

    Returns:
        Case name -> fold number, 1-based; None where there is no such file.

    Raises:
        SourceError: the file cannot be read, has no fold for a slice, or the slices belong to a single fold.
    """
    paths = fold_files(source)
    if not paths:
        return None
    path = paths[0]
    if any(other.read_bytes() != path.read_bytes() for other in paths[1:]):
        raise SourceError(f"{path}: differs from {paths[1]}; remove the wrong one")
    remedy = f"{AGAIN}, or remove it to split by patient"
    try:
        with h5py.File(path, "r") as file:
            folds = np.ravel(file["cvind"][()])  # 1 × N or N × 1
    except (OSError, KeyError, TypeError) as error:
        raise SourceError(f"{path}: the folds cannot be read ({one_line(error)}); {remedy}") from error
    if folds.dtype.kind not in "iuf" or not np.isfinite(folds).all() or (folds != np.rint(folds)).any():
        raise SourceError(f"{path}: not all folds are whole numbers; {remedy}")
    if files[-1].number > folds.size or files[0].number < 1:
        number = files[-1].number if files[-1].number > folds.size else files[0].number
        raise SourceError(f"{path}: has {folds.size} folds, none for slice {number}.mat; {remedy}")
    fold_of_case = {file.case: int(folds[file.number - 1]) for file in files}
    present = sorted(set(fold_of_case.values()))
    if len(present) < 2:
        raise SourceError(
            f"{path}: all {len(files)} slices belong to the authors' fold {present[0]}, at least 2 folds are needed; "
            f"add slices of other folds, or remove {FOLDS_FILE} to split by patient"
        )
    skipped = sorted(set(np.unique(folds).astype(int).tolist()) - set(present))
    if skipped:
        logger.warning("no slice of the authors' fold(s) %s: skipped", ", ".join(map(str, skipped)))
    return fold_of_case


def make_splits(cases: Sequence[Case], fold_of_case: dict[str, int] | None) -> Splits:
    """Makes the splits from the authors' folds, or else by patient; logs which."""
    if fold_of_case is None:
        splits = patient_splits(cases)
        logger.info("splits: %d, made by patient and class (there is no %s)", len(splits), FOLDS_FILE)
        return splits
    splits = official_splits(fold_of_case)
    logger.info("splits: the authors' folds %s", ", ".join(map(str, sorted(set(fold_of_case.values())))))
    crossings = find_crossings(splits, cases)
    if crossings:
        logger.warning(
            "%d patient(s) occur in more than one of the authors' folds, which are kept as they are; results on them "
            "are too good for these patients",
            len(crossings),
        )
    return splits


def inspect_slice(file: SliceFile) -> Inspection:
    """Checks one file and returns its row of `cases.csv`, or its problems."""
    content = read_slice(file.path)
    if not isinstance(content, Slice):
        return Inspection(problems=tuple(f"{file.path}: {problem}" for problem in content))
    case = Case(
        case=file.case,
        tumour_class=content.tumour_class,
        patient=content.patient,
        spacing=f"{content.spacing:g} {content.spacing:g}",
        source=file.path.relative_to(file.source).as_posix(),
    )
    area = float(np.count_nonzero(content.mask)) * content.spacing**2
    return Inspection(CaseReport(case, (content.image.shape[1], content.image.shape[0]), area))


def write_slice(task: WriteTask) -> None:
    """Writes image and label map of one slice as 2-D NIfTI.

    Raises:
        SourceError: the file is not what it was when it was checked.
    """
    content = read_slice(task.file.path)
    if not isinstance(content, Slice):
        raise SourceError(f"{task.file.path}: changed during the conversion: {content[0]}")
    for array, path in ((content.image, task.image_path), (content.mask, task.label_path)):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((content.spacing, content.spacing))
        with atomic_path(path) as partial:
            sitk.WriteImage(image, str(partial), useCompression=True)


def read_slice(path: Path) -> Slice | list[str]:
    """Reads one `N.mat`.

    Args:
        path: the file.

    Returns:
        Its content, or all that is wrong with it, each with the remedy.
    """
    try:
        with h5py.File(path, "r") as file:
            if "cjdata" not in file:
                return [f"has no struct cjdata; {AGAIN}"]
            missing = [name for name in FIELDS if name not in file["cjdata"]]
            if missing:
                return [f"cjdata has no field {', '.join(missing)}; {AGAIN}"]
            fields = [file["cjdata"][name] for name in FIELDS]
            for name, field in zip(FIELDS, fields, strict=True):
                if not isinstance(field, h5py.Dataset) or field.size is None:
                    return [f"{name} is no array; {AGAIN}"]
                if field.size > MAX_VALUES:  # before there is memory for them: HDF5 need not store what it declares
                    return [f"{name} declares {field.size} values, more than {MAX_VALUES}; {AGAIN}"]
            patient, image, label, mask = (np.asarray(field[()]) for field in fields)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        return [f"not a complete MATLAB v7.3 (HDF5) file ({one_line(error)}); {AGAIN}"]
    patient_name = _decode_text(patient)
    label_value = float(label.item()) if label.size == 1 and label.dtype.kind in "iuf" else float("nan")
    problems = [] if patient_name else [f"PID is empty or not text; {AGAIN}"]
    if label_value not in CLASS_OF_LABEL:
        shown = f"{label_value:g}" if label.size == 1 else f"an array of shape {label.shape}"
        problems.append(f"label is {shown}, not 1, 2 or 3; {AGAIN}, or remove it")
    problems += _check_image(image) + _check_mask(mask, image.shape)
    if problems:
        return problems
    # HDF5 stores the last axis contiguously, MATLAB the first: transposed back, rows are y and columns x
    return Slice(
        np.ascontiguousarray(image.T, dtype=np.int16),
        np.ascontiguousarray(mask.T, dtype=np.uint8),
        CLASS_OF_LABEL[int(label_value)],
        patient_name,
    )


def _check_image(image: np.ndarray) -> list[str]:
    if image.ndim != 2 or 0 in image.shape:
        return [f"image has shape {image.shape}, not two dimensions; {AGAIN}"]
    if image.dtype.kind not in "iuf":
        return [f"image holds {image.dtype}, not numbers; {AGAIN}"]
    if image.dtype.kind == "f":
        if not np.isfinite(image).all():
            return [f"image holds NaN or infinity; {AGAIN}, or remove it"]
        if (image != np.rint(image)).any():
            return [f"image holds fractions, int16 is expected; {AGAIN}, or round it"]
    limits = np.iinfo(np.int16)
    if image.min() < limits.min or image.max() > limits.max:
        return [f"image values {image.min()} to {image.max()} do not fit int16; {AGAIN}, or scale it"]
    return []


def _check_mask(mask: np.ndarray, image_shape: tuple[int, ...]) -> list[str]:
    if mask.shape != image_shape:
        return [f"tumorMask has shape {mask.shape}, image {image_shape}; {AGAIN}, or remove it"]
    if mask.dtype.kind not in "biuf" or not np.isin(mask, (0, 1)).all():
        return [f"tumorMask holds values other than 0 and 1; {AGAIN}, or remove it"]
    if not mask.any():
        return [f"tumorMask is empty; {AGAIN}, or remove it"]
    return []


def _decode_text(codes: np.ndarray) -> str:
    """Decodes MATLAB's character codes; returns an empty string for anything else."""
    # MATLAB stores an empty text as its size, in a wider type
    if codes.dtype.kind not in "iu" or codes.dtype.itemsize > 2:
        return ""
    return "".join(chr(code) for code in codes.T.ravel()).strip("\0 ")
