"""Post-processing of predictions: nnU-Net's own, and masks and classes that do not contradict each other.

Nothing is changed in place: raw predictions stay where they are, and what follows from them goes into another folder.
"""

import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.postprocessing.remove_connected_components import (
    apply_postprocessing,
    remove_all_but_largest_component_from_segmentation,
)

from dataset_conversion.atomic import atomic_path, write_json_atomic
from dataset_conversion.cases import ClassSchema
from dataset_conversion.parallel import run_cases
from inference.predict_folder import CLASSES_FILE, CLASSES_FOLDER
from inference.results import merge_case_results

# by name: unpickling the functions from nnU-Net's postprocessing.pkl could run anything
_RULES = {function.__name__: function for function in (remove_all_but_largest_component_from_segmentation,)}


@dataclass(frozen=True)
class Postprocessing:
    """What is done to predictions.

    Attributes:
        rules: names of nnU-Net's functions and their arguments, in order.
        consistent: remove the mask where the class says healthy, withhold a tumour class where no mask is found.
        negative_class: the healthy class, if there is one.
    """

    rules: Sequence[tuple[str, Mapping[str, Any]]] = ()
    consistent: bool = False
    negative_class: str | None = None

    def apply(self, segmentation: np.ndarray, predicted_class: str | None) -> tuple[np.ndarray, str | None]:
        """Post-process one case.

        Args:
            segmentation: (Z, Y, X) of labels.
            predicted_class: None for a model without classes.

        Returns:
            The segmentation, and the class; ``""`` where it is withheld.
        """
        functions = [_RULES[name] for name, _ in self.rules]
        segmentation = apply_postprocessing(segmentation, functions, [dict(kwargs) for _, kwargs in self.rules])
        if not self.consistent or predicted_class is None:
            return segmentation, predicted_class
        if predicted_class == self.negative_class:
            return np.zeros_like(segmentation), predicted_class
        return segmentation, predicted_class if segmentation.any() else ""


def read_rules(file: Path) -> list[tuple[str, dict[str, Any]]]:
    """Rules of a ``postprocessing.json``, which nnU-Net writes when it looks for helpful post-processing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds something else, or a function that this version does not know.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; braintum_evaluate --find_postprocessing writes one")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        rules = [
            (str(name), {"labels_or_regions": _from_json(arguments["labels_or_regions"])})
            for name, arguments in zip(content["postprocessing_fns"], content["postprocessing_kwargs"], strict=True)
        ]
    except (KeyError, TypeError, ValueError) as error:  # a JSONDecodeError is a ValueError
        raise ValueError(f"{file} is no post-processing of nnU-Net: {error!r}") from error
    for name, _ in rules:
        if name not in _RULES:
            raise ValueError(f"{file}: {name} is not a post-processing that this version knows")
    return rules


def _from_json(labels_or_regions: Any) -> int | list[int | tuple[int, ...]]:
    """JSON knows no tuples: a list within a list is a region. (One region alone and its labels are the same mask.)"""
    if not isinstance(labels_or_regions, list):
        return int(labels_or_regions)
    return [tuple(entry) if isinstance(entry, list) else int(entry) for entry in labels_or_regions]


def postprocess_folder(
    source: Path,
    target: Path,
    rules: Sequence[tuple[str, Mapping[str, Any]]] = (),
    consistent: bool = False,
    n_processes: int = 1,
) -> dict[str, int]:
    """Post-process the predictions of a folder into another.

    Args:
        source: as ``braintum_predict`` or ``nnUNetv2_predict`` wrote it.
        target: gets masks, ``classes/<case>.json`` (with ``raw_predicted_class`` where a class is withheld),
            ``classes.csv``, ``dataset.json`` and ``plans.json``.
        rules: see :func:`read_rules`.
        consistent: see :class:`Postprocessing`.
        n_processes: number of processes.

    Returns:
        Counts: ``cases``, ``masks_changed``, ``masks_removed``, ``classes_withheld``.

    Raises:
        FileNotFoundError: no predictions in ``source``.
        ValueError: source and target are one folder, or consistency is asked for where there are no classes.
    """
    if source.resolve() == target.resolve():
        raise ValueError(f"input and output are the same folder, {source}; raw predictions are kept: choose another")
    dataset_file = source / "dataset.json"
    if not dataset_file.is_file():
        raise FileNotFoundError(f"{dataset_file} is missing: {source} was not written by a prediction")
    dataset_json = json.loads(dataset_file.read_text(encoding="utf-8"))
    ending, schema = dataset_json["file_ending"], ClassSchema.from_dataset_json(dataset_json)
    files = sorted(file for file in source.glob(f"*{ending}") if not file.name.startswith("."))
    if not files:
        raise FileNotFoundError(f"{source} holds no predicted segmentation (*{ending})")
    has_classes = schema is not None and (source / CLASSES_FOLDER).is_dir()
    if consistent and not has_classes:
        raise ValueError(f"{source} holds no classes, so masks and classes cannot be made consistent")

    target.mkdir(parents=True, exist_ok=True)
    if has_classes:
        (target / CLASSES_FOLDER).mkdir(exist_ok=True)
    reader_writer = determine_reader_writer_from_dataset_json(dataset_json, str(files[0]), verbose=False)()
    postprocessing = Postprocessing(rules, consistent, schema.negative_class if schema else None)
    work = functools.partial(_postprocess_case, target, postprocessing, reader_writer, has_classes)
    outcomes = run_cases(work, [(file, file.name.removesuffix(ending)) for file in files], n_processes, "cases")
    for name in ("dataset.json", "plans.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if schema is not None and has_classes:
        merge_case_results(target / CLASSES_FOLDER, target / CLASSES_FILE, schema)
    return {"cases": len(files)} | {key: sum(outcome[key] for outcome in outcomes) for key in outcomes[0]}


def _postprocess_case(
    target: Path,
    postprocessing: Postprocessing,
    reader_writer: BaseReaderWriter,
    has_classes: bool,
    file_and_case: tuple[Path, str],
) -> dict[str, bool]:
    file, case = file_and_case
    result = None
    if has_classes:
        class_file = file.parent / CLASSES_FOLDER / f"{case}.json"
        if not class_file.is_file():
            raise FileNotFoundError(f"{class_file} is missing: the prediction of {case} is not complete; predict again")
        result = json.loads(class_file.read_text(encoding="utf-8"))
    raw_class = None if result is None else result["predicted_class"]
    before, properties = reader_writer.read_seg(str(file))
    after, predicted_class = postprocessing.apply(before[0], raw_class)
    with atomic_path(target / file.name) as temporary:
        reader_writer.write_seg(after, str(temporary), properties)
    if result is not None:
        result["predicted_class"] = predicted_class
        if predicted_class != raw_class:
            result["raw_predicted_class"] = raw_class
        if before.any():
            result["tumour_volume"] *= np.count_nonzero(after) / np.count_nonzero(before)
        write_json_atomic(target / CLASSES_FOLDER / f"{case}.json", result)
    return {
        "masks_changed": not np.array_equal(before[0], after),
        "masks_removed": bool(before.any() and not after.any()),
        "classes_withheld": predicted_class == "",
    }
