"""What is looked at before a model is loaded, and what is written of cases that were left out."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from braintum.commands import cuda_warnings
from braintum.inference.prediction.input_files import (
    check_folder,
    check_input,
    check_output,
    find_cases,
    write_left_out,
)

DATASET = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "tumour": 1}, "file_ending": ".nii.gz"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "dataset.json").write_text(json.dumps(DATASET))
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "holds no file .*nii.gz, it is empty; the model was trained on files named CASE_0000.nii.gz"),
        (["a.mat", "b.mat", "c.mat", "d.mat"], r"but a.mat, b.mat, c.mat, …; .* converted as the training data was"),
        (["a_0000.png"], "but a_0000.png; "),
        (None, "the input folder .* does not exist"),
    ],
)
def test_wrong_input_is_told_before_torch_is_imported(
    tmp_path: Path, model: Path, names: list[str] | None, message: str
) -> None:
    if names is not None:
        (tmp_path / "in").mkdir()
        for name in names:
            (tmp_path / "in" / name).touch()
    with pytest.raises(FileNotFoundError, match=message):
        check_input(tmp_path / "in", model)
    code = (
        "import sys; from braintum.inference.cli import predict\n"
        "try: predict(sys.argv[1:])\n"
        "except FileNotFoundError: print('torch' in sys.modules)"
    )
    arguments = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-m", str(model)]
    run = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert run.stdout == "False\n" and not (tmp_path / "out").exists()


def test_a_file_in_place_of_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "a_0000.nii.gz"
    file.touch()
    with pytest.raises(NotADirectoryError, match="is a file; give the folder that holds it"):
        check_folder(file)
    with pytest.raises(NotADirectoryError, match="a_0000.nii.gz is a file; choose another output folder"):
        check_output(file / "out", tmp_path)
    with pytest.raises(ValueError, match="same folder"):
        check_output(tmp_path / "x" / "..", tmp_path)


def test_folders_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_output(tmp_path / "new" / "out", tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match="may not be read"):
        check_folder(tmp_path)
    with pytest.raises(PermissionError, match="may not be written to; choose another output folder"):
        check_output(tmp_path / "new" / "out", tmp_path)


def test_a_model_that_is_none_is_left_to_its_loader(tmp_path: Path, model: Path) -> None:
    (model / "dataset.json").write_text("{")
    check_input(tmp_path, model)
    with pytest.raises(FileNotFoundError):
        find_cases(tmp_path, ".nii.gz", 1)


def test_left_out_cases_of_runs_that_share_a_folder(tmp_path: Path) -> None:
    file, source = tmp_path / "left_out.json", tmp_path / "in"
    write_left_out(file, {}, source)
    assert not file.exists()
    write_left_out(file, {"b": f"{source}/b_0000.nii.gz: damaged", "a": "x"}, source)
    assert json.loads(file.read_text()) == {"a": "x", "b": "b_0000.nii.gz: damaged"}
    write_left_out(file, {"c": "y"}, source, others=["a"])  # of another part; b is of this one, and well by now
    assert json.loads(file.read_text()) == {"a": "x", "c": "y"}
    file.write_text("{")
    write_left_out(file, {}, source)
    assert not file.exists()


@pytest.mark.parametrize("has_device", [False, True])
def test_warnings_about_cuda(monkeypatch: pytest.MonkeyPatch, has_device: bool) -> None:
    monkeypatch.setattr(cuda_warnings.shutil, "which", lambda name: "/usr/bin/nvidia-smi" if has_device else None)
    monkeypatch.setattr(cuda_warnings, "_DEVICES", ())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cuda_warnings.hide_cuda_warnings()
        warnings.warn("User provided device_type of 'cuda', but CUDA is not available.", UserWarning, stacklevel=1)
        warnings.warn("CUDA initialization: Found no NVIDIA driver", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
    assert len(caught) == (3 if has_device else 1)
