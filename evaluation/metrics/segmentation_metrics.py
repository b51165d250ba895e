"""Metrics of a predicted mask: the one place that computes them, from two arrays, two files or two folders.

Replaces `nnunetv2.evaluation.evaluate_predictions.compute_metrics` and `compute_metrics_on_folder`; what these return
is returned here under the same names, and ``summary.json`` stays readable for nnU-Net.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.configuration import default_num_processes
from nnunetv2.evaluation.evaluate_predictions import label_or_region_to_key, region_or_label_to_mask, save_summary_json
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

from braintum.conversion.files.atomic import atomic_path
from braintum.conversion.files.file_checks import DamagedFileError
from braintum.conversion.files.parallel import run_cases
from braintum.conversion.files.volumes import VolumeError, check_images
from braintum.conversion.format.label_names import LabelOrRegion
from braintum.evaluation.metrics.lesions import lesion_metrics

SPACING_TOLERANCE = 1e-3


def mask_metrics(
    reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float], ignore: np.ndarray | None = None
) -> dict[str, float]:
    """All metrics of one label or region of one case; what is not defined is NaN.

    A volume of a single slice is a 2-D image: its spacing across the slice counts for nothing.

    Ignored voxels belong to neither mask and to no count, true negatives included. The surface of a mask that is cut
    off at an ignored area thus runs along that area, and a lesion that such an area divides counts as several.

    Args:
        reference: true mask, bool, (Y, X), (1, Y, X) or (Z, Y, X).
        prediction: predicted mask, of the same shape.
        spacing: of each axis of the arrays, in mm or in pixels: the unit of all lengths, areas and volumes.
        ignore: mask of the voxels to leave out, of the same shape; None leaves out none.

    Returns:
        - as nnU-Net: ``Dice``, ``IoU`` (NaN if both masks are empty), ``TP``, ``FP``, ``FN``, ``TN``, ``n_pred``,
          ``n_ref``;
        - ``Jaccard_distance`` (1 - IoU), ``precision`` (NaN without prediction), ``recall`` (NaN without reference),
          ``specificity`` (NaN without background), ``accuracy`` (of pixels; NaN if all are ignored);
        - ``relative_volume_error``, (prediction - reference) / reference (NaN without reference), and
          ``absolute_volume_error``, ``|prediction - reference|``, with ``true_volume`` and ``predicted_volume``, in
          mm³, of 2-D images in mm² (or pixels);
        - between the surfaces, in mm or pixels, NaN if either mask is empty: ``HD``, the Hausdorff distance; ``HD95``,
          the larger one of the 95th percentiles of both directions (Metrics Reloaded, Maier-Hein et al. 2024); and
          ``ASSD``, the average over the voxels of both surfaces. A surface is made of the voxels with a background
          voxel, or the end of the image, beside them;
        - of lesions: see :func:`braintum.evaluation.metrics.lesions.lesion_metrics`.

    Raises:
        ValueError: arrays that are not bool or have different shapes, or a spacing that does not fit them.
    """
    masks = [reference, prediction, *([] if ignore is None else [ignore])]
    if any(mask.dtype != bool or mask.shape != reference.shape for mask in masks) or reference.ndim not in (2, 3):
        described = ", ".join(f"{mask.dtype} {mask.shape}" for mask in masks)
        raise ValueError(f"masks have to be bool arrays of one shape in 2-D or 3-D, not {described}")
    if len(spacing) != reference.ndim or not all(0 < value < np.inf for value in spacing):
        raise ValueError(f"spacing has to be {reference.ndim} positive numbers, one an axis, not {tuple(spacing)}")
    spacing = [float(value) for value in spacing]
    n_voxels = reference.size
    if ignore is not None:
        reference, prediction = reference & ~ignore, prediction & ~ignore
        n_voxels -= int(np.count_nonzero(ignore))
    if reference.ndim == 3 and 1 in reference.shape:
        axis = reference.shape.index(1)
        reference, prediction = reference.squeeze(axis), prediction.squeeze(axis)
        del spacing[axis]
    box = _bounding_box(reference | prediction)
    reference, prediction = reference[box], prediction[box]
    return {
        **_overlap_metrics(reference, prediction, n_voxels, math.prod(spacing)),
        **_surface_metrics(reference, prediction, spacing),
        **lesion_metrics(reference, prediction, spacing),
    }


def case_metrics(
    reference_file: str | Path,
    prediction_file: str | Path,
    reader_writer: BaseReaderWriter,
    labels_or_regions: Sequence[LabelOrRegion],
    ignore_label: int | None = None,
    declared_labels: Collection[int] | None = None,
) -> dict[str, Any]:
    """Metrics of one case, from its files.

    Args:
        reference_file: true label map.
        prediction_file: predicted label map.
        reader_writer: nnU-Net's reader for both.
        labels_or_regions: what to evaluate, as nnU-Net's label manager gives it.
        ignore_label: its voxels in the reference count for nothing.
        declared_labels: which labels there may be besides the background and, in the reference, the ignore label;
            None stands for those of ``labels_or_regions``.

    Returns:
        ``reference_file``, ``prediction_file``, ``length_unit`` ("px" with nnU-Net's reader of natural images, which
        knows no spacing, else "mm") and ``metrics``, which maps each label or region to :func:`mask_metrics`.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: shapes or spacings differ, or a file holds an undeclared label or more than one channel.
    """
    declared = {0, *(_labels(labels_or_regions) if declared_labels is None else declared_labels)}
    with_ignore = declared if ignore_label is None else declared | {ignore_label}
    reference, spacing = _read_label_map(reference_file, reader_writer, with_ignore)
    prediction, predicted_spacing = _read_label_map(prediction_file, reader_writer, declared)
    for what, true, predicted, same in (
        ("shape", reference.shape, prediction.shape, reference.shape == prediction.shape),
        ("spacing", spacing, predicted_spacing, np.allclose(spacing, predicted_spacing, SPACING_TOLERANCE, 0)),
    ):
        if not same:
            raise ValueError(
                f"{reference_file} has {what} {true} but {prediction_file} has {predicted}: predict the images that "
                "this reference belongs to"
            )
    ignore = None if ignore_label is None else reference == ignore_label
    return {
        "reference_file": str(reference_file),
        "prediction_file": str(prediction_file),
        "length_unit": "px" if isinstance(reader_writer, NaturalImage2DIO) else "mm",
        "metrics": {
            item: mask_metrics(
                region_or_label_to_mask(reference, item), region_or_label_to_mask(prediction, item), spacing, ignore
            )
            for item in labels_or_regions
        },
    }


def folder_metrics(
    cases: Sequence[tuple[str, Path, Path]],
    reader_writer: BaseReaderWriter,
    labels_or_regions: Sequence[LabelOrRegion],
    ignore_label: int | None,
    n_processes: int,
    declared_labels: Collection[int] | None = None,
    strict: bool = True,
) -> list[dict[str, Any]]:
    """:func:`case_metrics` of many cases, in several processes.

    Args:
        cases: name, reference and prediction of each case.
        reader_writer: see :func:`case_metrics`, as are the other arguments.
        labels_or_regions: what to evaluate.
        ignore_label: its voxels in the reference count for nothing.
        n_processes: number of processes.
        declared_labels: which labels there may be.
        strict: whether a case that cannot be evaluated is an error.

    Returns:
        What :func:`case_metrics` returns, and ``case``, its name; in the order of the cases. Unless ``strict``, of a
        case that cannot be evaluated its name and ``fault``.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: see :func:`case_metrics`.
    """
    one_case = partial(
        _named_case_metrics,
        reader_writer=reader_writer,
        labels_or_regions=labels_or_regions,
        ignore_label=ignore_label,
        declared_labels=declared_labels,
        strict=strict,
    )
    return run_cases(one_case, cases, n_processes, "evaluating")


def summarise(per_case: Sequence[dict[str, Any]], labels_or_regions: Sequence[LabelOrRegion]) -> dict[str, Any]:
    """Means over cases, as nnU-Net's ``summary.json`` has them, and over how many cases each one goes.

    A mean goes over the cases in which the metric is defined, and is NaN if there are none. The foreground mean is the
    mean of these over the labels or regions except the background. A label without a defined mean stays out of it;
    nnU-Net's own would be NaN then.

    Args:
        per_case: from :func:`case_metrics` or :func:`folder_metrics`; at least one case.
        labels_or_regions: what has been evaluated.

    Returns:
        ``metric_per_case``, ``mean`` (label or region -> metric -> mean), ``foreground_mean`` (metric -> mean),
        ``length_unit``, and ``num_defined``: under ``mean`` the number of cases of each mean (with the label or region
        as the text that is its key in the file), under ``foreground_mean`` the number of labels or regions.

    Raises:
        ValueError: there are no cases.
    """
    if not per_case:
        raise ValueError("no cases to summarise")
    names = per_case[0]["metrics"][labels_or_regions[0]].keys()
    mean: dict[LabelOrRegion, dict[str, float]] = {}
    defined: dict[str, dict[str, int]] = {}
    for item in labels_or_regions:
        pairs = {name: _defined_mean(case["metrics"][item][name] for case in per_case) for name in names}
        mean[item] = {name: value for name, (value, _) in pairs.items()}
        defined[label_or_region_to_key(item)] = {name: number for name, (_, number) in pairs.items()}
    foreground = {name: _defined_mean(mean[item][name] for item in mean if item != 0) for name in names}
    return {
        "metric_per_case": list(per_case),
        "mean": mean,
        "foreground_mean": {name: value for name, (value, _) in foreground.items()},
        "num_defined": {
            "mean": defined,
            "foreground_mean": {name: number for name, (_, number) in foreground.items()},
        },
        "length_unit": per_case[0]["length_unit"],
    }


def save_summary(summary: dict[str, Any], output_file: str | Path) -> None:
    """Writes what :func:`summarise` returns such that nnU-Net's ``load_summary_json`` reads it, all or nothing.

    Files are named by their last folder and name: exported models carry this file, and a path tells of its owner.
    """
    per_case = [
        {
            key: "/".join(Path(value).parts[-2:]) if key in ("reference_file", "prediction_file") else value
            for key, value in case.items()
        }
        for case in summary["metric_per_case"]
    ]
    with atomic_path(output_file) as partial_file:
        save_summary_json({**summary, "metric_per_case": per_case}, str(partial_file))


def metrics_on_folder(
    folder_ref: str,
    folder_pred: str,
    output_file: str | None,
    image_reader_writer: BaseReaderWriter,
    file_ending: str,
    regions_or_labels: Sequence[LabelOrRegion],
    ignore_label: int | None = None,
    num_processes: int = default_num_processes,
    chill: bool = True,
) -> dict[str, Any]:
    """Evaluates all predictions of a folder: takes the place of nnU-Net's `compute_metrics_on_folder`.

    Args:
        folder_ref: folder of the true label maps.
        folder_pred: folder of the predicted label maps, under the same names.
        output_file: the ``summary.json`` to write; None writes none.
        image_reader_writer: nnU-Net's reader for both.
        file_ending: which files of the folders are label maps.
        regions_or_labels: what to evaluate.
        ignore_label: its voxels in the reference count for nothing.
        num_processes: number of processes.
        chill: True evaluates the predictions that are there, False wants one for every reference.

    Returns:
        See :func:`summarise`.

    Raises:
        FileNotFoundError: there are no predictions, one lacks its reference, or (unless ``chill``) one is missing.
        ValueError: see :func:`case_metrics`.
    """
    predictions = _files(folder_pred, file_ending)
    if not predictions:
        raise FileNotFoundError(f"no prediction (*{file_ending}) in {folder_pred}")
    if not chill:
        missing = [name for name in _files(folder_ref, file_ending) if name not in predictions]
        if missing:
            raise FileNotFoundError(
                f"{folder_pred} lacks predictions of {len(missing)} cases of {folder_ref}: {', '.join(missing[:5])}"
            )
    cases = [(name.removesuffix(file_ending), Path(folder_ref, name), Path(folder_pred, name)) for name in predictions]
    per_case = folder_metrics(cases, image_reader_writer, regions_or_labels, ignore_label, num_processes)
    summary = summarise(per_case, regions_or_labels)
    if output_file is not None:
        save_summary(summary, output_file)
    return summary


def _overlap_metrics(
    reference: np.ndarray, prediction: np.ndarray, n_voxels: int, voxel_volume: float
) -> dict[str, float]:
    """Metrics of the four counts; `n_voxels` is the size of the image, of which the masks may be a part."""
    n_ref, n_pred, tp = (int(np.count_nonzero(mask)) for mask in (reference, prediction, reference & prediction))
    fp, fn = n_pred - tp, n_ref - tp
    tn = n_voxels - tp - fp - fn
    iou = _ratio(tp, tp + fp + fn)
    return {
        "Dice": _ratio(2 * tp, n_ref + n_pred),
        "IoU": iou,
        "TP": tp,
        "FP": fp,
        "FN": fn,
        "TN": tn,
        "n_pred": n_pred,
        "n_ref": n_ref,
        "Jaccard_distance": 1 - iou,
        "precision": _ratio(tp, n_pred),
        "recall": _ratio(tp, n_ref),
        "specificity": _ratio(tn, tn + fp),
        "accuracy": _ratio(tp + tn, n_voxels),
        "relative_volume_error": _ratio(n_pred - n_ref, n_ref),
        "absolute_volume_error": abs(n_pred - n_ref) * voxel_volume,
        "true_volume": n_ref * voxel_volume,
        "predicted_volume": n_pred * voxel_volume,
    }


def _surface_metrics(reference: np.ndarray, prediction: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    if not reference.any() or not prediction.any():
        return {"HD": np.nan, "HD95": np.nan, "ASSD": np.nan}
    # here, as it takes seconds
    from monai.metrics import get_mask_edges, get_surface_distance

    # Not MONAI's own crop, which would look for the bounding box a second time. It needs no margin: its erosion takes
    # what is beyond the image for background, so that a mask has a surface where it touches the border.
    edges = get_mask_edges(prediction, reference, crop=False)
    # MONAI gives float32, in which a mean would lose digits
    forth = np.asarray(get_surface_distance(edges[0], edges[1], spacing=spacing), np.float64)
    back = np.asarray(get_surface_distance(edges[1], edges[0], spacing=spacing), np.float64)
    return {
        "HD": float(max(forth.max(), back.max())),
        "HD95": float(max(np.percentile(forth, 95), np.percentile(back, 95))),
        "ASSD": float(np.concatenate([forth, back]).mean()),
    }


def _bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """Smallest box around a mask; of an empty mask an empty one."""
    axes = range(mask.ndim)
    box = []
    for axis in axes:
        inside = np.flatnonzero(mask.any(axis=tuple(other for other in axes if other != axis)))
        box.append(slice(inside[0], inside[-1] + 1) if len(inside) else slice(0))
    return tuple(box)


def _read_label_map(
    file: str | Path, reader_writer: BaseReaderWriter, declared: set[int]
) -> tuple[np.ndarray, list[float]]:
    """Label map (Z, Y, X) and its spacing; the first spacing of a 2-D image means nothing."""
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file} does not exist")
    try:
        check_images([str(file)])
        channels, properties = reader_writer.read_seg(str(file))
    except (DamagedFileError, VolumeError):
        raise
    except Exception as error:  # nnU-Net's readers raise whatever they like
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{file}: cannot be read ({reason[-1]}); predict or copy it again") from error
    if channels.ndim != 4 or len(channels) != 1:
        raise ValueError(f"{file} is no label map: one channel expected, read as shape {channels.shape}")
    undeclared = channels[~np.isin(channels, sorted(declared))]
    if undeclared.size:
        values = ", ".join(f"{value:g}" for value in np.unique(undeclared)[:5])
        raise ValueError(
            f"{file} holds {values}, but the declared labels are {sorted(declared)}: check that this is a label map "
            "of this data set, and dataset.json"
        )
    return channels[0], [float(value) for value in properties["spacing"]]


def _named_case_metrics(case: tuple[str, Path, Path], strict: bool, **arguments: Any) -> dict[str, Any]:
    name, reference_file, prediction_file = case
    try:
        return {"case": name, **case_metrics(reference_file, prediction_file, **arguments)}
    except (ValueError, OSError) as error:
        if strict:
            raise
        return {"case": name, "fault": str(error)}


def _labels(labels_or_regions: Iterable[LabelOrRegion]) -> set[int]:
    return {label for item in labels_or_regions for label in (item if isinstance(item, tuple) else (item,))}


def _files(folder: str, file_ending: str) -> list[str]:
    return sorted(path.name for path in Path(folder).glob(f"[!.]*{file_ending}"))


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else np.nan


def _defined_mean(values: Iterable[float]) -> tuple[float, int]:
    """Mean of the values that are no NaN, and their number."""
    defined = [value for value in values if not np.isnan(value)]
    return (float(np.mean(defined)) if defined else np.nan), len(defined)
