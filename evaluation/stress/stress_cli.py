"""``braintum_evaluate --stress``: what to test, from the command line and from nnU-Net's folders."""

import argparse
import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from braintum.conversion.format.cases import CASES_FILE, Case, ClassSchema, find_cases_file, read_cases
from braintum.conversion.format.splits import SPLITS_FILE, read_splits

if TYPE_CHECKING:
    from braintum.evaluation.stress.stress import CaseGroup

FOLDER_NAME = "stress"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the stress test."""
    group = parser.add_argument_group(
        "stress test of one trained model (-d -tr -p -c): predicts images with noise, blur and other faults at five "
        "severities"
    )
    group.add_argument("--stress", action="store_true", help="writes stress.json, .csv, .md and .png")
    group.add_argument(
        "-i",
        type=Path,
        metavar="IMAGES",
        help="with -g; default: the held-out cases, each with the fold for which it is",
    )
    group.add_argument("--stress-corruptions", nargs="+", metavar="FAULT", help="default: all that the images can have")
    group.add_argument("--limit", type=int, metavar="N", help="that many cases, drawn at random; default: all")
    group.add_argument("-device", choices=("cuda", "cpu", "mps"), default="cuda", help="default: %(default)s")
    group.add_argument("--disable_tta", action="store_true", help="no mirroring: faster")


def check_arguments(args: argparse.Namespace) -> None:
    """Look for options that do not go together.

    Raises:
        ValueError: there are some.
    """
    if not args.stress:
        if args.i is not None or args.stress_corruptions or args.limit is not None:
            raise ValueError("-i, --stress-corruptions and --limit belong to --stress")
        return
    several = [flag for flag, values in (("-p", args.p), ("-tr", args.tr), ("-c", args.c)) if len(values or []) > 1]
    if several:
        raise ValueError(f"--stress tests one model at a time; give one value to {', '.join(several)}")
    if args.d is None or args.c is None:
        raise ValueError("--stress predicts with a trained model: give -d -p -c (and -tr where it differs)")
    if (args.i is None) != (args.g is None):
        raise ValueError("--stress takes images and their true segmentations together: give both -i and -g, or neither")
    for flag, used in (("--ensembles", args.ensembles), ("--find_postprocessing", args.find_postprocessing)):
        if used:
            raise ValueError(f"{flag} does not go with --stress")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit {args.limit}: at least one case is needed")


def run_stress(args: argparse.Namespace, model_folder: Path) -> int:
    """Run the test and write its results.

    Args:
        args: of ``braintum_evaluate``, checked.
        model_folder: of the trained model.
    """
    from braintum.evaluation.results.predictions import read_json
    from braintum.evaluation.stress.corruptions import CORRUPTIONS, applicable
    from braintum.evaluation.stress.stress import PredictionCommand, StressTest, run_stress_test
    from braintum.evaluation.stress.stress_results import write_stress_results

    dataset_json, plans = (read_json(model_folder / name) for name in ("dataset.json", "plans.json"))
    possible = applicable(len(dataset_json["channel_names"]))
    chosen = args.stress_corruptions or possible
    if impossible := [name for name in chosen if name not in possible]:
        known = "needs several sequences" if impossible[0] in CORRUPTIONS else "is none"
        raise ValueError(f"--stress-corruptions {impossible[0]} {known}; choose from {', '.join(possible)}")
    groups = [_folder_group(args, dataset_json)] if args.i is not None else _held_out_groups(args, model_folder, plans)
    groups = _limited(groups, args.limit)
    predicts_classes = any(model_folder.glob("fold_*/validation/classification.json"))
    predict = PredictionCommand(
        ("-d", args.d, "-c", args.c[0], "-p", args.p[0], "-tr", args.tr[0]),
        predicts_classes,
        ("-device", args.device, *(("--disable_tta",) if args.disable_tta else ())),
    )
    test = StressTest(
        model_folder.name,
        groups,
        [name for name in possible if name in chosen],
        dataset_json,
        _rows(args, plans["dataset_name"], dataset_json, [case for group in groups for case in group.images]),
        any(plans["configurations"][args.c[0]].get("use_mask_for_norm", ())),
    )
    output = args.o or model_folder / FOLDER_NAME
    result = run_stress_test(test, predict, output, args.np, args.resamples)
    for table in write_stress_results(result, output):
        print(f"{table.title}\n\n{table.text('simple')}\n")
    print(f"written to {output}")
    return 0


def _folder_group(args: argparse.Namespace, dataset_json: dict[str, Any]) -> "CaseGroup":
    """The cases of ``-i`` and ``-g``, predicted by all folds of ``-f``."""
    from braintum.evaluation.results.predictions import files_by_case

    for folder in (args.i, args.g):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is no folder")
    references = files_by_case(args.g, dataset_json["file_ending"])
    if not references:
        raise FileNotFoundError(f"{args.g} holds no true segmentation (*{dataset_json['file_ending']})")
    return _group(references, args.i, args.g, dataset_json, None if args.f is None else tuple(args.f))


def _held_out_groups(args: argparse.Namespace, model_folder: Path, plans: dict[str, Any]) -> "list[CaseGroup]":
    """The held-out cases of each fold, predicted by the model that has not seen them."""
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

    from braintum.evaluation.results.predictions import read_json, validated_folds

    dataset = plans["dataset_name"]
    raw = Path(nnUNet_raw.get() or "nnUNet_raw (not set)") / dataset
    if not raw.is_dir():
        raise FileNotFoundError(f"the images of {dataset} are not at {raw}; set nnUNet_raw, or give -i and -g")
    folders = [Path(nnUNet_preprocessed.get() or "nnUNet_preprocessed (not set)") / dataset, raw]
    splits_file = next((folder / SPLITS_FILE for folder in folders if (folder / SPLITS_FILE).is_file()), None)
    if splits_file is None:
        raise FileNotFoundError(f"no {SPLITS_FILE} in {folders[0]} nor in {folders[1]}: which cases are held out?")
    splits = read_splits(splits_file, "convert the data set again")
    dataset_json = read_json(model_folder / "dataset.json")
    groups = []
    for fold in args.f or validated_folds(model_folder):
        if not 0 <= fold < len(splits):
            raise ValueError(f"fold {fold}: {splits_file} has the folds 0 to {len(splits) - 1}")
        groups.append(_group(splits[fold]["val"], raw / "imagesTr", raw / "labelsTr", dataset_json, (fold,)))
    return groups


def _group(
    cases: Iterable[str], images: Path, labels: Path, dataset_json: dict[str, Any], folds: tuple[int, ...] | None
) -> "CaseGroup":
    """Files of cases.

    Raises:
        FileNotFoundError: one is missing.
    """
    from braintum.evaluation.stress.stress import CaseGroup

    ending, num_channels = dataset_json["file_ending"], len(dataset_json["channel_names"])
    files, references = {}, {}
    for case in sorted(cases):
        files[case] = tuple(images / f"{case}_{channel:04d}{ending}" for channel in range(num_channels))
        references[case] = labels / f"{case}{ending}"
        if missing := [str(file) for file in (*files[case], references[case]) if not file.is_file()]:
            raise FileNotFoundError(
                f"{missing[0]} does not exist; the test needs image and true segmentation of {case}"
            )
    return CaseGroup(folds, files, references)


def _limited(groups: "list[CaseGroup]", limit: int | None) -> "list[CaseGroup]":
    """So many cases of all groups together, the same ones at every call."""
    from braintum.evaluation.stress.stress import CaseGroup

    everything = sorted(case for group in groups for case in group.images)
    if limit is None or limit >= len(everything):
        return groups
    kept = set(random.Random(0).sample(everything, limit))
    limited = []
    for group in groups:
        images = {case: files for case, files in group.images.items() if case in kept}
        if images:
            limited.append(CaseGroup(group.folds, images, {case: group.references[case] for case in images}))
    return limited


def _rows(args: argparse.Namespace, dataset: str, dataset_json: dict[str, Any], wanted: list[str]) -> dict[str, Case]:
    """Rows of ``cases.csv``, where there is one, or has to be."""
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw

    schema = ClassSchema.from_dataset_json(dataset_json)
    file: Path | None = args.cases
    if file is None and args.g is not None:
        beside = args.g.parent / CASES_FILE
        file = beside if beside.is_file() else None
    elif file is None and schema is not None:
        folders = [Path(variable.get() or "(not set)") / dataset for variable in (nnUNet_preprocessed, nnUNet_raw)]
        file = find_cases_file(*folders)
    if file is None:
        return {}
    rows = read_cases(file, None if schema is None else schema.class_names)
    if unknown := [case for case in wanted if case not in rows]:
        raise ValueError(f"{file} has no row for {unknown[0]}; name the right file with --cases")
    return {case: rows[case] for case in wanted}
