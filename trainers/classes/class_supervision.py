"""What a patch can teach the classifier: its case's class, weighted with what the patch shows of the tumour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from braintum.conversion.format.cases import Case, ClassSchema
from braintum.conversion.format.patients import patient_of_cases

UNKNOWN_CLASS = -100
"""Label of a case without a class: what cross-entropy ignores."""

TUMOUR_FREE_PATCH_WEIGHT = 0.1
"""Of an annotated patch that shows no tumour, in the class loss."""


@dataclass(frozen=True)
class ClassLabels:
    """Class label and patient of every case.

    Attributes:
        schema: class names and the negative class.
        label_of_case: index into the class names; cases without a class are absent.
        patient_of_case: a case of an unknown patient is its own patient.
        permutation_seed: of a control whose training labels are permuted; None for true labels.
    """

    schema: ClassSchema
    label_of_case: Mapping[str, int]
    patient_of_case: Mapping[str, str] = field(default_factory=dict)
    permutation_seed: int | None = None

    @staticmethod
    def from_cases(cases: Mapping[str, Case], schema: ClassSchema) -> "ClassLabels":
        """Labels from the rows of ``cases.csv``.

        Raises:
            ValueError: a case without a patient is named like a patient.
        """
        return ClassLabels(
            schema,
            {name: schema.class_names.index(case.tumour_class) for name, case in cases.items() if case.tumour_class},
            patient_of_cases(cases, {name: case.patient for name, case in cases.items()}),
        )

    def of(self, keys: Sequence[str]) -> torch.Tensor:
        """Labels of a batch, (B,) int64; :data:`UNKNOWN_CLASS` where there is none."""
        return torch.tensor([self.label_of_case.get(str(key), UNKNOWN_CLASS) for key in keys])

    @property
    def negative_label(self) -> int | None:
        """Index of the healthy class."""
        negative = self.schema.negative_class
        return None if negative is None else self.schema.class_names.index(negative)

    def balanced(self, keys: Sequence[str], resolution: int = 4) -> list[str]:
        """``keys`` repeated so that drawing uniformly draws every class equally often.

        nnU-Net's loader draws from the identifiers of its data set; cases without a class keep the share of the
        most frequent class's cases.

        Args:
            keys: identifiers of a data set.
            resolution: repetitions of the most frequent class; the higher, the closer to balance.
        """
        labels = [self.label_of_case.get(key, UNKNOWN_CLASS) for key in keys]
        counts = {label: labels.count(label) for label in set(labels) if label != UNKNOWN_CLASS}
        most = max(counts.values(), default=1)
        return [
            key
            for key, label in zip(keys, labels, strict=True)
            for _ in range(round(resolution * most / counts.get(label, most)))
        ]


def tumour_and_ignored(
    target: torch.Tensor, ignore_label: int | None, region_based: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Where a target shows tumour, and where nobody knows.

    Args:
        target: see :func:`patch_weights`.
        ignore_label: likewise.
        region_based: likewise.

    Returns:
        Bool (B, [Z,] Y, X); the second one None where the data set declares no ignore label.
    """
    if region_based:
        ignored = target[:, -1] != 0 if ignore_label is not None else None
        regions = target[:, :-1] if ignore_label is not None else target
        tumour = (regions != 0).any(1)
    else:
        ignored = target[:, 0] == ignore_label if ignore_label is not None else None
        tumour = target[:, 0] > 0
    return tumour if ignored is None else tumour & ~ignored, ignored


def patch_weights(
    target: torch.Tensor,
    labels: torch.Tensor,
    covered_share: torch.Tensor,
    ignore_label: int | None,
    region_based: bool,
    negative_label: int | None,
) -> torch.Tensor:
    """Weight of each patch in the class loss.

    A patch that shows tumour, or any patch of a healthy case, counts in full. An annotated patch without tumour carries
    its case's label all the same and counts :data:`TUMOUR_FREE_PATCH_WEIGHT`. Where the annotation is missing (ignore
    label) the patch shows an unknown part of the tumour: it counts by the share of the image that it covers.

    Args:
        target: (B, 1, [Z,] Y, X) labels, or (B, regions (+ ignore), [Z,] Y, X) for region-based training, at full
            resolution.
        labels: (B,) class labels.
        covered_share: (B,) share of each case's image that its patch covers, in (0, 1].
        ignore_label: nnU-Net's ignore label, None where the data set declares none.
        region_based: whether ``target`` holds regions; the ignore mask is its last channel then.
        negative_label: label of the healthy class.

    Returns:
        (B,) float32.
    """
    tumour, ignored = tumour_and_ignored(target, ignore_label, region_based)
    shows_tumour = tumour.flatten(1).any(1)
    weights = torch.where(shows_tumour, 1.0, TUMOUR_FREE_PATCH_WEIGHT)
    if ignored is not None:
        weights = torch.where(ignored.flatten(1).any(1) & ~shows_tumour, covered_share.to(weights), weights)
    if negative_label is not None:
        weights = torch.where(labels == negative_label, torch.ones_like(weights), weights)
    return weights


def class_loss(
    class_logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Weighted cross-entropy in float32; zero, but connected to the logits, where no case has a class.

    Args:
        class_logits: (B, classes).
        labels: (B,), :data:`UNKNOWN_CLASS` where unknown.
        weights: (B,).
        label_smoothing: as in torch.
    """
    known = labels != UNKNOWN_CLASS
    losses = functional.cross_entropy(
        class_logits.float(), labels, reduction="none", ignore_index=UNKNOWN_CLASS, label_smoothing=label_smoothing
    )
    weights = weights * known
    # the clamp keeps a batch of down-weighted patches from counting like a full one
    return (losses * weights).sum() / weights.sum().clamp(min=1.0) + 0.0 * class_logits.sum()


def covered_shares(patch_size: Sequence[int], image_shapes: Sequence[Sequence[int]]) -> torch.Tensor:
    """Share of each image that one patch covers.

    Args:
        patch_size: ([Z,] Y, X).
        image_shapes: preprocessed shape (Z, Y, X) of each case.

    Returns:
        (B,) float32 in (0, 1].
    """
    patch_voxels = float(np.prod(patch_size))
    return torch.tensor([min(1.0, patch_voxels / float(np.prod(shape))) for shape in image_shapes])
