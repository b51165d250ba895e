"""nnUNetTrainerMultiTask through nnU-Net's own training entry points, on tiny data sets."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunet_runs import make_trainer, plan_and_preprocess, write_dataset
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainer_steps import one_epoch, scores_on_training_cases, start

from braintum.conversion.files.lease import LeasedError, leased
from braintum.conversion.format.cases import read_cases, write_cases
from braintum.trainers.multi_task import nnUNetTrainerMultiTask

CLASS_LOG = ("train_losses", "val_losses", "train_class_losses", "val_class_losses", "class_macro_f1", "mean_fg_dice")


@pytest.fixture
def short_training(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two iterations an epoch, three epochs, seeded."""
    monkeypatch.setenv("braintum_num_epochs", "3")
    monkeypatch.setenv("braintum_num_iterations_per_epoch", "2")
    monkeypatch.setenv("braintum_seed", "3")
    return nnunet_folders


@pytest.mark.slow
def test_whole_training_and_resume_with_the_same_numbers(short_training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(short_training.raw, 7)
    plans = plan_and_preprocess(7)
    whole = make_trainer(7, plans)
    whole.run_training()
    folder = Path(whole.output_folder)
    expected_files = {"checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_best_joint.pth", "progress.png"}
    assert expected_files <= {file.name for file in folder.iterdir()}
    assert not list(folder.glob("*partial*"))
    debug = json.loads((folder / "debug.json").read_text(encoding="utf-8"))
    assert (debug["num_epochs"], debug["num_iterations_per_epoch"], debug["seed"]) == ("3", "2", "3")
    reference = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert reference["current_epoch"] == 3
    assert all(len(reference["logging"][key]) == 3 for key in CLASS_LOG)
    best_joint = torch.load(folder / "checkpoint_best_joint.pth", weights_only=True)
    scores = reference["logging"]["ema_joint_score"]
    assert scores[best_joint["current_epoch"] - 1] == max(scores)
    weights = {name: tensor.clone() for name, tensor in whole.bare_network.state_dict().items()}
    log = {key: list(whole.logger.get_value(key, None)) for key in CLASS_LOG}

    stop_file = folder / "stop"

    def ask_to_stop_in_second_epoch(self: Any) -> None:
        if self.current_epoch == 1:
            stop_file.touch()
        original(self)

    original = nnUNetTrainerMultiTask.on_train_epoch_start
    for file in folder.glob("checkpoint_*"):
        file.unlink()
    interrupted = make_trainer(7, plans)
    with monkeypatch.context() as patched:
        patched.setenv("braintum_stop_file", str(stop_file))
        patched.setattr(nnUNetTrainerMultiTask, "on_train_epoch_start", ask_to_stop_in_second_epoch)
        with pytest.raises(SystemExit) as stopped:
            interrupted.run_training()
    assert stopped.value.code == 75
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # the number of workers must not matter either
    monkeypatch.setenv("braintum_tensorboard", "1")
    resumed = make_trainer(7, plans, resume=True)
    assert resumed.current_epoch == 2
    with leased(folder, "training"), pytest.raises(LeasedError, match=r"is at it \(training\)"):
        resumed.run_training()
    monkeypatch.setattr("braintum.trainers.segmentation.PICTURE_EVERY", 1)
    resumed.run_training()
    curves = EventAccumulator(str(folder / "tensorboard")).Reload()
    assert [point.step for point in curves.Scalars("val_losses")] == [2]
    assert curves.Scalars("val_losses")[0].value == pytest.approx(log["val_losses"][2])
    (picture,) = curves.Images("image, truth, prediction")
    assert picture.width == 3 * picture.height
    assert {key: list(resumed.logger.get_value(key, None)) for key in CLASS_LOG} == log
    for name, tensor in resumed.bare_network.state_dict().items():
        assert torch.equal(tensor, weights[name]), name

    resumed.perform_actual_validation()
    with open(folder / "validation" / "classes.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["case"] for row in rows] == [f"case_{number:02d}" for number in range(4)]
    assert [row["true_class"] for row in rows] == ["meningioma", "glioma", "no_tumor", "meningioma"]
    for row in rows:
        probabilities = [float(row[f"probability_{name}"]) for name in ("meningioma", "glioma", "no_tumor")]
        assert sum(probabilities) == pytest.approx(1, abs=1e-5)
        assert float(row["confidence"]) == pytest.approx(max(probabilities), abs=1e-6)
    report = json.loads((folder / "validation" / "classification.json").read_text(encoding="utf-8"))
    correct = sum(row["true_class"] == row["predicted_class"] for row in rows)
    assert report["accuracy"] == pytest.approx(correct / 4) and np.sum(report["confusion_matrix"]) == 4
    assert (folder / "validation" / "summary.json").is_file()
    # each patient has one case: nothing more to say of patients
    assert "patients" not in report and not (folder / "validation" / "patients.csv").exists()


@pytest.mark.slow
def test_validation_of_patients(short_training: Any) -> None:
    raw = write_dataset(short_training.raw, 7)
    # the fold validates case_00 … case_03: meningioma, glioma, no_tumor, meningioma
    patients = {"case_00": "A", "case_02": "A", "case_01": "B", "case_03": "B"}
    cases = read_cases(raw / "cases.csv").values()
    write_cases(raw / "cases.csv", [replace(case, patient=patients.get(case.case, "")) for case in cases])
    trainer = make_trainer(7, plan_and_preprocess(7))
    trainer.on_train_start()
    trainer.perform_actual_validation()
    folder = Path(trainer.output_folder) / "validation"
    report = json.loads((folder / "classification.json").read_text(encoding="utf-8"))
    with open(folder / "patients.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    # healthy slices beside the tumour do not make a patient healthy; two tumour classes are no class
    assert [(row["patient"], row["true_class"], row["num_cases"]) for row in rows] == [
        ("A", "meningioma", "2"),
        ("B", "", "2"),
    ]
    for row in rows:
        own = [report["cases"][case] for case, patient in patients.items() if patient == row["patient"]]
        for name in trainer.class_schema.class_names:
            expected = sum(case["tumour_evidence"] * case["probabilities"][name] for case in own)
            expected /= sum(case["tumour_evidence"] for case in own)
            assert float(row[f"probability_{name}"]) == pytest.approx(expected, abs=1e-6)
        assert float(row["tumour_volume"]) == pytest.approx(sum(case["tumour_volume"] for case in own))
    correct = rows[0]["predicted_class"] == "meningioma"
    assert report["num_cases"] == 4
    assert (report["patients"]["num_cases"], report["patients"]["num_without_class"]) == (1, 1)
    assert report["patients"]["accuracy"] == correct


@pytest.mark.slow
def test_unseeded_training_steps_with_stock_loaders(short_training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("braintum_seed")
    write_dataset(short_training.raw, 7)
    trainer = start(make_trainer(7, plan_and_preprocess(7)))
    one_epoch(trainer)
    assert all(np.isfinite(trainer.logger.get_value(key, step=-1)) for key in CLASS_LOG)
    trainer.on_train_end()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("planner", "shape", "configuration"),
    [("ExperimentPlanner", (32, 32), "2d"), ("nnUNetPlannerResEncM", (16, 32, 32), "3d_fullres")],
    ids=["PlainConvUNet 2-D", "ResidualEncoderUNet 3-D"],
)
def test_stock_plans(short_training: Any, planner: str, shape: tuple[int, ...], configuration: str) -> None:
    write_dataset(short_training.raw, 7, shape=shape)
    plans = plan_and_preprocess(7, planner, configuration)
    trainer = start(make_trainer(7, plans, configuration))
    one_epoch(trainer)
    assert all(np.isfinite(trainer.logger.get_value(key, step=-1)) for key in CLASS_LOG)
    written = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text(encoding="utf-8"))
    assert written["classification"]["class_names"] == ["meningioma", "glioma", "no_tumor"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "tumour": 1, "ignore": 2},
        {"background": 0, "whole": [1, 2], "core": [1], "ignore": 3},
    ],
    ids=["labels", "regions"],
)
def test_cases_without_a_class_or_without_a_mask(short_training: Any, labels: dict) -> None:
    write_dataset(short_training.raw, 7, num_cases=8, labels=labels, maskless=(4, 5), classless=(6,))
    trainer = start(make_trainer(7, plan_and_preprocess(7)))
    one_epoch(trainer)
    assert all(np.isfinite(trainer.logger.get_value(key, step=-1)) for key in CLASS_LOG)
    batch = next(trainer.dataloader_train)

    def losses(*keys: str) -> tuple[float, float]:
        data, *_ = trainer.dataset_class(trainer.preprocessed_dataset_folder, list(keys)).load_case(keys[0])
        size = len(batch["keys"])
        batch["keys"] = np.array([keys[0]] * size)
        result = trainer.train_step(batch)
        return float(result["loss"]), float(result["class_loss"])

    loss, class_loss = losses("case_06")  # no class: segmentation alone
    assert class_loss == 0 and np.isfinite(loss)
    assert losses("case_04")[1] > 0


@pytest.mark.slow
def test_only_maskless_validation_cases_do_not_poison_the_best_dice(short_training: Any) -> None:
    labels = {"background": 0, "tumour": 1, "ignore": 2}
    write_dataset(short_training.raw, 7, labels=labels, maskless=(0, 1, 2, 3))
    trainer = start(make_trainer(7, plan_and_preprocess(7)))
    one_epoch(trainer)
    assert trainer.logger.get_value("mean_fg_dice", step=-1) == trainer.logger.get_value("ema_fg_dice", step=-1) == 0


@pytest.mark.slow
def test_segmentation_only_checkpoint_warm_starts(short_training: Any) -> None:
    write_dataset(short_training.raw, 7)
    plans = plan_and_preprocess(7)
    stock = make_trainer(7, plans, trainer="nnUNetTrainer")
    stock.initialize()
    checkpoint = short_training.results / "segmentation.pth"
    stock.save_checkpoint(str(checkpoint))
    ours = make_trainer(7, plans)
    ours.initialize()
    load_pretrained_weights(ours.network, str(checkpoint))
    for name, tensor in stock.network.state_dict().items():
        if ".seg_layers." not in name:
            assert torch.equal(tensor, ours.network.state_dict()[name]), name


@pytest.mark.slow
def test_class_balance_and_head_group(short_training: Any) -> None:
    write_dataset(short_training.raw, 7, num_cases=12)
    trainer = make_trainer(7, plan_and_preprocess(7))
    trainer.on_train_start()
    training, _ = trainer.get_tr_and_val_datasets()
    drawn = [trainer.class_labels.label_of_case[key] for key in training.identifiers]
    assert max(map(drawn.count, range(3))) <= 1.1 * min(map(drawn.count, range(3)))
    body, head = trainer.optimizer.param_groups
    in_head = {id(parameter) for parameter in trainer.network.classification_head.parameters()}
    assert {id(parameter) for parameter in head["params"]} == in_head
    assert not in_head & {id(parameter) for parameter in body["params"]}
    total = sum(1 for _ in trainer.network.parameters())
    assert len(body["params"]) + len(head["params"]) == total


@pytest.mark.slow
@pytest.mark.thorough  # the same with hand-written plans is in test_trainers
def test_overfits_a_handful_of_cases(short_training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(short_training.raw, 7, num_cases=8)
    plans = plan_and_preprocess(7)
    monkeypatch.setenv("braintum_num_epochs", "1000")
    trainer = start(make_trainer(7, plans, fold="all"))
    for _ in range(150):
        trainer.train_step(next(trainer.dataloader_val))  # the same cases, without augmentation
    dice, correct, number = scores_on_training_cases(trainer)
    assert dice > 0.9
    assert correct == number == 8


@pytest.mark.slow
def test_no_classes_no_training(short_training: Any) -> None:
    raw = write_dataset(short_training.raw, 7)
    dataset_json = json.loads((raw / "dataset.json").read_text(encoding="utf-8"))
    del dataset_json["classification"]
    (raw / "dataset.json").write_text(json.dumps(dataset_json))
    plans = plan_and_preprocess(7)
    with pytest.raises(ValueError, match='has no "classification".*braintum_convert'):
        make_trainer(7, plans)


@pytest.mark.slow
def test_labels_are_found_and_checked(short_training: Any) -> None:
    raw = write_dataset(short_training.raw, 7)
    plans = plan_and_preprocess(7)
    copied = short_training.preprocessed / "Dataset007_Tiny" / "cases.csv"
    rows = copied.read_text(encoding="utf-8")
    copied.write_text(rows.replace("glioma", "gliosis"))
    with pytest.raises(ValueError, match=r"cases.csv, line 3: unknown class 'gliosis'"):
        make_trainer(7, plans).on_train_start()
    copied.unlink()  # a stock planner copies it nowhere: the raw folder's counts
    trainer = make_trainer(7, plans)
    assert len(trainer.class_labels.label_of_case) == 8
    os.remove(raw / "cases.csv")
    with pytest.raises(FileNotFoundError, match="no cases.csv in .*nnUNet_preprocessed.* nor in .*nnUNet_raw"):
        make_trainer(7, plans).class_labels  # noqa: B018  read on access


@pytest.mark.slow
def test_interrupted_checkpoint_leaves_the_old_one(short_training: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(short_training.raw, 7)
    trainer = make_trainer(7, plan_and_preprocess(7))
    trainer.initialize()
    file = Path(trainer.output_folder) / "checkpoint_latest.pth"
    trainer.save_checkpoint(str(file))
    before = file.read_bytes()

    def full_disk(checkpoint: dict, target: str) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        trainer.save_checkpoint(str(file))
    assert file.read_bytes() == before
    assert [entry.name for entry in file.parent.glob("checkpoint*")] == ["checkpoint_latest.pth"]
