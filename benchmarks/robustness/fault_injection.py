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
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import SimpleITK
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.run import run_training as nnunet_training
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock_trainer
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
Faults = list[str]


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


# ---------------------------------------------------------------------------------------------------------- the stages


@dataclass(frozen=True)
class Stage:
    """What is killed.

    Attributes:
        name: of the stage.
        start: runs it; told its folder, and whether it is a restart.
        compare: what a folder holds against the folder of an uninterrupted run, and whether the run was completed.
        repeats: whether a completed run may be started again; a conversion refuses to replace a data set.
    """

    name: str
    start: Callable[[Path, bool], None]
    compare: Callable[[Path, Path, bool], Faults]
    repeats: bool = True


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


STAGES = {
    "conversion": conversion,
    "preprocessing": preprocessing,
    "training": training,
    "prediction": prediction,
}


# ------------------------------------------------------------------------------------------------------ the comparison


def visible_files(folder: Path) -> dict[str, Path]:
    """Files that somebody who lists folders sees: no part of their path begins with a dot."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        relative.as_posix(): path
        for relative, path in sorted(found.items())
        if not any(part.startswith(".") for part in relative.parts)
    }


def differing_files(
    folder: Path,
    reference: Path,
    completed: bool,
    allowed: frozenset[str] | set[str] = frozenset(),
    suffixes: set[str] | None = None,
) -> Faults:
    """Files that are not those of the uninterrupted run, byte for byte; missing ones too, where the run was completed.

    Args:
        folder: of the run.
        reference: of the uninterrupted one.
        completed: whether the run was.
        allowed: names of files that may be there or differ.
        suffixes: of the files to look at; None for all.
    """

    def wanted(name: str) -> bool:
        return Path(name).name not in allowed and (suffixes is None or any(map(name.endswith, suffixes)))

    found, expected = visible_files(folder), visible_files(reference)
    faults = [f"{name} is no file of an uninterrupted run" for name in found if name not in expected and wanted(name)]
    for name, path in expected.items():
        if not wanted(name):
            continue
        if name not in found:
            faults += [f"{name} is missing"] if completed else []
        elif found[name].read_bytes() != path.read_bytes():
            faults.append(f"{name} differs")
    if completed:
        left = [str(path.relative_to(folder)) for path in folder.rglob(".*") if not path.name.startswith(".partial-")]
        faults += [f"{name} is left behind" for name in left]
    return faults


def differing_predictions(folder: Path, reference: Path, completed: bool) -> Faults:
    """Masks and class probabilities that differ by more than rounding can explain."""
    faults = []
    for name, path in visible_files(reference).items():
        if not (folder / name).is_file():
            faults += [f"{name} is missing"] if completed else []
        elif name.endswith(".nii.gz"):
            masks = [SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))) for file in (folder / name, path)]
            if (masks[0] != masks[1]).mean() > 1e-3:
                faults.append(f"{name} differs")
        elif name.startswith("classes/"):
            found, expected = (json.loads(file.read_text())["probabilities"] for file in (folder / name, path))
            if any(abs(found[key] - expected[key]) > 1e-4 for key in expected):
                faults.append(f"{name} differs")
    return faults


def load(file: Path) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", weights_only=True)


# ------------------------------------------------------------------------------------------------------------ the kills


def fork(run: Callable[[], None], log: Path) -> int:
    """Run something in a process group of its own; the process's id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        with open(log, "a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        run()
        code = 0
    except BaseException:
        logging.exception("failed")
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(process: int, seconds: float | None = None) -> int | None:
    """Wait; the exit code (negative: the signal), or None if the process still runs after so many seconds."""
    end = None if seconds is None else time.perf_counter() + seconds
    while end is None or time.perf_counter() < end:
        done, status = os.waitpid(process, 0 if end is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


@dataclass
class Campaign:
    """The kills of one stage."""

    stage: Stage
    folder: Path
    wanted_kills: int
    random: np.random.Generator
    faults: Faults = field(default_factory=list)
    kills: int = 0
    late: int = 0
    seconds: float = 0.0
    first: float = 0.0

    def run(self) -> dict[str, Any]:
        shutil.rmtree(self.folder, ignore_errors=True)
        reference, *times = self._uninterrupted("reference")
        again, *times_again = self._uninterrupted("again")
        self.seconds, self.first = (min(pair) for pair in zip(times, times_again, strict=True))
        self.faults += [f"second uninterrupted run: {fault}" for fault in self.stage.compare(again, reference, True)]
        shutil.rmtree(again)
        trials = 0
        while self.kills < self.wanted_kills and trials < 3 * self.wanted_kills:
            self._trial(trials, reference)
            trials += 1
        return {
            "stage": self.stage.name,
            "seconds of a run": round(self.seconds, 2),
            "first file after": round(self.first, 2),
            "kills": self.kills,
            "ended before the kill": self.late,
            "restarted to the end": trials,
            "faults found": len(self.faults),
            "faults": self.faults,
        }

    def _uninterrupted(self, name: str) -> tuple[Path, float, float]:
        """Folder, duration and moment of the first file."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        started, clock = time.time(), time.perf_counter()
        code = finish(fork(lambda: self.stage.start(folder, False), self.folder / f"{name}.txt"))
        seconds = time.perf_counter() - clock
        if code != 0:
            raise RuntimeError(f"the uninterrupted run ended with {code}, see {self.folder / name}.txt")
        first = min(path.stat().st_mtime for path in folder.rglob("*") if path.is_file()) - started
        return folder, seconds, min(max(first, 0.0), seconds)

    def _trial(self, number: int, reference: Path) -> None:
        folder = self.folder / f"trial_{number:03d}"
        folder.mkdir()
        log = self.folder / f"{folder.name}.txt"
        faults: Faults = []
        for restart in range(1 + (number % 3 == 2)):
            clock = time.perf_counter()
            process = fork(lambda restart=restart: self.stage.start(folder, bool(restart)), log)  # type: ignore[misc]
            moment = self.random.uniform(0 if restart else self.first, self.seconds)
            if finish(process, moment) is not None:
                self.late += 1
                if not restart:  # the machine has less to do than during the runs before
                    self.seconds = min(self.seconds, time.perf_counter() - clock)
                    self.first = min(self.first, self.seconds / 2)
                break
            os.killpg(process, signal.SIGKILL)
            finish(process)
            self.kills += 1
            faults += [
                f"killed after {moment:.2f} s: {fault}" for fault in self.stage.compare(folder, reference, False)
            ]
        code: int | None = 0
        if self.stage.repeats or self.stage.compare(folder, reference, True):
            code = finish(fork(lambda: self.stage.start(folder, True), log), 300)
        if code != 0:
            faults.append(f"the restart ended with {code}, see {log}")
        else:
            faults += [f"after the restart: {fault}" for fault in self.stage.compare(folder, reference, True)]
        self.faults += [f"{folder.name}: {fault}" for fault in faults]
        if not faults:
            shutil.rmtree(folder)
            log.unlink()


if __name__ == "__main__":
    sys.exit(main())
