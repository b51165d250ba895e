"""Planners for joint segmentation and classification.

nnU-Net's residual-encoder planner is the base. What differs: the batch of a 2-D configuration is large enough for a
classifier also where the data set is small; the preprocessed data has identifiers of its own, so stock plans and ours
coexist; ``-overwrite_target_spacing`` works for 2-D data; class names and ``cases.csv`` travel with the plans.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    ResEncUNetPlanner,
)
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from braintum_commands import __version__
from dataset_conversion.cases import CASES_FILE, ClassSchema, classification_entry, read_cases

__all__ = ["BrainTumPlanner", "BrainTumPlannerLight"]

_UNCAPPED = 1e9  # "share of the data set" that switches nnU-Net's own cap off; infinity cannot be rounded


@dataclass(frozen=True)
class PlannerPreset:
    """Size of the planned network and rule for its batch.

    Attributes:
        base_num_features: channels of the first stage; doubled per stage up to the maximum.
        max_features_2d: largest number of channels in 2-D.
        max_features_3d: largest number of channels in 3-D.
        blocks_per_stage_encoder: residual blocks per encoder stage.
        blocks_per_stage_decoder: convolutions per decoder stage.
        min_cases_per_class: 2-D batches hold at least this many cases a class, memory permitting.
        min_batch_size_2d: smallest 2-D batch of a multi-task model, memory permitting.
    """

    base_num_features: int = 32
    max_features_2d: int = 512
    max_features_3d: int = 320
    blocks_per_stage_encoder: tuple[int, ...] = (1, 3, 4) + (6,) * 10
    blocks_per_stage_decoder: tuple[int, ...] = (1,) * 12
    min_cases_per_class: int = 4
    min_batch_size_2d: int = 12


class BrainTumPlanner(ResEncUNetPlanner):
    """Plans ``BrainTumPlans``: nnU-Net's ResEnc M network with a batch that trains a classifier.

    Args:
        dataset_name_or_id: as in nnU-Net.
        gpu_memory_target_in_gb: as in nnU-Net; 8 by default.
        preprocessor_name: as in nnU-Net.
        plans_name: identifier of the plans; also the prefix of the preprocessed data's folders.
        overwrite_target_spacing: in mm (pixels for PNG). For 3-D data three values; for 2-D data two, or three of
            which the first is ignored.
        suppress_transpose: as in nnU-Net.

    Raises:
        ValueError: bad class schema or target spacing, changed splits, or plans of another planner in the way.
    """

    # set by nnU-Net's untyped base
    overwrite_target_spacing: Any
    max_dataset_covered: float

    preset = PlannerPreset()

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "BrainTumPlans",
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        dataset_name = maybe_convert_to_dataset_name(dataset_name_or_id)
        _check_splits_unchanged(Path(nnUNet_raw) / dataset_name, Path(nnUNet_preprocessed) / dataset_name)
        # nnU-Net insists on floats here; two values are completed below, where the fingerprint is known
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            None if overwrite_target_spacing is None else [float(edge) for edge in overwrite_target_spacing],
            suppress_transpose,
        )
        self.preprocessed_dataset_folder = Path(nnUNet_preprocessed) / self.dataset_name
        self.class_schema = ClassSchema.from_dataset_json(self.dataset_json)
        self.overwrite_target_spacing = self._complete_target_spacing(self.overwrite_target_spacing)
        self.UNet_base_num_features = self.preset.base_num_features
        self.UNet_max_features_2d = self.preset.max_features_2d
        self.UNet_max_features_3d = self.preset.max_features_3d
        self.UNet_blocks_per_stage_encoder = self.preset.blocks_per_stage_encoder
        self.UNet_blocks_per_stage_decoder = self.preset.blocks_per_stage_decoder
        self.max_share_of_dataset = self.max_dataset_covered
        self.max_dataset_covered = _UNCAPPED

    @property
    def is_2d_dataset(self) -> bool:
        """Whether every image is a single slice."""
        return all(shape[0] == 1 for shape in self.dataset_fingerprint["shapes_after_crop"])

    def _complete_target_spacing(self, spacing: Sequence[float] | None) -> list[float] | None:
        """Target spacing with three values; the first of 2-D data is the data's own (a small one means 3-D to nnU-Net).

        Raises:
            ValueError: wrong number of values or a value that is not positive.
        """
        if spacing is None:
            return None
        if any(not np.isfinite(edge) or edge <= 0 for edge in spacing):
            raise ValueError(f"-overwrite_target_spacing takes positive numbers, got {list(spacing)}")
        if not self.is_2d_dataset:
            if len(spacing) != 3:
                raise ValueError(
                    f"{self.dataset_name} is 3-D: -overwrite_target_spacing takes three values (z y x, in mm), got "
                    f"{list(spacing)}"
                )
            return list(spacing)
        if len(spacing) not in (2, 3):
            raise ValueError(
                f"{self.dataset_name} is 2-D: -overwrite_target_spacing takes two values (y x), got {list(spacing)}"
            )
        through_plane = float(np.median(np.vstack(self.dataset_fingerprint["spacings"])[:, 0]))
        return [max(through_plane, *spacing[-2:]), *spacing[-2:]]

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Folder name of the preprocessed data; never one that a stock planner uses.

        nnU-Net's residual planner shares the folders of ``nnUNetPlans``, and preprocessing deletes the folder that it
        writes to.
        """
        prefix = "" if self.plans_identifier.startswith("BrainTum") else "BrainTum_"
        return f"{prefix}{self.plans_identifier}_{configuration_name}"

    def get_plans_for_configuration(
        self,
        spacing: Any,
        median_shape: Any,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict,
    ) -> dict:
        """nnU-Net's plan for one configuration, with the batch size of :meth:`_batch_size`."""
        plan = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        patch_voxels = np.prod(plan["patch_size"], dtype=np.float64)
        plan["batch_size"] = self._batch_size(
            memory_limit=plan["batch_size"],
            dataset_limit=round(approximate_n_voxels_dataset * self.max_share_of_dataset / patch_voxels),
            is_2d=len(spacing) == 2,
        )
        return plan

    def _batch_size(self, memory_limit: int, dataset_limit: int, is_2d: bool) -> int:
        """Batch size from what fits the memory and what nnU-Net's 5 % rule allows.

        The 5 % rule gives a data set of 60 slices a batch of 3: half the classes are missing from it. A 2-D batch of a
        multi-task model is at least ``min_batch_size_2d`` and ``min_cases_per_class`` a class, if the memory allows.
        """
        if is_2d and self.class_schema is not None:
            class_minimum = self.preset.min_cases_per_class * len(self.class_schema.class_names)
            dataset_limit = max(dataset_limit, class_minimum, self.preset.min_batch_size_2d)
        return max(min(memory_limit, dataset_limit), self.UNet_min_batch_size)

    def save_plans(self, plans: dict) -> None:
        """Write the plans with the class names in them, and ``cases.csv`` beside them.

        Raises:
            ValueError: plans of this name were written by another planner, or ``cases.csv`` is wrong.
        """
        self._refuse_foreign_plans()
        plans["braintum_version"] = __version__
        if self.class_schema is not None:
            raw_cases = Path(self.raw_dataset_folder) / CASES_FILE
            read_cases(raw_cases, self.class_schema.class_names)
            plans["classification"] = classification_entry(self.dataset_json)
            shutil.copyfile(raw_cases, self.preprocessed_dataset_folder / CASES_FILE)
        super().save_plans(plans)

    def _refuse_foreign_plans(self) -> None:
        plans_file = self.preprocessed_dataset_folder / f"{self.plans_identifier}.json"
        if not plans_file.is_file():
            return
        planner = json.loads(plans_file.read_text(encoding="utf-8")).get("experiment_planner_used")
        if planner != type(self).__name__:
            raise ValueError(
                f"{plans_file} was written by {planner}; give {type(self).__name__}'s plans another name with "
                "-overwrite_plans_name, or delete that file"
            )


class BrainTumPlannerLight(BrainTumPlanner):
    """Plans ``BrainTumLightPlans``: fewer features and blocks, for CPUs, demonstrations and first looks."""

    preset = PlannerPreset(
        base_num_features=16,
        max_features_2d=256,
        max_features_3d=128,
        blocks_per_stage_encoder=(1,) + (2,) * 12,
    )

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float = 8,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str = "BrainTumLightPlans",
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        super().__init__(
            dataset_name_or_id,
            gpu_memory_target_in_gb,
            preprocessor_name,
            plans_name,
            overwrite_target_spacing,
            suppress_transpose,
        )


def _check_splits_unchanged(raw_folder: Path, preprocessed_folder: Path) -> None:
    """nnU-Net stops with a bare AssertionError where the raw splits changed since they were copied.

    Raises:
        ValueError: naming both files and what to do.
    """
    raw, preprocessed = raw_folder / "splits_final.json", preprocessed_folder / "splits_final.json"
    if not (raw.is_file() and preprocessed.is_file()):
        return

    def folds(file: Path) -> list[tuple[set[str], set[str]]]:
        return [(set(fold["train"]), set(fold["val"])) for fold in json.loads(file.read_text(encoding="utf-8"))]

    expected = folds(raw)
    if folds(preprocessed)[: len(expected)] != expected:
        raise ValueError(
            f"{raw} differs from {preprocessed}, which models may have been trained with; delete the latter to train "
            "with the new splits, or restore the former"
        )
