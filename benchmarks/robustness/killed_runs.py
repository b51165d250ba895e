"""Runs that are killed at random moments and started again: processes, and the campaign of one stage."""

import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Faults = list[str]
"""In words, each naming the file."""


@dataclass(frozen=True)
class Stage:
    """What is killed.

    Attributes:
        name: of the stage.
        start: runs it; told its folder, and whether it is a restart.
        compare: what a folder holds against the folder of an uninterrupted run, and whether the run was completed.
        repeats: whether a completed run may be started again; a conversion refuses to replace a data set.
    """

    name: str
    start: Callable[[Path, bool], None]
    compare: Callable[[Path, Path, bool], Faults]
    repeats: bool = True


def fork(run: Callable[[], None], log: Path) -> int:
    """Run something in a process group of its own; the process's id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        with open(log, "a") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        run()
        code = 0
    except BaseException:
        logging.exception("failed")
    finally:
        sys.stdout.flush()
        os._exit(code)


def finish(process: int, seconds: float | None = None) -> int | None:
    """Wait; the exit code (negative: the signal), or None if the process still runs after so many seconds."""
    end = None if seconds is None else time.perf_counter() + seconds
    while end is None or time.perf_counter() < end:
        done, status = os.waitpid(process, 0 if end is None else os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    return None


@dataclass
class Campaign:
    """The kills of one stage."""

    stage: Stage
    folder: Path
    wanted_kills: int
    random: np.random.Generator
    faults: Faults = field(default_factory=list)
    kills: int = 0
    late: int = 0
    seconds: float = 0.0
    first: float = 0.0

    def run(self) -> dict[str, Any]:
        shutil.rmtree(self.folder, ignore_errors=True)
        reference, *times = self._uninterrupted("reference")
        again, *times_again = self._uninterrupted("again")
        self.seconds, self.first = (min(pair) for pair in zip(times, times_again, strict=True))
        self.faults += [f"second uninterrupted run: {fault}" for fault in self.stage.compare(again, reference, True)]
        shutil.rmtree(again)
        trials = 0
        while self.kills < self.wanted_kills and trials < 3 * self.wanted_kills:
            self._trial(trials, reference)
            trials += 1
        return {
            "stage": self.stage.name,
            "seconds of a run": round(self.seconds, 2),
            "first file after": round(self.first, 2),
            "kills": self.kills,
            "ended before the kill": self.late,
            "restarted to the end": trials,
            "faults found": len(self.faults),
            "faults": self.faults,
        }

    def _uninterrupted(self, name: str) -> tuple[Path, float, float]:
        """Folder, duration and moment of the first file."""
        folder = self.folder / name
        folder.mkdir(parents=True)
        started, clock = time.time(), time.perf_counter()
        code = finish(fork(lambda: self.stage.start(folder, False), self.folder / f"{name}.txt"))
        seconds = time.perf_counter() - clock
        if code != 0:
            raise RuntimeError(f"the uninterrupted run ended with {code}, see {self.folder / name}.txt")
        first = min(path.stat().st_mtime for path in folder.rglob("*") if path.is_file()) - started
        return folder, seconds, min(max(first, 0.0), seconds)

    def _trial(self, number: int, reference: Path) -> None:
        folder = self.folder / f"trial_{number:03d}"
        folder.mkdir()
        log = self.folder / f"{folder.name}.txt"
        faults: Faults = []
        for restart in range(1 + (number % 3 == 2)):
            clock = time.perf_counter()
            process = fork(lambda restart=restart: self.stage.start(folder, bool(restart)), log)  # type: ignore[misc]
            moment = self.random.uniform(0 if restart else self.first, self.seconds)
            if finish(process, moment) is not None:
                self.late += 1
                if not restart:  # the machine has less to do than during the runs before
                    self.seconds = min(self.seconds, time.perf_counter() - clock)
                    self.first = min(self.first, self.seconds / 2)
                break
            os.killpg(process, signal.SIGKILL)
            finish(process)
            self.kills += 1
            faults += [
                f"killed after {moment:.2f} s: {fault}" for fault in self.stage.compare(folder, reference, False)
            ]
        code: int | None = 0
        if self.stage.repeats or self.stage.compare(folder, reference, True):
            code = finish(fork(lambda: self.stage.start(folder, True), log), 300)
        if code != 0:
            faults.append(f"the restart ended with {code}, see {log}")
        else:
            faults += [f"after the restart: {fault}" for fault in self.stage.compare(folder, reference, True)]
        self.faults += [f"{folder.name}: {fault}" for fault in faults]
        if not faults:
            shutil.rmtree(folder)
            log.unlink()
