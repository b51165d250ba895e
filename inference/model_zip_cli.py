"""``braintum_install_model``: a model from a zip file, checked before it is used."""

import argparse
import sys
from pathlib import Path

from braintum.commands.command import run_command


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="braintum_install_model",
        description="Install the models of a zip file that nnUNetv2_export_model_to_zip wrote into nnUNet_results, as "
        "nnUNetv2_install_pretrained_model_from_zip does, but without trusting the file: nothing in it is run, "
        "written elsewhere or larger than a model.",
    )
    parser.add_argument("archive", type=Path, metavar="MODEL.zip", help="what was exported")
    parser.add_argument("-o", type=Path, metavar="FOLDER", help="default: nnUNet_results")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",
        help="also install checkpoints that would run code when they are loaded",
    )
    return parser


def install(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_install_model -h``."""
    args = build_parser().parse_args(argv)
    from nnunetv2.paths import nnUNet_results

    from braintum.inference.models.model_zip import install_model, named_cases

    if args.o is None and not nnUNet_results.is_set():
        raise ValueError("the environment variable nnUNet_results is not set; set it, or give a folder with -o")
    for folder in install_model(args.archive, args.o or Path(nnUNet_results.get()), args.trust_checkpoint):
        print(f"installed {folder}")
        if names := named_cases(folder):
            print(
                f"The zip file names {len(names)} cases of its training, such as {names[0]} (validation/summary.json). "
                "If they are patients, do not pass it on; braintum_export_model exports models without names.",
                file=sys.stderr,
            )
    return 0


def main() -> int:
    """Console script."""
    return run_command(install)
