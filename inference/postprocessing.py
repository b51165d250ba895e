"""Post-processing of predictions: nnU-Net's own, and masks and classes that do not contradict each other.

Nothing is changed in place: raw predictions stay where they are, and what follows from them goes into another folder.
"""

import functools
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

from braintum.conversion.files.atomic import atomic_path, write_json_atomic
from braintum.conversion.files.file_checks import DamagedFileError, one_line
from braintum.conversion.files.json_files import read_dataset_json, read_json_object
from braintum.conversion.files.parallel import run_cases
from braintum.conversion.files.volumes import VolumeError, check_images, first_undamaged
from braintum.conversion.format.cases import ClassSchema
from braintum.inference.predict_folder import CLASSES_FILE, CLASSES_FOLDER
from braintum.inference.results.results import merge_case_results, read_case_result

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
    content = read_json_object(file)
    try:
        rules = [
            (str(name), {"labels_or_regions": _from_json(arguments["labels_or_regions"])})
            for name, arguments in zip(content["postprocessing_fns"], content["postprocessing_kwargs"], strict=True)
        ]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
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
) -> tuple[dict[str, int], dict[str, str]]:
    """Post-process the predictions of a folder into another.

    Args:
        source: as ``braintum_predict`` or ``nnUNetv2_predict`` wrote it.
        target: gets masks, ``classes/<case>.json`` (with ``raw_predicted_class`` where a class is withheld),
            ``classes.csv``, ``dataset.json`` and ``plans.json``.
        rules: see :func:`read_rules`.
        consistent: see :class:`Postprocessing`.
        n_processes: number of processes.

    Returns:
        Counts: ``cases``, ``masks_changed``, ``masks_removed``, ``classes_withheld``; and of the cases that could not
        be read, what is wrong with them.

    Raises:
        FileNotFoundError: no predictions in ``source``.
        ValueError: no case can be read, source and target are one folder, or consistency is asked for where there are
            no classes.
    """
    if source.resolve() == target.resolve():
        raise ValueError(f"input and output are the same folder, {source}; raw predictions are kept: choose another")
    dataset_file = source / "dataset.json"
    if not dataset_file.is_file():
        raise FileNotFoundError(f"{dataset_file} is missing: {source} was not written by a prediction")
    dataset_json = read_dataset_json(dataset_file, "predict again")
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
    example = str(first_undamaged(files))
    reader_writer = determine_reader_writer_from_dataset_json(dataset_json, example, verbose=False)()
    postprocessing = Postprocessing(rules, consistent, schema.negative_class if schema else None)
    class_names = schema.class_names if schema else ()
    work = functools.partial(_postprocess_case, target, postprocessing, reader_writer, has_classes, class_names)
    tasks = [(file, file.name.removesuffix(ending)) for file in files]
    outcomes = run_cases(work, tasks, n_processes, "cases")
    failed = {case: outcome for (_, case), outcome in zip(tasks, outcomes, strict=True) if isinstance(outcome, str)}
    done = [outcome for outcome in outcomes if not isinstance(outcome, str)]
    if not done:
        raise ValueError("\n".join([f"{source}: no case can be post-processed:", *failed.values()]))
    for name in ("dataset.json", "plans.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    if schema is not None and has_classes:
        merge_case_results(target / CLASSES_FOLDER, target / CLASSES_FILE, schema)
    counts = {"cases": len(done)} | {key: sum(outcome[key] for outcome in done) for key in done[0]}
    return counts, failed


def _postprocess_case(
    target: Path,
    postprocessing: Postprocessing,
    reader_writer: BaseReaderWriter,
    has_classes: bool,
    class_names: Sequence[str],
    file_and_case: tuple[Path, str],
) -> dict[str, bool] | str:
    """Which changes there were, or what is wrong with the case."""
    file, case = file_and_case
    result = None
    try:
        if has_classes:
            class_file = file.parent / CLASSES_FOLDER / f"{case}.json"
            if not class_file.is_file():
                return f"{class_file} is missing: the prediction of {case} is not complete; predict again"
            result = read_case_result(class_file, class_names)
        check_images([str(file)])
        before, properties = reader_writer.read_seg(str(file))
    except (DamagedFileError, VolumeError, ValueError) as error:
        return str(error)
    except Exception as error:  # nnU-Net's readers raise whatever they like
        return f"{file}: cannot be read ({one_line(error)}); predict again"
    if len(before) != 1:
        return f"{file}: is no label map, it has {len(before)} channels; predict again"
    raw_class = None if result is None else result["predicted_class"]
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
