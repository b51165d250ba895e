"""``braintum_paper``: the systems of a paper, trained and evaluated as its tables list them."""

import argparse
import os
import sys
import time
from pathlib import Path

from braintum.commands.command import EXIT_SOME_FAILED, run_command
from braintum.commands.errors import CommandError
from braintum.commands.model_arguments import dataset_name, held_out_fold
from braintum.commands.stages import Stages, duration
from braintum.conversion.files.atomic import atomic_path
from braintum.trainers.recipes.settings import SPLIT_BY

_PAPERS = ("000", "001", "002", "003", "004")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="braintum_paper",
        description="Plan, train and evaluate the systems and baselines that a paper's tables list, and print the "
        "tables with our figures below the published ones. What is done already is not done again, so the same command "
        "goes on where it was stopped. Models and tables land in a folder of their own.",
    )
    parser.add_argument("paper", choices=_PAPERS, help="number of the paper, as braintum_trainers' page lists them")
    parser.add_argument("-d", required=True, metavar="DATASET", help="data-set name or id")
    parser.add_argument(
        "-f", "--folds", nargs="+", type=held_out_fold, metavar="FOLD", help="default: those that the paper trains"
    )
    parser.add_argument(
        "--epochs-fraction",
        type=float,
        default=1.0,
        metavar="F",
        help="train for this part of the paper's epochs, such as 0.02 on a CPU; the tables' titles say it; "
        "default: %(default)g",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=SPLIT_BY,
        help="how folds are made: those of the data set (patient), the same with copies on both sides (official), "
        "of single images, as some papers do (image), or by patient and group of copies instead of the data set's "
        "(group); default: the paper's, and one that keeps patients and copies on one side",
    )
    parser.add_argument("--systems", nargs="+", metavar="NAME", help="of the paper's tables; default: all")
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="default: paper_NUMBER_FRACTION in nnUNet_results")
    parser.add_argument(
        "-gpu_memory_target", type=float, metavar="GB", help="of the planners; default: what the paper's batch takes"
    )
    parser.add_argument("-device", default=None, help="cpu, cuda or mps; default: CUDA where there is one")
    parser.add_argument("--verbose", action="store_true", help="show what the other commands say, and no bar")
    return parser


def paper(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_paper -h``.

    Returns:
        0, or 3 where some systems could not be run.

    Raises:
        ValueError: a fraction, fold or system that is not there, or nnU-Net's folders are not set.
    """
    args = build_parser().parse_args(argv)
    if not 0 < args.epochs_fraction <= 1:
        raise ValueError(f"--epochs-fraction {args.epochs_fraction:g}: give a number above 0 and up to 1")

    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results  # late: "-h" should answer at once

    from braintum.inference.prediction.devices import usable_device
    from braintum.trainers.reproduction.registry import REPRODUCTIONS
    from braintum.trainers.reproduction.runs import Outcome, Run, run_system
    from braintum.trainers.reproduction.tables import tables_text

    for variable in (nnUNet_raw, nnUNet_preprocessed, *([] if args.o else [nnUNet_results])):
        if not variable.is_set():
            raise ValueError("nnUNet_raw, nnUNet_preprocessed and nnUNet_results have to be set (or -o instead)")
    reproduction = REPRODUCTIONS[args.paper]
    names = args.systems or list(reproduction.systems)
    if unknown := [name for name in names if name not in reproduction.systems]:
        raise ValueError(f"paper {args.paper} has no {', '.join(unknown)}; it has {', '.join(reproduction.systems)}")
    dataset = dataset_name(args.d)
    out = args.o or Path(nnUNet_results) / f"paper_{args.paper}_{args.epochs_fraction:g}"
    out.mkdir(parents=True, exist_ok=True)
    run = Run(
        dataset=dataset,
        raw=Path(nnUNet_raw) / dataset,
        preprocessed=Path(nnUNet_preprocessed) / dataset,
        out=out,
        folds=tuple(args.folds or reproduction.folds),
        fraction=args.epochs_fraction,
        device=str(usable_device(args.device)),
        gpu_memory_target=args.gpu_memory_target,
    )
    stages = Stages(out / "log.txt", os.environ, args.verbose)
    print(f"{reproduction.paper.citation}\nThe paper's data: {reproduction.data}\n", flush=True)
    started = time.monotonic()
    splits = args.splits or reproduction.splits
    outcomes: dict[str, dict[str, Outcome]] = {}
    failed, text = [], ""
    for name in names:
        try:
            outcomes[name] = run_system(run, name, reproduction.systems[name], splits, stages)
        except CommandError as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr, flush=True)
        text = tables_text(reproduction, outcomes, dataset, run.folds, run.fraction)
        with atomic_path(out / "tables.md") as partial:
            partial.write_text(text, encoding="utf-8")
    print(f"\nAll of it took {duration(time.monotonic() - started)}.\n\n{text}\nwritten to {out / 'tables.md'}")
    if failed:
        print(f"not done: {', '.join(failed)}; the same command tries them again", file=sys.stderr)
    return EXIT_SOME_FAILED if failed else 0


def main() -> int:
    """Console script."""
    return run_command(paper)
