"""``braintum_evaluate``: figures of predictions, of the folds of a model, or of several models side by side."""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

from braintum.commands.command import EXIT_SOME_FAILED, run_command
from braintum.commands.model_arguments import held_out_fold, no_model_at, results_folder
from braintum.conversion.files.parallel import default_processes
from braintum.evaluation.stress.stress_cli import add_arguments as add_stress_arguments
from braintum.evaluation.stress.stress_cli import check_arguments as check_stress_arguments
from braintum.evaluation.stress.stress_cli import run_stress


def build_parser() -> argparse.ArgumentParser:
    """The command line; flags are named as nnU-Net's."""
    parser = argparse.ArgumentParser(
        prog="braintum_evaluate",
        description="Evaluate masks and classes: a folder of predictions against the truth (-p -g), the validation of "
        "all folds of a trained model (-d -tr -p -c), or several of either side by side. Writes summary.json "
        "(nnU-Net's, with more in it), cases.csv, tables.md, tables.tex and macros.tex. Intervals come from a "
        "bootstrap over patients. With --stress: how a model's figures fall when images get worse.",
    )
    parser.add_argument(
        "-p",
        nargs="+",
        required=True,
        metavar="P",
        help="with -g: folder of predictions, or several; with -d: plans identifier, or several",
    )
    folder = parser.add_argument_group("folders of predictions")
    folder.add_argument("-g", type=Path, metavar="FOLDER", help="true segmentations, such as labelsTs")
    folder.add_argument("-djfile", type=Path, help="dataset.json; default: of the predictions, or beside -g")
    folder.add_argument("--partial", action="store_true", help="evaluate what is predicted, although cases are missing")
    model = parser.add_argument_group("trained models; all combinations of -tr -p -c that exist")
    model.add_argument("-d", metavar="DATASET", help="data-set name or id")
    model.add_argument("-tr", nargs="+", default=["nnUNetTrainerMultiTask"], help="default: nnUNetTrainerMultiTask")
    model.add_argument("-c", nargs="+", help="configuration, such as 2d or 3d_fullres")
    model.add_argument(
        "-f", nargs="+", type=held_out_fold, metavar="FOLD", help="folds; default: all that are validated"
    )
    model.add_argument(
        "--find_postprocessing",
        action="store_true",
        help="look for nnU-Net's post-processing on the merged folds; braintum_postprocess applies it",
    )
    parser.add_argument("--cases", type=Path, help="cases.csv with classes and patients; default: the data set's")
    parser.add_argument("--ensembles", action="store_true", help="also pairs of models, where probabilities were saved")
    parser.add_argument(
        "-best", choices=("Dice", "macro_f1", "joint"), default="joint", help="criterion; default: %(default)s"
    )
    parser.add_argument(
        "-o",
        type=Path,
        metavar="OUTPUT",
        help="default: the folder of predictions, or crossval_results_folds_X in the model's; several need one",
    )
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap; default: %(default)s")
    parser.add_argument("-np", type=int, default=default_processes(), help="processes; default: %(default)s")
    add_stress_arguments(parser)
    return parser


def evaluate(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_evaluate -h``.

    Returns:
        0, or 3 where some cases could not be evaluated.
    """
    args = build_parser().parse_args(argv)
    check_stress_arguments(args)
    if not args.stress and (args.g is None) == (args.d is None):
        raise ValueError("give either -g (predictions in folders) or -d (trained models)")
    if args.find_postprocessing and args.d is None:
        raise ValueError("--find_postprocessing looks at the validation of a trained model: give -d -tr -p -c")
    if args.resamples < 100:
        raise ValueError(f"--resamples {args.resamples}: fewer than 100 give no 95 % interval")
    if args.stress:
        return run_stress(args, *_model_folders(args))

    from braintum.evaluation import api

    shared: dict[str, Any] = {
        "output": args.o,
        "cases": args.cases,
        "ensembles": args.ensembles,
        "criterion": args.best,
        "num_resamples": args.resamples,
        "num_processes": args.np,
    }
    if args.d is None:
        outcome = api.evaluate(args.p, args.g, dataset_json=args.djfile, partial=args.partial, **shared)
    else:
        outcome = api.evaluate_models(
            _model_folders(args), folds=args.f, look_for_postprocessing=args.find_postprocessing, **shared
        )
    for first, second in outcome.not_ensembled:
        print(
            f"no ensemble of {first} and {second}: voxel probabilities are missing; predict with --save_probabilities, "
            "or train with --npz (nnUNetv2_train ... --val --npz for trained folds)"
        )
    for name, rules in outcome.postprocessing.items():
        print(f"post-processing that helps {name}: {'; '.join(rules) or 'none'}")
    for table in outcome.tables:
        print(f"{table.title}\n\n{table.text('simple')}\n")
    print("written to " + ", ".join(str(folder) for folder in outcome.folders.values()))
    for case, fault in outcome.failed.items():
        print(f"not evaluated: {case}: {fault}", file=sys.stderr)
    return EXIT_SOME_FAILED if outcome.failed else 0


def _model_folders(args: argparse.Namespace) -> list[Path]:
    if args.c is None:
        raise ValueError("which configuration? Give -c, such as -c 2d")
    folders = [
        results_folder(args.d, trainer, plans, configuration)
        for trainer, plans, configuration in itertools.product(args.tr, args.p, args.c)
    ]
    existing = [folder for folder in folders if folder.is_dir()]
    if not existing:
        raise no_model_at(folders, "check -d -tr -p -c")
    return existing


def main() -> int:
    """Console script."""
    return run_command(evaluate)
