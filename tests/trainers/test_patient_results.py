"""Patients from the results of their cases, against values computed by hand."""

import csv
from pathlib import Path
from typing import Any

import pytest

from braintum.conversion.format.cases import Case, ClassSchema, read_dates, write_cases
from braintum.conversion.format.dates import latest_date
from braintum.inference.results.patients import (
    patient_results,
    read_patients,
    time_points,
    write_patients_csv,
    write_time_points,
)
from braintum.trainers.classes.class_supervision import ClassLabels
from braintum.trainers.classes.validation_results import write_validation_results

SCHEMA = ClassSchema(("glioma", "meningioma", "no_tumor"), "no_tumor")


def result(case: str, probabilities: list[float], evidence: float, volume: float = 0.0, unit: str = "mm2") -> dict:
    return {
        "case": case,
        "predicted_class": SCHEMA.class_names[probabilities.index(max(probabilities))],
        "confidence": max(probabilities),
        "probabilities": dict(zip(SCHEMA.class_names, probabilities, strict=True)),
        "tumour_evidence": evidence,
        "tumour_volume": volume,
        "volume_unit": unit,
    }


# one slice with tumour, two without: the healthy slices do not outvote it
RESULTS = [
    result("a1", [0.1, 0.1, 0.8], 0.01),
    result("a2", [0.2, 0.7, 0.1], 0.96, 120.0),
    result("a3", [0.1, 0.1, 0.8], 0.03, 2.5),
    result("b1", [0.0, 0.4, 0.6], 0.5),
    result("c", [0.9, 0.1, 0.0], 0.5, 7.0),
]
PATIENTS = {"a1": "A", "a2": "A", "a3": "A", "b1": "B"}


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_cases_are_weighted_with_the_predicted_tumour() -> None:
    first, second, third = patient_results(RESULTS, PATIENTS, SCHEMA)
    assert (first["patient"], first["predicted_class"], first["num_cases"]) == ("A", "meningioma", 3)
    assert first["probabilities"] == pytest.approx(
        {"glioma": 0.196, "meningioma": 0.676, "no_tumor": 0.128}  # 0.96 · 0.2 + 0.04 · 0.1, …; weights sum to one
    )
    assert first["confidence"] == pytest.approx(0.676)
    assert (first["tumour_volume"], first["volume_unit"]) == (122.5, "mm2")
    assert (second["patient"], second["predicted_class"], second["num_cases"]) == ("B", "no_tumor", 1)
    assert (third["patient"], third["tumour_volume"]) == ("c", 7.0)  # its own patient


def test_table_of_patients(tmp_path: Path) -> None:
    results = patient_results(RESULTS, PATIENTS, SCHEMA)
    write_patients_csv(tmp_path / "patients.csv", reversed(results), SCHEMA, true_class={"A": "glioma"})
    assert (tmp_path / "patients.csv").read_text(encoding="utf-8").splitlines() == [
        "patient,true_class,predicted_class,confidence,probability_glioma,probability_meningioma,probability_no_tumor,"
        "num_cases,date,tumour_volume,volume_unit",
        "A,glioma,meningioma,0.676000,0.196000,0.676000,0.128000,3,,122.500,mm2",
        "B,,no_tumor,0.600000,0.000000,0.400000,0.600000,1,,0.000,mm2",
        "c,,glioma,0.900000,0.900000,0.100000,0.000000,1,,7.000,mm2",
    ]


def test_areas_and_volumes_are_not_summed(tmp_path: Path) -> None:
    mixed = [result("a1", [1.0, 0.0, 0.0], 1, 3.0, "mm3"), result("a2", [1.0, 0.0, 0.0], 1, 4.0, "mm2")]
    write_patients_csv(tmp_path / "patients.csv", patient_results(mixed, PATIENTS, SCHEMA), SCHEMA)
    (row,) = rows_of(tmp_path / "patients.csv")
    assert (row["num_cases"], row["tumour_volume"], row["volume_unit"]) == ("2", "", "")


@pytest.mark.parametrize(
    ("unit", "dates", "expected"),
    [
        ("mm3", {"a1": "2020-05-01", "a2": "2021-02-03", "a3": "2019-01-01"}, ("2021-02-03", 120.0, "mm3")),
        ("mm3", {"a1": "2020-05-01"}, ("2020-05-01", 1.0, "mm3")),
        ("mm3", {}, ("", None, "")),  # which one is the latest is not known
        ("mm3", {"a2": "2021-02-03", "a3": "2021-02-03"}, ("2021-02-03", None, "")),
        ("mm2", {"a1": "2020-05-01", "a2": "2021-02-03", "a3": "2021-02-03"}, ("2021-02-03", 122.5, "mm2")),
        ("px", {}, ("", 123.5, "px")),  # slices of one examination
    ],
)
def test_volumes_are_never_summed_over_dates(unit: str, dates: dict[str, str], expected: tuple) -> None:
    volumes = {"a1": 1.0, "a2": 120.0, "a3": 2.5}
    results = [result(case, [0.5, 0.4, 0.1], 0.5, volume, unit) for case, volume in volumes.items()]
    (found,) = patient_results(results, PATIENTS, SCHEMA, dates)
    assert (found["date"], found["tumour_volume"], found["volume_unit"]) == expected
    assert found["num_cases"] == 3


def test_volume_over_dates(tmp_path: Path) -> None:
    volumes = {"late": 1500.0, "first": 2000.0, "middle": 0.0, "undated": 9.0, "slice1": 3.0, "slice2": 4.0}
    units = {"slice1": "mm2", "slice2": "mm2"}
    results = [result(case, [0.5, 0.4, 0.1], 0.5, volume, units.get(case, "mm3")) for case, volume in volumes.items()]
    twice = [result(case, [0.5, 0.4, 0.1], 0.5, 1.0, "mm3") for case in ("p", "q1", "q2", "r")]
    patients = dict.fromkeys(("late", "first", "middle", "undated"), "A") | dict.fromkeys(("slice1", "slice2"), "B")
    patients |= dict.fromkeys(("p", "q1", "q2", "r"), "C")
    dates = {"late": "2021-10-01", "first": "2020-01-02", "middle": "2020-03-04", "slice1": "0", "slice2": "30"}
    dates |= {"p": "9", "q1": "10", "q2": "10", "r": "100"}
    write_time_points(tmp_path / "time_points.csv", time_points([*results, *twice], patients, dates))
    assert (tmp_path / "time_points.csv").read_text(encoding="utf-8").splitlines() == [
        "patient,date,num_cases,tumour_volume,volume_unit,change_ml,change_percent",
        "A,2020-01-02,1,2.000,ml,,",
        "A,2020-03-04,1,0.000,ml,-2.000,-100.000",
        "A,2021-10-01,1,1.500,ml,1.500,",  # no percentage of nothing
        "B,0,1,3.000,mm2,,",
        "B,30,1,4.000,mm2,,",  # slices: not the same ones
        "C,9,1,0.001,ml,,",
        "C,10,2,,,,",  # two volumes of one date are not summed
        "C,100,1,0.001,ml,,",
    ]
    words = [result(case, [0.5, 0.4, 0.1], 0.5, 1000.0, "mm3") for case in ("a1", "a2")]
    rows = time_points(words, PATIENTS, {"a1": "baseline", "a2": "follow-up"})
    assert [(row["date"], row["tumour_volume"], row["change_ml"]) for row in rows] == [
        ("baseline", 1.0, None),  # nobody knows which comes first
        ("follow-up", 1.0, None),
    ]
    write_time_points(tmp_path / "time_points.csv", time_points(results, patients, {}))
    assert not (tmp_path / "time_points.csv").exists()


def test_dates_of_a_table(tmp_path: Path) -> None:
    file = tmp_path / "cases.csv"
    file.write_text("case;class;date\na;;2021-02-03\nb;;03.02.2021\nc;;20210203\nd;;\n", encoding="utf-8-sig")
    assert read_dates(file) == dict.fromkeys("abc", "2021-02-03")
    assert read_patients(file, "abcd") == {name: name for name in "abcd"}
    file.write_text("case,class\na,\n")
    assert read_dates(file) == {}
    for text, fault in (("2/3/21", "has a year of two digits"), ("2/3/2021", "may be 2021-02-03 or 2021-03-02")):
        file.write_text(f"case,class,date\na,,{text}\n")
        with pytest.raises(ValueError, match=f"cases.csv: '{text}' {fault}; write dates as YYYY-MM-DD"):
            read_dates(file)


@pytest.mark.parametrize(
    ("dates", "expected"),
    [
        (["2021-02-03", "2020-12-31", ""], "2021-02-03"),
        (["9", "12", "0"], "12"),
        (["baseline", "baseline"], "baseline"),
        (["baseline", "follow-up"], None),
        (["", ""], ""),
        ([], ""),
    ],
)
def test_latest_date(dates: list[str], expected: str | None) -> None:
    assert latest_date(dates) == expected


def test_results_without_evidence_are_refused() -> None:
    old = {key: value for key, value in RESULTS[1].items() if key != "tumour_evidence"}
    with pytest.raises(ValueError, match="earlier version predicted 1 of the cases, such as a2.*predict them again"):
        patient_results([RESULTS[0], old], PATIENTS, SCHEMA)


def test_read_patients(tmp_path: Path) -> None:
    file = tmp_path / "cases.csv"
    with pytest.raises(FileNotFoundError, match="cases.csv does not exist; --cases takes"):
        read_patients(file, ["a"])
    write_cases(file, [Case("a", patient="A"), Case("b"), Case("A"), Case("other", "unlisted class", "O")])
    assert read_patients(file, ["b", "a", "a"]) == {"a": "A", "b": "b"}
    with pytest.raises(ValueError, match="cases.csv has no row for 6 of the 7 cases .*: n0, n1, n2, n3, n4, …; add"):
        read_patients(file, ["a", *(f"n{number}" for number in range(6))])
    with pytest.raises(ValueError, match="cases.csv: case 'A' has no patient, but a patient of that name"):
        read_patients(file, ["a", "A"])


def validate(folder: Path, **cases: tuple[str, str]) -> dict[str, Any]:
    rows = {name: Case(name, tumour_class, patient) for name, (tumour_class, patient) in cases.items()}
    return write_validation_results(folder, RESULTS, ClassLabels.from_cases(rows, SCHEMA))


def test_validation_of_cases_and_patients(tmp_path: Path) -> None:
    figures = validate(
        tmp_path,
        a1=("no_tumor", "A"),
        a2=("meningioma", "A"),
        a3=("meningioma", "A"),
        b1=("glioma", "B"),
        c=("", "C"),
    )
    assert (figures["cases"]["num_cases"], figures["cases"]["accuracy"]) == (4, 0.5)
    assert (figures["patients"]["num_cases"], figures["patients"]["accuracy"]) == (2, 0.5)
    assert figures["patients"]["confusion_matrix"] == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]
    rows = rows_of(tmp_path / "patients.csv")
    assert [(row["patient"], row["true_class"]) for row in rows] == [("A", "meningioma"), ("B", "glioma"), ("C", "")]


def test_validation_without_a_patient_of_several_cases_is_of_cases_alone(tmp_path: Path) -> None:
    assert validate(tmp_path, a1=("no_tumor", "A"), a2=("meningioma", "A2")).keys() == {"cases"}
    assert not (tmp_path / "patients.csv").exists()
