"""What gets installed: exactly our packages, the commands, the licence."""

import ast
import configparser
import email
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY

import braintum_commands
from braintum_commands import version
from braintum_commands.registration import EXT_TRAINER_FOLDER


@pytest.fixture(scope="module")
def wheel(braintum_wheel: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(braintum_wheel)


def packages(setup_cfg: configparser.ConfigParser) -> set[str]:
    return set(setup_cfg["options"]["packages"].split())


def commands(setup_cfg: configparser.ConfigParser) -> dict[str, str]:
    lines = setup_cfg["options.entry_points"]["console_scripts"].strip().splitlines()
    return {name.strip(): target.strip() for name, _, target in (line.partition("=") for line in lines)}


def test_wheel_holds_exactly_the_packages(wheel, setup_cfg):
    top_level = {name.partition("/")[0] for name in wheel.namelist()}
    assert top_level == packages(setup_cfg) | {f"braintum-{braintum_commands.__version__}.dist-info"}


def test_wheel_holds_every_module(wheel, setup_cfg):
    installed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(REPOSITORY).as_posix()
        for package in packages(setup_cfg)
        for path in (REPOSITORY / package).rglob("*.py")
    }
    templates = (REPOSITORY / "evaluation" / "report_template").iterdir()
    expected |= {path.relative_to(REPOSITORY).as_posix() for path in templates}
    assert installed == expected
    assert f"braintum_commands/{EXT_TRAINER_FOLDER.name}/braintum_trainers.py" in installed


def test_wheel_metadata(wheel, setup_cfg):
    folder = f"braintum-{braintum_commands.__version__}.dist-info"
    message = email.message_from_bytes(wheel.read(f"{folder}/METADATA"))
    assert message["Name"] == "braintum"
    assert message["Version"] == braintum_commands.__version__
    assert message["Requires-Python"] == ">=3.10"
    assert "Apache-2.0" in (message["License-Expression"], message["License"])
    (licence,) = [name for name in wheel.namelist() if name.endswith("/LICENSE")]
    assert wheel.read(licence) == (REPOSITORY / "LICENSE").read_bytes()


def test_wheel_has_the_commands(wheel, setup_cfg):
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(wheel.read(f"braintum-{braintum_commands.__version__}.dist-info/entry_points.txt").decode())
    assert dict(parser["console_scripts"]) == commands(setup_cfg)
    assert "braintum_register" in parser["console_scripts"]


def test_commands_exist(setup_cfg):
    """Every command's function is defined where the metadata says; read, not imported."""
    for name, target in commands(setup_cfg).items():
        module, _, function = target.partition(":")
        path = REPOSITORY / (module.replace(".", "/") + ".py")
        assert path.is_file(), f"{name}: no module {module}"
        defined = {
            node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)
        }
        assert function in defined, f"{name}: {module} defines no {function}"


def test_nnunet_range_is_the_same_in_metadata_and_code(setup_cfg):
    assert f"nnunetv2{version.SUPPORTED_NNUNET}" in setup_cfg["options"]["install_requires"].split()


def test_every_package_folder_is_listed(setup_cfg):
    folders = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")}
    assert folders - {"benchmarks"} == packages(setup_cfg)
