"""A folder as a hospital has it: two examinations of a patient, a 2-D model, and an image that is no case's."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_training import save_model, write_images, write_preprocessed

from braintum.conversion.format.cases import Case, write_cases
from braintum.inference.cli import predict as predict_command
from braintum.inference.prediction.known_input import KnownInput
from braintum.inference.prediction.preprocessing import ModelDescription

AXIAL = {"direction": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)}


def note(patch_size: list[int], depth: int, known: KnownInput, **configuration: Any) -> str | None:
    plans: Any = SimpleNamespace(transpose_forward=[0, 1, 2])
    settings: Any = SimpleNamespace(patch_size=patch_size, configuration=configuration)
    properties = {"shape_before_cropping": (depth, 40, 36), "sitk_stuff": AXIAL}
    return ModelDescription(plans, settings, {}, known).slicing_note(properties)


def test_a_2d_model_says_how_it_takes_volumes() -> None:
    volumes = KnownInput(sizes={"z": (9, 9), "y": (9, 9), "x": (9, 9)})
    slices = KnownInput(sizes={"y": (9, 9), "x": (9, 9)})
    text = "The model is 2-D: volumes are predicted slice by slice, in axial slices, none sees its neighbours"
    assert note([32, 32], 5, volumes) == note([32, 32], 5, KnownInput()) == text
    assert note([32, 32], 5, slices) == f"{text}; it was trained on single slices, so see that they were of this plane"
    assert "each with 2 neighbours on both sides" in str(note([32, 32], 5, volumes, neighbouring_slices=2))
    assert note([32, 32], 1, slices) is None and note([8, 32, 32], 5, volumes) is None


@pytest.mark.slow
def test_two_dates_a_2d_model_and_an_unused_image(
    nnunet_folders: Any, tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = write_preprocessed(nnunet_folders.preprocessed, "2d")
    model = save_model(dataset, "nnUNetTrainerMultiTask", (0,), "checkpoint_final.pth")
    images, out = write_images(tmp_path / "in", (3, 40, 36), num_cases=2), tmp_path / "in" / "out"
    (images / "case_2_0000.NII.GZ").write_bytes((images / "case_1_0000.nii.gz").read_bytes())
    write_cases(tmp_path / "cases.csv", [Case(f"case_{n}", patient="Eva", date=f"202{n}-03-04") for n in range(2)])
    command = ["-i", str(images), "-o", str(out), "-m", str(model), "-device", "cpu", "--disable_progress_bar"]
    command += ["--cases", str(tmp_path / "cases.csv")]
    for arguments, code in ((command, 3), ([*command, "--not-needed", "*.NII.GZ"], 0)):
        caplog.clear()
        assert predict_command(arguments) == code
        printed = capsys.readouterr()
        notes = [record.message for record in caplog.records if "2-D" in record.message]
        assert len(notes) == 1 and "slice by slice, in axial slices" in notes[0]
        assert f"volumes over time are in {out / 'time_points.csv'}" in printed.out
        if code:
            assert "not predicted: case_2_0000.NII.GZ: " in printed.err
            assert "1 cases or images were not predicted; all are listed in" in printed.err
            left_out = json.loads((out / "left_out.json").read_text())
            assert left_out["case_2_0000.NII.GZ"].startswith("case_2_0000.NII.GZ: an image that was not used")
    assert not (out / "left_out.json").exists()

    volumes = [json.loads((out / "classes" / f"case_{n}.json").read_text())["tumour_volume"] / 1000 for n in range(2)]
    with open(out / "time_points.csv", newline="") as stream:
        first, second = csv.DictReader(stream)
    assert (first["date"], first["volume_unit"], first["change_ml"]) == ("2020-03-04", "ml", "")
    assert float(second["tumour_volume"]) == pytest.approx(volumes[1], abs=5e-4)
    assert float(second["change_ml"]) == pytest.approx(volumes[1] - volumes[0], abs=1e-3)
    if volumes[0]:
        assert float(second["change_percent"]) == pytest.approx(100 * (volumes[1] / volumes[0] - 1), abs=1e-3)
