"""Experiments on this machine: what is done stays, what was interrupted goes on, and the state files tell."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from experiment_runs import epochs_begun, finals, make_experiment, wait_until

from braintum.experiments.cli import run
from braintum.experiments.jobs import Experiment
from braintum.experiments.state import only_starter, read_state, states


def start(experiment: Experiment, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "braintum.experiments.cli", "retry", str(experiment.folder), *options]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_whole_experiment_and_the_same_command_again(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    experiment = make_experiment(tmp_path / "run", {"a": "plain", "b": "memory"}, epochs=2, seconds=0.01)
    assert run(["retry", str(experiment.folder), "--at-once", "2"]) == 3
    printed = capsys.readouterr().out
    assert "b: failed, out of GPU memory: plan with a smaller -gpu_memory_target" in printed
    found = states(experiment)
    assert {name: state["state"] for name, state in found.items()} == {
        "prepare": "done",
        "a": "done",
        "b": "failed",
        "evaluate": "waiting",
    }
    assert found["a"]["record"]["versions"]["braintum"] and found["a"]["attempts"][0]["outcome"] == "done"
    final = tmp_path / "models" / "a" / "checkpoint_final.pth"
    before = final.stat().st_mtime_ns

    (tmp_path / "training.py").write_text((tmp_path / "training.py").read_text().replace('"memory"', '"no more"'))
    assert run(["retry", str(experiment.folder)]) == 0
    printed = capsys.readouterr().out
    assert "4 jobs: 2 are done, 2 to run" in printed and "again: b (failed: out of GPU memory" in printed
    assert final.stat().st_mtime_ns == before
    assert (tmp_path / "order.txt").read_text() == "prepare\nevaluate\n"

    assert run(["retry", str(experiment.folder)]) == 0
    assert "4 jobs: 4 are done, 0 to run" in capsys.readouterr().out
    assert (tmp_path / "order.txt").read_text() == "prepare\nevaluate\n"
    assert run(["status", str(experiment.folder)]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("a "))
    assert row.split()[:4] == ["a", "done", "1", "2/2"] and "loss -0.5, val -0.4, Dice 0.7" in row


@pytest.mark.slow
def test_killed_jobs_and_a_killed_starter_end_as_an_undisturbed_run(tmp_path: Path) -> None:
    for name in ("undisturbed", "disturbed"):
        (tmp_path / name).mkdir()
    undisturbed = make_experiment(tmp_path / "undisturbed" / "run", {"a": "often", "b": "often"}, seconds=0.01)
    assert run(["retry", str(undisturbed.folder), "--at-once", "2"]) == 0
    disturbed = make_experiment(tmp_path / "disturbed" / "run", {"a": "often", "b": "often"})
    starter = start(disturbed, "--at-once", "2")
    wait_until(lambda: epochs_begun(disturbed, "a") and epochs_begun(disturbed, "b"))
    starter.kill()
    starter.wait()
    attempt = read_state(disturbed, disturbed.job("a"))["attempts"][-1]
    os.kill(attempt["pid"], signal.SIGKILL)  # the job, whose training goes on alone
    wait_until(lambda: read_state(disturbed, disturbed.job("a"))["state"] != "running")
    assert run(["retry", str(disturbed.folder), "--at-once", "2"]) == 0
    assert finals(disturbed) == finals(undisturbed) and len(finals(disturbed)) == 2
    assert len(read_state(disturbed, disturbed.job("b"))["attempts"]) == 1  # it was waited for


@pytest.mark.slow
def test_interrupted_starter_leaves_checkpoints(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "run", {"a": "plain"}, epochs=5)
    starter = start(experiment)
    wait_until(lambda: epochs_begun(experiment, "a"))
    starter.send_signal(signal.SIGINT)  # asks nobody: there is no terminal
    assert starter.wait(180) == 130
    assert read_state(experiment, experiment.job("a"))["state"] == "interrupted"
    assert (tmp_path / "models" / "a" / "checkpoint_latest.pth").is_file()
    assert run(["retry", str(experiment.folder)]) == 0
    assert epochs_begun(experiment, "a") == 5 and finals(experiment)["a"]["epoch"] == 5


@pytest.mark.slow
def test_cancel(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    experiment = make_experiment(tmp_path / "run", {"a": "plain", "b": "plain"}, epochs=50)
    starter = start(experiment)
    wait_until(lambda: epochs_begun(experiment, "a"))
    assert run(["cancel", str(experiment.folder)]) == 0
    assert "a: asked to stop\nb: cancelled" in capsys.readouterr().out
    assert starter.wait(180) == 3
    assert {states(experiment)[name]["state"] for name in ("a", "b", "evaluate")} == {"cancelled"}


def test_only_one_starts(tmp_path: Path) -> None:
    experiment = make_experiment(tmp_path / "run", {"a": "plain"})
    with only_starter(experiment.folder), pytest.raises(OSError, match="is at it"):
        run(["retry", str(experiment.folder)])


def test_logs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    experiment = make_experiment(tmp_path / "run", {"a": "plain"})
    experiment.file_of("a", ".log").write_text("first\nlast\n")
    assert run(["logs", str(experiment.folder), "--jobs", "a", "--lines", "1"]) == 0
    assert "last" in (printed := capsys.readouterr().out) and "first" not in printed
    with pytest.raises(ValueError, match="has no job c; choose from prepare, a, evaluate"):
        run(["logs", str(experiment.folder), "--jobs", "c"])
