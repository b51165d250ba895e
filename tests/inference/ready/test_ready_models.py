"""Ready models: packed, listed, installed, and put to use on images of any kind."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from calibration_data import make_calibration
from PIL import Image
from tiny_training import CLASS_NAMES, save_model, write_preprocessed

from braintum.evaluation.calibration.calibration import store_calibration
from braintum.inference.api import load_predictor
from braintum.inference.cli import predict as predict_command
from braintum.inference.models_cli import models as command
from braintum.inference.ready import zoo
from braintum.inference.ready.card import card_text
from braintum.inference.ready.own_images import find_images, read_image
from braintum.inference.ready.suitability import Suitability, plain_warnings
from braintum.inference.ready_models import pack_trained

CARD = {
    "name": "tiny-model",
    "version": "1",
    "summary": "A model for tests.",
    "classes": list(CLASS_NAMES),
    "input": "2-D T1ce",
    "data": [{"name": "Tiny", "licence": "CC0", "images": 8, "source": "drawn"}],
    "licence": "Apache-2.0",
    "starting_weights": {"name": "none"},
    "split": "none",
    "figures": [{"what": "Dice", "value": 0.5, "interval": "0.4 to 0.6", "data": "Tiny"}],
    "controls": ["none was made"],
    "not_for": ["patients"],
    "command": ["nnUNetv2_train 7 2d all"],
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("braintum.inference.prediction.devices.os.cpu_count", lambda: 1)
    monkeypatch.setattr("braintum.inference.prediction.case_streams.available_cores", lambda: 1)
    monkeypatch.setenv(zoo.VARIABLE, str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def trained(nnunet_folders: Any) -> Path:
    """A trained model with a calibration."""
    dataset = write_preprocessed(nnunet_folders.preprocessed, "2d")
    folder = save_model(dataset, "nnUNetTrainerMultiTask", (0,), "checkpoint_final.pth")
    store_calibration(folder, make_calibration(folds=(0,), temperature=2.0, threshold=0.99))
    return folder


@pytest.fixture
def card_file(tmp_path: Path) -> Path:
    file = tmp_path / "card.json"
    file.write_text(json.dumps(CARD))
    return file


@pytest.fixture
def model(trained: Path, card_file: Path, nnunet_folders: Any) -> zoo.ReadyModel:
    preprocessed = next(nnunet_folders.preprocessed.glob("*/tiny_2d"))
    pack_trained(trained, 0, card_file, preprocessed, None)
    return zoo.ready_model("tiny-model")


def brain(shape: tuple[int, ...] = (60, 50), seed: int = 0) -> np.ndarray:
    image = np.random.default_rng(seed).normal(100, 15, shape).clip(1, 255)
    image[..., 20:35, 15:30] += 80
    return image.clip(0, 255).astype(np.uint8)


# ---------------------------------------------------------------------- packing and installing


def test_packed_model_predicts_as_the_trained_one_does(trained: Path, model: zoo.ReadyModel) -> None:
    original, packed = (
        load_predictor(trained, folds=[0], device="cpu"),
        load_predictor(model.folder, folds=["all"], device="cpu"),
    )
    for name, tensor in packed.list_of_parameters[0].items():
        if tensor.is_floating_point():
            assert tensor.dtype == torch.float32
            torch.testing.assert_close(tensor, original.list_of_parameters[0][name], rtol=1e-3, atol=1e-6)
    assert packed.dataset_json["calibration"]["temperature"] == 2.0
    sizes = [
        sum(tensor.nbytes for tensor in torch.load(file, weights_only=True)["network_weights"].values())
        for file in (model.folder / "fold_all" / "checkpoint_final.pth", trained / "fold_0" / "checkpoint_final.pth")
    ]
    assert sizes[0] < 0.51 * sizes[1]
    suitability = model.suitability()
    assert suitability is not None and suitability.limit > 0


def test_card_is_complete_and_readable(model: zoo.ReadyModel, capsys: pytest.CaptureFixture[str]) -> None:
    text = card_text(model.card)
    for part in (
        "tiny-model 1",
        "CC0",
        "Dice: 0.5 (95 %: 0.4 to 0.6), Tiny",
        "patients",
        "nnUNetv2_train 7",
        model.card["weights"],
    ):
        assert part in text
    assert command(["list"]) == 0 and command(["show", "tiny-model"]) == 0
    assert predict_command(["--card", "--model", "tiny-model"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("# tiny-model 1") == 2
    assert any(line.startswith("tiny-model ") for line in printed.splitlines())


def test_export_and_install(
    model: zoo.ReadyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.zip"
    assert command(["export", "tiny-model", str(file)]) == 0
    with pytest.raises(FileExistsError, match="tiny-model is there already"):
        zoo.install(file)
    monkeypatch.setenv(zoo.VARIABLE, str(tmp_path / "elsewhere"))
    assert command(["install", str(file)]) == 0
    assert "braintum_models show tiny-model" in capsys.readouterr().out
    installed = zoo.ready_model("tiny-model")
    assert installed.card == model.card and installed.folder.parent == tmp_path / "elsewhere"


@pytest.mark.parametrize("fault", ["weights", "extra", "outside", "none", "truncated"])
def test_bad_archives_leave_nothing(
    model: zoo.ReadyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    file = tmp_path / "model.zip"
    zoo.export(model, file)
    with zipfile.ZipFile(file) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    if fault == "weights":
        name = "tiny-model/fold_all/checkpoint_final.pth"
        checkpoint = torch.load(model.folder / "fold_all" / "checkpoint_final.pth", weights_only=True)
        first = next(iter(checkpoint["network_weights"].values()))
        first += 1
        torch.save(checkpoint, tmp_path / "changed.pth")
        content[name] = (tmp_path / "changed.pth").read_bytes()
    elif fault == "extra":
        content["tiny-model/run_me.py"] = b"print(1)"
    elif fault == "outside":
        content["../evil"] = b""
    elif fault == "none":
        content = {"readme.txt": b"nothing"}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    if fault == "truncated":
        file.write_bytes(file.read_bytes()[:-200])
    monkeypatch.setenv(zoo.VARIABLE, str(tmp_path / "elsewhere"))
    expected = {"weights": "not those of the card", "truncated": "damaged|holds no model"}.get(fault, "holds no model")
    with pytest.raises(ValueError, match=expected):
        zoo.install(file)
    assert not list((tmp_path / "elsewhere").rglob("*.pth"))


def test_card_that_lacks_something_is_refused(trained: Path, tmp_path: Path, own_folder: Path) -> None:
    with pytest.raises(ValueError, match="'not_for' is a required property"):
        zoo.pack(trained, {key: value for key, value in CARD.items() if key != "not_for"}, own_folder, 0)
    assert not list(own_folder.glob("*"))


def test_unknown_model() -> None:
    with pytest.raises(ValueError, match="no ready model 'other'.*braintum_models install"):
        zoo.ready_model("other")


# ---------------------------------------------------------------------- images


def test_every_kind_of_image_gets_mask_class_and_picture(
    model: zoo.ReadyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, output = tmp_path / "images", tmp_path / "output"
    images.mkdir()
    Image.fromarray(brain()).save(images / "picture.png")
    Image.fromarray(brain(seed=1)).convert("RGB").save(images / "photo of a film.jpg", quality=90)
    flat = sitk.GetImageFromArray(brain(seed=2).astype(np.int16))
    flat.SetSpacing((0.5, 0.9))
    sitk.WriteImage(flat, str(images / "slice_0000.nii.gz"))
    volume = sitk.DICOMOrient(sitk.GetImageFromArray(brain((4, 60, 50), 3)), "PIR")
    volume.SetSpacing((1.0, 1.0, 1.0))
    sitk.WriteImage(volume, str(images / "volume.nii"))
    dicom = sitk.GetImageFromArray(brain((1, 60, 50), 4).astype(np.uint16))
    dicom.SetSpacing((0.5, 0.5, 5.0))
    sitk.WriteImage(dicom, str(images / "IM1.dcm"))
    (images / "notes.txt").write_text("no image")
    Image.fromarray(np.zeros((80, 80), np.uint8)).save(images / "empty.png")

    assert predict_command(["-i", str(images), "-o", str(output), "--model", "tiny-model", "-device", "cpu"]) == 3
    printed, said = capsys.readouterr()
    assert "not predicted: empty.png: " in said and "an empty image, all pixels have one value" in said
    names = {"picture", "photo of a film", "slice", "volume", "IM1"}
    assert {file.stem for file in (output / "classes").glob("*.json")} == names
    assert {file.stem for file in (output / "overlays").glob("*.png")} == names
    assert np.asarray(Image.open(output / "picture.png")).shape == (60, 50)
    for name, source in (("slice", images / "slice_0000.nii.gz"), ("volume", images / "volume.nii")):
        mask, image = sitk.ReadImage(str(output / f"{name}.nii.gz")), sitk.ReadImage(str(source))
        assert mask.GetSize() == image.GetSize() and mask.GetSpacing() == pytest.approx(image.GetSpacing())
        if image.GetDimension() == 3:
            assert mask.GetDirection() == pytest.approx(image.GetDirection())
            assert mask.GetOrigin() == pytest.approx(image.GetOrigin())
    results = {name: json.loads((output / "classes" / f"{name}.json").read_text()) for name in names}
    assert {name: result["volume_unit"] for name, result in results.items()} == {
        "picture": "px", "photo of a film": "px", "slice": "mm2", "volume": "mm3", "IM1": "mm2"
    }  # fmt: skip
    pixels = np.count_nonzero(np.asarray(Image.open(output / "picture.png")))
    assert results["picture"]["tumour_volume"] == pixels
    in_mm2 = np.count_nonzero(sitk.GetArrayFromImage(sitk.ReadImage(str(output / "slice.nii.gz")))) * 0.45
    assert results["slice"]["tumour_volume"] == pytest.approx(in_mm2)
    for result in results.values():
        assert result["calibration"]["verdict"] in (*CLASS_NAMES, "uncertain") and "warnings" in result
        assert sum(result["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    assert len((output / "classes.csv").read_text().splitlines()) == 6
    assert "5 images predicted by tiny-model 1" in printed and "not a medical device" in printed


def test_volume_is_cut_upright_and_its_mask_turned_back(tmp_path: Path) -> None:
    array = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    for orientation in ("LPS", "RAS", "PIR", "SLP"):
        image = sitk.DICOMOrient(sitk.GetImageFromArray(array), orientation)
        file = tmp_path / f"{orientation}.nii.gz"
        sitk.WriteImage(image, str(file))
        read = read_image(file)
        np.testing.assert_array_equal(read.slices, array)  # LPS again, whatever the file's order
        mask = (read.slices % 7 == 0).astype(np.uint8)
        written = sitk.ReadImage(
            str(
                read.write_mask(
                    mask, tmp_path / "masks" if (tmp_path / "masks").mkdir(exist_ok=True) else tmp_path / "masks"
                )
            )
        )
        np.testing.assert_array_equal(sitk.GetArrayFromImage(written), (sitk.GetArrayFromImage(image) % 7 == 0))


def test_coarsest_axis_decides_the_plane(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(np.random.default_rng(0).random((30, 8, 20)).astype(np.float32))
    image.SetSpacing((1.0, 6.0, 1.0))  # coronal slices
    sitk.WriteImage(image, str(tmp_path / "coronal.nii.gz"))
    read = read_image(tmp_path / "coronal.nii.gz")
    assert read.plane == "coronal" and read.slices.shape == (8, 30, 20) and read.spacing == (6.0, 1.0, 1.0)
    np.testing.assert_array_equal(read.slices[0], sitk.GetArrayFromImage(image)[::-1, 0])  # the head on top


def test_faulty_images_do_not_stop_the_others(
    model: zoo.ReadyModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(brain()).save(images / "good.png")
    (images / "broken.png").write_bytes(b"\x89PNG no picture")
    (images / "broken2.nii.gz").write_bytes(b"nothing")
    Image.fromarray(brain()).save(images / "good.jpg")  # the same name
    assert (
        predict_command(["-i", str(images), "-o", str(tmp_path / "out"), "--model", "tiny-model", "-device", "cpu"])
        == 3
    )
    said = capsys.readouterr()
    assert "1 images predicted" in said.out
    for part in ("broken.png: not a complete picture", "broken2.nii.gz", "would both be called good"):
        assert part in said.err


def test_what_is_asked_for_has_to_make_sense(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_images(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="holds no image"):
        find_images(tmp_path)
    with pytest.raises(ValueError, match="--model and --card are about ready models"):
        predict_command(["-i", "a", "-o", "b", "-m", "c", "--model", "d"])
    with pytest.raises(SystemExit):
        predict_command(["-i", "a"])


# ---------------------------------------------------------------------- what suits the model


def test_photographs_and_ct_are_told_apart(tmp_path: Path) -> None:
    photograph = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    Image.fromarray(photograph).save(tmp_path / "photograph.png")
    marked = np.stack([brain((80, 80))] * 3, 2)
    marked[2:6, 2:8] = (255, 0, 0)  # a small coloured mark
    Image.fromarray(marked).save(tmp_path / "marked.png")
    Image.fromarray(brain((30, 80))).save(tmp_path / "small.png")
    ct = sitk.GetImageFromArray(brain((1, 80, 80)).astype(np.int16) - 1000)
    sitk.WriteImage(ct, str(tmp_path / "ct.dcm"))
    warnings = {path.stem: " ".join(plain_warnings(read_image(path))) for path in tmp_path.iterdir()}
    assert "have a colour" in warnings["photograph"] and warnings["marked"] == ""
    assert "80×30 pixels" in warnings["small"] and "Hounsfield" in warnings["ct"]


def test_distance_accepts_its_quantile_and_no_other_kind(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    mixing = random.normal(size=(12, 12))
    known = random.normal(size=(2000, 12)) @ mixing
    fitted = Suitability.fit(known, quantile=0.99)
    new = random.normal(size=(2000, 12)) @ mixing
    assert 0.98 < (fitted.distance(new) <= fitted.limit).mean() < 0.999
    assert (fitted.distance(random.normal(size=(50, 12)) @ mixing + 6 * mixing[0]) > fitted.limit).mean() > 0.9
    fitted.save(tmp_path / "suitability.npz")
    loaded = Suitability.load(tmp_path / "suitability.npz")
    np.testing.assert_allclose(loaded.distance(new), fitted.distance(new), rtol=0.02)
    (tmp_path / "suitability.npz").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="damaged.*install the model again"):
        Suitability.load(tmp_path / "suitability.npz")
