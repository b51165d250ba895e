"""From cases to patients: whose case it is, and what class and class probabilities a patient has.

Slices (or examinations) of one patient are no independent observations: splits, figures with their uncertainty and
diagnoses are therefore made by patient.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np


def patient_of_cases(case_names: Iterable[str], patients: Mapping[str, str]) -> dict[str, str]:
    """Returns the patient of each case; a case without a known patient is its own patient, named as the case.

    Args:
        case_names: the cases wanted.
        patients: case -> patient, empty where unknown; a case may be missing.

    Raises:
        ValueError: a case without a patient is named like another case's patient.
    """
    found = {case: patients.get(case, "") for case in case_names}
    named = set(found.values()) - {""}
    if ambiguous := sorted(case for case, patient in found.items() if not patient and case in named):
        raise ValueError(
            f"case {ambiguous[0]!r} has no patient, but a patient of that name has other cases; give it a patient"
        )
    return {case: patient or case for case, patient in found.items()}


def patient_probabilities(
    probabilities: Mapping[str, Sequence[float] | np.ndarray],
    patients: Mapping[str, str],
    weights: Mapping[str, float] | None = None,
) -> dict[str, np.ndarray]:
    """Returns the class probabilities of each patient: the (weighted) mean of the patient's cases.

    Args:
        probabilities: case -> (classes,).
        patients: case -> patient, empty where unknown; see `patient_of_cases`.
        weights: case -> weight, such as the predicted tumour probability or volume; None weights all alike.

    Returns:
        Patient -> (classes,), float64, in the order in which the patients first occur.

    Raises:
        ValueError: a weight is missing or negative, or all weights of a patient are zero.
    """
    sums: dict[str, np.ndarray] = {}
    totals: dict[str, float] = {}
    for case, patient in patient_of_cases(probabilities, patients).items():
        weight = 1.0 if weights is None else weights.get(case, np.nan)
        if not weight >= 0:  # also NaN
            raise ValueError(f"case {case!r}: weight {weight} is missing or negative; give each case one of at least 0")
        sums[patient] = sums.get(patient, 0.0) + weight * np.asarray(probabilities[case], dtype=np.float64)
        totals[patient] = totals.get(patient, 0.0) + weight
    if weightless := sorted(patient for patient, total in totals.items() if total == 0):
        raise ValueError(f"patient {weightless[0]!r}: all weights are zero; give them a small positive minimum")
    return {patient: values / totals[patient] for patient, values in sums.items()}


def patient_class(classes: Iterable[str], negative_class: str | None = None) -> str | None:
    """Returns the class of a patient from those of the patient's cases.

    Slices beside the tumour are healthy, so the negative class yields to a tumour class.

    Args:
        classes: of the patient's cases; empty where unknown, which does not count.
        negative_class: the healthy class of the data set, if it has one.

    Returns:
        The one tumour class of the patient, or the negative class; None where no class is known, and where there are
        two tumour classes: such a patient has no class and is to be left out and counted.
    """
    known = set(classes) - {""}
    tumours = known - {negative_class}
    if tumours:
        return tumours.pop() if len(tumours) == 1 else None
    return negative_class if known else None
