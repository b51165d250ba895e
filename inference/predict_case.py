"""One case in memory: what ``braintum_predict`` writes of it, as arrays and numbers."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient

from braintum.conversion.format.calibration import Calibration
from braintum.inference.models.segmentation_predictor import SegmentationPredictor
from braintum.inference.models.volume_orientation import turned_back
from braintum.inference.prediction.aggregation_modes import AggregationMode
from braintum.inference.prediction.case_streams import fault_of_answer, one_thread, predict_stream
from braintum.inference.prediction.class_evidence import aggregate
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.prediction.precision import Precision
from braintum.inference.prediction.preprocessing import (
    DOUBTS,
    ModelDescription,
    image_spacing,
    preprocess_array,
    preprocess_case,
    with_class_predictor,
)
from braintum.inference.results.calibration import result_of
from braintum.inference.results.trust import Voxels, trust_of_case

Image = str | os.PathLike[str] | np.ndarray | Sequence[str | os.PathLike[str]] | Sequence[np.ndarray]
"""A file or an array a channel, or one array of all channels."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """What is predicted of a case.

    Attributes:
        case: its name.
        mask: ([Z,] Y, X), integers, on the grid of the image.
        labels: name → value in the mask, as in ``dataset.json``; of a region, its values.
        spacing: of that grid in mm, [Z,] Y, X; None for pictures, which have none.
        predicted_class: the most probable one; None of a model that only segments.
        confidence: its probability; None likewise.
        class_probabilities: class → probability; empty likewise.
        tumour_volume: size of all that is not background.
        volume_unit: ``mm3``; ``mm2`` of single slices; ``px`` of pictures.
        probabilities: (label, [Z,] Y, X), float32, background included; (region, …) of models of regions. None where
            they were not asked for.
        details: all that ``classes/<case>.json`` holds, see
            :func:`braintum.inference.results.results.case_result`: also each fold, spread, uncertainty, calibration.
    """

    case: str
    mask: np.ndarray
    labels: Mapping[str, Any]
    spacing: tuple[float, ...] | None
    predicted_class: str | None
    confidence: float | None
    class_probabilities: Mapping[str, float]
    tumour_volume: float
    volume_unit: str
    probabilities: np.ndarray | None
    details: Mapping[str, Any]


def one_case(
    image: Image, spacing: Sequence[float] | None, model: ModelDescription
) -> tuple[str, list[str] | np.ndarray]:
    """Name of a case, and its files or its array.

    Args:
        image: what a user gave.
        spacing: likewise.
        model: that is to take it.

    Raises:
        ValueError: a folder, more or fewer files than channels, or a spacing beside files.
        FileNotFoundError: a file is missing.
    """
    entries = [image] if isinstance(image, (str, os.PathLike)) else image
    if isinstance(entries, np.ndarray) or not any(isinstance(entry, (str, os.PathLike)) for entry in entries):
        return "case", np.asarray(entries)
    files = [Path(entry) for entry in entries]  # type: ignore[arg-type]
    if spacing is not None:
        raise ValueError(f"{files[0]} has its own spacing; leave the argument away")
    for file in files:
        if file.is_dir():
            raise ValueError(f"{file} is a folder, not an image; predict the images in it with predict_folder")
        if not file.is_file():
            raise FileNotFoundError(f"no image at {file}")
    if len(files) != model.num_channels:
        raise ValueError(f"the model takes {model.num_channels} channel(s), a file each, but {len(files)} are given")
    name = files[0].name.removesuffix(model.dataset_json["file_ending"])
    return re.sub(r"_\d{4}$", "", name), [str(file) for file in files]


def predict_case(
    predictor: SegmentationPredictor,
    image: Sequence[str] | np.ndarray,
    spacing: Sequence[float] | None = None,
    case: str = "case",
    save_probabilities: bool = False,
    class_predictor: JointPredictor | None = None,
    aggregation: AggregationMode = "weighted",
    exact: bool = True,
    precision: Precision = "auto",
    calibration: Calibration | None = None,
    resample_to: str | None = None,
) -> Prediction:
    """Predict segmentation and, where a model predicts classes, class of one case.

    See :func:`braintum.inference.predict_folder.predict_folder`.

    Args:
        predictor: initialised; predicts the masks.
        image: files, one a channel, or an array (C, [Z,] Y, X).
        spacing: of an array, in mm.
        case: name.
        save_probabilities: also return the voxel probabilities.
        class_predictor: initialised; predicts the classes, where another model is to do so.
        aggregation: of class evidence.
        exact: nnU-Net's order of computation; else in bulk.
        precision: of the network in bulk.
        calibration: to be applied to the probabilities of class and voxels; with what it promises beside.
        resample_to: name of the channel on whose grid files are brought.

    Raises:
        ValueError: the image cannot be read, or is not what the model takes; or the network's answer is NaN.
        NotImplementedError: the model's reader is nnU-Net's NibabelIOWithReorient.
    """
    class_predictor, models = with_class_predictor(predictor, class_predictor, resample_to)
    model = models[0]
    if issubclass(model.plans_manager.image_reader_writer_class, NibabelIOWithReorient):
        raise NotImplementedError("NibabelIOWithReorient of this model turns images; predict a folder of files")
    arrays = [
        preprocess_array(image, spacing, each) if isinstance(image, np.ndarray) else preprocess_case(image, each)
        for each in models
    ]
    properties = arrays[0][1]
    trust = None if calibration is None else calibration.trust
    with one_thread():
        preprocessed = [(case, [data for data, _ in arrays])]
        (predicted,) = predict_stream(predictor, class_predictor, preprocessed, 1, exact, precision)
        verdict = None if class_predictor is None else aggregate(predicted.evidence, aggregation)
        if (fault := fault_of_answer(predicted.logits, verdict)) is not None:
            raise ValueError(f"{case}: {fault}")
        voxels = Voxels.of(predicted.logits, properties, model)
    mask, volume, doubts = voxels.mask, voxels.volume, properties[DOUBTS]
    result: dict[str, Any] = {"case": case, "tumour_volume": volume[0], "volume_unit": volume[1]}
    masks = None if trust is None else trust.masks
    if class_predictor is not None and verdict is not None:
        schema = class_predictor.class_schema
        result = result_of(case, verdict, schema, volume, calibration)
        if trust is not None:
            given = None if masks is None else voxels
            result["trust"] = trust_of_case(trust, case, verdict, schema, class_predictor.folds, doubts, given)
    result[DOUBTS] = doubts
    probabilities = None
    if save_probabilities:
        probabilities = voxels.probabilities if masks is None else voxels.calibrated(masks)
    grid = image_spacing(properties, model)
    (mask, *turned), turned_grid = turned_back([mask, *(() if probabilities is None else probabilities)], properties)
    if turned_grid is not None:
        grid, probabilities = turned_grid, None if probabilities is None else np.stack(turned)
    if grid is None or len(grid) == 2:
        mask, probabilities = mask[0], None if probabilities is None else probabilities[:, 0]
    return Prediction(
        case,
        mask,
        model.dataset_json["labels"],
        grid,
        result.get("predicted_class"),
        result.get("confidence"),
        result.get("probabilities", {}),
        *volume,
        probabilities,
        result,
    )
