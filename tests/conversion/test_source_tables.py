"""Tables of diagnoses as hospitals have them."""

from datetime import datetime
from pathlib import Path

import pytest

from braintum.conversion.building.inspection import SourceError
from braintum.conversion.building.source_tables import Diagnosis, read_diagnoses, read_rows


def test_excel_is_read_as_csv_is(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    workbook = openpyxl.Workbook()
    for row in (
        ["patient", "class", None, "date", "age"],
        ["P 1 ", "Glioma", "a remark", datetime(2021, 2, 3), 61.0],
        ["Müller", None, None, datetime(2021, 2, 3, 4, 5), 0.5],
        [17, "MET"],
    ):
        workbook.active.append(row)
    workbook.create_sheet("another").append(["patient"])
    file = tmp_path / "cases.xlsx"
    workbook.save(file)
    columns, rows = read_rows(file)
    assert columns == ("patient", "class", "date", "age")
    assert rows == [
        (2, {"patient": "P 1", "class": "Glioma", "date": "2021-02-03", "age": "61"}),
        (3, {"patient": "Müller", "class": "", "date": "2021-02-03T04:05:00", "age": "0.5"}),
        (4, {"patient": "17", "class": "MET", "date": "", "age": ""}),
    ]
    assert read_diagnoses(file, "patient", "class", "patient").rows == {
        "P 1": [Diagnosis("P 1", "glioma")],
        "Müller": [Diagnosis("Müller", "")],
        "17": [Diagnosis("17", "metastasis")],
    }


def test_file_that_is_no_excel_table(tmp_path: Path) -> None:
    pytest.importorskip("openpyxl")
    file = tmp_path / "cases.xlsx"
    file.write_text("patient,class\n")
    with pytest.raises(SourceError, match="cases.xlsx: not readable as an Excel table .*; save it as CSV"):
        read_rows(file)
