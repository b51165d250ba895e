"""Explanation of one case: its maps, its pictures, and its figures."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from scipy.special import entr

from braintum.architectures.blocks.adaptive_masked_attention import attentions_of
from braintum.conversion.format.label_names import named_labels
from braintum.inference.explanation.attribution import ATTENTION_MASKS, METHODS, Attribute, attention_masks
from braintum.inference.explanation.explanation import (
    CaseAttribution,
    bare_network,
    explain_preprocessed,
    mask_figures,
    similarity,
    to_image_grid,
)
from braintum.inference.explanation.explanation_files import map_file_ending, write_map, write_overlay
from braintum.inference.explanation.subjects import AttentionSubject, ClassSubject, MaskSubject
from braintum.inference.models.segmentation_predictor import SegmentationPredictor
from braintum.inference.prediction.class_evidence import aggregate
from braintum.inference.prediction.joint_predictor import JointPredictor, structure_channels
from braintum.inference.prediction.preprocessing import ModelDescription, preprocess_case

_OF_MASKS = tuple(
    f"{mask}_mask_{figure}" for mask in ("predicted", "true") for figure in ("share", "positive_share", "area", "ratio")
)
_CONTROLS = ("spearman_random_head", "spearman_random_network", "completeness_error")


@dataclass(frozen=True)
class _Case:
    """A case as predicted.

    Attributes:
        name: of the case.
        files: one a channel.
        data: preprocessed, (C, Z, Y, X).
        properties: of nnU-Net's preprocessor.
        logits: (heads, Z, Y, X), on the grid of ``data``, averaged over folds and mirrors.
    """

    name: str
    files: Sequence[str]
    data: torch.Tensor
    properties: Mapping[str, Any]
    logits: np.ndarray


@dataclass(frozen=True)
class Explainer:
    """How to explain.

    Attributes:
        predictor: initialised.
        method: a key of :data:`braintum.inference.explanation.attribution.METHODS`, or
            :data:`~braintum.inference.explanation.attribution.ATTENTION_MASKS`.
        attribute: what it names, with its options.
        labels: folder of true label maps.
        controls: also compare with networks whose weights are drawn anew.
        columns: keys of the rows, and columns of their table; None or empty where undefined.
    """

    predictor: Any
    method: str
    attribute: Attribute
    labels: Path | None
    controls: bool

    columns: ClassVar[tuple[str, ...]]

    def explain(self, case: str, files: Sequence[str], target: Path) -> list[dict[str, Any]]:
        """Explain a case, write its maps and pictures, and return its rows.

        Args:
            case: its name.
            files: of the image, one a channel.
            target: folder, is there.

        Raises:
            ValueError: the image or its label map cannot be read, or they differ in size.
        """
        raise NotImplementedError

    def _predict(self, case: str, files: Sequence[str]) -> _Case:
        data, properties = preprocess_case(files, ModelDescription.of(self.predictor))
        preprocessed = torch.from_numpy(data)
        logits = self.predictor.predict_logits_from_preprocessed_data(preprocessed)
        return _Case(case, files, preprocessed, properties, logits.cpu().numpy())

    def _on_image_grid(self, case: _Case, probabilities: bool = False) -> Any:
        """Predicted labels (Z, Y, X); with ``probabilities`` a pair of them and (heads, Z, Y, X)."""
        return convert_predicted_logits_to_segmentation_with_correct_shape(
            case.logits,
            self.predictor.plans_manager,
            self.predictor.configuration_manager,
            self.predictor.label_manager,
            case.properties,
            return_probabilities=probabilities,
            num_threads_torch=torch.get_num_threads(),
        )

    def _row(self, case: _Case, **values: Any) -> dict[str, Any]:
        return {**dict.fromkeys(self.columns), "case": case.name, "method": self.method, **values}

    def _map(self, case: _Case, maps: CaseAttribution) -> np.ndarray:
        """(Z, Y, X), on the grid of the image."""
        plans, configuration = self.predictor.plans_manager, self.predictor.configuration_manager
        return to_image_grid(maps.trained, case.properties, plans, configuration)

    def _figures(
        self, case: _Case, maps: CaseAttribution, attribution: np.ndarray, masks: Sequence[np.ndarray | None]
    ) -> dict[str, Any]:
        """Of a map beside the predicted mask and the true one, where that is known, and of its controls.

        Raises:
            ValueError: a mask is of another size than the image.
        """
        figures: dict[str, Any] = {"completeness_error": maps.completeness_error}
        for name, mask in zip(("predicted", "true"), masks, strict=True):
            if mask is None:
                continue
            if mask.shape != attribution.shape:
                raise ValueError(
                    f"{self._label_file(case.name)}: size {mask.shape}, but the image has {attribution.shape}; give "
                    "the label map of this image"
                )
            figures |= {f"{name}_mask_{figure}": value for figure, value in mask_figures(attribution, mask).items()}
        for control in ("random_head", "random_network"):
            if (random := getattr(maps, control)) is not None:
                figures[f"spearman_{control}"] = similarity(maps.trained, random)
        return figures

    def _write(
        self,
        case: _Case,
        attribution: np.ndarray,
        masks: Sequence[np.ndarray | None],
        target: Path,
        title: str,
        suffix: str = "",
        label: str = "attribution",
    ) -> None:
        """A map, and its picture."""
        dataset_json, reader_writer_class = (
            self.predictor.dataset_json,
            self.predictor.plans_manager.image_reader_writer_class,
        )
        image, _ = reader_writer_class().read_images(case.files)
        ending = map_file_ending(reader_writer_class, dataset_json["file_ending"])
        file = target / f"{case.name}{suffix}{ending}"
        write_map(file, attribution, case.files[0], reader_writer_class, case.properties)
        title = f"{case.name}, {dataset_json.get('channel_names', {}).get('0', 'first channel')}: {title}"
        picture = target / f"{case.name}{suffix}_overlay.png"
        write_overlay(picture, image[0], attribution, masks, case.properties, title, label)

    def _label_file(self, case: str) -> Path:
        return Path(self.labels or "") / f"{case}{self.predictor.dataset_json['file_ending']}"

    def _true_labels(self, case: str) -> np.ndarray | None:
        """Label map of a case; None where there is none, or where it says that nobody knows."""
        if self.labels is None:
            return None
        file = self._label_file(case)
        if not file.is_file():
            return None
        try:
            labels, _ = self.predictor.plans_manager.image_reader_writer_class().read_seg(str(file))
        except Exception as error:  # the readers raise whatever they like
            raise ValueError(f"{file}: cannot be read ({error}); check the file") from error
        ignore = self.predictor.label_manager.ignore_label
        if ignore is not None and (labels[0] == ignore).any():
            return None
        return labels[0]


@dataclass(frozen=True)
class ClassExplainer(Explainer):
    """Explains the class.

    Attributes:
        class_name: the class to explain; None for the predicted one of each case.
    """

    class_name: str | None = None

    columns = ("case", "class", "probability", "predicted_class", "method", *_OF_MASKS, *_CONTROLS)

    def explain(self, case: str, files: Sequence[str], target: Path) -> list[dict[str, Any]]:
        """One row, ``<case><ending>`` and ``<case>_overlay.png``."""
        predicted = self._predict(case, files)
        names = self.predictor.class_schema.class_names
        probabilities = aggregate(self.predictor.evidence).probabilities
        predicted_class = names[int(probabilities.argmax())]
        class_name = self.class_name or predicted_class
        index = names.index(class_name)
        labels, true_labels = self._on_image_grid(predicted), self._true_labels(case)
        masks = [labels > 0, None if true_labels is None else true_labels > 0]
        subject = ClassSubject(index)
        maps = explain_preprocessed(self.predictor, predicted.data, subject, self.attribute, self.controls)
        attribution = self._map(predicted, maps)
        figures = self._figures(predicted, maps, attribution, masks)
        probability = float(probabilities[index])
        title = f"{self.method} of {class_name} (probability {probability:.2f})"
        self._write(predicted, attribution, masks, target, title)
        known = {"class": class_name, "probability": probability, "predicted_class": predicted_class}
        return [self._row(predicted, **known, **figures)]


@dataclass(frozen=True)
class MaskExplainer(Explainer):
    """Explains the mask, a structure at a time, of any network that segments.

    Attributes:
        structures: labels or regions by name, as :func:`braintum.conversion.format.label_names.named_labels` has them.
    """

    structures: tuple[str, ...] = ()

    columns = ("case", "structure", "method", *_OF_MASKS, "mean_entropy", "max_entropy", *_CONTROLS)

    def explain(self, case: str, files: Sequence[str], target: Path) -> list[dict[str, Any]]:
        """A row a structure; ``<case>_<structure>`` and ``<case>_entropy`` with ending and ``_overlay.png``.

        A structure that is not predicted has no map.
        """
        predicted = self._predict(case, files)
        labels, probabilities = self._on_image_grid(predicted, probabilities=True)
        true_labels = self._true_labels(case)
        label_manager = self.predictor.label_manager
        entropy = predictive_entropy(probabilities, label_manager.has_regions)
        whole = [labels > 0, None if true_labels is None else true_labels > 0]
        self._write(predicted, entropy, whole, target, "predictive entropy", "_entropy", "entropy (nats)")
        on_network_grid = np.asarray(label_manager.convert_logits_to_segmentation(predicted.logits))
        channels = structure_channels(self.predictor.dataset_json, label_manager)
        values = named_labels(self.predictor.dataset_json)
        rows = []
        for name in self.structures:
            mask = np.isin(on_network_grid, values[name])
            shown = np.isin(labels, values[name])
            masks = [shown, None if true_labels is None else np.isin(true_labels, values[name])]
            row = self._row(predicted, structure=name, predicted_mask_area=float(shown.mean()))
            row["max_entropy"] = float(entropy.max())
            rows.append(row)
            if not mask.any():
                continue
            if shown.any():
                row["mean_entropy"] = float(entropy[shown].mean())
            subject = MaskSubject(0, tuple(channels[name]), label_manager.has_regions, torch.from_numpy(mask))
            maps = explain_preprocessed(self.predictor, predicted.data, subject, self.attribute, self.controls)
            attribution = self._map(predicted, maps)
            row |= self._figures(predicted, maps, attribution, masks)
            self._write(predicted, attribution, masks, target, f"{self.method} of the mask of {name}", _suffix(name))
        return rows


@dataclass(frozen=True)
class AttentionExplainer(Explainer):
    """Shows the masks of adaptive masked attention, block by block."""

    columns = ("case", "block", "method", *_OF_MASKS, *_CONTROLS)

    def explain(self, case: str, files: Sequence[str], target: Path) -> list[dict[str, Any]]:
        """A row a block; ``<case>_<block>`` with ending and ``_overlay.png``."""
        predicted = self._predict(case, files)
        labels, true_labels = self._on_image_grid(predicted), self._true_labels(case)
        masks = [labels > 0, None if true_labels is None else true_labels > 0]
        rows = []
        for name in attentions_of(bare_network(self.predictor)):
            maps = explain_preprocessed(
                self.predictor, predicted.data, AttentionSubject(name=name), self.attribute, self.controls
            )
            attribution, block = self._map(predicted, maps), name.removesuffix(".masked_attention")
            rows.append(self._row(predicted, block=block, **self._figures(predicted, maps, attribution, masks)))
            title = f"masks of attention in {block}, mean of heads"
            self._write(predicted, attribution, masks, target, title, _suffix(block), "mask")
        return rows


def _suffix(structure: str) -> str:
    """What tells the files of a structure from those of others; names of labels may hold anything."""
    return "_" + re.sub(r"[^\w-]+", "_", structure)


def predictive_entropy(probabilities: np.ndarray, has_regions: bool) -> np.ndarray:
    """Entropy of each voxel in nats, float32 (Z, Y, X); of regions, which do not exclude each other, the highest.

    Args:
        probabilities: (heads, Z, Y, X), averaged over folds and mirrors as nnU-Net does it.
        has_regions: whether heads are regions.
    """
    if has_regions:
        return (entr(probabilities) + entr(1 - probabilities)).max(0).astype(np.float32)
    return entr(probabilities).sum(0).astype(np.float32)


def choose_explainer(
    predictor: SegmentationPredictor,
    method: str,
    stage: int | None = None,
    class_name: str | None = None,
    mask: bool | None = None,
    structures: Sequence[str] = (),
    labels: Path | None = None,
    controls: bool = True,
) -> Explainer:
    """Choose by name.

    Args:
        predictor: initialised.
        method: see :class:`Explainer`.
        stage: of the features, see :func:`braintum.inference.explanation.attribution.choose_stage`.
        class_name: see :class:`ClassExplainer`.
        mask: explain the mask; None where there are no classes, or structures are named.
        structures: see :class:`MaskExplainer`; empty for all.
        labels: see :class:`Explainer`.
        controls: see :class:`Explainer`.

    Raises:
        ValueError: unknown method, class or structure, a stage for a method that has none, the class is to be
            explained of a model that predicts none, or attention masks are to be shown that the network does not have.
        FileNotFoundError: no folder of labels.
    """
    if method not in (*METHODS, ATTENTION_MASKS):
        raise ValueError(f"unknown method {method!r}; choose one of {', '.join((*METHODS, ATTENTION_MASKS))}")
    if labels is not None and not labels.is_dir():
        raise FileNotFoundError(f"the folder of label maps {labels} does not exist")
    if method not in ("gradcam", "hirescam") and stage is not None:
        raise ValueError(f"{method} explains no features of a stage; -stage is for gradcam and hirescam")
    if method == ATTENTION_MASKS:
        if class_name is not None or mask or structures:
            raise ValueError(f"{method} are the same for all classes and structures; name none of them")
        if not attentions_of(bare_network(predictor)):
            raise ValueError(f"a model of {predictor.trainer_name} has no attention masks; choose another method")
        return AttentionExplainer(predictor, method, attention_masks, labels, controls)
    attribute = METHODS[method]() if method == "integrated_gradients" else METHODS[method](stage)
    if mask is None:
        mask = bool(structures) or not isinstance(predictor, JointPredictor)
    if not mask:
        if not isinstance(predictor, JointPredictor):
            raise ValueError(f"a model of {predictor.trainer_name} predicts no classes; explain its masks")
        _check_names(predictor.class_schema.class_names, [] if class_name is None else [class_name], "class")
        return ClassExplainer(predictor, method, attribute, labels, controls, class_name)
    if class_name is not None:
        raise ValueError(f"the mask is to be explained, and the class {class_name!r}; explain one of them at a time")
    known = list(structure_channels(predictor.dataset_json, predictor.label_manager))
    _check_names(known, structures, "structure")
    return MaskExplainer(predictor, method, attribute, labels, controls, tuple(structures or known))


def _check_names(known: Sequence[str], chosen: Sequence[str], what: str) -> None:
    for name in chosen:
        if name not in known:
            raise ValueError(f"the model knows no {what} {name!r}; choose one of {', '.join(known)}")
