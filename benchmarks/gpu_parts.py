"""Parts of gpu_check.sh that no other script measures; each prints its figures and writes them with -o.

    python benchmarks/gpu_parts.py correctness|steps|graphs|folds [-device cuda] [-patch 512 512] [-n 50] [-o JSON]
    python benchmarks/gpu_parts.py slices [-n 2000] -o FOLDER
    python benchmarks/gpu_parts.py table RESULTS

``correctness``: masks and classes of the ready model on the device, plain, under autocast and compiled, against the CPU
(on a CPU the compiler captures the network and generates no code, which would take minutes). ``steps``: a training step
of nnUNetTrainerMultiTask against nnUNetTrainer, compiled where the device is a GPU; they take turns; and the memory of
each. ``graphs``: the network alone, eager, compiled, and on a GPU compiled with CUDA graphs (mode="reduce-overhead").
``folds``: five networks one after the other and as one batch (torch.func.vmap): time, memory, largest difference.
``slices``: the three slices of the documentation as so many cases of the ready model. ``table``: every JSON and CSV of
a folder of results.
"""

import argparse
import copy
import csv
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
READY_MODEL = HERE.parent / "inference" / "ready" / "models" / "figshare-tumour-types"
SLICES = HERE.parent / "docs" / "_static" / "slices"
OURS = "nnUNetTrainerMultiTask"


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("correctness", "steps", "graphs", "folds", "slices", "table"))
    parser.add_argument("results", type=Path, nargs="?", help="folder, for table")
    parser.add_argument("-device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("-patch", type=int, nargs="+", default=[512, 512], help="default: %(default)s")
    parser.add_argument("-batch", type=int, default=12, help="default: %(default)s")
    parser.add_argument("-channels", type=int, default=1, help="of the images; default: %(default)s")
    parser.add_argument(
        "-n", type=int, default=50, help="repetitions, of which the median counts; default: %(default)s"
    )
    parser.add_argument("-o", type=Path, help="file to write; for slices the folder")
    return parser


def main() -> int:
    args = build_parser().parse_args()
    if args.part == "table":
        table(args.results)
        return 0
    if args.part == "slices":
        slices(args.o, args.n)
        return 0
    import torch

    sys.path.insert(0, str(HERE / "networks"))
    torch.backends.cudnn.benchmark = True  # as nnU-Net trains
    device = torch.device(args.device)
    rows = {"correctness": correctness, "steps": steps, "graphs": graphs, "folds": folds}[args.part](args, device)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    figures = {"device": where, "torch": torch.__version__, "rows": rows}
    print(json.dumps(figures, indent=1))
    if args.o is not None:
        args.o.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return int(any(row.get("fault", False) for row in rows))


def correctness(args: argparse.Namespace, device: Any) -> list[dict[str, Any]]:
    """A row a way of computing; a fault where masks or classes are others than on the CPU in float32."""
    import numpy as np
    import torch
    from PIL import Image

    from braintum.inference.api import load_predictor

    predictor: Any = load_predictor(READY_MODEL, folds=["all"], device="cpu")
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    network = predictor.network.eval()
    edge = predictor.configuration_manager.patch_size
    pictures = [Image.open(file).convert("F").resize(edge[::-1]) for file in sorted(SLICES.glob("*.jpg"))]
    images = torch.stack([torch.from_numpy(np.array(picture) / 255).float()[None] for picture in pictures])
    with torch.inference_mode():
        expected = network(images, with_classes=True)
    moved = copy.deepcopy(network).to(device)
    compiled = torch.compile(moved, backend="inductor" if device.type == "cuda" else "aot_eager")
    ways = {
        "float32": (moved, nullcontext()),
        "autocast": (moved, torch.autocast(device.type)),
        "compiled": (compiled, nullcontext()),
        "compiled, autocast": (compiled, torch.autocast(device.type)),
    }
    rows = []
    for way, (callable_network, context) in ways.items():
        with torch.inference_mode(), context:
            logits, classes = (x.float().cpu() for x in callable_network(images.to(device), with_classes=True))
        found, wanted = logits.argmax(1) > 0, expected[0].argmax(1) > 0
        dice = 2 * float((found & wanted).sum()) / max(1.0, float(found.sum() + wanted.sum()))
        rows.append(
            {
                "way": way,
                "largest difference of a logit": float((logits - expected[0]).abs().max()),
                "Dice of the masks": dice,
                "largest difference of a class probability": float(
                    (classes.softmax(1) - expected[1].softmax(1)).abs().max()
                ),
                "fault": dice < 0.99 or not bool((classes.argmax(1) == expected[1].argmax(1)).all()),
            }
        )
    return rows


def steps(args: argparse.Namespace, device: Any) -> list[dict[str, Any]]:
    """A row a trainer."""
    from training_steps import STOCK_TRAINER, TrainingStep, peak_of_real

    options = {"num_channels": args.channels, "device": device, "compiled": device.type == "cuda"}
    configuration = _configuration(args)
    trained = {name: TrainingStep(name, configuration, **options) for name in (STOCK_TRAINER, OURS)}
    rows = _timed(trained, args.n, device)
    del trained
    for row in rows:  # a network in memory at a time
        row["peak memory, GiB"] = peak_of_real(TrainingStep(row["way"], configuration, **options)) / 2**30
    return rows


def graphs(args: argparse.Namespace, device: Any) -> list[dict[str, Any]]:
    """A row a way of computing, for one window and for a batch."""
    import torch

    network, rows = _networks(args, device, 1)[0], []
    for batch in dict.fromkeys((1, args.batch)):
        image = torch.randn(batch, args.channels, *args.patch, device=device)
        torch.compiler.reset()
        ways = {"eager": network, "compiled": torch.compile(network)}
        if device.type == "cuda":
            ways["CUDA graphs"] = torch.compile(network, mode="reduce-overhead")
        calls = {f"{way}, batch {batch}": _call(function, image) for way, function in ways.items()}
        rows += _timed(calls, args.n, device)
    return rows


def folds(args: argparse.Namespace, device: Any) -> list[dict[str, Any]]:
    """One after the other, and as one batch."""
    import torch
    from torch.func import functional_call, stack_module_state, vmap

    networks = _networks(args, device, 5)
    image = torch.randn(args.batch, args.channels, *args.patch, device=device)
    parameters, buffers = stack_module_state(networks)
    shared = copy.deepcopy(networks[0]).to("meta")

    def of_one(parameters: Any, buffers: Any, image: Any) -> Any:
        return functional_call(shared, (parameters, buffers), (image,))

    def batched(image: Any) -> Any:
        return vmap(of_one, (0, 0, None))(parameters, buffers, image)

    def in_turn(image: Any) -> Any:
        return torch.stack([network(image) for network in networks])

    calls = {"in turn": _call(in_turn, image), "batched": _call(batched, image)}
    difference = float((calls["in turn"]().float() - calls["batched"]().float()).abs().max())
    return [row | {"largest difference of a logit": difference} for row in _timed(calls, args.n, device)]


def _configuration(args: argparse.Namespace) -> dict[str, Any]:
    """ResEnc M's for the patch."""
    from training_steps import configuration_of, topology

    from braintum.planner.planning.presets import MEDIUM

    return configuration_of(topology(args.patch, MEDIUM), args.patch, args.batch)


def _networks(args: argparse.Namespace, device: Any, count: int) -> list[Any]:
    """Untrained, for prediction."""
    import torch
    from training_steps import make_trainer, throwaway_folders

    networks = []
    with throwaway_folders():
        trainer = make_trainer(OURS, _configuration(args), 2, args.channels, device)
        for seed in range(count):
            torch.manual_seed(seed)
            network = trainer.build_network_architecture(
                trainer.plans_manager, trainer.configuration_manager, args.channels, 2, enable_deep_supervision=False
            )
            networks.append(network.to(device).eval())
    return networks


def _call(function: Callable[[Any], Any], image: Any) -> Callable[[], Any]:
    """The function without gradients, on a GPU under autocast as nnU-Net predicts there."""
    import torch

    def call() -> Any:
        with torch.inference_mode(), torch.autocast("cuda") if image.device.type == "cuda" else nullcontext():
            return function(image)

    return call


def _timed(calls: dict[str, Callable[[], Any]], repeats: int, device: Any) -> list[dict[str, Any]]:
    """A row a call: median and quartiles in ms, and the ratio to the first; on a GPU the memory of each, too."""
    import torch
    from timing import times_in_turns

    rows: list[dict[str, Any]] = []
    for way, times in times_in_turns(calls, max(2, repeats), device).items():
        low, median, high = (1000 * value for value in statistics.quantiles(times, n=4))
        rows.append({"way": way, "median, ms": median, "quartiles, ms": [low, high], "repetitions": len(times)})
        rows[-1]["ratio"] = median / rows[0]["median, ms"]
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            calls[way]()
            torch.cuda.synchronize()
            rows[-1]["allocated at most, GiB"] = torch.cuda.max_memory_allocated() / 2**30
    return rows


def slices(folder: Path, count: int) -> None:
    """Cases of 512x512, 0.49 mm."""
    import numpy as np
    import SimpleITK
    from PIL import Image

    folder.mkdir(parents=True)
    pictures = [np.array(Image.open(file).convert("L").resize((512, 512))) for file in sorted(SLICES.glob("*.jpg"))]
    for number in range(count):
        image = SimpleITK.GetImageFromArray(pictures[number % len(pictures)].astype(np.float32))
        image.SetSpacing((0.49, 0.49))
        SimpleITK.WriteImage(image, str(folder / f"case_{number:04d}_0000.nii.gz"))


def table(results: Path) -> None:
    """Print what the parts have written."""
    from tabulate import tabulate

    for file in sorted(results.glob("*/*.json")) + sorted(results.glob("*/*.csv")):
        print(f"\n{file.parent.name}\n")
        if file.suffix == ".csv":
            with open(file, newline="", encoding="utf-8") as stream:
                rows: list[Any] = list(csv.DictReader(stream))
        else:
            rows = list(_rows(json.loads(file.read_text(encoding="utf-8"))))
        print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g"))


def _rows(figures: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows of a JSON; nested figures of other scripts line by line, with their path."""
    if "rows" in figures:
        yield from figures["rows"]
        return
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from ({"figure": f"{name}, {row['figure']}", "value": row["value"]} for row in _rows(value))
        else:
            yield {"figure": name, "value": value}


if __name__ == "__main__":
    sys.exit(main())
