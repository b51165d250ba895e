"""``braintum_report``: one self-contained HTML page about a trained model, or about several side by side."""

import argparse
import sys
from pathlib import Path

from braintum.commands.command import run_command
from braintum.commands.model_arguments import held_out_fold, no_model_at, results_folder
from braintum.commands.provenance import command_line
from braintum.conversion.files.parallel import default_processes


def build_parser() -> argparse.ArgumentParser:
    """The command line; flags are named as nnU-Net's."""
    parser = argparse.ArgumentParser(
        prog="braintum_report",
        description="One self-contained HTML page about a trained model: what was trained on what, figures with "
        "intervals, curves, the best, median and worst cases as pictures, failures, and what the other commands found. "
        "Reads what braintum_evaluate wrote into the model's folder; where that is missing or older than the "
        "predictions, it evaluates first. Several models (-tr or -m) are compared on the same cases: bars with "
        "intervals, tests of the differences, folds, curves together, and overlays side by side.",
    )
    model = parser.add_argument_group("the model: -d -p -tr -c, or -m")
    model.add_argument("-d", metavar="DATASET", help="data-set name or id")
    model.add_argument("-p", default="BrainTumPlans", help="plans identifier; default: %(default)s")
    model.add_argument(
        "-tr",
        nargs="+",
        default=["nnUNetTrainerMultiTask"],
        metavar="TRAINER",
        help="several are compared; default: nnUNetTrainerMultiTask",
    )
    model.add_argument("-c", help="configuration, such as 2d or 3d_fullres")
    model.add_argument(
        "-m", type=Path, nargs="+", metavar="MODEL_FOLDER", help="folder of a trained model; several are compared"
    )
    parser.add_argument(
        "-f", nargs="+", type=held_out_fold, metavar="FOLD", help="folds; default: all that are validated"
    )
    parser.add_argument(
        "-o",
        type=Path,
        metavar="FILE",
        help="default: report.html beside the evaluation; of several models comparison.html in the folder of the first "
        "one's data set",
    )
    parser.add_argument(
        "--evaluation",
        type=Path,
        metavar="FOLDER",
        help="what braintum_evaluate -o wrote; default: crossval_results_folds_X in the model's folder",
    )
    parser.add_argument(
        "--explanations",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="what braintum_explain wrote; several, such as one a fold, are put together",
    )
    parser.add_argument(
        "--stress",
        type=Path,
        metavar="FILE",
        help="stress.json; default: that of braintum_evaluate --stress in the model's folder, if it is there",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="calibration.json; default: that of braintum_calibrate in the model's folder, if it is there",
    )
    parser.add_argument("--audit", type=Path, metavar="FILE", help="audit.json of braintum_audit")
    parser.add_argument(
        "--cases", type=int, default=3, metavar="N", help="pictures of each group of cases; default: %(default)s"
    )
    parser.add_argument("--resamples", type=int, default=1000, help="if it evaluates; default: %(default)s")
    parser.add_argument("-np", type=int, default=default_processes(), help="processes; default: %(default)s")
    return parser


def report(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_report -h``."""
    args = build_parser().parse_args(argv)
    if (args.m is None) == (args.d is None):
        raise ValueError("which model? Give either -d (with -p -tr -c) or -m")
    if args.d is not None and args.c is None:
        raise ValueError("which configuration? Give -c, such as -c 2d")
    if args.cases < 1:
        raise ValueError(f"--cases {args.cases}: at least 1 is needed")
    if args.resamples < 100:
        raise ValueError(f"--resamples {args.resamples}: fewer than 100 give no 95 % interval")
    folders = args.m or [results_folder(args.d, trainer, args.p, args.c) for trainer in args.tr]
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise no_model_at(missing, f"check {'-m' if args.d is None else '-d -p -tr -c'}")
    command = command_line(["braintum_report", *(sys.argv[1:] if argv is None else argv)])
    if len(folders) > 1:
        return _compare(args, folders, command)
    (model_folder,) = folders

    from braintum.evaluation.report.page import render_report
    from braintum.evaluation.report.report import gather_report

    gathered = gather_report(
        model_folder,
        args.f,
        args.evaluation,
        args.calibration,
        args.stress,
        args.audit,
        args.explanations,
        args.np,
        args.resamples,
    )
    output = args.o or gathered.evaluation_folder / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    _write(render_report(gathered, output, args.cases, command), output)
    return 0


def _compare(args: argparse.Namespace, folders: list[Path], command: str) -> int:
    """Several models on one page.

    Raises:
        ValueError: options that are about one model, or a model twice.
    """
    of_one = {
        "--evaluation": args.evaluation,
        "--explanations": args.explanations,
        "--stress": args.stress,
        "--calibration": args.calibration,
        "--audit": args.audit,
    }
    if given := [flag for flag, value in of_one.items() if value]:
        raise ValueError(f"{', '.join(given)}: of one model only; leave it away where several are compared")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ValueError("a model is named twice; name each once")

    from braintum.evaluation.report.comparison_page import render_comparison
    from braintum.evaluation.report.report import gather_report

    gathered = [gather_report(folder, args.f, n_processes=args.np, num_resamples=args.resamples) for folder in folders]
    output = args.o or folders[0].parent / "comparison.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    _write(render_comparison(gathered, args.cases, command, args.resamples), output)
    return 0


def _write(page: str, output: Path) -> None:
    from braintum.conversion.files.atomic import atomic_path

    with atomic_path(output) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")
    print(f"written to {output} ({output.stat().st_size / 1e6:.1f} MB)")


def main() -> int:
    """Console script."""
    return run_command(report)
