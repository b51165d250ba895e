"""Reading of JSON files: whatever is wrong with one becomes one message that names it."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_LARGEST_FILE = 64 * 2**20
_FILE_ENDING = {"type": "string", "pattern": r"^(\.[A-Za-z0-9]{1,10}){1,3}$"}

CLASSIFICATION_SCHEMA = {
    "type": "object",
    "required": ["class_names"],
    "properties": {
        "class_names": {
            "type": "array",
            "minItems": 1,
            "maxItems": 1000,
            "items": {"type": "string", "minLength": 1, "maxLength": 200},
        },
        "negative_class": {"type": ["string", "null"]},
    },
}

DATASET_SCHEMA = {
    "type": "object",
    "required": ["labels", "file_ending"],
    "properties": {
        "labels": {
            "type": "object",
            "minProperties": 2,
            "maxProperties": 1000,
            "additionalProperties": {
                "anyOf": [
                    {"type": "integer", "minimum": 0, "maximum": 100_000},
                    {"type": "array", "minItems": 1, "maxItems": 1000, "items": {"type": "integer", "minimum": 0}},
                ]
            },
        },
        "channel_names": {
            "type": "object",
            "minProperties": 1,
            "maxProperties": 256,
            "additionalProperties": {"type": "string", "maxLength": 200},
        },
        "regions_class_order": {"type": "array", "maxItems": 1000, "items": {"type": "integer", "minimum": 0}},
        "file_ending": _FILE_ENDING,
        "classification": CLASSIFICATION_SCHEMA,
    },
}


def read_json(path: str | os.PathLike[str], remedy: str = "restore it") -> Any:
    """Reads a JSON file.

    Args:
        path: the file.
        remedy: the end of a message about it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or far too large.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise ValueError(f"{path} is larger than {_LARGEST_FILE // 2**20} MiB; this is no {path.name}")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged: not UTF-8 text ({error}); {remedy}") from error
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{path} is damaged: it is nested too deeply; {remedy}") from error
    except ValueError as error:
        raise ValueError(f"{path} is damaged: not valid JSON ({error}); {remedy}") from error


def read_json_object(path: str | os.PathLike[str], remedy: str = "restore it") -> dict[str, Any]:
    """Reads a JSON file that holds an object; see :func:`read_json`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds something else.
    """
    content = read_json(path, remedy)
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object; {remedy}")
    return content


def read_dataset_json(path: str | os.PathLike[str], remedy: str = "restore it") -> dict[str, Any]:
    """Reads nnU-Net's `dataset.json`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or says what no data set can.
    """
    content = read_json_object(path, remedy)
    check_is_v2(content, path)
    check_schema(content, DATASET_SCHEMA, path, remedy)
    if not content.keys() & {"channel_names", "modality"}:  # the second is that of nnU-Net v1, which v2 reads too
        raise ValueError(f'{path}: "channel_names" is missing; {remedy}')
    if 0 not in label_values(content["labels"]) or content["labels"].get("background", 0) != 0:
        raise ValueError(f'{path}: labels have to hold "background": 0; {remedy}')
    return content


def check_is_v2(dataset_json: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Refuses `dataset.json` of nnU-Net v1, whose labels are named by number.

    Raises:
        ValueError: it is one.
    """
    labels = dataset_json.get("labels")
    if isinstance(labels, Mapping) and any(isinstance(value, str) for value in labels.values()):
        names = {str(value): int(key) for key, value in labels.items() if str(key).isdecimal()}
        raise ValueError(
            f"{path} is of nnU-Net v1: its labels are {json.dumps(labels)}, v2 takes {json.dumps(names)} and "
            '"channel_names" and "file_ending". Convert the data set with nnUNetv2_convert_old_nnUNet_dataset, or '
            "correct the file"
        )


def label_values(labels: Mapping[str, Any]) -> Iterator[int]:
    """Yields the values of all labels and regions, those of several regions several times."""
    for entry in labels.values():
        yield from entry if isinstance(entry, list) else [entry]


def check_schema(
    content: Any, schema: Mapping[str, Any], path: str | os.PathLike[str], remedy: str = "restore it", where: str = ""
) -> None:
    """Checks content against a JSON schema.

    Args:
        content: of the file.
        schema: of draft 2020-12.
        path: the file, for messages.
        remedy: the end of a message about it.
        where: the part of the file that the content is, for messages.

    Raises:
        ValueError: the content is not as it should be.
    """
    from jsonschema import Draft202012Validator  # late: few commands need it
    from jsonschema.exceptions import best_match

    try:
        error = best_match(Draft202012Validator(schema).iter_errors(content))
    except RecursionError as recursion:
        raise ValueError(f"{path} is damaged: it is nested too deeply; {remedy}") from recursion
    if error is not None:
        message = error.message if len(error.message) <= 300 else error.message[:300] + " …"
        raise ValueError(f"{path}: {where}{error.json_path}: {message}; {remedy}")
