r"""How well promises of a model are kept by folds that had no say in them.

    python benchmarks/accuracy/trust.py docs/evidence/figshare/pretrained_fold_*.csv
    python benchmarks/accuracy/trust.py MODEL_FOLDER [-f 0 1 2 3 4]

Of tables of cases, as ``fold_table.py keep`` writes them: class sets at several coverages, each fold judged with the
thresholds of the others, and accuracy and Dice of the surest cases. Of a model folder whose folds were validated with
``--npz``: all that ``braintum_calibrate`` tells of the trust in it, without storing anything.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
from tabulate import tabulate

from braintum.evaluation.calibration.calibration import HeldOutCases, held_out_cases
from braintum.evaluation.calibration.model_trust import fit_trust, trust_rows
from braintum.evaluation.calibration.trust import Promises, Units, class_set_figures
from braintum.evaluation.results.predictions import predictions_of_folds

COVERAGES = (0.9, 0.95, 0.98)


def read_tables(files: list[Path]) -> tuple[HeldOutCases, list[str], np.ndarray]:
    """Held-out cases, names of the classes, and Dice of each case; the fold is all that is known of a patient."""
    rows = []
    for file in files:
        with open(file, newline="", encoding="utf-8") as stream:
            rows += list(csv.DictReader(stream))
    names = [key.removeprefix("probability_") for key in rows[0] if key.startswith("probability_")]
    rows = [row for row in rows if row["true_class"]]
    probabilities = np.array([[float(row[f"probability_{name}"]) for name in names] for row in rows])
    folds = np.array([int(row["fold"]) for row in rows])
    cases = HeldOutCases(
        names=tuple(row["case"] for row in rows),
        probabilities=probabilities / probabilities.sum(1, keepdims=True),
        labels=np.array([names.index(row["true_class"]) for row in rows]),
        folds=folds,
        clusters=folds.astype(str),
        num_patients=None,
        mirroring=True,
    )
    return cases, names, np.array([float(row["Dice"] or "nan") for row in rows])


def of_tables(files: list[Path]) -> None:
    """Class sets, and what the surest cases are worth."""
    cases, names, dice = read_tables(files)
    units = Units.of(cases.folds, cases.clusters, knows_patients=False)
    rows = []
    for coverage in COVERAGES:
        for kind, found in class_set_figures(cases, units, names, coverage).items():
            kept = found["coverage"]
            parts = kept["by_part"].values()
            rows.append(
                [
                    coverage,
                    kind,
                    f"{kept['value']:.3f}",
                    f"{min(parts):.3f} to {max(parts):.3f}",
                    f"{found['size']:.3f}",
                ]
                + [f"{found['coverage_of'][name]:.3f}" for name in names]
            )
    header = ["coverage", "sets", "covered", "by fold", "classes a set", *names]
    print(tabulate(rows, header, "pipe", disable_numparse=True))
    order = np.argsort(-cases.probabilities.max(1), kind="stable")
    correct = cases.is_correct
    rows = [
        [share, f"{correct[surest].mean():.3f}", f"{np.nanmean(dice[surest]):.3f}"]
        for share in (1.0, 0.9, 0.8, 0.7, 0.5)
        for surest in [order[: round(share * len(order))]]
    ]
    print()
    print(tabulate(rows, ["surest share (class)", "accuracy", "Dice"], "pipe", disable_numparse=True))


def of_model(folder: Path, folds: list[int] | None) -> None:
    """All that is promised."""
    predictions = predictions_of_folds(folder, folds)
    _, figures = fit_trust(predictions, held_out_cases(predictions), folder, Promises())
    print(f"{figures['num_units']} {figures['unit']}\n")
    print(tabulate(trust_rows(figures), ["promise", "kept by held-out folds"], "pipe"))
    for warning in figures["warnings"]:
        print(f"warning: {warning}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", type=Path, help="tables of cases, or a model's folder")
    parser.add_argument("-f", nargs="+", type=int, metavar="FOLD", help="of the model; default: all validated ones")
    args = parser.parse_args()
    if args.inputs[0].is_dir():
        of_model(args.inputs[0], args.f)
    else:
        of_tables(args.inputs)


if __name__ == "__main__":
    main()
