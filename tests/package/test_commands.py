"""How commands run: exit codes, messages, registration on the way."""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from braintum.commands import command, register, registration, version
from braintum.commands.command import CommandError, run_command


@pytest.fixture
def nnunet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for nnU-Net's folder, in which nothing is registered yet."""
    folder = tmp_path / "nnunetv2"
    for path in registration.SHIMS.values():
        (folder / path).parent.mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.setattr(registration, "nnunet_folder", lambda: folder)
    monkeypatch.setattr(command, "_already_said", set())
    return folder


def raising(error: BaseException):
    def main(argv: Sequence[str] | None) -> None:
        raise error

    return main


@pytest.mark.parametrize(("result", "exit_code"), [(None, 0), (0, 0), (3, 3)])
def test_exit_code_is_what_main_returns(result, exit_code):
    assert run_command(lambda argv: result) == exit_code


def test_main_gets_the_arguments():
    seen = []
    run_command(seen.append, ["-i", "folder"])
    run_command(seen.append)
    assert seen == [["-i", "folder"], None]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (CommandError("no such class"), "error: no such class\n"),
        (ValueError("cases.csv line 3: no class"), "error: cases.csv line 3: no class\n"),
        (ValueError(), "error: ValueError\n"),
        (FileNotFoundError("no plans in folder"), "error: no plans in folder\n"),
        (FileNotFoundError(2, "No such file or directory", "plans.json"), "error: plans.json: No such file or dir"),
        (PermissionError(13, "Permission denied", "plans.json"), "error: plans.json: Permission denied\n"),
        (OSError(18, "Invalid cross-device link", "a", None, "b"), "error: a -> b: Invalid cross-device link\n"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(error, message, capsys):
    assert run_command(raising(error)) == 1
    output = capsys.readouterr()
    assert output.err.startswith(message)
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_interrupted(capsys):
    assert run_command(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_bugs_keep_their_traceback():
    with pytest.raises(KeyError, match="spacing"):
        run_command(raising(KeyError("spacing")))


def test_debug_variable_adds_the_traceback(monkeypatch, capsys):
    monkeypatch.setenv(command.DEBUG_VARIABLE, "1")
    assert run_command(raising(ValueError("bad spacing"))) == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback (most recent call last)")
    assert error.endswith("error: bad spacing\n")


@pytest.mark.parametrize(("arguments", "exit_code"), [(["--help"], 0), (["--nonsense"], 2)])
def test_argparse_exit_codes(arguments, exit_code, capsys):
    def main(argv: Sequence[str] | None) -> None:
        argparse.ArgumentParser().parse_args(argv)

    assert run_command(main, arguments) == exit_code
    assert "usage:" in "".join(capsys.readouterr())


@pytest.mark.parametrize(("code", "exit_code", "message"), [(None, 0, ""), ("no data", 1, "no data\n")])
def test_system_exit(code, exit_code, message, capsys):
    assert run_command(raising(SystemExit(code))) == exit_code
    assert capsys.readouterr().err == message


def test_registers_once_and_says_so(nnunet, capsys):
    assert run_command(lambda argv: None) == 0
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(nnunet) in said
    assert "braintum_register --undo" in said
    assert registration.status().complete

    assert run_command(lambda argv: None) == 0
    assert capsys.readouterr().err == ""


def test_read_only_installation_is_explained_once_and_the_command_runs(nnunet, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a read-only folder stops everyone but root
    assert run_command(lambda argv: 7) == 7
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"export nnUNet_extTrainer={registration.EXT_TRAINER_FOLDER}" in said
    assert "braintum_register" in said
    assert not list(nnunet.rglob("braintum_*"))

    assert run_command(lambda argv: 7) == 7
    assert capsys.readouterr().err == ""


def test_foreign_file_does_not_stop_other_commands(nnunet, capsys):
    foreign = nnunet / registration.SHIMS["trainers"]
    foreign.write_text("class Mine: pass\n")
    assert run_command(lambda argv: None) == 0
    assert str(foreign) in capsys.readouterr().err
    assert foreign.read_text(encoding="utf-8") == "class Mine: pass\n"


def test_wrong_nnunet_version_stops_before_main(nnunet, monkeypatch, capsys):
    monkeypatch.setattr(version.metadata, "version", lambda name: "2.5.1")
    assert run_command(raising(AssertionError("main must not run"))) == 1
    error = capsys.readouterr().err
    assert "2.5.1" in error
    assert 'pip install "nnunetv2>=2.8,<3"' in error
    assert not list(nnunet.rglob("braintum_*"))


class TestRegisterCommand:
    def test_register_check_undo(self, nnunet, capsys):
        shims = [nnunet / path for path in registration.SHIMS.values()]
        assert register.main(["--check"]) == 1
        assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["missing", str(s)] for s in shims]

        assert register.main([]) == 0
        said = capsys.readouterr().out
        assert all(str(shim) in said and shim.is_file() for shim in shims)
        assert register.main([]) == 0
        assert "Nothing to do" in capsys.readouterr().out
        assert register.main(["--check"]) == 0
        assert [line.split() for line in capsys.readouterr().out.splitlines()] == [["present", str(s)] for s in shims]

        assert register.main(["--undo"]) == 0
        said = capsys.readouterr().out
        assert all(str(shim) in said and not shim.exists() for shim in shims)
        assert register.main(["--undo"]) == 0
        assert "Nothing to do" in capsys.readouterr().out

    def test_check_finds_an_outdated_module(self, nnunet, capsys):
        registration.register()
        (nnunet / registration.SHIMS["planners"]).write_text(f"{registration.MARKER}\n")
        assert register.main(["--check"]) == 1
        states = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
        assert sorted(states) == ["outdated"] + ["present"] * (len(registration.SHIMS) - 1)

    def test_read_only_is_an_error_here(self, nnunet, monkeypatch, capsys):
        monkeypatch.setattr(os, "access", lambda path, mode: False)
        assert register.main([]) == 1
        assert "error: no permission to write" in capsys.readouterr().err

    def test_undo_works_with_an_unsupported_nnunet(self, nnunet, monkeypatch, capsys):
        registration.register()
        monkeypatch.setattr(version.metadata, "version", lambda name: "3.0")
        assert register.main([]) == 1
        assert register.main(["--undo"]) == 0
        assert not list(nnunet.rglob("braintum_*"))

    def test_undo_and_check_exclude_each_other(self, nnunet, capsys):
        assert register.main(["--undo", "--check"]) == 2

    def test_does_not_import_torch(self):
        program = (
            "import sys; from braintum.commands import register; code = register.main(['--check']); "
            "sys.exit(code or 3 * bool({'torch', 'numpy', 'nnunetv2'} & set(sys.modules)))"
        )
        finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert finished.returncode == 0, finished.stdout + finished.stderr
