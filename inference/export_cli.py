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
        help="largest difference of any logit between onnxruntime and torch, as a share of the largest where that is "
        "above 1; default: %(default)s",
    )
    int8 = parser.add_argument_group("8 bits", "networks in int8, into a model folder of their own")
    int8.add_argument(
        "--int8",
        type=int,
        nargs="?",
        const=64,
        metavar="CASES",
        help="calibrate on so many preprocessed training cases of the fold, default %(const)s, and print Dice and "
        "accuracy on as many held-out ones; needs -o",
    )
    int8.add_argument(
        "--most-lost", type=float, default=0.02, help="largest loss of Dice or accuracy there; default: %(default)s"
    )
    parser.add_argument(
        "--triton",
        type=Path,
        metavar="REPOSITORY",
        help="also write each network into a model repository of NVIDIA's Triton Inference Server",
    )
    return parser


def export(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_export -h``."""
    args = build_parser().parse_args(argv)
    if not args.tolerance > 0:
        raise ValueError(f"--tolerance has to be positive, got {args.tolerance}")

    if args.int8 is not None and args.o is None:
        raise ValueError("--int8 loses accuracy, and replaces no export in float32: name another model folder with -o")
    if args.int8 is not None and args.int8 < 1:
        raise ValueError(f"--int8 needs a case at least, got {args.int8}")
    folder = model_folder(args)
    written = _export_int8(args, folder) if args.int8 is not None else _export_float32(args, folder)
    if args.triton is not None:
        from braintum.inference.export.triton import write_triton_models

        for place in write_triton_models(args.triton, folder, written):
            print(f"for Triton: {place}")
    return 0


def _export_float32(args: argparse.Namespace, folder: Path) -> list[Path]:
    """The files; prints how far they are from torch."""
    # late: "-h" and a mistyped flag should answer at once
    from braintum.inference.export.onnx_export import export_model

    exported = export_model(folder, args.f, args.chk, args.tolerance, args.o, args.trust_checkpoint)
    outputs = list(exported[0].differences)
    rows = [
        [fold.fold, fold.file, f"{fold.file.stat().st_size / 2**20:.1f}", *(fold.differences[name] for name in outputs)]
        for fold in exported
    ]
    headers = ["fold", "file", "MiB", *(f"largest difference in {name}" for name in outputs)]
    print(tabulate(rows, headers, floatfmt=".1e", disable_numparse=[1, 2]))
    return [fold.file for fold in exported]


def _export_int8(args: argparse.Namespace, folder: Path) -> list[Path]:
    """The files; prints what they cost."""
    from braintum.inference.export.int8 import export_int8

    exported = export_int8(
        folder, args.f, args.chk, args.tolerance, args.o, args.int8, args.most_lost, args.trust_checkpoint
    )
    rows = [
        [
            fold.fold,
            fold.file,
            f"{fold.file.stat().st_size / 2**20:.1f}",
            fold.num_cases,
            *(f"{before:.4f} → {after:.4f}" for before, after in (fold.dice, fold.accuracy)),
            f"{fold.agreement:.4f}",
        ]
        for fold in exported
    ]
    headers = ["fold", "file", "MiB", "held-out cases", "Dice, float32 → int8", "accuracy", "Dice between the two"]
    print(tabulate(rows, headers, disable_numparse=True))
    return [fold.file for fold in exported]


def main() -> int:
    """Console script."""
    return run_command(export)
