"""The stages of a long command: their lines, the log, the bar, and what is said when one of them fails."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path

import pytest

from braintum.commands.errors import CommandError
from braintum.commands.stages import Progress, Stages, duration

PYTHON = Path(sys.executable).name
"""A command that is there wherever the tests run."""


@pytest.fixture
def stages(tmp_path):
    return Stages(tmp_path / "log.txt", {**os.environ, "WORD": "from the environment"})


def test_a_stage_is_one_line_and_its_tools_are_in_the_log(stages, capfd):
    with stages.stage("convert") as stage:
        stage.run(PYTHON, "-c", "import os, sys; print(os.environ['WORD']); print('a warning', file=sys.stderr)")
        stage.run(PYTHON, "-c", "import os; print(os.environ['WORD'])", WORD="for this command")
        stage.outcome = "12 cases"
    with stages.stage("picture") as stage, stages.logged("picture of it"):
        print("said by this process")
        stage.outcome = "drawn"
    out, err = capfd.readouterr()
    assert re.fullmatch(r"convert +12 cases +\d+ s\npicture +drawn +\d+ s\n", out)
    assert err == "", "no bar where there is no terminal"
    log = stages.log_file.read_text(encoding="utf-8").splitlines()
    assert log[0].startswith(f"$ {PYTHON} -c ") and log[1:3] == ["from the environment", "a warning"]
    assert re.fullmatch(r"# exit code 0 after [\d.]+ s, [\d.]+ s of CPU", log[4])
    assert "for this command" in log and log[-2:] == ["$ picture of it", "said by this process"]


def test_verbose_shows_what_the_tools_say(tmp_path, capfd):
    stages = Stages(tmp_path / "log.txt", os.environ, verbose=True)
    with stages.stage("convert") as stage:
        stage.run(PYTHON, "-c", "print(6 * 7)")
        with stages.logged("in this process"):
            print("said")
    lines = capfd.readouterr().out.splitlines()
    assert lines[:-1] == [f"$ {PYTHON} -c 'print(6 * 7)'", "42", "$ in this process", "said"]
    assert not stages.log_file.exists()


def test_a_failure_names_stage_code_and_log_and_shows_its_end(stages, capfd):
    code = "import sys; print(*range(100), sep='\\n'); print('10 %\\r20 %\\rthe reason', end=''); sys.exit(7)"
    with pytest.raises(CommandError) as failure, stages.stage("train") as stage:
        stage.run(PYTHON, "-c", code)
    first, *last = str(failure.value).splitlines()
    log = stages.log_file
    assert first == f"stage train failed: {PYTHON} ended with exit code 7; all it said is in {log}, the last lines:"
    assert [line.strip() for line in last][-4:] == ["99", "10 %", "20 %", "the reason"] and len(last) == 15
    assert capfd.readouterr().out == "", "a stage that failed has no line"


@pytest.mark.parametrize(
    ("verbose", "code", "message"),
    (
        (True, "raise SystemExit(2)", "ended with exit code 2; its message is above"),
        (False, "import os; os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
    ),
)
def test_other_failures(tmp_path, verbose, code, message):
    stages = Stages(tmp_path / "log.txt", os.environ, verbose)
    with pytest.raises(CommandError, match=f"stage plan failed: .*{message}"), stages.stage("plan") as stage:
        stage.run(PYTHON, "-c", code)
    with pytest.raises(CommandError, match="stage picture failed: no such fold"), stages.stage("picture"):
        raise ValueError("no such fold")


@pytest.mark.slow
def test_the_bar_follows_the_files_and_is_gone_afterwards(stages, tmp_path, monkeypatch, capfd):
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))

    def done():
        if not (tmp_path / "files").is_dir():
            raise FileNotFoundError  # not yet there
        return len(list((tmp_path / "files").iterdir()))

    with open(theirs, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        with stages.stage("train", Progress(3, "epochs", done, "validating")):
            time.sleep(0.7)
            (tmp_path / "files").mkdir()
            for number in range(4):
                (tmp_path / "files" / str(number)).touch()
                time.sleep(0.7)
    shown = b""
    with open(ours, "rb", buffering=0) as screen, suppress(OSError):  # Linux's way to say that the other end is closed
        while part := screen.read(4096):
            shown += part
    shown = shown.decode()
    assert "0 of 3 epochs" in shown and re.search(r"[12] of 3 epochs, 0", shown)
    assert "3 of 3 epochs, validating, 0" in shown, "never more than all of it"
    assert "\n" not in shown and shown.rpartition("\r")[2].strip() == ""
    assert re.fullmatch(r"train +\d+ s\n", capfd.readouterr().out)


def test_duration():
    assert [duration(seconds) for seconds in (0.4, 59.4, 59.6, 245)] == ["0 s", "59 s", "1 min 00 s", "4 min 05 s"]
