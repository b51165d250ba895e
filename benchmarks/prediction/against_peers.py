r"""Time of braintum_predict against nnU-Net's own prediction and others that run the same network, and how they agree.

    python benchmarks/prediction/against_peers.py -m MODEL_FOLDER -i IMAGES [-f 0] [-slices 200] [-n 3] \
        [-modes stock bulk exact openvino monai …] [-device cpu] [-o JSON]
    python benchmarks/prediction/against_peers.py --untrained-3d [-features 32] [-n 1]

Whole commands run in turns, in an order that changes from round to round, all with mirroring unless --disable_tta:

    stock              nnUNetv2_predict_from_modelfolder (masks only), with its defaults
    bulk, exact        braintum_predict and braintum_predict --exact (masks and classes)
    bfloat16           braintum_predict -precision bfloat16
    onnxruntime, openvino, openvino-bfloat16
                       braintum_predict --onnx, after braintum_export, whose time does not count
    monai              nnU-Net's reading, preprocessing and export around MONAI's SlidingWindowInferer (masks only)

Printed are the medians of wall time, of processor time (user and system, all processes), of the largest process's
memory, and of the time from the start to the first mask of a single image, each against stock; the network alone, as
nnU-Net runs it; and how masks and classes agree. --untrained-3d makes a volume of BraTS' size and a 3-D model with
random weights: its masks are noise, on which low precisions agree badly. Keep the machine free of other work;
processor time suffers least.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from braintum.inference.prediction.devices import HUGE_PAGES
from braintum.inference.prediction.window_batches import mirror_axes

OURS = {
    "bulk": [],
    "exact": ["--exact"],
    "bfloat16": ["-precision", "bfloat16"],
    "onnxruntime": ["--onnx"],
    "openvino": ["--onnx", "openvino"],
    "openvino-bfloat16": ["--onnx", "openvino", "-precision", "bfloat16"],
}
MODES = ("stock", *OURS, "monai")
DEFAULT_MODES = ("stock", "bulk", "exact")
_NETWORK_TIME = "--network-time"  # this script, called by itself in a process of its own
_MONAI = "--monai"  # likewise


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", type=Path, help="folder of a trained model")
    parser.add_argument("-i", type=Path, help="folder of images")
    parser.add_argument("-f", nargs="+", default=["0"], help="folds; default: %(default)s")
    parser.add_argument("-chk", default="checkpoint_final.pth", help="checkpoint; default: %(default)s")
    parser.add_argument("-slices", type=int, help="take that many of the images, evenly spread; default: all")
    parser.add_argument("-n", type=int, default=3, help="rounds; default: %(default)s")
    parser.add_argument("-device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("-modes", nargs="+", default=DEFAULT_MODES, choices=MODES, help="default: %(default)s")
    parser.add_argument("--disable_tta", action="store_true", help="all without mirroring")
    parser.add_argument("-o", type=Path, metavar="JSON", help="also write the figures there")
    add_untrained_model(parser)
    for option in (_NETWORK_TIME, _MONAI):
        parser.add_argument(option, action="store_true", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    if args.network_time:
        print(json.dumps(network_time(args)))
        return
    if args.monai:
        predict_with_monai(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder)
        complete_input(parser, args, temporary)
        modes = list(dict.fromkeys(["stock", *args.modes]))
        if any("--onnx" in OURS.get(mode, ()) for mode in modes):
            command = [*_python("braintum.inference.export_cli", "main"), "-m", str(args.m), "-f", *args.f]
            subprocess.run([*command, "-chk", args.chk, "-o", str(temporary / "exported")], check=True)
        ending = json.loads((args.m / "dataset.json").read_text())["file_ending"]
        images, single = temporary / "images", temporary / "single"
        cases = choose(args.i, ending, images, args.slices)
        choose(args.i, ending, single, 1)
        figures: dict[str, Any] = {"cases": len(cases), "folds": len(args.f), "device": args.device}
        figures["mirroring"] = not args.disable_tta
        for name, source in {"all": images, "single": single}.items():
            if name == "single" and len(cases) == 1:
                figures[name] = figures["all"]
                continue
            runs: dict[str, list[dict[str, float]]] = {mode: [] for mode in modes}
            for turn in range(args.n):
                start = turn % len(modes)
                for mode in modes[start:] + modes[:start]:
                    target = temporary / f"{name} {mode}"
                    runs[mode].append(timed_command(command_of(mode, args, source, target), target, ending))
                    print(f"{name:6} {mode:17}", *(f"{k} {v:.1f}" for k, v in runs[mode][-1].items()), flush=True)
            figures[name] = {
                mode: {key: statistics.median(run[key] for run in found) for key in found[0]}
                for mode, found in runs.items()
            }
        figures["network"] = {"stock": network_time_of(args, images)}
        on_cpu = {HUGE_PAGES: "1"} if args.device == "cpu" else {}  # as braintum_predict runs
        figures["network"]["exact"] = network_time_of(args, images, on_cpu)
        folders = {mode: temporary / f"all {mode}" for mode in modes}
        figures["agreement"] = {mode: agreement(folders[mode], folders["stock"], ending) for mode in modes[1:]}
        of_classes = [mode for mode in modes if mode in OURS]
        figures["classes"] = {
            f"{mode} and {of_classes[0]}": class_agreement(folders[mode], folders[of_classes[0]])
            for mode in of_classes[1:]
        }
    report(figures)
    if args.o:
        args.o.write_text(json.dumps(figures, indent=2) + "\n")


def add_untrained_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--untrained-3d", action="store_true", help="make model and volume; instead of -m and -i")
    parser.add_argument("-features", type=int, default=32, help="of that model's first stage; default: %(default)s")
    parser.add_argument("-shape", type=int, nargs=3, default=(155, 240, 240), help="of that volume; default: BraTS'")


def complete_input(parser: argparse.ArgumentParser, args: argparse.Namespace, folder: Path) -> None:
    """Make model and volume in a folder if they are asked for, and set ``-m`` and ``-i`` to them."""
    if args.untrained_3d:
        args.m, args.i = make_model(folder, args.features), make_volume(folder / "volume", args.shape)
    elif args.m is None or args.i is None:
        parser.error("give -m and -i, or --untrained-3d")


def command_of(mode: str, args: argparse.Namespace, source: Path, target: Path) -> list[str]:
    """The whole command of a mode."""
    common = ["-i", str(source), "-o", str(target), "-f", *args.f, "-chk", args.chk, "-device", args.device]
    if mode == "stock":
        command = _python("nnunetv2.inference.predict_from_raw_data", "predict_entry_point_modelfolder")
    elif mode == "monai":
        command = [sys.executable, __file__, _MONAI]
    else:
        command = _python("braintum.inference.cli", "main")
    common += _mirroring(args)
    options = OURS.get(mode, [])
    model = target.parent / "exported" if "--onnx" in options else args.m
    return [*command, *common, "-m", str(model), *options]


def _mirroring(args: argparse.Namespace) -> list[str]:
    return ["--disable_tta"] if args.disable_tta else []


def _python(module: str, function: str) -> list[str]:
    """A console script, of this environment."""
    return [sys.executable, "-c", f"import sys; from {module} import {function} as main; sys.exit(main())"]


def timed_command(command: Sequence[str], target: Path, ending: str) -> dict[str, float]:
    """Run a prediction into a new folder: seconds to its end, to the first mask, and of the processors; memory, GiB."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    log = target.parent / "log.txt"
    start = time.perf_counter()
    first = float("nan")
    with open(log, "w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
            if np.isnan(first) and any(entry.name.endswith(ending) for entry in os.scandir(target)):
                first = time.perf_counter() - start
            time.sleep(0.02)
    wall = time.perf_counter() - start
    _, status, usage = ended
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{target.name} failed:\n{log.read_text()[-3000:]}")
    first = wall if np.isnan(first) else first
    processor = usage.ru_utime + usage.ru_stime
    return {"wall": wall, "first mask": first, "processor": processor, "memory": usage.ru_maxrss / 2**20}


def predict_with_monai(args: argparse.Namespace) -> None:
    """Masks of all images, by MONAI's sliding window with nnU-Net's step, weights and mirrors."""
    import torch
    from monai.inferers import SlidingWindowInferer
    from nnunetv2.inference.export_prediction import export_prediction_from_logits

    predictor = _stock_predictor(args)
    folds = predictor.list_of_parameters
    is_volume = len(predictor.configuration_manager.patch_size) == 3
    mirrors = [
        [axis + 2 for axis in mirror]
        for mirror in mirror_axes(predictor.allowed_mirroring_axes if predictor.use_mirroring else None)
    ]
    inferer = SlidingWindowInferer(predictor.configuration_manager.patch_size, overlap=0.5, mode="gaussian")

    def averaged(patch: torch.Tensor) -> torch.Tensor:
        return sum(predictor.network(patch.flip(axes)).flip(axes) for axes in mirrors) / len(mirrors)

    for name, data, properties in _preprocessed(predictor, args.i):
        image = torch.from_numpy(data).to(predictor.device)
        logits: Any = 0
        with torch.inference_mode():
            for weights in folds:
                predictor.network.load_state_dict(weights)
                # the slices of an image are a batch of a 2-D network
                found = inferer(image[None] if is_volume else image.transpose(0, 1), averaged)
                logits = logits + (found[0] if is_volume else found.transpose(0, 1)) / len(folds)
        export_prediction_from_logits(
            logits.cpu(),
            properties,
            predictor.configuration_manager,
            predictor.plans_manager,
            predictor.dataset_json,
            str(args.o / name),
        )


def network_time_of(args: argparse.Namespace, images: Path, environment: Mapping[str, str] | None = None) -> float:
    """Seconds that nnU-Net's sliding window takes for all images, measured in a process of its own."""
    command = [sys.executable, __file__, _NETWORK_TIME, "-m", str(args.m), "-i", str(images), "-f", *args.f]
    command += ["-chk", args.chk, "-device", args.device, *_mirroring(args)]
    variables = {**os.environ, **(environment or {})}
    finished = subprocess.run(command, check=True, capture_output=True, text=True, env=variables)
    return json.loads(finished.stdout.splitlines()[-1])


def network_time(args: argparse.Namespace) -> float:
    """See :func:`network_time_of`."""
    import torch

    predictor = _stock_predictor(args)
    seconds = 0.0
    for number, (_, data, _) in enumerate(_preprocessed(predictor, args.i)):
        image = torch.from_numpy(data).float().contiguous()
        if number == 0:
            predictor.predict_logits_from_preprocessed_data(image)  # the kernels are chosen in a first run
        start = time.perf_counter()
        predictor.predict_logits_from_preprocessed_data(image).cpu()
        seconds += time.perf_counter() - start
    return seconds


def _stock_predictor(args: argparse.Namespace) -> Any:
    """nnU-Net's, with the model loaded."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    torch.set_num_threads((os.cpu_count() or 1) if args.device == "cpu" else 1)
    predictor = nnUNetPredictor(
        use_mirroring=not args.disable_tta,
        device=torch.device(args.device),
        perform_everything_on_device=args.device == "cuda",
        allow_tqdm=False,
    )
    folds = tuple(fold if fold == "all" else int(fold) for fold in args.f)
    predictor.initialize_from_trained_model_folder(str(args.m), folds, args.chk)
    predictor.network.to(predictor.device).eval()
    return predictor


def _preprocessed(predictor: Any, images: Path) -> Iterator[tuple[str, np.ndarray, dict]]:
    """Name, image (C, Z, Y, X) and properties of each case of a folder."""
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    preprocessor = configuration.preprocessor_class(verbose=False)
    cases: dict[str, list[str]] = {}
    for file in sorted(images.iterdir()):
        cases.setdefault(file.name.removesuffix(predictor.dataset_json["file_ending"])[:-5], []).append(str(file))
    for name, files in cases.items():
        data, _, properties = preprocessor.run_case(files, None, plans, configuration, predictor.dataset_json)
        yield name, data, properties


def choose(source: Path, ending: str, target: Path, count: int | None) -> list[str]:
    """Link the files of some cases into a new folder; returns the cases."""
    cases: dict[str, list[Path]] = {}
    for file in sorted(source.iterdir()):
        if file.name.endswith(ending):
            cases.setdefault(file.name.removesuffix(ending)[:-5], []).append(file)
    names = list(cases)
    if count is not None and count < len(names):
        names = [names[index * len(names) // count] for index in range(count)]
    target.mkdir()
    for name in names:
        for file in cases[name]:
            (target / file.name).symlink_to(file.resolve())
    return names


def agreement(first: Path, second: Path, ending: str) -> dict[str, float]:
    """Mean Dice of the foreground, share of equal voxels and of files with the same bytes."""
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_file_ending

    files = sorted(first.glob(f"*{ending}"))
    reader = determine_reader_writer_from_file_ending(ending, str(files[0]), True, False)()
    dice, equal, voxels, identical = [], 0, 0, 0
    for file in files:
        a, b = (reader.read_seg(str(folder / file.name))[0] for folder in (first, second))
        if a.any() or b.any():
            dice.append(2 * np.count_nonzero((a > 0) & (b > 0)) / (np.count_nonzero(a) + np.count_nonzero(b)))
        equal, voxels = equal + np.count_nonzero(a == b), voxels + a.size
        identical += file.read_bytes() == (second / file.name).read_bytes()
    mean = float(np.mean(dice)) if dice else float("nan")
    least = float(np.min(dice)) if dice else float("nan")
    share = {"equal_voxels": equal / voxels, "identical_files": identical / len(files)}
    return {"mean_dice": mean, "lowest_dice": least, **share}


def class_agreement(first: Path, second: Path) -> dict[str, float]:
    """Share of cases with the same class, and the largest difference of a probability."""
    same, largest, files = 0, 0.0, sorted((first / "classes").glob("*.json"))
    for file in files:
        a, b = (json.loads((folder / "classes" / file.name).read_text()) for folder in (first, second))
        same += a["predicted_class"] == b["predicted_class"]
        largest = max(
            largest, *(abs(a["probabilities"][name] - b["probabilities"][name]) for name in b["probabilities"])
        )
    return {"same_class": same / len(files), "largest_difference": largest}


def report(figures: dict[str, Any]) -> None:
    """Print the tables."""
    mirroring = "with" if figures["mirroring"] else "without"
    print(
        f"\n{figures['cases']} cases, {figures['folds']} fold(s), {figures['device']}, {mirroring} mirroring; in "
        "brackets: against stock\n"
    )
    columns = {
        "wall time, s": ("all", "wall"),
        "processor time, s": ("all", "processor"),
        "largest process, GiB": ("all", "memory"),
        "single image, start to first mask, s": ("single", "first mask"),
    }
    rows = []
    for mode in figures["all"]:
        row = {"": mode}
        for column, (images, key) in columns.items():
            value = figures[images][mode][key]
            row[column] = f"{value:.1f} ({value / figures[images]['stock'][key]:.2f})"
        if (masks := figures["agreement"].get(mode)) is not None:
            row["mean Dice with stock (lowest)"] = f"{masks['mean_dice']:.5f} ({masks['lowest_dice']:.4f})"
            row["voxels equal"] = f"{100 * masks['equal_voxels']:.4f} %"
            row["files identical"] = f"{100 * masks['identical_files']:.1f} %"
        rows.append(row)
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True))
    network = figures["network"]
    print(
        f"\nnnU-Net's network alone: {network['stock']:.1f} s, with memory as braintum_predict asks for it "
        f"{network['exact']:.1f} s; the rest of stock: {figures['all']['stock']['wall'] - network['stock']:.1f} s"
    )
    for pair, classes in figures["classes"].items():
        print(
            f"classes of {pair}: {100 * classes['same_class']:.1f} % the same, probabilities within "
            f"{classes['largest_difference']:.1e}"
        )


def make_volume(folder: Path, shape: Sequence[int]) -> Path:
    """Four sequences of a volume of BraTS' spacing: a bright ball, which is all that is cropped to."""
    import SimpleITK

    folder.mkdir()
    grid = np.meshgrid(*(np.linspace(-1, 1, edge) for edge in shape), indexing="ij", sparse=True)
    head = sum((axis / extent) ** 2 for axis, extent in zip(grid, (0.9, 0.72, 0.6), strict=True)) < 1
    for channel in range(4):
        noise = np.random.default_rng(channel).normal(400, 60, shape).clip(1)
        image = SimpleITK.GetImageFromArray(np.where(head, noise, 0).astype(np.int16))
        SimpleITK.WriteImage(image, str(folder / f"volume_{channel:04d}.nii.gz"))
    return folder


def make_model(folder: Path, features: int) -> Path:
    """An untrained multi-task U-Net with the topology that nnU-Net plans for BraTS (patch 128³, six stages)."""
    import torch
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    norm = {"eps": 1e-5, "affine": True}
    architecture = {
        "n_stages": 6,
        "features_per_stage": [min(10 * features, features * 2**stage) for stage in range(6)],
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * 6,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * 5,
        "n_conv_per_stage": [2] * 6,
        "n_conv_per_stage_decoder": [2] * 5,
        "conv_bias": True,
        **{"norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d", "norm_op_kwargs": norm},
        **{"dropout_op": None, "dropout_op_kwargs": None},
        **{"nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True}},
    }
    configuration = {
        "data_identifier": "untrained_3d",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [128, 128, 128],
        "median_image_size_in_voxels": [140, 172, 138],
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"] * 4,
        "use_mask_for_norm": [True] * 4,
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": resampling,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        "batch_dice": False,
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": architecture,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }
    plans: dict[str, Any] = {
        "dataset_name": "Dataset999_Untrained",
        "plans_name": "UntrainedPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [140, 172, 138],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {str(channel): {} for channel in range(4)},
        "configurations": {"3d_fullres": configuration},
    }
    dataset_json: dict[str, Any] = {
        "channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"},
        "labels": {"background": 0, "oedema": 1, "core": 2, "enhancing": 3},
        "numTraining": 1,
        "file_ending": ".nii.gz",
        "classification": {"class_names": ["low grade", "high grade"]},
    }
    plans["classification"] = {**dataset_json["classification"], "region_based": False}
    trainer_name, plans_manager = "nnUNetTrainerMultiTask", PlansManager(plans)
    torch.manual_seed(0)
    network = recursive_find_trainer_class_by_name(trainer_name).build_network_architecture(
        plans_manager, plans_manager.get_configuration("3d_fullres"), 4, 4, enable_deep_supervision=False
    )
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": trainer_name,
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }
    model = folder / "model"
    (model / "fold_0").mkdir(parents=True)
    torch.save(checkpoint, model / "fold_0" / "checkpoint_final.pth")
    (model / "plans.json").write_text(json.dumps(plans))
    (model / "dataset.json").write_text(json.dumps(dataset_json))
    return model


if __name__ == "__main__":
    main()
