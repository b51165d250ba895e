"""What all trainings of a data set need is made once: plans, preprocessed cases, splits.

nnU-Net lets the first training write the splits; folds that start together read half a file (nnUNet #3064).
"""

import argparse
import subprocess
from pathlib import Path

from braintum.commands.command import run_command
from braintum.conversion.files.atomic import write_json_atomic
from braintum.conversion.files.json_files import read_json_object
from braintum.conversion.files.lease import leased
from braintum.conversion.files.parallel import default_processes
from braintum.conversion.format.cases import find_cases_file, read_cases
from braintum.conversion.format.splits import SPLITS_FILE, splits_by_patient
from braintum.experiments.jobs import program

_UNFINISHED = ".preprocessing-unfinished"
"""Is there while cases are preprocessed: nnU-Net's preprocessor leaves half of them when it is killed."""


def missing(preprocessed: Path, plans: str, configurations: list[str]) -> list[str]:
    """Configurations that are not preprocessed, and ``splits`` if there are none.

    Args:
        preprocessed: the data set's folder in ``nnUNet_preprocessed``.
        plans: identifier.
        configurations: of the plans.

    Raises:
        ValueError: the plans are damaged, or have no such configuration.
    """
    file = preprocessed / f"{plans}.json"
    if not file.is_file():
        return [*configurations, "splits"]
    known = read_json_object(file, "plan the data set again")["configurations"]
    if unknown := [name for name in configurations if name not in known]:
        raise ValueError(f"{file} has no configuration {unknown[0]}; choose from {', '.join(sorted(known))}")
    folders = {name: preprocessed / _identifier(known, name) for name in configurations}
    found = [name for name, folder in folders.items() if not folder.is_dir() or (preprocessed / _UNFINISHED).exists()]
    return [*found, *([] if (preprocessed / SPLITS_FILE).is_file() else ["splits"])]


def _identifier(configurations: dict, name: str) -> str:
    """Folder of preprocessed cases; configurations inherit it."""
    while "data_identifier" not in configurations[name]:
        name = configurations[name]["inherits_from"]
    return str(configurations[name]["data_identifier"])


def build_parser() -> argparse.ArgumentParser:
    """The command line of the job."""
    parser = argparse.ArgumentParser(prog="python -m braintum.experiments.prepare", description=__doc__)
    parser.add_argument("dataset", help="whole name of the data set")
    parser.add_argument("-p", required=True, help="identifier of the plans")
    parser.add_argument("-pl", required=True, help="planner, where there are no plans")
    parser.add_argument("-c", nargs="+", required=True, help="configurations")
    return parser


def prepare(argv: list[str] | None = None) -> int:
    """Run the job; what is there already stays."""
    from nnunetv2.paths import nnUNet_preprocessed

    args = build_parser().parse_args(argv)
    preprocessed = Path(nnUNet_preprocessed) / args.dataset
    preprocessed.mkdir(parents=True, exist_ok=True)
    with leased(preprocessed, "prepare"):  # by another experiment
        number, plans_file = str(int(args.dataset[7:10])), preprocessed / f"{args.p}.json"
        if not plans_file.is_file():
            _run("nnUNetv2_extract_fingerprint", "-d", number, "-fpe", "BrainTumFingerprintExtractor")
            _run("nnUNetv2_plan_experiment", "-d", number, "-pl", args.pl, "-overwrite_plans_name", args.p)
        if todo := [name for name in missing(preprocessed, args.p, args.c) if name != "splits"]:
            (preprocessed / _UNFINISHED).touch()
            _run(
                "nnUNetv2_preprocess", "-d", number, "-plans_name", args.p, "-c", *todo, "-np", str(default_processes())
            )
            (preprocessed / _UNFINISHED).unlink()
        if not (preprocessed / SPLITS_FILE).is_file():
            _write_splits(preprocessed, args.dataset)
    return 0


def _run(name: str, *arguments: str) -> None:
    subprocess.run([program(name), *arguments], check=True)


def _write_splits(preprocessed: Path, dataset: str) -> None:
    """Those that the first training would write."""
    from nnunetv2.paths import nnUNet_raw
    from nnunetv2.utilities.crossval_split import generate_crossval_split
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    raw = Path(nnUNet_raw) / dataset
    names = sorted(get_filenames_of_train_images_and_targets(str(raw)))
    try:
        cases = read_cases(find_cases_file(str(preprocessed), str(raw)))
    except FileNotFoundError:
        cases = {}
    splits = splits_by_patient(names, cases, 12345, 5) or generate_crossval_split(names, seed=12345, n_splits=5)
    write_json_atomic(preprocessed / SPLITS_FILE, splits)


if __name__ == "__main__":
    raise SystemExit(run_command(prepare))
