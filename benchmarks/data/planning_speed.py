"""Time of nnUNetv2_plan_and_preprocess with our planner, fingerprint and preprocessor against nnU-Net's own.

    python benchmarks/data/planning_speed.py nnUNet_raw/Dataset601_Figshare [-n 3] [-np 2]

Takes a converted data set and runs the stock command for its 2-D configuration, with nnUNetPlannerResEncM and with
BrainTumPlanner in turns, each into an empty temporary folder, in an order that changes from round to round. Printed are
wall time, processor time (user and system, all processes), disk use, their ratios, and whether the arrays are those
that nnU-Net's preprocessor makes of the same plans. Processor time is the figure to trust where the machine has other
work.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

STOCK = ["-pl", "nnUNetPlannerResEncM"]
OURS = [
    *("-pl", "BrainTumPlanner"),
    *("-fpe", "BrainTumFingerprintExtractor"),
    *("-preprocessor_name", "BrainTumPreprocessor"),
]
DATA_FOLDERS = {"stock": "nnUNetPlans_2d", "ours": "BrainTumPlans_2d"}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="folder DatasetXXX_Name of a converted data set")
    parser.add_argument("-n", type=int, default=3, help="rounds; default: %(default)s")
    parser.add_argument("-np", type=int, default=2, help="worker processes of each step; default: %(default)s")
    parser.add_argument("-compare", type=int, default=200, help="cases whose arrays to compare; default: %(default)s")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    dataset = args.dataset.resolve()
    number = dataset.name.removeprefix("Dataset").partition("_")[0]
    figures: dict[str, list[tuple[float, float]]] = {"stock": [], "ours": []}
    size: dict[str, int] = {}
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as temporary:
        os.environ["nnUNet_raw"] = str(dataset.parent)  # noqa: SIM112  nnU-Net's own spelling
        os.environ["nnUNet_results"] = temporary  # noqa: SIM112
        for turn in range(args.n):
            for name in ("stock", "ours") if turn % 2 == 0 else ("ours", "stock"):
                target = Path(temporary) / name
                shutil.rmtree(target, ignore_errors=True)
                target.mkdir()
                figures[name].append(run(number, args.np, STOCK if name == "stock" else OURS, target))
                print(f"{name:5} {figures[name][-1][0]:7.1f} s, processor {figures[name][-1][1]:7.1f} s", flush=True)
                data = target / dataset.name / DATA_FOLDERS[name]
                size[name] = sum(file.stat().st_size for file in data.iterdir())
        report(figures, size, len(list((dataset / "labelsTr").iterdir())), args.np)
        compare(dataset, Path(temporary) / "ours" / dataset.name, args.compare)


def run(number: str, num_processes: int, options: list[str], target: Path) -> tuple[float, float]:
    """Wall time and processor time of one command, in seconds."""
    command = Path(sys.executable).with_name("nnUNetv2_plan_and_preprocess")
    workers = str(num_processes)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    finished = subprocess.run(
        [command, "-d", number, "-c", "2d", "-np", workers, "-npfp", workers, "--no_pbar", *options],
        env={**os.environ, "nnUNet_preprocessed": str(target)},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if finished.returncode:
        sys.exit(f"{command} {' '.join(options)} failed:\n{finished.stdout}\n{finished.stderr}")
    return seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def report(figures: dict[str, list[tuple[float, float]]], size: dict[str, int], num_cases: int, workers: int) -> None:
    print(f"\n{num_cases} cases, {workers} worker processes, {len(figures['stock'])} round(s), medians")
    medians = {name: [statistics.median(times) for times in zip(*rows, strict=True)] for name, rows in figures.items()}
    print(f"{'':6} {'wall s':>9} {'processor s':>12} {'disk MB':>9}")
    for name, (wall, processor) in medians.items():
        print(f"{name:6} {wall:9.1f} {processor:12.1f} {size[name] / 1e6:9.1f}")
    ratios = [ours / stock for ours, stock in zip(medians["ours"], medians["stock"], strict=True)]
    print(f"{'ratio':6} {ratios[0]:9.3f} {ratios[1]:12.3f} {size['ours'] / size['stock']:9.3f}")


def compare(dataset: Path, preprocessed: Path, num_cases: int) -> None:
    """Print how many stored cases equal what nnU-Net's preprocessor makes with the same plans."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    plans = PlansManager(str(preprocessed / "BrainTumPlans.json"))
    configuration = plans.get_configuration("2d")
    dataset_json = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    files = get_filenames_of_train_images_and_targets(str(dataset), dataset_json)
    cases = list(files)[:: max(1, len(files) // num_cases)]
    stored = nnUNetDatasetBlosc2(str(preprocessed / DATA_FOLDERS["ours"]), cases)
    equal = 0
    for case in cases:
        image, labels, properties = DefaultPreprocessor(verbose=False).run_case(
            files[case]["images"], files[case]["label"], plans, configuration, dataset_json
        )
        ours, our_labels, _, our_properties = stored.load_case(case)
        locations, our_locations = properties["class_locations"], our_properties["class_locations"]
        equal += (
            np.array_equal(image, ours[:])
            and np.array_equal(labels, our_labels[:])
            and locations.keys() == our_locations.keys()
            and all(np.array_equal(locations[key], our_locations[key]) for key in locations)
        )
    schemes = ", ".join(configuration.normalization_schemes)
    print(f"normalisation {schemes}: {equal} of {len(cases)} cases equal stock's")


if __name__ == "__main__":
    main()
