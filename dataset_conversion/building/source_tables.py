"""Reads the tables of sources: whatever is wrong with one of them becomes one message that names it."""

import csv
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

from braintum.conversion.building.inspection import SourceError, raise_problems
from braintum.conversion.files.file_checks import one_line
from braintum.conversion.format.class_names import canonical_name

EXCEL_ENDINGS = (".xlsx", ".xlsm")


def read_rows(path: Path) -> tuple[tuple[str, ...], list[tuple[int, dict[str, str]]]]:
    """Reads a table: UTF-8, with or without a byte-order mark, comma or semicolon between columns; or Excel's `.xlsx`.

    Returns:
        The column names; and the rows with their line numbers, values without blanks around them. A value that a row
        lacks is empty.

    Raises:
        SourceError: it is no such table.
    """
    if path.suffix.lower() in EXCEL_ENDINGS:
        return _read_excel(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            delimiter = ";" if header.count(";") > header.count(",") else ","
            reader = csv.DictReader(file, delimiter=delimiter, strict=True)
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


def read_diagnoses(path: Path, patient_column: str, class_column: str, case_column: str) -> dict[str, tuple[str, str]]:
    """Reads the table of a source whose patients lie in folders.

    Args:
        path: of :func:`read_rows`.
        patient_column: column of patients.
        class_column: column of diagnoses; blanks are unknown.
        case_column: column of folder names.

    Returns:
        Folder name -> patient and class (its canonical name, or empty).

    Raises:
        SourceError: the table cannot be used; all its problems are listed.
    """
    header_names, table = read_rows(path)
    missing = sorted({patient_column, class_column, case_column} - set(header_names))
    if missing:
        raise SourceError(
            f"{path}: has no column {', '.join(missing)}, but {', '.join(header_names) or 'none'}; name them with "
            "--patient-column, --class-column and --case-column"
        )
    rows: dict[str, tuple[str, str]] = {}
    problems = []
    for line, row in table:
        patient, diagnosis, folder = (row[name] for name in (patient_column, class_column, case_column))
        if not folder and not patient and not diagnosis:
            continue  # spreadsheets leave empty rows behind
        place = f"{path}, line {line}"
        try:
            values = (patient, canonical_name(diagnosis) if diagnosis else "")
        except ValueError as error:
            problems.append(f"{place}: {error}; correct it")
            continue
        if not folder or not patient:
            problems.append(f"{place}: no {patient_column if not patient else case_column}; fill it in")
        elif rows.setdefault(folder, values) != values:
            problems.append(f"{place}: {folder} is there twice with different patients or classes; remove one row")
    raise_problems(problems, path)
    return rows
