"""Reads the CSV tables of sources: whatever is wrong with one of them becomes one message that names it."""

import csv
from pathlib import Path

from braintum.conversion.building.inspection import SourceError


def read_rows(path: Path) -> tuple[tuple[str, ...], list[tuple[int, dict[str, str]]]]:
    """Reads a table: UTF-8, with or without a byte-order mark, comma or semicolon between columns.

    Returns:
        The column names; and the rows with their line numbers, values without blanks around them. A value that a row
        lacks is empty.

    Raises:
        SourceError: it is no such table.
    """
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
        fault = " ".join(str(error).split())
        raise SourceError(f"{path}: not readable as a table ({fault}); save it as CSV with UTF-8") from error
    return columns, rows
