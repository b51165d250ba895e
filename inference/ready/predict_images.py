"""One's own images through a ready model: masks, types, volumes, pictures and warnings."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape

from braintum.commands.provenance import PROVENANCE_FILE, provenance
from braintum.conversion.files.atomic import remove_partial_files, write_json_atomic
from braintum.conversion.format.calibration import Calibration
from braintum.inference.models.model_identity import model_identity
from braintum.inference.prediction.case_streams import fault_of_answer, one_thread, predict_stream
from braintum.inference.prediction.class_evidence import ClassVerdict, aggregate
from braintum.inference.prediction.input_files import LEFT_OUT_FILE, check_output, unused_input, write_left_out
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.prediction.memory_budget import available_cores
from braintum.inference.prediction.precision import Precision
from braintum.inference.ready.expected_dice import at_best_expected_dice
from braintum.inference.ready.overlay import write_overlay
from braintum.inference.ready.own_images import OwnImage, find_images, read_image
from braintum.inference.ready.suitability import Suitability, feature_warning, plain_warnings
from braintum.inference.results.calibration import result_of
from braintum.inference.results.results import CLASSES_FILE, CLASSES_FOLDER, merge_case_results

OVERLAYS_FOLDER = "overlays"

_MM3_IN_ML = 1000


@dataclass
class PredictedImages:
    """Outcome of a run.

    Attributes:
        results: what ``classes/<name>.json`` holds of each image, in order.
        failed: image → what is wrong with it.
    """

    results: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Pending:
    """An image on its way through the network."""

    image: OwnImage
    properties: dict[str, Any]
    warnings: list[str]


def predict_images(
    predictor: JointPredictor,
    suitability: Suitability | None,
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    precision: Precision = "float32",
    not_needed: Sequence[str] = (),
) -> PredictedImages:
    """Predict pictures, DICOM slices and volumes.

    Args:
        predictor: of a 2-D model with one channel, initialised.
        suitability: of the model.
        images: folder of images, or one image.
        output: folder for masks, ``overlays``, ``classes`` and ``classes.csv``; made if need be.
        precision: of the network on CPUs.
        not_needed: patterns of images of which nothing is to be said, see
            :func:`braintum.inference.prediction.input_files.unused_input`.

    Raises:
        FileNotFoundError: no such folder, or no image in it.
        ValueError: images and output are one folder, or the output holds results of other classes.
        UnwritableFolderError: the disk is full, or the output folder read-only.
    """
    source, target = Path(images), Path(output)
    check_output(target, source)
    paths, failed = find_images(source)
    if source.is_dir():
        failed |= unused_input(source, [*paths.values(), *(source / name for name in failed)], target, not_needed)
    for folder in (target, target / CLASSES_FOLDER, target / OVERLAYS_FOLDER):
        folder.mkdir(parents=True, exist_ok=True)
        remove_partial_files(folder)
    write_json_atomic(target / PROVENANCE_FILE, provenance(model=model_identity(predictor)))
    write_json_atomic(target / "dataset.json", predictor.dataset_json)
    calibration = Calibration.from_dataset_json(predictor.dataset_json)
    network = predictor.network
    network.load_state_dict(predictor.list_of_parameters[0])
    network.to(predictor.device).eval()
    outcome = PredictedImages(failed=failed)
    pending: dict[str, _Pending] = {}

    def preprocessed() -> Iterator[tuple[str, list[np.ndarray]]]:
        for name, path in paths.items():
            try:
                image = read_image(path)
                if image.slices.min() == image.slices.max():
                    raise ValueError(f"{path}: an empty image, all pixels have one value; export it again")
                data, properties = _preprocess(image, predictor)
                warnings = plain_warnings(image)
                if suitability is not None and not warnings:
                    slices = _padded(data, predictor)
                    found = feature_warning(network, slices.to(predictor.device), suitability)
                    warnings = [] if found is None else [found]
            except ValueError as error:
                outcome.failed[path.name] = str(error)
                continue
            pending[name] = _Pending(image, properties, warnings)
            yield name, [data]

    with one_thread():
        for predicted in predict_stream(predictor, predictor, preprocessed(), len(paths), False, precision):
            verdict = aggregate(predicted.evidence, "weighted")
            of_image = pending.pop(predicted.name)
            if (fault := fault_of_answer(predicted.logits, verdict)) is not None:
                outcome.failed[paths[predicted.name].name] = fault
                continue
            outcome.results.append(_write(predicted.logits, verdict, of_image, predictor, calibration, target))
    write_left_out(target / LEFT_OUT_FILE, outcome.failed, source)
    merge_case_results(target / CLASSES_FOLDER, target / CLASSES_FILE, predictor.class_schema)
    return outcome


def _preprocess(image: OwnImage, predictor: JointPredictor) -> tuple[np.ndarray, dict[str, Any]]:
    """As nnU-Net prepares a file of the training data; (C, Z, Y, X)."""
    spacing = image.spacing or (1.0, 1.0, 1.0)
    through_plane = spacing[0] if len(image.slices) > 1 else 999 * max(spacing[1:])  # as nnU-Net's readers have it
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case_npy(
        image.slices[None],
        None,
        {"spacing": [through_plane, *spacing[1:]]},
        predictor.plans_manager,
        predictor.configuration_manager,
        predictor.dataset_json,
    )
    return np.ascontiguousarray(data, dtype=np.float32), properties


def _padded(data: np.ndarray, predictor: JointPredictor) -> torch.Tensor:
    """Slices (Z, C, Y, X) of the patch's size at least."""
    slices = torch.from_numpy(data).transpose(0, 1)
    return pad_nd_image(slices, predictor.configuration_manager.patch_size, "constant", {"value": 0})


def _write(
    logits: np.ndarray,
    verdict: ClassVerdict,
    pending: _Pending,
    predictor: JointPredictor,
    calibration: Calibration | None,
    target: Path,
) -> dict[str, Any]:
    """Write all files of an image; its JSON comes last."""
    image, schema = pending.image, predictor.class_schema
    labels = predictor.plans_manager.get_label_manager(predictor.dataset_json)
    sees_tumour = schema.class_names[int(verdict.probabilities.argmax())] != schema.negative_class
    if sees_tumour and labels.num_segmentation_heads == 2 and not labels.has_regions:
        logits = at_best_expected_dice(logits)
    mask = convert_predicted_logits_to_segmentation_with_correct_shape(
        logits,
        predictor.plans_manager,
        predictor.configuration_manager,
        labels,
        pending.properties,
        num_threads_torch=available_cores(),
    )
    result = result_of(image.name, verdict, schema, _volume(mask, image), calibration)
    result["warnings"] = pending.warnings
    image.write_mask(mask, target)
    aspect = 1.0 if image.spacing is None else image.spacing[1] / image.spacing[2]
    write_overlay(target / OVERLAYS_FOLDER / f"{image.name}.png", image.slices, mask, aspect, summary(result))
    write_json_atomic(target / CLASSES_FOLDER / f"{image.name}.json", result)
    return result


def _volume(mask: np.ndarray, image: OwnImage) -> tuple[float, str]:
    voxels = int((mask != 0).sum())
    if image.spacing is None:
        return float(voxels), "px"
    z, y, x = image.spacing
    return (voxels * y * x, "mm2") if len(mask) == 1 else (voxels * z * y * x, "mm3")


def summary(result: dict[str, Any]) -> str:
    """One line about an image."""
    said = result.get("calibration", {}).get("verdict", result["predicted_class"])
    sure = f"{result['predicted_class']} {result['confidence']:.0%}"
    what = sure if said == result["predicted_class"] else f"{said} ({sure})"
    size, unit = result["tumour_volume"], result["volume_unit"]
    if unit == "mm3":
        size, unit = size / _MM3_IN_ML, "ml"
    amount = f"{size:.{1 if unit == 'ml' else 0}f} {unit}" if size else "no tumour outlined"
    return f"{result['case']}: {what}, {amount}{'  (!)' if result['warnings'] else ''}"
