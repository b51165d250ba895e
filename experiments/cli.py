"""``braintum_run``: whole experiments with one command, on this machine or on a SLURM cluster."""

import argparse
import signal
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from braintum.commands.command import EXIT_SOME_FAILED, add_command, run_command
from braintum.commands.executor_arguments import add_executor_arguments
from braintum.experiments.definition import FOLD_ALL, Definition, Slurm, check_definition, read_definition
from braintum.experiments.diagnosis import last_text
from braintum.experiments.jobs import EXPERIMENT_FILE, Experiment, experiment_folder, training_experiment
from braintum.experiments.local import LocalRun, ask_once
from braintum.experiments.slurm import cancel_in_queue, submit, with_queue
from braintum.experiments.state import (
    CANCELLED,
    DONE,
    FAILED,
    LOST,
    RUNNING,
    SUBMITTED,
    WAITING,
    State,
    only_starter,
    states,
    update_state,
)
from braintum.experiments.table import definition_differs, estimate_table, status_table

_WATCH_SECONDS = 5


def build_parser() -> argparse.ArgumentParser:
    """The command line; flags are named as nnU-Net's."""
    parser = argparse.ArgumentParser(
        prog="braintum_run",
        description="Run a whole experiment: plans, preprocessing and splits once a data set, a training for each "
        "configuration, trainer and fold, then evaluation, comparison and reports. Jobs go on where they were "
        "interrupted. The same command again starts what failed or is missing, and changes nothing that is done.",
    )
    parser.add_argument("-e", type=Path, metavar="FILE", help="experiment file (YAML); flags replace its entries")
    parser.add_argument("-d", nargs="+", dest="datasets", metavar="DATASET", help="names or ids of data sets")
    parser.add_argument("-c", nargs="+", dest="configurations", help="configurations; default: 2d")
    parser.add_argument("-tr", nargs="+", dest="trainers", help="default: nnUNetTrainerMultiTask")
    parser.add_argument(
        "--folds",
        nargs="+",
        type=_fold,
        help="numbers, all (the five of a cross-validation), or fold_all (one training on every case); default: all",
    )
    parser.add_argument("-p", dest="plans", help="plans identifier; default: BrainTumPlans")
    parser.add_argument("-pl", dest="planner", help="planner, where there are no plans yet; default: BrainTumPlanner")
    parser.add_argument("-device", choices=("cuda", "cpu", "mps"), help="default: cuda")
    parser.add_argument("--gpus", type=int, dest="num_gpus", help="GPUs of each training; default: 1")
    parser.add_argument(
        "--npz", action="store_true", default=None, dest="save_probabilities", help="save probabilities, for ensembles"
    )
    parser.add_argument("--name", help="of the experiment's folder in nnUNet_results/experiments; default: made up")
    parser.add_argument("--dry-run", action="store_true", help="show the jobs, with estimates of what each takes")
    add_executor_arguments(parser)
    commands = parser.add_subparsers(dest="command", metavar="status | logs | cancel | retry | predict")
    status = add_command(commands, "status", "A table of the jobs: how far, how fast, why they wait or failed.")
    status.add_argument("--watch", action="store_true", help="show it anew every 5 s, until nothing runs")
    logs = add_command(commands, "logs", "The end of what jobs said.")
    logs.add_argument("--lines", type=int, default=20, help="of each job; default: %(default)s")
    cancel = add_command(commands, "cancel", "End jobs; trainings write a checkpoint first.")
    retry = add_command(commands, "retry", "Start again what failed, was cancelled or was interrupted.")
    add_executor_arguments(retry)
    for command in (status, logs, cancel, retry):
        command.add_argument("experiment", help="its name or folder")
    for command in (logs, cancel, retry):
        command.add_argument("--jobs", nargs="+", help="some of them; default: all")
    predict = add_command(
        commands, "predict", "What `braintum_predict --on` starts: parts of a folder as jobs, then their tables."
    )
    add_executor_arguments(predict)
    predict.add_argument("-o", required=True, help="output folder; gets the experiment's folder, `run`")
    predict.add_argument("-num_parts", type=int, required=True, help="number of jobs")
    predict.add_argument("-device", default="cuda", help="default: %(default)s")
    predict.add_argument("arguments", nargs="*", help="behind `--`: of braintum_predict")
    return parser


def _fold(text: str) -> int | str:
    return text if text in ("all", FOLD_ALL) else int(text)


def run(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_run -h``.

    Returns:
        0; 3 where jobs failed; 130 where it was interrupted.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        if args.e is None and args.datasets is None:
            parser.error("give -d or -e, or one of status, logs, cancel, retry")
        return _start(training_experiment(_definition(args)), args)
    if args.command == "predict":
        from braintum.experiments.prediction import prediction_experiment

        return _start(prediction_experiment(args, Slurm(**_slurm_options(args))), args)
    experiment = Experiment.load(experiment_folder(args.experiment))
    names = [experiment.job(name).name for name in getattr(args, "jobs", None) or [job.name for job in experiment.jobs]]
    if args.command == "status":
        return _show(experiment, args.watch)
    if args.command == "logs":
        for name in names:
            text = "\n".join(last_text(experiment.file_of(name, ".log")).splitlines()[-args.lines :])
            print(f"==> {experiment.file_of(name, '.log')}\n{text}\n")
        return 0
    if args.command == "cancel":
        return _cancel(experiment, names)
    experiment = replace(experiment, slurm={**experiment.slurm, **_slurm_options(args)})
    return _start(experiment, args, names)


def _slurm_options(args: argparse.Namespace) -> dict[str, Any]:
    names = {field.name for field in fields(Slurm)}
    return {name: value for name, value in vars(args).items() if name in names and value is not None}


def _definition(args: argparse.Namespace) -> Definition:
    """Of the file and the flags.

    Raises:
        ValueError: they make no experiment.
    """
    content = read_definition(args.e) if args.e is not None else {}
    known = {field.name for field in fields(Definition)}
    content |= {name: value for name, value in vars(args).items() if name in known and value is not None}
    content["slurm"] = {**content.get("slurm", {}), **_slurm_options(args)}
    if args.folds == ["all"]:
        content.pop("folds")
    check_definition(content, "command line")
    return Definition.from_content(content)


def _start(experiment: Experiment, args: argparse.Namespace, names: list[str] | None = None) -> int:
    """Run what is not done, unless it runs already."""
    _check_is_same(experiment)
    if getattr(args, "dry_run", False):
        print(estimate_table(experiment, _todo(experiment, with_queue(states(experiment)), names)))
        return 0
    experiment.folder.mkdir(parents=True, exist_ok=True)
    with only_starter(experiment.folder):
        experiment.save()
        found = with_queue(states(experiment))
        todo = _todo(experiment, found, names)
        for job in experiment.jobs:
            if job.name in todo:
                experiment.file_of(job.name, ".stop").unlink(missing_ok=True)
                update_state(experiment, job, state=WAITING, reason="", cancelled=False)
        _say_what_starts(found, todo)
        if args.on == "slurm":
            queued = {name: str(state["slurm_id"]) for name, state in found.items() if _is_queued(state)}
            numbers = submit(experiment, todo, queued)
            print(f"{len(numbers)} jobs submitted; see: braintum_run status {experiment.folder}")
            return 0
        found, interrupted = _run_here(experiment, todo, found, args.at_once)
    print(status_table(experiment, found))
    if interrupted:
        print("interrupted; the same command goes on", file=sys.stderr)
        return 130
    complete = all(state["state"] == DONE and not state.get("reason") for state in found.values())
    return 0 if complete else EXIT_SOME_FAILED


def _todo(experiment: Experiment, found: dict[str, State], names: list[str] | None) -> list[str]:
    """Of the jobs that are asked for, those that are not done and do not run or wait."""
    wanted = names or [job.name for job in experiment.jobs]
    return [name for name in wanted if found[name]["state"] not in (DONE, RUNNING, SUBMITTED)]


def _is_queued(state: State) -> bool:
    return state["state"] in (RUNNING, SUBMITTED) and "slurm_id" in state


def _check_is_same(experiment: Experiment) -> None:
    """Refuse to mix results of different settings under one name.

    Raises:
        ValueError: naming what differs.
    """
    if not experiment.definition or not (experiment.folder / EXPERIMENT_FILE).is_file():
        return
    earlier = Experiment.load(experiment.folder)
    if differing := definition_differs(earlier, Definition.from_content(experiment.definition)):
        told = ", ".join(f"{name}: {earlier.definition[name]}" for name in differing)
        raise ValueError(
            f"{experiment.folder} was started with other settings ({told}); repeat those, or give another --name and "
            "another nnUNet_results, where trainings of the same name would be taken for done"
        )


def _say_what_starts(found: dict[str, State], todo: list[str]) -> None:
    done = sum(state["state"] == DONE for state in found.values())
    again = [name for name in todo if found[name].get("attempts")]
    others = len(found) - done - len(todo)
    print(f"{len(found)} jobs: {done} are done, {len(todo)} to run, {others} run, wait or are not asked for")
    for name in again:
        print(f"again: {name} ({found[name]['state']}: {found[name].get('reason') or 'no reason known'})")


def _run_here(
    experiment: Experiment, todo: list[str], found: dict[str, State], at_once: int | None
) -> tuple[dict[str, State], bool]:
    """Run jobs on this machine, and those that an earlier command left running; the states then, and if interrupted."""
    asked: list[bool] = []

    def stop() -> bool:
        if asked and not asked[-1] and ask_once("Stop? Trainings write a checkpoint; the same command goes on."):
            asked[-1] = True
        elif asked and not asked[-1]:
            asked.clear()
        return bool(asked)

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: asked.append(bool(asked))),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: asked.append(True)),
    }
    try:
        live = [name for name, state in found.items() if state["state"] == RUNNING]
        local = LocalRun(experiment, [*todo, *live], at_once, lambda line: print(line, flush=True))
        return local.run(stop), bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _show(experiment: Experiment, watch: bool) -> int:
    while True:
        found = with_queue(states(experiment))
        print(("\033[2J\033[H" if watch and sys.stdout.isatty() else "") + status_table(experiment, found), flush=True)
        if not watch or not any(state["state"] in (RUNNING, SUBMITTED) for state in found.values()):
            return EXIT_SOME_FAILED if any(state["state"] in (FAILED, LOST) for state in found.values()) else 0
        time.sleep(_WATCH_SECONDS)


def _cancel(experiment: Experiment, names: list[str]) -> int:
    found = with_queue(states(experiment))
    queued = []
    for job in experiment.jobs:
        state = found[job.name]
        if job.name not in names or state["state"] == DONE:
            continue
        if state["state"] == RUNNING:
            update_state(experiment, job, cancelled=True)
            experiment.file_of(job.name, ".stop").touch()
            print(f"{job.name}: asked to stop")
            continue
        if state["state"] == SUBMITTED:
            queued.append(str(state["slurm_id"]))
        update_state(experiment, job, state=CANCELLED, reason="by braintum_run cancel", cancelled=True)
        print(f"{job.name}: cancelled")
    cancel_in_queue(queued)
    return 0


def main() -> int:
    """Console script."""
    return run_command(run)


if __name__ == "__main__":
    raise SystemExit(main())
