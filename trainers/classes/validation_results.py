"""What the final validation writes about classes, of cases and of patients."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from braintum.conversion.files.atomic import atomic_path, write_json_atomic
from braintum.conversion.format.cases import ClassSchema
from braintum.conversion.format.familiarity import FEATURES_FILE
from braintum.conversion.format.patients import patient_class, patient_of_cases
from braintum.evaluation.metrics.classification_metrics import classification_metrics
from braintum.inference.results.patients import PATIENTS_FILE, patient_results, write_patients_csv
from braintum.inference.results.results import write_classes_csv
from braintum.trainers.classes.class_supervision import ClassLabels


def write_validation_results(
    folder: Path, results: Sequence[Mapping[str, Any]], labels: ClassLabels, dates: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """``classes.csv`` and ``patients.csv`` (with the true class) and ``classification.json`` of a validation.

    Patients are left out where each has a single case: their figures would be those of the cases.

    Args:
        folder: the fold's ``validation``.
        results: one a case, as of :func:`braintum.inference.results.results.case_result`.
        labels: true class and patient of the cases.
        dates: case → its date, as far as it is known; of :func:`braintum.conversion.format.cases.read_dates`.

    Returns:
        Figures of
        :func:`braintum.evaluation.metrics.classification_metrics.classification_metrics` over those whose class is
        known: of ``cases`` and, where there are any, of ``patients``, in which a case is a patient.
    """
    schema = labels.schema
    true_class = {case: schema.class_names[label] for case, label in labels.label_of_case.items()}
    write_classes_csv(folder / "classes.csv", results, schema, true_class=true_class)
    figures = {"cases": _figures(results, "case", true_class, schema)}
    content = {
        "class_names": list(schema.class_names),
        **({} if labels.permutation_seed is None else {"permuted_labels": labels.permutation_seed}),
        **_json_ready(figures["cases"]),
        "cases": {result["case"]: result for result in results},
    }
    patients = patient_of_cases((result["case"] for result in results), labels.patient_of_case)
    if len(set(patients.values())) < len(patients):
        of_patients = patient_results(results, patients, schema, dates)
        true_class = _class_of_patients(patients, true_class, schema)
        write_patients_csv(folder / PATIENTS_FILE, of_patients, schema, true_class=true_class)
        figures["patients"] = _figures(of_patients, "patient", true_class, schema)
        content["patients"] = {
            **_json_ready(figures["patients"]),
            "num_without_class": len(of_patients) - figures["patients"]["num_cases"],
        }
    write_json_atomic(folder / "classification.json", content)
    return figures


def write_encoder_features(folder: Path, features: Sequence[np.ndarray | None]) -> None:
    """Encoder features of the cases, in the order of ``classification.json``; none where not all are known.

    ``braintum_calibrate`` learns from them what images of the data set look like to the network.
    """
    if features and all(found is not None for found in features):
        with atomic_path(folder / FEATURES_FILE) as partial, partial.open("wb") as stream:
            np.save(stream, np.stack([np.asarray(found, np.float16) for found in features]))


def _figures(
    results: Sequence[Mapping[str, Any]], subject: str, true_class: Mapping[str, str], schema: ClassSchema
) -> dict[str, Any]:
    known = [result for result in results if result[subject] in true_class]
    return classification_metrics(
        [schema.index(true_class[result[subject]]) for result in known],
        [schema.index(result["predicted_class"]) for result in known],
        schema.class_names,
    )


def _class_of_patients(
    patients: Mapping[str, str], class_of_case: Mapping[str, str], schema: ClassSchema
) -> dict[str, str]:
    """True class of the patients that have one."""
    classes: dict[str, list[str]] = {}
    for case, patient in patients.items():
        classes.setdefault(patient, []).append(class_of_case.get(case, ""))
    found = {patient: patient_class(of_cases, schema.negative_class) for patient, of_cases in classes.items()}
    return {patient: tumour_class for patient, tumour_class in found.items() if tumour_class is not None}


def _json_ready(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and np.isnan(value) else value for key, value in figures.items()}
