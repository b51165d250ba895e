"""``braintum_calibrate``, and the calibration that a model folder keeps."""

import csv
import json
import re
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from calibration_data import NAMES, case_result, held_out, make_calibration
from evaluation_data import square, write_mask
from nnunetv2.model_sharing.model_export import export_pretrained_model
from tiny_training import write_preprocessed

from braintum.architectures.weights_fingerprint import weights_fingerprint
from braintum.commands.command import run_command
from braintum.conversion.format.calibration import Calibration
from braintum.conversion.format.cases import Case, write_cases
from braintum.conversion.format.trust import Trust
from braintum.evaluation.calibrate_cli import calibrate_model
from braintum.evaluation.calibration.calibration import calibrate, held_out_cases, store_calibration
from braintum.evaluation.calibration.held_out_masks import THRESHOLDS, held_out_masks
from braintum.evaluation.results.predictions import predictions_of_folds
from braintum.evaluation.results.tables import number
from braintum.inference.results.calibration import calibration_of

DATASET, MODEL = "Dataset042_Tiny", "nnUNetTrainerMultiTask__BrainTumPlans__2d"


# ---------------------------------------------------------------------- the command, and what the model keeps


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A model folder after the training of two folds: class results of 120 cases of 60 patients, tiny weights."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    cases = held_out(cases=120, folds=2)
    truth = tmp_path / "nnUNet_preprocessed" / DATASET / "gt_segmentations"
    truth.mkdir(parents=True)
    rows = [Case(name, NAMES[label], patient=patient) for name, label, patient in _rows(cases)]
    rows[0] = replace(rows[0], tumour_class="")  # unknown: left out
    write_cases(truth.parent / "cases.csv", rows)
    folder = tmp_path / "nnUNet_results" / DATASET / MODEL
    for fold in (0, 1):
        validation = folder / f"fold_{fold}" / "validation"
        validation.mkdir(parents=True)
        results = {}
        for name, probabilities, own_fold in zip(cases.names, cases.probabilities, cases.folds, strict=True):
            if own_fold == fold:
                results[name] = case_result(name, probabilities)
                write_masks(validation, truth, name)
        (validation / "classification.json").write_text(json.dumps({"cases": results}))
        (validation / "summary.json").write_text("{}")
        (folder / f"fold_{fold}" / "progress.png").touch()
        torch.save({"network_weights": weights_of(fold)}, folder / f"fold_{fold}" / "checkpoint_final.pth")
    content = {
        "channel_names": {"0": "T1ce"},
        "file_ending": ".nii.gz",
        "labels": {"background": 0, "tumour": 1},
        "name": "Tiny",
    }
    classes = {"class_names": list(NAMES), "negative_class": "no_tumor"}
    (folder / "dataset.json").write_text(json.dumps({**content, "classification": classes}))
    (folder / "dataset_fingerprint.json").write_text("{}")
    (folder / "plans.json").write_text(json.dumps({"dataset_name": DATASET}))
    return folder


def write_masks(validation, truth, name):
    """A square that is predicted nearly as it is, with voxel probabilities."""
    edge = 4 + int(name.removeprefix("case_")) % 9
    true, predicted = square(2, 2, edge), square(2, 2 + edge % 3, edge)
    write_mask(truth / f"{name}.nii.gz", true)
    write_mask(validation / f"{name}.nii.gz", predicted)
    inside = np.where(predicted, 0.95 - 0.15 * (edge % 3), np.where(true, 0.3, 0.02)).astype(np.float32)[None]
    np.savez_compressed(validation / f"{name}.npz", probabilities=np.stack([1 - inside, inside]))


def _rows(cases):
    return zip(cases.names, cases.labels, cases.clusters, strict=True)


def weights_of(seed):
    return {"layer.weight": torch.randn(3, 2, generator=torch.Generator().manual_seed(seed))}


def command(*arguments):
    return run_command(calibrate_model, [str(argument) for argument in arguments], needs_nnunet=False)


@pytest.mark.slow
def test_command(model, capsys):
    before = json.loads((model / "dataset.json").read_text())
    assert command("-m", model, "--target-accuracy", 0.7, "--resamples", 100) == 0
    out = capsys.readouterr().out
    content = json.loads((model / "dataset.json").read_text())
    stored, trust = content.pop("calibration"), Trust.from_dataset_json(content)
    del content["trust"]
    assert content == before
    written = json.loads((model / "calibration" / "calibration.json").read_text())
    cases = held_out_cases(predictions_of_folds(model))
    assert cases.num_without_class == 1 and "case_000" not in cases.names
    expected = calibrate(cases, NAMES, 0.7, 100)
    assert {key: written[key] for key in expected} == expected
    assert f"temperature {expected['temperature']:.3f} [" in out and "119 held-out cases of 60 patients" in out
    assert (stored["temperature"], stored["threshold"]) == (expected["temperature"], expected["threshold"])
    assert (stored["num_cases"], stored["num_patients"]) == (119, 60)
    assert stored["folds"] == [0, 1] and stored["aggregation"] == "weighted" and stored["mirroring"] is True
    assert stored["fingerprints"] == {str(fold): weights_fingerprint(weights_of(fold)) for fold in (0, 1)}
    with open(model / "calibration" / "risk_coverage.csv", newline="") as stream:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(stream)]
    assert rows == expected["risk_coverage"]
    assert (model / "calibration" / "calibration.png").stat().st_size > 10000
    assert Calibration.from_dataset_json({"calibration": stored}).to_json() == stored

    assert (trust.unit, trust.num_units, trust.num_cases, trust.coverage) == ("patients", 60, 119, 0.95)
    assert "agreement" not in trust.masks.quality.features and trust.familiarity == {}
    kept = json.loads((model / "calibration" / "trust.json").read_text())
    masks = held_out_masks(predictions_of_folds(model), show_progress=False)
    true = {case: 4 + int(case.removeprefix("case_")) % 9 for case in masks.names}
    shifts = np.array([edge % 3 for edge in true.values()])
    edges = np.array(list(true.values()))
    assert masks.dice == pytest.approx((edges - shifts) / edges)
    assert masks.true_size == pytest.approx(edges**2)  # mm2: voxels of 0.5 by 2 mm
    at = int(np.argmin(abs(THRESHOLDS - 0.5)))
    assert masks.missed[:, at] == pytest.approx(shifts / edges) and masks.wrong[:, at] == pytest.approx(shifts / edges)
    assert masks.missed[:, 0] == pytest.approx(0)
    assert kept["masks"]["correlation"] > 0.5 and kept["masks"]["num_cases"] == 120
    assert kept["masks"]["volume_interval"]["width"] is None  # 30 patients of the other fold are too few for 95 %
    assert f"correlation {number(kept['masks']['correlation'])}" in out

    for file in model.glob("fold_1/validation/*.npz"):
        file.unlink()
    np.save(model / "fold_1" / "validation" / "encoder_features.npy", np.random.default_rng(0).normal(size=(60, 5)))
    assert command("-m", model, "-f", 1, "--resamples", 100, "-o", model / "elsewhere") == 0
    assert "nothing is promised of masks: a fold was validated without voxel" in capsys.readouterr().err
    later = Trust.from_dataset_json(json.loads((model / "dataset.json").read_text()))
    assert later.masks is None and list(later.familiarity) == ["1"]
    stored = json.loads((model / "dataset.json").read_text())["calibration"]
    assert (stored["folds"], stored["threshold"], stored["target_accuracy"]) == ([1], None, None)
    assert (model / "elsewhere" / "calibration.json").is_file()


def test_export_of_the_model_keeps_it(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("-d", 42, "-c", "2d", "--resamples", 100) == 0
    exported = tmp_path / "model.zip"
    export_pretrained_model(
        DATASET, str(exported), ("2d",), "nnUNetTrainerMultiTask", plans_identifier="BrainTumPlans", folds=(0, 1)
    )
    with zipfile.ZipFile(exported) as archive:
        content = json.loads(archive.read(f"{DATASET}/{MODEL}/dataset.json"))
    stored = json.loads((model / "dataset.json").read_text())["calibration"]
    assert content["calibration"] == stored and stored["temperature"] > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which model"),
        (("-m", "absent"), "no trained model at absent"),
        (("-m", "MODEL", "--target-accuracy", "95"), "between 0 and 1, such as 0.95"),
        (("-m", "MODEL", "--resamples", "9"), "fewer than 100"),
        (("-m", "MODEL", "-chk", "checkpoint_best.pth"), "no checkpoint at .*checkpoint_best.pth.*-chk"),
        (("-m", "MODEL", "-f", "3"), "finish the training of fold 3"),
    ],
)
def test_bad_arguments_leave_the_model_as_it_is(arguments, message, model, capsys):
    before = (model / "dataset.json").read_bytes()
    assert command(*(str(model) if argument == "MODEL" else argument for argument in arguments)) == 1
    assert re.search(message, capsys.readouterr().err)
    assert (model / "dataset.json").read_bytes() == before and not (model / "calibration").exists()


def test_models_without_class_results(model, capsys):
    for file in model.glob("fold_*/validation/classification.json"):
        file.unlink()
    assert command("-m", model) == 1
    assert "predicts no classes" in capsys.readouterr().err
    content = json.loads((model / "dataset.json").read_text())
    del content["classification"]
    (model / "dataset.json").write_text(json.dumps(content))
    assert command("-m", model) == 1
    assert "dataset.json names no tumour classes" in capsys.readouterr().err


def test_fingerprint_is_of_the_weights():
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(1.5), "c": torch.zeros(2, dtype=torch.bfloat16)}
    found = weights_fingerprint(weights)
    assert weights_fingerprint(dict(reversed(weights.items()))) == found and len(found) == 64
    for changed in (
        {**weights, "b": torch.tensor(1.25)},
        {**weights, "a": weights["a"].reshape(3, 2)},
        {**weights, "a": weights["a"].double()},
        {"a": weights["a"], "d": weights["b"], "c": weights["c"]},
    ):
        assert weights_fingerprint(changed) != found


def test_later_trainings_keep_it(nnunet_folders, monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    data = write_preprocessed(nnunet_folders.preprocessed, "2d")
    trainer = data.trainer("nnUNetTrainerMultiTask")
    trainer.on_train_start()
    folder = Path(trainer.output_folder_base)
    assert "calibration" not in json.loads((folder / "dataset.json").read_text())
    store_calibration(folder, make_calibration())
    later = data.trainer("nnUNetTrainerMultiTask", fold="all")
    later.on_train_start()
    content = json.loads((folder / "dataset.json").read_text())
    assert Calibration.from_dataset_json(content) == make_calibration()
    assert content["classification"]["class_names"] == list(NAMES) and content["numTraining"] == 8
    assert "calibration" not in later.my_init_kwargs["dataset_json"]  # which goes into checkpoints
    (folder / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="dataset.json is damaged"):
        data.trainer("nnUNetTrainerMultiTask").on_train_start()


# ---------------------------------------------------------------------- prediction


def stub_predictor(model, seeds=(0, 1), mirroring=True, folds=None):
    """What a predictor holds after loading a model whose folds have the weights of these seeds."""
    return SimpleNamespace(
        model_folder=model,
        dataset_json=json.loads((model / "dataset.json").read_text()),
        folds=list(range(len(seeds))) if folds is None else folds,
        fingerprints=[weights_fingerprint(weights_of(seed)) for seed in seeds],
        use_mirroring=mirroring,
        allowed_mirroring_axes=(0, 1),
    )


def test_warnings_where_it_may_not_hold(model):
    final = "checkpoint_final.pth"
    assert command("-m", model, "--resamples", 100) == 0
    stored = Calibration.from_dataset_json(json.loads((model / "dataset.json").read_text()))
    assert calibration_of(stub_predictor(model), final, "weighted") == (stored, [])
    assert calibration_of(stub_predictor(model, (1, 0), folds=[1, 0]), final, "weighted") == (stored, [])
    for predictor, checkpoint, aggregation, expected in (
        (stub_predictor(model, (0,)), final, "weighted", "fitted on fold 0, 1, but fold 0 predicts"),
        (stub_predictor(model, (5,), folds=["all"]), final, "weighted", "but fold all predicts"),
        (stub_predictor(model, (0, 7)), "best.pth", "weighted", "weights in best.pth of fold 1 are not those"),
        (stub_predictor(model), final, "max", "-aggregation weighted, this prediction uses max"),
        (stub_predictor(model, mirroring=False), final, "weighted", "fitted with mirroring, this prediction"),
    ):
        _, (warning,) = calibration_of(predictor, checkpoint, aggregation)
        assert expected in warning


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (None, "is not calibrated; fit it with braintum_calibrate -m"),
        ({"temperature": 1}, "lacks folds, checkpoint"),
        ([], "lacks temperature"),
        (make_calibration(temperature=0).to_json(), "temperature has to be a positive number, not 0"),
        (make_calibration(threshold="high").to_json(), "threshold has to be a positive number, not 'high'"),
        ({**make_calibration().to_json(), "folds": 3}, "folds has to be a list, not 3"),
    ],
)
def test_models_without_a_valid_calibration(entry, message, model):
    predictor = stub_predictor(model)
    predictor.dataset_json["calibration"] = entry
    with pytest.raises(ValueError, match=message):
        calibration_of(predictor, "checkpoint_final.pth", "weighted")
