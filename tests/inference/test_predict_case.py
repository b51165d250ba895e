"""The Python API of prediction: one case from files or arrays is what braintum_predict writes of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from calibration_data import make_calibration
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from PIL import Image
from tiny_training import CLASS_NAMES, TinyDataset, save_model, write_images, write_preprocessed

import braintum as bt
from braintum.commands.command import run_command
from braintum.evaluation.calibration.calibration import store_calibration
from braintum.inference.cli import predict as command
from braintum.inference.prediction.preprocessing import ModelDescription, preprocess_case

SHAPES = {"2d": (40, 36), "3d_fullres": (12, 20, 18), "png": (40, 36)}
TRAINERS = {"2d": "nnUNetTrainerMultiTask", "3d_fullres": "nnUNetTrainerJointUNet"}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny networks are fastest on one, and results do not depend on the machine."""
    monkeypatch.setattr("braintum.inference.prediction.devices.os.cpu_count", lambda: 1)
    monkeypatch.setattr("braintum.inference.prediction.case_streams.available_cores", lambda: 1)


def make_model(folders: Any, kind: str, folds: tuple[int, ...] = (0, 1)) -> Path:
    """A model of two folds that resamples; ``png`` for one of pictures."""
    dataset = write_preprocessed(folders.preprocessed, "2d" if kind == "png" else kind)
    if kind != "png":
        return save_model(dataset, TRAINERS[kind], folds, "checkpoint_final.pth", spacing=1.5)
    pictures = TinyDataset(
        {**dataset.plans, "image_reader_writer": "NaturalImage2DIO"},
        {**dataset.dataset_json, "file_ending": ".png"},
        dataset.configuration,
    )
    return save_model(pictures, TRAINERS["2d"], folds, "checkpoint_final.pth", spacing=1.5)


def make_images(folder: Path, kind: str) -> dict[str, Path]:
    """File of each of two cases, with a spacing that differs between the axes."""
    write_images(folder, SHAPES[kind], 2)
    files = {}
    for file in sorted(folder.glob("*.nii.gz")):
        image = SimpleITK.ReadImage(str(file))
        case = file.name.removesuffix("_0000.nii.gz")
        if kind == "png":
            files[case] = folder / f"{case}_0000.png"
            Image.fromarray(SimpleITK.GetArrayFromImage(image).clip(0, 255).astype(np.uint8)).save(files[case])
            file.unlink()
        else:
            image.SetSpacing([1.25, 1.0, 2.0][: image.GetDimension()])
            SimpleITK.WriteImage(image, str(file))
            files[case] = file
    return files


def read(file: Path) -> tuple[np.ndarray, tuple[float, ...] | None]:
    """Array and spacing of a file, in the order of the array's axes."""
    if file.suffix == ".png":
        return np.asarray(Image.open(file)), None
    image = SimpleITK.ReadImage(str(file))
    return SimpleITK.GetArrayFromImage(image), image.GetSpacing()[::-1]


@pytest.mark.parametrize("kind", SHAPES)
def test_files_and_arrays_are_predicted_as_by_the_command(nnunet_folders: Any, tmp_path: Path, kind: str) -> None:
    model = make_model(nnunet_folders, kind)
    images = make_images(tmp_path / "images", kind)
    predictor = bt.load_predictor(model, device="cpu")
    for exact in (True, False):
        out = tmp_path / f"exact {exact}"
        given = ["-i", str(tmp_path / "images"), "-o", str(out), "-m", str(model), "-device", "cpu"]
        given += ["--save_probabilities", "--disable_progress_bar", *(["--exact"] if exact else [])]
        assert run_command(command, given) == 0
        for case, file in images.items():
            expected, spacing = read(out / file.name.replace("_0000", ""))
            details = json.loads((out / "classes" / f"{case}.json").read_text(encoding="utf-8"))
            array, _ = read(file)
            options = {"probabilities": True, "exact": exact}
            found = {
                "file": bt.predict(file, predictor, **options),
                "files": bt.predict([str(file)], predictor, **options),
                "array": bt.predict(array[None], predictor, spacing=spacing, **options),
                "an array a channel": bt.predict([array], predictor, spacing=spacing, **options),
            }
            assert 0 < np.count_nonzero(expected) < expected.size and expected.shape == SHAPES[kind]
            for name, prediction in found.items():
                assert prediction.mask.dtype == expected.dtype, name
                assert prediction.mask.tobytes() == expected.tobytes(), name
                assert prediction.mask.shape == expected.shape and prediction.spacing == spacing
                np.testing.assert_allclose(
                    prediction.probabilities,
                    np.load(out / f"{case}.npz")["probabilities"].reshape(2, *expected.shape),
                    rtol=0,
                    atol=1e-5,
                )
                assert prediction.case == ("case" if "array" in name else case)
                assert prediction.class_probabilities == pytest.approx(details["probabilities"], abs=1e-6)
                assert prediction.predicted_class == details["predicted_class"]
                assert prediction.confidence == max(prediction.class_probabilities.values())
                assert prediction.volume_unit == details["volume_unit"]
                assert prediction.tumour_volume == pytest.approx(details["tumour_volume"], rel=1e-6)
                assert prediction.details.keys() == details.keys() and len(prediction.details["per_fold"]) == 2
                assert prediction.labels == {"background": 0, "tumour": 1}


def test_predictor_is_used_again_and_folders_are_loaded(nnunet_folders: Any, tmp_path: Path) -> None:
    model = make_model(nnunet_folders, "2d")
    images = make_images(tmp_path / "images", "2d")
    predictor = bt.load_predictor(model, device="cpu", folds=[1], mirroring=False)
    first = bt.predict(images["case_0"], predictor)
    explained = bt.explain(tmp_path / "images", tmp_path / "explained", predictor, show_progress=False)
    assert len(explained.rows) == 2 and not explained.failed
    again = bt.predict(images["case_0"], predictor)
    assert again.details == first.details and again.mask.tobytes() == first.mask.tobytes()
    assert first.probabilities is None and first.details["fold_spread"] == dict.fromkeys(CLASS_NAMES)
    outcome = bt.predict_folder(tmp_path / "images", tmp_path / "out", predictor, show_progress=False)
    assert (outcome.predicted, outcome.failed) == (["case_0", "case_1"], {})
    written = json.loads((tmp_path / "out" / "classes" / "case_0.json").read_text(encoding="utf-8"))
    assert written["probabilities"] == pytest.approx(first.class_probabilities, abs=1e-6)
    # a folder stands for all its folds, and for a device that is there
    both = bt.predict(images["case_0"], model)
    assert len(both.details["per_fold"]) == 2


def test_classes_of_another_model(nnunet_folders: Any, tmp_path: Path) -> None:
    dataset = write_preprocessed(nnunet_folders.preprocessed, "2d")
    without_classes = replace(
        dataset, dataset_json={key: value for key, value in dataset.dataset_json.items() if key != "classification"}
    )
    masks = save_model(without_classes, "nnUNetTrainer", (0,), "checkpoint_final.pth", spacing=1.0)
    classes = save_model(dataset, "nnUNetTrainerClassifierUNet", (0,), "checkpoint_final.pth", spacing=2.0)
    file = make_images(tmp_path / "images", "2d")["case_1"]
    found = bt.predict(file, bt.load_predictor(masks, classes=False), class_model=classes)
    alone = bt.predict(file, classes)
    assert found.class_probabilities == alone.class_probabilities
    array, spacing = read(file)
    of_array = bt.predict(array[None], masks, spacing=spacing, class_model=classes)
    assert of_array.mask.tobytes() == found.mask.tobytes() and found.mask.any()
    with pytest.raises(bt.InputError, match="nnUNetTrainer, which predicts no class"):
        bt.predict(file, masks, class_model=masks)
    with pytest.raises(bt.InputError, match="was loaded without its classes"):
        bt.predict(file, masks, class_model=bt.load_predictor(masks, classes=False))
    with pytest.raises(bt.InputError, match="nnUNetTrainer predicts no classes; explain its masks"):
        bt.explain(tmp_path / "images", tmp_path / "out", masks, mask=False)


def test_calibrated(nnunet_folders: Any, tmp_path: Path) -> None:
    model = make_model(nnunet_folders, "2d", folds=(0,))
    file = make_images(tmp_path / "images", "2d")["case_0"]
    with pytest.raises(bt.InputError, match="is not calibrated; fit it with braintum_calibrate"):
        bt.predict(file, model, calibrated=True)
    raw = bt.predict(file, model)
    store_calibration(model, make_calibration(folds=(0,), mirroring=False, fingerprints={"0": "of other weights"}))
    with pytest.warns(bt.BraintumWarning, match="the weights in checkpoint_final.pth of fold 0") as noted:
        found = bt.predict(file, model, calibrated=True)
    assert Path(noted[0].filename) == Path(__file__)
    assert found.confidence < raw.confidence and found.predicted_class == raw.predicted_class
    assert found.details["calibration"]["raw_probabilities"] == pytest.approx(raw.class_probabilities)


def test_network_has_the_weights_of_its_fold(nnunet_folders: Any, tmp_path: Path) -> None:
    model = make_model(nnunet_folders, "2d")
    file = make_images(tmp_path / "images", "2d")["case_0"]
    predictor = bt.load_predictor(model, device="cpu")
    image = bt.preprocess(file, predictor)
    expected, _ = preprocess_case([str(file)], ModelDescription.of(predictor))
    assert expected.shape == (1, 1, 27, 30)  # of 40 × 36 pixels of 1 × 1.25 mm, at 1.5 mm
    assert image.shape == (1, 1, 32, 32)  # padded to the patch
    np.testing.assert_array_equal(image[:, :, 2:29, 1:31], expected)
    array, spacing = read(file)
    assert torch.equal(bt.preprocess(array[None], model, spacing=spacing), image)
    outputs = []
    for fold in (0, 1):
        network = bt.load_model(model, fold=fold, device="cpu")
        assert isinstance(network, torch.nn.Module) and not network.training
        weights = torch.load(model / f"fold_{fold}" / "checkpoint_final.pth", weights_only=True)["network_weights"]
        loaded = network.state_dict()
        assert weights.keys() == loaded.keys() and all(torch.equal(weights[name], loaded[name]) for name in weights)
        with torch.inference_mode():
            masks, classes = network(image.transpose(0, 1), with_classes=True)
            assert torch.equal(network(image.transpose(0, 1)), masks)
        assert masks.shape == (1, 2, 32, 32) and classes.shape == (1, len(CLASS_NAMES))
        outputs.append(classes)
    assert not torch.equal(*outputs)


@pytest.mark.parametrize(
    ("image", "spacing", "message"),
    [
        (np.zeros((2, 40, 36)), (1, 1), r"shape \(2, 40, 36\), but the model takes 1 channel\(s\)"),
        (np.zeros((40, 36)), (1, 1), "an array of 2 axes and type float64; give numbers"),
        (np.zeros((1, 40, 36), complex), (1, 1), "type complex128"),
        (np.zeros((1, 0, 36)), (1, 1), r"shape \(1, 0, 36\)"),
        (np.zeros((1, 40, 36)), None, r"spacing=None: .* needs its spacing in mm, a positive number for each of Y, X"),
        (np.zeros((1, 3, 40, 36)), (1, 1), r"spacing=\(1, 1\): .* for each of Z, Y, X"),
        (np.zeros((1, 40, 36)), (1, 0), r"spacing=\(1, 0\)"),
        (np.zeros((1, 40, 36)), (1, np.nan), "spacing="),
        (np.full((1, 40, 36), np.nan), (1, 1), "the image: NaN or infinite intensities; repair the image"),
        ("{folder}", None, "is a folder, not an image; predict the images in it with predict_folder"),
        ("{file}", (1, 1), "has its own spacing; leave the argument away"),
        (["{file}", "{file}"], None, r"takes 1 channel\(s\), a file each, but 2 are given"),
    ],
)
def test_images_that_the_model_does_not_take(
    nnunet_folders: Any, tmp_path: Path, image: Any, spacing: Any, message: str
) -> None:
    model = make_model(nnunet_folders, "2d", folds=(0,))
    file = make_images(tmp_path / "images", "2d")["case_0"]
    if isinstance(image, str):
        image = image.format(folder=file.parent, file=file)
    elif isinstance(image, list):
        image = [entry.format(file=file) for entry in image]
    with pytest.raises(bt.InputError, match=message):
        bt.predict(image, model, spacing=spacing)


def test_other_readers_and_missing_files(nnunet_folders: Any, tmp_path: Path) -> None:
    predictor = bt.load_predictor(make_model(nnunet_folders, "png", folds=(0,)), device="cpu")
    with pytest.raises(bt.InputError, match="takes pictures .* without a spacing; leave the spacing away"):
        bt.predict(np.zeros((1, 40, 36)), predictor, spacing=(1, 1))
    with pytest.raises(bt.MissingFileError, match="no image at absent_0000.png"):
        bt.predict("absent_0000.png", predictor)
    turning = {**predictor.plans_manager.plans, "image_reader_writer": "NibabelIOWithReorient"}
    predictor.plans_manager = PlansManager(turning)
    with pytest.raises(bt.UnsupportedError, match="NibabelIOWithReorient of this model turns images"):
        bt.predict(np.zeros((1, 8, 8)), predictor, spacing=(1, 1))


@pytest.mark.parametrize("entry", [{"orientations": {"LPS": 5}}, {"image_reader_writer": "SimpleITKIOWithReorient"}])
@pytest.mark.parametrize("stored", ["RAS", "PIL", "ASR"])
def test_a_volume_may_be_stored_in_any_orientation(
    nnunet_folders: Any, tmp_path: Path, entry: dict[str, Any], stored: str
) -> None:
    dataset = write_preprocessed(nnunet_folders.preprocessed, "3d_fullres")
    trained = TinyDataset({**dataset.plans, **entry}, dataset.dataset_json, dataset.configuration)
    model = save_model(trained, TRAINERS["3d_fullres"], (0,), "checkpoint_final.pth", spacing=1.5)
    file = make_images(tmp_path / "images", "3d_fullres")["case_0"]
    predictor = bt.load_predictor(model, device="cpu")
    expected = SimpleITK.GetImageFromArray(bt.predict(file, predictor).mask)
    image = SimpleITK.ReadImage(str(file))
    expected.CopyInformation(image)
    turned = tmp_path / "turned_0000.nii.gz"
    SimpleITK.WriteImage(SimpleITK.DICOMOrient(image, stored), str(turned))

    found = bt.predict(turned, predictor, probabilities=True)
    as_stored = SimpleITK.DICOMOrient(expected, stored)
    np.testing.assert_array_equal(found.mask, SimpleITK.GetArrayFromImage(as_stored))
    assert found.mask.any() and found.probabilities.shape[1:] == found.mask.shape
    assert found.spacing == pytest.approx(as_stored.GetSpacing()[::-1])

    (tmp_path / "in").mkdir()
    turned.rename(tmp_path / "in" / "turned_0000.nii.gz")
    given = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-m", str(model), "-device", "cpu"]
    assert run_command(command, given) == 0
    written = SimpleITK.ReadImage(str(tmp_path / "out" / "turned.nii.gz"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(written), found.mask)
    assert written.GetDirection() == pytest.approx(as_stored.GetDirection())
    assert written.GetOrigin() == pytest.approx(as_stored.GetOrigin())


def test_a_model_of_mixed_orientations_says_so(
    nnunet_folders: Any, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    dataset = write_preprocessed(nnunet_folders.preprocessed, "3d_fullres")
    mixed = TinyDataset(
        {**dataset.plans, "orientations": {"LPS": 5, "PIL": 2}}, dataset.dataset_json, dataset.configuration
    )
    model = save_model(mixed, TRAINERS["3d_fullres"], (0,), "checkpoint_final.pth", spacing=1.5)
    make_images(tmp_path / "images", "3d_fullres")
    given = ["-i", str(tmp_path / "images"), "-o", str(tmp_path / "out"), "-m", str(model), "-device", "cpu"]
    assert run_command(command, given) == 0
    assert "trained on volumes in different orientations (LPS 5, PIL 2)" in capsys.readouterr().err
