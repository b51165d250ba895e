"""The commands that read files of others, each on a small whole input of which one file can be damaged."""

import csv
import fnmatch
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from evaluation_data import CASES, class_result, dataset_json, write_mask, write_predictions, write_truth
from natural_image_data import save, slice_image, write_br35h, write_brisc, write_kaggle4
from nnunet_runs import write_dataset
from phantom_data import write_source
from PIL import Image
from tiny_training import TinyDataset, _plans
from volume_data import mask_array, volume_array, write_brats_case, write_dicom_series, write_lgg_source
from volume_data import write_volume_file as write_volume

from braintum.commands.command import run_command
from braintum.conversion import audit_cli, cli
from braintum.conversion.format.cases import Case, write_cases
from braintum.evaluation import calibrate_cli
from braintum.evaluation import cli as evaluate_cli
from braintum.inference import cli as predict_cli
from braintum.inference import postprocess_cli

MODEL = "nnUNetTrainerMultiTask__TinyPlans__2d"
EVALUATED = "Dataset042_Tiny/nnUNetTrainerMultiTask__BrainTumPlans__2d"


@dataclass(frozen=True)
class DamagedCommand:
    """One command on one kind of input.

    Attributes:
        name: in tables.
        write: writes the whole input into a folder.
        run: runs the command on the input in a folder, output into its folder ``out``; returns the exit code.
        count: how many cases the output in a folder holds; raises ValueError where the output is not valid.
        targets: patterns of the files, relative to the folder, that may be damaged.
        shared: patterns of those that more than one case depends on: damage to them may end the command.
        names_folder: the folder of a file is as good as its name in a message: the files are slices of one volume.
        lost: cases at most that one damaged file may cost.
        pairs: every file has a counterpart, or a row in a table; to leave out what has none would make figures better
            than they are, or lose a patient, so the command refuses a renamed file.
    """

    name: str
    write: Callable[[Path], object]
    run: Callable[[Path], int]
    count: Callable[[Path], int]
    targets: Sequence[str] = ("in/*",)
    shared: Sequence[str] = ("*.csv", "*annotations_*.json", "*dataset.json")
    names_folder: bool = False
    lost: int = 1
    pairs: bool = False

    def files(self, folder: Path) -> list[Path]:
        """The files that may be damaged."""
        found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return [p for p in found if any(fnmatch.fnmatchcase(p.relative_to(folder).as_posix(), t) for t in self.targets)]

    def is_shared(self, path: Path) -> bool:
        """Whether more than one case depends on a file."""
        return any(fnmatch.fnmatchcase(path.as_posix(), pattern) for pattern in self.shared)


def _command(body: Callable, *arguments: object) -> int:
    return run_command(body, [str(argument) for argument in arguments], needs_nnunet=False)


# conversion


def _convert(kind: str, *options: str) -> Callable[[Path], int]:
    def run(folder: Path) -> int:
        os.environ |= {"nnUNet_raw": str(folder / "out")}
        return _command(cli._convert, kind, folder / "in", "-d", 500, "--name", "Damaged", "-np", 1, *options)

    return run


def _count_dataset(folder: Path, raw: str = "out") -> int:
    """Cases of a converted data set; all their files have to be readable, finite and of one size."""
    dataset = folder / raw / "Dataset500_Damaged"
    if not (dataset / "dataset.json").is_file():
        return 0
    if (dataset / "conversion_in_progress.json").exists():
        raise ValueError("a data set that is complete and is not")
    content = json.loads((dataset / "dataset.json").read_text())
    ending, channels = content["file_ending"], len(content["channel_names"])
    with open(dataset / "cases.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        part = "Ts" if row["split"] == "test" else "Tr"
        files = [dataset / f"images{part}" / f"{row['case']}_{channel:04d}{ending}" for channel in range(channels)]
        label = dataset / f"labels{part}" / f"{row['case']}{ending}"
        arrays = [_array(file) for file in (*files, *([label] if label.exists() or part == "Tr" else []))]
        if len({array.shape for array in arrays}) > 1 or not all(np.isfinite(array).all() for array in arrays):
            raise ValueError(f"case {row['case']} is not valid")
    n_images = sum(len(list(dataset.glob(f"images{part}/*"))) for part in ("Tr", "Ts"))
    if n_images != channels * len(rows):
        raise ValueError(f"{n_images} images of {len(rows)} cases")
    splits = json.loads((dataset / "splits_final.json").read_text())
    named = {name for split in splits for names in split.values() for name in names}
    if named != {row["case"] for row in rows if row["split"] != "test"}:
        raise ValueError("splits of other cases")
    return len(rows)


def _array(file: Path) -> np.ndarray:
    if file.suffix == ".png":
        with Image.open(file) as image:
            return np.asarray(image)
    return sitk.GetArrayFromImage(sitk.ReadImage(str(file)))


def _write_brats(folder: Path) -> None:
    for number in range(4):
        write_brats_case(folder / "in", f"BraTS2021_0000{number}", mask_array(), seed=number)


def _write_lgg(folder: Path) -> None:
    rows = {f"TCGA_CS_494{number}_19960909": ("1", str(1 + number % 2)) for number in range(3)}
    write_lgg_source(folder / "in", rows)


def _write_folder(ending: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        lines = ["patient,class"]
        for number in range(4):
            patient = folder / "in" / f"P{number}"
            for channel, seed in (("t1c", number), ("flair", 10 + number)):
                if ending == ".dcm":
                    array = volume_array(seed)
                    write_dicom_series(patient / channel, array, series=f"{seed + 1}")
                else:
                    write_volume(patient / f"{channel}{ending}", volume_array(seed))
            write_volume(patient / f"mask{'.nrrd' if ending == '.dcm' else ending}", mask_array((1, 1)))
            lines.append(f"P{number},{('glioma', 'meningioma')[number % 2]}")
        (folder / "in" / "table.csv").write_text("\n".join(lines) + "\n")

    return write


_CHANNELS = ("--channel", "T1ce=*t1c*", "--channel", "FLAIR=*flair*", "--mask", "*mask*", "--table", "table.csv")


def _write_raw(*endings: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for number, ending in enumerate(endings):
            write_dataset(folder / "in", 7 + number, num_cases=4, file_ending=ending)

    return write


def _combine(folder: Path) -> int:
    # `combine` reads from nnUNet_raw and writes there: the new data set is the output
    os.environ |= {"nnUNet_raw": str(folder / "in")}
    return _command(cli._convert, "combine", 7, 8, "-d", 500, "--name", "Damaged", "-np", 1)


# audit


def _audit(*targets: str) -> Callable[[Path], int]:
    def run(folder: Path) -> int:
        paths = [folder / target for target in targets]
        return _command(audit_cli._audit, *paths, "-o", folder / "out", "-np", 1)

    return run


def _write_audit_folders(folder: Path) -> None:
    for seed in range(6):
        side, name = ("train", "test")[seed % 2], f"image{seed}"
        save(folder / "in" / side / f"{name}.jpg", slice_image(seed))
        save(folder / "in" / side / f"{name}.png", slice_image(seed + 50), content="PNG")
        save(folder / "in" / side / f"{name}.tif", slice_image(seed + 90), content="TIFF")
    for ending in (".nii.gz", ".nrrd"):
        for seed in range(2):
            write_volume(folder / "in" / ("train", "test")[seed] / f"volume{seed}{ending}", volume_array(seed))


def _count_audited(folder: Path) -> int:
    """Images that an audit could read."""
    file = folder / "out" / "audit.json"
    if not file.is_file():
        return 0
    content = json.loads(file.read_text(encoding="utf-8"))
    return content["images"] - len(content["unreadable"])


# prediction


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
    return _command(
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


# evaluation


def _write_evaluation(folder: Path) -> None:
    write_predictions(folder / "in" / "predictions")
    write_truth(folder / "in" / "truth")


def _evaluate(folder: Path) -> int:
    options = ("-np", 1, "--resamples", 100, "-o", folder / "out")
    predictions, truth = folder / "in" / "predictions", folder / "in" / "truth" / "labelsTs"
    return _command(evaluate_cli.evaluate, "-p", predictions, "-g", truth, *options)


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
    return _command(
        evaluate_cli.evaluate,
        *("-d", 42, "-p", "BrainTumPlans", "-c", "2d", "-np", 1, "--resamples", 100, "-o", output),
    )


def _calibrate(folder: Path) -> int:
    model = _with_folders(folder).parent / "in" / "nnUNet_results" / EVALUATED
    return _command(calibrate_cli.calibrate_model, "-m", model, "--resamples", 100, "-o", folder / "out")


def _count_calibrated(folder: Path) -> int:
    file = folder / "out" / "calibration.json"
    return json.loads(file.read_text(encoding="utf-8"))["num_cases"] if file.is_file() else 0


def _postprocess(folder: Path) -> int:
    rules = folder / "in" / "postprocessing.json"
    return _command(
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


_ALL_SHARED = ("*.json", "*.csv", "*.pth")
# not summary.json: a fold without it is one whose validation has not ended, and left out with a warning
_OF_FOLDS = ("*classification.json", "*dataset.json", "*plans.json", "*.csv", "*.pth")
COMMANDS = (
    DamagedCommand(
        "figshare", lambda p: write_source(p / "in"), _convert("figshare"), _count_dataset, shared=("*cvind.mat",)
    ),
    DamagedCommand("brisc", lambda p: write_brisc(p / "in"), _convert("brisc"), _count_dataset, lost=2),
    DamagedCommand("br35h", lambda p: write_br35h(p / "in"), _convert("br35h"), _count_dataset),
    DamagedCommand("kaggle4", lambda p: write_kaggle4(p / "in"), _convert("kaggle4"), _count_dataset),
    DamagedCommand("lgg", _write_lgg, _convert("lgg"), _count_dataset, names_folder=True),
    DamagedCommand("lgg slices", _write_lgg, _convert("lgg", "--slices"), _count_dataset, names_folder=True, lost=11),
    DamagedCommand("brats", _write_brats, _convert("brats"), _count_dataset),
    DamagedCommand("folder, NIfTI", _write_folder(".nii.gz"), _convert("folder", *_CHANNELS), _count_dataset),
    DamagedCommand("folder, NRRD", _write_folder(".nrrd"), _convert("folder", *_CHANNELS), _count_dataset),
    DamagedCommand(
        "folder, DICOM", _write_folder(".dcm"), _convert("folder", *_CHANNELS), _count_dataset, names_folder=True
    ),
    DamagedCommand("combine", _write_raw(".nii.gz", ".nii.gz"), _combine, lambda p: _count_dataset(p, "in")),
    DamagedCommand("combine, PNG", _write_raw(".png", ".png"), _combine, lambda p: _count_dataset(p, "in")),
    DamagedCommand(
        "audit of a data set", _write_raw(".nii.gz"), _audit("in/Dataset007_Tiny"), _count_audited, shared=_ALL_SHARED
    ),
    DamagedCommand("audit of folders", _write_audit_folders, _audit("in/train", "in/test"), _count_audited),
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
        _ALL_SHARED,
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
        shared=_ALL_SHARED,
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
BY_NAME = {command.name: command for command in COMMANDS}
