"""Jobs on this machine: as many at once as GPUs allow, else one after the other."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from braintum.experiments.jobs import Experiment, Job
from braintum.experiments.state import DONE, RUNNING, State, read_state, states, update_state

_POLL_SECONDS = 0.5


def gpus_here() -> list[str]:
    """Numbers (or names) of the GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()


class LocalRun:
    """Starts jobs, each as a process of its own that outlives this one, and waits for them.

    Args:
        experiment: whose jobs are run.
        names: of the jobs to run; others only have to be done where one of them needs it.
        at_once: jobs that run at the same time; None for one a GPU, or one on a CPU.
        say: called with a line when a job begins or ends.

    Raises:
        ValueError: a job needs more GPUs than there are.
    """

    def __init__(
        self, experiment: Experiment, names: Iterable[str], at_once: int | None, say: Callable[[str], None]
    ) -> None:
        self.experiment, self.say = experiment, say
        self.waiting = [job for job in experiment.jobs if job.name in set(names)]
        gpus, most = gpus_here(), max((job.gpus for job in experiment.jobs), default=0)
        if most > len(gpus):
            raise ValueError(f"a job takes {most} GPU(s), and there are {len(gpus)} here; set -device cpu or --gpus")
        self.at_once = at_once or max(1, len(gpus) // most if most else 1)
        self.slots = [gpus[number * most : (number + 1) * most] for number in range(self.at_once)]
        self.cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self.running: dict[str, tuple[Job, int, subprocess.Popen | None]] = {}

    def run(self, stop: Callable[[], bool]) -> dict[str, State]:
        """Run until all are done or cannot be; the states then.

        Args:
            stop: asked again and again; once it is true, jobs are told to end, and none is started.
        """
        told = False
        while self.running or self.waiting:
            self._end_finished()
            if stop():
                self.waiting = []
                for name in [] if told else self.running:
                    self.experiment.file_of(name, ".stop").touch()
                told = True
            elif not self._start_next() and not self.running:
                break  # what is left needs what failed
            time.sleep(_POLL_SECONDS)
        return states(self.experiment)

    def _start_next(self) -> bool:
        """Start all that can start now; whether something did."""
        started = False
        for job in list(self.waiting):
            free = set(range(self.at_once)) - {slot for _, slot, _ in self.running.values()}
            if not free:
                break
            now = read_state(self.experiment, job)["state"]
            if now == DONE:
                self.waiting.remove(job)
            elif now == RUNNING:  # by a process that an earlier starter left
                self.waiting.remove(job)
                self.running[job.name] = (job, free.pop(), None)
                self.say(f"{job.name}: runs already, waiting for it")
            elif all(read_state(self.experiment, self.experiment.job(need))["state"] == DONE for need in job.needs):
                self.waiting.remove(job)
                self._start(job, min(free))
                started = True
        return started or bool(self.running)

    def _start(self, job: Job, slot: int) -> None:
        environment, share = dict(os.environ), self._cores_of(slot)
        if job.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.slots[slot][: job.gpus])
        if share:
            environment.setdefault("OMP_NUM_THREADS", str(len(share)))
            environment.setdefault("nnUNet_n_proc_DA", str(min(12, len(share))))
        process = subprocess.Popen(
            [sys.executable, "-m", "braintum.experiments.job_run", str(self.experiment.folder), job.name],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        if share:
            with suppress(OSError):
                os.sched_setaffinity(process.pid, share)
        self.running[job.name] = (job, slot, process)
        self.say(f"{job.name}: started")

    def _cores_of(self, slot: int) -> list[int]:
        """A job's share of the cores: nnU-Net starts as many threads as it sees."""
        return self.cores[slot :: self.at_once] if len(self.cores) >= self.at_once else []

    def _end_finished(self) -> None:
        for name, (job, _, process) in list(self.running.items()):
            if process is not None and process.poll() is None:
                continue
            state = read_state(self.experiment, job)
            if process is None and state["state"] == RUNNING:
                continue
            if state["state"] == "lost":  # written down, so that it is told from a job that waits
                update_state(self.experiment, job, state="failed", reason=state["reason"])
            del self.running[name]
            self.say(f"{name}: {state['state']}" + (f", {state['reason']}" if state.get("reason") else ""))


def ask_once(question: str) -> bool:
    """The answer to a question at the terminal; yes where there is none."""
    if not sys.stdin.isatty():
        return True
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return input(f"\n{question} [y/N] ").strip().lower().startswith("y")
    except (EOFError, KeyboardInterrupt):
        return True
    finally:
        signal.signal(signal.SIGINT, previous)
