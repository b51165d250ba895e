"""Experiments whose jobs are small programs that behave as trainings do: epochs, checkpoints, a stop file."""

import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from braintum.experiments.definition import Slurm
from braintum.experiments.jobs import Experiment, Job

TRAINING = """
import json, os, pathlib, sys, time
folder, epochs, seconds, mode = pathlib.Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), sys.argv[4]
folder.mkdir(parents=True, exist_ok=True)
latest, log = folder / "checkpoint_latest.pth", open(folder / f"training_log_{time.time()}.txt", "w")
state = json.loads(latest.read_text()) if latest.exists() else {"epoch": 0, "value": 1}
(folder / "debug.json").write_text(json.dumps({"num_epochs": str(epochs)}))
while state["epoch"] < epochs:
    if os.path.exists(os.environ["braintum_stop_file"]):
        latest.write_text(json.dumps(state))
        sys.exit(75)
    print("Epoch", state["epoch"], file=log, flush=True)
    if mode == "memory" and state["epoch"] == 1:
        sys.exit("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB")
    time.sleep(seconds)
    state = {"epoch": state["epoch"] + 1, "value": state["value"] * 31 % 1009}
    print("train_loss -0.5\\nval_loss -0.4\\nPseudo dice [0.7]\\nEpoch time:", seconds, "s", file=log, flush=True)
    if mode == "often":
        latest.write_text(json.dumps(state))
(folder / "checkpoint_final.pth").write_text(json.dumps(state))
"""


def make_experiment(
    folder: Path, modes: dict[str, str], epochs: int = 4, seconds: float = 0.3, **slurm: object
) -> Experiment:
    """An experiment: a preparation, a training a mode, an evaluation of all of them.

    Args:
        folder: of the experiment; models go beside it.
        modes: name → ``plain``, ``often`` (a checkpoint each epoch) or ``memory`` (it runs out of it).
        epochs: of each training.
        seconds: of each epoch.
        **slurm: of :class:`braintum.experiments.definition.Slurm`.
    """
    models, program = folder.parent / "models", folder.parent / "training.py"
    program.write_text(TRAINING)
    log = folder.parent / "order.txt"
    note = "import sys; open(sys.argv[1], 'a').write(sys.argv[2] + '\\n')"
    trainings = [
        Job(
            name,
            [[sys.executable, str(program), str(models / name), str(epochs), str(seconds), mode]],
            ["prepare"],
            [str(models / name / "checkpoint_final.pth")],
            stop_seconds=20,
            fold_folder=str(models / name),
        )
        for name, mode in modes.items()
    ]
    prepare = Job("prepare", [[sys.executable, "-c", note, str(log), "prepare"]])
    evaluate = Job("evaluate", [[sys.executable, "-c", note, str(log), "evaluate"]], [job.name for job in trainings])
    made = Experiment(folder, [prepare, *trainings, evaluate], {}, asdict(Slurm(**slurm)), "cpu")  # type: ignore[arg-type]
    made.save()
    return made


def finals(experiment: Experiment) -> dict[str, dict[str, int]]:
    """Final checkpoints by the name of the training."""
    models = experiment.folder.parent / "models"
    return {
        job.name: json.loads((models / job.name / "checkpoint_final.pth").read_text())
        for job in experiment.jobs
        if job.leaves and os.path.isfile(job.leaves[0])
    }


def wait_until(condition: Callable[[], object], seconds: float = 180) -> None:
    """Fail where a condition does not become true in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def epochs_begun(experiment: Experiment, name: str) -> int:
    """How many epochs of a training have begun, in all of its turns."""
    folder = Path(experiment.job(name).fold_folder)
    return sum(len(re.findall(r"Epoch \d", file.read_text())) for file in folder.glob("training_log_*.txt"))
