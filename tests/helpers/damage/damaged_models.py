"""Commands that read models and what they predicted: prediction, evaluation, calibration, postprocessing."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from damaged_command import ALL_SHARED, DamagedCommand, call
from evaluation_data import CASES, class_result, dataset_json, write_mask, write_predictions, write_truth
from natural_image_data import save, slice_image
from tiny_training import TinyDataset, _plans
from volume_data import volume_array
from volume_data import write_volume_file as write_volume

from braintum.conversion.format.cases import Case, write_cases
from braintum.evaluation import calibrate_cli
from braintum.evaluation import cli as evaluate_cli
from braintum.inference import cli as predict_cli
from braintum.inference import postprocess_cli

EVALUATED = "Dataset042_Tiny/nnUNetTrainerMultiTask__BrainTumPlans__2d"


def _write_model(folder: Path, ending: str, channels: int) -> None:
    plans = _plans("2d")
    plans["configurations"]["2d"]["normalization_schemes"] *= channels
    plans["configurations"]["2d"]["use_mask_for_norm"] *= channels
    plans["foreground_intensity_properties_per_channel"] = {str(channel): {} for channel in range(channels)}
    plans["image_reader_writer"] = "NaturalImage2DIO" if ending == ".png" else "SimpleITKIO"
    content = {
        **dataset_json(),
        "channel_names": {str(channel): f"channel {channel}" for channel in range(channels)},
        "file_ending": ending,
    }
    os.environ |= {name: str(folder) for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    preprocessed = folder / "Dataset007_Tiny" / "tiny_2d" / "case.b2nd"  # a trainer looks for the kind of data
    preprocessed.parent.mkdir(parents=True)
    preprocessed.touch()
    torch.manual_seed(0)
    trainer = TinyDataset(plans, content, "2d").trainer("nnUNetTrainerMultiTask")
    trainer.initialize()
    model = folder / "model"
    (model / "fold_0").mkdir(parents=True)
    trainer.save_checkpoint(str(model / "fold_0" / "checkpoint_final.pth"))
    (model / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
    (model / "dataset.json").write_text(json.dumps(content))
    shutil.rmtree(folder / "Dataset007_Tiny")


def _write_prediction(ending: str, channels: int, cases: int = 3) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for number in range(cases):
            for channel in range(channels):
                path = folder / "in" / f"case_{number}_{channel:04d}{ending}"
                if ending == ".png":
                    save(path, slice_image(number, (32, 32)), content="PNG")
                else:
                    write_volume(path, volume_array(number + 10 * channel, (32, 32, 3)))
        rows = [Case(f"case_{number}", patient=f"P{number}") for number in range(cases)]
        write_cases(folder / "in" / "cases.csv", rows)
        _write_model(folder, ending, channels)

    return write


def _predict(folder: Path) -> int:
    options = ("-device", "cpu", "--disable_tta", "--disable_progress_bar", "--cases", folder / "in" / "cases.csv")
    return call(
        predict_cli.predict, "-i", folder / "in", "-o", folder / "out", "-m", folder / "model", "-f", 0, *options
    )


def _count_predicted(folder: Path) -> int:
    """Cases that are predicted; mask and probabilities of each have to be valid."""
    out = folder / "out"
    cases = sorted((out / "classes").glob("*.json")) if out.is_dir() else []
    masks = [p for p in out.glob("*") if p.name.endswith((".nii.gz", ".png"))] if out.is_dir() else []
    if len(masks) != len(cases):
        raise ValueError(f"{len(masks)} masks of {len(cases)} cases")
    for file in cases:
        result = json.loads(file.read_text(encoding="utf-8"))
        if not abs(sum(result["probabilities"].values()) - 1) < 1e-3:
            raise ValueError(f"{file}: probabilities {result['probabilities']}")
    return len(cases)


def _write_evaluation(folder: Path) -> None:
    write_predictions(folder / "in" / "predictions")
    write_truth(folder / "in" / "truth")


def _evaluate(folder: Path) -> int:
    options = ("-np", 1, "--resamples", 100, "-o", folder / "out")
    predictions, truth = folder / "in" / "predictions", folder / "in" / "truth" / "labelsTs"
    return call(evaluate_cli.evaluate, "-p", predictions, "-g", truth, *options)


def _count_evaluated(folder: Path) -> int:
    file = folder / "out" / "summary.json"
    if not file.is_file():
        return 0
    content = json.loads(file.read_text(encoding="utf-8"))
    with open(folder / "out" / "cases.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if len(rows) != len(content["metric_per_case"]):
        raise ValueError("cases.csv and summary.json differ")
    return len(rows)


def _write_folds(folder: Path, copies: int = 1) -> None:
    everything = {
        f"{name}_{copy}": (row[0], f"{row[1]}_{copy}", *row[2:])
        for copy in range(copies)
        for name, row in CASES.items()
    }
    source = folder / "in"
    truth = write_truth(source / "truth", everything)
    preprocessed = source / "nnUNet_preprocessed" / "Dataset042_Tiny"
    preprocessed.mkdir(parents=True)
    truth.rename(preprocessed / "gt_segmentations")
    (source / "truth" / "cases.csv").rename(preprocessed / "cases.csv")
    (source / "truth" / "dataset.json").unlink()
    (source / "truth").rmdir()
    model = source / "nnUNet_results" / EVALUATED
    for number in range(2):
        cases = list(everything)[number::2]
        validation = model / f"fold_{number}" / "validation"
        validation.mkdir(parents=True)
        for case in cases:
            write_mask(validation / f"{case}.nii.gz", everything[case][3])
        results = {case: class_result(case, everything[case][4]) for case in cases}
        (validation / "classification.json").write_text(json.dumps({"cases": results}))
        (validation / "summary.json").write_text("{}")
        checkpoint = {
            "network_weights": {"weight": torch.ones(2)},
            "trainer_name": "nnUNetTrainerMultiTask",
            "init_args": {"configuration": "2d"},
        }
        torch.save(checkpoint, model / f"fold_{number}" / "checkpoint_final.pth")
    plans = {"dataset_name": "Dataset042_Tiny", "plans_name": "BrainTumPlans", "image_reader_writer": "SimpleITKIO"}
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset_json()))


def _write_many_folds(folder: Path) -> None:
    _write_folds(folder, copies=6)  # a temperature needs 30 cases


def _with_folders(folder: Path) -> Path:
    source = folder / "in"
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[name] = str(source / name)
    return folder / "out"


def _evaluate_folds(folder: Path) -> int:
    output = _with_folders(folder)
    return call(
        evaluate_cli.evaluate,
        *("-d", 42, "-p", "BrainTumPlans", "-c", "2d", "-np", 1, "--resamples", 100, "-o", output),
    )


def _calibrate(folder: Path) -> int:
    model = _with_folders(folder).parent / "in" / "nnUNet_results" / EVALUATED
    return call(calibrate_cli.calibrate_model, "-m", model, "--resamples", 100, "-o", folder / "out")


def _count_calibrated(folder: Path) -> int:
    file = folder / "out" / "calibration.json"
    return json.loads(file.read_text(encoding="utf-8"))["num_cases"] if file.is_file() else 0


def _postprocess(folder: Path) -> int:
    rules = folder / "in" / "postprocessing.json"
    return call(
        postprocess_cli.postprocess,
        *("-i", folder / "in" / "predictions", "-o", folder / "out", "-rules", rules, "--consistent", "-np", 1),
    )


def _write_postprocessing(folder: Path) -> None:
    write_predictions(folder / "in" / "predictions")
    rules = {
        "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"],
        "postprocessing_kwargs": [{"labels_or_regions": 1}],
    }
    (folder / "in" / "postprocessing.json").write_text(json.dumps(rules))


# not summary.json: a fold without it is one whose validation has not ended, and left out with a warning
_OF_FOLDS = ("*classification.json", "*dataset.json", "*plans.json", "*.csv", "*.pth")


MODELS = (
    DamagedCommand(
        "predict", _write_prediction(".nii.gz", 2), _predict, _count_predicted, shared=("*cases.csv",), pairs=True
    ),
    DamagedCommand(
        "predict, PNG", _write_prediction(".png", 1), _predict, _count_predicted, shared=("*cases.csv",), pairs=True
    ),
    DamagedCommand(
        "model of predict",
        _write_prediction(".png", 1, 2),
        _predict,
        _count_predicted,
        ("model/*",),
        ALL_SHARED,
    ),
    DamagedCommand(
        "evaluate",
        _write_evaluation,
        _evaluate,
        _count_evaluated,
        shared=("*cases.csv", "*dataset.json"),
        pairs=True,
    ),
    DamagedCommand(
        "evaluate folds",
        _write_folds,
        _evaluate_folds,
        _count_evaluated,
        ("*.nii.gz", *_OF_FOLDS),
        shared=ALL_SHARED,
        pairs=True,
    ),
    DamagedCommand("calibrate", _write_many_folds, _calibrate, _count_calibrated, _OF_FOLDS, ("*",)),
    DamagedCommand(
        "postprocess",
        _write_postprocessing,
        _postprocess,
        lambda p: len(list((p / "out").glob("*.nii.gz"))),
        shared=("*postprocessing.json", "*dataset.json"),
    ),
)
