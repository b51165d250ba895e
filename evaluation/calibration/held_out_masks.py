"""Masks that folds predicted of cases they did not see in training, with voxel probabilities, beside the truth."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from tqdm import tqdm

from braintum.conversion.format.mask_features import border_band, mask_features, tumour_probability, voxel_size
from braintum.evaluation.results.predictions import Predictions

THRESHOLDS = np.concatenate([[0.001, 0.002, 0.005], np.arange(1, 100) / 100, [0.995, 0.998, 0.999]])
"""Tumour probabilities that outer and inner masks may begin at."""
_SAMPLED_VOXELS = 400  # of each case, and as many of its band


@dataclass(frozen=True, eq=False)
class HeldOutMasks:
    """A row a case that has a true mask.

    Attributes:
        names: of the cases.
        features: (cases, features), see :func:`braintum.conversion.format.mask_features.mask_features`.
        feature_names: of the columns.
        dice: (cases,), of the whole tumour; NaN where there is none in truth.
        true_size: (cases,), of the tumour, in the unit of ``voxel_size``.
        voxel_size: (cases,), mm³, mm² or pixels.
        missed: (cases, thresholds), share of the true tumour outside of the mask at each of :data:`THRESHOLDS`.
        wrong: (cases, thresholds), share of that mask outside of the true tumour; 0 for an empty one.
        voxels: (voxels, labels), probabilities of voxels drawn from all cases; of regions (voxels, 2), each by itself.
        voxel_labels: (voxels,), which is true.
        voxel_cases: (voxels,), row of the case.
        in_band: (voxels,) bool: lies near the border, see
            :func:`~braintum.conversion.format.mask_features.border_band`.
        from_band: (voxels,) bool: drawn from there; the others were drawn from everywhere.
    """

    names: tuple[str, ...]
    features: np.ndarray
    feature_names: tuple[str, ...]
    dice: np.ndarray
    true_size: np.ndarray
    voxel_size: np.ndarray
    missed: np.ndarray
    wrong: np.ndarray
    voxels: np.ndarray
    voxel_labels: np.ndarray
    voxel_cases: np.ndarray
    in_band: np.ndarray
    from_band: np.ndarray


def held_out_masks(predictions: Predictions, show_progress: bool = True) -> HeldOutMasks | None:
    """Read every case of a model's folds once.

    Args:
        predictions: of :func:`braintum.evaluation.results.predictions.predictions_of_folds`.
        show_progress: a bar over the cases.

    Returns:
        None where a fold was validated without ``--npz``.

    Raises:
        ValueError: a file is damaged.
    """
    files = {case: mask.parent / f"{case}.npz" for case, mask in predictions.masks.items()}
    if not all(file.is_file() for file in files.values()):
        return None
    reader = predictions.reader_writer
    labels = predictions.dataset_json["labels"]
    regions = predictions.dataset_json.get("regions_class_order") and [
        value for name, value in labels.items() if name not in ("background", "ignore")
    ]
    found: list[tuple[str, Mapping[str, Any]]] = []
    for case in tqdm(files, disable=not show_progress, desc="masks"):
        truth, properties = reader.read_seg(str(predictions.references[case]))
        predicted, _ = reader.read_seg(str(predictions.masks[case]))
        size = voxel_size(properties["spacing"], truth.shape[1] == 1, isinstance(reader, NaturalImage2DIO))
        probabilities = _read_probabilities(files[case], truth.shape[1:])
        known = truth[0] != labels.get("ignore", -1)
        if not known.any():
            continue
        found.append(
            (
                case,
                _described(
                    probabilities,
                    predicted[0] > 0,
                    truth[0],
                    known,
                    size,
                    predictions.class_results.get(case, {}).get("mask_agreement"),
                    regions,
                    np.random.default_rng(len(found)),
                ),
            )
        )
    if not found:
        return None
    rows = [row for _, row in found]
    names = tuple(rows[0]["features"])
    per_case = ("dice", "true_size", "voxel_size", "missed", "wrong")
    per_voxel = ("voxels", "voxel_labels", "in_band", "from_band")
    return HeldOutMasks(
        names=tuple(case for case, _ in found),
        features=np.array([[row["features"][name] for name in names] for row in rows]),
        feature_names=names,
        voxel_cases=np.repeat(np.arange(len(rows)), [len(row["voxel_labels"]) for row in rows]),
        **{key: np.array([row[key] for row in rows]) for key in per_case},
        **{key: np.concatenate([row[key] for row in rows]) for key in per_voxel},
    )


def _read_probabilities(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        with np.load(file) as content:
            probabilities = content["probabilities"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file} is damaged ({error}); validate the fold again with --val --npz") from error
    if probabilities.ndim != 4 or probabilities.shape[1:] != shape:
        raise ValueError(
            f"{file} holds probabilities of shape {probabilities.shape}, the true mask is {shape}; validate the fold "
            "again with --val --npz"
        )
    return probabilities


def _described(
    probabilities: np.ndarray,
    mask: np.ndarray,
    truth: np.ndarray,
    known: np.ndarray,
    size: float,
    agreement: float | None,
    regions: list[Any] | None,
    random: np.random.Generator,
) -> dict[str, Any]:
    """One case; see :class:`HeldOutMasks`.

    Args:
        probabilities: (labels or regions, Z, Y, X).
        mask: (Z, Y, X) bool, predicted.
        truth: (Z, Y, X), labels.
        known: (Z, Y, X) bool, where the truth is no *ignore*.
        size: of a voxel.
        agreement: of mirrored passes.
        regions: labels of each channel of ``probabilities``; None where channels are labels.
        random: draws the voxels.
    """
    tumour = tumour_probability(probabilities, regions is not None)
    true = (truth > 0) & known
    predicted = mask & known
    total, both = int(true.sum()), int((true & predicted).sum())
    above_true = _counts_above(tumour[true])
    above = _counts_above(tumour[known])
    band = border_band(mask)
    anywhere, near_border = (
        random.choice(voxels, _SAMPLED_VOXELS if len(voxels) else 0)
        for voxels in (np.flatnonzero(known), np.flatnonzero(band & known))
    )
    drawn = np.concatenate([anywhere, near_border])
    voxels, voxel_labels = _voxels(probabilities.reshape(len(probabilities), -1)[:, drawn], truth.flat[drawn], regions)
    repeats = len(voxel_labels) // len(drawn)
    return {
        "features": mask_features(tumour, mask, size, agreement),
        "dice": 2 * both / (total + int(predicted.sum())) if total else float("nan"),
        "true_size": total * size,
        "voxel_size": size,
        "missed": 1 - above_true / total if total else np.zeros(len(THRESHOLDS)),
        "wrong": np.where(above > 0, 1 - above_true / np.maximum(above, 1), 0.0),
        "voxels": voxels,
        "voxel_labels": voxel_labels,
        "in_band": np.tile(band.flat[drawn], repeats),
        "from_band": np.tile(np.arange(len(drawn)) >= len(anywhere), repeats),
    }


def _counts_above(values: np.ndarray) -> np.ndarray:
    """How many values reach each of :data:`THRESHOLDS`."""
    edges = THRESHOLDS.astype(np.float32)
    values = np.sort(values[values >= edges[0]])
    return len(values) - np.searchsorted(values, edges)


def _voxels(probabilities: np.ndarray, truth: np.ndarray, regions: list[Any] | None) -> tuple[np.ndarray, np.ndarray]:
    """(labels, voxels) to (voxels, labels) and the true ones; of each region, whether a voxel is in it or not."""
    if regions is None:
        return probabilities.T, truth.astype(np.int64)
    rows = [np.stack([1 - inside, inside], 1) for inside in probabilities]
    true = [np.isin(truth, np.atleast_1d(labels)) for labels in regions]
    return np.concatenate(rows), np.concatenate(true).astype(np.int64)
