"""Patient-level classes and probabilities, against values computed by hand."""

import numpy as np
import pytest

from braintum.conversion.format.patients import patient_class, patient_of_cases, patient_probabilities

PROBABILITIES = {"a": [0.8, 0.2], "b": [0.4, 0.6], "c": [0.1, 0.9], "d": [0.3, 0.7]}
PATIENTS = {"a": "P1", "b": "P1", "c": "", "d": "P2"}


def test_a_case_without_a_patient_is_its_own_patient() -> None:
    assert patient_of_cases(["c", "a", "new"], PATIENTS) == {"c": "c", "a": "P1", "new": "new"}


def test_only_the_wanted_cases_matter_for_names() -> None:
    assert patient_of_cases(["P1"], PATIENTS) == {"P1": "P1"}  # a, of patient P1, is not wanted
    with pytest.raises(ValueError, match="case 'P1' has no patient"):
        patient_of_cases(["a", "P1"], PATIENTS)


def test_mean_of_a_patients_cases() -> None:
    found = patient_probabilities(PROBABILITIES, PATIENTS)
    assert list(found) == ["P1", "c", "P2"]
    np.testing.assert_allclose(found["P1"], [0.6, 0.4])
    np.testing.assert_allclose(found["c"], [0.1, 0.9])
    np.testing.assert_allclose(found["P2"], [0.3, 0.7])


def test_weighted_mean() -> None:
    found = patient_probabilities(PROBABILITIES, PATIENTS, {"a": 3.0, "b": 1.0, "c": 0.01, "d": 5})
    np.testing.assert_allclose(found["P1"], [(3 * 0.8 + 0.4) / 4, (3 * 0.2 + 0.6) / 4])
    np.testing.assert_allclose(found["c"], [0.1, 0.9])


def test_a_case_of_weight_zero_does_not_count() -> None:
    found = patient_probabilities(PROBABILITIES, PATIENTS, {"a": 0.0, "b": 2.0, "c": 1.0, "d": 1.0})
    np.testing.assert_allclose(found["P1"], [0.4, 0.6])


def test_inputs_are_left_alone() -> None:
    cases = {"a": np.array([0.5, 0.5]), "b": np.array([1.0, 0.0])}
    patient_probabilities(cases, PATIENTS)
    assert cases["a"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"a": 1.0, "b": -1.0, "c": 1.0, "d": 1.0}, "case 'b': weight -1.0"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, "case 'd': weight nan"),
        ({"a": 0.0, "b": 0.0, "c": 1.0, "d": 1.0}, "patient 'P1': all weights are zero"),
    ],
)
def test_impossible_weights(weights: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        patient_probabilities(PROBABILITIES, PATIENTS, weights)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["glioma", "no_tumor", "", "glioma"], "glioma"),
        (["no_tumor", "no_tumor"], "no_tumor"),
        (["glioma", "meningioma", "no_tumor"], None),
        (["", "pituitary"], "pituitary"),
        (["", ""], None),
        ([], None),
    ],
)
def test_class_of_a_patient(classes: list[str], expected: str | None) -> None:
    assert patient_class(classes, "no_tumor") == expected


def test_class_of_a_patient_without_a_healthy_class() -> None:
    assert patient_class(["glioma", "glioma"]) == "glioma"
    assert patient_class(["glioma", "no_tumor"]) is None  # just another class
