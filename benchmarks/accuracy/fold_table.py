r"""Tables of held-out cases that stay in the repository, and the figures of all folds from them.

    braintum_evaluate -d 511 -p BrainTumPretrainedPlans -tr nnUNetTrainerPretrained -c 2d -f 4 -o OUTPUT
    python benchmarks/accuracy/fold_table.py keep OUTPUT/cases.csv docs/evidence/figshare/pretrained_fold_4.csv
    python benchmarks/accuracy/fold_table.py table docs/evidence/figshare/pretrained_fold_*.csv

``keep`` leaves of a table of cases what the figures need: fold, true and predicted class, probabilities, Dice and HD95.
``table`` prints the figures of all its files together, with 95 % intervals of a bootstrap over the folds' cases in
clusters: the patient where the table names one, else the fold. With five folds such an interval is wide, and says so.
The calibrated error is that of probabilities at a temperature fitted on the other folds, as braintum_calibrate does.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from braintum.conversion.files.atomic import atomic_path
from braintum.conversion.format.calibration import at_temperature
from braintum.evaluation.calibration.temperature import fit_temperature
from braintum.evaluation.metrics.classification_metrics import classification_metrics
from braintum.evaluation.metrics.statistics import cluster_bootstrap

METRICS = ("Dice", "HD95")
MISSED = 0.1
"""Dice below which a tumour counts as missed."""


def keep(source: Path, target: Path) -> None:
    """Write the columns that the figures need."""
    with source.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    label = next(name.partition(": ")[0] for name in rows[0] if name.endswith(": Dice"))
    plain = [name for name in rows[0] if name in ("case", "fold", "true_class", "predicted_class")]
    plain += [name for name in rows[0] if name.startswith("probability_")]
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target) as partial, partial.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*plain, *METRICS])
        for row in rows:
            figures = [f"{float(value):.4g}" if (value := row[f"{label}: {metric}"]) else "" for metric in METRICS]
            numbers = [f"{float(row[n]):.4g}" if n.startswith("probability_") else row[n] for n in plain]
            writer.writerow([*numbers, *figures])


def figures(rows: Sequence[dict[str, str]], names: Sequence[str], weights: np.ndarray) -> dict[str, float]:
    """All figures of cases that count so often."""
    true = np.array([names.index(row["true_class"]) for row in rows])
    predicted = np.array([names.index(row["predicted_class"]) for row in rows])
    probabilities = np.array([[float(row[f"probability_{name}"]) for name in names] for row in rows])
    probabilities /= probabilities.sum(1, keepdims=True)
    found = classification_metrics(true, predicted, names, probabilities, weights)
    dice = np.array([float(row["Dice"] or "nan") for row in rows])
    distance = np.array([float(row["HD95"] or "nan") for row in rows])
    classes: dict[str, float] = {
        "accuracy": found["accuracy"],
        "balanced accuracy": found["balanced_accuracy"],
        "macro F1": found["macro_f1"],
        "macro AUC": found["macro_auc"],
        "calibration error": found["calibration_error"],
        **calibrated_error(rows, names, true, predicted, probabilities, weights),
        "Dice": _mean(dice, weights),
        "HD95 where both have a tumour": _mean(distance, weights),
        f"missed (Dice below {MISSED})": _mean((dice < MISSED).astype(float), weights),
    }
    for index, name in enumerate(names):
        own = weights * (true == index)
        classes[f"{name}: sensitivity"] = found["per_class"][name]["sensitivity"]
        classes[f"{name}: Dice"] = _mean(dice, own)
    return classes


def calibrated_error(
    rows: Sequence[dict[str, str]],
    names: Sequence[str],
    true: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray,
    weights: np.ndarray,
) -> dict[str, float]:
    """Of probabilities at the temperature of the other folds; nothing for a single fold."""
    folds = np.array([row["fold"] for row in rows])
    if len(set(folds)) == 1:
        return {}
    scaled = np.empty_like(probabilities)
    for fold in set(folds):
        own = folds == fold
        scaled[own] = at_temperature(probabilities[own], fit_temperature(probabilities[~own], true[~own]))
    error = classification_metrics(true, predicted, names, scaled, weights)["calibration_error"]
    return {"calibration error, calibrated": error}


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    counted = np.where(np.isfinite(values), weights, 0)
    return float((np.nan_to_num(values) * counted).sum() / counted.sum()) if counted.any() else float("nan")


def table(files: Sequence[Path]) -> list[list[Any]]:
    """Rows of figure, value, interval."""
    rows: list[dict[str, str]] = []
    for file in files:
        with file.open(newline="", encoding="utf-8") as stream:
            rows += list(csv.DictReader(stream))
    names = [name.removeprefix("probability_") for name in rows[0] if name.startswith("probability_")]
    clusters = [row.get("patient") or f"fold {row['fold']}" for row in rows]
    estimates = cluster_bootstrap(lambda weights: figures(rows, names, weights), clusters)
    print(f"{len(rows)} cases of {len(set(row['fold'] for row in rows))} folds, {len(set(clusters))} clusters\n")
    return [
        [
            name,
            f"{found.value:.4f}",
            "" if found.interval is None else f"{found.interval[0]:.4f} to {found.interval[1]:.4f}",
        ]
        for name, found in estimates.items()
    ]


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    kept = commands.add_parser("keep")
    kept.add_argument("source", type=Path)
    kept.add_argument("target", type=Path)
    shown = commands.add_parser("table")
    shown.add_argument("files", type=Path, nargs="+")
    shown.add_argument("--format", default="github", help="of tabulate")
    args = parser.parse_args()
    if args.command == "keep":
        keep(args.source, args.target)
    else:
        print(tabulate(table(args.files), ["figure", "value", "95 %"], args.format, disable_numparse=True))
    return 0


if __name__ == "__main__":
    sys.exit(main())
