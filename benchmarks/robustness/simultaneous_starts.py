"""Many processes begin to train, plan and preprocess, or predict the same data set at the same moment.

    python benchmarks/robustness/simultaneous_starts.py --starts 50 -o starts.json

Counts failures of our classes and of nnU-Net's own, each on a synthetic data set without splits: an exception, a file
that is no complete JSON at any moment that it is looked at, or a result that differs from that of one start.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PADDING = 4000
"""Cases of the splits: a file of many blocks takes long enough to be read half-written."""


def splits_by_trainers(stock: bool, preprocessed: Path) -> None:
    """What the first training of a data set does with ``splits_final.json``: ``do_split``."""
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock_module

    from braintum.conversion.files.atomic import atomic_writes_of

    trainer: Any = SplittingTrainer(stock_module, str(preprocessed))
    if stock:
        trainer.do_split()
    else:
        with atomic_writes_of(stock_module):  # as our trainers do
            trainer.do_split()


class SplittingTrainer:
    """As much of nnU-Net's trainer as its ``do_split`` asks for, with many cases."""

    fold, local_rank = 0, 0
    folder_with_segs_from_previous_stage = None

    def __init__(self, module: Any, folder: str) -> None:
        self.preprocessed_dataset_folder_base = self.preprocessed_dataset_folder = folder
        self._do_split = module.nnUNetTrainer.do_split
        self.dataset_class: Any = lambda *_, **__: self
        self.identifiers = [f"case_{number:06d}" for number in range(_PADDING)]

    def print_to_log_file(self, *_: Any) -> None:
        """Nothing."""

    def do_split(self) -> Any:
        """Of nnU-Net."""
        return self._do_split(self)


def preprocess_by_planners(stock: bool, preprocessed: Path) -> None:
    """Preprocess a data set: nnU-Net's preprocessor deletes the folder that another one writes to."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess

    name = "nnUNetPlans" if stock else "BrainTumLightPlans"
    multiprocessing.get_context = lambda method=None: multiprocessing.dummy  # type: ignore[assignment]
    preprocess([7], name, ["2d"], num_processes=[1], show_progress_bar=False)
    plans = json.loads((preprocessed / f"{name}.json").read_text())
    folder = preprocessed / plans["configurations"]["2d"]["data_identifier"]
    raw = Path(os.environ["nnUNet_raw"]) / preprocessed.name / "labelsTr"  # noqa: SIM112
    cases, wanted = len(list(folder.glob("*.pkl"))), len(list(raw.iterdir()))
    if cases != wanted:
        raise RuntimeError(f"{folder.name} holds {cases} of {wanted} cases")


def start_all(number: int, work: Callable[[bool, Path], None], stock: bool, preprocessed: Path) -> list[str]:
    """Fork so many processes, which begin at the same moment; the failures, a line each."""
    moment, failures = time.time() + 1, []
    pipes = []
    for _ in range(number):
        reader, writer = os.pipe()
        if os.fork() == 0:
            fault = ""
            try:
                time.sleep(max(0, moment - time.time()))
                work(stock, preprocessed)
            except BaseException as error:
                fault = traceback.format_exception_only(error)[-1].strip()
            os.write(writer, fault.encode()[:4000])
            os._exit(0)
        os.close(writer)
        pipes.append(reader)
    for pipe in pipes:
        with os.fdopen(pipe, "rb") as stream:
            if fault := stream.read().decode():
                failures.append(fault)
        os.wait()
    return failures


def count_split_failures(starts: int, rounds: int, stock: bool) -> Counter[str]:
    """Failures of trainings that find no splits, by kind."""
    failures: Counter[str] = Counter()
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            found = start_all(starts, splits_by_trainers, stock, Path(folder))
            failures.update(fault.partition(":")[0] for fault in found)
    return failures


def count_preprocessing_failures(starts: int, rounds: int, stock: bool, preprocessed: Path) -> Counter[str]:
    """Failures of preprocessings of one data set, by kind."""
    failures: Counter[str] = Counter()
    for _ in range(rounds):
        found = start_all(starts, preprocess_by_planners, stock, preprocessed)
        failures.update(fault.partition(":")[0] for fault in found)
    return failures


def plan_data_set(folder: Path) -> Path:
    """A synthetic data set 7, planned by nnU-Net's planner and by ours; its folder in ``nnUNet_preprocessed``."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (folder / name).mkdir()
        os.environ[name] = str(folder / name)
    import braintum as bt
    from braintum.conversion.sources.phantoms import write_figshare_phantoms

    write_figshare_phantoms(folder / "source", n_patients=5, slices_per_patient=2, size=64)
    bt.convert("figshare", folder / "source", 7, n_processes=1)
    plans = bt.plan(7, planner="BrainTumPlannerLight", preprocess=False, num_processes=1)
    bt.plan(7, planner="ExperimentPlanner", preprocess=False, num_processes=1)
    return plans.parent


def main() -> None:
    """Print and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=50, help="processes at the same moment; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("-o", type=Path, help="JSON file of the counts")
    args = parser.parse_args()
    results: dict[str, Any] = {"starts": args.starts, "rounds": args.rounds}
    with tempfile.TemporaryDirectory() as folder:
        preprocessed = plan_data_set(Path(folder))
        for stock in (True, False):
            for what, failures in (
                ("splits", count_split_failures(args.starts, args.rounds, stock)),
                ("preprocessing", count_preprocessing_failures(args.starts, args.rounds, stock, preprocessed)),
            ):
                name = f"{what}, {'nnU-Net' if stock else 'braintum'}"
                results[name] = dict(failures)
                print(
                    f"{name}: {sum(failures.values())} of {args.starts * args.rounds} failed {dict(failures)}",
                    flush=True,
                )
    if args.o is not None:
        args.o.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
