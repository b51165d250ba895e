"""Cost of every network beside nnU-Net's, on one plan: parameters, multiply-adds, peak memory, time of an iteration.

    python benchmarks/networks/network_cost.py -d 511 -p BrainTumPlans [-c 2d] [-device cpu|cuda] [-o FOLDER]
    python benchmarks/networks/network_cost.py -patch 128 128 -batch 4 [-n 3] [-threads N] [--compile] [--no_time]

Without a data set the plan is that of nnU-Net's ResEnc M for the patch. Every network is built by its trainer from that
plan; PlainConvUNet and ResidualEncoderUNet are trained by nnU-Net's own, the former with its two convolutions a level,
the latter with ResEnc M's blocks where the plan is for PlainConvUNet. The columns with a ratio divide by those two.

Multiply-adds are those of one patch's forward pass, with classes (torch's flop counter, halved; on fake tensors). Peak
memory is that of a training step with the plan's batch, weights and the state of the trainer's optimiser included
(nnU-Net's SGD has one moment, Adam two): on the CPU of fake tensors in float32, on CUDA what torch's allocator counts
under autocast. Time is that of a training step, loss and optimiser included and the loading of data not; each network
takes turns with nnU-Net's two, and medians count. Images are random.
"""

import argparse
import csv
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from tabulate import tabulate
from timing import times_in_turns
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from training_steps import (
    STOCK_TRAINER,
    TrainingStep,
    configuration_of,
    fake_step,
    peak_of_fake,
    peak_of_real,
    topology,
)

from braintum.architectures.input_channels import num_network_channels
from braintum.architectures.plan_topology import plain_arch_kwargs
from braintum.conversion.files.atomic import atomic_path
from braintum.planner.planning.presets import MEDIUM

PLAIN, RESIDUAL = PlainConvUNet.__name__, ResidualEncoderUNet.__name__
MEASURES = ("parameters", "multiply-adds", "peak bytes", "seconds")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", help="data-set id; default: none, see -patch")
    parser.add_argument("-p", default="BrainTumPlans", help="plans of the data set; default: %(default)s")
    parser.add_argument("-c", default="2d", help="configuration of the plans; default: %(default)s")
    parser.add_argument("-patch", type=int, nargs="+", default=[128, 128], help="without -d; default: %(default)s")
    parser.add_argument("-batch", type=int, help="default: the plan's, or 2")
    parser.add_argument("-heads", type=int, default=2, help="of the segmentation, without -d; default: %(default)s")
    parser.add_argument("-channels", type=int, default=1, help="of the images, without -d; default: %(default)s")
    parser.add_argument("-tr", nargs="+", help="trainers beside nnU-Net's; default: all of this package")
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("-threads", type=int, default=os.cpu_count(), help="on the CPU; default: %(default)s")
    parser.add_argument("-n", type=int, default=3, help="timed steps of each network; default: %(default)s")
    parser.add_argument("--compile", action="store_true", help="time the networks under torch.compile")
    parser.add_argument("--no_time", action="store_true", help="measure no time")
    parser.add_argument("-o", type=Path, help="folder for network_cost.csv and network_cost.md")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    torch.set_num_threads(args.threads)
    configuration, num_heads, num_channels, title = load_plan(args) if args.d else built_in_plan(args)
    candidates = networks(configuration, args.tr)
    dimensions = {"num_heads": num_heads, "num_channels": num_channels}
    measured: dict[str, dict[str, float]] = {}
    for label, (trainer, plan) in list(candidates.items()):
        try:
            measured[label] = cost(trainer, plan, args.device, **dimensions)
        except NotImplementedError as reason:  # networks of 2-D images say so
            print(f"{label}: {reason}", file=sys.stderr)
            del candidates[label]
            continue
        print(f"{label}: {measured[label]['peak bytes'] / 1e9:.3f} GB", file=sys.stderr, flush=True)
    if not args.no_time:
        options = {"device": args.device, "compiled": args.compile, **dimensions}
        references = {label: TrainingStep(*candidates[label], **options) for label in (PLAIN, RESIDUAL)}
        for label in candidates:  # three networks in memory at a time
            steps = {label: TrainingStep(*candidates[label], **options), **references}
            times = {
                name: statistics.median(values)
                for name, values in times_in_turns(steps, args.n, torch.device(args.device)).items()
            }
            measured[label] |= {"seconds": times[label], **{f"seconds of {name}": times[name] for name in references}}
            print(f"{label}: {times[label]:.3f} s", file=sys.stderr, flush=True)
    rows = table_rows(measured)
    report(rows, f"{title}, {describe_device(args)}", args.o)


# ---------------------------------------------------------------------- the plan


def built_in_plan(args: argparse.Namespace) -> tuple[dict[str, Any], int, int, str]:
    """nnU-Net's ResEnc M for a patch."""
    batch_size = args.batch or 2
    configuration = configuration_of(topology(args.patch, MEDIUM), args.patch, batch_size)
    patch = " x ".join(map(str, args.patch))
    return configuration, args.heads, args.channels, f"ResEnc M's plan for a patch of {patch}, batch {batch_size}"


def load_plan(args: argparse.Namespace) -> tuple[dict[str, Any], int, int, str]:
    """A configuration of a data set's plans, its segmentation heads and its network's channels.

    Raises:
        FileNotFoundError: no such plans.
        ValueError: they have no such configuration.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    folder = Path(str(nnUNet_preprocessed)) / maybe_convert_to_dataset_name(int(args.d))
    file = folder / f"{args.p}.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; plan the data set, or name other plans with -p")
    plans = json.loads(file.read_text(encoding="utf-8"))
    if args.c not in plans["configurations"]:
        raise ValueError(f"{file} has no configuration {args.c!r}; it has: {', '.join(plans['configurations'])}")
    dataset_json = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    manager = PlansManager(plans)
    configuration = dict(manager.get_configuration(args.c).configuration)
    configuration["batch_size"] = args.batch or configuration["batch_size"]
    num_heads = manager.get_label_manager(dataset_json).num_segmentation_heads
    num_channels = num_network_channels(len(dataset_json["channel_names"]), configuration)
    patch = " x ".join(map(str, configuration["patch_size"]))
    title = f"{folder.name}, {args.p}, {args.c}: patch {patch}, batch {configuration['batch_size']}"
    stripped = configuration_of(configuration["architecture"], configuration["patch_size"], configuration["batch_size"])
    return stripped, num_heads, num_channels, title


def networks(configuration: Mapping[str, Any], trainers: Sequence[str] | None) -> dict[str, tuple[str, dict[str, Any]]]:
    """Label of each row, its trainer and its configuration; nnU-Net's two networks first."""
    from braintum.trainers import registered

    rows = {
        PLAIN: (STOCK_TRAINER, with_network(configuration, PlainConvUNet)),
        RESIDUAL: (STOCK_TRAINER, with_network(configuration, ResidualEncoderUNet)),
    }
    chosen = registered.__all__ if trainers is None else trainers
    if unknown := sorted(set(chosen) - set(registered.__all__)):
        raise ValueError(f"no trainer of this package: {', '.join(unknown)}")
    return rows | {name.removeprefix(STOCK_TRAINER): (name, dict(configuration)) for name in chosen}


def with_network(configuration: Mapping[str, Any], network_class: type) -> dict[str, Any]:
    """The configuration with one of nnU-Net's networks, on the same stages, features, strides and kernels."""
    architecture = dict(configuration["architecture"])
    arguments = dict(architecture["arch_kwargs"])
    if network_class is PlainConvUNet:
        arguments = plain_arch_kwargs(arguments)
    elif "n_conv_per_stage" in arguments:
        stages = arguments["n_stages"]
        del arguments["n_conv_per_stage"]
        arguments["n_blocks_per_stage"] = list(MEDIUM.blocks_per_stage_encoder[:stages])
        arguments["n_conv_per_stage_decoder"] = list(MEDIUM.blocks_per_stage_decoder[: stages - 1])
    architecture["network_class_name"] = f"{network_class.__module__}.{network_class.__qualname__}"
    return {**configuration, "architecture": {**architecture, "arch_kwargs": arguments}}


# ---------------------------------------------------------------------- measurements


def cost(trainer: str, configuration: Mapping[str, Any], device: str, **dimensions: int) -> dict[str, float]:
    """Parameters, multiply-adds of a patch, and peak memory of a step.

    Raises:
        NotImplementedError: the network is for other dimensions.
    """
    step = fake_step(trainer, {**configuration}, **dimensions)
    result = {
        "parameters": float(step.num_parameters),
        "multiply-adds": multiply_adds(step) / configuration["batch_size"],
    }
    if device == "cpu":
        return {**result, "peak bytes": float(peak_of_fake(step))}
    real = TrainingStep(trainer, configuration, device=device, **dimensions)
    peak = peak_of_real(real)
    del real
    torch.cuda.empty_cache()
    return {**result, "peak bytes": float(peak)}


def multiply_adds(step: TrainingStep) -> float:
    """Of the forward pass of the whole batch, classes included; convolutions, matrix products and attention count."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad(), FlopCounterMode(display=False) as counter:
        if step.classifies:
            step.bare_network(step.data, with_classes=True)
        else:
            step.bare_network(step.data)
    return counter.get_total_flops() / 2


# ---------------------------------------------------------------------- table


def table_rows(measured: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """One row a network: every measure, and its ratios to nnU-Net's two networks; of times, to those beside it."""
    rows = []
    for label, values in measured.items():
        row: dict[str, Any] = {"network": label}
        for measure in MEASURES:
            if measure not in values:
                continue
            row[measure] = values[measure]
            for reference, short in ((PLAIN, "plain"), (RESIDUAL, "residual")):
                beside = values.get(f"{measure} of {reference}", measured[reference][measure])
                row[f"{measure} / {short}"] = values[measure] / beside
        rows.append(row)
    return rows


UNITS = {
    "parameters": ("parameters, M", 1e6),
    "multiply-adds": ("multiply-adds, G", 1e9),
    "peak bytes": ("peak memory, GB", 1e9),
    "seconds": ("iteration, ms", 1e-3),
}


def report(rows: Sequence[Mapping[str, Any]], title: str, folder: Path | None) -> None:
    """Print the table; write it, where a folder is given."""
    shown = []
    for row in rows:
        cells = {"network": row["network"]}
        for measure, (name, unit) in UNITS.items():
            if measure in row:
                cells[name] = f"{row[measure] / unit:.4g}"
                cells[f"/ plain, / residual ({measure})"] = (
                    f"{row[f'{measure} / plain']:.2f}, {row[f'{measure} / residual']:.2f}"
                )
        shown.append(cells)
    table = tabulate(shown, headers="keys", tablefmt="github", disable_numparse=True)
    print(f"{title}\n\n{table}")
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / "network_cost.md") as partial:
        partial.write_text(f"{title}\n\n{table}\n", encoding="utf-8")
    with atomic_path(folder / "network_cost.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def describe_device(args: argparse.Namespace) -> str:
    compiled = ", torch.compile" if args.compile else ""
    if args.device == "cuda":
        return f"{torch.cuda.get_device_name()}, autocast{compiled}, torch {torch.__version__}"
    return f"CPU, float32, {args.threads} thread(s){compiled}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
