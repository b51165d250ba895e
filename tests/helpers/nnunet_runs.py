"""nnU-Net's own steps on tiny data sets, called in this process; shared by several test files."""

import json
import multiprocessing.dummy
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import SimpleITK
import torch
from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess
from nnunetv2.run.run_training import get_trainer_from_args, maybe_load_checkpoint
from PIL import Image

from braintum.conversion.format.cases import Case, write_cases

CLASS_NAMES = ("meningioma", "glioma", "no_tumor")


def write_dataset(
    raw: Path,
    dataset_id: int,
    shape: tuple[int, ...] = (32, 32),
    num_cases: int = 8,
    spacing: float = 2.0,
    labels: dict[str, Any] | None = None,
    file_ending: str = ".nii.gz",
    maskless: tuple[int, ...] = (),
    classless: tuple[int, ...] = (),
) -> Path:
    """A data set in nnU-Net's raw format: bright squares, large for glioma, small for meningioma, none for no_tumor.

    Args:
        raw: nnUNet_raw.
        dataset_id: of the data set.
        shape: (y, x) or (z, y, x).
        num_cases: at least 4; split into two folds.
        spacing: in mm, the same along all axes.
        labels: of ``dataset.json``.
        file_ending: ``.nii.gz`` or ``.png``.
        maskless: numbers of cases that carry the ignore label everywhere.
        classless: numbers of cases without a class.
    """
    folder = raw / f"Dataset{dataset_id:03d}_Tiny"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    labels = labels or {"background": 0, "tumour": 1}
    cases = []
    for number in range(num_cases):
        random = np.random.default_rng(number)
        tumour_class = CLASS_NAMES[number % 3]
        image = random.normal(100, 15, shape)
        mask = np.zeros(shape, np.uint8)
        if tumour_class != "no_tumor":
            edge = 10 if tumour_class == "glioma" else 5
            corner = [int(random.integers(1, size - min(edge, size // 2) - 1)) for size in shape]
            mask[
                tuple(slice(start, start + min(edge, size // 2)) for start, size in zip(corner, shape, strict=True))
            ] = 1
        image[mask == 1] += 80
        if number in maskless:
            mask[...] = labels["ignore"]
        case = f"case_{number:02d}"
        _write_image(
            folder / "imagesTr" / f"{case}_0000{file_ending}", np.clip(image, 1, 255).astype(np.uint8), spacing
        )
        _write_image(folder / "labelsTr" / f"{case}{file_ending}", mask, spacing)
        cases.append(Case(case, "" if number in classless else tumour_class, patient=f"P{number:02d}"))
    names = [case.case for case in cases]
    splits = [{"train": names[len(names) // 2 :], "val": names[: len(names) // 2]}]
    splits.append({"train": splits[0]["val"], "val": splits[0]["train"]})
    write_cases(folder / "cases.csv", cases)
    (folder / "splits_final.json").write_text(json.dumps(splits))
    dataset_json = {
        "channel_names": {"0": "T1ce"},
        "labels": labels,
        "numTraining": num_cases,
        "file_ending": file_ending,
        "classification": {"class_names": list(CLASS_NAMES), "negative_class": "no_tumor"},
    }
    if any(isinstance(value, list) for value in labels.values()):
        dataset_json["regions_class_order"] = list(
            range(1, sum(name not in ("background", "ignore") for name in labels) + 1)
        )
    (folder / "dataset.json").write_text(json.dumps(dataset_json))
    return folder


def _write_image(file: Path, array: np.ndarray, spacing: float) -> None:
    if file.suffix == ".png":
        Image.fromarray(array).save(file)
        return
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing([spacing] * array.ndim)
    SimpleITK.WriteImage(image, str(file))


@contextmanager
def threads_for_processes() -> Iterator[None]:
    """nnU-Net's worker pools are threads: starting processes takes longer than all else on a tiny data set."""
    with patch.object(multiprocessing, "get_context", lambda method: multiprocessing.dummy):
        yield


def plan(dataset_id: int, planner: str = "BrainTumPlannerLight", **options: Any) -> str:
    """Fingerprint (if there is none yet) and plans; the identifier of the plans."""
    with threads_for_processes():
        extract_fingerprints([dataset_id], num_processes=1, clean=False, show_progress_bar=False)
    return plan_experiments([dataset_id], planner, **options)


def plan_and_preprocess(
    dataset_id: int, planner: str = "BrainTumPlannerLight", configuration: str = "2d", **options: Any
) -> str:
    """As nnUNetv2_plan_and_preprocess; the identifier of the plans."""
    plans = plan(dataset_id, planner, **options)
    with threads_for_processes():
        preprocess([dataset_id], plans, [configuration], num_processes=[1], show_progress_bar=False)
    return plans


def make_trainer(
    dataset_id: int,
    plans: str,
    configuration: str = "2d",
    trainer: str = "nnUNetTrainerMultiTask",
    fold: int | str = 0,
    resume: bool = False,
) -> Any:
    """The trainer as nnUNetv2_train makes it, on the CPU; with ``resume`` from its latest checkpoint."""
    made = get_trainer_from_args(
        str(dataset_id), configuration, fold, trainer, plans, continue_training=resume, device=torch.device("cpu")
    )
    maybe_load_checkpoint(made, resume, validation_only=False)
    return made


def run_command(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A console script of this environment as its own process."""
    module = {
        "braintum_predict": "braintum.inference.cli",
        "braintum_convert": "braintum.conversion.cli",
        "braintum_demo": "braintum.evaluation.demo",
        "braintum_export": "braintum.inference.export_cli",
    }[command[0]]
    code = f"import sys; from {module} import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *command[1:]],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
