"""Atomic writing: a file is there completely, or not at all."""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PARTIAL_PREFIX = ".partial-"


@contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `target`, which replaces `target` when the block ends without an error.

    The temporary name keeps the whole name of the target at its end, because image libraries pick the format from
    the file ending (`.nii.gz`), and starts with a dot, so that a listing of the folder does not show it.

    Args:
        target: the file to write; its folder has to exist.

    Yields:
        The path to write to, in the same folder: `os.replace` is atomic only within one file system.

    Raises:
        FileNotFoundError: the block ended without writing the file.
    """
    target = Path(target)
    partial = target.with_name(f"{PARTIAL_PREFIX}{uuid.uuid4().hex[:12]}-{target.name}")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def write_json_atomic(target: str | os.PathLike[str], content: Any) -> None:
    """Writes `content` as indented JSON, keys in the given order.

    In ASCII: nnU-Net reads `dataset.json` in the encoding of the locale, whatever that is.
    """
    text = json.dumps(content, indent=4) + "\n"
    with atomic_path(target) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def remove_partial_files(folder: str | os.PathLike[str]) -> None:
    """Removes what a killed process left: temporary files of `atomic_path` directly in `folder`.

    nnU-Net lists image folders by file ending only and would take such a file for a case.
    """
    for partial in Path(folder).glob(f"{PARTIAL_PREFIX}*"):
        partial.unlink(missing_ok=True)
