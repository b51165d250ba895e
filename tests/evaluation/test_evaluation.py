"""From folders of predictions to figures, against values computed by hand."""

import csv
import json
import re

import numpy as np
import pytest
from evaluation_data import CASES, DICE, dataset_json, square, write_mask, write_predictions, write_truth
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder, load_summary_json

from braintum.conversion.format.cases import Case, write_cases
from braintum.conversion.format.label_names import named_labels
from braintum.evaluation.results.case_table import CaseTable, case_table
from braintum.evaluation.results.predictions import predictions_in_folder
from braintum.evaluation.results.results import write_evaluation
from braintum.evaluation.results.summary import summarise_table
from braintum.evaluation.results.tables import interval, latex_macros, number, tables_of

RESAMPLES = 100


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluation")
    return write_predictions(root / "predictions"), write_truth(root / "data")


@pytest.fixture(scope="module")
def table(folders) -> CaseTable:
    return case_table(predictions_in_folder(*folders))


@pytest.fixture(scope="module")
def summary(table):
    return summarise_table(table, RESAMPLES)


def test_labels_of_a_data_set():
    assert named_labels(dataset_json()) == {"tumour": 1}
    two = {"background": 0, "core": 1, "oedema": 2, "ignore": 3}
    assert named_labels(dataset_json(two)) == {"core": 1, "oedema": 2, "any_label": (1, 2)}
    regions = {"background": 0, "whole": [1, 2], "core": [2]}  # nnU-Net's key of a region of one label is a tuple
    assert named_labels(dataset_json(regions)) == {"whole": (1, 2), "core": (2,)}
    brats = {"background": 0, "necrotic_core": 1, "oedema": 2, "enhancing_tumour": 3}
    assert named_labels(dataset_json(brats)) == {
        "necrotic_core": 1,
        "oedema": 2,
        "enhancing_tumour": 3,
        "whole_tumour": (1, 2, 3),
        "tumour_core": (1, 3),
    }


def test_cases(table):
    assert table.cases == sorted(CASES)
    assert table.unit == "mm"
    np.testing.assert_allclose(table.dice, [*(DICE[case] for case in sorted(DICE)), np.nan, np.nan])
    np.testing.assert_allclose(table.true_volume, [16, 16, 36, 36, 0, 0])  # a voxel has 1 mm²
    np.testing.assert_allclose(table.predicted_volume, [16, 16, 0, 9, 4, 0])
    assert table.true_class.tolist() == [0, 0, 1, 1, 2, 2]
    assert table.predicted_class.tolist() == [0, 0, 1, 0, 2, 2]
    assert table.patients == ["a", "a", "b", "b", "c", "d"]
    assert len(set(table.clusters)) == 4


@pytest.mark.slow
def test_dice_is_over_cases_that_show_the_label(summary):
    found = summary["segmentation"]["tumour"]
    assert found["num_cases"] == {"all": 4, "meningioma": 2, "glioma": 2}
    assert found["figures"]["all"]["Dice"]["value"] == pytest.approx(np.mean(list(DICE.values())))
    assert found["figures"]["all"]["Dice"]["sd"] == pytest.approx(np.std(list(DICE.values()), ddof=1))
    assert found["figures"]["meningioma"]["Dice"]["value"] == pytest.approx(0.75)
    assert summary["dice"]["value"] == pytest.approx(np.mean(list(DICE.values())))
    # shifted by two pixels of 0.5 mm, and the corner of a square of 6 × 6 with its farthest voxel at 3 × (0.5, 2) mm
    assert found["figures"]["all"]["HD"]["num_cases"] == 3
    assert found["figures"]["all"]["HD"]["value"] == pytest.approx(np.mean([0, 1, np.hypot(3 * 0.5, 3 * 2)]))


def test_false_masks_are_apart(summary):
    false = summary["segmentation"]["tumour"]["false_masks"]
    assert (false["count"], false["num_cases"], false["value"], false["mean_volume"]) == (1, 2, 0.5, 4.0)


def test_classes(summary):
    classes = summary["classification"]
    assert classes["accuracy"]["value"] == pytest.approx(5 / 6)
    assert classes["balanced_accuracy"]["value"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert classes["confusion_matrix"] == [[2, 0, 0], [1, 1, 0], [0, 0, 2]]
    assert classes["per_class"]["glioma"]["sensitivity"]["value"] == 0.5
    squares = [(p[i] - (n == row[0])) ** 2 for row in CASES.values() for p in [row[4]] for i, n in enumerate(CLASSES)]
    assert classes["brier_score"]["value"] == pytest.approx(sum(squares) / 6)


CLASSES = ("meningioma", "glioma", "no_tumor")


def test_mask_and_class_together(summary):
    joint = summary["joint"]
    # a1 and h2 fully, a2 with a Dice of exactly 0.5; b1 missed, b2 wrong class, h1 false mask
    assert (joint["both_correct"]["count"], joint["both_correct"]["num_cases"]) == (3, 6)
    assert joint["healthy_class_with_mask"]["count"] == 1
    assert joint["tumour_class_without_mask"]["count"] == 1
    assert joint["contradictions"]["value"] == pytest.approx(2 / 6)
    assert joint["missed_tumours"]["value"] == pytest.approx(1 / 4)


def test_patients(summary):
    patients = summary["patients"]
    assert patients["num_patients"] == 4
    a = 2 * (16 + 8) / (32 + 32)  # voxels of both slices together
    b = 2 * 9 / (72 + 9)
    assert patients["Dice"]["tumour"]["value"] == pytest.approx((a + b) / 2)
    assert patients["classification"]["accuracy"]["value"] == 1  # the mean of b's slices: 0.35 to 0.55


def test_too_few_patients_give_no_interval(summary):
    assert summary["num_clusters"] == 4
    assert summary["classification"]["accuracy"]["low"] is None
    assert summary["dice"]["low"] is None


@pytest.mark.slow
def test_intervals_come_with_enough_patients(tmp_path):
    many = {f"{name}{i}": (row[0], f"{row[1]}{i}", *row[2:]) for i in range(3) for name, row in CASES.items()}
    truth = write_truth(tmp_path / "data", many)
    summary = summarise_table(
        case_table(predictions_in_folder(write_predictions(tmp_path / "p", many), truth)), RESAMPLES
    )
    for figure in (summary["classification"]["accuracy"], summary["dice"], summary["joint"]["both_correct"]):
        assert figure["low"] < figure["value"] < figure["high"]


@pytest.mark.slow
def test_unknown_and_withheld_classes_are_left_out_and_counted(tmp_path):
    cases = {**CASES, "u1": ("", "e", *CASES["a1"][2:])}
    predictions = write_predictions(tmp_path / "predictions", cases)
    file = predictions / "classes" / "b2.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), "predicted_class": ""}))
    summary = summarise_table(
        case_table(predictions_in_folder(predictions, write_truth(tmp_path / "data", cases))), RESAMPLES
    )
    classes = summary["classification"]
    assert (classes["num_cases"], classes["num_unknown"], classes["num_withheld"]) == (5, 1, 1)
    assert classes["accuracy"]["value"] == 1


def test_model_without_classes(tmp_path):
    summary = summarise_table(
        case_table(
            predictions_in_folder(
                write_predictions(tmp_path / "predictions", with_classes=False), write_truth(tmp_path / "data")
            )
        ),
        RESAMPLES,
    )
    assert "classification" not in summary
    assert summary["dice"]["value"] == pytest.approx(np.mean(list(DICE.values())))
    assert tables_of(summary)


@pytest.mark.slow
def test_cases_without_a_mask_count_for_classes_only(tmp_path):
    labels = {"background": 0, "tumour": 1, "ignore": 2}
    cases = {**CASES, "x1": ("glioma", "x", square(0, 0, 24, 2), square(3, 3, 3), (0.1, 0.8, 0.1))}
    truth = write_truth(tmp_path / "data", cases, dataset_json(labels))
    predictions = write_predictions(tmp_path / "predictions", cases)
    (predictions / "dataset.json").write_text(json.dumps(dataset_json(labels)))
    table = case_table(predictions_in_folder(predictions, truth))
    summary = summarise_table(table, RESAMPLES)
    assert np.isnan([table.true_volume[-1], table.predicted_volume[-1], table.dice[-1]]).all()
    # the predicted mask lies where everything is ignored: it is neither missed nor a contradiction
    for name, num_cases in (("contradictions", 6), ("tumour_class_without_mask", 4), ("missed_tumours", 4)):
        assert summary["joint"][name]["num_cases"] == num_cases, name
    assert summary["segmentation"]["tumour"]["num_cases"]["all"] == 4
    assert summary["segmentation"]["tumour"]["false_masks"]["num_cases"] == 2
    assert summary["classification"]["num_cases"] == 7


@pytest.mark.slow
def test_class_by_region(tmp_path):
    predictions, truth = write_predictions(tmp_path / "predictions"), write_truth(tmp_path / "data")
    for file in (predictions / "classes").glob("*.json"):
        result = json.loads(file.read_text(encoding="utf-8"))
        always_glioma = dict(zip(CLASSES, (0.1, 0.8, 0.1), strict=True))
        file.write_text(json.dumps({**result, "by_region": {"tumour": always_glioma}}))
    summary = summarise_table(case_table(predictions_in_folder(predictions, truth)), RESAMPLES)
    assert summary["class_by_region"]["tumour"]["accuracy"] == pytest.approx(2 / 6)
    assert any("region" in table.title for table in tables_of(summary))


@pytest.mark.slow
def test_files(table, summary, folders, tmp_path):
    write_evaluation(table, summary, tmp_path)
    ours = load_summary_json(str(tmp_path / "summary.json"))
    reader_writer = table.predictions.reader_writer
    stock = compute_metrics_on_folder(
        str(folders[1]), str(folders[0]), None, reader_writer, ".nii.gz", [1], num_processes=1
    )
    for name, value in stock["foreground_mean"].items():
        assert ours["foreground_mean"][name] == pytest.approx(value), name
    assert ours["braintum"]["num_cases"] == 6
    with open(tmp_path / "cases.csv", newline="", encoding="utf-8") as stream:
        rows = {row["case"]: row for row in csv.DictReader(stream)}
    assert float(rows["b2"]["tumour: Dice"]) == pytest.approx(DICE["b2"])
    assert rows["h2"]["tumour: Dice"] == "" and rows["h2"]["patient"] == "d"
    text = (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert f"{summary['dice']['value']:.3f}" in text and "6 cases of 4 patients" in text
    assert (tmp_path / "tables.tex").read_text(encoding="utf-8").count("\\begin{tabular}") == text.count("\n## ") + 1


def test_macros_are_unique_and_letters_only(summary):
    names = re.findall(r"\\newcommand\{\\(.+?)\}\{", latex_macros(summary))
    assert len(names) == len(set(names)) > 30
    assert all(name.isalpha() for name in names)
    assert re.search(r"\\BraintumClassificationAccuracy\}\{0\.833\}", latex_macros(summary))


def test_undefined_is_a_dash():
    assert number(None) == "–" and number(0.5) == "0.500"
    assert interval({"low": None, "high": None}) == "–"


def test_two_lists_of_classes_that_differ(folders, tmp_path):
    predictions = write_predictions(tmp_path / "predictions")
    other = dataset_json()
    other["classification"]["class_names"] = ["pituitary", "glioma", "no_tumor"]
    (predictions / "dataset.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match=r"a1\.json: a1 has no probabilities of the classes pituitary"):
        predictions_in_folder(predictions, folders[1])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p, g: (p / "b1.nii.gz").unlink(), r"no prediction of b1.*--partial"),
        (lambda p, g: (g / "b1.nii.gz").unlink(), "b1 have no true segmentation"),
        (lambda p, g: (p / "classes" / "b1.json").unlink(), "b1 have a mask but no class"),
        (lambda p, g: (p / "classes" / "b1.json").write_text("{"), r"b1\.json is damaged"),
        (lambda p, g: (p / "classes" / "b1.json").write_text("[]"), r"b1\.json holds no JSON object"),
        (lambda p, g: (p / "dataset.json").write_text("nonsense"), r"dataset\.json is damaged"),
        (lambda p, g: write_mask(p / "b1.nii.gz", np.zeros((3, 3), np.uint8)), r"b1\.nii\.gz has shape"),
        (lambda p, g: write_mask(p / "b1.nii.gz", square(0, 0, 2, 7)), r"b1\.nii\.gz.*7"),
        (lambda p, g: write_cases(g.parent / "cases.csv", [Case("a1", "glioma")]), r"cases\.csv has no row for a2"),
    ],
)
def test_bad_input_is_named(damage, message, tmp_path):
    predictions, truth = write_predictions(tmp_path / "predictions"), write_truth(tmp_path / "data")
    damage(predictions, truth)
    with pytest.raises(ValueError, match=message):
        case_table(predictions_in_folder(predictions, truth))


@pytest.mark.slow
def test_partial_predictions_are_counted(tmp_path):
    predictions, truth = write_predictions(tmp_path / "predictions"), write_truth(tmp_path / "data")
    (predictions / "b1.nii.gz").unlink()
    table = case_table(predictions_in_folder(predictions, truth, partial=True))
    assert len(table.cases) == 5 and table.predictions.missing == ("b1",)
    assert "1 not predicted" in tables_of(summarise_table(table, RESAMPLES))[0].title


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        predictions_in_folder(tmp_path / "nowhere", write_truth(tmp_path / "data"))
