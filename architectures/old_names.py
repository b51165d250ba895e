"""Names by which plans of version 0.1 know our networks and layers: ``architectures.MODULE.CLASS``.

Only plans made by hand hold such names; the planners name networks of dynamic-network-architectures, and checkpoints
name none.
"""

import os
import pkgutil
import pydoc
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

_OLD = "architectures."
_PACKAGE = __name__.rpartition(".")[0]


@cache
def modules() -> dict[str, str]:
    """Where each module of networks and layers is now, by the last part of its name: that has not changed."""
    found = pkgutil.walk_packages([str(Path(__file__).parent)], f"{_PACKAGE}.")
    return {module.name.rpartition(".")[2]: module.name for module in found if not module.ispkg}


def current_architecture(architecture: Mapping[str, Any], file: str | os.PathLike[str]) -> dict[str, Any]:
    """The description of a network in plans, with the names that its classes have now.

    Args:
        architecture: ``network_class_name``, ``arch_kwargs`` and ``_kw_requires_import``, as in plans.
        file: of the plans, for messages.

    Raises:
        ValueError: a name of version 0.1 that is none.
    """
    arguments = dict(architecture["arch_kwargs"])
    for name in architecture["_kw_requires_import"]:
        if name in arguments:
            arguments[name] = _current_path(arguments[name], file)
    network = _current_path(architecture["network_class_name"], file)
    return {**architecture, "network_class_name": network, "arch_kwargs": arguments}


def _current_path(path: Any, file: str | os.PathLike[str]) -> Any:
    """The dotted path of a class; what is no name of version 0.1 stays as it is."""
    if not (isinstance(path, str) and path.startswith(_OLD)):
        return path
    module, _, name = path.removeprefix(_OLD).partition(".")
    current = f"{modules().get(module)}.{name}"
    if module not in modules() or not isinstance(pydoc.locate(current), type):
        raise ValueError(
            f"{file} names {path} as a part of the network, as plans of braintum 0.1 did; there is no such class in "
            f"{_PACKAGE}. Write the path there of the class that is meant, or copy the file again"
        )
    return current
