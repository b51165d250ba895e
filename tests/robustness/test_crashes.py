"""What a killed process leaves is never taken for complete, and the same command finishes the work.

benchmarks/robustness/fault_injection.py kills whole process groups at random moments; here they die at the moments
that matter: just before a file takes its name.
"""

import contextlib
import errno
import io
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from crash_tools import copy_or_die, killed_before, preprocess_or_die, start, visible_files, wait
from nnunet_runs import make_trainer, plan_and_preprocess, write_dataset
from tiny_training import write_preprocessed
from torch import nn
from trainer_steps import hand_over

from braintum.commands.command import run_command
from braintum.conversion.building import raw_dataset
from braintum.conversion.building.raw_dataset import ConversionRequest, RawDataset
from braintum.conversion.cli import main as convert
from braintum.conversion.files import disk
from braintum.conversion.files.atomic import atomic_path, remove_partial_files, write_json_atomic
from braintum.conversion.files.disk import UnwritableFolderError, explain_unwritable
from braintum.conversion.files.lease import leased
from braintum.conversion.files.parallel import run_cases
from braintum.conversion.format.cases import Case
from braintum.conversion.sources.phantoms import write_figshare_phantoms
from braintum.inference import predict_folder as predict_folder_module
from braintum.inference.predict_folder import PredictedFolder, predict_folder
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.trainers.safety.crash_safety import complete_or_absent

NUMBERS = ("train_losses", "val_losses", "class_macro_f1", "ema_joint_score", "mean_fg_dice", "ema_fg_dice")


def full_disk(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ------------------------------------------------------------------ conversion


def conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: str) -> Callable[[], int]:
    if not (tmp_path / "source").is_dir():
        write_figshare_phantoms(tmp_path / "source", n_patients=5, slices_per_patient=1, size=64)
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / raw))
    return lambda: convert(["figshare", str(tmp_path / "source"), "-d", "7", "-np", "1"])


@pytest.mark.parametrize(
    ("name", "number"),
    [("conversion_in_progress.json", 1), ("*.nii.gz", 6), ("splits_final.json", 1), ("dataset.json", 1)],
)
def test_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    assert conversion(tmp_path, monkeypatch, "whole")() == 0
    expected = visible_files(tmp_path / "whole")
    run = conversion(tmp_path, monkeypatch, "killed")
    killed_before(name, number, run)
    left = visible_files(tmp_path / "killed")
    left.pop("Dataset007_Figshare/conversion_in_progress.json", None)
    assert left.items() <= expected.items() and "Dataset007_Figshare/dataset.json" not in left
    assert run() == 0
    assert visible_files(tmp_path / "killed") == expected
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


@pytest.mark.parametrize("step", [0, 1])
def test_replacement_killed_while_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    request = ConversionRequest(tmp_path, tmp_path / "raw", 7, "New", overwrite=True)
    folder = request.raw_folder / request.dataset_name

    def write(text: str) -> None:
        dataset = RawDataset.open(request, "test")
        dataset.begin([Case("a")])
        for path in (dataset.image_path(Case("a")), dataset.label_path(Case("a"))):
            path.write_text(text)
        dataset.finish([Case("a")], [], {})

    class Killed(BaseException):
        pass

    renames: list[Path] = []
    rename = Path.rename

    def rename_or_die(self: Path, target: Path) -> Path:
        renames.append(self)
        if len(renames) == step + 1:
            raise Killed
        return rename(self, target)

    write("old")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename_or_die)
        with pytest.raises(Killed):
            write("new")
    assert (folder / "dataset.json").is_file() == (step == 0)  # the old one, or none
    write("new")
    assert (folder / "imagesTr" / "a_0000.nii.gz").read_text() == "new"
    assert [path.name for path in request.raw_folder.iterdir()] == [folder.name]
    assert not (folder / raw_dataset.STATE_FILE).exists()


def test_conversion_beyond_the_limit_of_file_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, message = conversion(tmp_path, monkeypatch, "raw"), tmp_path / "message"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
        with contextlib.redirect_stderr(io.StringIO()) as printed:
            code = run()
        message.write_text(printed.getvalue().splitlines()[-1])
        os._exit(code)

    assert wait(start(limited)) == 1
    last = message.read_text()
    assert last.startswith("error: ") and "ulimit -f" in last and "repeat the command to go on" in last
    assert run() == 0


@pytest.mark.slow
def test_killed_worker(tmp_path: Path) -> None:
    sources = [tmp_path / f"source_{number}" for number in range(8)] + [tmp_path / "fatal"]
    for number, source in enumerate(sources):
        source.write_text(str(number))
    tasks = [(source, source.with_suffix(".copy")) for source in sources]
    with pytest.raises(OSError, match=r"a worker process was killed, .*what is done is kept, repeat .*\(-np 1\)"):
        run_cases(copy_or_die, tasks, 2, "copying", show_progress=False)
    assert all(target.read_text() == source.read_text() for source, target in tasks if target.exists())


# ------------------------------------------------------------------ preprocessing


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("case_02.pkl", 1), ("case_03_seg.b2nd", 1)])
def test_preprocessing(nnunet_folders: Any, tmp_path: Path, name: str, number: int) -> None:
    write_dataset(nnunet_folders.raw, 7, num_cases=4)
    folder = nnunet_folders.preprocessed / "Dataset007_Tiny"
    plan_and_preprocess(7)
    expected = visible_files(folder)
    killed_before(name, number, lambda: plan_and_preprocess(7))
    left = visible_files(folder)
    assert left.items() <= expected.items()
    assert not [file for file in left if file.endswith(".b2nd")]  # a training finds no folder, not half of one
    plan_and_preprocess(7)
    assert visible_files(folder) == expected
    assert [path.name for path in folder.glob(".*")] == [".BrainTumLightPlans_2d-preprocessing.json"]


@pytest.mark.slow
def test_preprocessing_goes_on_where_it_stopped(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_dataset(nnunet_folders.raw, 7, num_cases=4)
    building = nnunet_folders.preprocessed / "Dataset007_Tiny" / ".partial-BrainTumLightPlans_2d"
    killed_before("case_02.pkl", 1, lambda: plan_and_preprocess(7))
    first = building / "case_00.pkl"
    before = first.stat().st_mtime_ns
    killed_before("case_03.pkl", 1, lambda: plan_and_preprocess(7))
    assert first.stat().st_mtime_ns == before and (building / "case_02.pkl").is_file()
    os.utime(raw / "labelsTr" / "case_01.nii.gz")  # other data: nothing of it counts any more
    killed_before("case_03.pkl", 1, lambda: plan_and_preprocess(7))
    assert first.stat().st_mtime_ns != before


# ------------------------------------------------------------------ training


@pytest.fixture
def training(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Trains a tiny network for three epochs, with a seed and a checkpoint every epoch."""
    for variable, value in {"num_epochs": "3", "num_iterations_per_epoch": "2", "seed": "3"}.items():
        monkeypatch.setenv(f"braintum_{variable}", value)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes that are killed: sums depend on it
    dataset = write_preprocessed(nnunet_folders.preprocessed, "2d")
    folder = nnunet_folders.preprocessed / "Dataset007_Tiny"
    (folder / "TinyPlans.json").write_text(json.dumps(dataset.plans))
    (folder / "dataset.json").write_text(json.dumps(dataset.dataset_json))

    def run(results: Path, resume: bool = False, fold: int = 0) -> None:
        results.mkdir(exist_ok=True)
        monkeypatch.setenv("nnUNet_results", str(results))
        trainer = make_trainer(7, "TinyPlans", resume=resume, fold=fold)
        trainer.save_every = 1
        trainer.run_training()

    yield run
    torch.set_num_threads(threads)


def check_same_models(found: Path, expected: Path) -> None:
    """All checkpoints of two nnUNet_results hold the same weights and numbers."""
    files = {file.relative_to(expected) for file in expected.rglob("checkpoint_*")}
    assert {file.relative_to(found) for file in found.rglob("checkpoint_*")} == files
    for file in files:
        checkpoint, wanted = (torch.load(root / file, weights_only=True) for root in (found, expected))
        assert checkpoint["current_epoch"] == wanted["current_epoch"]
        assert all(checkpoint["logging"][key] == wanted["logging"][key] for key in NUMBERS)
        weights = checkpoint["network_weights"]
        assert all(torch.equal(tensor, weights[key]) for key, tensor in wanted["network_weights"].items())


@pytest.mark.slow
def test_training(training: Callable[..., None], tmp_path: Path) -> None:
    training(tmp_path / "whole")
    # between the latest checkpoint and the best ones of the first epoch, within a later epoch, and at the very end
    for name, number in (("checkpoint_best.pth", 1), ("checkpoint_latest.pth", 2), ("checkpoint_final.pth", 1)):
        results = tmp_path / f"{name}_{number}"
        killed_before(name, number, lambda results=results: training(results))
        training(results, resume=True)
        check_same_models(results, tmp_path / "whole")


@pytest.mark.slow
def test_two_trainings_at_once(training: Callable[..., None], tmp_path: Path) -> None:
    for fold in range(2):
        training(tmp_path / "sequential", fold=fold)
    processes = [start(lambda fold=fold: training(tmp_path / "at_once", fold=fold)) for fold in range(2)]
    assert [wait(process) for process in processes] == [0, 0]
    check_same_models(tmp_path / "at_once", tmp_path / "sequential")


def test_splits_that_nnunet_makes(training: Callable[..., None], nnunet_folders: Any, tmp_path: Path) -> None:
    splits = nnunet_folders.preprocessed / "Dataset007_Tiny" / "splits_final.json"
    splits.unlink()
    killed_before(splits.name, 1, lambda: training(tmp_path / "results"))
    assert not splits.exists()


def test_checkpoint_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "checkpoint_latest.pth"
    file.write_text("old")
    monkeypatch.setattr(disk.os, "fsync", full_disk)
    with (
        pytest.raises(UnwritableFolderError, match="No space left on device; free some space. .*--c to go on"),
        complete_or_absent(str(file), 10) as temporary,
    ):
        Path(temporary).write_text("half")
        raise RuntimeError("PytorchStreamWriter failed writing file")  # what torch makes of it
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]


# ------------------------------------------------------------------ prediction


@pytest.fixture
def prediction(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Predicts four images into a folder, nnU-Net's way; in one thread: MKL hangs in threads of a forked process."""
    monkeypatch.setattr(predict_folder_module, "available_cores", lambda: 1)
    raw = write_dataset(nnunet_folders.raw, 7, num_cases=4)
    dataset = write_preprocessed(nnunet_folders.preprocessed, "2d")
    plans = {**dataset.plans, "foreground_intensity_properties_per_channel": {"0": {}}}
    trainer = replace(dataset, plans=plans).trainer("nnUNetTrainerMultiTask")
    torch.manual_seed(0)
    trainer.initialize()
    for parameter in trainer.network.decoder.parameters():  # so that some foreground is predicted
        nn.init.normal_(parameter, std=0.3)
    empty = JointPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor = hand_over(trainer, empty, [trainer.network.state_dict()])

    def predict(folder: Path, **options: Any) -> PredictedFolder:
        outcome = predict_folder(predictor, raw / "imagesTr", folder, show_progress=False, **options)
        assert not outcome.failed
        return outcome

    return predict


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("case_01.nii.gz", 1), ("case_02.json", 1), ("classes.csv", 1)])
def test_prediction(prediction: Callable[..., Any], tmp_path: Path, name: str, number: int) -> None:
    prediction(tmp_path / "whole")
    expected = visible_files(tmp_path / "whole")
    killed_before(name, number, lambda: prediction(tmp_path / "killed"))
    left = visible_files(tmp_path / "killed")
    assert left.items() <= expected.items() and "classes.csv" not in left
    outcome = prediction(tmp_path / "killed", continue_prediction=True)
    assert len(outcome.skipped) == sum(file.startswith("classes/") for file in left)
    assert visible_files(tmp_path / "killed") == expected


@pytest.mark.slow
@pytest.mark.parametrize("divided", [False, True], ids=["the same cases", "-num_parts"])
def test_two_predictions_into_one_folder(prediction: Callable[..., Any], tmp_path: Path, divided: bool) -> None:
    prediction(tmp_path / "one")
    options = [{"num_parts": 2, "part_id": part} if divided else {} for part in range(2)]
    processes = [start(lambda own=own: prediction(tmp_path / "two", **own)) for own in options]
    assert [wait(process) for process in processes] == [0, 0]
    assert visible_files(tmp_path / "two") == visible_files(tmp_path / "one")


@pytest.mark.slow
def test_prediction_onto_a_full_disk(
    prediction: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    export, exported = predict_folder_module.export_prediction_from_logits, []

    def fails_later(*args: Any, **kwargs: Any) -> None:
        exported.append(args)
        if len(exported) > 1:
            for _ in range(3000):  # exports overlap: the disk is full only when the first case is complete
                if list((tmp_path / "out" / "classes").glob("[!.]*.json")):
                    break
                time.sleep(0.01)
            monkeypatch.setattr(disk.os, "fsync", full_disk)
            raise RuntimeError("sitk::ERROR: Write: Error writing image")
        export(*args, **kwargs)

    monkeypatch.setattr(predict_folder_module, "export_prediction_from_logits", fails_later)
    assert run_command(lambda _: prediction(tmp_path / "out") and 0) == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == [
        f"error: {tmp_path / 'out'}: No space left on device; free some space. The cases predicted so far are kept: go "
        "on with --continue_prediction"
    ]
    monkeypatch.undo()
    outcome = prediction(tmp_path / "out", continue_prediction=True)
    assert len(outcome.skipped) == 1 and outcome.listed == 4


@pytest.mark.slow
def test_killed_worker_of_a_prediction(
    prediction: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prediction(tmp_path / "whole")
    expected = visible_files(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(predict_folder_module, "preprocess_for_all", preprocess_or_die)
        with pytest.raises(OSError, match="a worker process was killed, .* fewer workers: -npp and --continue_pred"):
            prediction(tmp_path / "out", num_workers=1)
    assert visible_files(tmp_path / "out").items() <= expected.items()
    prediction(tmp_path / "out", continue_prediction=True)
    assert visible_files(tmp_path / "out") == expected


# ------------------------------------------------------------------ the helpers


def test_error_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("os.fsync", full_disk)
    assert run_command(lambda _: write_json_atomic(tmp_path / "a.json", {})) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'a.json'}: No space left on device\n"
    assert not list(tmp_path.iterdir())


def test_folder_that_can_be_written_to_explains_nothing(tmp_path: Path) -> None:
    explain_unwritable(tmp_path, "", 3 * 2**20)
    assert not list(tmp_path.iterdir())


def test_only_old_partial_files_are_removed_where_others_write(tmp_path: Path) -> None:
    old, new = tmp_path / ".partial-old", tmp_path / ".partial-new"
    old.mkdir()
    (old / "file").touch()
    new.touch()
    os.utime(old, (0, 0))
    remove_partial_files(tmp_path, 3600)
    assert list(tmp_path.iterdir()) == [new]
    remove_partial_files(tmp_path)
    assert not list(tmp_path.iterdir())


def test_lock_keeps_another_process_waiting(tmp_path: Path) -> None:
    def other() -> None:
        with leased(tmp_path, "test"), atomic_path(tmp_path / "file") as partial:
            partial.write_text("other")

    with leased(tmp_path, "test"):
        process = start(other)
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        assert not (tmp_path / "file").exists()
    assert wait(process) == 0 and (tmp_path / "file").read_text() == "other"
