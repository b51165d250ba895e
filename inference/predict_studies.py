"""DICOM studies in, through a folder of volumes that is predicted as any other."""

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from braintum.commands.command import EXIT_SOME_FAILED
from braintum.commands.model_arguments import model_folder
from braintum.conversion.building.pseudonyms import Pseudonyms
from braintum.conversion.building.source_tables import read_rows
from braintum.conversion.files.json_files import read_dataset_json
from braintum.conversion.files.volumes import VOLUME_ENDINGS
from braintum.conversion.format.pairs import named_pairs
from braintum.inference.dicom.arguments import pseudonyms_of
from braintum.inference.dicom.kinds import DEFAULT_KINDS
from braintum.inference.prediction.input_files import LEFT_OUT_FILE, write_left_out

if TYPE_CHECKING:
    from braintum.conversion.dicom.cases import StudyCases

STUDY_COLUMN = "study"


def predict_studies(
    args: argparse.Namespace,
    has_own_model: bool,
    predict_files: Callable[[argparse.Namespace, bool], int],
    store: Callable[[list[Path]], None] | None = None,
) -> int:
    """Predict every study in a folder or ZIP archive.

    Args:
        args: of ``braintum_predict``.
        has_own_model: see ``predict_files``.
        predict_files: predicts a folder of volumes, and returns an exit code.
        store: gets the DICOM objects of each study.

    Returns:
        0, or 3 where a study could not be predicted or written, or a file not be read.

    Raises:
        ValueError: no study can be predicted, or the options name no channels of the model.
    """
    from braintum.conversion.dicom.cases import write_cases  # needs pydicom

    if args.dicom is None and args.labelmap:
        raise ValueError("--labelmap is about the objects that --dicom writes; give both")
    source, output = Path(args.i), Path(args.o)
    channels, ending = _channels(args, has_own_model)
    rows = {} if args.series_table is None else _read_table(Path(args.series_table), channels)
    patterns = named_pairs(args.channel, "--channel", "T1ce='*t1*km*'")
    pseudonyms = pseudonyms_of(args)
    rename = str if pseudonyms is None else pseudonyms.name
    with tempfile.TemporaryDirectory(prefix="braintum_") as folder:
        studies = write_cases(source, channels, Path(folder), patterns, rows, args.reference, ending, rename)
        if not studies.num_series and not has_own_model and source.is_dir():
            return predict_files(args, has_own_model)  # slices without a position, each an image of its own
        print("\n".join(line for case in studies.cases for line in case.lines()), flush=True)
        for name, why in studies.not_needed.items():
            print(f"not needed: {name} ({why})")
        for name, fault in studies.left_out.items():
            print(f"left out: {name}: {fault}", file=sys.stderr)
        if not studies.cases:
            raise ValueError(f"{source}: none of the studies in it can be predicted; see what was left out and why")
        volumes = copy.copy(args)
        volumes.i = folder
        code = predict_files(volumes, has_own_model)
    if args.dicom is not None:
        studies.left_out |= _write_objects(args, studies, has_own_model, pseudonyms, store)
    write_left_out(output / LEFT_OUT_FILE, {**studies.left_out, **studies.not_needed}, source, others=None)
    return EXIT_SOME_FAILED if studies.left_out else code


def predict_study_of_archive(
    args: argparse.Namespace, has_own_model: bool, predict_files: Callable[[argparse.Namespace, bool], int]
) -> int:
    """Fetch the study ``args.i``, predict it, and send its objects back where ``--store`` says so; see
    :func:`predict_studies`.

    Raises:
        OSError: the archive does not answer.
    """
    from braintum.inference.dicom.web import Archive  # needs dicomweb-client

    if args.store and args.dicom is None:
        raise ValueError("--store sends the objects that --dicom writes; give both")
    archive = Archive(args.dicomweb)
    with tempfile.TemporaryDirectory(prefix="braintum_") as folder:
        print(f"{archive.retrieve(args.i, Path(folder))} images fetched", flush=True)
        fetched = copy.copy(args)
        fetched.i = folder
        return predict_studies(fetched, has_own_model, predict_files, archive.store if args.store else None)


def _write_objects(
    args: argparse.Namespace,
    studies: "StudyCases",
    has_own_model: bool,
    pseudonyms: Pseudonyms | None,
    store: Callable[[list[Path]], None] | None,
) -> dict[str, str]:
    """Write, and perhaps store, the DICOM objects of the studies that were predicted; case -> why there are none."""
    from braintum.inference.dicom.study_objects import ObjectOptions, write_study_objects
    from braintum.inference.ready.zoo import ready_model

    output, failed = Path(args.o), {}
    options = ObjectOptions(args.dicom or DEFAULT_KINDS, args.labelmap, pseudonyms)
    card = None if has_own_model else ready_model(args.model).card
    for case in studies.cases:
        if not case.class_file(output).is_file():
            continue  # said already
        try:
            files = write_study_objects(case, output, options, card)
        except ValueError as error:
            failed[case.name] = f"no DICOM objects: {error}"
            print(f"{case.name}: {failed[case.name]}", file=sys.stderr)
            continue
        if store is not None:
            store(files)
        stored = "" if store is None else ", and in the archive"
        print(f"{case.name}: {', '.join(file.name for file in files)} in {files[0].parent}{stored}")
    return failed


def _read_table(table: Path, channels: Sequence[str]) -> dict[str, dict[str, str]]:
    """Study -> channel -> pattern."""
    columns, rows = read_rows(table)
    if STUDY_COLUMN not in columns or not set(channels) & set(columns):
        raise ValueError(
            f"{table}: has the columns {', '.join(columns)}; it needs {STUDY_COLUMN} (StudyInstanceUID, or the name of "
            f"the case) and one or more of {', '.join(channels)}"
        )
    return {row[STUDY_COLUMN]: {name: row[name] for name in channels if row.get(name)} for _, row in rows}


def _channels(args: argparse.Namespace, has_own_model: bool) -> tuple[list[str], str]:
    """The names of a model's channels, and the ending of its files."""
    if has_own_model:
        folder = model_folder(args)
    else:
        from braintum.inference.ready.zoo import ready_model

        folder = ready_model(args.model).folder
    content = read_dataset_json(folder / "dataset.json", "restore it")
    if has_own_model and content["file_ending"] not in VOLUME_ENDINGS:
        raise ValueError(f"{folder}: the model takes {content['file_ending']}, not volumes; use another for DICOM")
    names = content.get("channel_names") or content["modality"]
    return [names[key] for key in sorted(names, key=int)], content["file_ending"] if has_own_model else ".nii.gz"
