"""Stages of a long command: one line each with its time, one bar while it runs, other tools' text in a log file."""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from tqdm import tqdm

from braintum.commands.errors import CommandError

_LAST_LINES = 15
_NAME_WIDTH, _TEXT_WIDTH = 9, 68
_POLL_SECONDS = 0.5
_BAR = "{desc:<9} {bar:30} {n_fmt} of {total_fmt} {unit}, {elapsed}"
_CLOCK = "{desc:<9} {elapsed}"


@dataclass(frozen=True)
class Progress:
    """How far a stage is, read from the files that its tools write anyway.

    Attributes:
        total: when it is complete.
        unit: of ``total``, in the plural.
        done: how much of it there is; called now and then while the stage runs.
        afterwards: what the stage still does when all of it is there.
    """

    total: int
    unit: str
    done: Callable[[], int]
    afterwards: str = ""


class Stages:
    """Runs the stages of a command one after the other.

    A stage that is done leaves one line: its name, what came out of it, its time. While it runs, a terminal shows a bar
    or a clock; what is no terminal, such as a log of continuous integration, gets nothing. All that other tools say
    goes to the log file, each command line before it and its time after it.

    Args:
        log_file: is begun anew.
        environment: of the commands.
        verbose: other tools write to the terminal instead, and there is no bar.
    """

    def __init__(self, log_file: Path, environment: Mapping[str, str], verbose: bool = False) -> None:
        self.log_file = log_file
        self.environment = {**environment, "PYTHONUNBUFFERED": "1"}
        self.verbose = verbose
        if not verbose:
            self.environment["TQDM_MININTERVAL"] = "60"  # in a file, each step of a tool's bar takes a line
            log_file.write_bytes(b"")

    @contextmanager
    def stage(self, name: str, progress: Progress | None = None) -> Iterator["Stage"]:
        """A stage, from here to the end of the block.

        Args:
            name: one word.
            progress: None for a clock in place of the bar.

        Raises:
            CommandError: something in it failed; the message names the stage.
        """
        started = time.monotonic()
        stage = Stage(name, self)
        try:
            with _bar(name, progress, disable=True if self.verbose else None):
                yield stage
        except (ValueError, OSError) as error:
            raise CommandError(f"stage {name} failed: {error}") from error
        taken = duration(time.monotonic() - started)
        print(f"{name:<{_NAME_WIDTH}} {stage.outcome:<{_TEXT_WIDTH}} {taken:>8}", flush=True)

    @contextmanager
    def logged(self, title: str) -> Iterator[None]:
        """What this process prints within the block goes to the log file, under a title."""
        if self.verbose:
            print(f"$ {title}", flush=True)
            yield
            return
        with open(self.log_file, "a", encoding="utf-8", errors="backslashreplace") as log:
            log.write(f"$ {title}\n")
            with redirect_stdout(log), redirect_stderr(log):
                yield


@dataclass
class Stage:
    """A stage that runs.

    Attributes:
        name: one word.
        stages: what it belongs to.
        outcome: what came out of it, for its line.
    """

    name: str
    stages: Stages
    outcome: str = ""

    def run(self, *command: str, **variables: str) -> None:
        """Run a command that was installed beside this interpreter.

        Args:
            command: its name and its arguments.
            variables: more of the environment, for this command.

        Raises:
            CommandError: it failed; the message has its exit code and the last lines of the log.
        """
        program = [str(Path(sys.executable).parent / command[0]), *command[1:]]
        environment = {**self.stages.environment, **variables}
        if self.stages.verbose:
            print(f"$ {shlex.join(command)}", flush=True)
            code, why = _exit_code(program, environment, None), "its message is above"
        else:
            with open(self.stages.log_file, "a", encoding="utf-8", errors="backslashreplace") as log:
                print(f"$ {shlex.join(command)}", file=log, flush=True)
                start, before, started = log.tell(), os.times(), time.monotonic()
                code = _exit_code(program, environment, log)
                last = "\n    ".join(_last_lines(self.stages.log_file, start))
                why = f"all it said is in {self.stages.log_file}, the last lines:\n    {last}"
                used = sum(os.times()[2:4]) - sum(before[2:4])
                print(f"\n# exit code {code} after {time.monotonic() - started:.1f} s, {used:.1f} s of CPU\n", file=log)
        if code != 0:
            how = f"ended with exit code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
            raise CommandError(f"{command[0]} {how}; {why}")


def _last_lines(file: Path, start: int) -> list[str]:
    """The last lines after a position in a file; of a bar, which rewrites its line, every state is one."""
    with open(file, encoding="utf-8", errors="replace", newline="") as stream:
        stream.seek(start)
        lines = (part.rstrip() for line in stream for part in re.split(r"[\r\n]", line))
        return list(deque(filter(None, lines), _LAST_LINES))


def duration(seconds: float) -> str:
    """Such as ``45 s`` or ``4 min 05 s``."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _exit_code(command: Sequence[str], environment: Mapping[str, str], log: IO[str] | None) -> int:
    errors = None if log is None else subprocess.STDOUT
    with subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=errors) as process:
        try:
            return process.wait()
        except BaseException:  # Ctrl-C reaches the command too; whatever else ends this process should end it
            process.terminate()
            raise


@contextmanager
def _bar(name: str, progress: Progress | None, disable: bool | None) -> Iterator[None]:
    """A bar or a clock that moves by itself and is gone afterwards; nothing where standard error is no terminal."""
    bar = tqdm(
        total=None if progress is None else progress.total,
        desc=name,
        unit="" if progress is None else progress.unit,
        leave=False,
        disable=disable,
        bar_format=_CLOCK if progress is None else _BAR,
    )
    ended = threading.Event()

    def keep_moving() -> None:
        while not ended.wait(_POLL_SECONDS):
            if progress is not None:
                try:
                    bar.n = min(progress.done(), progress.total)
                except OSError:  # the tool is just moving its files: next time
                    continue
                if bar.n == progress.total and progress.afterwards:
                    bar.unit = f"{progress.unit}, {progress.afterwards}"
            bar.refresh()

    mover = threading.Thread(target=keep_moving, daemon=True)
    with bar:
        if bar.disable:
            yield
            return
        mover.start()
        try:
            yield
        finally:
            ended.set()
            mover.join()
