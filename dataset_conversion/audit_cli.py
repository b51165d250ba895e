"""`braintum_audit`: duplicates and patients across splits, class balance, bad masks and images."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from braintum.commands.command import EXIT_SOME_FAILED, run_command
from braintum.conversion.audit.audit import Audit, run_audit
from braintum.conversion.audit.audit_input import default_output, find_input
from braintum.conversion.audit.audit_report import JSON_FILE, check_output, verdict, write_audit
from braintum.conversion.files.parallel import default_processes

EXIT_LEAKS = 2
MAX_NAMES = 50
"""Of more unread images than this only the first are printed; `audit.json` names all."""
_EXIT_FAILURE = 1

_DESCRIPTION = """\
Looks for exact and near duplicates (re-encoded, resized, cropped, mirrored, rotated by 90 degrees) and for patients on
both sides of a split, shows the class balance, and names masks that contradict classes and images that are empty or
corrupt. Writes audit.json and audit.html.

Exit code: 0 nothing crosses a split, 2 something does, 3 nothing does among the images that were read, but some were
not, 1 an error (bad arguments included)."""


class _Parser(argparse.ArgumentParser):
    """Exits with 1 for bad arguments: 2 means that something leaks."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(_EXIT_FAILURE, f"{self.prog}: error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command(_audit, arguments, needs_nnunet=False)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser."""
    parser = _Parser(
        prog="braintum_audit", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="DATASET_ID or FOLDER",
        help="a data set in nnUNet_raw (number, name or folder), or folders of images: the sides of a split",
    )
    parser.add_argument(
        "-o", dest="output", type=Path, metavar="OUT", help="folder for the report (default: ./audit_NAME)"
    )
    parser.add_argument(
        "-np",
        dest="n_processes",
        type=int,
        default=default_processes(),
        metavar="N",
        help="number of worker processes (default: %(default)s)",
    )
    parser.add_argument(
        "--not-needed",
        nargs="+",
        default=(),
        metavar="PATTERN",
        help="images that need not be looked at, such as 'screenshots/*': nothing is said of them",
    )
    return parser


def _audit(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = build_parser().parse_args(arguments)
    source = find_input(options.targets, options.not_needed)
    output = options.output or default_output(source.title)
    check_output(output)  # before the work, not after it
    audit = run_audit(source, options.n_processes)
    _, page = write_audit(audit, output)
    for note in source.notes:
        print(note)
    print(f"{len(source.images)} images, {len(audit.pairs)} pairs of duplicates in {len(audit.groups)} groups")
    for split in audit.splits:
        print(
            f"  {split.name}: {len(split.pairs)} pairs cross, {len(split.crossings)} findings; "
            f"class proportions differ by up to {split.largest_difference:.1f} percentage points"
        )
    for heading, problems in (("image", audit.image_problems), ("mask", audit.mask_problems)):
        if problems:
            name, problem = next(iter(problems.items()))
            print(f"{len(problems)} {heading} problem(s), the first: {name}: {problem}")
    print(f"{verdict(audit)}\nReport: {page}")
    left_out = [f"{name}: {_fault(audit, name)}" for name in audit.unreadable] + source.not_read
    for sentence in left_out[:MAX_NAMES]:
        print(f"not looked at: {sentence}", file=sys.stderr)
    if len(left_out) > MAX_NAMES:
        print(f"… and {len(left_out) - MAX_NAMES} more, see {JSON_FILE}", file=sys.stderr)
    if audit.leaks:
        return EXIT_LEAKS
    return EXIT_SOME_FAILED if left_out else 0


def _fault(audit: Audit, name: str) -> str:
    return "; ".join(found[name] for found in (audit.image_problems, audit.mask_problems) if name in found)
