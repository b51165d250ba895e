"""Folder in, folder out: segmentation files as nnU-Net writes them, and class results where a model predicts them."""

import logging
import multiprocessing
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from tqdm import tqdm

from braintum.commands.provenance import PROVENANCE_FILE, provenance
from braintum.conversion.files.atomic import (
    atomic_files,
    remove_partial_files,
    write_json_atomic,
)
from braintum.conversion.files.disk import explain_unwritable
from braintum.conversion.files.json_files import read_json_object
from braintum.conversion.files.lease import leased
from braintum.conversion.files.parallel import prepare_worker
from braintum.conversion.format.calibration import Calibration
from braintum.conversion.format.cases import ClassSchema, read_dates
from braintum.inference.models.model_identity import model_identity
from braintum.inference.models.segmentation_predictor import SegmentationPredictor
from braintum.inference.prediction.aggregation_modes import AggregationMode
from braintum.inference.prediction.case_streams import fault_of_answer, one_thread, predict_stream
from braintum.inference.prediction.class_evidence import ClassVerdict, aggregate
from braintum.inference.prediction.input_files import (
    LEFT_OUT_FILE,
    check_output,
    find_cases,
    unused_input,
    write_left_out,
)
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.prediction.memory_budget import available_cores
from braintum.inference.prediction.part_files import left_out_of_parts, read_part, write_left_out_of_part
from braintum.inference.prediction.precision import Precision
from braintum.inference.prediction.preprocessing import (
    DOUBTS,
    ModelDescription,
    preprocess_for_all,
    with_class_predictor,
)
from braintum.inference.prediction.read_ahead import ReadAhead, fault_of
from braintum.inference.results.calibration import is_calibrated_with, result_of
from braintum.inference.results.patients import PATIENTS_FILE, TIME_POINTS_FILE, merge_patients, read_patients
from braintum.inference.results.results import (
    CASE_FILES,
    CLASSES_FILE,
    CLASSES_FOLDER,
    read_case_results,
    tumour_volume_in_file,
    write_classes_csv,
)
from braintum.inference.results.trust import INNER_FOLDER, OUTER_FOLDER, Voxels, trust_of_case

_MOST_READERS = 8
logger = logging.getLogger(__name__)

_ABANDONED_SECONDS = 3600  # a temporary file that is older belongs to no running process


@dataclass(frozen=True)
class PredictedFolder:
    """Outcome of a run.

    Attributes:
        predicted: cases that this run predicted.
        skipped: cases that were there already.
        failed: case → what is wrong with it; also images that belong to no case.
        warnings: case → why its result may mean little, of the cases that this run predicted.
        listed: rows of ``classes.csv``, earlier and parallel runs included; 0 of a model that only segments.
        patients: rows of ``patients.csv``; None if none were asked for.
    """

    predicted: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    warnings: dict[str, list[str]] = field(default_factory=dict)
    listed: int = 0
    patients: int | None = None


@dataclass(frozen=True)
class _Options:
    """How to predict; ``queue_length`` cases at most wait between reading, network and writing.

    ``schema`` holds the classes that are predicted, None for masks only; ``folds`` those that predict them.
    """

    aggregation: AggregationMode
    save_probabilities: bool
    queue_length: int
    exact: bool
    precision: Precision
    calibration: Calibration | None
    schema: ClassSchema | None
    folds: Sequence[int | str]
    bounds: bool


def predict_folder(
    predictor: SegmentationPredictor,
    input_folder: str | os.PathLike[str],
    output_folder: str | os.PathLike[str],
    save_probabilities: bool = False,
    continue_prediction: bool = False,
    num_parts: int = 1,
    part_id: int = 0,
    num_workers: int = 0,
    aggregation: AggregationMode = "weighted",
    cases_file: str | os.PathLike[str] | None = None,
    arguments: dict[str, Any] | None = None,
    show_progress: bool = True,
    class_predictor: JointPredictor | None = None,
    exact: bool = True,
    precision: Precision = "auto",
    calibration: Calibration | None = None,
    not_needed: Sequence[str] = (),
    resample_to: str | None = None,
    bounds: bool = False,
    part_file: str | os.PathLike[str] | None = None,
) -> PredictedFolder:
    """Predict the segmentation of every case in a folder, and its class where a model predicts classes.

    A case is complete when its ``classes/<case>.json`` is there: it is written last, and everything before it under a
    temporary name; without classes, when its mask is. A case that cannot be predicted does not stop the others. Several
    processes may predict into one folder at the same time, other cases or the same ones.

    Args:
        predictor: initialised; predicts the masks.
        input_folder: see :func:`braintum.inference.prediction.input_files.find_cases`.
        output_folder: made if need be; gets ``<case><ending>``, ``provenance.json``, with classes
            ``classes/<case>.json`` and ``classes.csv``, and ``left_out.json`` where cases could not be predicted.
        save_probabilities: also write ``<case>.npz`` and ``.pkl``, as nnU-Net does.
        continue_prediction: leave complete cases alone.
        num_parts: how many runs share the folder.
        part_id: which of them this is, from 0.
        num_workers: processes for reading, preprocessing and writing; 0 for threads of this process.
        aggregation: see :func:`braintum.inference.prediction.class_evidence.aggregate`.
        cases_file: a ``cases.csv``; its column ``patient`` makes ``patients.csv`` of all cases in the output folder.
        arguments: recorded in ``predict_from_raw_data_args.json``.
        show_progress: a bar over the cases.
        class_predictor: initialised; predicts the classes, where another model is to do so. What ``predictor`` says of
            classes is then not asked for.
        exact: nnU-Net's order of computation, whose files are nnU-Net's; else in bulk, equal to rounding, in less time.
        precision: of the network in bulk; see :class:`braintum.inference.prediction.bulk_prediction.BulkPredictor`.
        calibration: of the model that predicts the classes, to be applied to their probabilities, and to those of the
            voxels where it says how; None leaves them. Earlier results that were calibrated otherwise do not count as
            complete.
        not_needed: patterns of images in the input folder that belong to no case, and of which nothing is to be said.
        resample_to: name of the channel on whose grid the files of a case are brought, and its mask lies; None: they
            have to lie on one grid.
        bounds: also write the outer and the inner mask of each case into ``outer`` and ``inner``.
        part_file: see :mod:`braintum.inference.prediction.part_files`; its cases are predicted, neither folder is
            listed, and :func:`merge_parts` writes the tables of all parts.

    Raises:
        FileNotFoundError: see :func:`braintum.inference.prediction.input_files.find_cases` and
            :func:`braintum.inference.results.patients.read_patients`.
        ValueError: input and output are one folder, the output holds results of a model with other classes, a model
            is the second stage of a cascade, two models do not take the same images, or ``cases_file`` lacks a case
            or comes with a model that predicts no classes: nothing is predicted then.
        UnwritableFolderError: the disk is full, or the output folder read-only.
        OSError: a worker process was killed. The cases predicted so far are kept then, as after any other error.
    """
    masks_trust = None if calibration is None or calibration.trust is None else calibration.trust.masks
    if bounds and (masks_trust is None or masks_trust.outer is None or masks_trust.inner is None):
        raise ValueError(
            "outer and inner masks need a calibration of masks that could promise them: validate the folds with --npz, "
            "run braintum_calibrate, and predict --calibrated"
        )
    if not 0 <= part_id < num_parts:
        raise ValueError(f"part {part_id} of {num_parts}: parts count from 0 to {num_parts - 1}")
    source, target = Path(input_folder), Path(output_folder)
    check_output(target, source)
    class_predictor, preprocessing = with_class_predictor(predictor, class_predictor, resample_to)
    schema = None if class_predictor is None else class_predictor.class_schema
    model = preprocessing[0]
    ending = model.dataset_json["file_ending"]
    num_readers = min(_MOST_READERS, max(2, available_cores() // 2))  # threads, where no processes
    options = _Options(
        aggregation,
        save_probabilities,
        queue_length=(num_workers or num_readers - 1) + 2,
        exact=exact,
        precision=precision,
        calibration=calibration,
        schema=schema,
        folds=() if class_predictor is None else class_predictor.folds,
        bounds=bounds,
    )
    if part_file is None:
        cases, failed = find_cases(source, ending, model.num_channels)
        failed |= unused_input(source, source.glob(f"[!.]*{ending}"), target, not_needed)
    else:
        cases, failed, cases_file = read_part(Path(part_file)), {}, None
    classes_folder = target / CLASSES_FOLDER
    if schema is None:
        _check_masks_only(predictor, classes_folder, cases_file)
    patients, dates = None, {}
    if cases_file is not None:
        dates = read_dates(cases_file)
        patients = read_patients(cases_file, {*cases, *(file.stem for file in classes_folder.glob(CASE_FILES))})
    every_name = {*cases, *failed}
    cases = dict(list(cases.items())[part_id::num_parts])
    failed = dict(list(failed.items())[part_id::num_parts])

    mask_folders = [target, *((target / OUTER_FOLDER, target / INNER_FOLDER) if bounds else ())]
    folders = mask_folders if schema is None else [*mask_folders, classes_folder]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for folder in folders if part_file is None else ():
        remove_partial_files(folder, _ABANDONED_SECONDS)
    dataset_json = dict(model.dataset_json)
    if class_predictor is not None:  # whoever reads the results finds their classes
        dataset_json["classification"] = class_predictor.dataset_json["classification"]
    write_json_atomic(target / "dataset.json", dataset_json)
    write_json_atomic(target / "plans.json", model.plans_manager.plans)
    write_json_atomic(target / "predict_from_raw_data_args.json", arguments or {})
    models = {"model": predictor}
    if class_predictor is not None and class_predictor is not predictor:
        models["class_model"] = class_predictor
    identities = {name: model_identity(used) for name, used in models.items()}
    write_json_atomic(target / PROVENANCE_FILE, provenance(**identities))
    wanted_endings = [ending, ".npz"] if save_probabilities else [ending]

    def is_complete(case: str) -> bool:
        result = classes_folder / f"{case}.json"
        is_listed = schema is None or (result.is_file() and is_calibrated_with(result, calibration))
        files = [target / f"{case}{suffix}" for suffix in wanted_endings]
        files += [folder / f"{case}{ending}" for folder in mask_folders[1:]]
        return is_listed and all(file.is_file() for file in files)

    skipped = [case for case in cases if continue_prediction and is_complete(case)]
    todo = [case for case in cases if case not in set(skipped)]
    for case in todo:  # what an earlier run said of it must not outlive this one
        (classes_folder / f"{case}.json").unlink(missing_ok=True)
    if todo:
        for file in (PATIENTS_FILE, TIME_POINTS_FILE):
            (target / file).unlink(missing_ok=True)
    others = every_name - {*cases, *failed}
    results = target / CLASSES_FILE
    predicted: list[str] = []
    doubts: dict[str, list[str]] = {}
    with (
        _executor(num_workers, num_readers, len(todo)) as workers,
        tqdm(total=len(todo), disable=not show_progress) as bar,
        one_thread(),
    ):
        try:
            predictions = _predict_cases(
                predictor, class_predictor, cases, todo, preprocessing, target, workers, options, doubts
            )
            for case, fault in predictions:
                if fault is None:
                    predicted.append(case)
                else:
                    failed[case] = fault
                bar.update()
        except BrokenProcessPool as error:
            raise OSError(
                "a worker process was killed, most likely because the memory ran out; the cases predicted so far are "
                "kept, go on with fewer workers: -npp and --continue_prediction"
            ) from error
    if part_file is not None:
        write_left_out_of_part(Path(part_file), failed)
        return PredictedFolder(predicted, skipped, failed)
    listed, num_patients = 0, None
    with leased(target, "tables"):  # of several processes, the last one lists the cases of all
        write_left_out(target / LEFT_OUT_FILE, failed, source, others)
        if schema is not None:
            found = read_case_results(classes_folder, schema)
            listed = len(found)
            write_classes_csv(results, found, schema)
            if patients is not None:
                num_patients = merge_patients(classes_folder, target / PATIENTS_FILE, schema, patients, dates)
    warnings = {case: doubts[case] for case in predicted if doubts.get(case)}
    return PredictedFolder(predicted, skipped, failed, warnings, listed, num_patients)


def _check_masks_only(
    predictor: SegmentationPredictor, classes_folder: Path, cases_file: str | os.PathLike[str] | None
) -> None:
    """Refuse what needs classes.

    Raises:
        ValueError: patients are asked for, or the output holds classes of another model.
    """
    if cases_file is not None:
        raise ValueError(
            f"a model of {predictor.trainer_name} predicts no classes, so there is no patients.csv; leave --cases "
            "away, or name a model that predicts them with --class-model"
        )
    if next(classes_folder.glob(CASE_FILES), None) is not None:
        raise ValueError(
            f"{classes_folder} holds classes that another model predicted, to which the masks of this one would not "
            "belong; choose another output folder"
        )


def merge_parts(
    parts: Path, output: Path, source: Path, cases_file: str | os.PathLike[str] | None = None
) -> tuple[int, dict[str, str]]:
    """Write the tables of a folder that was predicted in parts; the output is listed once.

    Args:
        parts: folder of the parts.
        output: folder of the predictions.
        source: folder of the images.
        cases_file: a ``cases.csv``, for ``patients.csv``.

    Returns:
        The number of rows in ``classes.csv``, and what is wrong with the other cases.

    Raises:
        FileNotFoundError: nothing was predicted yet.
        ValueError: results of another model are there, too, or ``cases_file`` lacks a case.
    """
    schema = ClassSchema.from_dataset_json(read_json_object(output / "dataset.json", "predict the parts first"))
    failed = left_out_of_parts(parts)
    remove_partial_files(output, _ABANDONED_SECONDS)
    write_left_out(output / LEFT_OUT_FILE, failed, source)
    if schema is None:  # of a model that only segments
        return 0, failed
    remove_partial_files(output / CLASSES_FOLDER, _ABANDONED_SECONDS)
    found = read_case_results(output / CLASSES_FOLDER, schema)
    write_classes_csv(output / CLASSES_FILE, found, schema)
    if cases_file is not None:
        patients = read_patients(cases_file, {result["case"] for result in found})
        merge_patients(output / CLASSES_FOLDER, output / PATIENTS_FILE, schema, patients, read_dates(cases_file))
    return len(found), failed


def _predict_cases(
    predictor: SegmentationPredictor,
    class_predictor: JointPredictor | None,
    cases: Mapping[str, list[str]],
    todo: Sequence[str],
    preprocessing: Sequence[ModelDescription],
    target: Path,
    workers: Executor,
    options: _Options,
    doubts: dict[str, list[str]],
) -> Iterator[tuple[str, str | None]]:
    """Predict case after case, with reading ahead and writing behind; (case, fault or None) as each is finished.

    What is to be said of the images is added to ``doubts``.
    """
    files = {case: cases[case] for case in todo}
    reader = ReadAhead(workers, partial(preprocess_for_all, models=preprocessing), files, options.queue_length)
    exports: deque[tuple[str, Future]] = deque()
    note: str | None = None

    def finish_oldest_export() -> tuple[str, str | None]:
        case, export = exports.popleft()
        fault = fault_of(export)
        return case, None if fault is None else f"{target / case} could not be written: {fault}"

    predictions = predict_stream(predictor, class_predictor, reader, len(todo), options.exact, options.precision)
    try:
        for predicted in predictions:
            verdict = None if options.schema is None else aggregate(predicted.evidence, options.aggregation)
            while reader.faults:
                yield reader.faults.popleft()
            if (fault := fault_of_answer(predicted.logits, verdict)) is not None:
                reader.properties.pop(predicted.name)
                yield predicted.name, f"{', '.join(files[predicted.name])}: {fault}"
                continue
            if len(exports) >= options.queue_length:  # results must not pile up in memory
                yield finish_oldest_export()
            case = predicted.name
            properties = reader.properties.pop(case)
            doubts[case] = properties[DOUBTS]
            if note is None and (note := preprocessing[0].slicing_note(properties)) is not None:
                logger.warning("%s", note)
            export = workers.submit(
                _export, predicted.logits, properties, preprocessing[0], target, case, verdict, options
            )
            exports.append((case, export))
        yield from reader.faults
        while exports:
            yield finish_oldest_export()
    finally:  # interrupted: what is predicted already is still written
        reader.cancel()


def _executor(num_workers: int, num_threads: int, num_cases: int) -> Executor:
    if num_workers == 0:
        return ThreadPoolExecutor(num_threads)
    # spawn, as everywhere in nnU-Net: a forked process inherits torch's locks
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(max(1, min(num_workers, num_cases)), context, initializer=prepare_worker)


def _export(
    logits: np.ndarray,
    properties: dict,
    model: ModelDescription,
    target: Path,
    case: str,
    verdict: ClassVerdict | None,
    options: _Options,
) -> None:
    """Write all files of a case; where classes are predicted, its JSON comes last and says that the case is complete.

    Raises:
        UnwritableFolderError: the disk is full, or the folder read-only.
    """
    ending, doubts = model.dataset_json["file_ending"], properties.pop(DOUBTS)
    trust = None if options.calibration is None else options.calibration.trust
    masks = None if trust is None else trust.masks
    voxels = None if masks is None else Voxels.of(logits, properties, model)
    try:
        with atomic_files(target, durable=True) as partial:
            if masks is not None and voxels is not None:
                voxels.write(partial, case)
                if options.save_probabilities:
                    voxels.write_probabilities(partial, case, masks)
            else:
                export_prediction_from_logits(
                    logits,
                    properties,
                    model.configuration_manager,
                    model.plans_manager,
                    model.dataset_json,
                    str(partial / case),
                    options.save_probabilities,
                    num_threads_torch=1,
                )
            if verdict is None or options.schema is None:
                return
            if voxels is not None:
                volume = voxels.volume
            else:
                reader_writer = model.plans_manager.image_reader_writer_class()
                volume = tumour_volume_in_file(partial / f"{case}{ending}", reader_writer)
            result = result_of(case, verdict, options.schema, volume, options.calibration) | {DOUBTS: doubts}
        if options.bounds and masks is not None and voxels is not None:
            for folder, threshold in ((OUTER_FOLDER, masks.outer), (INNER_FOLDER, masks.inner)):
                if threshold is not None:
                    with atomic_files(target / folder, durable=True) as partial:
                        voxels.write_bound(partial, case, threshold)
        if trust is not None:
            result["trust"] = trust_of_case(trust, case, verdict, options.schema, options.folds, doubts, voxels)
        write_json_atomic(target / CLASSES_FOLDER / f"{case}.json", result)
    except Exception:
        kept = "The cases predicted so far are kept: go on with --continue_prediction"
        explain_unwritable(target, kept, logits[0].nbytes)
        raise
