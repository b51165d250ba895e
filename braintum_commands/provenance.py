"""What made an output: versions, command, plans and weights. Names no machine, no user and no folder."""

import hashlib
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from braintum.commands.version import __version__

PROVENANCE_FILE = "provenance.json"
"""Beside outputs of many files; outputs of one JSON file carry the same under ``provenance``."""

_PACKAGES = ("nnunetv2", "torch", "numpy", "SimpleITK")


def provenance(**what: Any) -> dict[str, Any]:
    """Versions and command, and what else the caller knows, ready for JSON.

    The same command on the same machine gives the same content: there is no time in it.
    """
    return {"command": command_line(), "versions": versions(), **what}


def versions() -> dict[str, str]:
    """Version of Python, of this package and of those whose numbers end up in the results."""
    found = {"python": platform.python_version(), "braintum": __version__}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def command_line(arguments: Sequence[str] | None = None) -> str:
    """The command as a shell takes it, its paths cut to their last part.

    Args:
        arguments: with the command's name; None for those of the process.
    """
    return shlex.join(without_folders(argument) for argument in (sys.argv if arguments is None else arguments))


def without_folders(argument: str) -> str:
    """A path, also behind ``--option=`` or ``NAME=``, without the folders that it leads through."""
    name, separator, value = argument.rpartition("=")
    path = PureWindowsPath(value) if "\\" in value else PurePosixPath(value)
    return name + separator + (path.name or value) if len(path.parts) > 1 else argument


def content_hash(content: Any) -> str:
    """SHA-256 of what a JSON file holds, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """What made the files in a folder; None where nothing (readable) tells."""
    try:
        content = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
