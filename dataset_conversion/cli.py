"""`braintum_convert`: public brain-tumour data sets to nnU-Net's raw layout."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from braintum.commands.command import EXIT_SOME_FAILED, run_command
from braintum.conversion.api import SOURCES, convert
from braintum.conversion.files.parallel import default_processes
from braintum.conversion.sources import combine

MAX_NAMES = 50
"""Of more unused images than this only the first are printed; `left_out.json` names all."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_command(_convert, arguments)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser, with one sub-command a source."""
    parser = argparse.ArgumentParser(prog="braintum_convert", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, module in SOURCES.items():
        parser_of_kind = kinds.add_parser(kind, help=module.DESCRIPTION, description=f"Converts {module.DESCRIPTION}.")
        parser_of_kind.add_argument(
            "source", type=Path, metavar="SOURCE", help="folder with the source in its original layout"
        )
        _add_common_arguments(parser_of_kind, module.DEFAULT_NAME)
        module.add_arguments(parser_of_kind)
    combining = kinds.add_parser(combine.KIND, help=combine.DESCRIPTION, description=f"Combines {combine.DESCRIPTION}.")
    combining.add_argument(
        "dataset_ids", type=int, nargs="+", metavar="ID", help="numbers of converted data sets, at least two"
    )
    _add_common_arguments(combining, combine.DEFAULT_NAME)
    combining.add_argument(
        "--channel-names",
        nargs="+",
        metavar="NAME",
        help="names of the channels in the new data set, for data sets that name the same channels differently",
    )
    combining.add_argument("--pool", action="store_true", help="put test parts into the cross-validation as well")
    return parser


def _add_common_arguments(parser: argparse.ArgumentParser, default_name: str) -> None:
    parser.add_argument(
        "-d", dest="dataset_id", type=int, required=True, metavar="ID", help="number of the new data set, 1 to 999"
    )
    parser.add_argument("--name", default=default_name, help="name of the new data set (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="check everything, show the table, write nothing")
    parser.add_argument(
        "-np",
        dest="n_processes",
        type=int,
        default=default_processes(),
        metavar="N",
        help="number of worker processes (default: %(default)s)",
    )
    parser.add_argument(
        "--strict", action="store_true", help="write nothing if a case is faulty, instead of leaving that case out"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the data set of this number and name")
    parser.add_argument(
        "--fraction",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="convert a random share of the patients of each class, such as 0.1 (of the images, copies together, where "
        "patients are unknown)",
    )
    parser.add_argument(
        "--seed", type=int, default=42, metavar="N", help="chooses the share of --fraction (default: %(default)s)"
    )
    parser.add_argument(
        "--not-needed",
        nargs="+",
        default=(),
        metavar="PATTERN",
        help="images that are not meant to be used, such as '*_t2.nii.gz' or 'screenshots/*': nothing is said of them",
    )
    parser.add_argument(
        "--pseudonymise",
        type=Path,
        metavar="SALT_FILE",
        help="name cases and patients by hashes with the secret salt in this file, which is made if it does not exist; "
        "keep it apart from the data",
    )


def _convert(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 3 where cases or images were left out."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = vars(build_parser().parse_args(arguments))
    source = options.pop("dataset_ids") if options["kind"] == combine.KIND else options.pop("source")
    dry_run, dataset_id = options["dry_run"], options["dataset_id"]
    result = convert(source=source, **options)
    print(f"\n{result.table}\n")
    if dry_run:
        print(f"Dry run: {result.n_cases} cases are in order, nothing was written.")
    else:
        print(f"{result.n_cases} cases written to {result.folder}\n")
        if options.get("for_prediction") is None:
            print(next_commands(dataset_id, result.configuration, result.has_classes))
        else:
            print(prediction_commands(result.folder, options["for_prediction"]))
    if result.problems:
        print(f"{len(result.problems)} problem(s); what they concern was left out:", file=sys.stderr)
        for problem in result.problems:
            print(f"left out: {problem}", file=sys.stderr)
    for image in result.unused[:MAX_NAMES]:
        print(f"not used: {image}", file=sys.stderr)
    if len(result.unused) > MAX_NAMES:
        print(f"… and {len(result.unused) - MAX_NAMES} more images that were not used", file=sys.stderr)
    return EXIT_SOME_FAILED if result.problems or result.unused else 0


def prediction_commands(folder: Path, model_dataset: int) -> str:
    """Returns the command that predicts converted cases; 0 stands for a data set that is not known."""
    cases = f"  braintum_predict -i {folder / 'imagesTs'} -o OUTPUT --cases {folder / 'cases.csv'}"
    model = f"-d {model_dataset or 'ID'} -p BrainTumPlans -tr nnUNetTrainerMultiTask -c CONFIGURATION"
    how = "with the model's own data set, plans, trainer and configuration"
    return f"Next, {how}, type (nnUNetv2_predict takes the folder as well):\n{cases} {model}"


def next_commands(dataset_id: int, configuration: str = "2d", has_classes: bool = True) -> str:
    """Returns the commands that follow a conversion, ready to be typed."""
    plan = (
        f"  nnUNetv2_plan_and_preprocess -d {dataset_id} -fpe BrainTumFingerprintExtractor -pl BrainTumPlanner "
        f"-c {configuration} --verify_dataset_integrity\n"
        f"  nnUNetv2_train {dataset_id} {configuration} 0 -p BrainTumPlans"
    )
    if not has_classes:
        return f"The data set has no classes, so nnU-Net's own trainer is the one for it. Next, type:\n{plan}"
    return (
        f"Next, type:\n{plan} -tr nnUNetTrainerMultiTask\n"
        f"  braintum_predict -d {dataset_id} -p BrainTumPlans -tr nnUNetTrainerMultiTask -c {configuration} "
        "-i INPUT -o OUTPUT"
    )
