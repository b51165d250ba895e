"""DICOM studies in, through a folder of volumes that is predicted as any other."""

import argparse
import copy
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from braintum.commands.command import EXIT_SOME_FAILED
from braintum.commands.model_arguments import model_folder
from braintum.conversion.building.source_tables import read_rows
from braintum.conversion.files.json_files import read_dataset_json
from braintum.conversion.files.volumes import VOLUME_ENDINGS
from braintum.conversion.format.pairs import named_pairs
from braintum.inference.prediction.input_files import LEFT_OUT_FILE, write_left_out

STUDY_COLUMN = "study"


def predict_studies(
    args: argparse.Namespace, has_own_model: bool, predict_files: Callable[[argparse.Namespace, bool], int]
) -> int:
    """Predict every study in a folder or ZIP archive.

    Args:
        args: of ``braintum_predict``.
        has_own_model: see ``predict_files``.
        predict_files: predicts a folder of volumes, and returns an exit code.

    Returns:
        0, or 3 where a study could not be predicted or a file not be read.

    Raises:
        ValueError: no study can be predicted, or the options name no channels of the model.
    """
    from braintum.conversion.dicom.cases import write_cases  # needs pydicom

    source, output = Path(args.i), Path(args.o)
    channels, ending = _channels(args, has_own_model)
    rows = {} if args.series_table is None else _read_table(Path(args.series_table), channels)
    patterns = named_pairs(args.channel, "--channel", "T1ce='*t1*km*'")
    with tempfile.TemporaryDirectory(prefix="braintum_") as folder:
        studies = write_cases(source, channels, Path(folder), patterns, rows, args.reference, ending)
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
    write_left_out(output / LEFT_OUT_FILE, {**studies.left_out, **studies.not_needed}, source, others=None)
    return EXIT_SOME_FAILED if studies.left_out else code


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
