"""BraTS, the Brain Tumor Segmentation challenges of 2017 to 2021 and of 2023 and later: four MRI sequences a case.

Original layouts, in any nesting of folders:

- 2017 to 2021: `ID/ID_{flair,t1,t1ce,t2,seg}.nii.gz` (or `.nii`), for example `BraTS2021_00000`; up to 2019 below the
  folders `HGG` and `LGG`, in 2019 and 2020 with `name_mapping.csv`, whose column `Grade` says the same;
- 2023 and later: `ID/ID-{t1n,t1c,t2w,t2f,seg}.nii.gz`, ID being `BraTS-GLI-00000-000`: cohort, patient, time point.
  Cohorts: GLI and SSA (glioma), MEN (meningioma), MET (metastasis), PED (paediatric glioma).

Labels: 0 background, 1 necrotic (and non-enhancing) core, 2 oedema, and the enhancing tumour, which is 4 up to 2021 and
3 from 2023 on; written is always 3 (`LABEL_OF_SOURCE`, `SOURCE_OF_LABEL`). Any other value is an error, 4 in a case of
2023 or later too: the post-treatment gliomas and the paediatric set of 2024 give it other meanings. The paediatric set
of 2024 (1 enhancing, 2 non-enhancing, 3 cyst, 4 oedema) cannot be told from that of 2023 by a case without a 4: do not
convert it.

Classes: the cohorts, where there are several; or else high-grade and low-grade glioma, where grades are known and both
occur; or else none. The class of each case stands in `cases.csv` anyway, so that the data set can be combined with
others. A slice has the class of its case, also where it shows no tumour. The patient is the ID without the time point.
"""

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from braintum.conversion.building.inspection import nothing_found
from braintum.conversion.building.raw_dataset import ConversionRequest, ConversionResult, RawDataset
from braintum.conversion.building.slices import (
    add_orientation_argument,
    add_rescaling_argument,
    add_slice_arguments,
    slice_choice,
)
from braintum.conversion.building.source_tables import read_rows
from braintum.conversion.building.volume_cases import LoadedVolume, Target, convert_volumes, with_ignore_label
from braintum.conversion.building.volume_reading import Volume, read_case
from braintum.conversion.files.folders import walk
from braintum.conversion.files.volumes import VolumeError
from braintum.conversion.format.cases import Case
from braintum.conversion.format.class_names import known_name, unified_schema
from braintum.conversion.format.label_names import BRATS_LABELS, BRATS_REGIONS

KIND = "brats"
DEFAULT_NAME = "BraTS"
DESCRIPTION = "BraTS 2017 to 2021, or 2023 and later: folders of NIfTI files, one a case, in any nesting of folders"

CHANNEL_NAMES = ("T1", "T1ce", "T2", "FLAIR")
OLD_SEQUENCES = ("t1", "t1ce", "t2", "flair")
NEW_SEQUENCES = ("t1n", "t1c", "t2w", "t2f")
"""In file names, in the order of the channels."""
REGIONS_CLASS_ORDER = [2, 1, 3]
"""The label that each region leaves behind when the smaller regions are painted over it."""
LABEL_OF_SOURCE = {"2021": {0: 0, 1: 1, 2: 2, 4: 3}, "2023": {0: 0, 1: 1, 2: 2, 3: 3}}
"""Label convention (up to 2021; 2023 and later) -> label in the source's files -> label in ours."""
SOURCE_OF_LABEL = {
    year: {label: source for source, label in labels.items()} for year, labels in LABEL_OF_SOURCE.items()
}
"""The inverse, for predictions in the challenge's own convention."""
MAPPING_FILE = "name_mapping.csv"
GRADES = ("HGG", "LGG")

_OLD = re.compile(r"(?P<id>.+)_(?P<sequence>flair|t1|t1ce|t2|seg)\.nii(\.gz)?", re.IGNORECASE)
_NEW = re.compile(
    r"(?P<id>BraTS-(?P<cohort>[A-Z]+)-[0-9]+-[0-9]+)-(?P<sequence>t1n|t1c|t2w|t2f|seg)\.nii(\.gz)?", re.IGNORECASE
)
_MISNAMED_MASK = re.compile(r".*segm?\.nii(\.gz)?", re.IGNORECASE)
"""BraTS20_Training_355 has `W39_1998.09.19_Segm.nii`."""


@dataclass(frozen=True)
class BratsCase:
    """One case.

    Attributes:
        case: what is known without reading.
        channels: the files, in the order of the channels.
        mask: the segmentation, None where there is none.
        cohort: `GLI`, `MEN` and so on; empty up to 2021.
        grade: `HGG`, `LGG`, or empty.
        is_binary: the whole tumour is one label.
    """

    case: Case
    channels: tuple[Path, ...]
    mask: Path | None
    cohort: str = ""
    grade: str = ""
    is_binary: bool = False

    @property
    def convention(self) -> str:
        """The label convention of the mask: a key of `LABEL_OF_SOURCE`."""
        return "2023" if self.cohort else "2021"

    @property
    def cohort_class(self) -> str:
        """The class that the cohort stands for; up to 2021 there were gliomas only."""
        return known_name(self.cohort or "GLI") or ""

    @property
    def has_mask(self) -> bool:
        """Whether there is a file with the segmentation."""
        return self.mask is not None

    def files(self) -> list[Path]:
        """Returns the sequences, and the segmentation if there is one."""
        return [*self.channels, *([self.mask] if self.mask else [])]

    def load(self) -> LoadedVolume:
        """Reads and checks the case; raises `VolumeError`."""
        images, labels = read_case(self.channels, self.mask, partial(map_labels, convention=self.convention))
        remarks = ("no enhancing tumour",) if labels is not None and labels.any() and not (labels == 3).any() else ()
        if self.is_binary and labels is not None:
            labels = (labels > 0).astype(np.uint8)
        return LoadedVolume(images, labels, remarks)


def map_labels(array: np.ndarray, path: Volume, convention: str) -> np.ndarray:
    """Returns labels of the source as ours, uint8.

    Raises:
        VolumeError: a label is not one of the convention's.
    """
    known = LABEL_OF_SOURCE[convention]
    unexpected = sorted(set(np.unique(array).tolist()) - set(known))
    if unexpected:
        which = "up to 2021" if convention == "2021" else "2023 and later"
        raise VolumeError(
            f"{path}: label(s) {', '.join(map(str, unexpected))}, but BraTS {which} has {', '.join(map(str, known))} "
            "only; download the file again, or remove the case (sets of 2024 with further labels are not supported)"
        )
    return _look_up(array, known)


def to_source_labels(array: np.ndarray, convention: str = "2021") -> np.ndarray:
    """Returns our labels (also predicted ones) in the convention of the source, uint8; the inverse of `map_labels`."""
    return _look_up(array, SOURCE_OF_LABEL[convention])


def _look_up(array: np.ndarray, table: Mapping[int, int]) -> np.ndarray:
    values = np.zeros(max(table) + 1, np.uint8)
    values[list(table)] = list(table.values())
    return values[array.astype(np.intp)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this source's own options."""
    add_slice_arguments(parser)
    add_rescaling_argument(parser)
    add_orientation_argument(parser)
    parser.add_argument(
        "--regions",
        action="store_true",
        help="region-based labels: whole tumour, tumour core and enhancing tumour, which overlap",
    )
    parser.add_argument(
        "--t1ce-only",
        action="store_true",
        help="one channel, T1ce, and one label, the whole tumour, as data sets of one sequence have them",
    )
    parser.add_argument(
        "--unlabelled",
        choices=("test", "train"),
        default="test",
        help="cases without a segmentation: test part, or training cases for the class alone (default: %(default)s)",
    )


def convert(
    request: ConversionRequest,
    slices: str | None = None,
    slice_margin: int = 0,
    healthy_slices: int = 0,
    regions: bool = False,
    unlabelled: str = "test",
    keep_orientation: bool = False,
    t1ce_only: bool = False,
    rescale_volumes: bool = False,
) -> ConversionResult:
    """Converts the data set to NIfTI in nnU-Net's raw layout, or only checks it (`request.dry_run`).

    Args:
        request: source, target and how to convert.
        slices: None for volumes; `tumour` or `all` for axial slices (see `SliceChoice`).
        slice_margin: with `tumour`: further slices on either side of the tumour.
        healthy_slices: with `tumour`: slices without tumour, of each case.
        regions: region-based labels.
        unlabelled: `test` or `train`: where cases without a segmentation go.
        keep_orientation: let nnU-Net read volumes as their files store them.
        t1ce_only: one channel, T1ce, and one label, the whole tumour.
        rescale_volumes: bring volumes to [0, 1] before they are sliced.

    Returns:
        The data set's folder and summary.

    Raises:
        SourceError: the source has faults; all of them are listed, and nothing is written.
        DatasetTakenError: the data-set number is in use.
        FileNotFoundError: no cases in the source folder.
        ValueError: options that contradict each other.
    """
    if t1ce_only and regions:
        raise ValueError("--t1ce-only has one label, --regions has three; give one of them")
    choice = slice_choice(slices, slice_margin, healthy_slices)
    options = {
        "slices": slices,
        "slice_margin": slice_margin,
        "healthy_slices": healthy_slices,
        "regions": regions,
        "unlabelled": unlabelled,
        "keep_orientation": keep_orientation,
        **({"t1ce_only": True} if t1ce_only else {}),
        **({"rescale_volumes": True} if rescale_volumes else {}),
    }
    dataset = RawDataset.open(request, KIND, options)
    sources, problems = find_cases(request.source, unlabelled)
    sources, class_names, notes = name_classes(sources)
    if unlabelled == "train":
        useless = [s for s in sources if not s.has_mask and (len(class_names) < 2 or not s.case.tumour_class)]
        problems += [
            f"{source.channels[0].parent}: neither segmentation nor class: nothing to learn from; leave out "
            "--unlabelled train, or remove the case"
            for source in useless
        ]
        sources = [source for source in sources if source not in useless]
    if t1ce_only:
        sources = [replace(each, channels=each.channels[1:2], is_binary=True) for each in sources]
    content: dict[str, Any] = {
        "description": "BraTS: T1, T1ce, T2 and FLAIR with tumour sub-regions",
        "reference": "https://www.synapse.org/brats",
        "licence": "terms of the challenge",
        "source_labels": {
            convention: {str(label): source for label, source in SOURCE_OF_LABEL[convention].items()}
            for convention in sorted({source.convention for source in sources})
        },
    }
    if regions:
        content["regions_class_order"] = REGIONS_CLASS_ORDER
    if len(class_names) > 1:
        content["classification"] = unified_schema(class_names).to_json()
    names: Mapping[str, Any] = BRATS_REGIONS if regions else BRATS_LABELS
    channels: tuple[str, ...] = CHANNEL_NAMES
    if t1ce_only:
        names, channels = {"background": 0, "tumour": 1}, CHANNEL_NAMES[1:2]
        content |= {"description": "BraTS: T1ce with the whole tumour"}
        del content["source_labels"]
    labels = with_ignore_label(names, sources)
    target = Target(labels, channels, choice, plane="axial", keep_orientation=keep_orientation, rescale=rescale_volumes)
    return convert_volumes(request, dataset, sources, target, content, problems, notes)


def find_cases(source: Path, unlabelled: str = "test") -> tuple[list[BratsCase], list[str]]:
    """Finds all cases below a folder.

    Args:
        source: the folder.
        unlabelled: part of cases without a segmentation.

    Returns:
        The cases, sorted by name, without classes (see `name_classes`); and the problems.

    Raises:
        FileNotFoundError: there are none.
    """
    found: dict[str, dict[str, list[Path]]] = defaultdict(lambda: defaultdict(list))
    cohorts: dict[str, str] = {}
    for path in walk(source):
        match = _NEW.fullmatch(path.name) or _OLD.fullmatch(path.name)
        if match is None or path.is_dir():
            continue
        found[match["id"]][match["sequence"].lower()].append(path)
        cohorts[match["id"]] = (match.groupdict().get("cohort") or "").upper()
    if not found:
        raise nothing_found(
            source,
            "files such as BraTS2021_00000_flair.nii.gz or BraTS-GLI-00000-000-t2f.nii.gz in this folder or below",
            "give the folder that holds the case folders",
        )
    grades, problems = read_grades(source)
    if grades and not grades.keys() & found.keys():
        problems.append(f"{MAPPING_FILE}: none of its rows fits a case in {source}; download it again, or remove it")
    cases = []
    for name in sorted(found):
        case, faults = _make_case(source, name, found[name], cohorts[name], grades.get(name, ""), unlabelled)
        problems += faults
        cases += [case] if case else []
    return _group_renamed(cases), problems


def _make_case(
    source: Path, name: str, files: Mapping[str, list[Path]], cohort: str, mapped_grade: str, unlabelled: str
) -> tuple[BratsCase | None, list[str]]:
    problems = [
        f"{paths[1]}: the same file of case {name} is there twice, also as {paths[0]}; remove one of them"
        for paths in files.values()
        if len(paths) > 1
    ]
    folder = next(iter(files.values()))[0].parent
    expected = NEW_SEQUENCES if cohort else OLD_SEQUENCES
    missing = [sequence for sequence in expected if sequence not in files]
    if missing:
        there = [path.name for paths in files.values() for path in paths]
        stem, ending = there[0][: len(name) + 1], there[0][there[0].lower().rindex(".nii") :]
        names = ", ".join(f"{stem}{sequence}{ending}" for sequence in missing)
        problems.append(f"{folder}: has no {names}, only {', '.join(there)}; download it again, or remove it")
        return None, problems
    masks = files.get("seg") or [
        path for path in sorted(folder.iterdir()) if folder.name == name and _MISNAMED_MASK.fullmatch(path.name)
    ]
    place = folder.relative_to(source)
    grade = next((part.upper() for part in reversed(place.parts) if part.upper() in GRADES), "")
    if grade and mapped_grade and grade != mapped_grade:
        problems.append(f"{folder}: lies in {grade}, but {MAPPING_FILE} says {mapped_grade}; correct one of them")
    if problems or mapped_grade not in ("", *GRADES):  # of which read_grades tells
        return None, problems
    case = Case(name, patient=patient_of(name), split="train" if masks else unlabelled, source=place.as_posix())
    channels = tuple(files[sequence][0] for sequence in expected)
    return BratsCase(case, channels, masks[0] if masks else None, cohort, grade or mapped_grade), problems


def read_grades(source: Path) -> tuple[dict[str, str], list[str]]:
    """Reads `name_mapping.csv`, wherever it lies: case -> `HGG` or `LGG`; and the problems found there."""
    grades: dict[str, str] = {}
    problems = []
    for path in (path for path in walk(source) if path.name.lower() == MAPPING_FILE):
        for line, row in read_rows(path)[1]:
            grade = row.get("Grade", "").upper()
            names = [value for key, value in row.items() if key.endswith("subject_ID") and value]
            if grade not in GRADES:
                problems.append(
                    f"{path}, line {line}: grade {grade!r} of {names[:1]} is not HGG or LGG; download the file again"
                )
            grades.update(dict.fromkeys(names, grade or "blank"))
    return grades, problems


def patient_of(name: str) -> str:
    """Returns a case's patient: the ID without the time point, which it has up to 2019 and from 2023 on."""
    match = re.fullmatch(r"(BraTS-[A-Z]+-[0-9]+|BraTS1[0-9]_.+)[-_][0-9]+", name, re.IGNORECASE)
    return match[1] if match else name


def _group_renamed(cases: Sequence[BratsCase]) -> list[BratsCase]:
    """Groups patients that a source holds under two names: `BraTS-GLI-00000-*` are new names of `BraTS2021_00000`."""
    numbers: dict[str, set[str]] = defaultdict(set)
    for source in cases:
        match = re.match(r"(BraTS2021_|BraTS-GLI-)([0-9]{5})", source.case.case)
        if match:
            numbers[match[2]].add(match[1])
    return [
        replace(source, case=replace(source.case, group=f"BraTS-GLI-{match[2]}"))
        if (match := re.match(r"(BraTS2021_|BraTS-GLI-)([0-9]{5})", source.case.case)) and len(numbers[match[2]]) > 1
        else source
        for source in cases
    ]


def name_classes(sources: Sequence[BratsCase]) -> tuple[list[BratsCase], tuple[str, ...], list[str]]:
    """Decides what the classes are; see the module's docstring.

    Returns:
        The cases with their class, the classes that occur, and sentences for the summary.
    """
    several_cohorts = len({source.cohort_class for source in sources} - {""}) > 1
    by_grade = not several_cohorts and any(source.grade for source in sources)
    names = [(known_name(source.grade) or "") if by_grade else source.cohort_class for source in sources]
    named = [
        replace(source, case=replace(source.case, tumour_class=name))
        for source, name in zip(sources, names, strict=True)
    ]
    classes = tuple(sorted(set(names) - {""}))
    notes = []
    if len(classes) < 2:
        only = f"all cases are {classes[0]}" if classes else "the class of no case is known"
        notes.append(f"No classes: {only}. A model of this data set segments only; combine it with others to classify.")
    # the cohorts of 2023 and later do not overlap, and of GLI it is known which case of 2021 it is
    years = Counter(_year(source) for source in sources)
    if len(years) > 1 and set(years) != {"BraTS2021", "2023 and later"}:
        shown = ", ".join(f"{year} ({count})" for year, count in sorted(years.items()))
        notes.append(
            f"Cases of several years: {shown}. The years share patients under different names, so that splits may "
            "leak: convert one year, or look for duplicates with braintum_audit."
        )
    return named, classes, notes


def _year(source: BratsCase) -> str:
    return "2023 and later" if source.cohort else re.split(r"[_-]", source.case.case)[0]
