"""Imports run one way between our packages, and everything imported from elsewhere is a declared dependency."""

import ast
import configparser
import re
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from conftest import REPOSITORY

from braintum_commands import lookup

_LEAVES = {"architectures", "braintum_commands", "dataset_conversion"}
ALLOWED: dict[str, set[str]] = {
    "architectures": set(),
    "braintum_commands": set(),
    "dataset_conversion": {"braintum_commands"},
    "braintum_planner": _LEAVES,
    "inference": _LEAVES,
    "evaluation": _LEAVES,
    "trainers": _LEAVES | {"inference", "evaluation"},
}
NOT_INSTALLED = {"tests", "benchmarks", "conftest"}


def imported_modules(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every module that a source imports, also inside functions and under conditions."""
    parts = module.split(".")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            if node.level and not base:
                raise ValueError(f"{module}, line {node.lineno}: relative import beyond the package")
            yield node.lineno, ".".join([*base, *([node.module] if node.module else [])])


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports of our packages (or of what is not installed) that a module may not have."""
    own = module.partition(".")[0]
    forbidden = (ALLOWED.keys() | NOT_INSTALLED) - ALLOWED[own] - {own}
    return [
        f"{module}, line {line}: imports {name}"
        for line, name in imported_modules(source, module, is_package)
        if name.partition(".")[0] in forbidden
    ]


def sources(package: str) -> Iterator[tuple[str, str, bool]]:
    """Source, dotted name and package flag of every module of a package."""
    for path in sorted((REPOSITORY / package).rglob("*.py")):
        parts = path.relative_to(REPOSITORY).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        yield path.read_text(encoding="utf-8"), ".".join(parts[:-1] if is_package else parts), is_package


@pytest.mark.parametrize("package", ALLOWED)
def test_direction(package):
    modules = list(sources(package))
    assert modules, f"{package} has no modules"
    assert [line for module in modules for line in violations(*module)] == []


def test_every_installed_package_has_a_rule(setup_cfg):
    assert set(setup_cfg["options"]["packages"].split()) == ALLOWED.keys()


def test_rules_have_no_cycle():
    remaining = dict(ALLOWED)
    while remaining:
        done = [package for package, needs in remaining.items() if not needs & remaining.keys()]
        assert done, f"cycle among {sorted(remaining)}"
        for package in done:
            del remaining[package]


def test_lookup_knows_what_each_package_needs():
    for package, needed in lookup.PACKAGES_NEEDED.items():
        assert set(needed) == ALLOWED[package] | {package}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("architectures.block", "import braintum_commands"),
        ("braintum_commands.new", "from dataset_conversion.cases import read_cases"),
        ("dataset_conversion.new", "import os, evaluation.metrics as metrics"),
        ("inference.new", "def late():\n    from trainers.multi_task import nnUNetTrainerMultiTask"),
        ("braintum_planner.new", "try:\n    import inference\nexcept ImportError:\n    inference = None"),
        ("evaluation.new", "from inference import joint_predictor"),
        ("trainers.new", "import braintum_planner.planners"),
        ("trainers.new", "from conftest import REPOSITORY"),
        ("evaluation.new", "if True:\n    import benchmarks.speed"),
    ],
)
def test_rule_catches(module, source):
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            "trainers.new",
            "from inference.joint_predictor import X\nimport evaluation, architectures, trainers.schedule",
        ),
        ("trainers.new", "from . import schedule\nfrom .schedule import polynomial"),
        ("dataset_conversion.new", "from braintum_commands.command import CommandError"),
        ("evaluation.new", "import inferences_of_others\nfrom nnunetv2.inference import predict_from_raw_data"),
        ("inference.new", "import torch\n'import trainers'  # import trainers"),
    ],
)
def test_rule_allows(module, source):
    assert violations(source, module) == []


def test_relative_imports_are_resolved():
    assert list(imported_modules("from .b import c\nfrom . import d\nfrom ..e import f", "trainers.sub.a")) == [
        (1, "trainers.sub.b"),
        (2, "trainers.sub"),
        (3, "trainers.e"),
    ]
    assert list(imported_modules("from .b import c", "trainers", is_package=True)) == [(1, "trainers.b")]
    with pytest.raises(ValueError, match="line 1: relative import beyond the package"):
        list(imported_modules("from .. import evaluation", "trainers.a"))


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def declared_dependencies(setup_cfg: configparser.ConfigParser) -> set[str]:
    """Of every installation, and of the extra for exported networks, which only functions import."""
    requirements = setup_cfg["options"]["install_requires"].split("\n")
    requirements += setup_cfg["options.extras_require"]["onnx"].split("\n")
    return {normalised(re.split(r"[<>=!~; ]", line.strip(), maxsplit=1)[0]) for line in requirements if line.strip()}


def undeclared(source: str, module: str, declared: set[str], is_package: bool = False) -> list[str]:
    """Imports from elsewhere that no declared dependency provides."""
    distributions = metadata.packages_distributions()
    foreign = [
        (line, name, distributions.get(name.partition(".")[0], []))
        for line, name in imported_modules(source, module, is_package)
        if name.partition(".")[0] not in sys.stdlib_module_names | ALLOWED.keys()
    ]
    return [
        f"{module}, line {line}: {name} is of no dependency in setup.cfg"
        for line, name, providers in foreign
        if not declared & {normalised(provider) for provider in providers}
    ]


@pytest.mark.parametrize("package", ALLOWED)
def test_dependencies_are_declared(package, setup_cfg):
    declared = declared_dependencies(setup_cfg)
    found = [
        problem
        for source, module, is_package in sources(package)
        for problem in undeclared(source, module, declared, is_package)
    ]
    assert found == []


def test_undeclared_dependency_is_caught(setup_cfg):
    declared = declared_dependencies(setup_cfg)
    assert len(undeclared("import pytest", "evaluation.new", declared)) == 1
    assert len(undeclared("import surely_not_installed", "evaluation.new", declared)) == 1
    assert undeclared("import numpy.linalg, json\nfrom PIL import Image", "evaluation.new", declared) == []


def test_no_test_folder_is_named_like_a_package():
    assert [path.name for path in Path(__file__).parent.iterdir() if path.stem in ALLOWED] == []
