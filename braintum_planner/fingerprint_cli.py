"""``braintum_fingerprint``: what is in a data set, and every decision of the planner with its reason."""

import argparse
import contextlib
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from braintum.commands.command import run_command
from braintum.conversion.files.atomic import atomic_path, write_json_atomic
from braintum.conversion.files.parallel import default_processes


def build_parser() -> argparse.ArgumentParser:
    """The command line; flags are named as those of nnUNetv2_plan_and_preprocess."""
    parser = argparse.ArgumentParser(
        prog="braintum_fingerprint",
        description="Print what is in a data set (intensities, spacing, tumours, classes, patients, missing sequences) "
        "and every decision of the planner with its reason. Extracts the fingerprint if there is none of ours yet; "
        "plans in memory, so no plans are written.",
    )
    parser.add_argument("dataset", metavar="DATASET", help="data-set name or id, in nnUNet_raw")
    parser.add_argument("-pl", default="BrainTumPlanner", metavar="PLANNER", help="default: %(default)s")
    parser.add_argument("-gpu_memory_target", type=float, metavar="GB", help="default: the planner's own")
    parser.add_argument("-overwrite_target_spacing", type=float, nargs="+", metavar="MM", help="as in nnU-Net")
    parser.add_argument("-np", type=int, default=default_processes(), help="worker processes; default: %(default)s")
    parser.add_argument("--clean", action="store_true", help="extract the fingerprint again")
    parser.add_argument(
        "-o", metavar="FILE", type=Path, help="also save: findings and decisions as .json, or the page as .txt"
    )
    return parser


def fingerprint(argv: list[str] | None = None) -> int:
    """Run the command; see ``braintum_fingerprint -h``.

    Raises:
        ValueError: unknown planner, bad file ending, or data that cannot be planned.
    """
    args = build_parser().parse_args(argv)
    if args.o is not None and args.o.suffix not in (".json", ".txt"):
        raise ValueError(f"{args.o}: the file to save has to end with .json or .txt")

    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw  # late: "-h" should answer at once

    for folder in (nnUNet_raw, nnUNet_preprocessed):
        if not folder.is_set():
            raise ValueError(f"the environment variable {folder.env_var_name} is not set; set it as nnU-Net needs it")

    from braintum.planner import planners
    from braintum.planner.fingerprint_extractors import FINGERPRINT_ENTRY, BrainTumFingerprintExtractor
    from braintum.planner.fingerprint_report import render, warnings

    if args.pl not in planners.__all__:
        raise ValueError(f"-pl {args.pl}: not one of our planners: {', '.join(planners.__all__)}")
    extractor = BrainTumFingerprintExtractor(_dataset_name(args.dataset), args.np)
    found = extractor.run(overwrite_existing=args.clean)
    options = {
        "gpu_memory_target_in_gb": args.gpu_memory_target,
        "overwrite_target_spacing": args.overwrite_target_spacing,
    }
    plans = plan_in_memory(getattr(planners, args.pl), extractor.dataset_name, found, options)
    page = render(extractor.dataset_name, found, plans)
    print(page)
    if args.o is None:
        return 0
    if args.o.suffix == ".json":
        entry = found[FINGERPRINT_ENTRY]
        content = {"findings": entry, "warnings": warnings(entry), "decisions": plans["braintum_decisions"]}
        write_json_atomic(args.o, content)
    else:
        with atomic_path(args.o) as partial:
            partial.write_text(page, encoding="utf-8")
    return 0


def plan_in_memory(
    planner: Any, dataset_name: str, fingerprint_content: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    """Plans as the planner would write them; nothing changes in nnUNet_preprocessed.

    Args:
        planner: the planner's class.
        dataset_name: as ``DatasetXXX_Name``.
        fingerprint_content: its fingerprint.
        options: further arguments of the planner.
    """
    from nnunetv2.paths import nnUNet_preprocessed

    # a planner copies dataset.json, splits and cases.csv beside its plans: all of that goes to a folder that vanishes
    variable, before = nnUNet_preprocessed.env_var_name, nnUNet_preprocessed.require()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        target = Path(folder) / dataset_name
        target.mkdir()
        (target / "dataset_fingerprint.json").write_text(json.dumps(fingerprint_content), encoding="utf-8")
        os.environ[variable] = folder
        try:
            return planner(dataset_name, **options).plan_experiment()
        finally:
            os.environ[variable] = before


def _dataset_name(text: str) -> str:
    """Name of a data set from its name or number.

    Raises:
        ValueError: there is no such data set, or more than one.
    """
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    if not text.startswith("Dataset") and not text.isdecimal():
        raise ValueError(f"{text} is neither a data set's number nor a name such as Dataset001_Name")
    try:
        return maybe_convert_to_dataset_name(text)
    except RuntimeError as error:  # nnU-Net's, with the folders that it looked in
        raise ValueError(str(error)) from error


def main() -> int:
    """Console script."""
    return run_command(fingerprint)
