"""Imports run one way between the parts and their rooms, and what comes from elsewhere is a declared dependency."""

import ast
import configparser
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata

import pytest
from conftest import REPOSITORY

_LEAVES = {"architectures", "commands", "conversion"}
ALLOWED: dict[str, set[str]] = {
    "architectures": set(),
    "commands": set(),
    "conversion": {"commands"},
    "planner": _LEAVES,
    "inference": _LEAVES,
    "evaluation": _LEAVES,
    "trainers": _LEAVES | {"inference", "evaluation"},
    "dicom": _LEAVES | {"inference"},
    "experiments": _LEAVES,
}
"""Part of the package -> parts that it may import. A part's name alone may be imported by nobody: it has no content."""

FOLDERS = {
    "architectures": "architectures",
    "commands": "braintum_commands",
    "conversion": "dataset_conversion",
    "dicom": "dicom",
    "evaluation": "evaluation",
    "experiments": "experiments",
    "inference": "inference",
    "planner": "braintum_planner",
    "trainers": "trainers",
}
NOT_IMPORTABLE = {"tests", "benchmarks", "conftest", "unittest", *FOLDERS.values()}
"""What an installation does not have; a folder's own name, importable in a checkout, would load a module twice.

Nor does it need what is for tests: nnU-Net is not patched at run time, see :mod:`braintum.commands.seams`.
"""


@dataclass(frozen=True)
class Module:
    """A source file by its dotted name."""

    name: str
    source: str
    is_package: bool = False

    @property
    def part(self) -> str:
        """The second part of the name; empty for the package itself."""
        return part_of(self.name)


def part_of(name: str) -> str:
    return (name.split(".") + [""])[1]


def room_of(name: str) -> str:
    """Sub-folder of a part; empty for its own modules."""
    room = ".".join(name.split(".")[:3])
    return room if room in rooms() else ""


@cache
def rooms() -> frozenset[str]:
    return frozenset(
        f"braintum.{part}.{path.parent.name}"
        for part, folder in FOLDERS.items()
        for path in (REPOSITORY / folder).glob("*/__init__.py")
    )


@cache
def modules_of(part: str) -> tuple[Module, ...]:
    folder = REPOSITORY / FOLDERS[part]
    found = []
    for path in sorted(folder.rglob("*.py")):
        names = path.relative_to(folder).with_suffix("").parts
        is_package = names[-1] == "__init__"
        name = ".".join(["braintum", part, *(names[:-1] if is_package else names)])
        found.append(Module(name, path.read_text(encoding="utf-8"), is_package))
    return tuple(found)


@cache
def known_modules() -> frozenset[str]:
    return frozenset(module.name for part in FOLDERS for module in modules_of(part))


def imported_modules(module: Module) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every module that a source imports, also inside functions and under conditions."""
    parts = module.name.split(".")
    for node in ast.walk(ast.parse(module.source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level + module.is_package] if node.level else []
            if node.level and not base:
                raise ValueError(f"{module.name}, line {node.lineno}: relative import beyond the package")
            origin = ".".join([*base, *([node.module] if node.module else [])])
            below = {f"{origin}.{alias.name}" for alias in node.names}
            found = sorted(name for name in below if name in known_modules() or origin == "braintum")
            for name in found:
                yield node.lineno, name
            if len(found) < len(below):
                yield node.lineno, origin


def violations(module: Module) -> list[str]:
    """Imports of parts (or of what is not installed) that a module may not have."""
    return [
        f"{module.name}, line {line}: imports {name}"
        for line, name in imported_modules(module)
        if name.partition(".")[0] in NOT_IMPORTABLE
        or (name.partition(".")[0] == "braintum" and part_of(name) not in ALLOWED[module.part] | {module.part})
    ]


def room_arrows(part: str) -> dict[str, set[str]]:
    """Room -> rooms of the same part that its modules import; the part's own modules are the room ``""``."""
    arrows: dict[str, set[str]] = defaultdict(set)
    for module in modules_of(part):
        for _, name in imported_modules(module):
            if name.startswith("braintum.") and part_of(name) == part and name != f"braintum.{part}":
                arrows[room_of(module.name)].add(room_of(name))
    return {room: found - {room} for room, found in arrows.items()}


def cycle(arrows: Mapping[str, set[str]]) -> set[str]:
    """Names that import one another in a circle, or depend on those; empty if there is none."""
    remaining = dict(arrows)
    while done := [name for name, needs in remaining.items() if not needs & remaining.keys()]:
        for name in done:
            del remaining[name]
    return set(remaining)


@pytest.mark.parametrize("part", ALLOWED)
def test_direction(part):
    assert modules_of(part), f"{part} has no modules"
    assert [line for module in modules_of(part) for line in violations(module)] == []


@pytest.mark.parametrize("part", ALLOWED)
def test_rooms_have_no_cycle(part):
    assert cycle(room_arrows(part)) == set()


def test_rules_have_no_cycle():
    assert cycle(ALLOWED) == set()


def test_a_cycle_is_found():
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == {"a", "b", "c"}


def test_rooms_are_known():
    assert {"braintum.trainers.losses", "braintum.conversion.sources"} <= rooms()
    assert room_arrows("conversion")["braintum.conversion.sources"] >= {"braintum.conversion.format"}


def test_every_part_has_a_rule_and_a_folder(setup_cfg):
    lines = setup_cfg["options"]["package_dir"].strip().splitlines()
    mapped = dict(re.split(r"\s*=\s*", line) for line in lines)
    assert mapped == {"braintum": "braintum", **{f"braintum.{part}": folder for part, folder in FOLDERS.items()}}
    assert ALLOWED.keys() == FOLDERS.keys()


def test_every_package_is_listed(setup_cfg):
    """``find:`` sees no mapped folders, so that a new one has to be written down."""
    packages = {module.name for part in FOLDERS for module in modules_of(part) if module.is_package}
    assert set(setup_cfg["options"]["packages"].split()) == packages | {"braintum"}


def test_links_lead_to_the_parts():
    """For what reads source trees without an installation: type checkers, editors, PYTHONPATH."""
    links = {path.name: path for path in (REPOSITORY / "braintum").iterdir() if path.is_symlink()}
    assert {name: str(path.readlink()) for name, path in links.items()} == {
        part: f"../{folder}" for part, folder in FOLDERS.items()
    }


@pytest.mark.parametrize("folder", ["tests", "benchmarks"])
def test_nothing_imports_by_the_name_of_a_folder(folder):
    forbidden = set(FOLDERS.values())
    found = [
        f"{path.name}, line {line}: imports {name}"
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        for line, name in imported_modules(Module(path.stem, path.read_text(encoding="utf-8")))
        if name.partition(".")[0] in forbidden
    ]
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("braintum.architectures.block", "import braintum.commands"),
        ("braintum.commands.new", "from braintum.conversion.format.cases import read_cases"),
        ("braintum.conversion.new", "import os, braintum.evaluation.metrics as metrics"),
        ("braintum.inference.new", "def late():\n    from braintum.trainers.multi_task import nnUNetTrainerMultiTask"),
        ("braintum.planner.new", "try:\n    import braintum.inference\nexcept ImportError:\n    inference = None"),
        ("braintum.evaluation.new", "from braintum.inference import prediction"),
        ("braintum.evaluation.new", "from braintum import inference, commands"),
        ("braintum.evaluation.new", "import braintum"),
        ("braintum.trainers.new", "import braintum.planner.planners"),
        ("braintum.trainers.losses.new", "from ...planner import planners"),
        ("braintum.trainers.new", "from conftest import REPOSITORY"),
        ("braintum.trainers.new", "from trainers.multi_task import nnUNetTrainerMultiTask"),
        ("braintum.conversion.new", "import dataset_conversion.cli"),
        ("braintum.evaluation.new", "if True:\n    import benchmarks.speed"),
    ],
)
def test_rule_catches(module, source):
    assert len(violations(Module(module, source))) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("braintum.trainers.new", "from braintum.inference.results import patients\nimport braintum.trainers.losses"),
        ("braintum.trainers.new", "from . import segmentation\nfrom .recipes.schedule import Decay"),
        ("braintum.conversion.new", "from braintum.commands.command import CommandError"),
        ("braintum.conversion.new", "from braintum import commands"),
        ("braintum.evaluation.new", "import braintum_of_others\nfrom nnunetv2.inference import predict_from_raw_data"),
        ("braintum.inference.new", "import torch\n'import trainers'  # import trainers"),
    ],
)
def test_rule_allows(module, source):
    assert violations(Module(module, source)) == []


def test_relative_imports_are_resolved():
    source = "from .b import c\nfrom . import d\nfrom ..e import f"
    assert list(imported_modules(Module("trainers.sub.a", source))) == [
        (1, "trainers.sub.b"),
        (2, "trainers.sub"),
        (3, "trainers.e"),
    ]
    assert list(imported_modules(Module("trainers", "from .b import c", is_package=True))) == [(1, "trainers.b")]
    with pytest.raises(ValueError, match="line 1: relative import beyond the package"):
        list(imported_modules(Module("trainers.a", "from .. import evaluation")))


def test_modules_are_found_behind_their_package():
    source = "from braintum.trainers import losses, multi_task\nfrom braintum.trainers.losses import losses, nothing"
    assert list(imported_modules(Module("braintum.trainers.new", source))) == [
        (1, "braintum.trainers.losses"),
        (1, "braintum.trainers.multi_task"),
        (2, "braintum.trainers.losses.losses"),
        (2, "braintum.trainers.losses"),
    ]


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def declared_dependencies(setup_cfg: configparser.ConfigParser) -> set[str]:
    """Of every installation, and of extras, of which only functions or modules that are imported late know."""
    requirements = setup_cfg["options"]["install_requires"].split("\n")
    for extra in ("onnx", "dicom", "baselines", "slurm", "tensorboard"):
        requirements += setup_cfg["options.extras_require"][extra].split("\n")
    return {normalised(re.split(r"[<>=!~; ]", line.strip(), maxsplit=1)[0]) for line in requirements if line.strip()}


@cache
def providers_of_modules() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def undeclared(module: Module, declared: set[str]) -> list[str]:
    """Imports from elsewhere that no declared dependency provides."""
    distributions = providers_of_modules()
    foreign = [
        (line, name, distributions.get(name.partition(".")[0], []))
        for line, name in imported_modules(module)
        if name.partition(".")[0] not in sys.stdlib_module_names | {"braintum"}
    ]
    return [
        f"{module.name}, line {line}: {name} is of no dependency in setup.cfg"
        for line, name, providers in foreign
        if not declared & {normalised(provider) for provider in providers}
    ]


@pytest.mark.parametrize("part", ALLOWED)
def test_dependencies_are_declared(part, setup_cfg):
    declared = declared_dependencies(setup_cfg)
    assert [problem for module in modules_of(part) for problem in undeclared(module, declared)] == []


def test_undeclared_dependency_is_caught(setup_cfg):
    declared = declared_dependencies(setup_cfg)

    def problems(source: str) -> list[str]:
        return undeclared(Module("braintum.evaluation.new", source), declared)

    assert len(problems("import pytest")) == 1
    assert len(problems("import surely_not_installed")) == 1
    assert problems("import numpy.linalg, json\nfrom PIL import Image") == []
