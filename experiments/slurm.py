"""Jobs on a SLURM cluster, through submitit: arrays of jobs, requeued where a time limit or another job ends them.

SLURM asks a job to end some minutes before its limit (SIGUSR2), and where another takes its place (SIGTERM). The job
makes its training write a checkpoint and goes back into the queue.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from braintum.experiments.job_run import JobRun
from braintum.experiments.jobs import Experiment, Job
from braintum.experiments.state import (
    DONE,
    FAILED,
    INTERRUPTED,
    RUNNING,
    SUBMITTED,
    State,
    stored_state,
    update_state,
)

_MOST_TURNS = 1000


class SlurmJob:
    """What submitit pickles and calls on the compute node.

    Args:
        folder: of the experiment.
        name: of the job.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._run: JobRun | None = None

    def __call__(self) -> str:
        """Run the job."""
        run = self._run = JobRun(Experiment.load(self.folder), self.name)
        signal.signal(signal.SIGTERM, lambda *_: run.request_stop())
        outcome = run.run()
        if outcome == INTERRUPTED:  # in favour of another job; SLURM requeues only what it has to end itself
            _requeue()
        return outcome

    def checkpoint(self) -> Any:
        """Called before the time limit: end, and tell submitit to queue the job again, unless that would be in vain."""
        import submitit

        again = submitit.helpers.DelayedSubmission(SlurmJob(self.folder, self.name))
        run = self._run
        if run is None:
            return again
        run.request_stop()
        run.wait()
        state = stored_state(run.experiment, run.job)
        if state["state"] != INTERRUPTED:
            return None
        turns = [turn.get("epoch") for turn in state["attempts"] if turn.get("outcome") == INTERRUPTED]
        if len(turns) > 1 and (not run.job.resumes or (turns[-1] is not None and turns[-1] == turns[-2])):
            reason = (
                "out of time: it gets no further within the time limit; raise --time, and stop_seconds above an epoch"
            )
            update_state(run.experiment, run.job, state=FAILED, reason=reason)
            return None
        return again


def _requeue() -> None:
    number, array = os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_ARRAY_JOB_ID")
    if array:
        number = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    subprocess.run(["scontrol", "requeue", number], check=False)


def submit(experiment: Experiment, names: list[str], queued: dict[str, str]) -> dict[str, str]:
    """Submit jobs, those that need one another in turn; the number of each in SLURM.

    Args:
        experiment: whose jobs.
        names: of those that are to run.
        queued: numbers of jobs that wait or run already. Those that wait for one that is to run are submitted anew.

    Raises:
        ValueError: submitit or SLURM is missing, or SLURM refuses what is asked of it.
    """
    try:
        import submitit
    except ImportError as error:
        raise ValueError("--on slurm needs submitit: pip install braintum[slurm]") from error
    if shutil.which("sbatch") is None:
        raise ValueError("no sbatch here: run this on a machine that submits to SLURM, or with --on local")
    asked = experiment.slurm
    executor = submitit.SlurmExecutor(experiment.folder / "slurm", max_num_timeout=_MOST_TURNS)
    todo = [job for job in experiment.jobs if job.name in names]
    anew = [job for job in experiment.jobs if job.name in queued and set(job.needs) & set(names)]
    cancel_in_queue([queued[job.name] for job in anew])
    todo += anew
    numbers: dict[str, str] = {}
    while todo:
        level = [job for job in todo if not {need.name for need in todo} & set(job.needs)]
        for gpus in sorted({job.gpus for job in level}):
            batch = [job for job in level if job.gpus == gpus]
            known = {**queued, **numbers}
            before = sorted({known[need].split("_")[0] for job in batch for need in job.needs if need in known})
            executor.update_parameters(**_parameters(asked, gpus, batch[0], before))
            try:
                with executor.batch():
                    made = [executor.submit(SlurmJob(experiment.folder, job.name)) for job in batch]
            except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
                raise ValueError(f"SLURM refuses the jobs: {error}; correct what it names") from error
            for job, submission in zip(batch, made, strict=True):
                numbers[job.name] = str(submission.job_id)
                update_state(experiment, job, state=SUBMITTED, slurm_id=numbers[job.name], reason="")
        todo = [job for job in todo if job not in level]
    return numbers


def _parameters(asked: dict[str, Any], gpus: int, job: Job, before: list[str]) -> dict[str, Any]:
    """Of ``sbatch``, as submitit names them."""
    options = {**asked["options"], "requeue": True}
    return {
        "job_name": "braintum",
        "time": asked["time"],
        "mem": asked["mem"],
        "cpus_per_task": asked["cpus"],
        "signal_delay_s": asked["stop_seconds"],
        "array_parallelism": asked["at_once"],
        "stderr_to_stdout": True,
        "setup": asked["setup"] or None,
        "partition": asked["partition"],
        "gpus_per_node": gpus or None,
        "dependency": f"afterany:{':'.join(before)}" if before else None,
        "additional_parameters": options,
    }


def in_queue(numbers: list[str]) -> dict[str, str]:
    """Number → why it waits (or that it runs), of the jobs that SLURM still knows as unfinished."""
    if not numbers or shutil.which("squeue") is None:
        return {}
    arrays = ",".join(sorted({number.split("_")[0] for number in numbers}))
    query = ["squeue", "--noheader", "--array", "--jobs", arrays, "--format", "%F|%K|%T|%r"]
    found = {}
    for line in subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines():
        array, index, state, reason = line.split("|", 3)
        number = array if index == "N/A" else f"{array}_{index}"
        if state in ("PENDING", "REQUEUED", "SUSPENDED", "CONFIGURING", "RUNNING", "COMPLETING"):
            found[number] = state.lower() if reason == "None" else f"{state.lower()}: {reason}"
    return found


def with_queue(found: dict[str, State]) -> dict[str, State]:
    """States, completed by what SLURM says of jobs that neither run nor ended."""
    numbers = [str(state["slurm_id"]) for state in found.values() if "slurm_id" in state and state["state"] != DONE]
    queue = in_queue(numbers)
    completed = dict(found)
    for name, state in found.items():
        if state["state"] in (DONE, RUNNING) or "slurm_id" not in state:
            continue
        if (waits := queue.get(str(state["slurm_id"]))) is not None:
            completed[name] = {**state, "state": SUBMITTED, "reason": waits}
        elif state["state"] == SUBMITTED:
            completed[name] = {**state, "state": "lost", "reason": "SLURM does not know it any more; start it again"}
    return completed


def cancel_in_queue(numbers: list[str]) -> None:
    """Take jobs out of the queue, or end them."""
    if numbers:
        subprocess.run(["scancel", *numbers], check=False)
