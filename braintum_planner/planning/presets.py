"""What the planners differ in: network, its size, its memory, and rules for batch and patch. Data only."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.preprocessing.normalization.default_normalization_schemes import (
    ImageNormalization,
    RescaleTo01Normalization,
)
from torch import nn

from braintum.architectures.networks.braintumnet import BrainTumNet
from braintum.architectures.networks.joint_unet import JointUNet
from braintum.architectures.networks.residual_unet import RUNet
from braintum.architectures.networks.resse_lka_unet import ResSELKAUNet
from braintum.architectures.plan_topology import plain_arch_kwargs
from braintum.planner.planning.memory import feature_map_elements
from braintum.planner.preprocessing.normalization import (
    PercentileRescaleTo01Normalization,
    PercentileZScoreNormalization,
)


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

    @property
    def bytes_per_element(self) -> float:
        """Memory of an element of one patch, all that training holds included."""
        return self.gigabytes * 1e9 / (self.elements * self.batch_size)


@dataclass(frozen=True)
class MeasuredMemory:
    """Peak memory of a training step: bytes_per_parameter x parameters + bytes_per_element x elements x batch.

    Attributes:
        bytes_per_element: fitted to measured peaks, such that the largest relative deviation is smallest.
        largest_deviation: that deviation.
        bytes_per_parameter: weight, two moments of Adam, float32; gradients come when activations have gone.
        provenance: device, type and command of the measurement.
    """

    bytes_per_element: float
    largest_deviation: float
    bytes_per_parameter: float = 12.0
    provenance: str = (
        "float32, CPU, torch 2.15, storages of fake tensors: python benchmarks/networks/memory_calibration.py calibrate"
    )


def stock_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The rule for networks that take what nnU-Net's residual-encoder network takes."""
    return dict(arguments)


def batch_norm_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """As papers 002, 003 and 004 have it: ReLU, and batch norm in 2-D; a 3-D batch of two is too small for that."""
    changed = {**arguments, "nonlin": "torch.nn.ReLU"}
    if arguments["conv_op"].endswith("Conv2d"):
        changed["norm_op"] = "torch.nn.modules.batchnorm.BatchNorm2d"
    return changed


def plain_unet_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Two convolutions a level, down and up, with batch norm and ReLU as in :func:`batch_norm_arguments`."""
    return plain_arch_kwargs(batch_norm_arguments(arguments))


@dataclass(frozen=True)
class PlannerPreset:
    """A planned network and the rules for its batch and patch.

    What goes into the plans is one of nnU-Net's own networks, so that every trainer can use them, nnU-Net's included: a
    paper's trainer builds its network from that topology. ``trained_network`` is the one that has to fit the memory.
    Where nnU-Net's references do not hold for it, ``calibration`` and ``bytes_per_parameter`` (or references of its
    own) say so.

    Attributes:
        plans_name: default identifier of the plans.
        gpu_memory_gb: default of ``-gpu_memory_target``.
        network_class: goes into the plans by its dotted path.
        arguments: makes the network's constructor arguments out of those that nnU-Net plans for
            ``ResidualEncoderUNet`` (strides, kernel sizes, features and blocks per stage).
        memory_estimate: elements of the feature maps of a network (first argument, on the meta device) for a patch.
        calibration: memory of an element of this network, relative to one of the references' network.
        bytes_per_parameter: memory of a parameter, whatever the batch; 0 where the references include it.
        trained_network: what the paper's trainer builds on these plans; None: the plans' own network, which gets the
            classification head where the data set has classes.
        measured: the measurement behind ``calibration``.
        paper: what is planned as this paper has it, for the reasons in the plans.
        normalization: the paper's scheme, where ``dataset.json`` names none; None: the fingerprint decides.
        batch_size_2d: the paper's batch in 2-D, memory permitting; None: the rules below.
        smallest_edge_2d: feature maps are halved down to this edge in 2-D; decides the number of levels.
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
        slice_edge: edge to which the longer side of each slice is brought, in 2-D; None: nnU-Net's target spacing.
        crops_to_head: whether slices of one size are cropped to the head before.
        max_patch_area: largest area of a 2-D patch relative to the median slice: the rest is padding.
    """

    plans_name: str = "BrainTumPlans"
    gpu_memory_gb: float = 8.0
    network_class: type[nn.Module] = ResidualEncoderUNet
    arguments: Callable[[Mapping[str, Any]], dict[str, Any]] = stock_arguments
    memory_estimate: Callable[[nn.Module, Sequence[int]], float] = feature_map_elements
    calibration: float = 1.0
    bytes_per_parameter: float = 0.0
    trained_network: type[nn.Module] | None = None
    measured: MeasuredMemory | None = None
    paper: str = ""
    normalization: type[ImageNormalization] | None = None
    batch_size_2d: int | None = None
    smallest_edge_2d: int = 4
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
    slice_edge: int | None = None
    crops_to_head: bool = True
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

PRETRAINED = PlannerPreset(
    plans_name="BrainTumPretrainedPlans",
    arguments=batch_norm_arguments,
    normalization=PercentileRescaleTo01Normalization,
    paper="nnUNetTrainerPretrained",
    batch_size_2d=16,
    base_num_features=16,
    max_features_2d=256,
    max_features_3d=128,
    blocks_per_stage_encoder=(1,) + (2,) * 12,
    slice_edge=192,
)
"""For backbones with ImageNet weights: the features of :data:`LIGHT` for the decoder, all slices at one size."""

MEDIUM_25D = PlannerPreset(plans_name="BrainTum25DPlans", neighbouring_slices=1)
"""ResEnc M on a slice with its two neighbours."""


RESIDUAL_ENCODER_M = MeasuredMemory(9.395, 0.050, bytes_per_parameter=8.0)
"""nnU-Net's ResEnc M with its own trainer, whose SGD has one moment: what nnU-Net's references are about."""

_ADAM_BYTES = 16.0  # of a parameter: weight, gradient and two moments


def _calibrated(network: type[nn.Module], measured: MeasuredMemory, **rules: Any) -> PlannerPreset:
    """A preset whose network takes what was measured, relative to nnU-Net's."""
    return PlannerPreset(
        trained_network=network,
        measured=measured,
        calibration=measured.bytes_per_element / RESIDUAL_ENCODER_M.bytes_per_element,
        bytes_per_parameter=_ADAM_BYTES,
        **rules,
    )


BRAINTUMNET = _calibrated(
    BrainTumNet,
    MeasuredMemory(8.735, 0.032),
    plans_name="BrainTumNetPlans",
    paper="paper 000 (BrainTumNet)",
    normalization=RescaleTo01Normalization,
    batch_size_2d=16,
    blocks_per_stage_encoder=(1,) * 13,
    slice_edge=256,
)
"""Paper 000: intensities in [0, 1], batches of 16 slices of 256 x 256.

Settled: the crop to 256 x 256 is one to the head, resampled, as 256 of the scanners' 512 pixels would cut heads; widths
and depth are nnU-Net's, as the paper gives none; one block of parallel convolutions a level.
"""

JOINT_UNET = _calibrated(
    JointUNet,
    MeasuredMemory(9.552, 0.076),
    plans_name="BrainTumJointUNetPlans",
    network_class=PlainConvUNet,
    arguments=plain_unet_arguments,
    paper="paper 001 (Joint U-Net)",
    normalization=RescaleTo01Normalization,
    batch_size_2d=16,
    smallest_edge_2d=16,
    base_num_features=64,
    max_features_2d=1024,
    slice_edge=256,
    crops_to_head=False,
)
"""Paper 001, also for its baselines (U-Net, attention U-Net, classifier): widths 64 to 1024 at 256 x 256.

Settled: images that are no squares keep their shape and are padded. Batch norm and ReLU are paper 004's, as 001 names
none; 3-D plans have nnU-Net's depth and largest width.
"""

BR35H_UNET = replace(
    JOINT_UNET,
    plans_name="BrainTumBr35HPlans",
    paper="paper 004 (U-Net on Br35H)",
    batch_size_2d=50,
    gpu_memory_gb=14.0,
)
"""Paper 004: batches of 50 images of 256 x 256, on a GPU of 12 GB with half precision.

Settled: the widths of paper 001, as 004 gives none; four levels each way and the bottleneck between them.
"""

RESSE_LKA = _calibrated(
    ResSELKAUNet,
    MeasuredMemory(8.689, 0.060),
    plans_name="BrainTumResSELKAPlans",
    arguments=batch_norm_arguments,
    paper="paper 002 (ResSE-LKA-UNet)",
    normalization=PercentileZScoreNormalization,
    batch_size_2d=8,
    smallest_edge_2d=8,
    blocks_per_stage_encoder=(1,) * 13,
    blocks_per_stage_decoder=(2,) * 12,
    slice_edge=128,
)
"""Paper 002: clipping and z-score, batches of 8 slices of 128 x 128, one ResSE block a level.

Settled: nnU-Net's widths, as the paper gives none; five levels at 128 x 128, which its deep supervision of three
decoder levels besides the output asks for; two convolutions a decoder level.
"""

RESIDUAL_UNET = _calibrated(
    RUNet,
    MeasuredMemory(9.367, 0.056),
    plans_name="BrainTumResidualUNetPlans",
    arguments=batch_norm_arguments,
    paper="paper 003 (RUNet)",
    normalization=RescaleTo01Normalization,
    batch_size_2d=32,
    smallest_edge_2d=16,
    base_num_features=16,
    blocks_per_stage_encoder=(1,) * 13,
    slice_edge=256,
    crops_to_head=False,
)
"""Paper 003: filters 16 to 256 at 256 x 256. Settled: Keras' batch, as no size is given for this network."""

FT_CNN = replace(RESIDUAL_UNET, plans_name="BrainTumFTCNNPlans", paper="paper 003 (FT-CNN)", batch_size_2d=64)
"""Paper 003: batches of 64 images of 256 x 256, as they fit RUNet; FT-CNN, whose features are frozen, takes less."""
