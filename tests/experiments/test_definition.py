"""Experiment files and flags: what they make, and how what is wrong with them is told."""

import json
from pathlib import Path

import pytest

from braintum.experiments.cli import run
from braintum.experiments.definition import Definition, read_definition
from braintum.experiments.diagnosis import diagnosis
from braintum.experiments.jobs import training_experiment
from braintum.experiments.prepare import missing
from braintum.experiments.progress import read_progress

FILE = """
name: two-trainers
datasets: [7]
trainers: [nnUNetTrainerMultiTask, nnUNetTrainer]
folds: [0, 1, fold_all]
variables:
  braintum_num_epochs: 100
slurm:
  partition: gpu
  time: 600
"""


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("datasets: [7]\nfolds: [0, -1]\n", r"line 2: \$\.folds\[1\]"),
        ("datasets: [7]\nslurm:\n  time: soon\n", r"line 3: \$\.slurm\.time: 'soon' is not of type 'integer'"),
        ("datasets: [7]\n\ntrainer: a\n", r"line 3: .*'trainer' was unexpected"),
        ("datasets: [7\n", r"line 2: no YAML"),
        ("trainers: [a]\n", r"'datasets' is a required property"),
        ("7\n", r"7 is not of type 'object'"),
    ],
)
def test_a_wrong_file_names_the_line(tmp_path: Path, wrong: str, message: str) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(wrong)
    with pytest.raises(ValueError, match=message):
        read_definition(file)


def dataset(nnunet_folders) -> Path:
    (nnunet_folders.raw / "Dataset007_Tiny").mkdir()
    folder = nnunet_folders.preprocessed / "Dataset007_Tiny"
    folder.mkdir()
    return folder


def test_jobs(nnunet_folders, tmp_path: Path) -> None:
    dataset(nnunet_folders)
    file = tmp_path / "experiment.yaml"
    file.write_text(FILE)
    experiment = training_experiment(Definition.from_content(read_definition(file)))
    assert experiment.folder == nnunet_folders.results / "experiments" / "two-trainers"
    names = [job.name for job in experiment.jobs]
    assert names[0] == "prepare-Dataset007_Tiny" and names[-1] == "evaluate-Dataset007_Tiny" and len(names) == 2 + 2 * 3
    last = experiment.job("Dataset007_Tiny-2d-nnUNetTrainer-all")
    assert last.commands[0][1:4] == ["Dataset007_Tiny", "2d", "all"] and last.variables["braintum_num_epochs"] == "100"
    assert last.leaves[0].endswith("nnUNetTrainer__BrainTumPlans__2d/fold_all/checkpoint_final.pth")
    evaluation, *reports = experiment.jobs[-1].commands
    assert evaluation[evaluation.index("-f") + 1 :][:2] == ["0", "1"] and len(reports) == 2
    assert experiment.slurm["time"] == 600 and experiment.slurm["mem"] == "32G"


def test_dry_run_starts_nothing(nnunet_folders, capsys: pytest.CaptureFixture) -> None:
    folder = dataset(nnunet_folders)
    plans = {"braintum_decisions": {"2d": {"memory": "8 GB"}}}
    (folder / "BrainTumPlans.json").write_text(json.dumps(plans))
    fold = nnunet_folders.results / "Dataset007_Tiny" / "nnUNetTrainerMultiTask__BrainTumPlans__2d" / "fold_3"
    fold.mkdir(parents=True)
    (fold / "training_log_1.txt").write_text("Epoch 0\nEpoch time: 36.0 s\n")
    (fold / "debug.json").write_text('{"num_epochs": "1000"}')
    assert run(["-d", "7", "--dry-run", "--folds", "0", "1"]) == 0
    printed = capsys.readouterr().out
    row = next(line for line in printed.splitlines() if line.startswith("Dataset007_Tiny-2d"))
    assert row.split()[1:4] == ["10:00:00", "8", "GB"] and "4 jobs would run" in printed
    assert not (nnunet_folders.results / "experiments").exists()


def test_other_settings_under_the_same_name_are_refused(nnunet_folders, tmp_path: Path) -> None:
    dataset(nnunet_folders)
    file = tmp_path / "experiment.yaml"
    file.write_text(FILE)
    training_experiment(Definition.from_content(read_definition(file))).save()
    file.write_text(FILE.replace("100", "200"))
    with pytest.raises(ValueError, match=r"other settings \(variables: \{'braintum_num_epochs': 100\}\)"):
        run(["-e", str(file), "--dry-run"])
    assert run(["-e", str(file), "--dry-run", "--name", "longer"]) == 0


def test_what_is_missing_of_a_data_set(tmp_path: Path) -> None:
    assert missing(tmp_path, "Plans", ["2d", "3d"]) == ["2d", "3d", "splits"]
    configurations = {"2d": {"data_identifier": "a"}, "3d": {"inherits_from": "2d"}, "other": {"data_identifier": "b"}}
    (tmp_path / "Plans.json").write_text(json.dumps({"configurations": configurations}))
    (tmp_path / "a").mkdir()
    assert missing(tmp_path, "Plans", ["2d", "3d", "other"]) == ["other", "splits"]
    (tmp_path / "splits_final.json").touch()
    assert missing(tmp_path, "Plans", ["3d"]) == []
    (tmp_path / ".preprocessing-unfinished").touch()
    assert missing(tmp_path, "Plans", ["3d"]) == ["3d"]
    with pytest.raises(ValueError, match="has no configuration 4d; choose from 2d, 3d, other"):
        missing(tmp_path, "Plans", ["4d"])


@pytest.mark.parametrize(
    ("code", "text", "start"),
    [
        (1, "Traceback\ntorch.OutOfMemoryError: CUDA out of memory. Tried", "out of GPU memory"),
        (1, "RuntimeError: One or more background workers are no longer alive", "out of memory of the machine"),
        (1, "OSError: [Errno 28] No space left on device", "the disk is full"),
        (1, "error: a/cases.csv line 3: no class; fill it in", "bad data or settings: correct what the message names"),
        (-9, "Epoch 3", "killed from outside"),
        (-11, "Epoch 3", "signal SIGSEGV: Epoch 3"),
        (4, "", "exit code 4: it said nothing"),
    ],
)
def test_diagnosis(code: int, text: str, start: str) -> None:
    assert diagnosis(code, text).startswith(start)


def test_progress_of_nnunets_log(nnunet_folders) -> None:
    dataset(nnunet_folders)
    job = training_experiment(Definition.from_content({"datasets": [7], "folds": [0]})).jobs[1]
    assert read_progress(job) is None
    folder = Path(job.fold_folder)
    folder.mkdir(parents=True)
    (folder / "debug.json").write_text('{"num_epochs": "20"}')
    (folder / "training_log_2026.txt").write_text(
        "2026-01-01 10:00:00.1: Epoch 4 \n"
        "2026-01-01 10:00:00.2: Current learning rate: 0.01 \n"
        "2026-01-01 10:01:00.2: train_loss -0.7012 \n"
        "2026-01-01 10:01:00.2: val_loss -0.6 \n"
        "2026-01-01 10:01:00.2: Pseudo dice [np.float32(0.8123)] \n"
        "2026-01-01 10:01:00.2: Epoch time: 60.5 s \n"
        "2026-01-01 10:01:00.3: Epoch 5 \n"
    )
    progress = read_progress(job)
    assert progress is not None
    assert (progress.epoch, progress.num_epochs, progress.seconds, progress.seconds_left) == (5, 20, 60.5, 60.5 * 15)
    assert progress.metrics == "loss -0.7012, val -0.6, Dice 0.8123"
