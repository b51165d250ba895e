"""One joint model against two separate ones, in quality and in latency, as paper 001 asks.

    python benchmarks/accuracy/joint_against_separate.py -d 511 -p BrainTumPlans -models nnUNet_results -o OUTPUT
        [-c 2d] [-f 0] [-joint TRAINER] [-separate SEGMENTATION_TRAINER CLASS_TRAINER] [-cases 20] [-n 5] [-device cpu]

The three models have to be trained on this fold, with their final validation; give them the same budget, as
train_papers.py does. Nothing is trained here. Two quantities of time are measured, the systems taking turns in an order
that changes from one to the next:

- the networks alone: sliding window, mirrors and weights of this fold on preprocessed cases in memory, in seconds a
  case. Two separate models run one after the other.
- the whole command: braintum_predict -m JOINT against braintum_predict -m SEGMENTATION --class-model CLASSES on the
  images of these cases, start of the process included, in seconds a case by the clock and of the processor (user and
  system, over all threads). Where other work shares the machine, trust the latter.

Reported are medians over the repetitions, and medians and quartiles of the paired ratios. Multiply-adds are those of
the convolutions and matrix products of one patch (torch.utils.flop_counter), without mirrors. Quality is that of the
held-out fold as braintum_evaluate counts it. Writes OUTPUT/joint_against_separate.csv and .md.
"""

import argparse
import csv
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate
from train_papers import cell, figures

from braintum.commands.command import run_command
from braintum.conversion.files.atomic import atomic_path

CHECKPOINT = "checkpoint_final.pth"  # the one that the final validation predicted with
JOINT, SEPARATE = "joint", "two models"
QUALITY = ("Dice", "IoU", "HD95", "accuracy", "macro-F1")
NETWORKS = "networks, seconds a case"
COMMAND, PROCESSOR = "command, seconds a case", "command, processor seconds a case"
COSTS = ("parameters", "multiply-adds a patch", NETWORKS, COMMAND, PROCESSOR)
COLUMNS = ("system", "trainers", *QUALITY, "length unit", "held-out cases", *COSTS)


@dataclass(frozen=True)
class System:
    """What is compared: one model that does both, or two.

    Attributes:
        name: in tables.
        masks: folder of the model that segments.
        classes: folder of the model that predicts the class; the same for a joint model.
        seconds: measured times by column, one a repetition.
    """

    name: str
    masks: Path
    classes: Path
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def is_joint(self) -> bool:
        return self.masks == self.classes

    @property
    def trainers(self) -> str:
        folders = dict.fromkeys((self.masks, self.classes))
        return " + ".join(folder.name.partition("__")[0] for folder in folders)

    def arguments(self, fold: int) -> list[str]:
        """Of ``braintum_predict``."""
        chosen = ["-m", str(self.masks), "-f", str(fold), "-chk", CHECKPOINT]
        if not self.is_joint:
            chosen += ["--class-model", str(self.classes), "--class-folds", str(fold), "--class-checkpoint", CHECKPOINT]
        return chosen


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", required=True, help="data-set id")
    parser.add_argument("-p", default="BrainTumPlans", help="plans; default: %(default)s")
    parser.add_argument("-c", default="2d", help="configuration; default: %(default)s")
    parser.add_argument("-f", type=int, default=0, help="fold; default: %(default)s")
    parser.add_argument("-joint", default="nnUNetTrainerJointUNet", help="trainer; default: %(default)s")
    parser.add_argument(
        "-separate",
        nargs=2,
        metavar=("SEGMENTATION_TRAINER", "CLASS_TRAINER"),
        default=["nnUNetTrainerUNet", "nnUNetTrainerClassifierUNet"],
        help="default: %(default)s",
    )
    parser.add_argument("-models", type=Path, help="folder of trained models; default: nnUNet_results")
    parser.add_argument("-o", type=Path, required=True, help="output folder")
    parser.add_argument("-cases", type=int, default=20, help="of the held-out fold to time; default: %(default)s")
    parser.add_argument("-n", type=int, default=5, help="repetitions; default: %(default)s")
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    return parser


def compare(argv: list[str] | None = None) -> None:
    """Measure and write the tables."""
    args = build_parser().parse_args(argv)
    if args.n < 2 or args.cases < 1:
        raise ValueError(f"-n {args.n} -cases {args.cases}: paired ratios need two repetitions, and at least one case")
    from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw, nnUNet_results
    from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

    name = maybe_convert_to_dataset_name(int(args.d) if args.d.isdecimal() else args.d)
    models = args.models or Path(nnUNet_results.get())
    joint, masks, classes = trained_models(models / name, [args.joint, *args.separate], args)
    systems = [System(JOINT, joint, joint), System(SEPARATE, masks, classes)]
    rows = [quality(system, args.f) for system in systems]

    preprocessed = Path(nnUNet_preprocessed.get()) / name
    splits = json.loads((preprocessed / "splits_final.json").read_text(encoding="utf-8"))
    held_out = sorted(splits[args.f]["val"])
    cases = held_out[:: max(1, len(held_out) // args.cases)][: args.cases]
    for row, system in zip(rows, systems, strict=True):
        row |= cost(system, args)
    time_networks(systems, preprocessed, cases, args)
    time_commands(systems, Path(nnUNet_raw.get()) / name / "imagesTr", cases, args)
    for row, system in zip(rows, systems, strict=True):
        row |= {column: statistics.median(values) for column, values in system.seconds.items()}
    write_tables(args, rows, systems, len(cases))


def trained_models(dataset_folder: Path, trainers: Sequence[str], args: argparse.Namespace) -> list[Path]:
    """Model folders of trainers.

    Raises:
        FileNotFoundError: some are not trained on this fold, or not validated; says how to do so.
    """
    folders = [dataset_folder / f"{trainer}__{args.p}__{args.c}" for trainer in trainers]
    missing = [
        trainer
        for trainer, folder in zip(trainers, folders, strict=True)
        if not (folder / f"fold_{args.f}" / CHECKPOINT).is_file()
        or not (folder / f"fold_{args.f}" / "validation" / "summary.json").is_file()
    ]
    if missing:
        raise FileNotFoundError(
            f"{dataset_folder} has no finished fold {args.f} of {', '.join(missing)} with {args.p} {args.c}. Train "
            f"with equal budgets: python benchmarks/accuracy/train_papers.py -d {args.d} -p {args.p} -c {args.c} "
            f"-f {args.f} -o FOLDER -tr {' '.join(missing)} (and -models FOLDER/nnUNet_results here); or in full: "
            + "; ".join(f"nnUNetv2_train {args.d} {args.c} {args.f} -p {args.p} -tr {trainer}" for trainer in missing)
        )
    return folders


def quality(system: System, fold: int) -> dict[str, Any]:
    """Of the masks, and of the classes, on the held-out fold."""
    masks = figures(system.masks, fold, segments=True)
    classes = masks if system.is_joint else figures(system.classes, fold, segments=False)
    if masks["cases"] != classes["cases"]:
        raise ValueError(
            f"{system.masks} was validated on {masks['cases']} cases of fold {fold}, {system.classes} on "
            f"{classes['cases']}; train both with the same splits_final.json"
        )
    return {
        "system": system.name,
        "trainers": system.trainers,
        **{name: masks[name] for name in ("Dice", "IoU", "HD95", "length unit")},
        **{name: classes[name] for name in ("accuracy", "macro-F1")},
        "held-out cases": masks["cases"],
    }


def load_predictors(system: System, args: argparse.Namespace) -> list[Any]:
    """One predictor for a joint model, two for separate ones; settings are those of ``braintum_predict``."""
    import torch

    from braintum.inference.models.segmentation_predictor import SegmentationPredictor
    from braintum.inference.prediction.joint_predictor import JointPredictor

    kinds = [JointPredictor] if system.is_joint else [SegmentationPredictor, JointPredictor]
    predictors = []
    for kind, folder in zip(kinds, (system.masks, system.classes), strict=False):
        predictor = kind(
            perform_everything_on_device=args.device == "cuda", device=torch.device(args.device), allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(str(folder), [args.f], CHECKPOINT)
        predictors.append(predictor)
    return predictors


def cost(system: System, args: argparse.Namespace) -> dict[str, int]:
    """Parameters, and multiply-adds of one patch, of all networks of a system together."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from braintum.architectures.input_channels import num_network_channels
    from braintum.inference.prediction.joint_predictor import JointPredictor

    parameters = multiply_adds = 0
    for predictor in load_predictors(system, args):
        network = predictor.network.eval()
        configuration = predictor.configuration_manager
        channels = num_network_channels(len(predictor.dataset_json["channel_names"]), configuration.configuration)
        counter = FlopCounterMode(display=False)
        # the class head counts where it is asked for
        options = {"with_classes": True} if isinstance(predictor, JointPredictor) else {}
        with torch.inference_mode(), counter:
            network(torch.zeros(1, channels, *configuration.patch_size), **options)
        parameters += sum(parameter.numel() for parameter in network.parameters())
        multiply_adds += counter.get_total_flops() // 2
    return {"parameters": parameters, "multiply-adds a patch": multiply_adds}


def take_turns(systems: Sequence[System], turn: int) -> list[System]:
    """The systems in the order of this turn."""
    return list(systems) if turn % 2 == 0 else list(reversed(systems))


def time_networks(
    systems: Sequence[System], preprocessed: Path, cases: Sequence[str], args: argparse.Namespace
) -> None:
    """Seconds a case of the networks on preprocessed cases in memory; one warm-up, then one mean a repetition."""
    import torch
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    torch.set_num_threads((os.cpu_count() or 1) if args.device == "cpu" else 1)
    predictors = {system.name: load_predictors(system, args) for system in systems}
    identifier = predictors[JOINT][0].configuration_manager.data_identifier
    folder = str(preprocessed / identifier)
    dataset = infer_dataset_class(folder)(folder, list(cases))
    images = [torch.from_numpy(dataset.load_case(case)[0][:].astype("float32")) for case in cases]

    def predict(system: System, image: Any) -> float:
        started = time.perf_counter()
        for predictor in predictors[system.name]:
            predictor.predict_logits_from_preprocessed_data(image)  # comes back on the CPU, so it is complete
        return time.perf_counter() - started

    for system in systems:
        predict(system, images[0])
    for repetition in range(args.n):
        seconds = {system.name: 0.0 for system in systems}
        for number, image in enumerate(images):
            for system in take_turns(systems, repetition + number):
                seconds[system.name] += predict(system, image)
        for system in systems:
            system.seconds.setdefault(NETWORKS, []).append(seconds[system.name] / len(images))


def time_commands(systems: Sequence[System], images: Path, cases: Sequence[str], args: argparse.Namespace) -> None:
    """Seconds a case of ``braintum_predict`` as a process of its own; one warm-up each, for the disk's cache."""
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "images"
        source.mkdir()
        for case in cases:
            for file in images.glob(f"{case}_[0-9][0-9][0-9][0-9].*"):
                shutil.copy(file, source)
        for repetition in range(-1, args.n):
            for system in take_turns(systems, repetition):
                target = Path(temporary) / f"{system.name} {repetition}"
                wall, processor = run_predict(system, source, target, args)
                found = len(list((target / "classes").glob("*.json")))
                if found != len(cases):
                    raise ValueError(f"{system.name}: {found} of {len(cases)} cases in {images} were predicted")
                if repetition >= 0:
                    system.seconds.setdefault(COMMAND, []).append(wall / len(cases))
                    system.seconds.setdefault(PROCESSOR, []).append(processor / len(cases))


def run_predict(system: System, source: Path, target: Path, args: argparse.Namespace) -> tuple[float, float]:
    """Wall time and processor time of one command, in seconds.

    Raises:
        ValueError: it failed.
    """
    code = "import sys; from braintum.inference.cli import main; sys.exit(main())"
    options = ["-i", str(source), "-o", str(target), "-device", args.device, "--disable_progress_bar"]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    finished = subprocess.run(
        [sys.executable, "-c", code, *options, *system.arguments(args.f)], capture_output=True, text=True, check=False
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if finished.returncode:
        raise ValueError(f"braintum_predict {' '.join(system.arguments(args.f))} failed:\n{finished.stderr}")
    return seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def paired_ratios(systems: Sequence[System], column: str) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the joint model's time over that of the separate ones."""
    joint, separate = (system.seconds[column] for system in systems)
    ratios = [first / second for first, second in zip(joint, separate, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, median, high


def write_tables(
    args: argparse.Namespace, rows: Sequence[Mapping[str, Any]], systems: Sequence[System], num_timed: int
) -> None:
    """A row a system as CSV; as Markdown turned on its side, with the ratios."""
    args.o.mkdir(parents=True, exist_ok=True)
    table_file = args.o / "joint_against_separate.csv"
    with atomic_path(table_file) as partial, open(partial, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    ratio: dict[str, str] = {
        column: f"{rows[0][column] / rows[1][column]:.3f}" for column in ("parameters", "multiply-adds a patch")
    }
    for column in (NETWORKS, COMMAND, PROCESSOR):
        low, median, high = paired_ratios(systems, column)
        ratio[column] = f"{median:.3f} ({low:.3f} to {high:.3f})"
    table = tabulate(
        [[column, *(cell(row[column]) for row in rows), ratio.get(column, "")] for column in COLUMNS[1:]],
        ["", *(row["system"] for row in rows), f"{JOINT} / {SEPARATE}"],
        "github",
        disable_numparse=True,
    )
    heading = (
        f"Data set {args.d}, {args.p}, {args.c}, fold {args.f}; times of {num_timed} of the held-out cases on "
        f"{device_name(args.device)}, medians of {args.n} repetitions; ratios are paired, with quartiles"
    )
    with atomic_path(args.o / "joint_against_separate.md") as partial:
        partial.write_text(f"{heading}\n\n{table}\n", encoding="utf-8")
    print(f"{heading}\n\n{table}")


def device_name(device: str) -> str:
    if device == "cpu":
        return f"{os.cpu_count()} CPU cores"
    import torch

    return torch.cuda.get_device_name()


def main() -> int:
    return run_command(compare)


if __name__ == "__main__":
    sys.exit(main())
