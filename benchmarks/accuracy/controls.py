"""Two controls of the whole pipeline: what it scores by chance, and how much a leaking split flatters it.

    python benchmarks/accuracy/controls.py permuted -d 511 -p BrainTumPlans -o OUTPUT [-tr …] [-f 0] [-seconds 360]
    python benchmarks/accuracy/controls.py leaky -source BRISC_FOLDER -o OUTPUT [-tr …] [-seconds 360]

permuted trains a model with braintum_permuted_labels: the classes of the training patients are permuted, those of the
held-out fold are true. Its accuracy and macro-F1 have to lie where permutations of the held-out labels do; if they do
not, something tells the model the class of a held-out case that the images do not. -honest sets a model of the same
budget with true labels beside it. Needs a preprocessed data set, as train_papers.py does.

leaky converts a source with an official test part (BRISC 2025: copies of training slices, mirrored ones too, are in
it), plans and preprocesses it once, and trains the same trainer twice with the same budget: on the official split, and
on one with about as many held-out cases that keeps copies together. Test cases with and without a copy in the training
part are reported apart, with the share of the most frequent class: the two may differ in their classes.

Training, budget and evaluation are those of train_papers.py. Writes OUTPUT/permuted.json and permuted.md, or leaky.json
and leaky.md.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tabulate import tabulate
from train_papers import cell, train_and_evaluate

from braintum.conversion.files.atomic import atomic_path, write_json_atomic
from braintum.conversion.format.cases import CASES_FILE, Case, read_cases
from braintum.conversion.format.splits import SPLITS_FILE, Splits, find_crossings, patient_splits, tied_cases

OFFICIAL, HONEST = 0, 1
"""Folds of the two splits in splits_final.json."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    permuted = commands.add_parser("permuted", help="the chance level of the pipeline")
    permuted.add_argument("-d", required=True, help="data-set id")
    permuted.add_argument("-f", type=int, default=0, help="fold; default: %(default)s")
    permuted.add_argument("-permutation", type=int, default=0, help="seed of the permutation; default: %(default)s")
    permuted.add_argument("-honest", type=Path, help="folder of a model with true labels, to set beside it")
    permuted.set_defaults(run=run_permuted)
    leaky = commands.add_parser("leaky", help="the official split of a source against an honest one")
    leaky.add_argument("-source", type=Path, required=True, help="folder of the source in its original layout")
    leaky.add_argument("-kind", default="brisc", choices=("brisc",), help="of the source; default: %(default)s")
    leaky.add_argument("-d", default="998", help="data-set id to convert to; default: %(default)s")
    leaky.add_argument("-pl", default="BrainTumPlannerLight", help="planner; default: %(default)s")
    leaky.add_argument("-spacing", type=float, nargs=2, help="target spacing in pixels, such as 4 4")
    leaky.set_defaults(run=run_leaky)
    for command, plans in ((permuted, "BrainTumPlans"), (leaky, "BrainTumLightPlans")):
        command.add_argument("-p", default=plans, help="plans; default: %(default)s")
        command.add_argument("-c", default="2d", help="configuration; default: %(default)s")
        command.add_argument("-tr", default="nnUNetTrainerMultiTask", help="trainer; default: %(default)s")
        command.add_argument("-o", type=Path, required=True, help="output folder")
        command.add_argument("-seconds", type=float, default=360, help="of each training; default: %(default)s")
        command.add_argument("-epochs", type=int, default=20, help="that the budget is divided into")
        command.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    return parser


def main() -> None:
    args = build_parser().parse_args()
    args.o = args.o.resolve()
    args.o.mkdir(parents=True, exist_ok=True)
    os.environ["nnUNet_results"] = str(args.o / "nnUNet_results")  # noqa: SIM112  nnU-Net's own spelling
    if args.device == "cpu":
        os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112  the budget is processor time, augmentation included
    args.run(args)


def train(args: argparse.Namespace, fold: int) -> dict[str, Any]:
    """Row of one training, as of train_papers.py, in a process of its own."""
    given = argparse.Namespace(**{**vars(args), "f": fold, "run": None})
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(train_and_evaluate, args.tr, given).result()


def table_of(model: Path, fold: int) -> Any:
    """Every figure of the held-out cases of a fold."""
    from braintum.evaluation.results.case_table import case_table
    from braintum.evaluation.results.predictions import predictions_of_folds

    return case_table(predictions_of_folds(model, [fold]))


def trained_model(args: argparse.Namespace, results: Path) -> Path:
    return next(results.glob(f"Dataset*/{args.tr}__{args.p}__{args.c}"))


# ---------------------------------------------------------------------- permuted labels


def run_permuted(args: argparse.Namespace) -> None:
    """Train on permuted labels and write what that scores."""
    from braintum.evaluation.results.label_permutation import chance_level

    os.environ["braintum_permuted_labels"] = str(args.permutation)  # noqa: SIM112
    row = train(args, args.f)
    models = {"permuted labels": trained_model(args, args.o / "nnUNet_results" / f"permuted_labels_{args.permutation}")}
    if args.honest is not None:
        models["true labels"] = args.honest
    levels = {name: chance_level(table_of(model, args.f)) for name, model in models.items()}
    write_json_atomic(args.o / "permuted.json", {"training": row, "command": " ".join(sys.argv), **levels})
    header = ("trained on", "figure", "value", "chance", "95 % of permutations", "p", "majority", "cases", "units")
    rows = [
        [
            *(name, figure, cell(level[figure]["value"]), cell(level[figure]["chance"])),
            *(f"{level[figure]['low']:.3f} to {level[figure]['high']:.3f}", cell(level[figure]["p_value"])),
            *(cell(level["majority_rate"]), level["num_cases"], level["num_units"]),
        ]
        for name, level in levels.items()
        for figure in ("accuracy", "balanced_accuracy", "macro_f1")
    ]
    heading = (
        f"Data set {args.d}, {args.tr}, fold {args.f}, {args.seconds:g} s of training, {row['iterations']} iterations"
    )
    write_table(args.o / "permuted.md", heading, header, rows)


# ---------------------------------------------------------------------- leaking split


def run_leaky(args: argparse.Namespace) -> None:
    """Train on the official and on the honest split and write both."""
    os.environ["braintum_allow_leaks"] = "1"  # noqa: SIM112
    dataset = prepare(args)
    cases = read_cases(dataset / CASES_FILE)
    splits = two_splits(cases.values())
    write_json_atomic(preprocessed_folder(args, dataset) / SPLITS_FILE, splits)
    rows = {name: train(args, fold) for name, fold in (("official", OFFICIAL), ("honest", HONEST))}
    model = trained_model(args, args.o / "nnUNet_results")
    copied = with_copy_in_training(splits[OFFICIAL], cases.values())
    found = {}
    for name, fold in (("official", OFFICIAL), ("honest", HONEST)):
        table = table_of(model, fold)
        found[name] = subset_figures(table, set(table.cases))
        if fold == OFFICIAL:
            found["official, with a copy in training"] = subset_figures(table, copied)
            found["official, without"] = subset_figures(table, set(table.cases) - copied)
    content = {
        "command": " ".join(sys.argv),
        "training": rows,
        "groups_on_both_sides": len(find_crossings([splits[OFFICIAL]], cases.values())),
        "held_out": found,
        "difference": {
            metric: found["official"][metric]["value"] - found["honest"][metric]["value"]
            for metric in ("Dice", "accuracy")
        },
    }
    write_json_atomic(args.o / "leaky.json", content)
    shown = [
        [
            *(name, *(_with_interval(figures[metric]) for metric in ("Dice", "accuracy"))),
            *(cell(figures["majority rate"]), figures["cases"]),
        ]
        for name, figures in found.items()
    ]
    iterations = ", ".join(f"{name}: {row['iterations']}" for name, row in rows.items())
    heading = (
        f"{args.kind}, {args.tr}, {args.seconds:g} s of training each (iterations: {iterations}); "
        f"official minus honest: Dice {content['difference']['Dice']:+.3f}, "
        f"accuracy {content['difference']['accuracy']:+.3f}; "
        f"{content['groups_on_both_sides']} groups of copies on both sides of the official split"
    )
    write_table(args.o / "leaky.md", heading, ("held-out cases", "Dice", "accuracy", "majority", "cases"), shown)


def prepare(args: argparse.Namespace) -> Path:
    """Convert, plan and preprocess in the output folder, unless an earlier run did; returns the raw folder."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        (args.o / name).mkdir(exist_ok=True)
        os.environ[name] = str(args.o / name)
    done = args.o / "nnUNet_preprocessed" / ".prepared"
    if not done.is_file():
        spacing = ("-overwrite_target_spacing", *map(str, args.spacing)) if args.spacing else ()
        run_installed("braintum_convert", args.kind, str(args.source), "-d", args.d, "--pool", "-np", "1")
        run_installed(
            *("nnUNetv2_plan_and_preprocess", "-d", args.d, "-c", args.c, "-pl", args.pl),
            *("-fpe", "BrainTumFingerprintExtractor", "-npfp", "1", "-np", "1", *spacing),
        )
        done.touch()
    return next((args.o / "nnUNet_raw").glob(f"Dataset{int(args.d):03d}_*"))


def preprocessed_folder(args: argparse.Namespace, dataset: Path) -> Path:
    return args.o / "nnUNet_preprocessed" / dataset.name


def run_installed(*command: str) -> None:
    """Run a command that is installed beside this interpreter."""
    subprocess.run([str(Path(sys.executable).parent / command[0]), *command[1:]], check=True)


def two_splits(cases: Iterable[Case]) -> Splits:
    """The official split, by the folders that the cases came from, and an honest one of about the same size.

    Raises:
        ValueError: the source has no test part.
    """
    rows = sorted(cases, key=lambda row: row.case)
    test = {row.case for row in rows if "test" in Path(row.source).parts}
    if not 0 < len(test) < len(rows):
        raise ValueError(f"{len(test)} of {len(rows)} cases are in a test part: there is no official split")
    names = [row.case for row in rows]
    official = {"train": [name for name in names if name not in test], "val": sorted(test)}
    # pooled rows: all of them are training cases of the data set
    return [official, patient_splits(rows, n_splits=max(2, round(len(rows) / len(test))))[0]]


def with_copy_in_training(split: Mapping[str, Sequence[str]], cases: Iterable[Case]) -> set[str]:
    """Held-out cases that share a patient or a group of copies with a training case."""
    training, held_out = set(split["train"]), set(split["val"])
    tied = [set(group) for group in tied_cases(cases)]
    return set().union(*(group & held_out for group in tied if group & training))


def subset_figures(table: Any, wanted: set[str]) -> dict[str, Any]:
    """Dice and accuracy of some of the cases, with intervals over patients."""
    import numpy as np

    from braintum.evaluation.metrics.joint_metrics import UNKNOWN
    from braintum.evaluation.metrics.statistics import bootstrap_means
    from braintum.evaluation.results.summary import figure

    chosen = np.array([case in wanted for case in table.cases])
    if not chosen.any():
        nothing = {"value": None, "low": None, "high": None}
        return {"Dice": nothing, "accuracy": nothing, "majority rate": None, "cases": 0}
    judged = (table.true_class != UNKNOWN) & (table.predicted_class != UNKNOWN)
    right = np.where(judged, table.true_class == table.predicted_class, np.nan)
    clusters = np.array(table.clusters)[chosen]
    estimates = bootstrap_means({"Dice": table.dice[chosen], "accuracy": right[chosen]}, clusters)
    known = table.true_class[chosen & (table.true_class != UNKNOWN)]
    return {
        **{name: figure(found.value, found) for name, found in estimates.items()},
        "majority rate": float(np.bincount(known).max() / len(known)) if len(known) else None,
        "cases": int(chosen.sum()),
    }


def _with_interval(values: Mapping[str, Any]) -> str:
    bounds = "" if values["low"] is None else f" [{values['low']:.3f}, {values['high']:.3f}]"
    return cell(values["value"]) + bounds


def write_table(file: Path, heading: str, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = f"{heading}\n\n{tabulate(rows, header, 'github', disable_numparse=True)}\n"
    with atomic_path(file) as partial:
        partial.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
