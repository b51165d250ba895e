"""Files of a case on grids of their own, at prediction."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from tiny_training import TinyDataset, save_model, write_preprocessed

import braintum as bt
from braintum.conversion.files.volumes import geometry_differences
from braintum.inference.cli import predict as predict_command

TILT = sitk.Euler3DTransform((0, 0, 0), 0.2, -0.1, 0.3).GetMatrix()


def volume(
    seed: int, size: tuple, spacing: tuple, origin: tuple, direction: tuple = (1, 0, 0, 0, 1, 0, 0, 0, 1)
) -> Any:
    image = sitk.GetImageFromArray(np.random.default_rng(seed).normal(100, 20, size[::-1]).astype(np.float32))
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    image.SetDirection(direction)
    return image


T1 = volume(1, (24, 20, 10), (1.0, 1.2, 2.0), (-11.0, -12.0, -9.0))
FLAIR = volume(2, (22, 26, 14), (1.1, 0.9, 1.6), (-13.0, -9.0, -13.0), TILT)


@pytest.fixture
def model(nnunet_folders: Any) -> Path:
    dataset = write_preprocessed(nnunet_folders.preprocessed, "3d_fullres")
    plans = json.loads(json.dumps(dataset.plans))
    configuration = plans["configurations"]["3d_fullres"]
    configuration |= {"normalization_schemes": ["ZScoreNormalization"] * 2, "use_mask_for_norm": [False] * 2}
    content = {**dataset.dataset_json, "channel_names": {"0": "T1", "1": "FLAIR"}}
    tiny = TinyDataset(plans, content, "3d_fullres")
    folder = save_model(tiny, "nnUNetTrainerMultiTask", (0,), "checkpoint_final.pth")
    saved = json.loads((folder / "plans.json").read_text())
    saved["foreground_intensity_properties_per_channel"] = {"0": {}, "1": {}}
    (folder / "plans.json").write_text(json.dumps(saved))
    return folder


def write(folder: Path, case: str, *channels: sitk.Image) -> list[str]:
    folder.mkdir(exist_ok=True)
    files = [str(folder / f"{case}_{number:04d}.nii.gz") for number in range(len(channels))]
    for image, file in zip(channels, files, strict=True):
        sitk.WriteImage(image, file)
    return files


@pytest.mark.slow
def test_files_on_different_grids(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    images, out = tmp_path / "in", tmp_path / "out"
    files = write(images, "a", T1, FLAIR)
    write(images, "far", T1, volume(3, (20, 20, 20), (1.0, 1.0, 1.0), (300.0, 0.0, 0.0)))
    command = ["-i", str(images), "-m", str(model), "-device", "cpu", "--exact", "--disable_progress_bar"]
    assert predict_command([*command, "-o", str(out)]) == 3
    message = capsys.readouterr().err
    assert "a_0001.nii.gz: not on the grid of" in message and "--resample-to CHANNEL" in message
    assert not list(out.glob("*.nii.gz"))

    predictor = bt.load_predictor(model, device="cpu")
    by_hand = {
        "T1": [T1, sitk.Resample(FLAIR, T1, sitk.Transform(), sitk.sitkLinear, 0.0)],
        "FLAIR": [sitk.Resample(T1, FLAIR, sitk.Transform(), sitk.sitkLinear, 0.0), FLAIR],
    }
    for channel, reference in (("T1", T1), ("FLAIR", FLAIR)):
        target = tmp_path / channel
        assert predict_command([*command, "-o", str(target), "--resample-to", channel]) == 3
        assert "far" in (message := capsys.readouterr().err) and "do not overlap" in message
        assert list(json.loads((target / "left_out.json").read_text())) == ["far"], message
        mask = sitk.ReadImage(str(target / "a.nii.gz"))
        assert not geometry_differences(reference, mask)
        expected = bt.predict(write(tmp_path / f"by hand {channel}", "a", *by_hand[channel]), predictor, exact=True)
        array = sitk.GetArrayFromImage(mask)
        assert array.any() and (array != expected.mask).mean() < 0.002  # float32 written and read again
        found = bt.predict(files, predictor, exact=True, resample_to=channel)
        np.testing.assert_array_equal(found.mask, array)
        with open(target / "classes.csv", newline="") as stream:
            (row,) = csv.DictReader(stream)
        assert "covers less than 90%" in row["warnings"]

    with pytest.raises(ValueError, match="--resample-to T2: the channels are T1, FLAIR; name one of them"):
        predict_command([*command, "-o", str(out), "--resample-to", "T2"])


def test_ready_models_take_one_channel(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ready models take one"):
        predict_command(["-i", str(tmp_path), "-o", str(tmp_path / "out"), "--resample-to", "T1"])
