"""``braintum_export_model``: a trained model into a zip file that names no case and no patient."""

import argparse
from pathlib import Path

from braintum.commands.command import run_command
from braintum.commands.model_arguments import add_model_arguments, model_folder


def build_parser() -> argparse.ArgumentParser:
    """The command line; flags are named as those of nnUNetv2_predict."""
    parser = argparse.ArgumentParser(
        prog="braintum_export_model",
        description="Export a trained model as nnUNetv2_export_model_to_zip does, but without the names of the cases "
        "and patients that it was trained on. It predicts the same; braintum_install_model or "
        "nnUNetv2_install_pretrained_model_from_zip installs it.",
    )
    add_model_arguments(parser)
    parser.add_argument("-o", type=Path, required=True, metavar="MODEL.zip", help="to write")
    return parser


def export(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_export_model -h``."""
    args = build_parser().parse_args(argv)
    folder = model_folder(args)
    if not args.o.absolute().parent.is_dir():
        raise FileNotFoundError(f"{args.o.parent}: there is no such folder; make it, or choose another with -o")

    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw  # late: "-h" should answer at once

    from braintum.inference.models.model_files import read_plans
    from braintum.inference.models.nameless_export import export_model, names_of_training

    dataset = read_plans(folder / "plans.json").plans["dataset_name"]
    set_folders = [path.get() for path in (nnUNet_preprocessed, nnUNet_raw) if path.is_set()]
    names = names_of_training(Path(path, dataset) for path in set_folders)
    files = export_model(folder, args.o, args.f, args.chk, names, args.trust_checkpoint)
    print("\n".join(files))
    known = f"; compared with {len(names)} names of {dataset}" if names else ""
    print(f"wrote {args.o}, which names no case of the training{known}")
    return 0


def main() -> int:
    """Console script."""
    return run_command(export)
