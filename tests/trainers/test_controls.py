"""Permuted labels and leaking splits: the controls that show what scores mean."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import CLASS_NAMES, write_preprocessed

from braintum.conversion.format.cases import Case, ClassSchema
from braintum.evaluation.results.case_table import CaseTable
from braintum.evaluation.results.label_permutation import chance_level, label_units, permuted_classes, share_unchanged
from braintum.evaluation.results.predictions import Predictions
from braintum.trainers.classes.class_supervision import ClassLabels
from braintum.trainers.classes.permuted_labels import PERMUTATION_SEED, with_permuted_training
from braintum.trainers.classes.validation_results import write_validation_results

SCHEMA = ClassSchema(("glioma", "meningioma", "no_tumor"), "no_tumor")


def slices(patient: str, tumour_class: str, number: int, **more: str) -> list[Case]:
    return [Case(f"{patient}_{tumour_class}_{i}", tumour_class, patient=patient, **more) for i in range(number)]


def patients(number: int = 60, seed: int = 0) -> dict[str, Case]:
    """Patients of one to four slices, glioma or meningioma, some with healthy slices beside."""
    random = np.random.default_rng(seed)
    rows = []
    for index in range(number):
        rows += slices(f"P{index:02d}", SCHEMA.class_names[index % 2], int(random.integers(1, 5)))
        if index % 3 == 0:
            rows += slices(f"P{index:02d}", "no_tumor", 2)
    return {row.case: row for row in rows}


def test_slices_of_a_patient_get_one_label() -> None:
    cases = patients()
    permuted = permuted_classes(cases.values(), 4, "no_tumor")
    assert permuted.keys() == cases.keys()
    for unit in label_units(cases.values(), "no_tumor"):
        assert len({cases[case].patient for case in unit}) == 1
        assert len({permuted[case] for case in unit}) == 1
    # units of one class each: 30 and 30 tumours, 20 healthy; permuting keeps how many there are
    firsts = [unit[0] for unit in label_units(cases.values(), "no_tumor")]
    assert Counter(permuted[case] for case in firsts) == {"glioma": 30, "meningioma": 30, "no_tumor": 20}
    assert permuted == permuted_classes(reversed(list(cases.values())), 4, "no_tumor")
    assert permuted != permuted_classes(cases.values(), 5, "no_tumor")


def test_labels_are_independent_of_the_true_ones() -> None:
    cases = patients()
    shares = [share_unchanged(cases, permuted_classes(cases.values(), seed, "no_tumor")) for seed in range(200)]
    units = label_units(cases.values(), "no_tumor")
    counts = Counter(cases[unit[0]].tumour_class for unit in units)
    sizes = Counter(row.tumour_class for row in cases.values())
    # a unit draws the class of any of the units
    expected = sum(sizes[name] * counts[name] for name in counts) / len(cases) / len(units)
    assert np.mean(shares) == pytest.approx(expected, abs=4 * np.std(shares) / np.sqrt(len(shares)))


def test_units_where_patients_are_none() -> None:
    fold = [*slices("fold1", "glioma", 3), *slices("fold1", "meningioma", 2)]
    assert sorted(map(len, label_units(fold))) == [1] * 5
    copies = [Case(f"copy_{number}", "glioma", patient="fold1", group="g7") for number in range(2)]
    units = label_units([*fold, *copies])
    assert ["copy_0", "copy_1"] in units and len(units) == 6
    alone = [Case("x", "glioma"), Case("y", "glioma"), Case("z", "")]
    assert label_units(alone) == [["x"], ["y"]]
    # copies across patients tie these patients together
    tied = [Case("a", "glioma", patient="A", group="g"), Case("b", "glioma", patient="B", group="g")]
    assert label_units(tied) == [["a", "b"]]


def test_validation_labels_stay_true() -> None:
    cases = patients()
    labels = ClassLabels.from_cases(cases, SCHEMA)
    training = [case for case, row in cases.items() if row.patient < "P40"]
    mixed, unchanged = with_permuted_training(labels, cases, training, 3)
    held_out = [case for case in cases if case not in set(training)]
    assert mixed.of(held_out).tolist() == labels.of(held_out).tolist()
    assert mixed.of(training).tolist() != labels.of(training).tolist()
    assert unchanged == pytest.approx((mixed.of(training) == labels.of(training)).double().mean().item())
    assert mixed.permutation_seed == 3 and labels.permutation_seed is None
    assert mixed.patient_of_case == labels.patient_of_case


# --------------------------------------------------------------------------- chance level


def table_of(cases: dict[str, Case], predicted: dict[str, str]) -> CaseTable:
    """A table without masks."""
    results = {
        case: {
            "predicted_class": name,
            "probabilities": {other: float(other == name) for other in SCHEMA.class_names},
        }
        for case, name in predicted.items()
    }
    files = {case: Path(case) for case in cases}
    dataset_json = {"labels": {"background": 0, "tumour": 1}, "classification": SCHEMA.to_json()}
    return CaseTable(Predictions("model", files, files, dataset_json, results, cases), {"tumour": 1}, [])


@pytest.mark.slow
def test_chance_level_of_guesses_and_of_knowledge() -> None:
    cases = patients()
    random = np.random.default_rng(2)
    knows = chance_level(table_of(cases, {case: row.tumour_class for case, row in cases.items()}), 100)
    assert knows["accuracy"]["value"] == 1 and knows["accuracy"]["p_value"] == pytest.approx(1 / 101)
    assert knows["accuracy"]["high"] < 0.8
    guess = {case: str(random.choice(SCHEMA.class_names)) for case in cases}
    guesses = chance_level(table_of(cases, guess), 100)
    for figure in ("accuracy", "macro_f1", "balanced_accuracy"):
        assert guesses[figure]["low"] <= guesses[figure]["chance"] <= guesses[figure]["high"]
        assert guesses[figure]["p_value"] > 0.02
    majority = Counter(row.tumour_class for row in cases.values()).most_common(1)[0]
    constant = chance_level(table_of(cases, dict.fromkeys(cases, majority[0])), 20)
    assert constant["accuracy"]["value"] == constant["majority_rate"] == pytest.approx(majority[1] / len(cases))
    assert constant["num_cases"] == len(cases) and constant["num_units"] == 80


@pytest.mark.slow
def test_chance_level_counts_patients_not_slices() -> None:
    """Few patients with many slices: what one lucky patient contributes is no evidence."""
    cases = {row.case: row for index in range(6) for row in slices(f"P{index}", SCHEMA.class_names[index % 2], 50)}
    lucky = {case: row.tumour_class for case, row in cases.items()}
    lucky |= {case: "glioma" for case, row in cases.items() if row.patient in ("P1", "P3")}
    found = chance_level(table_of(cases, lucky), 100)
    assert found["accuracy"]["value"] == pytest.approx(4 / 6)
    assert found["accuracy"]["p_value"] > 0.1
    alone = {case: Case(case, row.tumour_class) for case, row in cases.items()}
    assert chance_level(table_of(alone, lucky), 100)["accuracy"]["p_value"] == pytest.approx(1 / 101)


def test_chance_level_needs_classes() -> None:
    cases = {"a": Case("a", ""), "b": Case("b", "")}
    with pytest.raises(ValueError, match="no case has a true and a predicted class"):
        chance_level(table_of(cases, {"a": "glioma", "b": "glioma"}))


# --------------------------------------------------------------------------- training


@pytest.fixture
def dataset(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("braintum_num_iterations_per_epoch", "1")
    monkeypatch.setenv("braintum_num_epochs", "1")
    return write_preprocessed(nnunet_folders.preprocessed, "2d")


def test_training_on_permuted_labels(dataset: Any, nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = dataset.trainer("nnUNetTrainerMultiTask")
    honest.initialize()
    monkeypatch.setenv("braintum_permuted_labels", "2")
    trainer = dataset.trainer("nnUNetTrainerMultiTask")
    trainer.initialize()
    expected = nnunet_folders.results / "permuted_labels_2" / "Dataset007_Tiny"
    assert Path(trainer.output_folder) == expected / "nnUNetTrainerMultiTask__TinyPlans__2d" / "fold_0"
    assert Path(trainer.output_folder) != Path(honest.output_folder)
    assert Path(trainer.log_file).is_file() and Path(trainer.log_file).is_relative_to(expected)
    assert trainer.preprocessed_dataset_folder == honest.preprocessed_dataset_folder
    training, held_out = honest.do_split()
    true = honest.class_labels
    assert trainer.class_labels.of(held_out).tolist() == true.of(held_out).tolist()
    assert sorted(trainer.class_labels.of(training).tolist()) == sorted(true.of(training).tolist())
    assert trainer.class_labels.of(training).tolist() != true.of(training).tolist()
    assert "CONTROL" in Path(trainer.log_file).read_text(encoding="utf-8")
    # what the loader draws from is balanced by the permuted classes
    loaded, _ = trainer.get_tr_and_val_datasets()
    assert Counter(loaded.identifiers) == Counter(trainer.class_labels.balanced(training))
    checkpoint = str(expected / "checkpoint.pth")
    trainer.save_checkpoint(checkpoint)
    assert torch.load(checkpoint, weights_only=True)[PERMUTATION_SEED] == 2
    trainer.load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match="was trained with braintum_permuted_labels=2"):
        honest.load_checkpoint(checkpoint)


def test_settings_that_do_not_go_together(dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("braintum_permuted_labels", "0")
    with pytest.raises(NotImplementedError, match="learns no classes"):
        dataset.trainer("nnUNetTrainerUNet")
    with pytest.raises(NotImplementedError, match="train a numbered fold, not all"):
        dataset.trainer("nnUNetTrainerMultiTask", "all")
    monkeypatch.setenv("braintum_permuted_labels", "yes")
    with pytest.raises(ValueError, match="braintum_permuted_labels takes a whole number from 0 on, got 'yes'"):
        dataset.trainer("nnUNetTrainerMultiTask")


@pytest.mark.parametrize("seed", [None, 7])
def test_validation_says_that_labels_were_permuted(tmp_path: Path, seed: int | None) -> None:
    schema = ClassSchema(CLASS_NAMES, "no_tumor")
    labels = ClassLabels(schema, {"a": 0, "b": 1}, {"a": "a", "b": "b"}, seed)
    results = [
        {
            "case": case,
            "predicted_class": CLASS_NAMES[0],
            "confidence": 1.0,
            "probabilities": dict(zip(CLASS_NAMES, (1.0, 0.0, 0.0), strict=True)),
            "tumour_volume": 1.0,
            "volume_unit": "px",
        }
        for case in ("a", "b")
    ]
    write_validation_results(tmp_path, results, labels)
    content = json.loads((tmp_path / "classification.json").read_text(encoding="utf-8"))
    assert content.get("permuted_labels") == seed and ("permuted_labels" in content) == (seed is not None)


# --------------------------------------------------------------------------- the official and the honest split


@pytest.fixture
def controls(benchmark_scripts: None) -> Any:
    import controls

    return controls


def test_two_splits(controls: Any) -> None:
    """Ten of forty images are the test part; three of them are copies of training images."""
    rows = []
    for number in range(40):
        part = "test" if number >= 30 else "train"
        group = f"g{number % 30}" if number % 30 < 3 else ""
        source = f"classification_task/{part}/glioma/{number}.jpg"
        rows.append(Case(f"case_{number:02d}", ("glioma", "meningioma")[number % 2], group=group, source=source))
    official, honest = controls.two_splits(rows)
    assert official["val"] == [f"case_{number}" for number in range(30, 40)]
    assert set(official["train"]) == {f"case_{number:02d}" for number in range(30)}
    assert sorted(honest["train"] + honest["val"]) == sorted(official["train"] + official["val"])
    assert abs(len(honest["val"]) - 10) <= 2
    assert controls.with_copy_in_training(official, rows) == {"case_30", "case_31", "case_32"}
    assert controls.with_copy_in_training(honest, rows) == set()
    with pytest.raises(ValueError, match="0 of 30 cases are in a test part"):
        controls.two_splits(rows[:30])
