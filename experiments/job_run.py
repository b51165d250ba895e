"""Runs one job, wherever it was started: keeps its state file, its log, and passes on that it is to stop."""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from braintum.commands.command import EXIT_SOME_FAILED, run_command
from braintum.commands.provenance import content_hash, versions
from braintum.commands.stopping import STOP_VARIABLE
from braintum.conversion.files.json_files import read_json
from braintum.conversion.files.lease import LeasedError, leased
from braintum.experiments import state as states
from braintum.experiments.diagnosis import diagnosis, last_text
from braintum.experiments.jobs import JOBS_FOLDER, Experiment
from braintum.experiments.progress import read_progress
from braintum.experiments.state import read_state, stored_state, update_state

_POLL_SECONDS, _LOOK_SECONDS = 0.2, 2.0
"""Between two looks at the command, and at the stop file, which may lie on a network."""

_KILL_SECONDS = 15
"""Between asking a command to end and killing it."""


class JobRun:
    """One turn of a job.

    Args:
        experiment: of the job.
        name: of the job.
    """

    def __init__(self, experiment: Experiment, name: str) -> None:
        self.experiment = experiment
        self.job = experiment.job(name)
        self.stop_file = experiment.file_of(name, ".stop")
        self.log = experiment.file_of(name, ".log")
        self._process: subprocess.Popen | None = None
        self._stopped = self._looked = 0.0
        self._start = 0
        self._attempts: list[dict[str, Any]] = []

    def run(self) -> str:
        """Run what is left of the job; the state that it ends in."""
        try:
            with leased(self.experiment.folder / JOBS_FOLDER, self.job.name, wait=False):
                return self._run()
        except LeasedError:  # started twice: the other one does it
            return states.RUNNING

    def request_stop(self) -> None:
        """Ask the command to end; a training writes its checkpoint first."""
        self.stop_file.touch()

    def wait(self) -> None:
        """Within a signal handler, in the midst of :meth:`run`: until the command ended; its state is written then."""
        if self._process is not None and self._attempts:
            self._end(self._wait_for_process(), self._start, self._attempts)

    def _run(self) -> str:
        state = stored_state(self.experiment, self.job)
        if state["state"] == states.CANCELLED or read_state(self.experiment, self.job)["state"] == states.DONE:
            return str(state["state"])
        for need in self.job.needs:
            needed = read_state(self.experiment, self.experiment.job(need))["state"]
            if needed != states.DONE:
                return self._write(states.WAITING, f"needs {need}, which is {needed}", state.get("attempts", []))
        self.stop_file.unlink(missing_ok=True)
        attempts = [*state.get("attempts", []), {"started": _now(), "host": socket.gethostname(), "pid": os.getpid()}]
        update_state(
            self.experiment, self.job, state=states.RUNNING, reason="", attempts=attempts, record=self._record()
        )
        self._attempts, self._start = attempts, self.log.stat().st_size if self.log.is_file() else 0
        code = 0
        for command in self.job.commands:
            code = max(code, self._run_command(command), key=abs)
            if code not in (0, EXIT_SOME_FAILED):
                break
        return self._end(code, self._start, attempts)

    def _end(self, code: int, start: int, attempts: list[dict[str, Any]]) -> str:
        if all(os.path.isfile(path) for path in self.job.leaves) and code in (0, EXIT_SOME_FAILED):
            return self._write(
                states.DONE, "some cases could not be done; its log lists them" if code else "", attempts
            )
        if self.stop_file.exists():
            if stored_state(self.experiment, self.job).get("cancelled"):
                return self._write(states.CANCELLED, "by braintum_run cancel", attempts)
            progress = read_progress(self.job)
            attempts[-1]["epoch"] = progress.epoch if progress else None
            return self._write(states.INTERRUPTED, "goes on from its last checkpoint", attempts)
        text = last_text(self.log, start)
        reason = diagnosis(code, text) if code else f"it ended, but left no {self.job.leaves[0]}"
        return self._write(states.FAILED, reason, attempts)

    def _write(self, state: str, reason: str, attempts: list[dict[str, Any]]) -> str:
        if attempts and "ended" not in attempts[-1]:
            attempts[-1] |= {"ended": _now(), "outcome": state}
        update_state(self.experiment, self.job, state=state, reason=reason, attempts=attempts)
        return state

    def _run_command(self, command: list[str]) -> int:
        settings = {"PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "60"}  # in a log each step of a bar takes a line
        environment = {**settings, **os.environ, **self.job.variables, STOP_VARIABLE: str(self.stop_file)}
        with open(self.log, "ab") as log:
            log.write(f"$ {' '.join(command)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is for whoever started the job
                preexec_fn=_ignore_warning,
            )
        try:
            return self._wait_for_process()
        finally:
            self._signal(signal.SIGKILL)  # its workers, too

    def _wait_for_process(self) -> int:
        assert self._process is not None
        while (code := self._process.poll()) is None:
            self._stop_if_asked()
            time.sleep(_POLL_SECONDS)
        return code

    def _stop_if_asked(self) -> None:
        """Ask, then end, then kill."""
        if not self._stopped:
            if time.monotonic() - self._looked < _LOOK_SECONDS:
                return
            self._looked = time.monotonic()
            if not self.stop_file.exists():
                return
            self._stopped = time.monotonic()
        waited = time.monotonic() - self._stopped - self.job.stop_seconds
        if waited > _KILL_SECONDS:
            self._signal(signal.SIGKILL)
        elif waited > 0:
            self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _record(self) -> dict[str, Any]:
        """What it runs with; the trained model has no such record of machines, see the provenance in ``validation``."""
        return {
            "commands": self.job.commands,
            "variables": self.job.variables,
            "versions": versions(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "gpus": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "hashes": {
                os.path.basename(file): content_hash(read_json(file))
                for file in self.job.inputs
                if os.path.isfile(file)
            },
        }


def _ignore_warning() -> None:
    """SLURM warns every process of a job that its time ends; only the one that knows what to do is to hear it."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def build_parser() -> argparse.ArgumentParser:
    """The command line, for who starts jobs."""
    parser = argparse.ArgumentParser(prog="python -m braintum.experiments.job_run", description=__doc__)
    parser.add_argument("folder", type=Path, help="of the experiment")
    parser.add_argument("job", help="its name")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a job; 0 if it is done."""
    args = build_parser().parse_args(argv)
    run = JobRun(Experiment.load(args.folder), args.job)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: run.request_stop())
    return 0 if run.run() == states.DONE else 1


if __name__ == "__main__":
    raise SystemExit(run_command(main, needs_nnunet=False))
