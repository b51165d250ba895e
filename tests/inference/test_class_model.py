"""Masks of one model, classes of another: braintum_predict --class-model."""

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tiny_training import CLASS_NAMES, TinyDataset, save_model, write_images, write_preprocessed

from braintum.conversion.format.cases import Case, write_cases
from braintum.inference import cli
from braintum.inference.models import segmentation_predictor
from braintum.inference.models.segmentation_predictor import SegmentationPredictor
from braintum.inference.models.two_models import NORMALIZATION_NAMES, check_same_input
from braintum.inference.predict_folder import predict_folder
from braintum.inference.prediction import preprocessing
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.planner.preprocessing.normalization import SCHEME_OF_CHANNEL_NAME

NUM_CASES = 4


def without_classes(dataset: TinyDataset) -> TinyDataset:
    """The same, as a segmentation model may have been trained on it."""
    return replace(dataset, dataset_json={k: v for k, v in dataset.dataset_json.items() if k != "classification"})


def load(predictor_class: type, model: Path, folds: tuple[int, ...] | None, checkpoint: str) -> Any:
    predictor = predictor_class(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), folds, checkpoint)
    return predictor


def masks(folder: Path) -> dict[str, np.ndarray]:
    return {
        file.name.removesuffix(".nii.gz"): SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file)))
        for file in sorted(folder.glob("*.nii.gz"))
    }


def class_results(folder: Path) -> dict[str, dict[str, Any]]:
    return {file.stem: json.loads(file.read_text()) for file in sorted((folder / "classes").glob("*.json"))}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "segmentation", "classes", "preprocessed"),
    [
        ((40, 36), ("2d", "nnUNetTrainer", 2.0), ("2d", "nnUNetTrainerClassifierUNet", 1.0), 2),
        ((40, 36), ("2d", "nnUNetTrainerUNet", 1.0), ("2d", "nnUNetTrainerMultiTask", 1.0), 1),
        ((12, 20, 18), ("3d_fullres", "nnUNetTrainerJointUNet", 1.0), ("2d", "nnUNetTrainerClassifierUNet", 1.5), 2),
    ],
    ids=["stock model, other spacing", "same plans", "joint model, volumes by slices"],
)
def test_masks_and_classes_are_those_of_each_model_alone(
    nnunet_folders: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, ...],
    segmentation: tuple[str, str, float],
    classes: tuple[str, str, float],
    preprocessed: int,
) -> None:
    data = {name: write_preprocessed(nnunet_folders.preprocessed, name) for name in {segmentation[0], classes[0]}}
    models = []
    for (configuration, name, spacing), folds, checkpoint in (
        (segmentation, (0, 1), "checkpoint_best.pth"),
        (classes, (0, 2), "checkpoint_final.pth"),
    ):
        joint = name not in ("nnUNetTrainer", "nnUNetTrainerUNet")
        dataset = data[configuration] if joint else without_classes(data[configuration])
        models.append((save_model(dataset, name, folds, checkpoint, spacing), folds, checkpoint))
    images, stock, alone, both = (tmp_path / name for name in ("images", "stock", "alone", "both"))
    write_images(images, shape)
    stock.mkdir()
    load(nnUNetPredictor, *models[0]).predict_from_files_sequential(str(images), str(stock), True)
    class_predictor = load(JointPredictor, *models[1])
    predict_folder(class_predictor, images, alone)

    calls = []
    monkeypatch.setattr(
        preprocessing,
        "preprocess_case",
        lambda *args, run=preprocessing.preprocess_case: calls.append(args) or run(*args),
    )
    predictor = load(SegmentationPredictor, *models[0])
    outcome = predict_folder(predictor, images, both, save_probabilities=True, class_predictor=class_predictor)
    assert (len(outcome.predicted), outcome.failed, outcome.listed) == (NUM_CASES, {}, NUM_CASES)
    assert len(calls) == preprocessed * NUM_CASES
    expected, found = masks(stock), masks(both)
    assert expected.keys() == found.keys() and len(found) == NUM_CASES
    for case, mask in expected.items():
        np.testing.assert_array_equal(found[case], mask)
        assert 0 < np.count_nonzero(mask) < mask.size and mask.shape == shape
    results, results_alone = class_results(both), class_results(alone)
    assert results.keys() == results_alone.keys() == found.keys()
    for case, result in results.items():
        assert (result.pop("tumour_volume"), result.pop("volume_unit")) == (
            np.count_nonzero(found[case]),
            "mm2" if len(shape) == 2 else "mm3",
        )
        del results_alone[case]["tumour_volume"], results_alone[case]["volume_unit"]
        assert result == results_alone[case] and len(result["per_fold"]) == 2
    assert len({json.dumps(result["probabilities"]) for result in results.values()}) == NUM_CASES
    # whoever reads the folder finds labels and plans of the masks, and the classes
    written = json.loads((both / "dataset.json").read_text())
    assert written["classification"]["class_names"] == list(CLASS_NAMES)
    assert {**predictor.dataset_json, "classification": written["classification"]} == written
    assert json.loads((both / "plans.json").read_text())["plans_name"] == f"Tiny{segmentation[2]:g}Plans"


@pytest.fixture
def pair(nnunet_folders: Any) -> tuple[Path, Path]:
    """A stock segmentation model, and a classifier on slices of the same spacing."""
    dataset = write_preprocessed(nnunet_folders.preprocessed, "2d")
    return (
        save_model(without_classes(dataset), "nnUNetTrainer", (0,), "checkpoint_final.pth", spacing=2.0),
        save_model(dataset, "nnUNetTrainerClassifierUNet", (0, 3), "checkpoint_best.pth"),
    )


@pytest.fixture
def own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets torch's threads for a process of its own; here it shares one."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)


@pytest.mark.usefixtures("own_threads")
def test_command_with_two_models(pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, target = write_images(tmp_path / "images", (40, 36)), tmp_path / "out"
    (images / "case_1_0000.nii.gz").write_bytes((images / "case_1_0000.nii.gz").read_bytes()[:60])
    cases_file = tmp_path / "cases.csv"
    write_cases(cases_file, [Case(f"case_{number}", patient="PQ"[number // 3]) for number in range(NUM_CASES)])
    command = ["-i", str(images), "-o", str(target), "-m", str(pair[0]), "-device", "cpu"]
    command += ["--class-model", str(pair[1]), "--class-folds", "3", "--class-checkpoint", "checkpoint_best.pth"]
    assert cli.predict([*command, "--cases", str(cases_file)]) == 3
    said = capsys.readouterr()
    assert "3 cases predicted; 3 listed" in said.out and "2 patients listed" in said.out
    assert "case_1_0000.nii.gz: truncated" in said.err
    assert set(masks(target)) == set(class_results(target)) == {"case_0", "case_2", "case_3"}
    assert all(len(result["per_fold"]) == 1 for result in class_results(target).values())
    arguments = json.loads((target / "predict_from_raw_data_args.json").read_text())
    assert {name: arguments[name] for name in ("m", "class_model", "class_folds", "class_checkpoint", "chk")} == {
        "m": pair[0].name,  # no folder of this machine
        "class_model": pair[1].name,
        "class_folds": [3],
        "class_checkpoint": "checkpoint_best.pth",
        "chk": "checkpoint_final.pth",
    }
    with open(target / "patients.csv", newline="") as stream:
        rows = {row["patient"]: row for row in csv.DictReader(stream)}
    # a classifier on its own sees no tumour: its cases count alike
    results = class_results(target)
    assert [row["num_cases"] for row in rows.values()] == ["2", "1"]
    for name in CLASS_NAMES:
        mean = np.mean([results[case]["probabilities"][name] for case in ("case_0", "case_2")])
        assert float(rows["P"][f"probability_{name}"]) == pytest.approx(mean, abs=1e-6)


@pytest.mark.slow
def test_divided_and_interrupted_predictions_compose(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, whole, parts = write_images(tmp_path / "images", (24, 20)), tmp_path / "whole", tmp_path / "parts"
    predictor = load(SegmentationPredictor, pair[0], None, "checkpoint_final.pth")
    class_predictor = load(JointPredictor, pair[1], None, "checkpoint_best.pth")
    predict_folder(predictor, images, whole, class_predictor=class_predictor)
    predict_folder(predictor, images, parts, class_predictor=class_predictor, num_parts=2, part_id=1)

    def interrupt(data: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:  # between the masks and the classes of a case
        patched.setattr(class_predictor, "predict_logits_from_preprocessed_data", interrupt)
        with pytest.raises(KeyboardInterrupt):
            predict_folder(predictor, images, parts, class_predictor=class_predictor, continue_prediction=True)
    assert set(masks(parts)) == set(class_results(parts)) == {"case_1", "case_3"}
    outcome = predict_folder(predictor, images, parts, class_predictor=class_predictor, continue_prediction=True)
    assert (sorted(outcome.skipped), sorted(outcome.predicted)) == (["case_1", "case_3"], ["case_0", "case_2"])
    assert (parts / "classes.csv").read_bytes() == (whole / "classes.csv").read_bytes()
    for case, mask in masks(whole).items():
        np.testing.assert_array_equal(masks(parts)[case], mask)


def stand_in(folder: str, ending: str = ".nii.gz", **channels: Mapping[str, str]) -> Any:
    return SimpleNamespace(model_folder=Path(folder), trainer_name="", dataset_json={"file_ending": ending, **channels})


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (stand_in("/c", ".png", channel_names={"0": "T1", "1": "T2"}), r"read different files, \*.nii.gz and \*.png"),
        (stand_in("/c", channel_names={"0": "T1"}), r"take different channels, \[T1, T2\] and \[T1\]"),
        (stand_in("/c", channel_names={"0": "T2", "1": "T1"}), r"differently, \[T1, T2\] and \[T2, T1\]; if the"),
        (stand_in("/c", modality={"0": "T1", "1": "FLAIR"}), r"differently, \[T1, T2\] and \[T1, FLAIR\]; if the"),
    ],
)
def test_models_of_other_images_are_refused(classes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"the segmentation model /s and the class model /c .*{message}"):
        check_same_input(stand_in("/s", channel_names={"0": "T1", "1": "T2"}), classes)


@pytest.mark.parametrize("names", [{"1": "t2", "0": "T1"}, {"0": "percentile_zscore", "1": "noNorm"}])
def test_models_of_the_same_images_are_accepted(names: dict[str, str]) -> None:
    check_same_input(stand_in("/s", channel_names={"0": "T1", "1": "T2"}), stand_in("/c", channel_names=names))


def test_names_that_choose_a_normalisation_are_all_known() -> None:
    assert SCHEME_OF_CHANNEL_NAME.keys() == NORMALIZATION_NAMES


@pytest.mark.usefixtures("own_threads")
def test_wrong_models_on_the_command_line(pair: tuple[Path, Path], tmp_path: Path) -> None:
    images, target = write_images(tmp_path / "images", (24, 20)), tmp_path / "out"
    segmentation, classes = (str(model) for model in pair)

    def predict(*flags: str) -> int:
        return cli.predict(["-i", str(images), "-o", str(target), "-device", "cpu", *flags])

    with pytest.raises(ValueError, match=r"nnUNetTrainer__.*, which predicts no class"):
        predict("-m", segmentation, "--class-model", segmentation)
    with pytest.raises(
        FileNotFoundError, match=r"ClassifierUNet\S* has no fold with a checkpoint_final.pth.*--class-ch"
    ):
        predict("-m", segmentation, "--class-model", classes)
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*fold_1"):
        predict(
            *("-m", segmentation, "--class-model", classes),
            *("--class-folds", "1", "--class-checkpoint", "checkpoint_best.pth"),
        )
    with pytest.raises(FileNotFoundError, match="absent is no folder of a trained model"):
        predict("-m", segmentation, "--class-model", str(tmp_path / "absent"))
    for flags in (("--class-folds", "0"), ("--class-checkpoint", "checkpoint_best.pth")):
        with pytest.raises(ValueError, match="name it with --class-model"):
            predict("-m", classes, "-chk", "checkpoint_best.pth", *flags)
    dataset_file = pair[1] / "dataset.json"
    dataset_json = json.loads(dataset_file.read_text())
    dataset_file.write_text(json.dumps({**dataset_json, "channel_names": {"0": "FLAIR"}}))
    for checkpoint_file in pair[1].glob("fold_*/checkpoint_best.pth"):
        checkpoint = torch.load(checkpoint_file, weights_only=False)
        checkpoint["init_args"]["dataset_json"]["channel_names"] = {"0": "FLAIR"}
        torch.save(checkpoint, checkpoint_file)
    with pytest.raises(ValueError, match=r"nnUNetTrainer__\S* and the class model \S*ClassifierUNet__.*FLAIR"):
        predict("-m", segmentation, "--class-model", classes, "--class-checkpoint", "checkpoint_best.pth")
    assert not target.exists()


def test_trainers_from_elsewhere(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(SegmentationPredictor, pair[0], None, "checkpoint_final.pth").network

    class BeforeNnUNet27:
        """build_network_architecture as it was."""

        @staticmethod
        def build_network_architecture(
            architecture_class_name: str,
            arch_init_kwargs: dict,
            arch_init_kwargs_req_import: list[str],
            num_input_channels: int,
            num_output_channels: int,
            enable_deep_supervision: bool = True,
        ) -> torch.nn.Module:
            from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

            return get_network_from_plans(
                *(architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import),
                *(num_input_channels, num_output_channels),
                deep_supervision=enable_deep_supervision,
            )

    with monkeypatch.context() as patched:
        patched.setattr(segmentation_predictor, "recursive_find_trainer_class_by_name", lambda name: BeforeNnUNet27)
        found = load(SegmentationPredictor, pair[0], None, "checkpoint_final.pth").network
    shapes = [{name: value.shape for name, value in net.state_dict().items()} for net in (found, expected)]
    assert shapes[0] == shapes[1] and not found.decoder.deep_supervision

    file = pair[0] / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=False)
    torch.save({**checkpoint, "trainer_name": "nnUNetTrainerOfSomebody"}, file)
    with pytest.raises(ValueError, match="trained by nnUNetTrainerOfSomebody, which nnU-Net does not find here"):
        load(SegmentationPredictor, pair[0], None, "checkpoint_final.pth")
