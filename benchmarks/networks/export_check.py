"""Export of the network of every trainer to ONNX, checked against torch: a table of what agrees, and what cannot be.

    python benchmarks/networks/export_check.py [-patch 128x128 32x64x64] [-tr TRAINER ...] [-o TABLE.csv]
    python benchmarks/networks/export_check.py -m MODEL_FOLDER [MODEL_FOLDER ...] [-chk checkpoint_final.pth]

Without models the weights are random, the plan is nnU-Net's for the patch with the widths of BrainTumPlannerLight, and
there are two labels, so that class logits by region are exported too. With models, the first fold of each is exported
into a temporary folder. Differences are the largest of any logit, over noise in batches of 1 and 3; the last column is
the largest segmentation logit of torch, to judge them by. Nothing is left behind.
"""

import argparse
import csv
import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from training_steps import CONFIGURATION, configuration_of, make_trainer, throwaway_folders, topology

from braintum.architectures.weights.store import VARIABLE
from braintum.inference.export.onnx_export import export_model, export_network
from braintum.inference.export.onnx_model import CLASSES, CLASSES_BY_REGION, SEGMENTATION
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.planner.planning.presets import LIGHT

NUM_HEADS = 3
TOLERANCE = 1e-3
OUTPUTS = (SEGMENTATION, CLASSES, CLASSES_BY_REGION)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-patch", nargs="+", default=["128x128", "32x64x64"], help="default: %(default)s")
    parser.add_argument("-tr", nargs="+", help="default: all trainers of this package")
    parser.add_argument("-m", nargs="+", type=Path, metavar="MODEL_FOLDER")
    parser.add_argument("-chk", default="checkpoint_final.pth")
    parser.add_argument("-o", type=Path, metavar="TABLE.csv")
    return parser


def main() -> int:
    args = build_parser().parse_args()
    os.environ[VARIABLE] = "random"
    headers = ["network", "configuration", "seconds", "MiB", *OUTPUTS, "largest logit", "fault"]
    rows = []
    for row in models(args.m, args.chk) if args.m else untrained(args.tr, args.patch):
        rows.append([row.get(header, "") for header in headers])
        print(*rows[-1], file=sys.stderr, flush=True)
    print(tabulate(rows, headers, floatfmt=("", "", ".1f", ".1f", ".1e", ".1e", ".1e", ".1f", "")))
    if args.o is not None:
        with open(args.o, "w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([headers, *rows])
    return int(any(row[-1] for row in rows))


def untrained(trainers: Sequence[str] | None, patches: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row a trainer and patch; none for the networks of 2-D images in 3-D, which refuse it themselves."""
    from braintum.trainers import registered

    for patch in patches:
        patch_size = [int(edge) for edge in patch.split("x")]
        configuration = configuration_of(topology(patch_size, LIGHT), patch_size, 2)
        for name in trainers or registered.__all__:
            with throwaway_folders(), tempfile.TemporaryDirectory() as folder:
                try:
                    predictor = predictor_of(name, configuration)
                except NotImplementedError as reason:
                    print(f"{name}: {reason}", file=sys.stderr)
                    continue
                row: dict[str, Any] = {"network": name, "configuration": patch}
                start, file = time.perf_counter(), Path(folder, "network.onnx")
                try:
                    row |= export_network(predictor, predictor.list_of_parameters[0], file, TOLERANCE)
                    row |= {"seconds": time.perf_counter() - start, "MiB": file.stat().st_size / 2**20}
                except ValueError as error:
                    row["fault"] = str(error)
                row["largest logit"] = largest_logit(predictor)
            yield row


def predictor_of(name: str, configuration: dict[str, Any]) -> Any:
    """A predictor with the untrained network of a trainer.

    Raises:
        NotImplementedError: the network is for other dimensions.
    """
    torch.manual_seed(0)
    with redirect_stdout(io.StringIO()):  # nnU-Net prints what to cite
        trainer = make_trainer(name, configuration, NUM_HEADS, 1, torch.device("cpu"))
    network = trainer.build_network_architecture(
        trainer.plans_manager, trainer.configuration_manager, 1, NUM_HEADS, enable_deep_supervision=False
    )
    predictor: Any = JointPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.manual_initialization(
        network.eval(),
        trainer.plans_manager,
        trainer.configuration_manager,
        [network.state_dict()],
        trainer.dataset_json,
        name,
        tuple(range(len(configuration["patch_size"]))),
    )
    predictor.configuration_name = CONFIGURATION
    return predictor


def models(folders: Sequence[Path], checkpoint: str) -> Iterator[dict[str, Any]]:
    """A row a model."""
    for folder in folders:
        row: dict[str, Any] = {
            "network": folder.name.partition("__")[0],
            "configuration": folder.name.rpartition("__")[2],
        }
        first = sorted(file.parent.name.removeprefix("fold_") for file in folder.glob(f"fold_*/{checkpoint}"))[:1]
        with tempfile.TemporaryDirectory() as target:
            start = time.perf_counter()
            try:
                (exported,) = export_model(folder, first, checkpoint, TOLERANCE, target)
                row |= exported.differences
                row |= {"seconds": time.perf_counter() - start, "MiB": exported.file.stat().st_size / 2**20}
            except ValueError as error:
                row["fault"] = str(error)
        yield row


def largest_logit(predictor: Any) -> float:
    """Of the segmentation, on noise."""
    shape = (1, 1, *predictor.configuration_manager.patch_size)
    with torch.inference_mode():
        return float(predictor.network(torch.randn(shape, generator=torch.Generator().manual_seed(1))).abs().max())


if __name__ == "__main__":
    sys.exit(main())
