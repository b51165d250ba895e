"""A folder of images in parts, for jobs that share it: it is listed once, and each part is a file of cases."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from braintum.conversion.files.atomic import partial_path, write_json_atomic
from braintum.conversion.files.json_files import check_schema, read_json, read_json_object
from braintum.inference.prediction.input_files import find_cases

LEFT_OUT_ENDING = ".left_out.json"
_SCHEMA = {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "string"}}}


def write_parts(folder: Path, source: Path, model_folder: Path, num_parts: int) -> int:
    """List images, and write ``part_XXXXX.json``, each with the files of its cases; all of them at once.

    Args:
        folder: of the parts; replaced.
        source: folder of the images.
        model_folder: whose ``dataset.json`` tells what to look for.
        num_parts: number of files.

    Returns:
        The number of cases.

    Raises:
        FileNotFoundError: see :func:`braintum.inference.prediction.input_files.find_cases`.
    """
    dataset_json = read_json_object(model_folder / "dataset.json")
    channels = dataset_json.get("channel_names") or dataset_json["modality"]
    cases, failed = find_cases(source.absolute(), dataset_json["file_ending"], len(channels))
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = partial_path(folder)
    building.mkdir()
    items = list(cases.items())
    for part in range(num_parts):
        write_json_atomic(building / f"part_{part:05d}.json", dict(items[part::num_parts]), durable=False)
    write_json_atomic(building / f"input{LEFT_OUT_ENDING}", failed)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(building, folder)
    return len(cases)


def read_part(file: Path) -> dict[str, list[str]]:
    """Case → its files.

    Raises:
        FileNotFoundError: there is no such part.
        ValueError: it is damaged.
    """
    content = read_json(file, "list the input again")
    check_schema(content, _SCHEMA, file, "list the input again")
    return content


def write_left_out_of_part(file: Path, failed: Mapping[str, str]) -> None:
    """What of a part could not be predicted."""
    write_json_atomic(file.with_suffix(LEFT_OUT_ENDING), dict(failed))


def left_out_of_parts(folder: Path) -> dict[str, str]:
    """What of all parts, and of the input, could not be predicted."""
    failed: dict[str, str] = {}
    for file in sorted(folder.glob(f"*{LEFT_OUT_ENDING}")):
        failed |= read_json_object(file, "predict the part again")
    return failed
