r"""What a checkpoint costs the training: seconds until ``save_checkpoint`` returns, before and in the background.

    python benchmarks/networks/checkpoint_time.py [-tr nnUNetTrainerMultiTask] [-patch 160 160] [-n 9] \
        [-device cpu] [-o FOLDER]

The network is the trainer's on nnU-Net's ResEnc M plan for the patch, after one training step, so that the optimiser
has its state. ``before`` is nnU-Net's own ``save_checkpoint`` and a rename, which is what our trainers did;
``background`` is what they do within ``run_training``. Both take turns. One epoch may end with three checkpoints
(latest, best and best joint): those are measured in a row, too. The last rows are training steps, alone and while a
checkpoint is written. The files go to a temporary folder, or one in FOLDER.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from tabulate import tabulate
from timing import synchronise
from training_steps import TrainingStep, configuration_of, topology

from braintum.planner.planning.presets import MEDIUM
from braintum.trainers.safety.checkpoint_writer import CheckpointWriter

NAMES = ("checkpoint_latest", "checkpoint_best", "checkpoint_best_joint")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-tr", default="nnUNetTrainerMultiTask", help="default: %(default)s")
    parser.add_argument("-patch", type=int, nargs="+", default=[160, 160], help="default: %(default)s")
    parser.add_argument("-n", type=int, default=9, help="repetitions; default: %(default)s")
    parser.add_argument("-device", default="cpu", help="default: %(default)s")
    parser.add_argument("-o", type=Path, help="default: the system's folder for temporary files")
    return parser


def main() -> int:
    args = build_parser().parse_args()
    step = TrainingStep(args.tr, configuration_of(topology(args.patch, MEDIUM), args.patch, 2), device=args.device)
    trainer = step.trainer
    trainer.optimizer, trainer.grad_scaler = step.optimizer, step.scaler
    train(step)
    with tempfile.TemporaryDirectory(dir=args.o) as folder:
        files = [str(Path(folder, f"{name}.pth")) for name in NAMES]

        def before(file: str) -> None:
            nnUNetTrainer.save_checkpoint(trainer, f"{file}.partial")
            os.replace(f"{file}.partial", file)

        measured: dict[str, dict[str, list[float]]] = {}

        def note(what: str, way: str, action: Callable[[], None]) -> None:
            measured.setdefault(what, {}).setdefault(way, []).append(seconds(action))

        with CheckpointWriter() as writer:
            for _ in range(args.n):
                for what, chosen in (("one checkpoint", files[:1]), ("three of one epoch", files)):
                    note(what, "before", lambda chosen=chosen: [before(file) for file in chosen])  # type: ignore[misc]
                    trainer.checkpoint_writer = writer
                    note(
                        what,
                        "background",
                        lambda chosen=chosen: [trainer.save_checkpoint(file) for file in chosen],  # type: ignore[misc]
                    )
                    note(what, "until written", writer.wait)
                note("training step", "alone", lambda: train(step))
                trainer.save_checkpoint(files[0])
                note("training step", "while writing", lambda: train(step))
                writer.wait()
        size = os.path.getsize(files[0]) / 2**20
    print(f"{args.tr}: {step.num_parameters / 1e6:.1f} M parameters, {size:.0f} MiB a checkpoint, {args.n} repetitions")
    rows = [
        [what, way, statistics.median(times), min(times), max(times)]
        for what, ways in measured.items()
        for way, times in ways.items()
    ]
    print(tabulate(rows, ["", "", "median s", "min", "max"], floatfmt=".3f"))
    for what in list(measured)[:2]:
        pairs = zip(measured[what]["background"], measured[what]["before"], strict=True)
        print(
            f"{what}: background / before = {statistics.median(new / old for new, old in pairs):.2f} (median of pairs)"
        )
    return 0


def train(step: TrainingStep) -> None:
    """One iteration, finished."""
    step()
    synchronise(step.device)


def seconds(action: Callable[[], object]) -> float:
    """Wall-clock time."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
