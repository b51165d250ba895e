"""Patients from cases: one class, and the tumour volume over time, of everybody who has several images."""

import csv
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from braintum.conversion.files.atomic import atomic_path
from braintum.conversion.format.cases import ClassSchema, read_cases
from braintum.conversion.format.dates import in_order, latest_date
from braintum.conversion.format.patients import patient_of_cases, patient_probabilities
from braintum.inference.results.results import read_case_results, write_results_table

PATIENTS_FILE = "patients.csv"
TIME_POINTS_FILE = "time_points.csv"
TIME_POINT_COLUMNS = ("patient", "date", "num_cases", "tumour_volume", "volume_unit", "change_ml", "change_percent")

logger = logging.getLogger(__name__)


def read_patients(cases_file: str | os.PathLike[str], cases: Iterable[str]) -> dict[str, str]:
    """Patient of each case, from the column ``patient`` of a ``cases.csv``.

    Args:
        cases_file: the file. A case whose patient is empty is its own patient.
        cases: that need a row in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is wrong, or has no row for a case.
    """
    if not Path(cases_file).is_file():
        raise FileNotFoundError(f"{cases_file} does not exist; --cases takes the cases.csv that lists the cases")
    patients = {name: case.patient for name, case in read_cases(cases_file).items()}
    wanted = sorted(set(cases))
    if missing := [case for case in wanted if case not in patients]:
        raise ValueError(
            f"{cases_file} has no row for {len(missing)} of the {len(wanted)} cases that are to be predicted or in the "
            f"output folder: {', '.join(missing[:5])}{', …' if len(missing) > 5 else ''}; add them, with an empty "
            "patient where it is unknown"
        )
    try:
        return patient_of_cases(wanted, patients)
    except ValueError as error:
        raise ValueError(f"{cases_file}: {error}") from error


def patient_results(
    results: Sequence[Mapping[str, Any]],
    patients: Mapping[str, str],
    schema: ClassSchema,
    dates: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Results of all patients; their cases are weighted with the tumour that is predicted in them.

    Volumes are never summed over dates: slices of one date are, or of patients of whom no date is known.

    Args:
        results: one a case, as of :func:`braintum.inference.results.results.case_result`.
        patients: case → patient; a case without one is its own patient.
        schema: class names.
        dates: case → its date, see :func:`braintum.conversion.format.dates.latest_date`; a case may be missing.

    Returns:
        One a patient: ``patient``, ``predicted_class``, ``confidence``, ``probabilities`` (mean of the cases weighted
        with their ``tumour_evidence``), ``num_cases``, ``date`` (the latest; empty where none is known),
        ``tumour_volume`` (on that date: of its one volume, or the sum over its slices) and ``volume_unit``; the last
        two are None and empty where there are several volumes, or different units.

    Raises:
        ValueError: a result without ``tumour_evidence``.
    """
    if old := sorted(result["case"] for result in results if "tumour_evidence" not in result):
        raise ValueError(
            f"an earlier version predicted {len(old)} of the cases, such as {old[0]}, and did not write their "
            "tumour_evidence, which weights the cases of a patient; predict them again"
        )
    names = schema.class_names
    probabilities = patient_probabilities(
        {result["case"]: [result["probabilities"][name] for name in names] for result in results},
        patients,
        {result["case"]: result["tumour_evidence"] for result in results},
    )
    own_results = defaultdict(list)
    patient_of_case = patient_of_cases((result["case"] for result in results), patients)
    for result in results:
        own_results[patient_of_case[result["case"]]].append(result)
    merged = []
    for patient, values in probabilities.items():
        own = own_results[patient]
        own_dates = [(dates or {}).get(result["case"], "") for result in own]
        date = latest_date(own_dates)
        latest = [result for result, own_date in zip(own, own_dates, strict=True) if own_date == date]
        volume, unit = _volume(latest)
        winner = int(values.argmax())
        merged.append(
            {
                "patient": patient,
                "predicted_class": names[winner],
                "confidence": float(values[winner]),
                "probabilities": dict(zip(names, values.tolist(), strict=True)),
                "num_cases": len(own),
                "date": date or "",
                "tumour_volume": volume,
                "volume_unit": unit,
            }
        )
    return merged


def _volume(results: Sequence[Mapping[str, Any]]) -> tuple[float | None, str]:
    """Of the cases of one date, and its unit: None and empty for several volumes, or different units."""
    units = {result["volume_unit"] for result in results}
    if len(units) != 1 or (len(results) > 1 and units == {"mm3"}):
        return None, ""
    return sum(result["tumour_volume"] for result in results), units.pop()


def time_points(
    results: Iterable[Mapping[str, Any]], patients: Mapping[str, str], dates: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Tumour volume of each patient at each date, and its change since the date before.

    Args:
        results: one a case, as of :func:`braintum.inference.results.results.case_result`.
        patients: case → patient; a case without one is its own patient.
        dates: case → its date; cases without one are left out.

    Returns:
        One a patient and date, with the columns of ``time_points.csv``. Volumes are in ml; of slices it is their summed
        area, whose change says nothing, as they need not be the same slices. ``change_percent`` is of the earlier one;
        what is not known is None.
    """
    results = list(results)
    patient_of_case = patient_of_cases((result["case"] for result in results), patients)
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        if date := dates.get(result["case"], ""):
            found[patient_of_case[result["case"]]][date].append(result)
    rows = []
    for patient in sorted(found):
        ordered = in_order(found[patient])
        earlier: float | None = None
        for date in ordered or sorted(found[patient]):
            volume, unit = _volume(found[patient][date])
            if volume is not None and unit == "mm3":
                volume, unit = volume / 1000, "ml"
            is_compared = ordered is not None and unit == "ml"
            change = volume - earlier if is_compared and volume is not None and earlier is not None else None
            percent = 100 * change / earlier if change is not None and earlier else None
            values = (patient, date, len(found[patient][date]), volume, unit, change, percent)
            rows.append(dict(zip(TIME_POINT_COLUMNS, values, strict=True)))
            earlier = volume if unit == "ml" else None
    return rows


def write_time_points(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write what :func:`time_points` returns; without any, remove an earlier file."""
    if not rows:
        file.unlink(missing_ok=True)
        return
    with atomic_path(file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, TIME_POINT_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            shown = {name: f"{value:.3f}" for name, value in row.items() if isinstance(value, float)}
            writer.writerow({**row, **shown})


def write_patients_csv(file: Path, results: Iterable[Mapping[str, Any]], schema: ClassSchema, **columns: Any) -> None:
    """One row a patient: ``patient, predicted_class, confidence, probability_<class> …, num_cases, date,
    tumour_volume, volume_unit``.

    Args:
        file: replaced as a whole.
        results: as of :func:`patient_results`.
        schema: class names.
        **columns: additional columns behind ``patient``: name = mapping from patient to value.
    """
    write_results_table(file, "patient", results, schema, columns, counts=("num_cases", "date"))


def merge_patients(
    classes_folder: Path, file: Path, schema: ClassSchema, patients: Mapping[str, str], dates: Mapping[str, str]
) -> int:
    """Gather all ``<case>.json`` of a folder in one table of patients; parallel and continued runs so compose.

    Where there are dates, ``time_points.csv`` is written beside it.

    Returns:
        The number of patients.

    Raises:
        ValueError: see :func:`braintum.inference.results.results.read_case_results` and :func:`patient_results`.
    """
    cases = read_case_results(classes_folder, schema)
    results = patient_results(cases, patients, schema, dates)
    if unknown := [result["patient"] for result in results if result["tumour_volume"] is None]:
        logger.warning(
            "%s gives no tumour volume of %d patient(s), such as %s, who have several volumes: add a column date to "
            "cases.csv to get the latest",
            *(file, len(unknown), unknown[0]),
        )
    write_patients_csv(file, results, schema)
    write_time_points(file.with_name(TIME_POINTS_FILE), time_points(cases, patients, dates))
    return len(results)
