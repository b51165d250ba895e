"""From a source to explained predictions with ``import braintum`` alone: the examples of its functions, in order."""

import doctest
import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
from nnunet_runs import threads_for_processes

import braintum as bt
from braintum.conversion.sources.phantoms import write_figshare_phantoms

BEFORE = ("convert", "plan", "train")
AFTER = ("load_predictor", "predict", "preprocess", "load_model", "predict_folder", "evaluate", "evaluate_models")
AFTER += ("explain",)


def run_examples(function: str, names: dict[str, Any]) -> None:
    """Run what a docstring shows, and compare what it says; what nnU-Net prints in between does not count."""
    examples = doctest.DocTestParser().get_examples(inspect.getdoc(getattr(bt, function)) or "")
    assert examples
    for example in examples:
        if example.want:
            assert repr(eval(example.source, names)) == example.want.strip(), example.source
        else:
            exec(example.source, names)


def test_every_function_has_its_place() -> None:
    assert {*BEFORE, *AFTER} == {name for name in bt.__all__ if inspect.isfunction(getattr(bt, name))}


@pytest.mark.slow
def test_examples_lead_the_whole_way(nnunet_folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # starting processes takes longer than all else here
    write_figshare_phantoms("source", n_patients=15, slices_per_patient=1, size=64)
    names: dict[str, Any] = {"bt": bt, "np": np}
    with threads_for_processes():
        for function in BEFORE:
            run_examples(function, names)
    raw, fold = names["result"].folder, names["folder"]
    assert names["plans"] == nnunet_folders.preprocessed / raw.name / "BrainTumLightPlans.json"
    assert (fold / "checkpoint_final.pth").is_file() and (fold / "validation" / "classes.csv").is_file()
    settings = json.loads((fold / "validation" / "provenance.json").read_text(encoding="utf-8"))["settings"]
    assert (settings["num_epochs"], settings["num_iterations_per_epoch"]) == (1, 2)

    held_out = json.loads((raw / "splits_final.json").read_text(encoding="utf-8"))[0]["val"]
    for folder in ("images", "labels"):
        Path(folder).mkdir()
    for case in held_out:
        shutil.copy(raw / "imagesTr" / f"{case}_0000.nii.gz", "images")
        shutil.copy(raw / "labelsTr" / f"{case}.nii.gz", "labels")
    shutil.copy(raw / "cases.csv", "cases.csv")
    shutil.copy(Path("images") / f"{held_out[0]}_0000.nii.gz", "case_0000.nii.gz")
    with threads_for_processes():
        for function in AFTER:
            run_examples(function, names)
    assert sorted(names["outcome"].predicted) == sorted(held_out)
    written = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(f"predictions/{held_out[0]}.nii.gz"))
    assert written.tobytes() == bt.predict("case_0000.nii.gz", names["predictor"]).mask.tobytes()
    summary = json.loads(Path("predictions/summary.json").read_text(encoding="utf-8"))["braintum"]
    assert summary["num_cases"] == names["found"].summary["num_cases"] == 3
    assert [row["case"] for row in names["explained"].rows] == [sorted(held_out)[0]]
    assert Path("explanations/explanations.csv").is_file()
