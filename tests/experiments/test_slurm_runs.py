"""Experiments on a real SLURM of one machine, which the test starts; skipped where it is not installed."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from experiment_runs import epochs_begun, finals, make_experiment, wait_until
from slurm_cluster import missing_programs, slurm_cluster

from braintum.experiments import slurm
from braintum.experiments.jobs import Experiment
from braintum.experiments.state import State, read_state, states

pytest.importorskip("submitit")
if why := missing_programs():
    pytest.skip(why, allow_module_level=True)

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a command where SLURM is."""
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))
    try:
        with slurm_cluster(folder) as environment:

            def command(*arguments: str) -> subprocess.CompletedProcess[str]:
                return subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)

            yield command
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def braintum_run(run: Run, *arguments: str) -> str:
    done = run(sys.executable, "-m", "braintum.experiments.cli", *arguments)
    assert done.returncode in (0, 3), done.stderr
    return done.stdout


def state_of(experiment: Experiment, name: str) -> State:
    return read_state(experiment, experiment.job(name))


def ended(experiment: Experiment, *names: str) -> Callable[[], bool]:
    return lambda: all(state_of(experiment, name)["state"] in ("done", "failed") for name in names)


@pytest.mark.slow
def test_interrupted_killed_and_failed_jobs(tmp_path: Path, run: Run) -> None:
    modes = {"a": "plain", "b": "often", "c": "memory", "d": "plain"}
    experiment = make_experiment(
        tmp_path / "run", modes, epochs=12, seconds=0.5, time=5, mem="100M", cpus=1, stop_seconds=30
    )
    assert "6 jobs submitted" in braintum_run(run, "retry", str(experiment.folder), "--on", "slurm")
    assert "0 to run" in braintum_run(run, "retry", str(experiment.folder), "--on", "slurm")  # they wait or run
    wait_until(lambda: all(epochs_begun(experiment, name) for name in "ab"))
    number = state_of(experiment, "a")["slurm_id"]
    run("scancel", "--signal=USR2", number)  # as before a time limit
    os.kill(state_of(experiment, "b")["attempts"][-1]["pid"], signal.SIGKILL)
    wait_until(lambda: state_of(experiment, "a")["state"] == "interrupted")
    assert (tmp_path / "models" / "a" / "checkpoint_latest.pth").is_file()

    wait_until(lambda: "Reason=BeginTime" in run("scontrol", "show", "job", number).stdout)
    assert "BeginTime" in braintum_run(run, "status", str(experiment.folder))
    wait_until(ended(experiment, "c", "d"))
    assert state_of(experiment, "c")["reason"].startswith("out of GPU memory")
    assert state_of(experiment, "b")["state"] == "lost"
    (tmp_path / "training.py").write_text((tmp_path / "training.py").read_text().replace('"memory"', '"no more"'))
    # the evaluation waits for trainings of both commands
    assert "3 jobs submitted" in braintum_run(run, "retry", str(experiment.folder), "--on", "slurm")
    wait_until(ended(experiment, "b", "c"))
    assert state_of(experiment, "evaluate")["state"] == "submitted"
    run("scontrol", "update", f"JobId={number}", "StartTime=now")  # SLURM waits for two minutes
    wait_until(ended(experiment, "a", "evaluate"))
    assert [turn["outcome"] for turn in state_of(experiment, "a")["attempts"]] == ["interrupted", "done"]
    assert {state["state"] for state in states(experiment).values()} == {"done"}
    assert (tmp_path / "order.txt").read_text() == "prepare\nevaluate\n"
    undisturbed = pow(31, 12, 1009)
    assert finals(experiment) == {name: {"epoch": 12, "value": undisturbed} for name in modes}


@pytest.mark.slow
def test_cancel(tmp_path: Path, run: Run) -> None:
    experiment = make_experiment(
        tmp_path / "run", {"a": "plain"}, epochs=500, time=5, mem="100M", cpus=1, stop_seconds=30
    )
    braintum_run(run, "retry", str(experiment.folder), "--on", "slurm")
    wait_until(lambda: epochs_begun(experiment, "a"))
    assert "a: asked to stop\nevaluate: cancelled" in braintum_run(run, "cancel", str(experiment.folder))
    wait_until(lambda: state_of(experiment, "a")["state"] == "cancelled")
    wait_until(lambda: not run("squeue", "-h").stdout.strip())


@pytest.mark.thorough
@pytest.mark.skipif(os.environ.get("BRAINTUM_SLURM_LIMIT") != "1", reason="takes five minutes: BRAINTUM_SLURM_LIMIT=1")
def test_time_limit(tmp_path: Path, run: Run) -> None:
    """As SLURM does it by itself: it warns up to a minute early, and waits for two and a half before the next turn."""
    experiment = make_experiment(
        tmp_path / "run", {"a": "plain"}, epochs=60, seconds=2, time=2, mem="100M", cpus=1, stop_seconds=30
    )
    braintum_run(run, "retry", str(experiment.folder), "--on", "slurm")
    wait_until(ended(experiment, "a"), 900)
    attempts = state_of(experiment, "a")["attempts"]
    assert attempts[-1]["outcome"] == "done" and {turn["outcome"] for turn in attempts[:-1]} == {"interrupted"}
    assert epochs_begun(experiment, "a") == 60  # none was done twice


def test_a_time_limit_below_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = make_experiment(tmp_path / "run", {"a": "plain"})
    job = slurm.SlurmJob(experiment.folder, "a")
    turns = [{"outcome": "interrupted", "epoch": 3}, {"outcome": "interrupted", "epoch": 3}]
    slurm.update_state(experiment, experiment.job("a"), state="interrupted", attempts=turns)
    run = job._run = slurm.JobRun(experiment, "a")
    monkeypatch.setattr(run, "wait", lambda: None)
    assert job.checkpoint() is None
    assert state_of(experiment, "a")["reason"].startswith("out of time: it gets no further within the time limit")
    turns[1]["epoch"] = 4
    slurm.update_state(experiment, experiment.job("a"), state="interrupted", attempts=turns)
    assert job.checkpoint() is not None
