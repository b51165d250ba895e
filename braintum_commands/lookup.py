"""What registration's modules in nnU-Net's folders call: the classes of this package that nnU-Net finds by name."""

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from braintum_commands.location import nnunet_folder
from braintum_commands.version import nnunet_version_problem

__all__ = ["MODULES", "PACKAGES_NEEDED", "ShadowedPackageError", "classes", "load_classes"]

MODULES = {
    "planners": "braintum_planner.planners",
    "fingerprint_extractors": "braintum_planner.fingerprint_extractors",
    "normalization": "braintum_planner.normalization",
    "preprocessors": "braintum_planner.preprocessors",
    "trainers": "trainers.registered",
}
"""Kind of class that nnU-Net looks for, and the module that lists ours of that kind in ``__all__``."""

_LEAVES = ("architectures", "braintum_commands", "dataset_conversion")
PACKAGES_NEEDED = {
    "braintum_planner": ("braintum_planner", *_LEAVES),
    "trainers": ("trainers", "inference", "evaluation", *_LEAVES),
}
"""Our packages that importing a package of :data:`MODULES` may bring in."""

_logger = logging.getLogger("braintum")
_already_logged: set[str] = set()


class ShadowedPackageError(ImportError):
    """Another package has taken the name of one of ours, so that our classes cannot be imported."""


def classes(kind: str) -> dict[str, type]:
    """Our classes of one kind, for nnU-Net to find.

    nnU-Net calls this during every look-up, for its own classes too. Where our classes cannot work at all in this
    process, stock nnU-Net has to go on: one line says why, and there are no classes.

    Args:
        kind: a key of :data:`MODULES`.

    Returns:
        Class by name; empty if nnU-Net's version is not supported or if another package hides one of ours.

    Raises:
        ValueError: unknown kind.
        ImportError: a module of ours is missing or broken.
    """
    problem = nnunet_version_problem()
    if problem is None:
        try:
            return load_classes(kind)
        except ShadowedPackageError as error:
            problem = str(error)
    if problem not in _already_logged:
        _already_logged.add(problem)
        _logger.warning("braintum: its classes are hidden from nnU-Net: %s", problem)
    return {}


def load_classes(kind: str) -> dict[str, type]:
    """Import our module of one kind and return the classes in its ``__all__``.

    Raises:
        ValueError: unknown kind.
        ShadowedPackageError: a package that the module needs was imported from somewhere else.
        ImportError: the module is missing or broken.
    """
    if kind not in MODULES:
        raise ValueError(f"unknown kind of class {kind!r}, expected one of: {', '.join(MODULES)}")
    module_name = MODULES[kind]
    packages = PACKAGES_NEEDED[module_name.partition(".")[0]]
    with _without_paths_inside(nnunet_folder()):
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            _check_origin(packages, error)
            raise
    _check_origin(packages)
    exported = {name: getattr(module, name) for name in module.__all__}
    return {name: value for name, value in exported.items() if isinstance(value, type)}


@contextmanager
def _without_paths_inside(folder: Path) -> Iterator[None]:
    """Hide the entries of ``sys.path`` that lie in a folder, or are it; afterwards ``sys.path`` is as before.

    nnU-Net puts its own package folder first while it looks for a trainer, and the ``inference``, ``evaluation`` and
    ``dataset_conversion`` in there would be taken for ours.
    """
    before = list(sys.path)
    sys.path[:] = [entry for entry in before if not _is_inside(entry, folder)]
    try:
        yield
    finally:
        sys.path[:] = before  # in place: nnU-Net removes its entry from this very list


def _is_inside(entry: str, folder: Path) -> bool:
    path = os.path.realpath(entry or os.curdir)
    return Path(path).is_relative_to(os.path.realpath(folder))


def _check_origin(packages: tuple[str, ...], cause: ImportError | None = None) -> None:
    """Make sure that what is loaded under our packages' names lies beside this package.

    Raises:
        ShadowedPackageError: naming the package and where the wrong one lies.
    """
    home = Path(__file__).resolve().parent.parent
    for name in packages:
        module = sys.modules.get(name)
        if module is None:
            continue
        file = getattr(module, "__file__", None)
        origins = [file] if file else [str(path) for path in getattr(module, "__path__", ())]
        if not all(_is_inside(origin, home / name) for origin in origins):
            raise ShadowedPackageError(
                f"the name {name!r} is taken in this process by {', '.join(origins)}, braintum's lies in "
                f"{home / name}; rename the other one, or start Python in a folder that does not hold it"
            ) from cause
