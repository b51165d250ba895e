"""Export of trained models to ONNX, checked against torch before the file appears.

Torch's newer exporter (``dynamo=True``) is used: it takes the networks of all our trainers, in 2-D and 3-D;
``benchmarks/networks/export_check.py`` checks them.
"""

import copy
import logging
import math
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import nn
from torch._dynamo import OptimizedModule

from braintum.architectures.heads.classification_head import part_probabilities
from braintum.architectures.input_channels import num_network_channels
from braintum.architectures.weights_fingerprint import weights_fingerprint
from braintum.commands.version import __version__
from braintum.conversion.files.atomic import atomic_path
from braintum.inference.export.onnx_model import (
    CLASSES,
    CLASSES_BY_REGION,
    INPUT,
    METADATA_KEY,
    SEGMENTATION,
    OnnxDescription,
    OnnxNetwork,
    onnx_name,
)
from braintum.inference.export.sessions import import_engine
from braintum.inference.models.model_files import read_plans
from braintum.inference.models.segmentation_predictor import SegmentationPredictor
from braintum.inference.prediction.joint_predictor import JointPredictor

_LARGEST_FILE = 2**31 - 2**24  # bytes of weights in one ONNX file, with room for the graph
_CHECKED_BATCHES = (1, 3)  # neither is the one that is exported: the batch has to be free


@dataclass(frozen=True)
class ExportedFold:
    """A file that was written.

    Attributes:
        fold: of the model.
        file: with the network.
        differences: output → largest absolute difference from torch, over all checked inputs.
    """

    fold: int | str
    file: Path
    differences: Mapping[str, float]


class _Exportable(nn.Module):
    """A network whose forward pass gives all that prediction needs, as a tuple; see :meth:`OnnxNetwork.run`."""

    def __init__(self, network: nn.Module, region_channels: Sequence[Sequence[int]], sigmoid: bool) -> None:
        super().__init__()
        self.network: Any = copy.deepcopy(network)
        self.has_classes = hasattr(network, "classification_head")
        self.has_regions = bool(region_channels)
        if self.has_regions:
            self.network.classification_head = _HeadOfRegions(
                self.network.classification_head, region_channels, sigmoid
            )

    @property
    def output_names(self) -> list[str]:
        """Of the tuple."""
        return [SEGMENTATION, *([CLASSES] if self.has_classes else []), *([CLASSES_BY_REGION] * self.has_regions)]

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """For an image (B, C, [Z,] Y, X)."""
        if not self.has_classes:
            return (self.network(image),)
        segmentation, class_logits = self.network(image, with_classes=True)
        if not self.has_regions:
            return segmentation, class_logits
        return segmentation, class_logits[:, 0], class_logits[:, 1:]


class _HeadOfRegions(nn.Module):
    """A classification head that looks at the whole tumour, then at each region alone: (B, 1 + regions, classes)."""

    def __init__(self, head: Any, region_channels: Sequence[Sequence[int]], sigmoid: bool) -> None:
        super().__init__()
        self.head = head
        self.region_channels = [list(channels) for channels in region_channels]
        self.sigmoid = sigmoid

    def forward(self, features: Any, logits: torch.Tensor) -> torch.Tensor:
        parts = part_probabilities(logits, self.region_channels, self.sigmoid)
        of_parts = [self.head.from_probability(features, part) for part in parts]
        return torch.stack([self.head(features, logits), *of_parts], 1)


def export_model(
    model_folder: str | Path,
    folds: Sequence[int | str] | None,
    checkpoint: str,
    tolerance: float,
    target: str | Path | None = None,
    trust_checkpoint: bool = False,
) -> list[ExportedFold]:
    """Export folds of a model, each to ``fold_X/<checkpoint>.onnx``.

    Args:
        model_folder: with ``plans.json``, ``dataset.json`` and ``fold_X``.
        folds: to export; None for all that have the checkpoint.
        checkpoint: file within each fold.
        tolerance: see :func:`export_network`.
        target: another model folder to write to, without checkpoints; gets ``plans.json`` and ``dataset.json`` too.
        trust_checkpoint: see :func:`braintum.inference.models.checkpoints.load_checkpoint_safely`.

    Raises:
        FileNotFoundError: a file of the model is missing.
        ValueError: the model is damaged, not safe or cannot be exported, its export does not agree with torch,
            ``target`` is another model's folder, or packages are missing.
    """
    source = Path(model_folder)
    target = source if target is None else Path(target)
    _import_exporter()
    predictor = JointPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    # not the joint predictor's own, which refuses models without a classification head
    SegmentationPredictor.initialize_from_trained_model_folder(
        predictor, str(source), folds, checkpoint, trust_checkpoint
    )
    if target.resolve() != source.resolve():
        copy_descriptions(source, target)
    exported = []
    for fold, weights in zip(predictor.folds, predictor.list_of_parameters, strict=True):
        folder = target / f"fold_{fold}"
        folder.mkdir(exist_ok=True)
        file = folder / onnx_name(checkpoint)
        exported.append(ExportedFold(fold, file, export_network(predictor, weights, file, tolerance)))
    return exported


def export_network(
    predictor: JointPredictor, weights: Mapping[str, torch.Tensor], file: Path, tolerance: float
) -> dict[str, float]:
    """Export one set of weights, for any batch and the patch size of the plans.

    Args:
        predictor: initialised, with any network.
        weights: state dict.
        file: to write; there completely and checked, or as it was before.
        tolerance: largest difference of any logit between torch and onnxruntime, see :func:`largest_differences`.

    Returns:
        The largest differences found, by output.

    Raises:
        ValueError: torch cannot export the network, its file would be too large, or the two differ by more.
    """
    network = predictor.network
    if isinstance(network, OptimizedModule):
        network = network._orig_mod
    network.load_state_dict(weights)
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if size > _LARGEST_FILE:
        raise ValueError(f"{file} is not exported: {size / 2**30:.1f} GiB of weights, an ONNX file holds two at most")
    has_classes = hasattr(network, "classification_head")
    regions = predictor.region_channels if has_classes else {}
    exportable = _Exportable(network, list(regions.values()), predictor.label_manager.has_regions).eval()
    configuration = predictor.configuration_manager
    patch_size = tuple(int(size) for size in configuration.patch_size)
    try:
        elements = int(network.compute_conv_feature_map_size(patch_size))
    except (AttributeError, NotImplementedError):
        elements = 400 * math.prod(patch_size)  # as memory_budget assumes
    axes = predictor.allowed_mirroring_axes
    description = OnnxDescription(
        trainer=predictor.trainer_name,
        configuration=predictor.configuration_name,
        fingerprint=weights_fingerprint(weights),
        mirroring_axes=None if axes is None else tuple(int(axis) for axis in axes),
        regions=tuple(regions),
        reads_segmentation=has_classes and bool(getattr(network.classification_head, "reads_segmentation", False)),
        feature_map_elements=elements,
        patch_size=patch_size,
        braintum=__version__,
    )
    channels = determine_num_input_channels(predictor.plans_manager, configuration, predictor.dataset_json)
    shape = (num_network_channels(channels, configuration.configuration), *patch_size)
    with atomic_path(file) as partial:
        _write(exportable, shape, description, partial)
        differences = largest_differences(exportable, OnnxNetwork(partial), shape)
        if not all(difference <= tolerance for difference in differences.values()):  # NaN is no agreement
            raise ValueError(
                f"{file} is not written: onnxruntime and torch differ by {format_differences(differences)}, more than "
                f"{tolerance:g}; predict with torch, or allow more with --tolerance"
            )
    return differences


def largest_differences(exportable: nn.Module, exported: OnnxNetwork, shape: Sequence[int]) -> dict[str, float]:
    """Largest difference of each output between torch and onnxruntime, on noise of several batch sizes.

    It is absolute; in an output with values above 1 it is a share of the largest, with which rounding grows.

    Args:
        exportable: in torch, gives a tuple.
        exported: of it.
        shape: (C, [Z,] Y, X) of an input.
    """
    differences: dict[str, float] = {}
    for batch in _CHECKED_BATCHES:
        image = torch.randn((batch, *shape), generator=torch.Generator().manual_seed(batch))
        with torch.inference_mode():
            expected = exportable(image)
        for (name, found), wanted in zip(exported.run(image).items(), expected, strict=True):
            difference = float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1))
            differences[name] = float(np.fmax(difference, differences.get(name, 0.0)))
    return differences


def format_differences(differences: Mapping[str, float]) -> str:
    """In words."""
    return ", ".join(f"{difference:.1e} in {name}" for name, difference in differences.items())


def _write(exportable: _Exportable, shape: Sequence[int], description: OnnxDescription, file: Path) -> None:
    """Export to a file, whatever it is called.

    Raises:
        ValueError: torch cannot export the network.
    """
    image = torch.zeros((2, *shape))
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            program: Any = torch.onnx.export(
                exportable,
                (image,),
                dynamo=True,
                input_names=[INPUT],
                output_names=exportable.output_names,
                dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        reason = (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"torch cannot export the network of {description.trainer}: {reason}") from error
    finally:
        logger.setLevel(level)
    program.model.metadata_props[METADATA_KEY] = description.to_json()
    program.save(str(file), external_data=False)


def _import_exporter() -> None:
    """Make sure that the packages are there before anything is loaded.

    Raises:
        ValueError: one of them is not.
    """
    import_engine("onnxruntime")
    try:
        import onnxscript  # noqa: F401  torch's exporter needs it
    except ImportError as error:
        raise ValueError(f'{error}; exporting needs more packages: pip install "braintum[onnx]"') from error


def copy_descriptions(source: Path, target: Path) -> None:
    """``plans.json`` and ``dataset.json``, which every prediction reads.

    Raises:
        ValueError: other plans are there.
    """
    target.mkdir(parents=True, exist_ok=True)
    plans = target / "plans.json"
    if plans.is_file() and read_plans(plans).plans != read_plans(source / "plans.json").plans:
        raise ValueError(f"{target} is the folder of another model; choose another with -o")
    for name in ("plans.json", "dataset.json"):
        with atomic_path(target / name) as partial:
            shutil.copyfile(source / name, partial)
