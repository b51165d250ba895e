"""Exported networks that compute in 8 bits: calibrated on training cases, and measured on the fold's held-out ones.

Quantisation is onnxruntime's static one in QDQ format: weights by output channel, activations by tensor, in the ranges
that they take in the middle windows of training cases. In float32 stay normalisation, attention, matrix products, the
first convolution, and depthwise ones: their few multiply-adds cost no time, and their channels differ too much for one
range. After Jacob et al., `Quantization and Training of
Neural Networks for Efficient Integer-Arithmetic-Only Inference <https://arxiv.org/abs/1712.05877>`_, section 3.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.paths import nnUNet_preprocessed, nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from braintum.conversion.files.atomic import atomic_path
from braintum.conversion.format.cases import find_cases_file, read_cases
from braintum.conversion.format.splits import SPLITS_FILE, read_splits
from braintum.inference.export.onnx_export import copy_descriptions, export_model
from braintum.inference.export.onnx_model import INPUT, METADATA_KEY, OnnxDescription
from braintum.inference.export.onnx_predictor import OnnxJointPredictor, OnnxSegmentationPredictor
from braintum.inference.prediction.case_streams import predict_stream
from braintum.inference.prediction.class_evidence import aggregate
from braintum.inference.prediction.precision import found_labels
from braintum.inference.prediction.window_batches import CaseInProgress

_QUANTISED = ["Conv", "ConvTranspose", "Add", "Relu", "LeakyRelu", "Concat"]


@dataclass(frozen=True)
class Int8Fold:
    """A network that was written, and what it costs on held-out cases, at the spacing of the plans.

    Attributes:
        fold: of the model.
        file: with the network.
        num_cases: held out, that were predicted.
        dice: mean over cases and labels that are there, of the float32 network and of this one; NaN without any.
        accuracy: share of cases with their class, likewise; NaN where the model or the cases have none.
        agreement: mean Dice between the masks of the two.
    """

    fold: int | str
    file: Path
    num_cases: int
    dice: tuple[float, float]
    accuracy: tuple[float, float]
    agreement: float


def export_int8(
    model_folder: str | Path,
    folds: Sequence[int | str] | None,
    checkpoint: str,
    tolerance: float,
    target: str | Path,
    num_cases: int,
    most_lost: float,
    trust_checkpoint: bool = False,
) -> list[Int8Fold]:
    """Export folds of a model with 8-bit networks, as a model folder without checkpoints.

    Args:
        model_folder: see :func:`braintum.inference.export.onnx_export.export_model`, as the rest that is not here.
        folds: likewise; numbers.
        checkpoint: likewise.
        tolerance: of the export in float32 that is quantised.
        target: model folder to write.
        num_cases: of the training cases to calibrate with, and of the held-out ones to measure on, evenly spread.
        most_lost: of Dice or accuracy; what loses more is not written.
        trust_checkpoint: likewise.

    Raises:
        FileNotFoundError: the preprocessed data set is not there.
        ValueError: no such fold in its splits, or more is lost.
    """
    target = Path(target)
    if target.resolve() == Path(model_folder).resolve():
        raise ValueError(f"{target} is the model's own folder, whose exports are in float32; name another with -o")
    with tempfile.TemporaryDirectory() as temporary:
        exact, int8 = Path(temporary, "float32"), Path(temporary, "int8")
        exported = export_model(model_folder, folds, checkpoint, tolerance, exact, trust_checkpoint)
        copy_descriptions(exact, int8)
        written = []
        for fold in exported:
            predictor = _load(exact, fold.fold, checkpoint)
            data = _Cases.of(predictor, fold.fold, num_cases)
            file = int8 / fold.file.relative_to(exact)
            file.parent.mkdir()
            _quantise(fold.file, file, data)
            dice, accuracy, agreement = data.compare([predictor, _load(int8, fold.fold, checkpoint)])
            for name, (before, after) in {"Dice": dice, "accuracy": accuracy}.items():
                if before - after > most_lost:
                    raise ValueError(
                        f"{target} gets no 8-bit network of fold {fold.fold}: {name} on {len(data.held_out)} held-out "
                        f"cases falls from {before:.4f} to {after:.4f}, by more than {most_lost:g}; export in float32, "
                        "calibrate with more cases (--int8), or allow more with --most-lost"
                    )
            where = target / file.relative_to(int8)
            written.append(Int8Fold(fold.fold, where, len(data.held_out), dice, accuracy, agreement))
        copy_descriptions(int8, target)
        for done in written:
            done.file.parent.mkdir(exist_ok=True)
            with atomic_path(done.file) as partial:
                shutil.copyfile(int8 / done.file.relative_to(target), partial)
    return written


def _quantise(source: Path, file: Path, data: "_Cases") -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # onnxruntime advises on a preprocessing that the exporter has done
    try:
        quantize_static(
            str(source),
            str(file),
            _Windows(data),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_QUANTISED,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=_kept(source),
        )
    finally:
        logger.setLevel(level)
    _describe(file)


def _load(folder: Path, fold: int | str, checkpoint: str) -> Any:
    with redirect_stdout(None):  # nnU-Net prints of a CPU that it is not CUDA
        predictor: Any = OnnxSegmentationPredictor(
            device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False
        )
        predictor.initialize_from_trained_model_folder(str(folder), [fold], checkpoint)
        return OnnxJointPredictor.of(predictor) if predictor.predicts_classes else predictor


def _kept(file: Path) -> list[str]:
    """Nodes that stay in float32: the first convolution and those by group."""
    import onnx

    nodes = onnx.load(str(file), load_external_data=False).graph.node
    return [
        node.name
        for node in nodes
        if INPUT in node.input or any(attribute.name == "group" and attribute.i > 1 for attribute in node.attribute)
    ]


def _describe(file: Path) -> None:
    """Name the weights as others than those of the checkpoint: calibration and provenance are of float32."""
    import onnx

    content = onnx.load(str(file))
    (entry,) = (entry for entry in content.metadata_props if entry.key == METADATA_KEY)
    description = OnnxDescription.from_json(entry.value, file)
    entry.value = replace(description, fingerprint=f"int8 of {description.fingerprint}").to_json()
    onnx.save(content, str(file))


@dataclass(frozen=True)
class _Cases:
    """Preprocessed cases of a fold.

    Attributes:
        predictor: says windows and labels.
        dataset: nnU-Net's.
        training: cases to calibrate with.
        held_out: cases to measure on.
        classes: of the cases, by name; without those that have none.
    """

    predictor: Any
    dataset: Any
    training: Sequence[str]
    held_out: Sequence[str]
    classes: dict[str, int]

    @staticmethod
    def of(predictor: Any, fold: int | str, num_cases: int) -> "_Cases":
        """Some of each side of the fold, evenly spread."""
        plans = predictor.plans_manager.plans
        if not nnUNet_preprocessed.is_set():
            raise ValueError("int8 is calibrated on preprocessed training cases; set nnUNet_preprocessed")
        folder = Path(str(nnUNet_preprocessed)) / plans["dataset_name"]
        cases_folder = folder / predictor.configuration_manager.data_identifier
        if not cases_folder.is_dir():
            raise FileNotFoundError(
                f"{cases_folder} does not exist: int8 is calibrated on preprocessed training cases; make them "
                f"with nnUNetv2_preprocess -d {plans['dataset_name']} -plans_name {plans['plans_name']}"
            )
        splits = read_splits(folder / SPLITS_FILE, "train the model's folds on this data set first")
        if not isinstance(fold, int) or fold >= len(splits):
            raise ValueError(f"{folder / SPLITS_FILE} holds out no cases of fold {fold}; choose folds with -f")
        training, held_out = (_spread(splits[fold][side], num_cases) for side in ("train", "val"))
        classes = {}
        if predictor.predicts_classes:
            names = predictor.dataset_json["classification"]["class_names"]
            cases = read_cases(find_cases_file(folder, Path(str(nnUNet_raw or "")) / plans["dataset_name"]), names)
            classes = {name: names.index(case.tumour_class) for name, case in cases.items() if case.tumour_class}
        dataset = infer_dataset_class(str(cases_folder))(str(cases_folder), [*training, *held_out])
        return _Cases(predictor, dataset, training, held_out, classes)

    def load(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Image (C, Z, Y, X) and mask (1, Z, Y, X)."""
        image, mask = self.dataset.load_case(name)[:2]
        return np.asarray(image[:], np.float32), np.asarray(mask[:])

    def compare(self, predictors: Sequence[Any]) -> tuple[tuple[float, float], tuple[float, float], float]:
        """Dice and accuracy of two predictors, and the Dice between their masks."""
        labels = predictors[0].label_manager
        parts = labels.foreground_regions if labels.has_regions else labels.foreground_labels
        streams = []
        for predictor in predictors:
            images = ((name, [self.load(name)[0]]) for name in self.held_out)
            joint = predictor if predictor.predicts_classes else None
            streams.append(predict_stream(predictor, joint, images, len(self.held_out), False, "float32"))
        dice: tuple[list[float], ...] = ([], [])
        correct: tuple[list[bool], ...] = ([], [])
        agreement: list[float] = []
        for name, *cases in zip(self.held_out, *streams, strict=True):
            mask = self.load(name)[1][0]
            known = mask != labels.ignore_label if labels.has_ignore_label else np.ones(mask.shape, bool)
            truth = np.stack([np.isin(mask, part) for part in parts]) & known
            found = [found_labels(torch.from_numpy(case.logits), labels.has_regions).numpy() & known for case in cases]
            exact, int8 = found
            agreement += _dice(exact, int8, exact | int8)
            for number, case in enumerate(cases):
                dice[number].extend(_dice(found[number], truth, truth))
                if name in self.classes:
                    probabilities = aggregate(case.evidence).probabilities
                    correct[number].append(int(probabilities.argmax()) == self.classes[name])
        return _means(dice), _means(correct), _mean(agreement)


class _Windows:
    """What onnxruntime calibrates with: the middle window of each training case, (1, C, [Z,] Y, X)."""

    def __init__(self, data: _Cases) -> None:
        self._windows = self._all(data)

    @staticmethod
    def _all(data: _Cases) -> Iterator[np.ndarray]:
        for name in data.training:
            case = CaseInProgress(data.predictor, name, data.load(name)[0], 1, torch.device("cpu"))
            yield next(case.passes()).patch()[None].numpy()

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next input by name; None at the end."""
        window = next(self._windows, None)
        return None if window is None else {INPUT: window}


def _spread(names: Sequence[str], count: int) -> list[str]:
    """So many of them, evenly spread."""
    names = sorted(names)
    return [names[index * len(names) // count] for index in range(count)] if count < len(names) else names


def _dice(first: np.ndarray, second: np.ndarray, counted: np.ndarray) -> list[float]:
    """Of each label (labels, Z, Y, X) of which there is something in ``counted``."""
    return [
        2 * float(np.count_nonzero(a & b)) / float(np.count_nonzero(a) + np.count_nonzero(b))
        for a, b, c in zip(first, second, counted, strict=True)
        if c.any()
    ]


def _means(values: Sequence[Sequence[float]]) -> tuple[float, float]:
    first, second = map(_mean, values)
    return first, second


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
