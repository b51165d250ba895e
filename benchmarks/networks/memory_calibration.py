"""Memory of the papers' planner presets: measures the constants that they carry, and checks what they plan.

    python benchmarks/networks/memory_calibration.py calibrate [-device cpu|cuda] [-presets BRAINTUMNET …]
    python benchmarks/networks/memory_calibration.py check [-device cpu|cuda] [-presets …] [--all] [-o FOLDER]
    python benchmarks/networks/memory_calibration.py crosscheck [-presets …]

A training step (forward, losses, backward, clipping, optimiser with its state) of the preset's trainer is measured on
the topologies that the preset plans for several patches and batches, in 2-D and 3-D. On the CPU, in float32, the
storages of fake tensors are followed, which takes no memory. ``crosscheck`` compares that, and the plan, with the
events of the real allocator on small patches: those also count what a kernel takes for itself, such as a convolution's
copies in another layout. On CUDA, under autocast, real steps are measured with torch.cuda.max_memory_allocated.

``calibrate`` fits bytes per feature-map element, by nnU-Net's count, for presets.py. ``check`` measures on other
patches, batches, numbers of channels and labels and compares with what is planned: on the CPU with the fitted law,
on CUDA with the planner's own count against -gpu_memory_target. Both checks exit with 1 if a preset's network is more
than 15 % off.
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from tabulate import tabulate
from training_steps import (
    STOCK_TRAINER,
    TrainingStep,
    configuration_of,
    fake_step,
    peak_of_fake,
    peak_of_real,
    topology,
)

from braintum.conversion.files.atomic import atomic_path
from braintum.planner.planning import presets
from braintum.planner.planning.memory import planned_network

LARGEST_DEVIATION = 0.15
HALF_PRECISION_COPY = 2.0
"""Bytes of a parameter that autocast keeps for the backward pass."""


@dataclass(frozen=True)
class Case:
    """What is measured: patch, batch, segmentation heads and channels."""

    patch_size: tuple[int, ...]
    batch_size: int
    num_heads: int = 2
    num_channels: int = 1


FITTED = (
    Case((128, 128), 8),
    Case((256, 256), 4),
    Case((256, 256), 16, 4, 4),
    Case((512, 384), 8),
    Case((64, 64, 64), 2),
    Case((128, 128, 128), 2, 4, 4),
)
CHECKED = (
    Case((192, 160), 12, 3),
    Case((320, 320), 6),
    Case((160, 128), 24, 4, 4),
    Case((448, 512), 2),
    Case((96, 96, 96), 2),
    Case((160, 128, 112), 2, 4, 4),
)
SMALL = (Case((128, 96), 8), Case((48, 48, 48), 2))
"""On which the real allocator is compared with fake tensors and with the plan."""

TRAINERS: dict[str, tuple[str, ...]] = {
    "BRAINTUMNET": (
        "nnUNetTrainerBrainTumNet",
        "nnUNetTrainerBrainTumNetNoInception",
        "nnUNetTrainerBrainTumNetNoTransformer",
    ),
    "JOINT_UNET": ("nnUNetTrainerJointUNet", "nnUNetTrainerUNet", "nnUNetTrainerAttentionUNet"),
    "RESSE_LKA": ("nnUNetTrainerResSELKA", "nnUNetTrainerResSELKAMultiTask"),
    "RESIDUAL_UNET": ("nnUNetTrainerResidualUNet",),
}
"""Preset, the trainer that it is calibrated for, and further ones that its plans are for."""


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("calibrate", "check", "crosscheck"))
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("-presets", nargs="+", choices=TRAINERS, default=list(TRAINERS), help="default: all")
    parser.add_argument("--all", action="store_true", help="check every trainer that the presets' plans are for")
    parser.add_argument("-o", type=Path, help="folder for the table, as CSV and Markdown")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    if args.what == "calibrate":
        rows = calibrate(args.presets, args.device)
    elif args.what == "check":
        rows = check(args.presets, args.device, args.all)
    else:
        rows = crosscheck(args.presets)
    table = tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g")
    print(f"{describe(args.device)}\n\n{table}")
    if args.o:
        write_tables(rows, table, args.o, f"memory_{args.what}_{args.device}")
    if any(row.get("within 15 %") == "no" for row in rows):
        sys.exit(1)


def describe(device: str) -> str:
    where = f"{torch.cuda.get_device_name()}, autocast" if device == "cuda" else "CPU, float32"
    return f"{where}, torch {torch.__version__}"


def calibrate(names: Sequence[str], device: str) -> list[dict[str, Any]]:
    """Constants of nnU-Net's ResEnc M and of the presets."""
    rows = [fit("RESIDUAL_ENCODER_M", STOCK_TRAINER, presets.MEDIUM, presets.RESIDUAL_ENCODER_M, device)]
    for name in names:
        preset = getattr(presets, name)
        rows.append(fit(name, TRAINERS[name][0], preset, preset.measured, device))
    for row in rows:
        row["relative"] = row["bytes per element"] / rows[0]["bytes per element"]
    return rows


def fit(
    name: str, trainer: str, preset: presets.PlannerPreset, law: presets.MeasuredMemory, device: str
) -> dict[str, Any]:
    """Bytes per element that make the largest relative deviation smallest."""
    per_parameter = law.bytes_per_parameter + (HALF_PRECISION_COPY if device == "cuda" else 0)
    peaks, elements, parameters = [], [], []
    for case in FITTED:
        peaks.append(measured_peak(trainer, preset, case, device))
        counted = counts(preset, case)
        elements.append(counted[0])
        parameters.append(counted[1])
        progress(f"{name}: {case}, {peaks[-1] / 1e9:.3f} GB")
    fixed = per_parameter * np.array(parameters)

    def deviation(per_element: float) -> float:
        return float(np.abs((fixed + per_element * np.array(elements)) / np.array(peaks) - 1).max())

    found = minimize_scalar(deviation, bounds=(0.5, 50), method="bounded")
    return {
        "preset": name,
        "trainer": trainer,
        "bytes per parameter": per_parameter,
        "bytes per element": float(found.x),
        "largest deviation": float(found.fun),
    }


def check(names: Sequence[str], device: str, all_trainers: bool = False) -> list[dict[str, Any]]:
    """Planned against measured memory, on cases that nothing was fitted to."""
    rows = []
    for name in names:
        preset = getattr(presets, name)
        for trainer in TRAINERS[name] if all_trainers else TRAINERS[name][:1]:
            for case in CHECKED:
                planned, measured = planned_bytes(preset, case, device), measured_peak(trainer, preset, case, device)
                decides = trainer == TRAINERS[name][0]
                off = planned / measured - 1
                rows.append(
                    {
                        "preset": name,
                        "trainer": trainer,
                        "patch": " x ".join(map(str, case.patch_size)),
                        "batch": case.batch_size,
                        "heads": case.num_heads,
                        "channels": case.num_channels,
                        "planned GB": planned / 1e9,
                        "measured GB": measured / 1e9,
                        "deviation": off,
                        "within 15 %": ("yes" if abs(off) <= LARGEST_DEVIATION else "no") if decides else "–",
                    }
                )
                progress(f"{trainer}: {case}, {off:+.1%}")
    return rows


def crosscheck(names: Sequence[str]) -> list[dict[str, Any]]:
    """The real allocator of the CPU against fake tensors, and against what is planned."""
    rows = []
    for name in names:
        trainer, preset = TRAINERS[name][0], getattr(presets, name)
        for case in SMALL:
            fake = measured_peak(trainer, preset, case, "cpu")
            real = peak_of_real(step_of(TrainingStep, trainer, preset, case))
            off = planned_bytes(preset, case, "cpu") / real - 1
            rows.append(
                {
                    "preset": name,
                    "trainer": trainer,
                    "patch": " x ".join(map(str, case.patch_size)),
                    "batch": case.batch_size,
                    "fake GB": fake / 1e9,
                    "real GB": real / 1e9,
                    "fake / real": fake / real,
                    "planned against real": off,
                    "within 15 %": "yes" if abs(off) <= LARGEST_DEVIATION else "no",
                }
            )
            progress(f"{trainer}: {case}, fake / real {fake / real:.3f}, planned {off:+.1%}")
    return rows


def step_of(make: Any, trainer: str, preset: presets.PlannerPreset, case: Case, **arguments: Any) -> TrainingStep:
    configuration = configuration_of(topology(case.patch_size, preset), case.patch_size, case.batch_size)
    return make(trainer, configuration, num_heads=case.num_heads, num_channels=case.num_channels, **arguments)


def measured_peak(trainer: str, preset: presets.PlannerPreset, case: Case, device: str) -> int:
    """Bytes at the peak of a training step."""
    if device == "cpu":
        return peak_of_fake(step_of(fake_step, trainer, preset, case))
    torch.cuda.empty_cache()
    return peak_of_real(step_of(TrainingStep, trainer, preset, case, device=device))


def counts(preset: presets.PlannerPreset, case: Case) -> tuple[float, int]:
    """Elements of the batch and parameters, as the planner counts them."""
    network = planned_network(
        topology(case.patch_size, preset), case.num_channels, case.num_heads, None, preset.trained_network
    )
    elements = preset.memory_estimate(network, case.patch_size) * case.batch_size
    return elements, sum(parameter.numel() for parameter in network.parameters())


def planned_bytes(preset: presets.PlannerPreset, case: Case, device: str) -> float:
    """By the law of the preset's measurement (CPU), or as the planner compares with its memory target (CUDA)."""
    elements, parameters = counts(preset, case)
    if device == "cpu":
        law = preset.measured
        if law is None:
            raise ValueError(f"{preset.plans_name}: nothing was measured for this preset; run calibrate")
        return law.bytes_per_parameter * parameters + law.bytes_per_element * elements
    reference = preset.reference_2d if len(case.patch_size) == 2 else preset.reference_3d
    return preset.bytes_per_parameter * parameters + reference.bytes_per_element * preset.calibration * elements


def progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def write_tables(rows: Sequence[dict[str, Any]], table: str, folder: Path, name: str) -> None:
    """CSV and Markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / f"{name}.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    with atomic_path(folder / f"{name}.md") as partial:
        partial.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
