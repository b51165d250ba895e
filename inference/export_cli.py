"""``braintum_export``: trained networks as ONNX files, for ``braintum_predict --onnx`` and other programs."""

import argparse
from pathlib import Path

from tabulate import tabulate

from braintum.commands.command import run_command
from braintum.commands.model_arguments import add_model_arguments, model_folder

DEFAULT_TOLERANCE = 1e-3


def build_parser() -> argparse.ArgumentParser:
    """The command line; flags are named as those of nnUNetv2_predict."""
    parser = argparse.ArgumentParser(
        prog="braintum_export",
        description="Export the networks of a trained model to ONNX, one file a fold beside its checkpoint "
        "(fold_X/checkpoint_final.onnx), for braintum_predict --onnx. The input is a batch of any size of preprocessed "
        "patches; the outputs are segmentation logits, class logits where the model has a classification head, and "
        "those by region where it segments several. A file is written only if onnxruntime and torch agree.",
    )
    add_model_arguments(parser)
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="model folder to write; default: the model's own")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=DEFAULT_TOLERANCE,
        help="largest difference of any logit between onnxruntime and torch; default: %(default)s",
    )
    return parser


def export(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_export -h``."""
    args = build_parser().parse_args(argv)
    if not args.tolerance > 0:
        raise ValueError(f"--tolerance has to be positive, got {args.tolerance}")

    from braintum.inference.export.onnx_export import (
        export_model,  # late: "-h" and a mistyped flag should answer at once
    )

    exported = export_model(model_folder(args), args.f, args.chk, args.tolerance, args.o, args.trust_checkpoint)
    outputs = list(exported[0].differences)
    rows = [
        [fold.fold, fold.file, f"{fold.file.stat().st_size / 2**20:.1f}", *(fold.differences[name] for name in outputs)]
        for fold in exported
    ]
    headers = ["fold", "file", "MiB", *(f"largest difference in {name}" for name in outputs)]
    print(tabulate(rows, headers, floatfmt=".1e", disable_numparse=[1, 2]))
    return 0


def main() -> int:
    """Console script."""
    return run_command(export)
