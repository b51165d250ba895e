"""``braintum_explain``: where a model looked when it named the tumour type, or marked a structure."""

import argparse
import logging
import sys
from pathlib import Path

from braintum.commands.command import run_command
from braintum.commands.model_arguments import add_model_arguments, model_folder
from braintum.inference.prediction.input_files import check_input, check_output

METHOD_NAMES = ("gradcam", "hirescam", "integrated_gradients", "attention_masks")
EXIT_SOME_CASES_FAILED = 3


def build_parser() -> argparse.ArgumentParser:
    """The command line; flags are named as those of braintum_predict."""
    parser = argparse.ArgumentParser(
        prog="braintum_explain",
        description="Show which parts of each image speak for its class or, with --mask and for every model that only "
        "segments, nnU-Net's own included, for the mask of each structure. Writes a map a case in the geometry of the "
        "image, a picture of it (CASE_overlay.png), and explanations.csv and .json: how much of the map lies inside "
        "the tumour, and how much the map changes when the weights of the network are drawn anew (a map that does not "
        "change shows the image, not what the network learned). Of masks there are a map a structure, "
        "CASE_STRUCTURE, and one of the predictive entropy, CASE_entropy.",
    )
    parser.add_argument("-i", required=True, metavar="INPUT", help="folder of images named CASE_0000.<ending>, …")
    parser.add_argument("-o", required=True, metavar="OUTPUT", help="output folder")
    add_model_arguments(parser)
    parser.add_argument(
        "-method",
        default="hirescam",
        choices=METHOD_NAMES,
        help="gradcam; hirescam: the same position by position, for networks that weight positions, as most of ours; "
        "integrated_gradients: signed and voxel by voxel, against the darkest intensity, much slower; "
        "attention_masks: no explanation, but where each block of adaptive masked attention looks, of BrainTumNet and "
        "its kin; "
        "default: %(default)s",
    )
    parser.add_argument(
        "-stage",
        type=int,
        help="features that gradcam and hirescam explain, 0 for the deepest (of a class, of those that the "
        "classification head reads), 1 for the next; default: the deepest with 7 positions along an axis",
    )
    parser.add_argument(
        "--class", dest="class_name", metavar="NAME", help="class to explain; default: the predicted one of each case"
    )
    parser.add_argument("--mask", action="store_true", help="explain the mask where the model predicts classes, too")
    parser.add_argument(
        "--structure",
        nargs="+",
        default=[],
        metavar="NAME",
        help="labels or regions of dataset.json whose mask is explained; default: all, and their union",
    )
    parser.add_argument("-g", type=Path, metavar="LABELS", help="folder of true label maps, CASE.<ending>")
    parser.add_argument("--limit", type=int, metavar="N", help="explain N cases, spread evenly over the folder")
    parser.add_argument(
        "--disable_controls", action="store_true", help="no comparison with weights drawn anew: three times as fast"
    )
    parser.add_argument("--disable_tta", action="store_true", help="no mirroring for mask and class probability")
    parser.add_argument("-step_size", type=float, default=0.5, help="of the sliding window; default: %(default)s")
    parser.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"), help="default: %(default)s")
    parser.add_argument("--disable_progress_bar", action="store_true", help="for log files")
    parser.add_argument("--verbose", action="store_true", help="also print what the steps in between report")
    return parser


def explain(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_explain -h``.

    Returns:
        0, or 3 where some cases could not be explained.
    """
    args = build_parser().parse_args(argv)
    folder = model_folder(args)
    check_output(Path(args.o), Path(args.i))
    check_input(Path(args.i), folder)
    logging.basicConfig(level=logging.INFO if args.verbose else logging.WARNING)

    from braintum.inference.prediction.devices import (
        prepare_device,  # late: "-h" and a mistyped flag should answer at once
    )

    device = prepare_device(args.device)

    from braintum.inference import api
    from braintum.inference.explain_folder import TABLE_FILE

    model = api.load_predictor(
        folder,
        folds=args.f,
        checkpoint=args.chk,
        device=device,
        step_size=args.step_size,
        mirroring=not args.disable_tta,
        trust_checkpoint=args.trust_checkpoint,
        verbose=args.verbose,
    )
    outcome = api.explain(
        args.i,
        args.o,
        model,
        method=args.method,
        stage=args.stage,
        class_name=args.class_name,
        mask=True if args.mask else None,
        structures=args.structure,
        labels=args.g,
        limit=args.limit,
        controls=not args.disable_controls,
        show_progress=not args.disable_progress_bar,
    )
    print(f"{len({row['case'] for row in outcome.rows})} cases explained, listed in {Path(args.o) / TABLE_FILE}")
    for line in summary(outcome.rows):
        print(line)
    if outcome.without_label:
        print(f"{len(outcome.without_label)} cases have no label map in {args.g}: {', '.join(outcome.without_label)}")
    for case, fault in outcome.failed.items():
        print(f"not explained: {case}: {fault}", file=sys.stderr)
    return EXIT_SOME_CASES_FAILED if outcome.failed else 0


def summary(rows: list[dict]) -> list[str]:
    """Means of the figures that say whether the maps can be trusted, a line each; nothing where there are none."""
    described = {
        "predicted_mask_share": "of the attribution inside the predicted mask",
        "predicted_mask_area": "of the image inside the predicted mask",
        "true_mask_share": "of the attribution inside the true mask",
        "true_mask_area": "of the image inside the true mask",
        "mean_entropy": "nats of predictive entropy in the predicted mask",
        "spearman_random_head": "rank correlation with a head of random weights",
        "spearman_random_network": "rank correlation with a network of random weights",
        "completeness_error": "of the score's change is not accounted for",
    }
    lines = []
    for name, text in described.items():
        values = [row[name] for row in rows if row.get(name) is not None]
        if values:
            lines.append(f"{sum(values) / len(values):.3f} {text} (mean of {len(values)} maps)")
    return lines


def main() -> int:
    """Console script."""
    return run_command(explain)
