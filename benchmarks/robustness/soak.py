"""Does prediction leak? Thousands of cases in one process, with an eye on memory, files, processes and shared memory.

    python benchmarks/robustness/soak.py -o OUTPUT [-predictions 2000] [-workers 0] [--exact]
    python benchmarks/robustness/soak.py -o OUTPUT -m MODEL_FOLDER -i IMAGES          # a model and images of one's own

Two ways: many folders, as a service gets them (predict_folder again and again over the same few cases), and one big
folder with that many cases (symbolic links to the same few). Without -m, a tiny network with random weights predicts
synthetic slices of 64×64. After each folder, or each second of the big one, the resident set is measured (many
folders: after garbage collection), and what else the process holds. The first tenth of the predictions is warm-up;
memory is flat if the median of the last tenth is at most 5 % above that of the tenth after the warm-up. Prints a table;
writes OUTPUT/soak.json and soak.md. Linux only.
"""

import argparse
import gc
import os
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from fault_injection import DATASET, SETTINGS, model_folder, prepare
from tabulate import tabulate

from braintum.conversion.files.atomic import atomic_path, write_json_atomic
from braintum.inference.predict_folder import predict_folder
from braintum.inference.prediction.joint_predictor import JointPredictor

TOLERANCE = 0.05
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Sample:
    """What the process holds after so many predictions."""

    predictions: int
    resident_mib: float
    open_files: int
    threads: int
    child_processes: int
    shared_memory: int

    @staticmethod
    def now(predictions: int) -> "Sample":
        own = Path("/proc/self")
        resident = int((own / "statm").read_text().split()[1]) * _PAGE_BYTES / 2**20
        tasks = os.listdir(own / "task")
        children = sum(len((own / "task" / task / "children").read_text().split()) for task in tasks)
        return Sample(
            predictions, resident, len(os.listdir(own / "fd")), len(tasks), children, len(os.listdir("/dev/shm"))
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", type=Path, required=True, help="folder for everything")
    parser.add_argument("-predictions", type=int, default=2000, help="each way; default: %(default)s")
    parser.add_argument("-workers", type=int, default=0, help="processes as of braintum_predict -npp; default: threads")
    parser.add_argument("--exact", action="store_true", help="nnU-Net's order of computation")
    parser.add_argument("-m", type=Path, help="model folder")
    parser.add_argument("-i", type=Path, help="folder of images")
    args = parser.parse_args()
    if (args.m is None) != (args.i is None):
        parser.error("-m and -i belong together")
    args.o.mkdir(parents=True, exist_ok=True)
    if args.m is None:
        if not SETTINGS.items() <= os.environ.items():
            os.environ.update(SETTINGS)
            os.execv(sys.executable, [sys.executable, *sys.argv])
        prepare(args.o / "given")
        args.m = model_folder(args.o / "given" / "nnUNet_results")
        args.i = args.o / "given" / "nnUNet_raw" / DATASET / "imagesTr"
    torch.set_num_threads(os.cpu_count() or 1)
    predictor = JointPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(args.m), (0,), "checkpoint_final.pth")

    def predict(images: Path, output: Path) -> None:
        outcome = predict_folder(
            predictor, images, output, num_workers=args.workers, exact=args.exact, show_progress=False
        )
        if outcome.failed:
            raise RuntimeError(f"{len(outcome.failed)} cases failed: {next(iter(outcome.failed.values()))}")

    results = {
        "many folders": many_folders(predict, args.i, args.o, args.predictions),
        "one big folder": one_big_folder(predict, args.i, args.o, args.predictions),
    }
    rows = [{"way": way, **verdict(samples)} for way, samples in results.items()]
    table = tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3f")
    print(table)
    samples = {way: [asdict(sample) for sample in found] for way, found in results.items()}
    write_json_atomic(args.o / "soak.json", {"summary": rows, "samples": samples})
    with atomic_path(args.o / "soak.md") as partial:
        partial.write_text(table + "\n", encoding="utf-8")
    return 0 if all(row["flat"] for row in rows) else 1


def many_folders(predict: Callable[[Path, Path], None], images: Path, output: Path, wanted: int) -> list[Sample]:
    """The same images again and again, each time into a new folder, which is deleted."""
    num_cases = len(list(images.iterdir()))
    samples: list[Sample] = []
    while not samples or samples[-1].predictions < wanted:
        predict(images, output / "out")
        shutil.rmtree(output / "out")
        gc.collect()
        samples.append(Sample.now((len(samples) + 1) * num_cases))
    return samples


def one_big_folder(predict: Callable[[Path, Path], None], images: Path, output: Path, wanted: int) -> list[Sample]:
    """As many cases in one folder; a sample a second."""
    linked = output / "linked"
    shutil.rmtree(linked, ignore_errors=True)
    linked.mkdir(parents=True)
    given = sorted(images.resolve().iterdir())
    for number in range(wanted):
        source = given[number % len(given)]
        (linked / f"copy{number:05d}_{source.name}").symlink_to(source)
    samples: list[Sample] = []
    finished = threading.Event()

    def watch() -> None:
        while not finished.wait(1):
            classes = output / "out" / "classes"
            done = sum(name.endswith(".json") for name in os.listdir(classes)) if classes.is_dir() else 0
            samples.append(Sample.now(done))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        predict(linked, output / "out")
    finally:
        finished.set()
        watcher.join()
    print(f"{wanted} cases in one folder: {time.perf_counter() - started:.0f} s")
    shutil.rmtree(output / "out")
    shutil.rmtree(linked)
    gc.collect()
    samples.append(Sample.now(wanted))
    return samples


def verdict(samples: Sequence[Sample]) -> dict[str, Any]:
    """Medians of the tenth after the warm-up and of the last tenth, and whether anything grew."""
    total = samples[-1].predictions

    def between(start: float, end: float, name: str) -> float:
        values = [getattr(one, name) for one in samples if start * total <= one.predictions <= end * total]
        return statistics.median(values or [getattr(samples[-1], name)])

    early, late = (between(*tenth, "resident_mib") for tenth in ((0.1, 0.2), (0.9, 1)))
    growth = {
        name: between(0.9, 1, name) - between(0.1, 0.2, name)
        for name in ("open_files", "threads", "child_processes", "shared_memory")
    }
    return {
        "predictions": total,
        "MiB after warm-up": early,
        "MiB at the end": late,
        "ratio": late / early,
        **{f"more {name.replace('_', ' ')}": value for name, value in growth.items()},
        "flat": late <= (1 + TOLERANCE) * early and all(value <= 0 for value in growth.values()),
    }


if __name__ == "__main__":
    sys.exit(main())
