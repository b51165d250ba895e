"""``braintum_predict --calibrated``, and the uncertainty of a case."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from calibration_data import NAMES, calibrated, case_result, make_calibration
from tiny_training import write_preprocessed

from braintum.architectures.weights_fingerprint import weights_fingerprint
from braintum.commands.command import run_command
from braintum.conversion.format.calibration import UNCERTAIN
from braintum.conversion.format.cases import ClassSchema
from braintum.conversion.format.familiarity import Familiarity
from braintum.conversion.format.trust import MaskTrust, QualityModel, Trust
from braintum.evaluation.calibration.calibration import store_calibration
from braintum.inference.cli import predict
from braintum.inference.prediction.class_evidence import FoldEvidence, aggregate
from braintum.inference.results.calibration import is_calibrated_with, result_of
from braintum.inference.results.results import merge_case_results, write_classes_csv


def entropy(probabilities):
    return -sum(value * np.log(value) for value in probabilities)


def test_calibrated_results(tmp_path):
    raw = {"a": (0.9, 0.09, 0.01), "b": (0.3, 0.6, 0.1), "c": (0.05, 0.05, 0.9)}
    results = {name: calibrated(name, values) for name, values in raw.items()}
    for name, values in raw.items():
        roots = np.sqrt(values)
        assert list(results[name]["probabilities"].values()) == pytest.approx(roots / roots.sum())
        assert results[name]["confidence"] == pytest.approx((roots / roots.sum()).max())
        assert list(results[name]["calibration"]["raw_probabilities"].values()) == pytest.approx(values)
    assert [result["calibration"]["verdict"] for result in results.values()] == ["meningioma", UNCERTAIN, "no_tumor"]
    assert results["b"]["predicted_class"] == "glioma"
    never = calibrated("b", raw["b"], threshold=None)
    assert never["calibration"]["verdict"] == "glioma"

    results["c"]["predicted_class"] = ""  # withheld by post-processing
    results["d"] = case_result("d", (0.2, 0.3, 0.5), mirrored=False)  # of an earlier run
    (tmp_path / "classes").mkdir()
    for name, result in results.items():
        (tmp_path / "classes" / f"{name}.json").write_text(json.dumps(result))
    assert merge_case_results(tmp_path / "classes", tmp_path / "classes.csv", ClassSchema(NAMES)) == 4
    with open(tmp_path / "classes.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["verdict"] for row in rows] == ["meningioma", UNCERTAIN, "", ""]
    assert [row["predicted_class"] for row in rows] == ["meningioma", "glioma", "", "no_tumor"]
    assert float(rows[1]["confidence"]) == pytest.approx(np.sqrt(0.6) / np.sqrt((0.3, 0.6, 0.1)).sum(), abs=1e-6)
    assert [row["mutual_information"] for row in rows] == [""] * 4
    for row in rows[:3]:  # what stands in one row belongs together
        assert float(row["predictive_entropy"]) == pytest.approx(
            entropy(float(row[f"probability_{name}"]) for name in NAMES), abs=1e-5
        )
    assert list(rows[0])[-2:] == ["predictive_entropy", "mutual_information"]


def test_uncalibrated_tables_have_no_verdict(tmp_path):
    result = case_result("a", (0.9, 0.09, 0.01))
    del result["predictive_entropy"]  # an earlier version wrote none
    write_classes_csv(tmp_path / "classes.csv", [result], ClassSchema(NAMES))
    with open(tmp_path / "classes.csv", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert "verdict" not in row and row["predictive_entropy"] == "" and row["mutual_information"] == "0.250000"


def test_earlier_results_are_told_apart(tmp_path):
    raw, calibrated_file, damaged = (tmp_path / f"{name}.json" for name in ("raw", "calibrated", "damaged"))
    result = case_result("a", (0.9, 0.09, 0.01))
    raw.write_text(json.dumps(result))
    calibrated_file.write_text(json.dumps(calibrated("a", (0.9, 0.09, 0.01))))
    damaged.write_text("{")
    assert not is_calibrated_with(damaged, None)
    assert is_calibrated_with(raw, None) and is_calibrated_with(calibrated_file, make_calibration())
    assert not is_calibrated_with(raw, make_calibration()) and not is_calibrated_with(calibrated_file, None)
    assert not is_calibrated_with(calibrated_file, make_calibration(temperature=1.5))
    assert not is_calibrated_with(calibrated_file, make_calibration(threshold=None))


def test_all_that_follows_from_calibrated_probabilities():
    """Temperature 2 takes square roots of probabilities."""

    def scaled(probabilities):
        return np.sqrt(probabilities) / np.sqrt(probabilities).sum(-1, keepdims=True)

    passes = np.array([[(0.7, 0.3), (0.5, 0.5)], [(0.2, 0.8), (0.4, 0.6)]])  # folds, mirrors
    region = np.array([[[(0.9, 0.1)] * 2]], np.float32)
    folds = [FoldEvidence(p[None].astype(np.float32), np.ones((1, 2), np.float32), {"core": region[0]}) for p in passes]
    verdict = aggregate(folds)
    result = result_of("a", verdict, ClassSchema(NAMES[:2]), (3.0, "mm2"), make_calibration())
    per_fold = scaled(passes.mean(1))
    expected = scaled(passes.mean((0, 1)))
    assert list(result["probabilities"].values()) == pytest.approx(expected)
    assert [list(fold.values()) for fold in result["per_fold"]] == [pytest.approx(fold) for fold in per_fold]
    assert list(result["fold_spread"].values()) == pytest.approx(per_fold.std(0, ddof=1))
    assert list(result["mirror_spread"].values()) == pytest.approx(scaled(passes).mean(0).std(0, ddof=1))
    assert result["predictive_entropy"] == pytest.approx(entropy(expected))
    every_pass = scaled(passes).reshape(4, 2)
    information = entropy(every_pass.mean(0)) - np.mean([entropy(one) for one in every_pass])
    assert result["mutual_information"] == pytest.approx(information, rel=1e-5)
    assert list(result["by_region"]["core"].values()) == pytest.approx(scaled(np.array((0.9, 0.1))))
    assert result_of("a", verdict, ClassSchema(NAMES[:2]), (3.0, "mm2"))["predictive_entropy"] == pytest.approx(
        entropy(passes.mean((0, 1)))
    )


@pytest.mark.slow
def test_calibrated_prediction(nnunet_folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    data = write_preprocessed(nnunet_folders.preprocessed, "2d")
    data.plans["foreground_intensity_properties_per_channel"]["0"] = {}  # z-scoring needs none of them
    trainer = data.trainer("nnUNetTrainerMultiTask")
    trainer.on_train_start()
    torch.nn.init.normal_(trainer.network.classification_head.seg_layers["classify"][-1].weight, std=3)
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    trained, images = Path(trainer.output_folder_base), tmp_path / "images"
    images.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).normal(0, 1, (32, 32)).astype(np.float32)
        image = SimpleITK.GetImageFromArray(pixels)
        SimpleITK.WriteImage(image, str(images / f"c{number}_0000.nii.gz"))

    def run(target, *options):
        given = ("-i", images, "-o", tmp_path / target, "-m", trained, "-device", "cpu", "--disable_progress_bar")
        return run_command(predict, [str(argument) for argument in (*given, *options)], needs_nnunet=False)

    def results(target):
        files = sorted((tmp_path / target / "classes").glob("*.json"))
        return [json.loads(file.read_text(encoding="utf-8")) for file in files]

    assert run("calibrated", "--calibrated") == 1
    assert "is not calibrated; fit it with braintum_calibrate" in capsys.readouterr().err
    assert run("raw") == 0 and len(results("raw")) == 3
    threshold = min(result["confidence"] for result in results("raw"))
    fingerprints = {"0": weights_fingerprint(trainer.network.state_dict())}
    store_calibration(trained, make_calibration(folds=(0,), fingerprints=fingerprints, threshold=threshold))
    capsys.readouterr()
    assert run("calibrated", "--calibrated") == 0
    assert "warning" not in capsys.readouterr().err
    found = results("calibrated")
    for raw, after in zip(results("raw"), found, strict=True):
        roots = np.sqrt(list(raw["probabilities"].values()))
        assert list(after["probabilities"].values()) == pytest.approx(roots / roots.sum(), abs=1e-6)
        assert after["calibration"]["raw_probabilities"] == pytest.approx(raw["probabilities"], abs=1e-6)
        assert after["predicted_class"] == raw["predicted_class"]
        assert after["predictive_entropy"] == pytest.approx(entropy(after["probabilities"].values()), abs=1e-5)
        assert after["mutual_information"] >= 0
    with open(tmp_path / "calibrated" / "classes.csv", newline="") as stream:
        verdicts = [row["verdict"] for row in csv.DictReader(stream)]
    assert verdicts == [result["calibration"]["verdict"] for result in found] and UNCERTAIN in verdicts

    # a folder of raw results is not complete for who wants calibrated ones; the weights are others by now
    torch.nn.init.zeros_(trainer.network.classification_head.seg_layers["classify"][-1].weight)
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    assert run("raw", "--continue_prediction") == 0
    assert "0 cases predicted, 3 were there already" in capsys.readouterr().out
    assert run("raw", "--continue_prediction", "--calibrated") == 0
    told = capsys.readouterr()
    assert "warning: the weights in checkpoint_final.pth of fold 0 are not those" in told.err
    assert "3 cases predicted" in told.out and all("calibration" in result for result in results("raw"))


@pytest.mark.slow
def test_what_is_promised_of_a_case(nnunet_folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    data = write_preprocessed(nnunet_folders.preprocessed, "2d")
    data.plans["foreground_intensity_properties_per_channel"]["0"] = {}
    trainer = data.trainer("nnUNetTrainerMultiTask")
    trainer.on_train_start()
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    trained, images = Path(trainer.output_folder_base), tmp_path / "images"
    images.mkdir()
    pixels = np.random.default_rng(0).normal(0, 1, (32, 32)).astype(np.float32)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(pixels), str(images / "c0_0000.nii.gz"))

    def run(target, *options):
        given = ("-i", images, "-o", tmp_path / target, "-m", trained, "-device", "cpu", "--disable_progress_bar")
        assert run_command(predict, [str(argument) for argument in (*given, *options)], needs_nnunet=False) == 0
        return json.loads((tmp_path / target / "classes" / "c0.json").read_text())

    def mask(*path):
        return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path.joinpath(*path, "c0.nii.gz"))))

    features = ("soft_dice", "agreement")
    quality = QualityModel(features, (0.5, 0.5), (0.5, 0.5), ((0.0,), (0.0,), (0.0,)), (0.0, 0.625))
    masks = MaskTrust(quality, 0.5, 0.5, 0.7, 0.95, 0.7, 1.0, 1.0, 0.1, 0.2, 0.8, 2.0, 2.0)
    far = Familiarity(np.full(trainer.network.encoder.output_channels[-1], 1e4), np.zeros((1, 1)), 1.0, 1.0)
    far = replace(far, directions=np.ones((1, len(far.mean))))
    trust = Trust(0.9, "cases", 40, 40, 0.0, dict.fromkeys(NAMES, 0.0), masks)
    fingerprints = {"0": weights_fingerprint(trainer.network.state_dict())}
    calibration = make_calibration(folds=(0,), fingerprints=fingerprints, trust=trust)
    store_calibration(trained, calibration)
    raw = run("raw", "--save_probabilities")
    assert "trust" not in raw
    result = run("trusted", "--calibrated", "--bounds", "--save_probabilities")
    found = result["trust"]
    assert found["expected_dice"] == 0.625 and found["dice_interval"] == pytest.approx([0.4125, 0.8375])
    assert found["review"] is True and found["reasons"] == ["expected Dice 0.62 below 0.70"]
    assert sorted(found["class_set"]) == sorted(NAMES) and found["unfamiliar"] is None
    with open(tmp_path / "trusted" / "classes.csv", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["review"], row["expected_dice"], row["class_set"]) == ("yes", "0.625", "|".join(found["class_set"]))
    assert row["volume_interval"] == " to ".join(f"{bound:.1f}" for bound in found["volume_interval"])

    before, after = (np.load(tmp_path / name / "c0.npz")["probabilities"] for name in ("raw", "trusted"))
    assert after == pytest.approx(np.sqrt(before) / np.sqrt(before).sum(0), abs=1e-4)
    assert (mask("raw") == mask("trusted")).all()
    for name, threshold in (("outer", 0.2), ("inner", 0.8)):
        assert (mask("trusted", name) == (1 - before[0, 0] >= threshold)).all()

    store_calibration(trained, replace(calibration, trust=replace(trust, masks=None, familiarity={"0": far})))
    result = run("unfamiliar", "--calibrated")
    assert result["trust"]["unfamiliar"] > 1 and "expected_dice" not in result["trust"]
    assert "unlike the images of the data set" in result["trust"]["reasons"][0]
    capsys.readouterr()
    arguments = ["-i", images, "-o", tmp_path / "none", "-m", trained, "-device", "cpu", "--calibrated", "--bounds"]
    assert run_command(predict, [str(argument) for argument in arguments], needs_nnunet=False) == 1
    assert "validate the folds with --npz" in capsys.readouterr().err


def test_entropy_and_disagreement_of_folds_and_mirrors():
    passes = [[(0.7, 0.3), (0.5, 0.5)], [(0.2, 0.8), (0.4, 0.6)]]  # folds, mirrors
    weights = [[0.9, 0.6], [0.3, 0.2]]
    folds = [
        FoldEvidence(np.array([fold], np.float32), np.array([weight], np.float32))
        for fold, weight in zip(passes, weights, strict=True)
    ]
    share = np.array(weights) / np.sum(weights)
    mean = np.einsum("fm,fmc->c", share, np.array(passes))
    expected = sum(share[f, m] * entropy(passes[f][m]) for f in range(2) for m in range(2))
    verdict = aggregate(folds)
    assert verdict.predictive_entropy == pytest.approx(entropy(mean), rel=1e-6)
    assert verdict.predictive_entropy == pytest.approx(entropy(verdict.probabilities), rel=1e-6)
    assert verdict.mutual_information == pytest.approx(entropy(mean) - expected, rel=1e-5)
    for mode in ("mean", "max"):  # one window: all passes count alike
        verdict = aggregate(folds, mode)
        mean = np.mean(passes, axis=(0, 1))
        expected = np.mean([entropy(one) for fold in passes for one in fold])
        assert verdict.mutual_information == pytest.approx(entropy(mean) - expected, rel=1e-5)


def test_passes_that_agree_and_a_single_pass():
    same = FoldEvidence(np.array([[[0.9, 0.1], [0.9, 0.1]]], np.float32), np.ones((1, 2), np.float32))
    assert aggregate([same, same]).mutual_information == pytest.approx(0, abs=1e-12)
    single = FoldEvidence(np.array([[[1.0, 0.0]]], np.float32), np.ones((1, 1), np.float32))
    verdict = aggregate([single])
    assert np.isnan(verdict.mutual_information) and verdict.predictive_entropy == 0
