"""Version of this package; which nnU-Net is installed, and whether this package works with it."""

import re
from importlib import metadata

from braintum.commands.errors import CommandError

__all__ = ["SUPPORTED_NNUNET", "__version__", "check_nnunet_version", "nnunet_version_problem"]

__version__ = "0.1.0"
"""Of this package."""

_OLDEST = (2, 8)  # first release that this package works with
_FIRST_UNSUPPORTED = (3, 0)
SUPPORTED_NNUNET = f">={_OLDEST[0]}.{_OLDEST[1]},<{_FIRST_UNSUPPORTED[0]}"
"""Supported versions, as pip writes them; ``install_requires`` in ``setup.cfg`` says the same."""


def nnunet_version_problem() -> str | None:
    """What is wrong with the installed nnU-Net's version, with the command that mends it; None if nothing is."""
    remedy = f'install a supported one with: pip install "nnunetv2{SUPPORTED_NNUNET}"'
    try:
        installed = metadata.version("nnunetv2")
    except metadata.PackageNotFoundError:
        return f"nnU-Net (nnunetv2) is not installed; {remedy}"
    match = re.match(r"(\d+)\.(\d+)", str(installed))  # None where an interrupted uninstall left a bare folder
    if match is None:
        return f"nnU-Net's version {installed!r} cannot be read; {remedy}"
    if not _OLDEST <= (int(match[1]), int(match[2])) < _FIRST_UNSUPPORTED:
        return f"nnU-Net (nnunetv2) {installed} is installed, braintum works with {SUPPORTED_NNUNET}; {remedy}"
    return None


def check_nnunet_version() -> None:
    """Make sure that a supported nnU-Net is installed; reads its metadata only, imports nothing.

    Raises:
        CommandError: nnU-Net is missing, or its version is outside the supported range.
    """
    problem = nnunet_version_problem()
    if problem is not None:
        raise CommandError(problem)
