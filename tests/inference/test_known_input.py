"""Images that are unlike those of the training: named, or refused."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from tiny_training import save_model, write_images, write_preprocessed

from braintum.conversion.files.volumes import VolumeError
from braintum.inference import cli
from braintum.inference.prediction.known_input import KnownInput

STOCK = {"shapes_after_crop": [[20, 100, 90], [22, 110, 95], [24, 120, 99]], "spacings": [[3.0, 1.0, 1.0]] * 3}


def known(folder: Path, scheme: str = "ZScoreNormalization", **content: Any) -> KnownInput:
    (folder / "dataset_fingerprint.json").write_text(json.dumps({**STOCK, **content}))
    return KnownInput.of(folder, [scheme])


def head(shape: tuple[int, ...] = (1, 22, 110, 95), lowest: float = 1) -> np.ndarray:
    return np.random.default_rng(0).uniform(lowest, 500, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("shape", "lowest", "spacing", "found"),
    [
        ((1, 22, 110, 95), 1, (3, 1, 1), []),
        ((1, 11, 60, 190), 1, (5.9, 0.6, 1.9), []),  # within twice the range
        ((1, 22, 110, 95), -1000, (3, 1, 1), ["like Hounsfield units of CT"]),
        ((1, 22, 512, 95), 1, (3, 1, 1), ["512 voxels along y, 100 to 120 in training"]),
        ((1, 5, 110, 95), 1, (3, 1, 1), ["5 voxels along z"]),
        ((1, 1, 110, 95), 1, (999, 1, 1), ["1 voxels along z"]),  # a slice, whose spacing across means nothing
        ((1, 22, 110, 95), 1, (3, 0.2, 1), ["a spacing of 0.2 mm along y, 1 to 1 in training"]),
    ],
)
def test_what_is_far_beyond_the_training_is_named(
    tmp_path: Path, shape: tuple[int, ...], lowest: float, spacing: tuple[float, ...], found: list[str]
) -> None:
    doubts = known(tmp_path).doubts(head(shape, lowest), spacing, "x")
    assert len(doubts) == len(found)
    assert all(text in doubt for text, doubt in zip(found, doubts, strict=True))


def test_surroundings_of_zeros_do_not_count(tmp_path: Path) -> None:
    image = np.pad(head(), ((0, 0), (30, 30), (200, 200), (200, 200)))
    assert not known(tmp_path).doubts(image, (3, 1, 1), "x")


def test_models_that_know_negative_values(tmp_path: Path) -> None:
    image = head(lowest=-1000)
    assert not known(tmp_path, "CTNormalization").doubts(image, (3, 1, 1), "x")
    channels = [{"minimum": -1024, "missing_images": 0}]
    assert not known(tmp_path, braintum={"channels": channels}).doubts(image, (3, 1, 1), "x")
    assert KnownInput().doubts(image, (9, 9, 9), "x")  # nothing is known, but that it is MRI


def test_empty_images_are_refused_and_empty_channels_named(tmp_path: Path) -> None:
    two = np.concatenate([head(), head() * 0])
    assert known(tmp_path).doubts(two, (3, 1, 1), "x") == [
        "channel 0001 is empty, all voxels have one value: is the sequence missing?"
    ]
    channels = [{"minimum": 0, "missing_images": 0}, {"minimum": 0, "missing_images": 2}]
    assert not known(tmp_path, braintum={"channels": channels}).doubts(two, (3, 1, 1), "x")
    for value in (0, 7):
        with pytest.raises(VolumeError, match="a.nii.gz: an empty image, all voxels have one value"):
            KnownInput().doubts(np.full((2, 3, 4, 5), value), (1, 1, 1), "a.nii.gz")


def test_slices_have_no_third_axis(tmp_path: Path) -> None:
    slices = {"shapes_after_crop": [[1, 100, 90]] * 3, "spacings": [[999, 1, 1]] * 3}
    assert not known(tmp_path, **slices).doubts(head((1, 30, 100, 90)), (2, 1, 1), "x")


@pytest.mark.parametrize(
    "content", [{"spacings": [[1, "a", 1]] * 3}, {"braintum": []}, {"braintum": {"channels": [{}]}}]
)
def test_damaged_fingerprint(tmp_path: Path, content: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="dataset_fingerprint.json is damaged"):
        known(tmp_path, **content)


def test_prediction_says_so(nnunet_folders: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = write_preprocessed(nnunet_folders.preprocessed, "2d")
    model = save_model(dataset, "nnUNetTrainerMultiTask", (0,), "checkpoint_final.pth")
    fingerprint = {"shapes_after_crop": [[1, 32, 32]] * 3, "spacings": [[999, 1, 1]] * 3}
    (model / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    images = write_images(tmp_path / "images", (32, 32))
    for number, change in ((1, lambda image: image * 0), (2, lambda image: image - 1000)):
        file = str(images / f"case_{number}_0000.nii.gz")
        SimpleITK.WriteImage(change(SimpleITK.ReadImage(file)), file)
    out = tmp_path / "out"
    arguments = ["-i", str(images), "-o", str(out), "-m", str(model), "-device", "cpu", "--disable_progress_bar"]
    assert cli.predict(arguments) == 3
    said = capsys.readouterr().err
    assert "warning: case_2: intensities from -9" in said and said.count("warning: ") == 1
    assert "not predicted: case_1: " in said and "case_1_0000.nii.gz: an empty image" in said
    assert json.loads((out / "left_out.json").read_text()) == {
        "case_1": "case_1_0000.nii.gz: an empty image, all voxels have one value; export it again"
    }
    with open(out / "classes.csv", newline="") as stream:
        rows = {row["case"]: row["warnings"] for row in csv.DictReader(stream)}
    assert (
        rows.keys() == {"case_0", "case_2", "case_3"} and "Hounsfield" in rows.pop("case_2") and not any(rows.values())
    )
