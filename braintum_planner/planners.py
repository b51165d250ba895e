"""Planners for joint segmentation and classification.

nnU-Net's residual-encoder planner is the base. What differs: memory is estimated for the network that is trained, its
classification head included; the 2-D patch covers whole slices where memory allows, because the class needs context;
the batch of a 2-D configuration is large enough for a classifier also where the data set is small; intensities are
normalised as the fingerprint asks; the preprocessed data has identifiers of its own, so stock plans and ours coexist;
``-overwrite_target_spacing`` works for 2-D data; class names and ``cases.csv`` travel with the plans. Every decision is
in the plans with its reason (``braintum_decisions``).
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name

from braintum.architectures.input_channels import NEIGHBOURING_SLICES
from braintum.commands.version import __version__
from braintum.conversion.building.slices import RESCALED_VOLUMES
from braintum.conversion.files.atomic import copy_atomic
from braintum.conversion.files.orientation import ORIENTATIONS_ENTRY
from braintum.conversion.format.cases import CASES_FILE, ClassSchema, classification_entry, read_cases
from braintum.planner.fingerprint_extractors import FINGERPRINT_ENTRY
from braintum.planner.planning.atomic_planner import AtomicResEncUNetPlanner
from braintum.planner.planning.decisions import DECISIONS_ENTRY, batch_size, describe_patch, describe_topology, times
from braintum.planner.planning.earlier_files import check_plans_are_of, check_splits_unchanged
from braintum.planner.planning.memory import planned_network
from braintum.planner.planning.normalization_schemes import channel_scheme, keeps_background_at_zero
from braintum.planner.planning.presets import (
    BR35H_UNET,
    BRAINTUMNET,
    FT_CNN,
    JOINT_UNET,
    LIGHT,
    MEDIUM,
    MEDIUM_25D,
    PRETRAINED,
    RESIDUAL_UNET,
    RESSE_LKA,
    PlannerPreset,
)
from braintum.planner.planning.target_spacing import complete_target_spacing
from braintum.planner.preprocessing.neighbouring_slices import check_neighbours
from braintum.planner.preprocessing.preprocessors import BrainTumPreprocessor
from braintum.planner.preprocessing.whole_slices import SLICE_CROP, SLICE_EDGE

__all__ = [
    "BrainTumPlanner",
    "BrainTumPlanner25D",
    "BrainTumPlannerBr35H",
    "BrainTumPlannerBrainTumNet",
    "BrainTumPlannerFTCNN",
    "BrainTumPlannerJointUNet",
    "BrainTumPlannerLight",
    "BrainTumPlannerPretrained",
    "BrainTumPlannerResSELKA",
    "BrainTumPlannerResidualUNet",
]

NNUNET_SMALLEST_EDGE = 4  # nnU-Net halves feature maps down to it
_UNCAPPED = 1e9  # "share of the data set" that switches nnU-Net's own cap off; infinity cannot be rounded


class BrainTumPlanner(AtomicResEncUNetPlanner):
    """Plans ``BrainTumPlans``: nnU-Net's ResEnc M network with a batch that trains a classifier.

    Works with nnU-Net's fingerprint too; the one of ``BrainTumFingerprintExtractor`` also decides the normalisation.

    Args:
        dataset_name_or_id: as in nnU-Net.
        gpu_memory_target_in_gb: as in nnU-Net; None: the preset's.
        preprocessor_name: nnU-Net's default stands for :class:`BrainTumPreprocessor`, which gives the same arrays.
        plans_name: identifier of the plans; also the prefix of the preprocessed data's folders. None: the preset's.
        overwrite_target_spacing: in mm (pixels for PNG). For 3-D data three values; for 2-D data two, or three of
            which the first is ignored.
        suppress_transpose: as in nnU-Net.

    Raises:
        ValueError: bad class schema, memory target or target spacing, changed splits, plans of another planner in the
            way, or no neighbouring slices where the preset asks for them.
    """

    # set by nnU-Net's untyped base
    overwrite_target_spacing: Any
    max_dataset_covered: float

    preset: PlannerPreset = MEDIUM

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = DefaultPreprocessor.__name__,
        plans_name: str | None = None,
        overwrite_target_spacing: Sequence[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        dataset_name = maybe_convert_to_dataset_name(dataset_name_or_id)
        check_splits_unchanged(Path(nnUNet_raw) / dataset_name, Path(nnUNet_preprocessed) / dataset_name)
        preset = self.preset
        memory = preset.gpu_memory_gb if gpu_memory_target_in_gb is None else gpu_memory_target_in_gb
        if not np.isfinite(memory) or memory <= 0:
            raise ValueError(f"-gpu_memory_target takes a positive number of gigabytes, got {memory}")
        # nnU-Net insists on floats here; two values are completed below, where the fingerprint is known
        super().__init__(
            dataset_name_or_id,
            memory,
            # the name that stock commands pass when the user gives none
            BrainTumPreprocessor.__name__ if preprocessor_name == DefaultPreprocessor.__name__ else preprocessor_name,
            plans_name or preset.plans_name,
            None if overwrite_target_spacing is None else [float(edge) for edge in overwrite_target_spacing],
            suppress_transpose,
        )
        self.preprocessed_dataset_folder = Path(nnUNet_preprocessed) / self.dataset_name
        self.class_schema = ClassSchema.from_dataset_json(self.dataset_json)
        self.overwrite_target_spacing = complete_target_spacing(
            self.overwrite_target_spacing,
            self.dataset_name,
            self.dataset_fingerprint["spacings"] if self.is_2d_dataset else None,
        )
        self.UNet_class = preset.network_class
        self.UNet_base_num_features = preset.base_num_features
        self.UNet_max_features_2d = preset.max_features_2d
        self.UNet_max_features_3d = preset.max_features_3d
        self.UNet_blocks_per_stage_encoder = preset.blocks_per_stage_encoder
        self.UNet_blocks_per_stage_decoder = preset.blocks_per_stage_decoder
        self.UNet_reference_val_corresp_GB = 1
        self.UNet_reference_val_2d = preset.reference_2d.elements / preset.reference_2d.gigabytes
        self.UNet_reference_val_3d = preset.reference_3d.elements / preset.reference_3d.gigabytes
        self.UNet_reference_val_corresp_bs_2d = preset.reference_2d.batch_size
        self.UNet_reference_val_corresp_bs_3d = preset.reference_3d.batch_size
        self.max_share_of_dataset = self.max_dataset_covered
        self.max_dataset_covered = _UNCAPPED
        self._decisions: dict[str, dict[str, str]] = {}
        if preset.neighbouring_slices:
            axis = self.determine_transpose()[0][0]
            check_neighbours(
                self.dataset_name,
                [shape[axis] for shape in self.dataset_fingerprint["shapes_after_crop"]],
                [spacing[axis] for spacing in self.dataset_fingerprint["spacings"]],
            )

    @property
    def is_2d_dataset(self) -> bool:
        """Whether every image is a single slice."""
        return all(shape[0] == 1 for shape in self.dataset_fingerprint["shapes_after_crop"])

    @property
    def channel_fingerprints(self) -> list[dict[str, Any]] | None:
        """What is known of each channel; None with nnU-Net's own fingerprint."""
        entry = self.dataset_fingerprint.get(FINGERPRINT_ENTRY)
        return None if entry is None else entry["channels"]

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Folder name of the preprocessed data; never one that a stock planner uses.

        nnU-Net's residual planner shares the folders of ``nnUNetPlans``, and preprocessing deletes the folder that it
        writes to.
        """
        prefix = "" if self.plans_identifier.startswith("BrainTum") else "BrainTum_"
        return f"{prefix}{self.plans_identifier}_{configuration_name}"

    def determine_transpose(self) -> tuple[list[int], list[int]]:
        """nnU-Net's order of the axes; volumes of one slice are 2-D along whatever axis that slice lies.

        nnU-Net goes by spacing alone, and would cut a slice of 1 × 256 × 256 voxels that is thinner than its pixels are
        wide into strips.
        """
        single = np.flatnonzero((np.array(self.dataset_fingerprint["shapes_after_crop"]) == 1).all(0))
        if self.suppress_transpose or len(single) != 1:
            return super().determine_transpose()
        forward = [int(single[0]), *(axis for axis in range(3) if axis != single[0])]
        return forward, [forward.index(axis) for axis in range(3)]

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self) -> tuple[list[str], list[bool]]:
        """Scheme of each channel; the fingerprint decides where ``dataset.json`` does not name one."""
        schemes, use_mask = super().determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        decisions = self._decisions.setdefault("data", {})
        names = list((self.dataset_json.get("channel_names") or self.dataset_json["modality"]).values())
        rescaled = bool(self.dataset_json.get(RESCALED_VOLUMES))
        for number, name in enumerate(names):
            fingerprint = None if self.channel_fingerprints is None else self.channel_fingerprints[number]
            schemes[number], reason = channel_scheme(self.preset, name, fingerprint, rescaled)
            decisions[f"normalization of {name}"] = f"{schemes[number]}, {reason}"
        cropped_much = any(use_mask) or self.dataset_fingerprint["median_relative_size_after_cropping"] < 3 / 4
        return schemes, [cropped_much and keeps_background_at_zero(scheme) for scheme in schemes]

    def _data_decisions(self, plans: Mapping[str, Any]) -> dict[str, str]:
        """Decisions that hold for all configurations."""
        edges = ", ".join(f"{edge:g}" for edge in plans["original_median_spacing_after_transp"])
        if self.overwrite_target_spacing is not None:
            spacing = "as -overwrite_target_spacing asks"
        else:
            spacing = f"the median of the data ({edges}); 10th percentile along an axis that is much coarser"
        order = plans["transpose_forward"]
        return {
            "target spacing": spacing,
            "axes": f"order {order}, the {'single slice' if self.is_2d_dataset else 'coarsest axis'} first",
            **self._decisions.get("data", {}),
        }

    def _largest_shape(self, is_2d: bool, spacing: Sequence[float]) -> list[int]:
        """Largest edges of the images at the spacing of a configuration."""
        target = self.determine_fullres_target_spacing()[self.determine_transpose()[0]]
        largest = self._resampled_shapes.max(0) * target / ([target[0], *spacing] if is_2d else spacing)
        return [round(edge) for edge in (largest[1:] if is_2d else largest)]

    @cached_property
    def _resampled_shapes(self) -> np.ndarray:
        """Shapes of all cases at the target spacing, axes in the order of the plans: (cases, 3)."""
        target = self.determine_fullres_target_spacing()
        shapes = [
            compute_new_shape(shape, spacing, target)
            for shape, spacing in zip(
                self.dataset_fingerprint["shapes_after_crop"], self.dataset_fingerprint["spacings"], strict=True
            )
        ]
        return np.array(shapes)[:, self.determine_transpose()[0]]

    def _architecture(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The entry ``architecture`` of a plan, from the arguments that nnU-Net plans for its residual network."""
        network_class = self.preset.network_class
        return {
            "network_class_name": f"{network_class.__module__}.{network_class.__qualname__}",
            "arch_kwargs": self.preset.arguments(arguments),
        }

    def static_estimate_VRAM_usage(  # noqa: N802  nnU-Net's name; a method here, as it needs the preset
        self,
        patch_size: Sequence[int],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict[str, Any],
        arch_kwargs_req_import: Sequence[str],
    ) -> float:
        """Elements of the feature maps that a patch needs in the network that is trained, its head included.

        Raises:
            ValueError: the images are too small for a U-Net, or the memory target is too small for any patch.
        """
        if arch_kwargs["n_stages"] < 2:
            raise ValueError(self._no_network(patch_size))
        is_2d = len(patch_size) == 2
        if is_2d:
            input_channels *= 2 * self.preset.neighbouring_slices + 1
        network = planned_network(
            {**self._architecture(arch_kwargs), "_kw_requires_import": arch_kwargs_req_import},
            input_channels,
            output_channels,
            classification_entry(self.dataset_json),
            self.preset.trained_network,
        )
        estimate = self.preset.memory_estimate(network, patch_size) * self.preset.calibration
        estimate /= self._share_for_activations(network, is_2d)
        # nnU-Net cuts the patch for as long as it does not fit, without an end
        if max(patch_size) <= 2 * self.UNet_featuremap_min_edge_length and estimate > self._available_elements(is_2d):
            raise ValueError(self._no_network(patch_size))
        return estimate

    def _share_for_activations(self, network: Any, is_2d: bool) -> float:
        """Share of the memory target that parameters leave free, tiny where they leave nothing.

        nnU-Net takes the batch as the target over the estimate of a patch, in proportion: an estimate over this share
        leaves room for what does not depend on the batch.
        """
        parameters = sum(parameter.numel() for parameter in network.parameters())
        held = parameters * self.preset.bytes_per_parameter / (self.UNet_vram_target_GB * 1e9)
        return max(1 - held, 1e-6)

    def _no_network(self, patch_size: Sequence[int]) -> str:
        """Why there is no U-Net for a patch: it was cut to fit the memory, or the images are as small."""
        median_shape = np.floor(np.median(self._resampled_shapes, 0))[-len(patch_size) :]
        if (np.array(patch_size) < median_shape).any():
            return (
                f"{self.dataset_name}: not even a patch of {times(patch_size)} voxels fits "
                f"{self.UNet_vram_target_GB:g} GB; plan with a larger -gpu_memory_target"
            )
        return (
            f"{self.dataset_name}: images of {times(patch_size)} voxels are too small for a U-Net, which halves one "
            f"edge at least once, down to {self.UNet_featuremap_min_edge_length}; plan with a finer "
            "-overwrite_target_spacing, or leave these images out"
        )

    def _available_elements(self, is_2d: bool) -> float:
        reference = self.UNet_reference_val_2d if is_2d else self.UNet_reference_val_3d
        return reference * self.UNet_vram_target_GB

    def get_plans_for_configuration(
        self,
        spacing: Any,
        median_shape: Any,
        data_identifier: str,
        approximate_n_voxels_dataset: float,
        _cache: dict,
    ) -> dict:
        """nnU-Net's plan for one configuration, with our patch (2-D), batch and network.

        Raises:
            ValueError: see :meth:`static_estimate_VRAM_usage`.
        """
        is_2d = len(spacing) == 2
        self.UNet_featuremap_min_edge_length = self.preset.smallest_edge_2d if is_2d else NNUNET_SMALLEST_EDGE
        rest = (data_identifier, approximate_n_voxels_dataset, _cache)
        covered, plan = None, None
        if is_2d and self.preset.slice_edge is not None:
            plan = super().get_plans_for_configuration(spacing, np.array([self.preset.slice_edge] * 2), *rest)
            covered = 100
        for percentile in self.preset.whole_slice_percentiles if is_2d and covered is None else ():
            shape = np.ceil(np.percentile(self._resampled_shapes[:, 1:], percentile, 0)).astype(int)
            if shape.prod() > self.preset.max_patch_area * np.prod(median_shape):
                continue
            plan = super().get_plans_for_configuration(spacing, shape, *rest)
            if (np.array(plan["patch_size"]) >= shape).all():
                covered = percentile
                break
        if covered is None or plan is None:
            plan = super().get_plans_for_configuration(spacing, median_shape, *rest)
        plan["median_image_size_in_voxels"] = median_shape
        plan["architecture"] |= self._architecture(plan["architecture"]["arch_kwargs"])
        patch_voxels = np.prod(plan["patch_size"], dtype=np.float64)
        plan["batch_size"], reason = batch_size(
            self.preset,
            memory_limit=plan["batch_size"],
            dataset_limit=round(approximate_n_voxels_dataset * self.max_share_of_dataset / patch_voxels),
            num_classes=0 if self.class_schema is None else len(self.class_schema.class_names),
            is_2d=is_2d,
            smallest=self.UNet_min_batch_size,
            gigabytes=self.UNet_vram_target_GB,
        )
        self._decisions[data_identifier] = {
            "patch": describe_patch(plan["patch_size"], median_shape, self._largest_shape(is_2d, spacing), covered),
            "network": describe_topology(plan, self.UNet_featuremap_min_edge_length),
            "batch": reason,
            "memory": f"{self.UNet_vram_target_GB:g} GB",
        }
        if is_2d and self.preset.slice_edge is not None:
            plan[SLICE_EDGE] = self.preset.slice_edge
            if not self.preset.crops_to_head:
                plan[SLICE_CROP] = False
            plan["preprocessor_name"] = BrainTumPreprocessor.__name__  # the one that brings them to one size
            crop = "cropped to the head" if self.preset.crops_to_head else "not cropped"
            self._decisions[data_identifier]["patch"] = (
                f"patch {times(plan['patch_size'])}: slices are {crop}, and their longer edge becomes "
                f"{self.preset.slice_edge} pixels, as {type(self).__name__} plans it"
            )
        if is_2d and self.preset.neighbouring_slices:
            plan[NEIGHBOURING_SLICES] = self.preset.neighbouring_slices
            plan["preprocessor_name"] = BrainTumPreprocessor.__name__  # the one that stacks them
            self._decisions[data_identifier]["input"] = (
                f"{self.preset.neighbouring_slices} neighbouring slice(s) on each side as channels, as "
                f"{type(self).__name__} plans it"
            )
        return plan

    def save_plans(self, plans: dict) -> None:
        """Write the plans with decisions and class names in them, and ``cases.csv`` beside them.

        Raises:
            ValueError: plans of this name were written by another planner, or ``cases.csv`` is wrong.
        """
        check_plans_are_of(type(self).__name__, self.preprocessed_dataset_folder / f"{self.plans_identifier}.json")
        plans["braintum_version"] = __version__
        if orientations := self.dataset_fingerprint.get(FINGERPRINT_ENTRY, {}).get(ORIENTATIONS_ENTRY):
            plans[ORIENTATIONS_ENTRY] = orientations
        plans[DECISIONS_ENTRY] = {
            "data": self._data_decisions(plans),
            **{
                name: self._decisions[plan["data_identifier"]]
                for name, plan in plans["configurations"].items()
                if plan.get("data_identifier") in self._decisions
            },
        }
        if self.class_schema is not None:
            raw_cases = Path(self.raw_dataset_folder) / CASES_FILE
            read_cases(raw_cases, self.class_schema.class_names)
            plans["classification"] = classification_entry(self.dataset_json)
            copy_atomic(raw_cases, self.preprocessed_dataset_folder / CASES_FILE)
        super().save_plans(plans)


class BrainTumPlannerLight(BrainTumPlanner):
    """Plans ``BrainTumLightPlans``: fewer features and blocks, for CPUs, demonstrations and first looks."""

    preset = LIGHT


class BrainTumPlannerPretrained(BrainTumPlanner):
    """Plans ``BrainTumPretrainedPlans``: all slices cropped to the head and at one size, for pretrained backbones.

    Of volumes too: then each slice is one. 3-D configurations are those of ``BrainTumPlannerLight``.
    """

    preset = PRETRAINED


class BrainTumPlanner25D(BrainTumPlanner):
    """Plans ``BrainTum25DPlans``: 2-D networks that see the neighbours of a volume's slice as further channels."""

    preset = MEDIUM_25D


class BrainTumPlannerBrainTumNet(BrainTumPlanner):
    """Plans ``BrainTumNetPlans``, for the trainers of paper 000."""

    preset = BRAINTUMNET


class BrainTumPlannerJointUNet(BrainTumPlanner):
    """Plans ``BrainTumJointUNetPlans``, for the U-Nets of paper 001."""

    preset = JOINT_UNET


class BrainTumPlannerBr35H(BrainTumPlanner):
    """Plans ``BrainTumBr35HPlans``, for the U-Net of paper 004."""

    preset = BR35H_UNET


class BrainTumPlannerFTCNN(BrainTumPlanner):
    """Plans ``BrainTumFTCNNPlans``, for FT-CNN of paper 003."""

    preset = FT_CNN


class BrainTumPlannerResSELKA(BrainTumPlanner):
    """Plans ``BrainTumResSELKAPlans``, for the trainers of paper 002."""

    preset = RESSE_LKA


class BrainTumPlannerResidualUNet(BrainTumPlanner):
    """Plans ``BrainTumResidualUNetPlans``, for RUNet of paper 003."""

    preset = RESIDUAL_UNET
