"""``braintum_postprocess``: from raw predictions to post-processed ones, in another folder."""

import argparse
import sys
from pathlib import Path

from braintum.commands.command import EXIT_SOME_FAILED, run_command


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="braintum_postprocess",
        description="Apply nnU-Net's post-processing (found on the cross-validation by braintum_evaluate "
        "--find_postprocessing) and make masks and classes consistent. Raw predictions stay as they are.",
    )
    parser.add_argument("-i", required=True, type=Path, metavar="INPUT", help="folder of predictions")
    parser.add_argument("-o", required=True, type=Path, metavar="OUTPUT", help="another folder")
    parser.add_argument("-rules", type=Path, metavar="FILE", help="postprocessing.json of the cross-validation")
    parser.add_argument(
        "--consistent",
        action="store_true",
        help="remove the mask where the class says healthy, withhold a tumour class where no mask is found",
    )
    parser.add_argument("-np", type=int, default=2, help="processes; default: %(default)s")
    return parser


def postprocess(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_postprocess -h``.

    Returns:
        0, or 3 where some cases could not be read.
    """
    args = build_parser().parse_args(argv)
    if args.rules is None and not args.consistent:
        raise ValueError("nothing to do: give rules with -rules, or --consistent, or both")
    from braintum.inference.postprocessing import postprocess_folder, read_rules

    rules = [] if args.rules is None else read_rules(args.rules)
    counts, failed = postprocess_folder(args.i, args.o, rules, args.consistent, args.np)
    print(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in counts.items()) + f": {args.o}")
    for case, fault in failed.items():
        print(f"not post-processed: {case}: {fault}", file=sys.stderr)
    return EXIT_SOME_FAILED if failed else 0


def main() -> int:
    """Console script."""
    return run_command(postprocess)
