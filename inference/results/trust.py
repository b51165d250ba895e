"""What is said of a case beside its mask and class: expected Dice, class set, size interval, whether to review it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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


@dataclass(frozen=True, eq=False)
class Voxels:
    """A predicted mask with its probabilities, on the grid of the image.

    Attributes:
        probabilities: (labels or regions, Z, Y, X), as predicted.
        mask: (Z, Y, X), labels.
        properties: of the image, as nnU-Net's preprocessing notes them.
        model: that predicted them.
    """

    probabilities: np.ndarray
    mask: np.ndarray
    properties: dict
    model: ModelDescription

    @classmethod
    def of(cls, logits: np.ndarray, properties: dict, model: ModelDescription) -> "Voxels":
        """From the network's logits (labels or regions, Z, Y, X), by nnU-Net's resampling."""
        mask, probabilities = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits,
            model.plans_manager,
            model.configuration_manager,
            model.plans_manager.get_label_manager(model.dataset_json),
            properties,
            return_probabilities=True,
            num_threads_torch=1,
        )
        return cls(probabilities, mask, properties, model)

    @cached_property
    def has_regions(self) -> bool:
        """Whether the probabilities are of regions."""
        return self.model.plans_manager.get_label_manager(self.model.dataset_json).has_regions

    @cached_property
    def tumour(self) -> np.ndarray:
        """Probability of any tumour, (Z, Y, X)."""
        return tumour_probability(self.probabilities, self.has_regions)

    @property
    def volume(self) -> tuple[float, str]:
        """Size of the mask, and its unit."""
        return tumour_volume(self.mask, self.properties["spacing"], self.model.reads_pictures)

    def statement(self, masks: MaskTrust, agreement: float | None) -> dict[str, Any]:
        """See :func:`braintum.conversion.format.trust.mask_statement`.

        Args:
            masks: of the model.
            agreement: of mirrored passes.
        """
        size = voxel_size(self.properties["spacing"], len(self.mask) == 1, self.model.reads_pictures)
        return mask_statement(masks, mask_features(self.tumour, self.mask > 0, size, agreement), size)

    def calibrated(self, masks: MaskTrust) -> np.ndarray:
        """The probabilities at the model's temperatures."""
        temperatures = masks.voxel_temperature, masks.border_temperature
        return calibrated_voxels(self.probabilities, self.mask > 0, *temperatures, self.has_regions)

    def write(self, folder: Path, case: str) -> None:
        """The mask, as nnU-Net writes it."""
        self._write(self.mask, folder, case)

    def write_probabilities(self, folder: Path, case: str, masks: MaskTrust) -> None:
        """The calibrated probabilities and the properties, where nnU-Net writes its own."""
        np.savez_compressed(folder / f"{case}.npz", probabilities=self.calibrated(masks))
        save_pickle(self.properties, str(folder / f"{case}.pkl"))

    def write_bound(self, folder: Path, case: str, threshold: float) -> None:
        """The outer or inner mask: where the tumour probability, as predicted, reaches a threshold."""
        self._write((self.tumour >= threshold).astype(np.uint8), folder, case)

    def _write(self, mask: np.ndarray, folder: Path, case: str) -> None:
        file = folder / f"{case}{self.model.dataset_json['file_ending']}"
        self.model.plans_manager.image_reader_writer_class().write_seg(mask, str(file), self.properties)


def trust_of_case(
    trust: Trust,
    case: str,
    verdict: ClassVerdict,
    schema: ClassSchema,
    folds: Sequence[int | str],
    doubts: Sequence[str],
    voxels: Voxels | None,
) -> dict[str, Any]:
    """Everything that is said of a case, ready for JSON.

    Args:
        trust: of the model.
        case: its name.
        verdict: class evidence, as predicted.
        schema: class names.
        folds: that the verdict's features are of, in this order.
        doubts: sentences: in what the image is unlike those of the training.
        voxels: None where nothing is promised of the mask.

    Returns:
        ``coverage``; ``class_set`` and ``class_set_of_each``; of a tumour also what
        :func:`braintum.conversion.format.trust.mask_statement` gives; ``unfamiliar``, the distance of the encoder's
        features divided by its limit (None where not known); ``reasons`` to review the case, and ``review``.
    """
    result = case_result(case, verdict, schema, (0.0, ""))
    of_all, of_each = trust.class_sets(result["probabilities"])
    found: dict[str, Any] = {"coverage": trust.coverage, "class_set": of_all, "class_set_of_each": of_each}
    reasons = list(doubts)
    is_healthy = result["predicted_class"] == schema.negative_class  # and where no tumour is, no Dice is to be expected
    if voxels is not None and trust.masks is not None and (voxels.mask.any() or not is_healthy):
        found |= voxels.statement(trust.masks, result["mask_agreement"])
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
