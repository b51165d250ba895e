"""`braintum_identify`: results of pseudonymised cases under the names that the hospital knows."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from braintum.commands.command import EXIT_SOME_FAILED, run_command
from braintum.conversion.building.key_list import read_keys, restore_names

_DESCRIPTION = """\
Copies a folder of results (masks, classes.csv, reports) with the names that the pseudonyms in it stand for: in file
names, tables, JSON and reports. The copy names patients."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command(_identify, arguments, needs_nnunet=False)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser."""
    parser = argparse.ArgumentParser(prog="braintum_identify", description=_DESCRIPTION)
    parser.add_argument("results", type=Path, metavar="RESULTS", help="folder of results of pseudonymised cases")
    parser.add_argument("-o", dest="output", type=Path, required=True, metavar="OUT", help="folder for the copy")
    parser.add_argument(
        "--keys",
        type=Path,
        required=True,
        metavar="FILE",
        help="the key list that a conversion with --pseudonymise SALT_FILE wrote: SALT_FILE.keys.csv",
    )
    return parser


def _identify(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 3 where pseudonyms are not in the key list."""
    options = build_parser().parse_args(arguments)
    number, unknown = restore_names(options.results, options.output, read_keys(options.keys))
    print(f"{number} files copied to {options.output}")
    for pseudonym in sorted(unknown):
        print(f"not in the key list: {pseudonym}; give the list of the salt that made it", file=sys.stderr)
    return EXIT_SOME_FAILED if unknown else 0
