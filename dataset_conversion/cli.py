"""`braintum_convert`: public brain-tumour data sets to nnU-Net's raw layout."""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from braintum_commands.command import run_command
from dataset_conversion import figshare
from dataset_conversion.parallel import default_processes
from dataset_conversion.raw_dataset import ConversionRequest, ConversionResult, raw_folder_from_environment


class SourceModule(Protocol):
    """What the module of a source offers; options that `add_arguments` adds are handed to `convert` by keyword."""

    KIND: str
    DEFAULT_NAME: str
    DESCRIPTION: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Adds the source's own options."""

    @property
    def convert(self) -> "Converter":
        """Converts, or only checks."""


class Converter(Protocol):
    """The signature of a source's `convert`."""

    def __call__(self, request: ConversionRequest) -> ConversionResult:
        """Converts, or only checks."""


SOURCES: dict[str, SourceModule] = {module.KIND: module for module in (figshare,)}
"""The sub-commands. A new source is a module like `figshare`, added here."""

_COMMON = ("kind", "source", "dataset_id", "name", "dry_run", "n_processes", "overwrite")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command(_convert, arguments)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser, with one sub-command a source."""
    parser = argparse.ArgumentParser(prog="braintum_convert", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, module in SOURCES.items():
        source = kinds.add_parser(kind, help=module.DESCRIPTION, description=f"Converts {module.DESCRIPTION}.")
        source.add_argument("source", type=Path, metavar="SOURCE", help="folder with the source in its original layout")
        source.add_argument(
            "-d", dest="dataset_id", type=int, required=True, metavar="ID", help="number of the new data set, 1 to 999"
        )
        source.add_argument(
            "--name", default=module.DEFAULT_NAME, help="name of the new data set (default: %(default)s)"
        )
        source.add_argument("--dry-run", action="store_true", help="check everything, show the table, write nothing")
        source.add_argument(
            "-np",
            dest="n_processes",
            type=int,
            default=default_processes(),
            metavar="N",
            help="number of worker processes (default: %(default)s)",
        )
        source.add_argument("--overwrite", action="store_true", help="replace the data set of this number and name")
        module.add_arguments(source)
    return parser


def _convert(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = vars(build_parser().parse_args(arguments))
    kind, source, dataset_id, name, dry_run, n_processes, overwrite = (options.pop(key) for key in _COMMON)
    others = (os.environ.get(variable) for variable in ("nnUNet_preprocessed", "nnUNet_results"))
    request = ConversionRequest(
        source=source,
        raw_folder=raw_folder_from_environment(),
        dataset_id=dataset_id,
        name=name,
        dry_run=dry_run,
        n_processes=n_processes,
        overwrite=overwrite,
        other_folders=tuple(Path(folder) for folder in others if folder),
    )
    result = SOURCES[kind].convert(request, **options)
    print(f"\n{result.table}\n")
    if dry_run:
        print(f"Dry run: {result.n_cases} cases are in order, nothing was written.")
    else:
        print(f"{result.n_cases} cases written to {result.folder}\n\n{next_commands(dataset_id)}")
    return 0


def next_commands(dataset_id: int) -> str:
    """Returns the commands that follow a conversion, ready to be typed."""
    return (
        "Next, type:\n"
        f"  nnUNetv2_plan_and_preprocess -d {dataset_id} -pl BrainTumPlanner -c 2d --verify_dataset_integrity\n"
        f"  nnUNetv2_train {dataset_id} 2d 0 -p BrainTumPlans -tr nnUNetTrainerMultiTask\n"
        f"  braintum_predict -d {dataset_id} -p BrainTumPlans -tr nnUNetTrainerMultiTask -c 2d -i INPUT -o OUTPUT"
    )
