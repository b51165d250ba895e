"""What is said of a case beside its mask and class: expected Dice, class set, size interval, whether to review it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import save_pickle
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

from braintum.conversion.format.cases import ClassSchema
from braintum.conversion.format.mask_features import calibrated_voxels, mask_features, tumour_probability, voxel_size
from braintum.conversion.format.trust import MaskTrust, Trust, mask_statement
from braintum.inference.prediction.class_evidence import ClassVerdict
from braintum.inference.prediction.preprocessing import ModelDescription
from braintum.inference.results.results import case_result, tumour_volume

OUTER_FOLDER, INNER_FOLDER = "outer", "inner"


def trust_of_case(
    trust: Trust,
    case: str,
    verdict: ClassVerdict,
    schema: ClassSchema,
    folds: Sequence[int | str],
    doubts: Sequence[str],
    voxels: tuple[np.ndarray, np.ndarray, float, bool] | None,
) -> dict[str, Any]:
    """Everything that is said of a case, ready for JSON.

    Args:
        trust: of the model.
        case: its name.
        verdict: class evidence, as predicted.
        schema: class names.
        folds: that the verdict's features are of, in this order.
        doubts: sentences: in what the image is unlike those of the training.
        voxels: probabilities (labels or regions, Z, Y, X), the mask (Z, Y, X), size of a voxel, and whether these are
            regions; None where another model made the mask, or its trust was not fitted.

    Returns:
        ``coverage``; ``class_set`` and ``class_set_of_each``; of a tumour also what
        :func:`braintum.conversion.format.trust.mask_statement` gives; ``unfamiliar``, the distance of the encoder's
        features divided by its limit (None where not known); ``reasons`` to review the case, and ``review``.
    """
    result = case_result(case, verdict, schema, (0.0, ""))
    of_all, of_each = trust.class_sets(result["probabilities"])
    found: dict[str, Any] = {"coverage": trust.coverage, "class_set": of_all, "class_set_of_each": of_each}
    reasons = list(doubts)
    if voxels is not None and trust.masks is not None:
        probabilities, mask, size, has_regions = voxels
        if mask.any() or result["predicted_class"] != schema.negative_class:
            tumour = tumour_probability(probabilities, has_regions)
            found |= mask_statement(trust.masks, mask_features(tumour, mask > 0, size, result), size)
            if found["review"]:
                reasons.append(f"expected Dice {found['expected_dice']:.2f} below {trust.masks.threshold:.2f}")
    found["unfamiliar"] = _distance(trust, verdict, folds)
    if found["unfamiliar"] is not None and found["unfamiliar"] > 1:
        reasons.append(
            f"unlike the images of the data set ({found['unfamiliar']:.2f} times the limit): what is promised of sets "
            "and intervals does not hold for it"
        )
    return {**found, "review": bool(reasons), "reasons": reasons}


def _distance(trust: Trust, verdict: ClassVerdict, folds: Sequence[int | str]) -> float | None:
    """Mean over folds of the distance of a fold's features, divided by its limit; None where no fold knows it."""
    ratios = [
        float(known.distance(features[None])[0] / known.limit)
        for fold, features in zip(folds, verdict.features, strict=False)
        if features is not None and (known := trust.familiarity.get(str(fold))) is not None
    ]
    return float(np.mean(ratios)) if ratios else None


def voxels_of(
    logits: np.ndarray, properties: dict, model: ModelDescription
) -> tuple[np.ndarray, np.ndarray, float, bool]:
    """Probabilities and mask on the grid of the image, from the network's logits (labels or regions, Z, Y, X).

    Returns:
        As :func:`trust_of_case` takes them.
    """
    labels = model.plans_manager.get_label_manager(model.dataset_json)
    mask, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits,
        model.plans_manager,
        model.configuration_manager,
        labels,
        properties,
        return_probabilities=True,
        num_threads_torch=1,
    )
    size = voxel_size(properties["spacing"], len(mask) == 1, model.reads_pictures)
    return probabilities, mask, size, labels.has_regions


def export_trusted(
    voxels: tuple[np.ndarray, np.ndarray, float, bool],
    masks: MaskTrust,
    properties: dict,
    model: ModelDescription,
    folder: Path,
    case: str,
    save_probabilities: bool,
) -> tuple[float, str]:
    """Write what nnU-Net writes of a case, voxel probabilities calibrated, from what :func:`voxels_of` gave.

    Returns:
        Size of the tumour, and its unit.
    """
    probabilities, mask, _, has_regions = voxels
    if save_probabilities:
        temperatures = masks.voxel_temperature, masks.border_temperature
        calibrated = calibrated_voxels(probabilities, mask > 0, *temperatures, has_regions)
        np.savez_compressed(folder / f"{case}.npz", probabilities=calibrated)
        save_pickle(properties, str(folder / f"{case}.pkl"))
    write_mask(mask, properties, model, folder, case)
    return tumour_volume(mask, properties["spacing"], model.reads_pictures)


def write_bound(
    voxels: tuple[np.ndarray, np.ndarray, float, bool],
    threshold: float,
    properties: dict,
    model: ModelDescription,
    folder: Path,
    case: str,
) -> None:
    """Write the outer or inner mask: voxels whose tumour probability, as predicted, reaches a threshold."""
    probabilities, _, _, has_regions = voxels
    bound = tumour_probability(probabilities, has_regions) >= threshold
    write_mask(bound.astype(np.uint8), properties, model, folder, case)


def write_mask(mask: np.ndarray, properties: Mapping, model: ModelDescription, folder: Path, case: str) -> None:
    """A mask (Z, Y, X) as a file of the data set's kind."""
    ending = model.dataset_json["file_ending"]
    model.plans_manager.image_reader_writer_class().write_seg(mask, str(folder / f"{case}{ending}"), properties)
