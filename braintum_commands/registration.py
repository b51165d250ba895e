"""Makes our classes visible to nnU-Net: small modules in nnU-Net's own folders, the only place where it looks.

Each module re-exports what :func:`braintum.commands.lookup.classes` returns. It guards that import, because nnU-Net
re-raises whatever a module that it scans raises: without the guard, uninstalling braintum would break nnU-Net.
"""

import importlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from braintum.commands.errors import CommandError
from braintum.commands.location import leftover_nnunet_folders, nnunet_folder

__all__ = [
    "EXT_TRAINER_FOLDER",
    "MARKER",
    "SHIMS",
    "RegistrationStatus",
    "ShimStatus",
    "register",
    "shim_text",
    "status",
    "unregister",
]

MARKER = "# Written by braintum_register; removed by: braintum_register --undo"
"""First line of each module; a file without it is not ours and is never touched."""

SHIMS = {
    "planners": "experiment_planning/experiment_planners/braintum_planners.py",
    "fingerprint_extractors": "experiment_planning/dataset_fingerprint/braintum_fingerprint_extractors.py",
    "normalization": "preprocessing/normalization/braintum_normalization.py",
    "preprocessors": "preprocessing/preprocessors/braintum_preprocessors.py",
    # in the top folder, which nnU-Net scans before it imports its heavy sub-packages
    "trainers": "training/nnUNetTrainer/braintum_trainers.py",
}
"""Kind of class, and the module that makes it visible, relative to nnU-Net's folder."""

EXT_TRAINER_FOLDER = Path(__file__).resolve().parent / "ext_trainer"
"""Value for ``nnUNet_extTrainer`` where nnU-Net's folder cannot be written to; serves trainers only."""

_TEMPLATE = '''{marker}
"""Makes braintum's {title} visible to nnU-Net, which looks for classes only in modules on disk."""

try:
    from braintum.commands.lookup import classes
except ModuleNotFoundError as error:  # braintum was uninstalled: nnU-Net goes on without it
    if error.name not in ("braintum", "braintum.commands", "braintum.commands.lookup"):
        raise
else:
    globals().update(classes("{kind}"))
'''

State = Literal["present", "missing", "outdated", "foreign"]


@dataclass(frozen=True)
class ShimStatus:
    """State of one registered module.

    Attributes:
        kind: key of :data:`SHIMS`.
        path: where the module lies, or should.
        state: ``outdated`` if another version of this package wrote it, ``foreign`` if somebody else did.
        writable: whether its folder exists and can be written to.
    """

    kind: str
    path: Path
    state: State
    writable: bool


@dataclass(frozen=True)
class RegistrationStatus:
    """State of all registered modules.

    Attributes:
        folder: nnU-Net's package folder.
        shims: one entry a module.
    """

    folder: Path
    shims: tuple[ShimStatus, ...]

    @property
    def pending(self) -> tuple[ShimStatus, ...]:
        """The modules that are not as they should be."""
        return tuple(shim for shim in self.shims if shim.state != "present")

    @property
    def complete(self) -> bool:
        """Whether nnU-Net finds all our classes."""
        return not self.pending


def shim_text(kind: str) -> str:
    """Source of the module that makes our classes of one kind visible."""
    return _TEMPLATE.format(marker=MARKER, title=kind.replace("_", " "), kind=kind)


def status() -> RegistrationStatus:
    """Look at nnU-Net's folders; changes nothing.

    Raises:
        CommandError: nnU-Net is not installed.
    """
    folder = nnunet_folder()
    return RegistrationStatus(folder, tuple(_shim_status(kind, folder / path) for kind, path in SHIMS.items()))


def register() -> list[Path]:
    """Write the modules that are missing or outdated; everything is checked before the first is written.

    Returns:
        The files written; empty if all were in place.

    Raises:
        CommandError: nnU-Net is not installed or lacks a folder, or somebody else's file has the name of one of ours.
        PermissionError: nnU-Net's folder cannot be written to.
    """
    current = status()
    for shim in current.pending:
        if shim.state == "foreign":
            raise CommandError(_foreign_message(shim.path))
        if not shim.path.parent.is_dir():
            raise CommandError(f"this nnU-Net has no folder {shim.path.parent}; braintum does not know its layout")
        if not shim.writable:
            raise PermissionError(f"no permission to write into nnU-Net's folder {shim.path.parent}")
    # as readable as nnU-Net itself: a private file of an administrator would break nnU-Net for everybody else
    mode = (current.folder / "__init__.py").stat().st_mode & 0o666
    for shim in current.pending:
        _write_atomically(shim.path, shim_text(shim.kind), mode)
        _remove_bytecode(shim.path)
    importlib.invalidate_caches()
    return [shim.path for shim in current.pending]


def unregister() -> list[Path]:
    """Remove our modules from nnU-Net's folders, also from one that an uninstalled nnU-Net left behind.

    Returns:
        The files removed; empty if there were none.

    Raises:
        CommandError: nnU-Net is not installed, or somebody else's file has the name of one of ours.
        PermissionError: nnU-Net's folder cannot be written to.
    """
    leftovers = leftover_nnunet_folders()
    folders = leftovers or [nnunet_folder()]
    found = [folder / path for folder in folders for path in SHIMS.values() if (folder / path).exists()]
    for path in found:
        if not _is_ours(path):
            raise CommandError(_foreign_message(path))
    for path in found:
        path.unlink()
    for folder in folders:
        for relative in SHIMS.values():
            _remove_bytecode(folder / relative)
    for folder in leftovers:
        _remove_empty_folders(folder)
    importlib.invalidate_caches()
    return found


def _shim_status(kind: str, path: Path) -> ShimStatus:
    state: State
    if not path.exists():
        state = "missing"
    elif not _is_ours(path):
        state = "foreign"
    elif path.read_text(encoding="utf-8") != shim_text(kind):
        state = "outdated"
    else:
        state = "present"
    return ShimStatus(kind, path, state, writable=path.parent.is_dir() and os.access(path.parent, os.W_OK))


def _is_ours(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.readline().rstrip("\r\n") == MARKER


def _foreign_message(path: Path) -> str:
    return f"{path} was not written by braintum_register, so it stays untouched; rename it or move it away"


def _write_atomically(path: Path, text: str, mode: int) -> None:
    # no ".py" at the end: a look-up that runs meanwhile must not import a half-written module
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}_", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _remove_bytecode(path: Path) -> None:
    """Remove the compiled forms of a module, of all Python versions."""
    for file in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        file.unlink(missing_ok=True)


def _remove_empty_folders(folder: Path) -> None:
    """Remove a folder tree as far as it is empty, from the bottom up."""
    for current, _, _ in os.walk(folder, topdown=False):
        if not os.listdir(current):
            os.rmdir(current)
