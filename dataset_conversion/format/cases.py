"""Class labels and origin of every case: `cases.csv`, and the class schema in `dataset.json`."""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from braintum.conversion.files.atomic import atomic_path
from braintum.conversion.format.dates import read_date

CASES_FILE = "cases.csv"
_CLASS_COLUMN = "class"
"""`class` is a Python keyword: the attribute is called `tumour_class`."""
_NEEDED = ("case", _CLASS_COLUMN)
FOLDER_ENDINGS = {"train": "Tr", "test": "Ts", "external": "External"}
"""`Case.split` -> of `imagesTr`, `labelsTs` and so on."""


@dataclass(frozen=True)
class Case:
    """One row of `cases.csv`; an empty value means unknown or not applicable.

    Attributes:
        case: nnU-Net's case identifier, the image's file name without channel number and ending.
        tumour_class: one of the data set's class names (column `class`).
        patient: the source's patient identifier.
        group: near-duplicates and other cases that have to stay on one side of a split share a group.
        split: the source's own part: `train` (imagesTr), `test` (imagesTs), or `external` (imagesExternal), a test part
            from elsewhere.
        plane: `axial`, `coronal` or `sagittal`.
        spacing: in mm, in the order x y [z], separated by blanks.
        source: the file that the case was made from, relative to the source folder, with forward slashes.
        slice: number of a slice of a volume, from 0 at the feet, the front or the right; of a file a slice, its own.
        position: of a slice along the normal of its plane in mm, in the patient's coordinates: to the head, back, left.
        date: of the examination, YYYY-MM-DD, or another word for it.
    """

    case: str
    tumour_class: str = ""
    patient: str = ""
    group: str = ""
    split: str = "train"
    plane: str = ""
    spacing: str = ""
    source: str = ""
    slice: str = ""
    position: str = ""
    date: str = ""


OPTIONAL_COLUMNS = ("slice", "position", "date")
"""They are there only where a case has a value."""
_ATTRIBUTES = {_CLASS_COLUMN if field.name == "tumour_class" else field.name: field.name for field in fields(Case)}
COLUMNS = tuple(column for column in _ATTRIBUTES if column not in OPTIONAL_COLUMNS)


@dataclass(frozen=True)
class ClassSchema:
    """The classes that a data set's cases are sorted into; `dataset.json` carries them under `classification`.

    Attributes:
        class_names: at least two distinct names; their order is the order of the network's class logits.
        negative_class: the name of the healthy class, if there is one.
    """

    class_names: tuple[str, ...]
    negative_class: str | None = None

    def __post_init__(self) -> None:
        names = self.class_names
        if len(names) < 2 or not all(isinstance(name, str) and name.strip() for name in names):
            raise ValueError(f"class_names has to be a list of at least two non-empty strings, not {list(names)!r}")
        if len(set(names)) != len(names):
            raise ValueError(f"class_names holds a name twice: {list(names)!r}")
        if self.negative_class is not None and self.negative_class not in names:
            raise ValueError(f"negative_class {self.negative_class!r} is not one of class_names {list(names)!r}")

    @classmethod
    def from_dataset_json(cls, dataset_json: Mapping[str, Any]) -> "ClassSchema | None":
        """Reads the schema from the content of `dataset.json`.

        Returns:
            The schema, or None for a data set without classes.

        Raises:
            ValueError: the entry `classification` is not valid.
        """
        entry = dataset_json.get("classification")
        if entry is None:
            return None
        if not isinstance(entry, Mapping):
            raise ValueError(f'"classification" in dataset.json has to be an object, not {entry!r}')
        names = entry.get("class_names")
        if not isinstance(names, (list, tuple)):
            raise ValueError(
                '"classification" in dataset.json needs "class_names": a list of at least two different names, '
                f"not {names!r}"
            )
        try:
            return cls(tuple(names), entry.get("negative_class"))
        except (ValueError, TypeError) as error:  # TypeError: an unhashable name
            raise ValueError(f'"classification" in dataset.json is not valid: {error}') from error

    def to_json(self) -> dict[str, Any]:
        """Returns the value of `classification` in `dataset.json`."""
        content: dict[str, Any] = {"class_names": list(self.class_names)}
        if self.negative_class is not None:
            content["negative_class"] = self.negative_class
        return content

    def index(self, class_name: str) -> int:
        """Returns the position of a class.

        Raises:
            ValueError: `class_name` is not one of the classes.
        """
        if class_name not in self.class_names:
            raise ValueError(f"class {class_name!r} is not one of {', '.join(self.class_names)}")
        return self.class_names.index(class_name)


def write_cases(path: str | os.PathLike[str], cases: Iterable[Case]) -> None:
    """Writes `cases.csv` atomically, rows in the given order.

    Raises:
        ValueError: two cases have the same name, or one has none; nothing is written.
    """
    rows = list(cases)
    seen: set[str] = set()
    for row in rows:
        if not row.case or row.case in seen:
            raise ValueError(f"{path}: case name {row.case!r} is empty or occurs twice")
        seen.add(row.case)
    with (
        atomic_path(path) as partial,
        open(partial, "w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        columns = [*COLUMNS, *(name for name in OPTIONAL_COLUMNS if any(getattr(row, name) for row in rows))]
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([getattr(row, _ATTRIBUTES[column]) for column in columns] for row in rows)


def read_cases(path: str | os.PathLike[str], class_names: Sequence[str] | None = None) -> dict[str, Case]:
    """Reads `cases.csv`.

    Args:
        path: the file. The order of its columns is free, only case and class have to be there, and further columns are
            ignored. An empty split is `train`.
        class_names: the classes that may occur beside the empty one; None allows all.

    Returns:
        Case name -> case, in the order of the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the column case or class is missing, a case has no name or occurs twice, or a class or split is
            unknown; the message names file and line.
    """
    cases: dict[str, Case] = {}
    for place, row in _rows(path):
        case = Case(**{name: row[column].strip() for column, name in _ATTRIBUTES.items() if column in row})
        case = replace(case, split=case.split or "train")
        _check_row(case, place, cases, class_names)
        cases[case.case] = case
    return cases


def read_dates(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads the column `date` of `cases.csv`, where there is one.

    Returns:
        Case name -> date as YYYY-MM-DD, or the other word that stands there; cases without one are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no `cases.csv`, or it is not clear which number of a date is the month.
    """
    try:
        return {name: read_date(case.date) for name, case in read_cases(path).items() if case.date}
    except ValueError as error:
        raise ValueError(f"{path}: {error}; write dates as YYYY-MM-DD") from error


def _rows(path: str | os.PathLike[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """File and line, and the values by column, of each row; commas, or semicolons as spreadsheets write them."""
    # utf-8-sig: spreadsheet programs put a byte-order mark in front of the first column's name
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            header = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=";" if header.count(";") > header.count(",") else ",")
            missing = [column for column in _NEEDED if column not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(
                    f"{path}, line 1: missing column {', '.join(missing)}; needed are {' and '.join(_NEEDED)}, the "
                    f"first line has {header.strip()!r}"
                )
            for row in reader:
                place = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise ValueError(f"{place}: the row does not have as many values as the header has columns")
                yield place, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(
                f"{path}: not readable as comma-separated UTF-8 text ({error}); save it as such"
            ) from error


def _check_row(case: Case, place: str, earlier: Mapping[str, Case], class_names: Sequence[str] | None) -> None:
    if not case.case:
        raise ValueError(f"{place}: the column case is empty")
    if case.case in earlier:
        raise ValueError(f"{place}: case {case.case!r} occurs twice; remove one of the rows")
    if class_names is not None and case.tumour_class and case.tumour_class not in class_names:
        raise ValueError(
            f"{place}: unknown class {case.tumour_class!r} of case {case.case!r}; known: {', '.join(class_names)} "
            "(dataset.json, classification), or leave it empty for unknown"
        )
    if case.split not in FOLDER_ENDINGS:
        raise ValueError(f"{place}: split {case.split!r} of case {case.case!r}; possible: {', '.join(FOLDER_ENDINGS)}")


def find_cases_file(preprocessed_folder: str | os.PathLike[str], raw_folder: str | os.PathLike[str]) -> Path:
    """Finds `cases.csv` of a data set: in the preprocessed folder, else in the raw one.

    A stock planner copies the file nowhere; ours puts it beside the plans.

    Args:
        preprocessed_folder: `nnUNet_preprocessed/DatasetXXX_Name`.
        raw_folder: `nnUNet_raw/DatasetXXX_Name`.

    Raises:
        FileNotFoundError: it is in neither.
    """
    folders = (Path(preprocessed_folder), Path(raw_folder))
    for folder in folders:
        if (folder / CASES_FILE).is_file():
            return folder / CASES_FILE
    raise FileNotFoundError(
        f"no {CASES_FILE} in {folders[0]} nor in {folders[1]}: it holds the class of every case. Convert the data set "
        f"with braintum_convert, or write the file with the columns {', '.join(COLUMNS)}"
    )


def classification_entry(dataset_json: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `plans["classification"]` holds: the class schema, and how to read the segmentation heads.

    A network is built from the plans without a look at `dataset.json`, so both have to be in the plans.

    Returns:
        The schema's entries and `region_based` (nnU-Net's region-based training: one sigmoid a region), or None for a
        data set without classes.

    Raises:
        ValueError: the entry `classification` of `dataset.json` is not valid.
    """
    schema = ClassSchema.from_dataset_json(dataset_json)
    if schema is None:
        return None
    labels = dataset_json["labels"].values()
    return {**schema.to_json(), "region_based": any(isinstance(x, (list, tuple)) and len(x) > 1 for x in labels)}
