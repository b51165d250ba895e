"""braintum_explain, on volumes and slices."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from PIL import Image
from tiny_training import CLASS_NAMES, TinyDataset, save_model, write_images, write_preprocessed
from volume_data import write_volume_file

from braintum.evaluation.report.report import read_explanations
from braintum.inference import explain_cli
from braintum.inference.explanation.attribution import ATTENTION_MASKS, METHODS


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command takes all processors, which slows tiny networks down where tests run side by side."""
    monkeypatch.setattr("braintum.inference.prediction.devices.os.cpu_count", lambda: 1)


def write_model(folders: Any, configuration: str, reader: str = "SimpleITKIO", ending: str = ".nii.gz") -> Path:
    """A model folder with untrained weights that predict some tumour."""
    dataset = write_preprocessed(folders.preprocessed, configuration)
    plans = {**dataset.plans, "image_reader_writer": reader}
    dataset = TinyDataset(plans, {**dataset.dataset_json, "file_ending": ending}, configuration)
    return save_model(dataset, "nnUNetTrainerMultiTask", (0,), "checkpoint_final.pth")


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_command_on_volumes(
    configuration: str, nnunet_folders: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(nnunet_folders, configuration)
    images, labels, target = tmp_path / "images", tmp_path / "labels", tmp_path / "out"
    shape = (10, 20, 18) if configuration == "3d_fullres" else (3, 32, 32)
    generator = np.random.default_rng(0)
    for case in ("a", "b"):
        write_volume_file(images / f"{case}_0000.nii.gz", generator.normal(100, 20, shape).astype(np.float32))
    (images / "c_0000.nii.gz").write_bytes(b"no image")
    truth = np.zeros(shape, np.uint8)
    truth[1:3, 4:9, 5:11] = 1
    write_volume_file(labels / "a.nii.gz", truth)
    arguments = ["-i", images, "-o", target, "-m", model, "-g", labels, "-device", "cpu", "--disable_tta"]
    code = explain_cli.explain([str(argument) for argument in [*arguments, "--disable_progress_bar"]])
    printed = capsys.readouterr()
    assert code == 3 and "not explained: c: " in printed.err and "c_0000.nii.gz: not packed with gzip" in printed.err
    assert "2 cases explained" in printed.out and f"1 cases have no label map in {labels}: b" in printed.out
    names = {"a.nii.gz", "a_overlay.png", "b.nii.gz", "b_overlay.png", "explanations.csv", "explanations.json"}
    assert {file.name for file in target.iterdir()} == names
    content = json.loads((target / "explanations.json").read_text())
    row, other = content["cases"]
    written, image = (SimpleITK.ReadImage(str(f)) for f in (target / "a.nii.gz", images / "a_0000.nii.gz"))
    np.testing.assert_allclose(written.GetDirection(), image.GetDirection(), atol=1e-6)
    assert written.GetSize() == image.GetSize() and written.GetPixelID() == SimpleITK.sitkFloat32
    attribution = SimpleITK.GetArrayFromImage(written).astype(np.float64)
    assert row["true_mask_share"] == pytest.approx(attribution[truth == 1].sum() / attribution.sum(), rel=1e-5)
    assert row["true_mask_area"] == pytest.approx(2 * 5 * 6 / np.prod(shape))
    assert row["true_mask_ratio"] == pytest.approx(row["true_mask_share"] / row["true_mask_area"])
    assert other["true_mask_share"] is None
    assert row["class"] == row["predicted_class"] in CLASS_NAMES and 1 / 3 < row["probability"] <= 1
    assert all(-1 <= row[f"spearman_random_{part}"] < 0.999 for part in ("head", "network"))
    with open(target / "explanations.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert list(table[0]) == list(row)
    assert float(table[0]["true_mask_ratio"]) == pytest.approx(row["true_mask_ratio"], abs=1e-6)
    assert table[1]["true_mask_share"] == ""
    assert np.asarray(Image.open(target / "a_overlay.png")).std() > 10


@pytest.mark.slow
def test_command_on_png_and_wrong_arguments(nnunet_folders: Any, tmp_path: Path) -> None:
    model = write_model(nnunet_folders, "2d", "NaturalImage2DIO", ".png")
    images, target = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for case in "abcd":
        pixels = np.random.default_rng(ord(case)).integers(0, 255, (32, 32)).astype(np.uint8)
        Image.fromarray(pixels).save(images / f"{case}_0000.png")

    def run(*more: Any) -> int:
        command = ["-i", images, "-o", target, "-m", model, "-device", "cpu", "--disable_tta", "--disable_progress_bar"]
        return explain_cli.explain([str(argument) for argument in [*command, *more]])

    assert (
        run("-method", "integrated_gradients", "--limit", 2, "--class", "glioma", "-step_size", 1, "--disable_controls")
        == 0
    )
    assert sorted(file.name for file in target.glob("*_overlay.png")) == ["a_overlay.png", "c_overlay.png"]
    grey = np.asarray(Image.open(target / "a.png")).astype(int)
    assert grey.shape == (32, 32) and (grey.max() == 65535 or grey.min() == 1) and grey.min() < 2**15 < grey.max()
    row = json.loads((target / "explanations.json").read_text())["cases"][0]
    assert row["class"] == "glioma" and row["spearman_random_head"] is None and 0 <= row["completeness_error"] < 0.5
    with pytest.raises(ValueError, match="no class 'gliom'; choose one of meningioma, glioma"):
        run("--class", "gliom")
    with pytest.raises(ValueError, match="input and output are the same folder"):
        run("-o", images)
    with pytest.raises(FileNotFoundError, match="folder of label maps .*absent does not exist"):
        run("-g", tmp_path / "absent")
    with pytest.raises(ValueError, match="-stage is for gradcam"):
        run("-method", "integrated_gradients", "-stage", 1)


@pytest.mark.slow
def test_masks_of_attention(nnunet_folders: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_preprocessed(nnunet_folders.preprocessed, "2d")
    model = save_model(dataset, "nnUNetTrainerBrainTumNet", (0,), "checkpoint_final.pth")
    images, target = write_images(tmp_path / "images", (32, 32), 1), tmp_path / "out"
    command = ["-i", images, "-o", target, "-m", model, "-device", "cpu", "--disable_tta", "--disable_progress_bar"]

    def run(*more: str) -> int:
        return explain_cli.explain([*map(str, command), "-method", "attention_masks", *more])

    assert run() == 0
    assert "1 cases explained" in capsys.readouterr().out
    rows = json.loads((target / "explanations.json").read_text())["cases"]
    blocks = [row["block"] for row in rows]
    assert blocks == ["encoder.bt_blocks.3.0"]  # the plan's only level that is downsampled eightfold
    names = {f"case_0_{block.replace('.', '_')}{ending}" for block in blocks for ending in (".nii.gz", "_overlay.png")}
    assert {file.name for file in target.iterdir()} == {*names, "explanations.csv", "explanations.json"}
    shown = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(target / "case_0_encoder_bt_blocks_3_0.nii.gz")))
    assert shown.shape == (32, 32) and 0 < shown.min() < shown.max() < 1
    assert rows[0]["predicted_mask_share"] > 0
    assert all(-1 <= rows[0][f"spearman_random_{part}"] < 0.999 for part in ("head", "network"))
    for flags in (["--class", "glioma"], ["--mask"], ["--structure", "tumour"]):
        with pytest.raises(ValueError, match="attention_masks are the same for all classes and structures"):
            run(*flags)
    with pytest.raises(ValueError, match="explains masks; a report shows explanations of classes"):
        read_explanations([target])
    command[command.index(model)] = save_model(dataset, "nnUNetTrainerMultiTask", (0,), "checkpoint_final.pth")
    with pytest.raises(ValueError, match="a model of nnUNetTrainerMultiTask has no attention masks"):
        run()


def test_methods_of_the_command_line_are_those_there_are() -> None:
    assert (*METHODS, ATTENTION_MASKS) == explain_cli.METHOD_NAMES
