"""Where nnU-Net lies on disk, found without importing it (which would import torch)."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from braintum.commands.errors import CommandError

__all__ = ["leftover_nnunet_folders", "nnunet_folder"]


def nnunet_folder() -> Path:
    """Folder of the package ``nnunetv2``, of a wheel and of an editable installation alike.

    Raises:
        CommandError: nnU-Net is not installed, or a folder without its code hides it.
    """
    locations, is_package = _nnunet_locations()
    if not locations:
        raise CommandError("nnU-Net (nnunetv2) is not installed in this Python environment")
    if not is_package:
        raise CommandError(
            f"'nnunetv2' is a folder without nnU-Net's code: {', '.join(map(str, locations))}. If an uninstalled "
            "nnU-Net left it, remove braintum's files from it with: braintum_register --undo ; then delete what is "
            "left of it, if anything, and install nnU-Net again"
        )
    return locations[0]


def leftover_nnunet_folders() -> list[Path]:
    """Folders named ``nnunetv2`` that hold no nnU-Net but hide one installed elsewhere; empty where all is well.

    ``pip uninstall nnunetv2`` leaves the folder behind as long as registration's files lie in it, and Python then
    takes it for a namespace package.
    """
    locations, is_package = _nnunet_locations()
    return [] if is_package else locations


def _nnunet_locations() -> tuple[list[Path], bool]:
    """Folders that Python takes ``nnunetv2`` from, and whether it is a regular package."""
    spec = importlib.util.find_spec("nnunetv2")
    if spec is None:
        return [], False
    locations: Sequence[str] = spec.submodule_search_locations or ()
    return [Path(folder).resolve() for folder in locations], spec.origin is not None
