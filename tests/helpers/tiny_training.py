"""Tiny preprocessed data sets and hand-written plans: nnU-Net trainers without planning, preprocessing and workers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK
import torch
from network_contract import REQUIRE_IMPORT, make_plan
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from braintum.conversion.format.cases import Case, write_cases

CLASS_NAMES = ("meningioma", "glioma", "no_tumor")
NUM_CASES = 8
_1, _2 = (1, 1), (2, 2)
PLAN_2D = make_plan("2d", (32, 32), (8, 12, 16, 16), (_1, _2, _2, _2), [(3, 3)] * 4, residual=False)
PLAN_3D = make_plan("3d_fullres", (8, 16, 16), (4, 6, 8), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), [(3, 3, 3)] * 3, True)
PLANS = {plan.name: plan for plan in (PLAN_2D, PLAN_3D)}


@dataclass(frozen=True)
class TinyDataset:
    """A preprocessed data set.

    Attributes:
        plans: content of the plans file.
        dataset_json: content of ``dataset.json``.
        configuration: the only one of the plans.
    """

    plans: Mapping[str, Any]
    dataset_json: Mapping[str, Any]
    configuration: str

    def trainer(self, name: str, fold: int | str = 0) -> Any:
        """A trainer as nnU-Net makes it, on the CPU."""
        trainer_class = recursive_find_trainer_class_by_name(name)
        plans = {**self.plans, "continue_training": False}
        return trainer_class(plans, self.configuration, fold, dict(self.dataset_json), torch.device("cpu"))


def write_preprocessed(
    preprocessed: Path, configuration: str, classes: bool = True, labels: Mapping[str, Any] | None = None
) -> TinyDataset:
    """Bright squares on noise: large for glioma, small for meningioma, none for no_tumor.

    Args:
        preprocessed: nnUNet_preprocessed.
        configuration: ``2d`` or ``3d_fullres``.
        classes: whether the data set declares classes.
        labels: of ``dataset.json``.
    """
    plan = PLANS[configuration]
    folder = preprocessed / "Dataset007_Tiny"
    cases_folder = folder / f"tiny_{configuration}"
    cases_folder.mkdir(parents=True)
    shape = plan.patch_size if plan.dimensions == 3 else (1, *plan.patch_size)
    declared = dict(labels or {"background": 0, "tumour": 1})
    # nnU-Net's key for all annotated voxels, which its loader asks for where there is an ignore label
    annotated = (-1, *sorted({label for name in declared if name != "ignore" for label in np.ravel(declared[name])}))
    cases = []
    for number in range(NUM_CASES):
        image, mask = _draw(number, shape)
        locations = {1: np.argwhere(mask[None] == 1), annotated: np.argwhere(mask[None] >= 0)}
        nnUNetDatasetBlosc2.save_case(
            image[None],
            mask[None],
            {"class_locations": locations if "ignore" in declared else {1: locations[1]}},
            str(cases_folder / f"case_{number}"),
            chunks=(1, *shape),
            blocks=(1, *shape),
        )
        cases.append(Case(f"case_{number}", CLASS_NAMES[number % 3] if classes else "", patient=f"P{number}"))
    names = [case.case for case in cases]
    dataset_json: dict[str, Any] = {
        "channel_names": {"0": "T1ce"},
        "labels": declared,
        "numTraining": NUM_CASES,
        "file_ending": ".nii.gz",
    }
    if classes:
        write_cases(folder / "cases.csv", cases)
        dataset_json["classification"] = {"class_names": list(CLASS_NAMES), "negative_class": "no_tumor"}
    if any(isinstance(value, list) for value in declared.values()):
        dataset_json["regions_class_order"] = [1]
    (folder / "dataset_fingerprint.json").write_text("{}", encoding="utf-8")
    (folder / "splits_final.json").write_text(json.dumps([{"train": names[4:], "val": names[:4]}]), encoding="utf-8")
    return TinyDataset(_plans(configuration), dataset_json, configuration)


def _draw(number: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(number)
    image = random.normal(0, 0.3, shape).astype(np.float32)
    mask = np.zeros(shape, np.int8)
    tumour_class = CLASS_NAMES[number % 3]
    if tumour_class != "no_tumor":
        edges = [min(12 if tumour_class == "glioma" else 6, size // 2) for size in shape[1:]]
        corners = [int(random.integers(1, size - edge)) for size, edge in zip(shape[1:], edges, strict=True)]
        window = tuple(slice(corner, corner + edge) for corner, edge in zip(corners, edges, strict=True))
        depth = slice(0, 1) if shape[0] == 1 else slice(2, 6)
        mask[(depth, *window)] = 1
    image[mask == 1] += 2
    return image, mask


def _plans(configuration: str) -> dict[str, Any]:
    plan = PLANS[configuration]
    network = "ResidualEncoderUNet" if plan.is_residual else "PlainConvUNet"
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": "Dataset007_Tiny",
        "plans_name": "TinyPlans",
        "original_median_spacing_after_transp": [1.0, 1.0, 1.0],
        "original_median_shape_after_transp": [1, 32, 32],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {},
        "configurations": {
            configuration: {
                "data_identifier": f"tiny_{configuration}",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": list(plan.patch_size),
                "median_image_size_in_voxels": list(plan.patch_size),
                "spacing": [1.0] * plan.dimensions,
                "normalization_schemes": ["ZScoreNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": resampling,
                "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
                "batch_dice": plan.dimensions == 2,
                "architecture": {
                    "network_class_name": f"dynamic_network_architectures.architectures.unet.{network}",
                    "arch_kwargs": plan.arch_kwargs,
                    "_kw_requires_import": list(REQUIRE_IMPORT),
                },
            }
        },
    }


def save_model(dataset: TinyDataset, name: str, folds: tuple[int, ...], checkpoint: str, spacing: float = 1.0) -> Path:
    """A model folder with untrained, but different, weights a fold.

    Args:
        dataset: that it would be trained on.
        name: of the trainer.
        folds: that are trained.
        checkpoint: file name.
        spacing: of the plans.
    """
    plans = json.loads(json.dumps(dataset.plans)) | {"plans_name": f"Tiny{spacing:g}Plans"}
    plans["foreground_intensity_properties_per_channel"] = {"0": {}}  # a z-score asks for none
    configuration = plans["configurations"][dataset.configuration]
    configuration["spacing"] = [spacing] * len(configuration["spacing"])
    for fold in folds:
        torch.manual_seed(fold + len(name))
        trainer = TinyDataset(plans, dataset.dataset_json, dataset.configuration).trainer(name, fold)
        trainer.initialize()
        for parameter in trainer.network.decoder.parameters():  # so that some foreground is predicted
            torch.nn.init.normal_(parameter, std=0.5)
        trainer.save_checkpoint(str(Path(trainer.output_folder) / checkpoint))
    folder = Path(trainer.output_folder_base)
    (folder / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
    (folder / "dataset.json").write_text(json.dumps(trainer.dataset_json))
    return folder


def write_images(folder: Path, shape: tuple[int, ...], num_cases: int = 4) -> Path:
    """Random images with a brighter corner, 1 mm apart."""
    folder.mkdir()
    for number in range(num_cases):
        array = np.random.default_rng(number).normal(100, 15, shape).astype(np.float32)
        array[..., :9, : 5 + number] += 60
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(array), str(folder / f"case_{number}_0000.nii.gz"))
    return folder
