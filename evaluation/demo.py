"""``braintum_demo``: the main job end to end, with the commands that a user types."""

import argparse
import os
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from braintum.commands.command import run_command
from braintum.commands.stages import Stages, duration
from braintum.evaluation.demo_stages import DATASET_ID, NUM_SLICES, PLANS, Demo, run_stages

_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
_MARKER = ".braintum_demo"
_SLICES_PER_PROCESS = 500
"""A process takes as long to start as to do this many slices."""

# seconds on two cores, to tell the user what to expect
_ONCE, _PER_SLICE, _PER_PIXEL = 75, 0.25, 4e-5
_FIELD_OF_VIEW = 251
"""Edge of Figshare's slices in mm."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="braintum_demo",
        description="Convert, plan, preprocess, train, predict the held-out fold, and show its figures and a picture "
        "of some cases; on synthetic head phantoms, or on the Figshare data set in its original layout. Everything "
        "lands in one folder.",
    )
    parser.add_argument("--data", type=Path, help="folder of the Figshare .mat files; default: synthetic phantoms")
    parser.add_argument("--out", type=Path, default=Path("demo_output"), help="default: %(default)s")
    parser.add_argument("--fold", type=int, default=0, help="held-out fold; default: %(default)s")
    parser.add_argument("--epochs", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--iterations", type=int, default=30, help="per epoch; default: %(default)s")
    parser.add_argument("--spacing", type=float, default=2.6, help="target spacing in mm; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: CUDA where there is one")
    parser.add_argument("--verbose", action="store_true", help="show what the other commands say, and no bar")
    return parser


def demo(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_demo -h``."""
    args = build_parser().parse_args(argv)
    started = time.monotonic()
    num_slices = NUM_SLICES if args.data is None else _count_slices(args.data, args.out)
    show = Demo(
        out=_fresh_folder(_from_here(args.out)),
        data=args.data,
        fold=args.fold,
        epochs=args.epochs,
        iterations=args.iterations,
        spacing=args.spacing,
        device=args.device or _default_device(),
        num_slices=num_slices,
    )
    for name in _FOLDERS:
        (show.out / name).mkdir()
        os.environ[name] = str(show.out.resolve() / name)  # nnU-Net, in this process too, looks there
    stages = Stages(show.out / "log.txt", _environment(show, args.seed), args.verbose)
    what = "slices of synthetic phantoms" if args.data is None else f"slices from {args.data}"
    log = "" if args.verbose else f"; what the tools say, in {stages.log_file}"
    print(
        f"{show.num_slices} {what}, about {_expected_minutes(show)} minutes on 2 cores.\n"
        f"Everything lands in {show.out}{log}.\n",
        flush=True,
    )
    summary = run_stages(show, stages)
    print(
        f"\nAll of it took {duration(time.monotonic() - started)}.\n\n{headlines(show, summary)}\n\n{what_next(show)}"
    )
    return 0


def _count_slices(data: Path, out: Path) -> int:
    """How many slices the data set has.

    Raises:
        ValueError: none, or they lie in the folder that is going to be emptied.
    """
    if data.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"{data} lies in {out}, which is emptied first; choose another folder with --out")
    num_slices = sum(1 for _ in data.rglob("[0-9]*.mat"))
    if num_slices == 0:
        raise ValueError(
            f"{data} holds no slices (1.mat, 2.mat, …); name the folder that Figshare's files are unzipped in"
        )
    return num_slices


def _fresh_folder(out: Path) -> Path:
    """``out``, emptied if an earlier demonstration wrote it.

    Raises:
        ValueError: it holds something else.
    """
    if out.exists() and any(out.iterdir()):
        if not (out / _MARKER).is_file():
            raise ValueError(f"{out} is not empty and was not written by braintum_demo; choose another with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / _MARKER).touch()
    return out


def _from_here(path: Path) -> Path:
    """Relative to the working directory where it lies in it; else absolute."""
    absolute = Path(os.path.abspath(path))  # not resolved: the interpreter of a virtual environment is a link
    return absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute


def _default_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _environment(show: Demo, seed: int) -> dict[str, str]:
    processes = min(4, os.cpu_count() or 1)
    return {
        # threads that wait must not keep the cores busy: with other programs beside it, training takes thrice the time
        "OMP_WAIT_POLICY": "passive",
        **os.environ,
        "nnUNet_def_n_proc": str(max(1, min(processes, show.num_slices // _SLICES_PER_PROCESS))),
        "nnUNet_n_proc_DA": str(processes),
        "braintum_num_epochs": str(show.epochs),
        "braintum_num_iterations_per_epoch": str(show.iterations),
        "braintum_seed": str(seed),
    }


def _expected_minutes(show: Demo) -> int:
    batches = 1.2 * show.epochs * show.iterations  # with those of the validation
    pixels = (_FIELD_OF_VIEW / show.spacing) ** 2
    return max(1, round((_ONCE + _PER_SLICE * show.num_slices + _PER_PIXEL * pixels * batches) / 60))


def headlines(show: Demo, summary: Mapping[str, Any]) -> str:
    """The table of the held-out fold, under its title."""
    from braintum.evaluation.metrics.statistics import MIN_CLUSTERS
    from braintum.evaluation.results.tables import headline_table

    title = f"Fold {show.fold}, which training has not seen: {summary['num_cases']} slices"
    if summary["num_patients"] is not None:
        title += f" of {summary['num_patients']} patients"
    if summary["num_clusters"] < MIN_CLUSTERS:
        title += f"; no intervals, which need {MIN_CLUSTERS} patients"
    return f"{title}\n\n{headline_table(summary, title).text('simple')}"


def what_next(show: Demo) -> str:
    """Commands to go on with, as a shell takes them in the working directory."""
    model = "-d", str(DATASET_ID), "-p", PLANS, "-c", "2d"
    variables = [f"{name}={_in_shell(show.out / name)}" for name in _FOLDERS]
    programs = Path(sys.executable).parent
    if (found := shutil.which("braintum_report")) is None or Path(found).parent != programs:
        variables.append(f"PATH={_in_shell(_from_here(programs))}:$PATH")
    images = "-i", str(show.images)
    explanations, again = show.out / "explanations", show.out / "again"
    return "\n".join(
        (
            f"Look at {show.picture}. What to type next:\n",
            f"export {' '.join(variables)}",
            "# all figures, curves and pictures on one page",
            shlex.join(("braintum_report", *model, "-o", str(show.out / "report.html"))),
            "# where in the image the class is seen",
            shlex.join(("braintum_explain", *images, "-o", str(explanations), *show.model_arguments, "--limit", "5")),
            "# mask and class of images of your own: name your folder of CASE_0000.nii.gz instead",
            shlex.join(("braintum_predict", *images, "-o", str(again), *show.model_arguments)),
        )
    )


def _in_shell(path: Path) -> str:
    """A path that stays right after ``cd``."""
    return shlex.quote(str(path)) if path.is_absolute() else f'"$PWD"/{shlex.quote(str(path))}'


def main() -> int:
    """Console script."""
    return run_command(demo)
