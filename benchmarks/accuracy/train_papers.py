r"""Every trainer on one data set, one plan and one budget of seconds: a table of quality and speed.

    python benchmarks/accuracy/train_papers.py -d 511 -p BrainTumPlans -o OUTPUT [-c 2d] [-f 0] [-seconds 360] \
        [-device cpu]

Needs a preprocessed data set. Each trainer trains for -epochs epochs whose iterations are counted such that they fill
the budget, predicts the held-out fold and is evaluated as braintum_evaluate does. The budget is that of the training
loop; building the network, loading and the final validation come on top. On the CPU seconds are those of the processor,
over all threads and with the augmentation, so that other work on the machine changes little; on a GPU they are those of
the clock. Recipes keep their schedules, shrunk to that length. Trainers with a row in OUTPUT for these plans and this
fold are not trained again, so that an interrupted run goes on where it was; models are in OUTPUT/nnUNet_results.
Writes OUTPUT/papers.csv and OUTPUT/papers.md.

Classifiers on ImageNet features ask for their weights; braintum_pretrained_weights=random trains without.
"""

import argparse
import csv
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from tabulate import tabulate

from braintum.conversion.files.atomic import atomic_path, write_json_atomic

COLUMNS = (
    *("trainer", "plans", "fold", "Dice", "IoU", "HD95", "length unit", "accuracy", "macro-F1"),
    *("seconds an iteration", "iterations", "training seconds", "parameters", "cases"),
)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="data-set id")
    parser.add_argument("-p", default="BrainTumPlans", help="plans; default: %(default)s")
    parser.add_argument("-c", default="2d", help="configuration; default: %(default)s")
    parser.add_argument("-f", type=int, default=0, help="fold; default: %(default)s")
    parser.add_argument("-tr", nargs="+", help="trainers; default: all of this package")
    parser.add_argument("-o", type=Path, required=True, help="output folder")
    parser.add_argument("-seconds", type=float, default=360, help="of training for each; default: %(default)s")
    parser.add_argument("-epochs", type=int, default=20, help="that the budget is divided into; default: %(default)s")
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    return parser


def main() -> None:
    args = build_parser().parse_args()
    os.environ["nnUNet_results"] = str(args.o / "nnUNet_results")  # noqa: SIM112  nnU-Net's own spelling
    if args.device == "cpu":
        os.environ["nnUNet_n_proc_DA"] = "0"  # noqa: SIM112  augmentation counts as well
    from braintum.trainers import registered

    names = args.tr or registered.__all__
    if unknown := sorted(set(names) - set(registered.__all__)):
        raise ValueError(f"no trainer of this package: {', '.join(unknown)}")
    rows_folder = args.o / "rows"
    rows_folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        file = rows_folder / f"{name}__{args.p}__{args.c}__fold_{args.f}.json"
        if not file.is_file():
            # a process each, so that memory and threads of one do not slow down the next
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                write_json_atomic(file, process.submit(train_and_evaluate, name, args).result())
        write_tables(args, [json.loads(row.read_text(encoding="utf-8")) for row in sorted(rows_folder.glob("*.json"))])


def train_and_evaluate(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """The row of one trainer."""
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    iterations = iterations_per_epoch(name, args, clock)
    trainer = make_trainer(name, args, iterations)
    seconds: list[float] = []
    started = clock()
    train_step, should_stop = trainer.train_step, trainer.should_stop

    def timed_step(batch: dict) -> dict:
        before = clock()
        result = train_step(batch)  # ends with a copy to the host, so it is complete
        seconds.append(clock() - before)
        return result

    def out_of_time() -> bool:
        nonlocal started
        if not seconds:
            started = clock()  # everything is loaded
        return should_stop() or clock() - started >= args.seconds

    trainer.train_step, trainer.should_stop = timed_step, out_of_time
    trainer.logger.local_logger.plot_progress_png = lambda folder: None  # a second an epoch, of a budget of minutes
    trainer.run_training()
    training_seconds = clock() - started
    trainer.perform_actual_validation()
    parameters = sum(parameter.numel() for parameter in trainer.bare_network.parameters())
    return {
        "trainer": name,
        "plans": f"{args.p} {args.c}",
        "fold": args.f,
        **figures(Path(trainer.output_folder_base), args.f, segments=trainer.recipe.segmentation_weight > 0),
        "seconds an iteration": statistics.median(seconds),
        "iterations": len(seconds),
        "training seconds": training_seconds,
        "parameters": parameters,
    }


def make_trainer(name: str, args: argparse.Namespace, iterations: int) -> Any:
    """A trainer of ``-epochs`` epochs of this many iterations, ready but for its network."""
    import torch
    from nnunetv2.run.run_training import get_trainer_from_args

    from braintum.trainers.recipes.settings import TrainingSettings

    asked = TrainingSettings.from_environment()
    with replace(asked, num_epochs=args.epochs, num_iterations_per_epoch=iterations).in_environment():
        return get_trainer_from_args(args.d, args.c, args.f, name, args.p, device=torch.device(args.device))


def iterations_per_epoch(
    name: str, args: argparse.Namespace, clock: Callable[[], float], warm_up: int = 2, timed: int = 5
) -> int:
    """How many iterations, and a fifth as many of validation, fill the budget; tried on a trainer of its own."""
    import torch

    trainer = make_trainer(name, args, iterations=1)
    trainer.on_train_start()
    trainer.network.train()
    batches = trainer.dataloader_train
    for _ in range(warm_up):
        trainer.train_step(next(batches))
    before = clock()
    for _ in range(timed):
        trainer.train_step(next(batches))
    training = (clock() - before) / timed
    with torch.no_grad():
        trainer.network.eval()
        before = clock()
        trainer.validation_step(next(trainer.dataloader_val))
        validation = clock() - before
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        if hasattr(loader, "_finish"):  # nnU-Net's, with worker processes
            loader._finish()
    return max(1, round(args.seconds / args.epochs / (training + validation / 5)))


def figures(model_folder: Path, fold: int, segments: bool) -> dict[str, Any]:
    """Quality on the held-out fold; None where the model does not do what is asked."""
    from braintum.evaluation.results.case_table import case_table
    from braintum.evaluation.results.predictions import predictions_of_folds
    from braintum.evaluation.results.summary import summarise_table

    table = case_table(predictions_of_folds(model_folder, [fold]))
    summary = summarise_table(table)
    masks = summary["segmentation"][table.whole_tumour]["figures"].get("all", {})
    classes = summary.get("classification", {})

    def value(found: dict[str, Any], metric: str, asked: bool = True) -> float | None:
        return found[metric]["value"] if asked and metric in found else None

    return {
        "Dice": summary["dice"]["value"] if segments else None,
        "IoU": value(masks, "IoU", segments),
        "HD95": value(masks, "HD95", segments),
        "length unit": summary["length_unit"],
        "accuracy": value(classes, "accuracy"),
        "macro-F1": value(classes, "macro_f1"),
        "cases": summary["num_cases"],
    }


def write_tables(args: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    """``papers.csv`` and ``papers.md``, anew after each trainer."""
    with atomic_path(args.o / "papers.csv") as partial, open(partial, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    heading = (
        f"Data set {args.d}, {args.seconds:g} s of training each on "
        f"{'the CPU (processor time)' if args.device == 'cpu' else 'the GPU'}"
    )
    table = tabulate([[cell(row[name]) for name in COLUMNS] for row in rows], COLUMNS, "github", disable_numparse=True)
    with atomic_path(args.o / "papers.md") as partial:
        partial.write_text(f"{heading}\n\n{table}\n", encoding="utf-8")


def cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
