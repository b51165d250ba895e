"""Models that only segment: braintum_predict writes their masks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tiny_training import TinyDataset, save_model, write_images, write_preprocessed

import braintum as bt
from braintum.inference import cli


@pytest.fixture(autouse=True)
def own_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets torch's threads for a process of its own; here it shares one."""
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)


def stock_model(folders: Any, configuration: str = "2d", **dataset_json: Any) -> tuple[Path, TinyDataset]:
    """A model of nnU-Net's own trainer on data without classes, and the data set with them."""
    dataset = write_preprocessed(folders.preprocessed, configuration)
    content = {key: value for key, value in dataset.dataset_json.items() if key != "classification"}
    segmentation = replace(dataset, dataset_json={**content, **dataset_json})
    return save_model(segmentation, "nnUNetTrainer", (0, 1), "checkpoint_final.pth", spacing=1.5), dataset


def masks(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("*.nii.gz"))
    return {file.name: SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(file))) for file in files}


def run(images: Path, target: Path, model: Path, *more: Any) -> int:
    command = ["-i", images, "-o", target, "-m", model, "-device", "cpu", "--disable_progress_bar", *more]
    return cli.predict([str(argument) for argument in command])


@pytest.mark.parametrize(("configuration", "shape"), [("2d", (40, 36)), ("3d_fullres", (12, 20, 18))])
def test_masks_of_a_stock_model_are_nnunets(
    configuration: str, shape: tuple[int, ...], nnunet_folders: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = stock_model(nnunet_folders, configuration)
    images, target, stock = write_images(tmp_path / "images", shape, 2), tmp_path / "out", tmp_path / "stock"
    (images / "case_2_0000.nii.gz").write_bytes(b"no image")
    assert run(images, target, model, "--save_probabilities") == 3
    said = capsys.readouterr()
    assert f"2 cases predicted; masks only, as nnUNetTrainer trains no classes; they are in {target}" in said.out
    assert "case_2_0000.nii.gz: not packed with gzip" in said.err
    (images / "case_2_0000.nii.gz").unlink()
    stock.mkdir()
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False, perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(str(model), (0, 1), "checkpoint_final.pth")
    predictor.predict_from_files_sequential(str(images), str(stock))
    expected, found = masks(stock), masks(target)
    assert expected.keys() == found.keys() == {"case_0.nii.gz", "case_1.nii.gz"}
    for case, mask in expected.items():
        assert 0 < np.count_nonzero(mask) < mask.size and (found[case] != mask).mean() < 5e-3
    written = {file.name for file in target.iterdir()}
    assert written >= {"case_0.npz", "case_0.pkl", "dataset.json", "plans.json", "provenance.json", "left_out.json"}
    assert not written & {"classes", "classes.csv"}
    assert run(images, tmp_path / "exact", model, "--exact") == 0
    for case, mask in masks(tmp_path / "exact").items():
        np.testing.assert_array_equal(mask, expected[case])


def test_parts_and_continuation(nnunet_folders: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, _ = stock_model(nnunet_folders)
    images, target = write_images(tmp_path / "images", (24, 20)), tmp_path / "out"
    assert run(images, target, model, "-num_parts", 2, "-part_id", 1) == 0
    assert masks(target).keys() == {"case_1.nii.gz", "case_3.nii.gz"}
    capsys.readouterr()
    assert run(images, target, model, "--continue_prediction") == 0
    assert "2 cases predicted, 2 were there already; masks only" in capsys.readouterr().out
    assert len(masks(target)) == 4


def test_python_api_gives_masks_and_warnings(nnunet_folders: Any, tmp_path: Path) -> None:
    model, _ = stock_model(nnunet_folders)
    fingerprint = {"shapes_after_crop": [[1, 200, 200]] * 3, "spacings": [[999, 1, 1]] * 3}
    (model / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    images = write_images(tmp_path / "images", (40, 36), 1)
    predictor = bt.load_predictor(model)
    found = bt.predict(images / "case_0_0000.nii.gz", predictor, probabilities=True)
    assert (found.predicted_class, found.confidence, found.class_probabilities) == (None, None, {})
    assert found.tumour_volume == np.count_nonzero(found.mask) > 0 and found.volume_unit == "mm2"
    assert found.probabilities is not None and found.probabilities.shape == (2, 40, 36)
    assert "40 voxels along y" in found.details["warnings"][0]
    outcome = bt.predict_folder(images, tmp_path / "out", predictor, show_progress=False)
    assert (outcome.predicted, outcome.listed) == (["case_0"], 0)
    assert outcome.warnings == {"case_0": found.details["warnings"]}
    np.testing.assert_array_equal(masks(tmp_path / "out")["case_0.nii.gz"], found.mask)


def test_classes_are_refused_where_there_are_none(nnunet_folders: Any, tmp_path: Path) -> None:
    model, dataset = stock_model(nnunet_folders)
    joint = save_model(dataset, "nnUNetTrainerMultiTask", (0,), "checkpoint_final.pth")
    images, target = write_images(tmp_path / "images", (24, 20), 1), tmp_path / "out"
    with pytest.raises(ValueError, match="predicts no classes, which could be calibrated"):
        run(images, target, model, "--calibrated")
    with pytest.raises(ValueError, match=r"predicts no classes, so there is no patients.csv; leave --cases away"):
        run(images, target, model, "--cases", tmp_path / "cases.csv")
    assert not target.exists()
    assert run(images, target, joint) == 0
    before = masks(target)["case_0.nii.gz"]
    with pytest.raises(ValueError, match="holds classes that another model predicted"):
        run(images, target, model)
    np.testing.assert_array_equal(masks(target)["case_0.nii.gz"], before)


def test_a_joint_model_loaded_for_its_masks(nnunet_folders: Any, tmp_path: Path) -> None:
    _, dataset = stock_model(nnunet_folders)
    joint = save_model(dataset, "nnUNetTrainerMultiTask", (0,), "checkpoint_final.pth")
    image = write_images(tmp_path / "images", (24, 20), 1) / "case_0_0000.nii.gz"
    both, alone = (bt.predict(image, bt.load_predictor(joint, classes=classes)) for classes in (True, False))
    assert both.predicted_class is not None and alone.predicted_class is None
    np.testing.assert_array_equal(both.mask, alone.mask)
