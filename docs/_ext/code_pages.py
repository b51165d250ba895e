"""Pages of the Python code: the public interface, the map of the rooms, and every module of each part."""

import configparser
import importlib
import inspect
import pkgutil

from command_pages import REPOSITORY
from markup import table, title

import braintum

PARTS = (
    *("conversion", "planner", "architectures", "trainers", "inference", "evaluation"),
    *("dicom", "experiments", "commands"),
)


def python_api_page() -> str:
    """Everything in ``braintum.__all__``."""
    entries = []
    for name in sorted(braintum.__all__, key=lambda name: (name.startswith("_"), name)):
        value = getattr(braintum, name)
        if inspect.isclass(value):
            # no-index: docstrings name errors without their module, which may then be one alone
            error = f".. autoexception:: braintum.{name}\n   :no-index:\n"
            text = error if issubclass(value, Exception) else _class(name)
        elif callable(value):
            text = f".. autofunction:: braintum.{name}\n"
        else:
            text = f".. py:data:: braintum.{name}\n   :value: {value!r}\n"
        entries.append(f"{title(f'``{name}``', '-')}{text}\n")
    return (
        title("Python interface")
        + "What ``import braintum`` promises. Everything below it (:doc:`internals/index`) can be imported too, but "
        + "changes without notice.\n\n"
        + ".. automodule:: braintum\n   :no-members:\n\n"
        + "".join(entries)
    )


def _class(name: str) -> str:
    return f".. autoclass:: braintum.{name}\n   :members:\n"


def rooms() -> dict[str, str]:
    """Dotted name of every package of setup.cfg → first paragraph of its docstring."""
    metadata = configparser.ConfigParser()
    metadata.read(REPOSITORY / "setup.cfg")
    packages = metadata["options"]["packages"].split()
    texts = {name: inspect.getdoc(importlib.import_module(name)) or "" for name in packages}
    if silent := [name for name, text in texts.items() if not text]:
        raise ValueError(f"packages without a docstring: {', '.join(silent)}")
    return {name: text.partition("\n\n")[0].replace("\n", " ") for name, text in texts.items()}


def folder_of(package: str) -> str:
    """Where a package lies in a checkout."""
    metadata = configparser.ConfigParser()
    metadata.read(REPOSITORY / "setup.cfg")
    folders = dict(line.replace(" ", "").split("=") for line in metadata["options"]["package_dir"].strip().splitlines())
    part = ".".join(package.split(".")[:2])
    return folders[part] + package.removeprefix(part).replace(".", "/")


def map_page() -> str:
    """Every folder with what it holds."""
    rows = [
        [f"``{folder_of(name)}/``", f":mod:`{name}`" if name != "braintum" else ":mod:`braintum`", text]
        for name, text in rooms().items()
    ]
    return (
        title("Map of the code")
        + "A folder at the root is a part of the package ``braintum``; its sub-folders are the part's rooms. Imports "
        + "run one way between parts, and without a cycle between the rooms of one; ``tests/package/test_imports.py`` "
        + "holds the rules. A module named ``…cli`` is the thin end of a part: a command.\n\n"
        + table(["folder", "imported as", "what is in it"], rows)
    )


def internals_pages() -> dict[str, str]:
    """A page for each part, with all of its modules."""
    pages = {
        "index": title("Internals")
        + "Every module of each part, for those who extend it. Not promised: names may change in any version.\n\n"
        + ".. toctree::\n   :maxdepth: 1\n\n"
        + "".join(f"   {part}\n" for part in PARTS)
    }
    for part in PARTS:
        package = importlib.import_module(f"braintum.{part}")
        modules = [package.__name__]
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            modules.append(module.name)
        pages[part] = "".join(
            title(name, "-" if number else "=") + f".. automodule:: {name}\n   :members:\n   :ignore-module-all:\n\n"
            for number, name in enumerate(modules)
        )
    return pages
