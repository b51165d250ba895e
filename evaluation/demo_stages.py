"""The stages of ``braintum_demo``, from the source's files to a picture of predicted cases."""

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from braintum.commands.stages import Progress, Stages
from braintum.conversion.format.cases import read_cases

DATASET_ID, DATASET_NAME = 999, "Dataset999_Demo"
TRAINER, PLANS = "nnUNetTrainerMultiTask", "BrainTumLightPlans"
_PATIENTS, _SLICES_EACH = 40, 4
NUM_SLICES = _PATIENTS * _SLICES_EACH
"""Synthetic ones."""


@dataclass(frozen=True)
class Demo:
    """What is demonstrated, and where it lands.

    Attributes:
        out: folder for everything, as the user is shown it.
        data: folder of Figshare's .mat files; None for synthetic ones.
        fold: is held out.
        epochs: of the training.
        iterations: of an epoch.
        spacing: target spacing in mm.
        device: ``cpu`` or ``cuda``.
        num_slices: of the source.
    """

    out: Path
    data: Path | None
    fold: int
    epochs: int
    iterations: int
    spacing: float
    device: str
    num_slices: int

    @property
    def source(self) -> Path:
        """Folder of the .mat files."""
        return self.data or self.out / "source"

    @property
    def raw(self) -> Path:
        """The converted data set."""
        return self.out / "nnUNet_raw" / DATASET_NAME

    @property
    def preprocessed(self) -> Path:
        """The preprocessed data set."""
        return self.out / "nnUNet_preprocessed" / DATASET_NAME

    @property
    def fold_folder(self) -> Path:
        """What training writes."""
        return self.out / "nnUNet_results" / DATASET_NAME / f"{TRAINER}__{PLANS}__2d" / f"fold_{self.fold}"

    @property
    def images(self) -> Path:
        """The held-out images."""
        return self.out / "held_out" / "images"

    @property
    def labels(self) -> Path:
        """Their true masks."""
        return self.out / "held_out" / "labels"

    @property
    def predictions(self) -> Path:
        """Their predicted masks and classes."""
        return self.out / "predictions"

    @property
    def picture(self) -> Path:
        """Of some of them."""
        return self.out / "cases.png"

    @property
    def model_arguments(self) -> tuple[str, ...]:
        """The model and the device, for the commands that predict."""
        return "-d", str(DATASET_ID), "-c", "2d", "-p", PLANS, "-f", str(self.fold), "-device", self.device


def run_stages(show: Demo, stages: Stages) -> dict[str, Any]:
    """Run all stages; returns the summary of the evaluation.

    Raises:
        CommandError: one of them failed.
    """
    if show.data is None:
        _draw_phantoms(show, stages)
    num_held_out = _convert(show, stages)
    _plan(show, stages)
    _train(show, stages)
    _predict(show, stages, num_held_out)
    summary = _evaluate(show, stages)
    _draw_picture(show, stages)
    return summary


def _draw_phantoms(show: Demo, stages: Stages) -> None:
    from braintum.conversion.sources.phantoms import write_figshare_phantoms

    with stages.stage("data") as stage, stages.logged("synthetic phantoms in Figshare's layout"):
        write_figshare_phantoms(show.source, _PATIENTS, _SLICES_EACH)
        stage.outcome = f"{show.num_slices} head phantoms of {_PATIENTS} patients, drawn by a program"


def _convert(show: Demo, stages: Stages) -> int:
    """Converts, and sets the held-out fold aside, whose number of cases it returns."""
    with stages.stage("convert") as stage:
        stage.run(
            *("braintum_convert", "figshare", str(show.source), "-d", str(DATASET_ID), "--name", "Demo"),
            *("-np", stages.environment["nnUNet_def_n_proc"]),
        )
        num_held_out = copy_held_out_cases(show)
        cases = read_cases(show.raw / "cases.csv").values()
        classes = ", ".join(f"{number} {name}" for name, number in Counter(case.tumour_class for case in cases).items())
        stage.outcome = f"{len(cases)} cases: {classes}; {num_held_out} held out"
    return num_held_out


def copy_held_out_cases(show: Demo) -> int:
    """Copies images and true masks of the held-out fold into folders of their own; returns the number of cases.

    Raises:
        ValueError: there is no such fold.
    """
    splits = _read_json(show.raw / "splits_final.json")
    if not 0 <= show.fold < len(splits):
        raise ValueError(f"--fold {show.fold}: the data has the folds 0 to {len(splits) - 1}")
    ending = _read_json(show.raw / "dataset.json")["file_ending"]
    for folder in (show.images, show.labels):
        folder.mkdir(parents=True)
    for case in splits[show.fold]["val"]:
        shutil.copy(show.raw / "imagesTr" / f"{case}_0000{ending}", show.images)
        shutil.copy(show.raw / "labelsTr" / f"{case}{ending}", show.labels)
    return len(splits[show.fold]["val"])


def _plan(show: Demo, stages: Stages) -> None:
    progress = Progress(show.num_slices, "slices", lambda: _count(show.preprocessed, f"*{PLANS}_2d/*.pkl"))
    spacing, processes = str(show.spacing), stages.environment["nnUNet_def_n_proc"]
    with stages.stage("plan", progress) as stage:
        stage.run(
            *("nnUNetv2_plan_and_preprocess", "-d", str(DATASET_ID), "-c", "2d"),
            *("-fpe", "BrainTumFingerprintExtractor", "-pl", "BrainTumPlannerLight"),
            *("-overwrite_target_spacing", spacing, spacing, "-npfp", processes, "-np", processes, "--no_pbar"),
        )
        plan = _read_json(show.preprocessed / f"{PLANS}.json")["configurations"]["2d"]
        patch, scheme = " × ".join(map(str, plan["patch_size"])), plan["normalization_schemes"][0]
        stage.outcome = f"patch {patch} at {spacing} mm, batch {plan['batch_size']}, {scheme}"


def _train(show: Demo, stages: Stages) -> None:
    from braintum.evaluation.report.training_log import read_training_log

    progress = Progress(
        show.epochs, "epochs", lambda: finished_epochs(show.fold_folder), "validating on the held-out fold"
    )
    with stages.stage("train", progress) as stage:
        stage.run(
            *("nnUNetv2_train", str(DATASET_ID), "2d", str(show.fold), "-p", PLANS, "-tr", TRAINER),
            *("-device", show.device),
            # on the CPU, a process that augments takes from the network what it saves it
            **({"nnUNet_n_proc_DA": "0"} if show.device == "cpu" else {}),
        )
        log = read_training_log(show.fold_folder)
        if log is None:
            raise FileNotFoundError(f"no checkpoint in {show.fold_folder}")
        losses = log.curves["train_losses"]
        trained = f"{show.epochs} epochs of {show.iterations} batches on {show.device}"
        stage.outcome = f"{trained}: loss {losses[0]:.2f} to {losses[-1]:.2f}"


def finished_epochs(fold_folder: Path) -> int:
    """How many epochs nnU-Net's logs in the folder of a fold tell of."""
    logs = fold_folder.glob("training_log_*.txt")
    return sum(log.read_text(encoding="utf-8", errors="replace").count("Epoch time: ") for log in logs)


def _predict(show: Demo, stages: Stages, num_held_out: int) -> None:
    progress = Progress(num_held_out, "images", lambda: _count(show.predictions, "classes/*.json"))
    with stages.stage("predict", progress) as stage:
        folders = "-i", str(show.images), "-o", str(show.predictions)
        stage.run("braintum_predict", *folders, *show.model_arguments)
        stage.outcome = f"masks and classes of {num_held_out} held-out images in {show.predictions}"


def _evaluate(show: Demo, stages: Stages) -> dict[str, Any]:
    folder = show.out / "evaluation"
    with stages.stage("evaluate") as stage:
        stage.run(
            *("braintum_evaluate", "-p", str(show.predictions), "-g", str(show.labels), "-o", str(folder)),
            *("--cases", str(show.raw / "cases.csv"), "-np", stages.environment["nnUNet_def_n_proc"]),
        )
        stage.outcome = f"figures of every case and tables in {folder}"
    summary: dict[str, Any] = _read_json(folder / "summary.json")["braintum"]
    return summary


def _draw_picture(show: Demo, stages: Stages) -> None:
    with stages.stage("picture") as stage, stages.logged("picture of some cases"):
        from braintum.evaluation.report.case_sheet import draw_case_sheet
        from braintum.evaluation.results.case_table import case_table
        from braintum.evaluation.results.predictions import predictions_in_folder

        predictions = predictions_in_folder(show.predictions, show.labels, cases_file=show.raw / "cases.csv")
        ending = predictions.dataset_json["file_ending"]
        images = {case: [str(show.images / f"{case}_0000{ending}")] for case in predictions.masks}
        draw_case_sheet(case_table(predictions), images, show.picture)
        stage.outcome = f"worst, median and best cases in {show.picture}"


def _count(folder: Path, pattern: str) -> int:
    return sum(1 for _ in folder.glob(pattern))


def _read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
