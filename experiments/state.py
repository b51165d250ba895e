"""State files: what became of each job. They can be read without a scheduler, and without who started the jobs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from braintum.conversion.files.atomic import write_json_atomic
from braintum.conversion.files.json_files import read_json_object
from braintum.conversion.files.lease import holder_of, leased
from braintum.experiments.jobs import JOBS_FOLDER, Experiment, Job

WAITING, SUBMITTED, RUNNING = "waiting", "submitted", "running"
INTERRUPTED, FAILED, CANCELLED, DONE = "interrupted", "failed", "cancelled", "done"
LOST = "lost"
"""Its state says that it runs, but no process does; never written."""

State = dict[str, Any]
"""``state``, ``reason``, ``attempts`` (each with ``started``, ``ended``, ``host``, ``outcome``), ``slurm_id``."""


def read_state(experiment: Experiment, job: Job) -> State:
    """State of a job, as it is: what it leaves counts, where somebody else made it, too, and a holder of its lease."""
    state = stored_state(experiment, job)
    there = all(os.path.isfile(path) for path in job.leaves)
    if state["state"] == DONE:
        return state if there else {**state, "state": WAITING, "reason": "what it had left is gone"}
    if job.leaves and there and not state.get("attempts"):
        return {**state, "state": DONE, "reason": ""}
    holder = holder_of(experiment.folder / JOBS_FOLDER, job.name)
    if holder is not None:
        return {**state, "state": RUNNING}
    if state["state"] == RUNNING:
        return {**state, "state": LOST, "reason": "its process is no more, and could not say why"}
    return state


def stored_state(experiment: Experiment, job: Job) -> State:
    """What a job's state file says."""
    file = experiment.file_of(job.name, ".json")
    return read_json_object(file, "delete it: the job starts again") if file.is_file() else {"state": WAITING}


def update_state(experiment: Experiment, job: Job, **changes: Any) -> None:
    """Change entries of a job's state file."""
    state = stored_state(experiment, job) | changes
    write_json_atomic(experiment.file_of(job.name, ".json"), state, durable=False)


def states(experiment: Experiment) -> dict[str, State]:
    """State of every job by its name; what needs a job that is not done is not done either."""
    found: dict[str, State] = {}
    for job in experiment.jobs:
        state = read_state(experiment, job)
        if state["state"] == DONE and not job.leaves and any(found[need]["state"] != DONE for need in job.needs):
            state = {**state, "state": WAITING, "reason": "something that it needs is done anew"}
        found[job.name] = state
    return found


@contextmanager
def only_starter(folder: Path) -> Iterator[None]:
    """Within the block, no other process starts jobs of the experiment.

    Raises:
        LeasedError: another does.
    """
    with leased(folder, "start", wait=False):
        yield
