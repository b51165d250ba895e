"""``braintum_evaluate`` and ``braintum_postprocess`` on folders, on the folds of a model, and on several models."""

import json
import re

import numpy as np
import pytest
from evaluation_data import CASES, DICE, class_result, dataset_json, square, write_mask, write_predictions, write_truth
from nnunetv2.evaluation.evaluate_predictions import load_summary_json
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from braintum.commands.command import run_command
from braintum.conversion.format.cases import Case, write_cases
from braintum.evaluation.cli import evaluate
from braintum.evaluation.results.case_table import case_table
from braintum.evaluation.results.comparison import compare, comparison_tables, headline
from braintum.evaluation.results.ensembles import can_be_ensembled, ensemble
from braintum.evaluation.results.predictions import predictions_in_folder, predictions_of_folds, validated_folds
from braintum.evaluation.results.summary import summarise_table
from braintum.inference.postprocess_cli import postprocess
from braintum.inference.postprocessing import postprocess_folder, read_rules

MODEL = "nnUNetTrainerMultiTask__BrainTumPlans__2d"
FOLDS = (("a1", "a2", "h1"), ("b1", "b2", "h2"))


def command(function, *arguments):
    return run_command(function, [str(argument) for argument in arguments], needs_nnunet=False)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """nnU-Net's folders after the training of two folds."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    preprocessed = tmp_path / "nnUNet_preprocessed" / "Dataset042_Tiny"
    truth = write_truth(tmp_path / "truth")
    preprocessed.mkdir(parents=True)
    truth.rename(preprocessed / "gt_segmentations")
    write_cases(preprocessed / "cases.csv", [Case(name, row[0], patient=row[1]) for name, row in CASES.items()])
    write_model(tmp_path / "nnUNet_results" / "Dataset042_Tiny" / MODEL)
    return tmp_path


def write_model(folder, masks=None):
    for number, cases in enumerate(FOLDS):
        validation = folder / f"fold_{number}" / "validation"
        validation.mkdir(parents=True)
        for case in cases:
            write_mask(validation / f"{case}.nii.gz", (masks or {}).get(case, CASES[case][3]))
        results = {case: class_result(case, CASES[case][4]) for case in cases}
        (validation / "classification.json").write_text(json.dumps({"cases": results}))
        (validation / "summary.json").write_text("{}")
    (folder / "dataset.json").write_text(json.dumps(dataset_json()))
    plans = {"dataset_name": "Dataset042_Tiny", "plans_name": "BrainTumPlans", "image_reader_writer": "SimpleITKIO"}
    (folder / "plans.json").write_text(json.dumps(plans))


@pytest.mark.slow
def test_folder_of_predictions(tmp_path, capsys):
    predictions, truth = write_predictions(tmp_path / "predictions"), write_truth(tmp_path / "data")
    assert command(evaluate, "-p", predictions, "-g", truth, "-np", 1, "--resamples", 100) == 0
    assert "Dice, tumour" in capsys.readouterr().out
    summary = json.loads((predictions / "summary.json").read_text(encoding="utf-8"))
    assert summary["braintum"]["dice"]["value"] == pytest.approx(np.mean(list(DICE.values())))


@pytest.mark.slow
def test_folds_are_merged(trained):
    model = trained / "nnUNet_results" / "Dataset042_Tiny" / MODEL
    arguments = ("-d", 42, "-p", "BrainTumPlans", "-c", "2d", "-np", 1, "--resamples", 100)
    assert command(evaluate, *arguments) == 0
    output = model / "crossval_results_folds_0_1"
    summary = load_summary_json(str(output / "summary.json"))["braintum"]
    folds = summary["folds"]
    assert folds["per_fold"]["0"]["Dice"] == pytest.approx(0.75)
    assert folds["per_fold"]["1"]["accuracy"] == pytest.approx(2 / 3)
    dice = [0.75, DICE["b2"] / 2]
    assert folds["mean"]["Dice"]["value"] == pytest.approx(np.mean(dice))
    assert folds["mean"]["Dice"]["sd"] == pytest.approx(np.std(dice, ddof=1))
    assert summary["num_cases"] == 6
    assert command(evaluate, *arguments, "-f", 1, "-o", trained / "one") == 0
    assert json.loads((trained / "one" / "summary.json").read_text())["braintum"]["num_cases"] == 3


def test_case_in_two_folds(trained):
    model = trained / "nnUNet_results" / "Dataset042_Tiny" / MODEL
    write_mask(model / "fold_1" / "validation" / "a1.nii.gz", CASES["a1"][3])
    with pytest.raises(ValueError, match="a1 are in fold 0 already"):
        predictions_of_folds(model)


def test_fold_without_classes(trained):
    model = trained / "nnUNet_results" / "Dataset042_Tiny" / MODEL
    (model / "fold_1" / "validation" / "classification.json").unlink()
    with pytest.raises(ValueError, match="fold_1/validation/classification.json is missing, but other folds have"):
        predictions_of_folds(model)


@pytest.mark.slow
def test_case_without_a_class(trained, capsys):
    file = trained / "nnUNet_results" / "Dataset042_Tiny" / MODEL / "fold_0" / "validation" / "classification.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({"cases": {case: row for case, row in content["cases"].items() if case != "a2"}}))
    arguments = ("-d", 42, "-p", "BrainTumPlans", "-c", "2d", "-np", 1, "--resamples", 100, "-o", trained / "out")
    assert command(evaluate, *arguments) == 3
    assert f"not evaluated: a2: {file}: a2 has a mask but no class" in capsys.readouterr().err


@pytest.mark.slow
def test_first_truth_is_damaged(trained, capsys):
    (trained / "nnUNet_preprocessed" / "Dataset042_Tiny" / "gt_segmentations" / "a1.nii.gz").write_text("damaged")
    arguments = ("-d", 42, "-p", "BrainTumPlans", "-c", "2d", "-np", 1, "--resamples", 100, "-o", trained / "out")
    assert command(evaluate, *arguments) == 3
    assert "not evaluated: a1: " in capsys.readouterr().err
    assert json.loads((trained / "out" / "summary.json").read_text())["braintum"]["num_cases"] == 5


def test_unfinished_fold(trained, capsys, caplog):
    model = trained / "nnUNet_results" / "Dataset042_Tiny" / MODEL
    (model / "fold_1" / "validation" / "summary.json").unlink()
    assert validated_folds(model) == [0]
    assert re.search("fold 1 is left out: .*fold_1/validation/summary.json is missing", caplog.text)
    assert command(evaluate, "-d", 42, "-p", "BrainTumPlans", "-c", "2d", "-f", 2) == 1
    assert "finish the training of fold 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-p", "x"), "either -g"),
        (("-p", "x", "-g", "y", "-d", "42"), "either -g"),
        (("-p", "x", "-d", "42"), "which configuration"),
        (("-p", "x", "-d", "42", "-c", "2d"), "no trained model at"),
        (("-p", "x", "-g", "y", "--find_postprocessing"), "--find_postprocessing looks at the validation"),
        (("-p", "x", "-g", "y", "--resamples", "10"), "fewer than 100"),
        (("-p", "x", "-g", "y"), "x is no folder"),
    ],
)
def test_bad_arguments(arguments, message, trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    assert command(evaluate, *arguments) == 1
    assert message in capsys.readouterr().err


def test_models_that_are_there_are_listed(trained, capsys, monkeypatch):
    monkeypatch.chdir(trained)
    assert command(evaluate, "-p", "OtherPlans", "-d", "42", "-c", "2d") == 1
    assert (
        "OtherPlans__2d; there are: -tr nnUNetTrainerMultiTask -p BrainTumPlans -c 2d; check" in capsys.readouterr().err
    )


def test_fold_all_holds_nothing_out(trained, capsys):
    assert command(evaluate, "-p", "BrainTumPlans", "-d", "42", "-c", "2d", "-f", "all") == 2
    assert "fold_all is trained on every case, so none is held out" in capsys.readouterr().err


@pytest.mark.slow
def test_models_side_by_side(trained, capsys):
    results = trained / "nnUNet_results" / "Dataset042_Tiny"
    write_model(results / MODEL.replace("BrainTumPlans", "BetterPlans"), {name: row[2] for name, row in CASES.items()})
    output = trained / "compared"
    arguments = ("-d", 42, "-p", "BrainTumPlans", "BetterPlans", "MissingPlans", "-c", "2d", "-np", 1)
    assert command(evaluate, *arguments, "--resamples", 100) == 1
    assert "give -o" in capsys.readouterr().err
    assert command(evaluate, *arguments, "--resamples", 100, "--ensembles", "-o", output) == 0
    assert "voxel probabilities are missing" in capsys.readouterr().out
    comparison = json.loads((output / "comparison.json").read_text(encoding="utf-8"))
    better = MODEL.replace("BrainTumPlans", "BetterPlans")
    assert comparison["best"] == better
    assert comparison["models"][better]["Dice"] == 1
    pair = comparison["tests"]["Dice"][0]
    # patient a: 0.25 worse, patient b: 0.8 worse; c and d show no tumour
    assert pair["difference"]["value"] == pytest.approx(-(0.25 + (1 + 1 - DICE["b2"]) / 2) / 2)
    assert pair["p_value"] is None and pair["num_patients"] == 2
    assert comparison["tests"]["class right"][0]["difference"]["value"] == 0
    assert (output / MODEL / "summary.json").is_file() and (output / "comparison.tex").is_file()


@pytest.mark.slow
def test_best_by_criterion(tmp_path):
    truth = write_truth(tmp_path / "data")
    good_masks = {name: (*row[:3], row[2], (0.8, 0.1, 0.1)) for name, row in CASES.items()}
    good_classes = {
        name: (*row[:3], square(0, 0, 3), tuple(np.eye(3)[["meningioma", "glioma", "no_tumor"].index(row[0])]))
        for name, row in CASES.items()
    }
    tables = [
        case_table(predictions_in_folder(write_predictions(tmp_path / name, cases), truth))
        for name, cases in (("masks", good_masks), ("classes", good_classes))
    ]
    summaries = [summarise_table(table, 100) for table in tables]
    assert compare(tables, summaries, "Dice", 100)["best"] == "masks"
    assert compare(tables, summaries, "macro_f1", 100)["best"] == "classes"
    figures = headline(summaries[1])
    assert figures["joint"] == pytest.approx((figures["Dice"] + 1) / 2)
    comparison = compare(tables, summaries, "joint", 100)
    assert comparison["best"] == ("classes" if figures["joint"] > headline(summaries[0])["joint"] else "masks")
    assert "masks − classes" in comparison_tables(comparison, 6)[1].text("github")
    with pytest.raises(ValueError, match="two models have the same name"):
        compare([tables[0], tables[0]], [summaries[0]] * 2)
    with pytest.raises(ValueError, match="unknown criterion 'IoU'"):
        compare(tables, summaries, "IoU")
    fewer = {name: row for name, row in CASES.items() if name != "h2"}
    table = case_table(predictions_in_folder(write_predictions(tmp_path / "fewer", fewer), truth, partial=True))
    with pytest.raises(ValueError, match="different cases, such as h2"):
        compare([tables[0], table], [summaries[0], summarise_table(table, 100)])


def test_ensemble_averages_voxels_and_classes(tmp_path):
    truth = write_truth(tmp_path / "data")
    folders = [write_predictions(tmp_path / name) for name in ("one", "two")]
    members = [predictions_in_folder(folder, truth) for folder in folders]
    assert not can_be_ensembled(members)
    for folder, tumour in zip(folders, (0.9, 0.3), strict=True):
        for case in CASES:
            probability = np.where(CASES[case][2] > 0, tumour, 0.0)[None]
            np.savez(folder / f"{case}.npz", probabilities=np.stack([1 - probability, probability]).astype(np.float32))
            (folder / f"{case}.pkl").write_bytes(b"not unpickled")
    result = json.loads((folders[1] / "classes" / "b2.json").read_text(encoding="utf-8"))
    result["probabilities"] = dict(zip(result["probabilities"], (0.1, 0.8, 0.1), strict=True))
    (folders[1] / "classes" / "b2.json").write_text(json.dumps(result))
    members = [predictions_in_folder(folder, truth) for folder in folders]
    assert can_be_ensembled(members)
    table = case_table(ensemble(members, tmp_path / "ensemble", 1))
    assert table.dice[:4].tolist() == [1, 1, 1, 1]  # 0.6 on average
    assert table.probabilities is not None
    np.testing.assert_allclose(table.probabilities[3], (0.3, 0.6, 0.1))
    assert table.predicted_class[3] == 1  # one model alone says meningioma

    (folders[1] / "b1.npz").write_bytes((folders[1] / "b1.npz").read_bytes()[:100])
    found = ensemble(members, tmp_path / "without_b1", 1)
    assert list(found.masks) == list(found.references) == [case for case in CASES if case != "b1"]
    assert "two/b1.npz: cannot be averaged" in found.failed["b1"]
    assert not (tmp_path / "without_b1" / "b1.nii.gz").exists()
    failing = predictions_in_folder(folders[0], truth).without({"a1": "a1 is damaged"})
    found = ensemble([members[1], failing], tmp_path / "without_a1", 1)
    assert found.failed.keys() == {"a1", "b1"} and list(found.masks) == ["a2", "b2", "h1", "h2"]


@pytest.mark.slow
def test_masks_and_classes_made_consistent(tmp_path):
    predictions, truth = write_predictions(tmp_path / "predictions"), write_truth(tmp_path / "data")
    raw = {file.name: file.read_bytes() for file in predictions.glob("*.nii.gz")}
    assert command(postprocess, "-i", predictions, "-o", tmp_path / "out", "--consistent", "-np", 1) == 0
    assert {file.name: file.read_bytes() for file in predictions.glob("*.nii.gz")} == raw
    result = {case: json.loads((tmp_path / "out" / "classes" / f"{case}.json").read_text()) for case in CASES}
    assert (result["b1"]["predicted_class"], result["b1"]["raw_predicted_class"]) == ("", "glioma")
    assert "raw_predicted_class" not in result["a1"] and result["a1"]["tumour_volume"] == 16
    assert result["h1"]["tumour_volume"] == 0
    summary = summarise_table(case_table(predictions_in_folder(tmp_path / "out", truth)), 100)
    assert summary["joint"]["contradictions"]["count"] == 0
    assert summary["segmentation"]["tumour"]["false_masks"]["count"] == 0
    assert summary["classification"]["num_withheld"] == 1
    assert (tmp_path / "out" / "classes.csv").read_text(encoding="utf-8").count("\n") == 7


def test_largest_component(tmp_path):
    two = np.maximum(square(2, 2, 4), square(12, 12, 2))
    predictions = write_predictions(tmp_path / "predictions", {"a1": (*CASES["a1"][:3], two, CASES["a1"][4])})
    rules = tmp_path / "postprocessing.json"
    name = "remove_all_but_largest_component_from_segmentation"
    rules.write_text(
        json.dumps({"postprocessing_fns": [name], "postprocessing_kwargs": [{"labels_or_regions": [[1, 2], 3]}]})
    )
    assert read_rules(rules) == [(name, {"labels_or_regions": [(1, 2), 3]})]
    counts, _ = postprocess_folder(predictions, tmp_path / "out", read_rules(rules))
    assert counts == {"cases": 1, "masks_changed": 1, "masks_removed": 0, "classes_withheld": 0}
    after, _ = SimpleITKIO().read_seg(str(tmp_path / "out" / "a1.nii.gz"))
    np.testing.assert_array_equal(after[0, 0], square(2, 2, 4))


def test_postprocessing_refuses(tmp_path, capsys):
    predictions = write_predictions(tmp_path / "predictions")
    rules = tmp_path / "rules.json"
    rules.write_text(
        json.dumps({"postprocessing_fns": ["os.system"], "postprocessing_kwargs": [{"labels_or_regions": 1}]})
    )
    for arguments, message in (
        (("-o", predictions, "--consistent"), "are the same folder"),
        (("-o", tmp_path / "out"), "nothing to do"),
        (("-o", tmp_path / "out", "-rules", rules), "os.system is not a post-processing"),
        (("-o", tmp_path / "out", "-rules", tmp_path / "none.json"), "does not exist"),
    ):
        assert command(postprocess, "-i", predictions, *arguments) == 1
        assert message in capsys.readouterr().err
    rules.write_text("[]")
    with pytest.raises(ValueError, match="rules.json holds no JSON object"):
        read_rules(rules)
    bare = write_predictions(tmp_path / "bare", with_classes=False)
    with pytest.raises(ValueError, match="holds no classes"):
        postprocess_folder(bare, tmp_path / "out", consistent=True)


@pytest.mark.slow
def test_postprocessing_is_found_on_the_merged_folds(trained, capsys):
    model = trained / "nnUNet_results" / "Dataset042_Tiny" / MODEL
    for fold, case in ((0, "a1"), (1, "b2")):  # the right mask, and a speck elsewhere
        mask = np.maximum(CASES[case][2], square(16, 16, 2))
        write_mask(model / f"fold_{fold}" / "validation" / f"{case}.nii.gz", mask)
    arguments = ("-d", 42, "-p", "BrainTumPlans", "-c", "2d", "-np", 1, "--resamples", 100, "--find_postprocessing")
    assert command(evaluate, *arguments) == 0
    assert "post-processing that helps" in capsys.readouterr().out
    output = model / "crossval_results_folds_0_1"
    assert read_rules(output / "postprocessing.json") == [
        ("remove_all_but_largest_component_from_segmentation", {"labels_or_regions": [1]})
    ]
    counts, _ = postprocess_folder(output, trained / "after", read_rules(output / "postprocessing.json"))
    assert counts["masks_changed"] == 2
