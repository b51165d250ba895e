"""Augmentation on the training device against nnU-Net's CPU workers: samples a second, and whether the GPU stays busy.

    python benchmarks/networks/augmentation_speed.py -device cuda -workers 4 [-c 3d_fullres 2d] [-n 100] [--tiny]

Needs no data: it writes preprocessed volumes of BraTS' size (four sequences, patches of 128x128x128, batches of 2) and
slices (patches of 512x512, batches of 12). First it checks that one batch, augmented on the device and on the host with
the same parameters, is the same (tests/trainers/augmentation compares the host's with
batchgeneratorsv2). Then it measures batches alone (delivered on the device, nothing done with them) and training
iterations of nnUNetTrainer, and of nnUNetTrainerMultiTask with nnU-Net's workers and with ours. Exits with 1 where the
check fails. --tiny is for a look whether the script works.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

CLASS_NAMES = ("meningioma", "glioma", "no_tumor")
DATASET = "Dataset008_Synthetic"
WHERE = {"stock": "nnUNetTrainer, nnU-Net's workers", "cpu": "ours, nnU-Net's workers", "gpu": "ours, on the device"}


@dataclass(frozen=True)
class Setting:
    """What is trained on.

    Attributes:
        patch: ([z,] y, x).
        image: size of the cases, (z, y, x).
        channels: of the images.
        batch: samples.
        cases: that are written.
        features: of the network's stages.
        blocks: of its encoder.
    """

    patch: tuple[int, ...]
    image: tuple[int, int, int]
    channels: int
    batch: int
    cases: int
    features: tuple[int, ...]
    blocks: tuple[int, ...]


SETTINGS = {
    "3d_fullres": Setting((128,) * 3, (140, 176, 140), 4, 2, 12, (32, 64, 128, 256, 320, 320), (1, 3, 4, 6, 6, 6)),
    "2d": Setting(
        (512, 512), (1, 512, 512), 1, 12, 60, (32, 64, 128, 256, 512, 512, 512, 512), (1, 3, 4, 6, 6, 6, 6, 6)
    ),
}
TINY = {
    "3d_fullres": replace(
        SETTINGS["3d_fullres"], patch=(32,) * 3, image=(36, 44, 36), cases=6, features=(4, 8), blocks=(1, 1)
    ),
    "2d": replace(SETTINGS["2d"], patch=(64, 64), image=(1, 64, 64), batch=4, cases=8, features=(4, 8), blocks=(1, 1)),
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("-workers", type=int, default=4, help="CPU processes that load; default: %(default)s")
    parser.add_argument("-c", nargs="+", default=list(SETTINGS), choices=list(SETTINGS), help="default: all")
    parser.add_argument("-n", type=int, default=100, help="timed batches; default: %(default)s")
    parser.add_argument("-warmup", type=int, default=25, help="batches before; default: %(default)s")
    parser.add_argument("-o", type=Path, metavar="JSON", help="also write the figures there")
    parser.add_argument("--tiny", action="store_true", help="small patches and networks")
    return parser


def main() -> int:
    args = build_parser().parse_args()
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            os.environ[name] = str(Path(folder) / name)
        preprocessed = Path(folder) / "nnUNet_preprocessed" / DATASET
        os.environ["nnUNet_n_proc_DA"] = str(args.workers)  # noqa: SIM112  nnU-Net's own spelling
        where = torch.cuda.get_device_name(device) if args.device == "cuda" else "CPU"
        lines = [f"\n{where}, {args.workers} workers of {os.cpu_count()} cores, torch {torch.__version__}"]
        rows: list[dict[str, Any]] = []
        for configuration in args.c:
            setting = (TINY if args.tiny else SETTINGS)[configuration]
            write_dataset(preprocessed, configuration, setting)
            if not is_correct(configuration, setting, device):
                return 1
            measured = measure_all(configuration, setting, device, args)
            lines += [f"\n{configuration}, patch {setting.patch}, {setting.channels} channels, batch {setting.batch}"]
            lines += [tabulate(measured, headers="keys", tablefmt="github", floatfmt=".2f")]
            rows += [{"configuration": configuration, **row} for row in measured]
    if args.o is not None:
        args.o.write_text(json.dumps({"device": where, "workers": args.workers, "rows": rows}, indent=1) + "\n")
    print("\n".join(lines))  # after everything that nnU-Net prints
    return 0


# ---------------------------------------------------------------------- data


def write_dataset(folder: Path, configuration: str, setting: Setting) -> None:
    """Preprocessed cases: smooth noise with tumours of three labels, in blosc2 as nnU-Net stores them."""
    from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2

    from braintum.conversion.format.cases import Case, write_cases

    cases_folder = folder / f"synthetic_{configuration}"
    cases_folder.mkdir(parents=True)
    cases = []
    for number in range(setting.cases):
        random = np.random.default_rng(number)
        coarse = torch.from_numpy(random.normal(0, 1, (1, setting.channels, *[max(1, s // 8) for s in setting.image])))
        image = torch.nn.functional.interpolate(coarse, setting.image, mode="trilinear")[0].numpy()
        image = (image + random.normal(0, 0.2, image.shape)).astype(np.float32)
        mask = np.zeros((1, *setting.image), np.int16)
        centre = [size // 2 for size in setting.image]
        for label, part in ((1, 4), (2, 6), (3, 10)):
            window = [
                slice(max(0, c - s // part), c + max(1, s // part)) for c, s in zip(centre, setting.image, strict=True)
            ]
            mask[(0, *window)] = label
        locations = {label: np.argwhere(mask == label)[::7] for label in (1, 2, 3)}
        blocks, chunks = comp_blosc2_params(image.shape, setting.patch, image.itemsize)
        mask_blocks, mask_chunks = comp_blosc2_params(mask.shape, setting.patch, mask.itemsize)
        nnUNetDatasetBlosc2.save_case(
            image,
            mask,
            {"class_locations": locations},
            str(cases_folder / f"case_{number}"),
            chunks=chunks,
            blocks=blocks,
            chunks_seg=mask_chunks,
            blocks_seg=mask_blocks,
        )
        cases.append(Case(f"case_{number}", CLASS_NAMES[number % 3], patient=f"P{number}"))
    names = [case.case for case in cases]
    write_cases(folder / "cases.csv", cases)
    splits = [{"train": names[2:], "val": names[:2]}]
    (folder / "splits_final.json").write_text(json.dumps(splits), encoding="utf-8")


def plans(configuration: str, setting: Setting) -> dict[str, Any]:
    num_axes, stages = len(setting.patch), len(setting.features)
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": DATASET,
        "plans_name": "SyntheticPlans",
        "original_median_spacing_after_transp": [1.0] * 3,
        "original_median_shape_after_transp": list(setting.image),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "continue_training": False,
        "configurations": {
            configuration: {
                "data_identifier": f"synthetic_{configuration}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": setting.batch,
                "patch_size": list(setting.patch),
                "median_image_size_in_voxels": list(setting.image[-num_axes:]),
                "spacing": [1.0] * num_axes,
                "normalization_schemes": ["ZScoreNormalization"] * setting.channels,
                "use_mask_for_norm": [True] * setting.channels,
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
                "batch_dice": num_axes == 2,
                "architecture": {
                    "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
                    "arch_kwargs": {
                        "n_stages": stages,
                        "features_per_stage": list(setting.features),
                        "conv_op": f"torch.nn.modules.conv.Conv{num_axes}d",
                        "kernel_sizes": [[3] * num_axes] * stages,
                        "strides": [[1] * num_axes, *[[2] * num_axes] * (stages - 1)],
                        "n_blocks_per_stage": list(setting.blocks),
                        "n_conv_per_stage_decoder": [1] * (stages - 1),
                        "conv_bias": True,
                        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{num_axes}d",
                        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
                        "dropout_op": None,
                        "dropout_op_kwargs": None,
                        "nonlin": "torch.nn.LeakyReLU",
                        "nonlin_kwargs": {"inplace": True},
                    },
                    "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
                },
            }
        },
    }


def make_trainer(configuration: str, setting: Setting, device: torch.device, where: str) -> Any:
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    from braintum.trainers.multi_task import nnUNetTrainerMultiTask

    trainer_class = nnUNetTrainer if where == "stock" else nnUNetTrainerMultiTask
    os.environ["braintum_augmentation"] = "cpu" if where == "stock" else where  # noqa: SIM112  spelled as nnU-Net's
    dataset_json = {
        "channel_names": {str(channel): f"sequence {channel}" for channel in range(setting.channels)},
        "labels": {"background": 0, "oedema": 1, "core": 2, "enhancing": 3},
        "numTraining": setting.cases,
        "file_ending": ".nii.gz",
        "classification": {"class_names": list(CLASS_NAMES), "negative_class": "no_tumor"},
    }
    trainer = trainer_class(plans(configuration, setting), configuration, 0, dataset_json, device)
    trainer.print_to_log_file = lambda *args, **kwargs: None
    trainer.initialize()
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    trainer.network.train()
    return trainer


# ---------------------------------------------------------------------- correctness


def is_correct(configuration: str, setting: Setting, device: torch.device) -> bool:
    """Whether device and host make the same of the same batches and parameters, noise aside."""
    from braintum.trainers.augmentation.augmentation_parameters import Sometimes
    from braintum.trainers.augmentation.device_augmentation import to_device
    from braintum.trainers.augmentation.device_intensity import GaussianNoise

    torch.manual_seed(0)
    np.random.seed(0)
    os.environ["nnUNet_n_proc_DA"], workers = "0", os.environ["nnUNet_n_proc_DA"]  # noqa: SIM112
    training, _ = make_trainer(configuration, setting, torch.device("cpu"), "gpu").get_dataloaders()
    os.environ["nnUNet_n_proc_DA"] = workers  # noqa: SIM112
    loader, augmentation = training.batches.data_loader, training.augmentation
    kept = [not (isinstance(step, Sometimes) and isinstance(step.step, GaussianNoise)) for step in augmentation.steps]
    quiet = replace(
        augmentation, steps=tuple(step for step, keep in zip(augmentation.steps, kept, strict=True) if keep)
    )
    difference, labels = 0.0, 0.0
    for _ in range(8):
        batch = loader.generate_train_batch()
        del batch["keys"]
        batch["steps"] = [parameters for parameters, keep in zip(batch["steps"], kept, strict=True) if keep]
        copy = to_device(_copied(batch), device)
        data, target = quiet.apply(**batch)
        found, found_target = quiet.apply(**copy)
        difference = max(difference, float((found.cpu() - data).abs().max()))
        wrong = [float((one.cpu() != other).float().mean()) for one, other in zip(found_target, target, strict=True)]
        labels = max(labels, *wrong)
    correct = difference < 1e-2 and labels < 1e-4
    print(
        f"{configuration}: 8 batches on the device and on the host: largest difference {difference:.2e} (standardised "
        f"intensities), share of labels that differ {labels:.2e}: {'equal' if correct else 'NOT EQUAL'}"
    )
    return correct


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: _copied(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(child) for child in value]
    return value


# ---------------------------------------------------------------------- measurements


def measure_all(
    configuration: str, setting: Setting, device: torch.device, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row a way to train; ratios are of rates, to nnU-Net's."""
    rows: list[dict[str, Any]] = []
    for where, name in WHERE.items():
        trainer = make_trainer(configuration, setting, device, where)
        training, validation = trainer.get_dataloaders()
        alone = rate(training, lambda batch: _on_device(batch, device), setting.batch, device, args)[0]
        with gpu_use(device) as samples:
            trained, step = rate(training, trainer.train_step, setting.batch, device, args, samples)
        row = {"": name, "batches alone, samples/s": alone, "training, samples/s": trained}
        rows.append(row)
        row["ratio alone"], row["ratio training"] = (row[key] / rows[0][key] for key in list(row)[1:])
        row["median step, ms"] = 1000 * step
        row["GPU busy, %"] = statistics.mean(samples) if samples else "not available"
        for made in (training, validation):
            getattr(made, "batches", made)._finish()
        del trainer, training, validation
    return rows


def _on_device(batch: dict, device: torch.device) -> None:
    from braintum.trainers.augmentation.device_augmentation import to_device

    to_device((batch["data"], batch["target"]), device)


def rate(
    batches: Iterator[dict],
    use: Any,
    batch_size: int,
    device: torch.device,
    args: argparse.Namespace,
    samples: list[float] | None = None,
) -> tuple[float, float]:
    """Samples a second after the warm-up, and the median time from one batch to the next."""
    for _ in range(args.warmup):
        use(next(batches))
    synchronize(device)
    if samples is not None:
        samples.clear()  # of the warm-up
    times = [time.perf_counter()]
    for _ in range(args.n):
        use(next(batches))
        synchronize(device)
        times.append(time.perf_counter())
    return args.n * batch_size / (times[-1] - times[0]), statistics.median(np.diff(times))


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # of the training alone: batches may run ahead


@contextmanager
def gpu_use(device: torch.device) -> Iterator[list[float]]:
    """Percentages of time with a kernel running, taken ten times a second; none without CUDA and nvidia-ml-py."""
    samples: list[float] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            try:
                samples.append(float(torch.cuda.utilization(device)))
            except (ModuleNotFoundError, RuntimeError) as fault:
                print(f"GPU use cannot be read: {fault}", file=sys.stderr)
                return

    watcher = threading.Thread(target=watch, daemon=True)
    if device.type == "cuda":
        watcher.start()
    try:
        yield samples
    finally:
        ended.set()
        if watcher.is_alive():
            watcher.join()


if __name__ == "__main__":
    sys.exit(main())
