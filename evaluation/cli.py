"""``braintum_evaluate``: figures of predictions, of the folds of a model, or of several models side by side."""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from braintum.commands.command import EXIT_SOME_FAILED, run_command
from braintum.commands.model_arguments import results_folder
from braintum.conversion.files.parallel import default_processes
from braintum.evaluation.stress.stress_cli import add_arguments as add_stress_arguments
from braintum.evaluation.stress.stress_cli import check_arguments as check_stress_arguments
from braintum.evaluation.stress.stress_cli import run_stress

if TYPE_CHECKING:
    from braintum.evaluation.results.predictions import Predictions


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
    model.add_argument("-f", nargs="+", type=int, help="folds; default: all that are validated")
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
    sources = _folders(args) if args.d is None else _models(args)
    if len(sources) > 1 and args.o is None:
        raise ValueError("several models need a folder for their comparison: give -o")

    from braintum.evaluation.results.case_table import case_table
    from braintum.evaluation.results.comparison import compare, comparison_tables
    from braintum.evaluation.results.results import write_comparison, write_evaluation
    from braintum.evaluation.results.summary import summarise_table
    from braintum.evaluation.results.tables import tables_of

    if args.ensembles:
        sources += _ensembles(sources, args)
    tables = [case_table(predictions, args.np, strict=False) for predictions, _ in sources]
    # models are compared on the same cases
    failed = {case: fault for table in tables for case, fault in table.predictions.failed.items()}
    tables = [table.without(failed) for table in tables] if failed else tables
    summaries = []
    for table, (_, output) in zip(tables, sources, strict=True):
        summary = summarise_table(table, args.resamples)
        write_evaluation(table, summary, output)
        summaries.append(summary)
        if args.find_postprocessing:
            _find_postprocessing(table.predictions, output, args.np)
    if len(sources) == 1:
        shown = tables_of(summaries[0])
    else:
        comparison = compare(tables, summaries, args.best, args.resamples)
        shown = comparison_tables(comparison, len(tables[0].cases))
        write_comparison(comparison, shown, args.o)
    for part in shown:
        print(f"{part.title}\n\n{part.text('simple')}\n")
    print("written to " + ", ".join(str(output) for _, output in sources))
    for case, fault in failed.items():
        print(f"not evaluated: {case}: {fault}", file=sys.stderr)
    return EXIT_SOME_FAILED if failed else 0


def _folders(args: argparse.Namespace) -> "list[tuple[Predictions, Path]]":
    from braintum.evaluation.results.predictions import predictions_in_folder

    found = [
        predictions_in_folder(Path(folder), args.g, args.djfile, args.cases, args.partial, strict=False)
        for folder in args.p
    ]
    several = len(found) > 1
    outputs = [
        args.o / predictions.name if several and args.o else args.o or Path(folder)
        for predictions, folder in zip(found, args.p, strict=True)
    ]
    return list(zip(found, outputs, strict=True))


def _model_folders(args: argparse.Namespace) -> list[Path]:
    if args.c is None:
        raise ValueError("which configuration? Give -c, such as -c 2d")
    folders = [
        results_folder(args.d, trainer, plans, configuration)
        for trainer, plans, configuration in itertools.product(args.tr, args.p, args.c)
    ]
    existing = [folder for folder in folders if folder.is_dir()]
    if not existing:
        raise FileNotFoundError(
            f"no trained model at {', '.join(str(folder) for folder in folders)}; check -d -tr -p -c"
        )
    return existing


def _models(args: argparse.Namespace) -> "list[tuple[Predictions, Path]]":
    from nnunetv2.utilities.file_path_utilities import folds_tuple_to_string

    from braintum.evaluation.results.predictions import predictions_of_folds

    existing = _model_folders(args)
    found = [predictions_of_folds(folder, args.f, args.cases, strict=False) for folder in existing]
    outputs = []
    for predictions, folder in zip(found, existing, strict=True):
        folds = tuple(sorted(set(predictions.fold_of_case.values())))
        default = folder / f"crossval_results_folds_{folds_tuple_to_string(folds)}"
        outputs.append(default if args.o is None else args.o / predictions.name if len(existing) > 1 else args.o)
    return list(zip(found, outputs, strict=True))


def _ensembles(
    sources: "Sequence[tuple[Predictions, Path]]", args: argparse.Namespace
) -> "list[tuple[Predictions, Path]]":
    from braintum.evaluation.results.ensembles import can_be_ensembled, ensemble

    found = []
    for (first, _), (second, _) in itertools.combinations(sources, 2):
        output = args.o / f"ensemble___{first.name}___{second.name}"
        if can_be_ensembled((first, second)):
            found.append((ensemble((first, second), output, args.np), output))
        else:
            print(
                f"no ensemble of {first.name} and {second.name}: voxel probabilities are missing; predict with "
                "--save_probabilities, or train with --npz (nnUNetv2_train ... --val --npz for trained folds)"
            )
    return found


def _find_postprocessing(predictions: "Predictions", output: Path, n_processes: int) -> None:
    from braintum.evaluation.results.find_postprocessing import collect_masks, find_postprocessing

    if not predictions.fold_of_case:  # an ensemble: nnU-Net's rules belong to one model
        return
    model_folder = next(iter(predictions.masks.values())).parents[2]
    collect_masks(predictions, model_folder, output)
    rules = find_postprocessing(output, next(iter(predictions.references.values())).parent, n_processes)
    print(f"post-processing that helps {predictions.name}: {'; '.join(rules) or 'none'}")


def main() -> int:
    """Console script."""
    return run_command(evaluate)
