"""What gets installed: exactly our packages, the commands, the licence."""

import ast
import configparser
import email
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import REPOSITORY, build_wheel

import braintum
from braintum.commands import version
from braintum.commands.registration import EXT_TRAINER_FOLDER


@pytest.fixture(scope="module")
def wheel(braintum_wheel: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(braintum_wheel)


def packages(setup_cfg: configparser.ConfigParser) -> set[str]:
    return set(setup_cfg["options"]["packages"].split())


def commands(setup_cfg: configparser.ConfigParser) -> dict[str, str]:
    lines = setup_cfg["options.entry_points"]["console_scripts"].strip().splitlines()
    return {name.strip(): target.strip() for name, _, target in (line.partition("=") for line in lines)}


@pytest.mark.slow
def test_wheel_holds_one_name(wheel):
    top_level = {name.partition("/")[0] for name in wheel.namelist()}
    assert top_level == {"braintum", f"braintum-{braintum.__version__}.dist-info"}


def test_wheel_holds_every_file(wheel):
    installed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    parts = {link.name: link for link in (REPOSITORY / "braintum").iterdir() if link.is_symlink()}
    expected = {"braintum/__init__.py", "braintum/py.typed"} | {
        (Path("braintum") / part / path.relative_to(link)).as_posix()
        for part, link in parts.items()
        for path in link.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert installed == expected
    assert f"braintum/commands/{EXT_TRAINER_FOLDER.name}/braintum_trainers.py" in installed
    assert "braintum/evaluation/report/template/report.html.j2" in installed


@pytest.mark.slow
def test_source_distribution_builds_the_same_wheel(braintum_source, wheel, tmp_path):
    program = f"from setuptools.build_meta import build_sdist; build_sdist({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=braintum_source, check=True, capture_output=True)
    (archive,) = tmp_path.glob("braintum-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
        names = {name.partition("/")[2] for name in file.getnames()}
    source = tmp_path / archive.name.removesuffix(".tar.gz")
    built = zipfile.ZipFile(build_wheel(source, tmp_path))
    assert {entry.filename: entry.CRC for entry in built.infolist() if ".dist-info" not in entry.filename} == {
        entry.filename: entry.CRC for entry in wheel.infolist() if ".dist-info" not in entry.filename
    }
    tracked = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "tests").rglob("*.py")}
    assert tracked | {"Makefile", "CHANGELOG.md"} <= names


def test_wheel_metadata(wheel, setup_cfg):
    folder = f"braintum-{braintum.__version__}.dist-info"
    message = email.message_from_bytes(wheel.read(f"{folder}/METADATA"))
    assert message["Name"] == "braintum"
    assert message["Version"] == braintum.__version__
    assert message["Requires-Python"] == ">=3.10"
    assert "Apache-2.0" in (message["License-Expression"], message["License"])
    (licence,) = [name for name in wheel.namelist() if name.endswith("/LICENSE")]
    assert wheel.read(licence) == (REPOSITORY / "LICENSE").read_bytes()


def test_wheel_has_the_commands(wheel, setup_cfg):
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(wheel.read(f"braintum-{braintum.__version__}.dist-info/entry_points.txt").decode())
    assert dict(parser["console_scripts"]) == commands(setup_cfg)
    assert "braintum_register" in parser["console_scripts"]


def test_commands_exist(setup_cfg):
    """Every command's function is defined where the metadata says; read, not imported."""
    for name, target in commands(setup_cfg).items():
        module, _, function = target.partition(":")
        path = REPOSITORY / (module.replace(".", "/") + ".py")  # through the links of braintum/
        assert path.is_file(), f"{name}: no module {module}"
        defined = {
            node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)
        }
        assert function in defined, f"{name}: {module} defines no {function}"


def test_nnunet_range_is_the_same_in_metadata_and_code(setup_cfg):
    assert f"nnunetv2{version.SUPPORTED_NNUNET}" in setup_cfg["options"]["install_requires"].split()
