"""``braintum_calibrate``: fit the certainty of a trained model to how often it is right."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from braintum.commands.command import run_command
from braintum.commands.model_arguments import DEFAULT_CHECKPOINT, held_out_fold, model_folder


def build_parser() -> argparse.ArgumentParser:
    """The command line; flags are named as nnU-Net's."""
    parser = argparse.ArgumentParser(
        prog="braintum_calibrate",
        description="Fit a temperature to the class predictions of held-out cases (the validation of a model's folds) "
        "and what may be promised of masks, sizes and class sets, and store it in dataset.json of the model, where an "
        "export keeps it; braintum_predict --calibrated applies it. Masks are included where the folds were validated "
        "with --npz. Also writes calibration.json, trust.json, risk_coverage.csv and calibration.png.",
    )
    model = parser.add_argument_group("model", "a folder (-m), or what it was trained from (-d -c)")
    model.add_argument("-m", type=Path, metavar="MODEL_FOLDER", help="folder of the trained model")
    model.add_argument("-d", metavar="DATASET", help="data-set name or id")
    model.add_argument("-c", metavar="CONFIGURATION", help="configuration, such as 2d or 3d_fullres")
    model.add_argument("-p", default="BrainTumPlans", help="plans identifier; default: %(default)s")
    model.add_argument("-tr", default="nnUNetTrainerMultiTask", help="trainer; default: %(default)s")
    model.add_argument(
        "-f", nargs="+", type=held_out_fold, metavar="FOLD", help="folds; default: all that are validated"
    )
    model.add_argument(
        "-chk", default=DEFAULT_CHECKPOINT, help="checkpoint that the validation used; default: %(default)s"
    )
    parser.add_argument("--cases", type=Path, help="cases.csv with classes and patients; default: the data set's")
    parser.add_argument(
        "--target-accuracy",
        type=float,
        metavar="A",
        help="also choose the lowest confidence from which on cases are right with this probability (with 95 %% "
        "certainty, after all looks at the data); cases below it are called uncertain",
    )
    promises = parser.add_argument_group("promises", "that braintum_predict --calibrated makes, shares of 1")
    for flag, default, text in (
        ("--coverage", 0.95, "of class sets, and of intervals of Dice and size"),
        ("--target-dice", 0.7, "that accepted masks should reach; the others are marked for review"),
        ("--accepted-share", 0.9, "of the accepted masks that should reach it"),
        ("--missed-share", 0.1, "of a tumour that the outer mask may miss on average, and of the inner one's errors"),
    ):
        promises.add_argument(flag, type=float, default=default, metavar="P", help=f"{text}; default: %(default)s")
    parser.add_argument(
        "-o", type=Path, metavar="OUTPUT", help="folder of the figures; default: calibration in the model's folder"
    )
    parser.add_argument("--resamples", type=int, default=1000, help="of the bootstrap; default: %(default)s")
    return parser


def calibrate_model(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_calibrate -h``."""
    args = build_parser().parse_args(argv)
    if args.target_accuracy is not None and not 0 < args.target_accuracy < 1:
        raise ValueError(f"--target-accuracy {args.target_accuracy:g}: give a share between 0 and 1, such as 0.95")
    for name in ("coverage", "target_dice", "accepted_share", "missed_share"):
        if not 0 < getattr(args, name) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} {getattr(args, name):g}: give a share between 0 and 1, such as 0.9")
    if args.resamples < 100:
        raise ValueError(f"--resamples {args.resamples}: fewer than 100 give no 95 % interval")
    folder = model_folder(args)

    from braintum.evaluation.calibration.calibration import (
        calibrate,
        calibration_entry,
        checkpoint_fingerprints,
        held_out_cases,
        store_calibration,
    )
    from braintum.evaluation.calibration.calibration_files import write_calibration
    from braintum.evaluation.calibration.model_trust import fit_trust, trust_rows, write_trust
    from braintum.evaluation.calibration.trust import Promises
    from braintum.evaluation.results.predictions import predictions_of_folds

    predictions = predictions_of_folds(folder, args.f, args.cases)
    schema = predictions.schema
    if schema is None:
        raise ValueError(f"{folder / 'dataset.json'} names no tumour classes: there is nothing to calibrate")
    cases = held_out_cases(predictions)
    figures = calibrate(cases, schema.class_names, args.target_accuracy, args.resamples)
    fingerprints = checkpoint_fingerprints(folder, figures["folds"], args.chk)
    promises = Promises(args.coverage, args.target_dice, args.accepted_share, args.missed_share)
    trust, kept = fit_trust(predictions, cases, folder, promises)
    output = args.o or folder / "calibration"
    write_calibration(figures, output)
    write_trust(kept, output)
    store_calibration(folder, calibration_entry(figures, cases, args.chk, fingerprints, trust))
    for warning in [*figures["warnings"], *kept["warnings"]]:
        print(f"warning: {warning}", file=sys.stderr)
    for line in [*_lines(figures), *(f"{title}: {text}" for title, text in trust_rows(kept))]:
        print(line)
    print(f"stored in {folder / 'dataset.json'}; figures in {output}. Apply it with braintum_predict --calibrated")
    return 0


def _lines(figures: Mapping[str, Any]) -> list[str]:
    """The result in words."""

    def with_interval(found: Mapping[str, Any], name: str) -> str:
        if found[name] is None:
            return "undefined"
        low, high = found[f"{name}_low"], found[f"{name}_high"]
        return f"{found[name]:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")

    patients = "" if figures["num_patients"] is None else f" of {figures['num_patients']} patients"
    folds = ", ".join(map(str, figures["folds"]))
    lines = [
        f"temperature {with_interval(figures, 'temperature')}, fitted on {figures['num_cases']} held-out cases"
        f"{patients} of fold {folds}"
    ]
    for name, title in (("ece", "calibration error (ECE)"), ("nll", "negative log-likelihood"), ("brier", "Brier")):
        before, after = (with_interval(figures[when], name) for when in ("before", "after"))
        lines.append(f"{title}: {before} before, {after} after (cross-fitted over {figures['cross_fitted_over']})")
    if figures["threshold"] is not None:
        lines.append(
            f"threshold {figures['threshold']:.4f} for an accuracy of {figures['target_accuracy']:g}: accepts "
            f"{figures['coverage_at_threshold']:.1%} of the held-out cases, {figures['accuracy_at_threshold']:.1%} of "
            "them right"
        )
    return lines


def main() -> int:
    """Console script."""
    return run_command(calibrate_model)
