"""Reads the tables of sources: whatever is wrong with one of them becomes one message that names it."""

import codecs
import csv
import io
import logging
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from braintum.conversion.building.inspection import SourceError, raise_problems
from braintum.conversion.files.file_checks import one_line
from braintum.conversion.format.cases import FOLDER_ENDINGS
from braintum.conversion.format.class_names import canonical_name
from braintum.conversion.format.dates import iso_date, read_date

logger = logging.getLogger(__name__)

EXCEL_ENDINGS = (".xlsx", ".xlsm")


def read_rows(path: Path) -> tuple[tuple[str, ...], list[tuple[int, dict[str, str]]]]:
    """Reads a table: UTF-8, UTF-16 or Windows-1252, with comma, semicolon or tabulator between columns; or Excel's.

    Returns:
        The column names; and the rows with their line numbers, values without blanks around them. A value that a row
        lacks is empty.

    Raises:
        SourceError: it is no such table.
    """
    if path.suffix.lower() in EXCEL_ENDINGS:
        return _read_excel(path)
    try:
        text = _decode(path)
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        columns = tuple(reader.fieldnames or ())
        rows = []
        for row in reader:
            if None in row:
                raise SourceError(f"{path}, line {reader.line_num}: has more values than columns; correct it")
            rows.append((reader.line_num, {name: (value or "").strip() for name, value in row.items()}))
    except SourceError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise SourceError(f"{path}: not readable as a table ({one_line(error)}); save it as CSV with UTF-8") from error
    return columns, rows


def _read_excel(path: Path) -> tuple[tuple[str, ...], list[tuple[int, dict[str, str]]]]:
    """As :func:`read_rows`, the first sheet of a workbook."""
    from openpyxl import load_workbook  # late: few tables are Excel's

    try:
        workbook = load_workbook(path, read_only=True, data_only=True)
        lines = [[_cell_text(value) for value in line] for line in workbook.worksheets[0].iter_rows(values_only=True)]
        workbook.close()
    except (OSError, ValueError, LookupError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path}: not readable as an Excel table ({one_line(error)}); save it as CSV") from error
    columns = tuple(lines[0]) if lines else ()
    named = [number for number, name in enumerate(columns) if name]
    rows = [
        (number, {columns[index]: line[index] if index < len(line) else "" for index in named})
        for number, line in enumerate(lines[1:], start=2)
    ]
    return tuple(columns[index] for index in named), rows


def _cell_text(value: Any) -> str:
    """A cell as it would stand in a CSV file."""
    if isinstance(value, datetime):
        return value.date().isoformat() if value == datetime(*value.timetuple()[:3]) else value.isoformat()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value).strip()


def _decode(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252")
        logger.warning("%s: not UTF-8; read as Windows-1252, the encoding of Western spreadsheets", path)
        return text


@dataclass(frozen=True)
class Diagnosis:
    """A row of a table of diagnoses: patient, canonical name of the class or empty, date or empty, and part."""

    patient: str
    tumour_class: str
    date: str = ""
    split: str = "train"


@dataclass
class Diagnoses:
    """A table of diagnoses, and which of its rows were asked for.

    Attributes:
        rows: folder name -> its row, or its rows of different dates.
        used: folder names and rows that were found.
        unknown: paths of folders that have none.
    """

    rows: Mapping[str, Sequence[Diagnosis]]
    used: set[tuple[str, Diagnosis]] = field(default_factory=set)
    unknown: list[str] = field(default_factory=list)

    def find(self, parts: Sequence[str], within: Sequence[str] = ()) -> Diagnosis:
        """Finds the row of a folder: that of its whole path, or else of the innermost folder in it that has rows.

        A dated row of a patient is one of an examination only if a name says that date.

        Args:
            parts: names of the folders of the path, the patient's first.
            within: further names that may hold a date, as those of `parts` but the first may.

        Returns:
            Patient, class and date, each empty where neither the table nor, for the date, a name says it; and the part.

        Raises:
            ValueError: several rows fit.
        """
        date = next(filter(None, map(iso_date, (*reversed(parts[1:]), *within))), "")
        key = next((key for key in ("/".join(parts), *reversed(parts)) if key in self.rows), "")
        found = self.rows.get(key, ())
        said = {date, *(name.lower() for name in (*parts, *within))}
        alone = key in (parts[-1], "/".join(parts)) and not date
        fitting = [row for row in found if row.date and row.date.lower() in said]
        fitting = fitting or [row for row in found if alone or not row.date]
        self.used.update((key, row) for row in fitting)
        if len(fitting) > 1:
            dates = ", ".join(row.date or "no date" for row in fitting)
            raise ValueError(f"the table has several rows of {key} ({dates}); name the folder after one of the dates")
        if not fitting:
            self.unknown.append("/".join(parts))
            return Diagnosis(found[0].patient if found else "", "", date, found[0].split if found else "train")
        return replace(fitting[0], date=fitting[0].date or date)

    def notes(self, source: Path) -> list[str]:
        """Returns sentences on folders that are not in the table, and the reverse.

        Raises:
            SourceError: no row was found.
        """
        if not self.used:
            raise SourceError(
                f"the table fits no folder: it names {_some(self.rows) or 'nothing'}, and the folders of {source} are "
                f"{_some(self.unknown)}; name the column that holds the folders with --case-column"
            )
        vacant = [(key, row.date) for key, rows in self.rows.items() for row in rows if (key, row) not in self.used]
        return [
            f"{fault}: {', '.join(sorted(names))}."
            for fault, names in (
                ("Folders that are not in the table (class unknown)", self.unknown),
                ("Rows of the table without a folder", [" ".join(filter(None, words)) for words in vacant]),
            )
            if names
        ]


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (", …" if len(ordered) > 3 else "")


def read_diagnoses(
    path: Path,
    patient_column: str,
    class_column: str,
    case_column: str,
    date_column: str | None = None,
    split_column: str | None = None,
) -> Diagnoses:
    """Reads the table of a source whose patients lie in folders.

    Args:
        path: see `read_rows`.
        patient_column: column of patients.
        class_column: column of diagnoses; blanks are unknown.
        case_column: column of folder names.
        date_column: column of dates of examinations; None: a folder has one row.
        split_column: column of the parts `train` (or blank), `test` and `external`; None: all are trained on.

    Raises:
        SourceError: the table cannot be used; all its problems are listed.
    """
    header_names, table = read_rows(path)
    wanted = {patient_column, class_column, case_column, *filter(None, (date_column, split_column))}
    missing = sorted(wanted - set(header_names))
    if missing:
        raise SourceError(
            f"{path}: has no column {', '.join(missing)}, but {', '.join(header_names) or 'none'}; name them with "
            "--patient-column, --class-column, --case-column, --date-column and --split-column"
        )
    rows: dict[str, list[Diagnosis]] = defaultdict(list)
    problems = []
    for line, row in table:
        patient, diagnosis, folder = (row[name] for name in (patient_column, class_column, case_column))
        if not folder and not patient and not diagnosis:
            continue  # spreadsheets leave empty rows behind
        place = f"{path}, line {line}"
        try:
            when = read_date(row[date_column]) if date_column else ""
            part = _part(row[split_column]) if split_column else "train"
            found = Diagnosis(patient, canonical_name(diagnosis) if diagnosis else "", when, part)
        except ValueError as error:
            problems.append(f"{place}: {error}; correct it")
            continue
        if not folder or not patient:
            problems.append(f"{place}: no {patient_column if not patient else case_column}; fill it in")
        elif any(earlier.date == when and earlier != found for earlier in rows[folder]):
            problems.append(f"{place}: {folder} is there twice with different patients, classes or parts; remove a row")
        elif found not in rows[folder]:
            rows[folder].append(found)
    raise_problems(problems, path)
    return Diagnoses(dict(rows))


def _part(text: str) -> str:
    part = text.lower() or "train"
    if part not in FOLDER_ENDINGS:
        raise ValueError(f"{text!r} is no part of a data set; possible: {', '.join(FOLDER_ENDINGS)}")
    return part
