"""Folder in, folder out: why each case got its class."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from tqdm import tqdm

from braintum.commands.provenance import provenance
from braintum.conversion.files.atomic import atomic_path, write_json_atomic
from braintum.inference.explanation.attribution import METHODS, Attribute
from braintum.inference.explanation.explanation import explain_preprocessed, mask_figures, similarity, to_image_grid
from braintum.inference.explanation.explanation_files import map_file_ending, write_map, write_overlay
from braintum.inference.models.model_identity import model_identity
from braintum.inference.prediction.class_evidence import aggregate
from braintum.inference.prediction.input_files import find_cases
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.prediction.preprocessing import ModelDescription, preprocess_case

TABLE_FILE = "explanations.csv"
"""A row a case."""
JSON_FILE = "explanations.json"
"""The same, with what was explained and how."""

COLUMNS = (
    "case",
    "class",
    "probability",
    "predicted_class",
    "method",
    *(f"predicted_mask_{figure}" for figure in ("share", "positive_share", "area", "ratio")),
    *(f"true_mask_{figure}" for figure in ("share", "positive_share", "area", "ratio")),
    "spearman_random_head",
    "spearman_random_network",
    "completeness_error",
)
"""Of ``explanations.csv``, and keys of the ``cases`` in ``explanations.json``; empty or null where undefined."""


@dataclass(frozen=True)
class ExplainedFolder:
    """Outcome of a run.

    Attributes:
        rows: one a case, with :data:`braintum.inference.explain_folder.COLUMNS`.
        failed: case → what is wrong with it.
        without_label: cases that have no label map in the folder of true masks.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    without_label: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Explainer:
    """How to explain.

    Attributes:
        predictor: initialised.
        method: a key of :data:`braintum.inference.explanation.attribution.METHODS`.
        attribute: what it names, with its options.
        class_name: the class to explain; None for the predicted one of each case.
        labels: folder of true masks.
        controls: also compare with networks whose weights are drawn anew.
    """

    predictor: JointPredictor
    method: str
    attribute: Attribute
    class_name: str | None = None
    labels: Path | None = None
    controls: bool = True

    @staticmethod
    def of(
        predictor: JointPredictor,
        method: str,
        stage: int | None = None,
        class_name: str | None = None,
        labels: Path | None = None,
        controls: bool = True,
    ) -> "Explainer":
        """Choose by name.

        Raises:
            ValueError: unknown method or class, or a stage for integrated gradients, which have none.
            FileNotFoundError: no folder of labels.
        """
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; choose one of {', '.join(METHODS)}")
        class_names = predictor.class_schema.class_names
        if class_name is not None and class_name not in class_names:
            raise ValueError(f"the model knows no class {class_name!r}; choose one of {', '.join(class_names)}")
        if labels is not None and not labels.is_dir():
            raise FileNotFoundError(f"the folder of label maps {labels} does not exist")
        if method == "integrated_gradients":
            if stage is not None:
                raise ValueError("integrated gradients explain the image itself; -stage is for gradcam and hirescam")
            return Explainer(predictor, method, METHODS[method](), class_name, labels, controls)
        return Explainer(predictor, method, METHODS[method](stage), class_name, labels, controls)

    def explain(self, case: str, files: Sequence[str], target: Path) -> dict[str, Any]:
        """Explain a case, write its map and its picture, and return its row.

        Raises:
            ValueError: the image or its label map cannot be read, or they differ in size.
        """
        predictor = self.predictor
        dataset_json, plans, configuration = (
            predictor.dataset_json,
            predictor.plans_manager,
            predictor.configuration_manager,
        )
        schema = predictor.class_schema
        data, properties = preprocess_case(files, ModelDescription.of(predictor))
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data))
        probabilities = aggregate(predictor.evidence).probabilities
        predicted_class = schema.class_names[int(probabilities.argmax())]
        class_name = self.class_name or predicted_class
        class_index = schema.class_names.index(class_name)
        predicted = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits.cpu().numpy(),
            plans,
            configuration,
            predictor.label_manager,
            properties,
            num_threads_torch=torch.get_num_threads(),
        )
        masks = [predicted > 0, self._true_mask(case)]
        maps = explain_preprocessed(predictor, torch.from_numpy(data), class_index, self.attribute, self.controls)
        attribution = to_image_grid(maps.trained, properties, plans, configuration)
        row: dict[str, Any] = dict.fromkeys(COLUMNS)
        row |= {
            "case": case,
            "class": class_name,
            "probability": float(probabilities[class_index]),
            "predicted_class": predicted_class,
            "method": self.method,
            "completeness_error": maps.completeness_error,
        }
        for name, mask in zip(("predicted_mask", "true_mask"), masks, strict=True):
            if mask is None:
                continue
            if mask.shape != attribution.shape:
                raise ValueError(
                    f"{self.labels}/{case}{dataset_json['file_ending']}: size {mask.shape}, but the image has "
                    f"{attribution.shape}; give the label map of this image"
                )
            row |= {f"{name}_{figure}": value for figure, value in mask_figures(attribution, mask).items()}
        for control in ("random_head", "random_network"):
            if (random := getattr(maps, control)) is not None:
                row[f"spearman_{control}"] = similarity(maps.trained, random)
        reader_writer_class = plans.image_reader_writer_class
        image, _ = reader_writer_class().read_images(files)
        ending = map_file_ending(reader_writer_class, dataset_json["file_ending"])
        write_map(target / f"{case}{ending}", attribution, files[0], reader_writer_class, properties)
        channel = dataset_json.get("channel_names", {}).get("0", "first channel")
        title = f"{case}, {channel}: {self.method} of {class_name} (probability {row['probability']:.2f})"
        write_overlay(target / f"{case}_overlay.png", image[0], attribution, masks, properties, title)
        return row

    def _true_mask(self, case: str) -> np.ndarray | None:
        """Where the label map of a case shows tumour; None where there is none, or where it says that nobody knows."""
        if self.labels is None:
            return None
        file = self.labels / f"{case}{self.predictor.dataset_json['file_ending']}"
        if not file.is_file():
            return None
        try:
            labels, _ = self.predictor.plans_manager.image_reader_writer_class().read_seg(str(file))
        except Exception as error:  # the readers raise whatever they like
            raise ValueError(f"{file}: cannot be read ({error}); check the file") from error
        ignore = self.predictor.label_manager.ignore_label
        if ignore is not None and (labels[0] == ignore).any():
            return None
        return labels[0] > 0


def explain_folder(
    explainer: Explainer, input_folder: Path, output_folder: Path, limit: int | None = None, show_progress: bool = True
) -> ExplainedFolder:
    """Explain the class of every case in a folder; a case that cannot be explained does not stop the others.

    Args:
        explainer: model and method.
        input_folder: see :func:`braintum.inference.prediction.input_files.find_cases`.
        output_folder: made if need be; gets a map and a picture a case, :data:`TABLE_FILE` and :data:`JSON_FILE`.
        limit: explain so many cases only, spread evenly over the folder.
        show_progress: a bar over the cases.

    Raises:
        FileNotFoundError: see :func:`braintum.inference.prediction.input_files.find_cases`.
        ValueError: input and output (or labels and output) are one folder, a limit below 1, or the model is the second
            stage of a cascade.
        NotImplementedError: images that explanations are not supported for.
    """
    for folder, what in ((input_folder, "input"), (explainer.labels, "labels")):
        if folder is not None and folder.resolve() == output_folder.resolve():
            raise ValueError(f"{what} and output are the same folder, {folder}; choose another output folder")
    if limit is not None and limit < 1:
        raise ValueError(f"--limit is a number of cases, 1 at least, got {limit}")
    predictor = explainer.predictor
    model = ModelDescription.of(predictor)
    ending = predictor.dataset_json["file_ending"]
    map_file_ending(predictor.plans_manager.image_reader_writer_class, ending)
    cases, failed = find_cases(input_folder, ending, model.num_channels)
    names = list(cases)
    if limit is not None and limit < len(names):
        names = [names[index * len(names) // limit] for index in range(limit)]
    output_folder.mkdir(parents=True, exist_ok=True)
    outcome = ExplainedFolder(failed=failed)
    for case in tqdm(names, disable=not show_progress):
        try:
            outcome.rows.append(explainer.explain(case, cases[case], output_folder))
        except (ValueError, OSError, RuntimeError) as error:  # memory that runs out is a RuntimeError
            failed[case] = str(error) or type(error).__name__
            continue
        if explainer.labels is not None and not (explainer.labels / f"{case}{ending}").is_file():
            outcome.without_label.append(case)
    _write_tables(output_folder, explainer, outcome.rows)
    return outcome


def _write_tables(folder: Path, explainer: Explainer, rows: Sequence[Mapping[str, Any]]) -> None:
    with (
        atomic_path(folder / TABLE_FILE) as partial,
        open(partial, "w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow(
                "" if row[name] is None else f"{row[name]:.6f}" if isinstance(row[name], float) else row[name]
                for name in COLUMNS
            )
    content = {
        "provenance": provenance(model=model_identity(explainer.predictor)),
        "model": explainer.predictor.model_folder.name if explainer.predictor.model_folder else "",
        "trainer": explainer.predictor.trainer_name,
        "folds": len(explainer.predictor.list_of_parameters),
        "method": explainer.method,
        "cases": list(rows),
    }
    write_json_atomic(folder / JSON_FILE, content)
