r"""Kills conversion, preprocessing, training or prediction at random moments, and looks at what is left.

    python benchmarks/robustness/fault_injection.py conversion preprocessing training prediction [-kills 30] \
        [-seed 0] -o OUTPUT

Each stage runs on small synthetic slices. Two uninterrupted runs come first: they have to agree, and say how long a run
takes and when its first file appears. Then runs are killed (SIGKILL, the whole process group, workers too) at moments
drawn evenly between the first file and the end, and started again with the same command (training with --c, prediction
with --continue_prediction); every third restart is killed as well. After each kill, everything that is visible under
its own name has to be byte for byte that of the uninterrupted run (checkpoints: readable, and with the numbers of
their epoch); at the end, everything has to be. Training runs with braintum_seed, on the CPU, a checkpoint every epoch;
weights and logged numbers are compared, clock times are not. Predictions are those of --exact; with --bulk, the default
way of computing, which is equal to rounding only: masks then have to agree in all but a thousandth of the pixels.

Runs are forked from one process that has imported everything, so that kills do not all hit imports; nnU-Net's final
validation gets a forked pool for the same reason. -processes 2 adds worker processes to conversion and preprocessing.
Writes OUTPUT/fault_injection.json and .md.
"""

import argparse
import json
import logging
import multiprocessing
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from killed_runs import Campaign, Faults, Stage, finish, fork
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.run import run_training as nnunet_training
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock_trainer
from run_differences import differing_files, differing_predictions
from tabulate import tabulate

from braintum.conversion import cli as conversion_cli
from braintum.conversion.files.atomic import atomic_path, write_json_atomic
from braintum.conversion.sources.phantoms import write_figshare_phantoms
from braintum.inference import cli as prediction_cli
from braintum.inference import predict_folder  # noqa: F401  imported before the forks
from braintum.trainers import multi_task  # noqa: F401

DATASET, PLANS, TRAINER, EPOCHS = "Dataset007_Figshare", "BrainTumLightPlans", "nnUNetTrainerMultiTask", 3
TIMES = {"epoch_start_timestamps", "epoch_end_timestamps"}
SETTINGS = {
    "braintum_num_epochs": str(EPOCHS),
    "braintum_num_iterations_per_epoch": "2",
    "braintum_seed": "3",
    "nnUNet_n_proc_DA": "0",
    "nnUNet_def_n_proc": "1",
    "nnUNet_compile": "0",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=("conversion", "preprocessing", "training", "prediction"))
    parser.add_argument("-kills", type=int, default=30, help="of each stage, at least; default: %(default)s")
    parser.add_argument("-seed", type=int, default=0, help="of the moments; default: %(default)s")
    parser.add_argument("-processes", type=int, default=1, help="of conversion and preprocessing; default: %(default)s")
    parser.add_argument("--bulk", action="store_true", help="predict without --exact")
    parser.add_argument("-o", type=Path, required=True, help="folder for everything")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    args.o.mkdir(parents=True, exist_ok=True)
    if not SETTINGS.items() <= os.environ.items():  # nnU-Net has read some of them already
        os.environ.update(SETTINGS)
        os.execv(sys.executable, [sys.executable, *sys.argv])
    torch.set_num_threads(1)
    prepare(args.o / "given")
    results = []
    for name in args.stages:
        stage = STAGES[name](args)
        results.append(Campaign(stage, args.o / name, args.kills, np.random.default_rng(args.seed)).run())
        print(json.dumps(results[-1], indent=1), flush=True)
    rows = [{key: value for key, value in result.items() if key != "faults"} for result in results]
    table = tabulate(rows, headers="keys", tablefmt="github")
    print(table)
    write_json_atomic(args.o / "fault_injection.json", results)
    with atomic_path(args.o / "fault_injection.md") as partial:
        partial.write_text(table + "\n", encoding="utf-8")
    return 1 if any(result["faults"] for result in results) else 0


def prepare(given: Path) -> None:
    """Source, raw and preprocessed data and a model, each for the stage after it."""
    if (given / "complete").exists():
        return
    shutil.rmtree(given, ignore_errors=True)
    write_figshare_phantoms(given / "source", n_patients=10, slices_per_patient=4, size=64)
    folders = {name: given / name for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")}
    for folder in folders.values():
        folder.mkdir()
    for step in (convert, plan_and_preprocess, train):
        if (code := finish(fork(lambda step=step: step(given, folders, False), given / "log.txt"))) != 0:  # type: ignore[misc]
            raise RuntimeError(f"{step.__name__} ended with {code}, see {given / 'log.txt'}")
    (given / "complete").touch()


def convert(given: Path, folders: Mapping[str, Path], restart: bool, processes: int = 1) -> None:
    set_folders(folders)
    command = ["figshare", str(given / "source"), "-d", "7", "-np", str(processes)]
    if conversion_cli.main(command):
        raise SystemExit(1)


def plan_and_preprocess(given: Path, folders: Mapping[str, Path], restart: bool, processes: int = 1) -> None:
    set_folders(folders)
    extract_fingerprints([7], "BrainTumFingerprintExtractor", num_processes=processes, show_progress_bar=False)
    plan_experiments([7], "BrainTumPlannerLight")
    preprocess([7], PLANS, ["2d"], num_processes=[processes], show_progress_bar=False)


def train(given: Path, folders: Mapping[str, Path], restart: bool) -> None:
    set_folders(folders)
    make = nnunet_training.get_trainer_from_args

    def make_with_checkpoints(*args: Any, **kwargs: Any) -> Any:
        trainer = make(*args, **kwargs)
        trainer.save_every = 1
        return trainer

    forked = type("Forked", (), {"get_context": lambda method: multiprocessing.get_context("fork")})
    with (
        patch.object(nnunet_training, "get_trainer_from_args", make_with_checkpoints),
        patch.object(stock_trainer, "multiprocessing", forked),
    ):
        nnunet_training.run_training(
            "7", "2d", 0, TRAINER, PLANS, continue_training=restart, device=torch.device("cpu")
        )


def predict(given: Path, output: Path, restart: bool, bulk: bool) -> None:
    model = model_folder(given / "nnUNet_results")
    images = given / "nnUNet_raw" / DATASET / "imagesTr"
    command = ["-i", str(images), "-o", str(output), "-m", str(model), "-f", "0", "-device", "cpu"]
    command += [] if bulk else ["--exact"]
    command += ["--continue_prediction"] if restart else []
    if prediction_cli.predict([*command, "--disable_progress_bar"]):
        raise SystemExit(1)


def set_folders(folders: Mapping[str, Path]) -> None:
    os.environ.update({name: str(folder) for name, folder in folders.items()})


def model_folder(results: Path) -> Path:
    return results / DATASET / f"{TRAINER}__{PLANS}__2d"


def conversion(args: argparse.Namespace) -> Stage:
    given = args.o / "given"

    def start(folder: Path, restart: bool) -> None:
        convert(given, {"nnUNet_raw": folder}, restart, args.processes)

    def compare(folder: Path, reference: Path, completed: bool) -> Faults:
        return differing_files(folder, reference, completed, allowed={"conversion_in_progress.json"})

    return Stage("conversion", start, compare, repeats=False)


def preprocessing(args: argparse.Namespace) -> Stage:
    given = args.o / "given"

    def start(folder: Path, restart: bool) -> None:
        folders = {"nnUNet_raw": given / "nnUNet_raw", "nnUNet_preprocessed": folder}
        plan_and_preprocess(given, folders, restart, args.processes)

    return Stage("preprocessing", start, differing_files)


def training(args: argparse.Namespace) -> Stage:
    given = args.o / "given"

    def start(folder: Path, restart: bool) -> None:
        train(given, {"nnUNet_preprocessed": given / "nnUNet_preprocessed", "nnUNet_results": folder}, restart)

    def compare(folder: Path, reference: Path, completed: bool) -> Faults:
        fold, expected = (model_folder(root) / "fold_0" for root in (folder, reference))
        faults = differing_files(folder, reference, completed, suffixes={".nii.gz", ".csv"})
        final = load(expected / "checkpoint_final.pth")
        for file in sorted(fold.glob("checkpoint_*.pth")):
            try:
                found = load(file)
            except Exception as error:  # whatever torch makes of half a file
                faults.append(f"{file.name} cannot be read: {error}")
                continue
            epochs = found["current_epoch"]
            for key, values in found["logging"].items():
                if key not in TIMES and values[:epochs] != final["logging"][key][:epochs]:
                    faults.append(f"{file.name}: other {key} up to epoch {epochs}")
        if completed:
            for name in ("final", "best", "best_joint"):
                file = f"checkpoint_{name}.pth"
                if not (fold / file).is_file():
                    faults.append(f"{file} is missing")
                    continue
                found, wanted = load(fold / file), load(expected / file)
                if found["current_epoch"] != wanted["current_epoch"]:
                    faults.append(f"{file} is of epoch {found['current_epoch']}, not {wanted['current_epoch']}")
                different = [
                    key
                    for key, tensor in wanted["network_weights"].items()
                    if not torch.equal(tensor, found["network_weights"][key])
                ]
                if different:
                    faults.append(f"{file}: {len(different)} tensors differ")
        return faults

    return Stage("training", start, compare)


def prediction(args: argparse.Namespace) -> Stage:
    def start(folder: Path, restart: bool) -> None:
        predict(args.o / "given", folder / "out", restart, args.bulk)

    def compare(folder: Path, reference: Path, completed: bool) -> Faults:
        if not args.bulk:
            # what says how it was predicted may say "continued"
            return differing_files(folder, reference, completed, allowed={"predict_from_raw_data_args.json"})
        return differing_predictions(folder / "out", reference / "out", completed)

    return Stage("prediction in bulk" if args.bulk else "prediction", start, compare)


def load(file: Path) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", weights_only=True)


STAGES = {
    "conversion": conversion,
    "preprocessing": preprocessing,
    "training": training,
    "prediction": prediction,
}


if __name__ == "__main__":
    sys.exit(main())
