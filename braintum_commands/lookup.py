"""What registration's modules in nnU-Net's folders call: the classes of this package that nnU-Net finds by name."""

import importlib
import logging
from typing import Any

from braintum.commands.version import nnunet_version_problem

__all__ = ["MODULES", "classes", "load_classes"]

MODULES = {
    "planners": "braintum.planner.planners",
    "fingerprint_extractors": "braintum.planner.fingerprint_extractors",
    "normalization": "braintum.planner.preprocessing.normalization",
    "preprocessors": "braintum.planner.preprocessing.preprocessors",
    "trainers": "braintum.trainers.registered",
}
"""Kind of class that nnU-Net looks for, and the module that lists ours of that kind in ``__all__``."""

_logger = logging.getLogger("braintum")
_already_logged: set[str] = set()


def classes(kind: str) -> dict[str, Any]:
    """Our classes of one kind, for nnU-Net to find.

    nnU-Net calls this during every look-up, for its own classes too. With a version that ours do not work with, stock
    nnU-Net has to go on: one line says why, and there are no classes.

    Args:
        kind: a key of :data:`MODULES`.

    Returns:
        Content of a module: class by name, and its ``__getattr__`` where there are more classes than can be listed;
        empty if nnU-Net's version is not supported.

    Raises:
        ValueError: unknown kind.
        ImportError: a module of ours is missing or broken.
    """
    problem = nnunet_version_problem()
    if problem is None:
        return load_classes(kind)
    if problem not in _already_logged:
        _already_logged.add(problem)
        _logger.warning("braintum: its classes are hidden from nnU-Net: %s", problem)
    return {}


def load_classes(kind: str) -> dict[str, Any]:
    """Import our module of one kind and return the classes in its ``__all__``.

    Raises:
        ValueError: unknown kind.
        ImportError: the module is missing or broken.
    """
    if kind not in MODULES:
        raise ValueError(f"unknown kind of class {kind!r}, expected one of: {', '.join(MODULES)}")
    module = importlib.import_module(MODULES[kind])
    exported = {name: getattr(module, name) for name in module.__all__}
    found: dict[str, Any] = {name: value for name, value in exported.items() if isinstance(value, type)}
    if hasattr(module, "__getattr__"):  # classes whose names say what they are made of
        found["__getattr__"] = module.__getattr__
    return found
