"""``import braintum``: a small, lazy surface, and errors of one family."""

import ast
import inspect
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from conftest import REPOSITORY

import braintum as bt
from braintum.commands import boundary, command
from braintum.commands.boundary import api_function
from braintum.commands.errors import CommandError
from braintum.conversion.building.inspection import SourceError
from braintum.conversion.building.raw_dataset import DatasetTakenError
from braintum.conversion.files.disk import UnwritableFolderError
from braintum.conversion.files.file_checks import DamagedFileError
from braintum.conversion.files.volumes import VolumeError

FUNCTIONS = [name for name in bt.__all__ if inspect.isfunction(getattr(bt, name))]
ERRORS = [bt.InputError, bt.FileError, bt.MissingFileError, bt.UnsupportedError, bt.RunError]


def test_import_and_dir_are_light():
    program = (
        "import sys, braintum; assert 'predict' in dir(braintum); braintum.BraintumError; "
        "sys.exit(bool({'torch', 'numpy', 'nnunetv2', 'SimpleITK', 'scipy'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_surface_is_listed_everywhere():
    """What type checkers see, what is imported on demand, and ``__all__``."""
    tree = ast.parse((REPOSITORY / "braintum" / "__init__.py").read_text(encoding="utf-8"))
    seen = {
        alias.name: node.module.removeprefix("braintum.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("braintum.")
        for alias in node.names
    }
    assert seen.pop("__version__") == "commands.version"
    assert seen == bt._MODULE_OF_NAME
    assert set(bt.__all__) == {*seen, "__version__"} and bt.__all__ == sorted(bt.__all__)
    assert dir(bt) == bt.__all__


@pytest.mark.parametrize("name", [name for name in bt.__all__ if name != "__version__"])
def test_every_name_exists_and_is_documented(name):
    value = getattr(bt, name)
    assert value.__name__ == name
    assert inspect.getdoc(value)


def test_functions_say_what_they_take_give_and_raise():
    assert {"convert", "plan", "train", "predict", "evaluate", "explain", "load_model"} <= set(FUNCTIONS)
    for name in FUNCTIONS:
        function = getattr(bt, name)
        documentation = inspect.getdoc(function)
        for section in ("Example:\n    >>> ", "Args:\n", "Raises:\n"):
            assert section in documentation, (name, section)
        described = documentation.split("Args:\n")[1].split("Raises:\n")[0]
        for parameter in inspect.signature(function).parameters:
            assert f"    {parameter}: " in described, (name, parameter)
        assert inspect.signature(function).return_annotation is not inspect.Signature.empty


def test_unknown_name():
    with pytest.raises(AttributeError, match="module 'braintum' has no attribute 'segment'"):
        bt.segment  # noqa: B018


@pytest.mark.parametrize(
    ("error", "member", "message"),
    [
        (ValueError("no spacing"), bt.InputError, "no spacing"),
        (ValueError(), bt.InputError, "ValueError"),
        (FileNotFoundError("no plans at x"), bt.MissingFileError, "no plans at x"),
        (FileNotFoundError(2, "No such file", "a.json"), bt.MissingFileError, "[Errno 2] No such file: 'a.json'"),
        (PermissionError(13, "Permission denied", "a"), bt.FileError, "[Errno 13] Permission denied: 'a'"),
        (OSError(18, "Invalid link", "a", None, "b"), bt.FileError, "[Errno 18] Invalid link: 'a' -> 'b'"),
        (NotImplementedError("no cascade"), bt.UnsupportedError, "no cascade"),
    ],
)
def test_errors_become_members_of_the_family(error, member, message):
    @api_function(needs_nnunet=False)
    def fail() -> None:
        raise error

    with pytest.raises(bt.BraintumError) as caught:
        fail()
    assert type(caught.value) is member and str(caught.value) == message
    assert caught.value.__cause__ is error
    # code that catches the built-in error goes on working
    assert isinstance(caught.value, next(base for base in type(error).__mro__ if base in member.__mro__))
    if isinstance(error, OSError):
        assert (caught.value.errno, caught.value.filename) == (error.errno, error.filename)


@pytest.mark.parametrize("error", [bt.RunError("died"), CommandError("no"), KeyError("bug"), RuntimeError("bug")])
def test_members_and_bugs_pass_as_they_are(error):
    @api_function(needs_nnunet=False)
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        fail()
    assert caught.value is error


@pytest.mark.parametrize(
    ("domain", "builtin"),
    [
        *((domain, ValueError) for domain in (CommandError, SourceError, DatasetTakenError, VolumeError)),
        (DamagedFileError, ValueError),
        (UnwritableFolderError, OSError),
        *zip(ERRORS, (ValueError, OSError, FileNotFoundError, NotImplementedError, RuntimeError), strict=True),
    ],
)
def test_domain_errors_are_members(domain, builtin):
    assert issubclass(domain, bt.BraintumError) and issubclass(domain, builtin)


def test_nnunet_is_checked_and_registered_with(monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(boundary, "check_nnunet_version", lambda: calls.append("version"))
    monkeypatch.setattr(command, "ensure_registered", lambda: calls.append("registered"))
    noted: Callable[[], Any] = api_function()(lambda: calls.append("run"))
    noted()
    assert calls == ["version", "registered", "run"]
    api_function(needs_nnunet=False)(lambda: calls.append("light"))()
    assert calls[3:] == ["light"]


def test_wrong_nnunet_is_an_error(monkeypatch, tmp_path):
    from braintum.commands import version

    monkeypatch.setattr(version.metadata, "version", lambda name: "2.5.1")
    with pytest.raises(bt.BraintumError, match="2.5.1 is installed"):
        bt.load_predictor(tmp_path)


@pytest.mark.parametrize("error", [bt.RunError("planning failed"), bt.UnsupportedError("no cascade")])
def test_commands_report_the_family_in_one_line(error, capsys):
    def main(argv):
        raise error

    assert command.run_command(main, needs_nnunet=False) == 1
    assert capsys.readouterr().err == f"error: {error}\n"


def test_commands_show_warnings_as_lines(capsys):
    def main(argv):
        for _ in range(2):
            warnings.warn("the weights are others", bt.BraintumWarning, stacklevel=1)

    assert command.run_command(main, needs_nnunet=False) == 0
    assert capsys.readouterr().err == 2 * "warning: the weights are others\n"


def test_unknown_arguments_name_what_there_is(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path))
    with pytest.raises(bt.InputError, match="unknown kind of source 'ixi'; choose one of figshare, brisc"):
        bt.convert("ixi", tmp_path, 901)
    with pytest.raises(bt.InputError, match="br35h has no option slices; it has pool, official_split"):
        bt.convert("br35h", tmp_path, 901, slices="all")
    with pytest.raises(bt.InputError, match="the source of figshare is a folder, not \\[1, 2\\]"):
        bt.convert("figshare", [1, 2], 901)
    with pytest.raises(bt.MissingFileError, match="absent: no such folder"):
        bt.convert("figshare", tmp_path / "absent", 901)
    for unknown in (bt.plan, lambda dataset: bt.train(dataset, "2d", 0)):
        with pytest.raises(bt.InputError, match="Could not find a dataset with the ID 901"):
            unknown(901)
    (tmp_path / "Dataset901_Empty").mkdir()
    with pytest.raises(bt.InputError, match="nnU-Net finds no class BrainPlanner"):
        bt.plan(901, planner="BrainPlanner")
    with pytest.raises(bt.MissingFileError, match="no plans at .*BrainTumPlans.json; plan the data set first"):
        bt.train("Dataset901_Empty", "2d", 0)
    (tmp_path / "Dataset901_Empty" / "BrainTumPlans.json").write_text("{}")
    with pytest.raises(bt.InputError, match="'abacus' is no device"):
        bt.train(901, "2d", 0, device="abacus")
    with pytest.raises(bt.InputError, match="braintum_num_epochs takes a whole number from 1 on, got '0'"):
        bt.train(901, "2d", 0, device="cpu", settings=bt.TrainingSettings(num_epochs=0))
    with pytest.raises(bt.MissingFileError, match="is no folder of a trained model: dataset.json is missing"):
        bt.load_model(tmp_path)
    with pytest.raises(bt.MissingFileError, match="nowhere is no folder"):
        bt.evaluate(tmp_path / "nowhere", tmp_path)
    with pytest.raises(bt.InputError, match="no folder is given"):
        bt.evaluate_models([])
