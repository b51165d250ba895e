"""Tables of an experiment's jobs: how they are, and what they will take."""

import json
from pathlib import Path

from nnunetv2.paths import nnUNet_preprocessed
from tabulate import tabulate

from braintum.experiments.definition import Definition
from braintum.experiments.jobs import Experiment, Job
from braintum.experiments.progress import Progress, read_progress, size_of
from braintum.experiments.state import DONE, State


def status_table(experiment: Experiment, found: dict[str, State]) -> str:
    """A row a job: state, epoch, speed, time left, last metrics, and why it waits or failed."""
    rows = []
    for job in experiment.jobs:
        state = found[job.name]
        progress = read_progress(job)
        turns = len(state.get("attempts", []))
        rows.append([job.name, state["state"], turns or "", *_cells(progress, state), state.get("reason", "")])
    header = ["job", "state", "turns", "epoch", "s/epoch", "left", "last values", "why"]
    counts: dict[str, int] = {}
    for state in found.values():
        counts[state["state"]] = counts.get(state["state"], 0) + 1
    summary = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
    return f"{experiment.folder}: {summary}\n\n{tabulate(rows, header, disable_numparse=True)}"


def _cells(progress: Progress | None, state: State) -> list[str]:
    if progress is None:
        return [""] * 4
    epoch = f"{progress.epoch}/{progress.num_epochs or '?'}"
    seconds = "" if progress.seconds is None else f"{progress.seconds:.1f}"
    left = progress.seconds_left
    return [epoch, seconds, "" if left is None or state["state"] == DONE else clock(left), progress.metrics]


def clock(seconds: float) -> str:
    """Such as 3:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def estimate_table(experiment: Experiment, todo: list[str]) -> str:
    """A row a job that would run: time, GPU memory and disk, each as far as something tells.

    Time and disk are measured on another fold of the same model (in this or an earlier experiment), memory is what the
    plans were made for.
    """
    rows = []
    for job in experiment.jobs:
        if job.name in todo:
            rows.append([job.name, *(_estimate(job) if job.fold_folder else [""] * 3), *job.needs[:1]])
    header = ["job", "time", "GPU memory", "disk", "needs"]
    note = "time and disk: measured on folds of the same model that have begun; GPU memory: what the plans aim at"
    return f"{len(rows)} jobs would run\n\n{tabulate(rows, header, disable_numparse=True)}\n\n{note}"


def _estimate(job: Job) -> list[str]:
    model = Path(job.fold_folder).parent
    time, disk = "after the first epoch of a fold", "after the first fold"
    for fold in sorted(model.glob("fold_*")):
        progress = read_progress(Job("", [], fold_folder=str(fold)))
        if progress is not None and progress.seconds is not None:
            epochs = job.variables.get("braintum_num_epochs") or progress.num_epochs
            time = clock(progress.seconds * int(epochs)) if epochs else f"{progress.seconds:.0f} s an epoch"
        if (fold / "checkpoint_final.pth").is_file():
            disk = f"{size_of(str(fold)) / 1e6:.0f} MB"
    return [time, _planned_memory(model), disk]


def _planned_memory(model: Path) -> str:
    """What the planner aimed at; nnU-Net's plans do not tell."""
    _, plans, configuration = model.name.split("__")
    file = Path(nnUNet_preprocessed.get() or "") / model.parent.name / f"{plans}.json"
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["braintum_decisions"][configuration]["memory"])
    except (OSError, ValueError, KeyError):
        return "the plans do not tell"


def definition_differs(experiment: Experiment, definition: Definition) -> list[str]:
    """What a definition asks for that jobs of the same name did otherwise; more folds or trainers are no difference."""
    now = definition.content()
    may_grow = ("datasets", "configurations", "trainers", "folds", "slurm", "name")
    return [name for name, value in experiment.definition.items() if name not in may_grow and now.get(name) != value]
