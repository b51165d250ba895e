"""What the planners differ in: network, its size, its memory, and rules for batch and patch. Data only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from torch import nn

from braintum_planner.memory import feature_map_elements


@dataclass(frozen=True)
class MemoryReference:
    """Feature maps that are known to fit: the scale of a memory estimate.

    Attributes:
        elements: elements of all feature maps of one patch.
        batch_size: patches of that size in a batch.
        gigabytes: GPU memory that training with them takes.
    """

    elements: float
    batch_size: int
    gigabytes: float


def stock_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The rule for networks that take what nnU-Net's residual-encoder network takes."""
    return dict(arguments)


@dataclass(frozen=True)
class PlannerPreset:
    """A planned network and the rules for its batch and patch.

    A network of its own needs ``network_class``, ``arguments``, and, where nnU-Net's references do not hold for it,
    ``calibration`` or references of its own.

    Attributes:
        plans_name: default identifier of the plans.
        gpu_memory_gb: default of ``-gpu_memory_target``.
        network_class: goes into the plans by its dotted path.
        arguments: makes the network's constructor arguments out of those that nnU-Net plans for
            ``ResidualEncoderUNet`` (strides, kernel sizes, features and blocks per stage).
        memory_estimate: elements of the feature maps of a network (first argument, on the meta device) for a patch.
        calibration: memory of an element of this network, relative to one of the references' network.
        reference_2d: of the memory estimate, in 2-D; nnU-Net's for its residual-encoder network.
        reference_3d: the same in 3-D.
        base_num_features: channels of the first stage; doubled per stage up to the maximum.
        max_features_2d: largest number of channels in 2-D.
        max_features_3d: largest number of channels in 3-D.
        blocks_per_stage_encoder: residual blocks per encoder stage.
        blocks_per_stage_decoder: convolutions per decoder stage.
        min_cases_per_class: 2-D batches hold at least this many cases a class, memory permitting.
        min_batch_size_2d: smallest 2-D batch of a multi-task model, memory permitting.
        whole_slice_percentiles: the 2-D patch covers this percentile of the slices' edges, the first that is allowed.
        neighbouring_slices: slices on each side that a 2-D configuration of volumes takes as channels (2.5-D).
        max_patch_area: largest area of a 2-D patch relative to the median slice: the rest is padding.
    """

    plans_name: str = "BrainTumPlans"
    gpu_memory_gb: float = 8.0
    network_class: type[nn.Module] = ResidualEncoderUNet
    arguments: Callable[[Mapping[str, Any]], dict[str, Any]] = stock_arguments
    memory_estimate: Callable[[nn.Module, Sequence[int]], float] = feature_map_elements
    calibration: float = 1.0
    reference_2d: MemoryReference = MemoryReference(135e6, 12, 8.0)
    reference_3d: MemoryReference = MemoryReference(680e6, 2, 8.0)
    base_num_features: int = 32
    max_features_2d: int = 512
    max_features_3d: int = 320
    blocks_per_stage_encoder: tuple[int, ...] = (1, 3, 4) + (6,) * 10
    blocks_per_stage_decoder: tuple[int, ...] = (1,) * 12
    min_cases_per_class: int = 4
    min_batch_size_2d: int = 12
    whole_slice_percentiles: tuple[int, ...] = (100, 95)
    neighbouring_slices: int = 0
    max_patch_area: float = 2.0


MEDIUM = PlannerPreset()
"""nnU-Net's ResEnc M."""

LIGHT = PlannerPreset(
    plans_name="BrainTumLightPlans",
    base_num_features=16,
    max_features_2d=256,
    max_features_3d=128,
    blocks_per_stage_encoder=(1,) + (2,) * 12,
)
"""Fewer features and blocks, for CPUs, demonstrations and first looks."""

MEDIUM_25D = PlannerPreset(plans_name="BrainTum25DPlans", neighbouring_slices=1)
"""ResEnc M on a slice with its two neighbours."""
