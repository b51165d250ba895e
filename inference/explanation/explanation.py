"""Attribution of a whole case: windows combined as nnU-Net combines them, brought back to the image, and checked.

The windows of a case are those of prediction, without mirroring. The attribution of a class counts as its window counts
in the class probabilities (by the tumour that is predicted in it), that of a mask by the voxels of the mask in its
window, the masks of an attention alike; overlapping windows are averaged with nnU-Net's Gaussian weights. Folds are
averaged.

The check is that of Adebayo et al. 2018 (https://arxiv.org/abs/1810.03292): a map that hardly changes when the weights
are drawn anew shows the image, not what the network learned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import insert_crop_into_image
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from scipy.stats import spearmanr
from torch import nn

from braintum.architectures.heads.classification_head import tumour_probability
from braintum.inference.explanation.attribution import Attribute
from braintum.inference.explanation.subjects import AttentionSubject, ClassSubject, MaskSubject, Subject
from braintum.inference.prediction.class_evidence import WEIGHT_FLOOR


@dataclass(frozen=True)
class CaseAttribution:
    """Maps of a case on the grid of the preprocessed image, float32 (Z, Y, X).

    Attributes:
        trained: of the model.
        random_head: with the weights of what makes the score of the features drawn anew: the classification head, of a
            mask the segmentation's output layers, or of attention what makes its masks; None without controls, and of
            networks that have no such layers.
        random_network: with all weights drawn anew; None without controls.
        completeness_error: how far the sums of integrated gradients are off, as a share of the differences that they
            should amount to; None for other methods.
    """

    trained: np.ndarray
    random_head: np.ndarray | None = None
    random_network: np.ndarray | None = None
    completeness_error: float | None = None


@dataclass(frozen=True)
class _Windows:
    """A padded image and the windows that nnU-Net cuts from it."""

    image: torch.Tensor  # (C, Z, Y, X)
    slicers: Sequence[tuple]
    gaussian: torch.Tensor
    without_padding: tuple[slice, ...]
    device: torch.device

    @staticmethod
    def of(predictor: nnUNetPredictor, data: torch.Tensor) -> "_Windows":
        patch_size = tuple(predictor.configuration_manager.patch_size)
        image, without_padding = pad_nd_image(data, patch_size, "constant", {"value": 0}, True, None)
        slicers = predictor._internal_get_sliding_window_slicers(image.shape[1:])
        gaussian = compute_gaussian(
            patch_size, sigma_scale=1.0 / 8, value_scaling_factor=10, dtype=torch.float32, device=torch.device("cpu")
        )
        return _Windows(image, slicers, gaussian, without_padding[1:], predictor.device)

    def patch(self, slicer: tuple) -> torch.Tensor:
        """(1, C, [Z,] Y, X)."""
        return self.image[slicer][None].to(self.device, copy=True)


def explain_preprocessed(
    predictor: nnUNetPredictor,
    data: torch.Tensor,
    subject: ClassSubject | MaskSubject | AttentionSubject,
    attribute: Attribute,
    controls: bool = True,
) -> CaseAttribution:
    """Attribution of the score of a class or a mask, or the masks of an attention, for a preprocessed case.

    Args:
        predictor: with a network, and the weights of its folds. Its weights are those of the last fold afterwards.
        data: (C, Z, Y, X), float32, as nnU-Net's preprocessor makes it.
        subject: what to explain; the mask of a structure is that of the whole case, (Z, Y, X).
        attribute: of :data:`braintum.inference.explanation.attribution.METHODS`, or
            :func:`~braintum.inference.explanation.attribution.attention_masks`.
        controls: also explain networks whose weights are drawn anew.
    """
    network = bare_network(predictor).to(predictor.device).eval()
    windows = _Windows.of(predictor, data.float())
    maps: dict[str, list[np.ndarray]] = {"trained": [], "random_head": [], "random_network": []}
    error = difference = 0.0
    for fold, parameters in enumerate(predictor.list_of_parameters):
        network.load_state_dict(parameters)
        if isinstance(subject, MaskSubject):
            subjects, weights = _masks_of_windows(windows, subject)
        else:
            subjects, weights = [subject] * len(windows.slicers), [1.0] * len(windows.slicers)
            if isinstance(subject, ClassSubject):
                weights = _window_weights(network, windows, predictor.label_manager.has_regions)
        of_windows = list(zip(windows.slicers, subjects, weights, strict=True))
        trained, fold_error, fold_difference = _combine(network, windows, of_windows, attribute)
        maps["trained"].append(trained)
        error, difference = error + fold_error, difference + fold_difference
        if controls:
            try:
                if (head := _head(network, subject)) is not None:
                    draw_weights_anew(network, head, seed=fold)
                    maps["random_head"].append(_combine(network, windows, of_windows, attribute)[0])
                draw_weights_anew(network, network, seed=fold)
                maps["random_network"].append(_combine(network, windows, of_windows, attribute)[0])
            finally:
                network.load_state_dict(parameters)
    averaged: dict[str, Any] = {name: np.mean(folds, axis=0) if folds else None for name, folds in maps.items()}
    return CaseAttribution(**averaged, completeness_error=error / difference if difference else None)


def bare_network(predictor: nnUNetPredictor) -> Any:
    """The network, not compiled: captum takes no other."""
    return getattr(predictor.network, "_orig_mod", predictor.network)


def _window_weights(network: Any, windows: _Windows, has_regions: bool) -> list[float]:
    """How much each window counts in the class probabilities; 1 on average."""
    weights = []
    with torch.no_grad():
        for slicer in windows.slicers:
            tumour = tumour_probability(network(windows.patch(slicer)), has_regions)
            weights.append(max(float(tumour.amax()), WEIGHT_FLOOR))
    mean = sum(weights) / len(weights)
    return [weight / mean for weight in weights]


def _masks_of_windows(windows: _Windows, subject: MaskSubject) -> tuple[list[Subject], list[float]]:
    """The part of a mask in each window, and how much the window counts; 1 on average."""
    if subject.mask is None or not subject.mask.any():
        raise ValueError("no mask to explain")
    whole = torch.zeros(windows.image.shape[1:], dtype=torch.bool)
    whole[windows.without_padding] = subject.mask
    masks = [whole[slicer[1:]] for slicer in windows.slicers]
    mean = sum(int(mask.sum()) for mask in masks) / len(masks)
    return [replace(subject, mask=mask) for mask in masks], [int(mask.sum()) / mean for mask in masks]


def _head(network: Any, subject: Subject) -> nn.Module | None:
    """What makes the score, or the masks, of the features."""
    if isinstance(subject, ClassSubject):
        return network.classification_head
    if isinstance(subject, AttentionSubject):
        return network.get_submodule(subject.name).mask
    return getattr(getattr(network, "decoder", None), "seg_layers", None)


def _combine(
    network: Any, windows: _Windows, of_windows: Sequence[tuple[tuple, Subject, float]], attribute: Attribute
) -> tuple[np.ndarray, float, float]:
    """Map (Z, Y, X) without padding, and the sums of the windows' absolute errors and differences.

    Args:
        network: with the weights of a fold.
        windows: of a case.
        of_windows: slicer of each window, what is explained of it, and how much it counts; nothing at 0.
        attribute: how to explain.
    """
    total, norm = torch.zeros(windows.image.shape[1:]), torch.zeros(windows.image.shape[1:])
    error = difference = 0.0
    for slicer, subject, weight in of_windows:
        norm[slicer[1:]] += windows.gaussian
        if weight == 0:
            continue
        found = attribute(network, windows.patch(slicer), subject)
        total[slicer[1:]] += weight * windows.gaussian * found.attribution
        error, difference = error + abs(found.error), difference + abs(found.difference)
    return (total / norm)[windows.without_padding].numpy(), error, difference


def draw_weights_anew(network: Any, part: nn.Module, seed: int) -> None:
    """Replace the weights of a network, or of a part of it, by random ones, as training starts with.

    What no layer knows how to draw (learned scales, for instance) is shuffled.

    Args:
        network: with nnU-Net's static ``initialize``, where it has its own.
        part: the network, or a module in it.
        seed: of the weights; torch's own random numbers stay as they are.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in part.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()  # type: ignore[operator]
                continue
            for parameter in module.parameters(recurse=False):
                values = parameter.flatten()
                shuffled = values[torch.randperm(values.numel()).to(values.device)]
                if torch.equal(shuffled, values):  # happens with two or three
                    shuffled = values.roll(1)
                parameter.copy_(shuffled.view_as(parameter))
        if hasattr(network, "initialize"):
            part.apply(network.initialize)


def to_image_grid(
    attribution: np.ndarray,
    properties: Mapping[str, Any],
    plans_manager: PlansManager,
    configuration_manager: ConfigurationManager,
) -> np.ndarray:
    """A map of the preprocessed image on the grid of the image file, the way that nnU-Net brings probabilities back.

    Args:
        attribution: (Z, Y, X).
        properties: of nnU-Net's preprocessor.
        plans_manager: of the model.
        configuration_manager: of the model.

    Returns:
        (Z, Y, X), float32; 0 where nnU-Net cropped the image.
    """
    spacing = [properties["spacing"][axis] for axis in plans_manager.transpose_forward]
    shape = properties["shape_after_cropping_and_before_resampling"]
    network_spacing = list(configuration_manager.spacing)
    if len(network_spacing) < len(shape):
        network_spacing = [spacing[0], *network_spacing]
    resampled = configuration_manager.resampling_fn_probabilities(attribution[None], shape, network_spacing, spacing)
    whole = np.zeros(properties["shape_before_cropping"], np.float32)
    whole = insert_crop_into_image(whole, np.asarray(resampled, np.float32)[0], properties["bbox_used_for_cropping"])
    return whole.transpose(plans_manager.transpose_backward)


def similarity(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's rank correlation of how strong two maps are where; None where one is the same everywhere."""
    first, second = np.abs(first).ravel(), np.abs(second).ravel()
    if first.min() == first.max() or second.min() == second.max():
        return None
    return float(spearmanr(first, second).statistic)


def mask_figures(attribution: np.ndarray, mask: np.ndarray) -> dict[str, float | None]:
    """How much of an attribution lies inside a mask, and how much would by chance.

    Args:
        attribution: any shape.
        mask: bool, same shape.

    Returns:
        ``share``: of the absolute attribution; ``positive_share``: of what speaks for the class; ``area``: the mask's
        share of the image; ``ratio``: ``share`` by ``area``, 1 by chance. None where nothing is marked or attributed.
    """
    area = float(mask.mean())
    share = _share(np.abs(attribution), mask)
    return {
        "share": share if area else None,
        "positive_share": _share(np.clip(attribution, 0, None), mask) if area else None,
        "area": area,
        "ratio": share / area if area and share is not None else None,
    }


def _share(strength: np.ndarray, mask: np.ndarray) -> float | None:
    total = float(strength.sum(dtype=np.float64))
    return float(strength[mask].sum(dtype=np.float64)) / total if total > 0 else None
