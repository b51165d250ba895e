"""Atomic writing: a file is there completely, or not at all."""

import contextlib
import errno
import gzip
import json
import os
import shutil
import tempfile
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from braintum.commands.seams import replaced

PARTIAL_PREFIX = ".partial-"


@contextmanager
def atomic_path(target: str | os.PathLike[str], durable: bool = False) -> Iterator[Path]:
    """Yields a temporary path beside `target`, which replaces `target` when the block ends without an error.

    The temporary name keeps the whole name of the target at its end, because image libraries pick the format from
    the file ending (`.nii.gz`), and starts with a dot, so that a listing of the folder does not show it.

    Args:
        target: the file to write; its folder has to exist.
        durable: also survive a power failure, at the price of waiting for the disk. A killed process needs none of it.

    Yields:
        The path to write to, in the same folder: `os.replace` is atomic only within one file system.

    Raises:
        FileNotFoundError: the block ended without writing the file.
        OSError: a compressed file was cut off.
    """
    target = Path(target)
    partial = partial_path(target)
    try:
        yield partial
        check_compressed(partial)
        if durable:
            sync_file(partial)
        os.replace(partial, target)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # where writing itself fails, the system names no file
            error.filename = os.fspath(target)
        raise
    finally:
        with contextlib.suppress(OSError):  # a folder that has become read-only: its own error says so
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_files(folder: str | os.PathLike[str], durable: bool = False) -> Iterator[Path]:
    """Yields a temporary folder within `folder`; its files move there when the block ends without an error.

    Each of them is there completely or not at all; a killed process may leave some of them out.

    Args:
        folder: that gets the files; it has to exist.
        durable: see `atomic_path`.

    Raises:
        OSError: a compressed file was cut off.
    """
    with tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=folder, ignore_cleanup_errors=True) as partial:
        yield Path(partial)
        for file in Path(partial).iterdir():
            check_compressed(file)
            if durable:
                sync_file(file)
            os.replace(file, Path(folder, file.name))


def partial_path(target: Path) -> Path:
    """Returns a new temporary name for a target, in its folder."""
    return target.with_name(f"{PARTIAL_PREFIX}{uuid.uuid4().hex[:12]}-{target.name}")


def write_json_atomic(target: str | os.PathLike[str], content: Any, durable: bool = True) -> None:
    """Writes `content` as indented JSON, keys in the given order.

    In ASCII: nnU-Net reads `dataset.json` in the encoding of the locale, whatever that is.
    """
    text = json.dumps(content, indent=4) + "\n"
    with atomic_path(target, durable) as partial:
        partial.write_text(text, encoding="utf-8", newline="\n")


def copy_atomic(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copies a file with its permissions and times."""
    with atomic_path(target) as partial:
        shutil.copy2(source, partial)


def check_compressed(file: str | os.PathLike[str]) -> None:
    """Reads a gzip file to its end; does nothing for others.

    ITK writes `.nii.gz` on a full disk, and reports no error.

    Raises:
        OSError: it is cut off, or damaged.
    """
    if not os.fspath(file).endswith(".gz"):
        return
    try:
        with gzip.open(file) as stream:
            while stream.read(2**20):
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OSError(errno.EIO, f"was written incompletely ({error})", os.fspath(file)) from error


def sync_file(file: str | os.PathLike[str]) -> None:
    """Waits until the disk holds a file.

    Raises:
        OSError: the disk is full, or fails; some file systems say so only now.
    """
    with open(file, "r+b") as stream:
        os.fsync(stream.fileno())


def sync_disks() -> None:
    """Waits until the disks hold everything that was written; does nothing where the system offers no such call.

    For many small files, after the last of them: to wait for each one takes milliseconds each time.
    """
    if hasattr(os, "sync"):
        os.sync()


def remove_partial_files(folder: str | os.PathLike[str], min_age: float = 0) -> None:
    """Removes what a killed process left directly in `folder`: temporary files of `atomic_path`, and temporary folders.

    nnU-Net lists image folders by file ending only and would take such a file for a case.

    Args:
        folder: where to look.
        min_age: in seconds; where other processes may be writing, what is younger may be theirs.
    """
    for partial in Path(folder).glob(f"{PARTIAL_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - partial.stat().st_mtime < min_age:
                continue
            if partial.is_dir():
                shutil.rmtree(partial)
            else:
                partial.unlink()


@contextmanager
def atomic_writes_of(module: ModuleType) -> Iterator[None]:
    """Makes what a module of nnU-Net saves and copies in the block atomic.

    nnU-Net writes plans, `dataset.json` and splits in place: whoever reads them then, or after the process was killed,
    finds half a file. It does so in the midst of methods that do much else, so there is no hook to override.

    Args:
        module: one that calls `save_json` and `shutil.copy` or `shutil.copyfile` by these names.
    """

    def save_json(content: Any, file: str, indent: int = 4, sort_keys: bool = True) -> None:
        with atomic_path(file, durable=True) as partial:
            partial.write_text(json.dumps(content, sort_keys=sort_keys, indent=indent), encoding="utf-8")

    atomic_copies = SimpleNamespace(**{**vars(shutil), "copy": copy_atomic, "copyfile": copy_atomic})
    with replaced(module, save_json=save_json, shutil=atomic_copies):
        yield
