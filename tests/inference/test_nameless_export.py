"""Exported models: they predict the same, and name nobody in any byte."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import TinyDataset, save_model, write_preprocessed

import braintum as bt
from braintum.conversion.format.cases import Case, write_cases
from braintum.inference.export_model_cli import export
from braintum.inference.model_zip_cli import install
from braintum.inference.models.model_zip import named_cases
from braintum.inference.models.nameless_export import export_model
from braintum.inference.prediction.known_input import KnownInput

NAMES = ("Mueller_Eva", "Schmidt_1962", "Doe_Jane", "P0815")


@pytest.fixture
def model(nnunet_folders: Any) -> Path:
    """A model whose files name cases wherever nnU-Net, braintum and users write them."""
    dataset = write_preprocessed(nnunet_folders.preprocessed, "2d")
    named = {
        **dataset.dataset_json,
        "description": "Three kinds of tumours",
        "remarks": {"no tumour in the mask": list(NAMES[:2])},
        "training": [{"image": f"./imagesTr/{NAMES[2]}.nii.gz"}],
        "dataset": {NAMES[0]: {"images": [f"/data/{NAMES[0]}_0000.nii.gz"], "label": "x"}},
    }
    folder = save_model(
        TinyDataset(dataset.plans, named, "2d"), "nnUNetTrainerMultiTask", (0, 1), "checkpoint_final.pth"
    )
    fingerprint = {
        "spacings": [[999.0, 1.0, 1.0]] * 4,
        "shapes_after_crop": [[1, 32, 32]] * 4,
        "foreground_intensity_properties_per_channel": {},
        "median_relative_size_after_cropping": 1.0,
        "braintum": {
            "channels": [
                {"name": "T1", "minimum": -5.0, "maximum": 9.0, "missing_images": 1, "missing_in": [NAMES[3]]}
            ],
            "undeclared_values": [NAMES[1]],
        },
    }
    (folder / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    for fold, name in enumerate(NAMES[:2]):
        (folder / f"fold_{fold}" / "validation").mkdir()
        metrics = [{"prediction_file": f"/r/validation/{name}.nii.gz", "reference_file": f"/l/{name}.nii.gz"}]
        summary = {"foreground_mean": {"Dice": 0.75}, "mean": {"1": {"Dice": 0.75}}, "metric_per_case": metrics}
        (folder / f"fold_{fold}" / "validation" / "summary.json").write_text(json.dumps(summary))
        (folder / f"fold_{fold}" / "debug.json").write_text(json.dumps({"dataset_tr": list(NAMES)}))
        file = folder / f"fold_{fold}" / "checkpoint_final.pth"
        checkpoint = torch.load(file, weights_only=False)
        assert name in json.dumps(checkpoint["init_args"]["dataset_json"])
        torch.save({**checkpoint, "logging": {"cases": list(NAMES)}}, file)
    cases = [Case(f"case_{name}", "glioma", name, source=f"{name}/t1") for name in NAMES]
    write_cases(nnunet_folders.preprocessed / "Dataset007_Tiny" / "cases.csv", cases)
    return folder


def all_bytes(archive: Path) -> dict[str, bytes]:
    """Of the members, and of the members of checkpoints, which are zip files too."""
    found = {}
    with zipfile.ZipFile(archive) as content:
        for name in content.namelist():
            found[name] = content.read(name)
            if name.endswith(".pth"):
                with zipfile.ZipFile(io.BytesIO(found[name])) as inner:
                    found |= {f"{name}/{part}": inner.read(part) for part in inner.namelist()}
    return found


@pytest.mark.slow
def test_exported_model_predicts_the_same_and_names_nobody(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert export(["-m", str(model), "-o", str(tmp_path / "model.zip")]) == 0
    assert "names no case of the training; compared with" in capsys.readouterr().out
    content = all_bytes(tmp_path / "model.zip")
    assert len(content) > 8
    for member, data in content.items():
        for name in NAMES:
            assert name.encode() not in data and name not in member
    assert install([str(tmp_path / "model.zip"), "-o", str(tmp_path / "results")]) == 0
    (plans,) = (tmp_path / "results").glob("*/*/plans.json")
    assert (plans.parent.parent.name, plans.parent.name) == (model.parent.name, model.name)
    assert named_cases(plans.parent) == [] and capsys.readouterr().err == ""

    image = np.random.default_rng(0).normal(0, 1, (1, 40, 36)).astype(np.float32)
    answers = []
    for folder in (model, plans.parent):
        predictor = bt.load_predictor(folder, device="cpu")
        answers.append(bt.predict(image, predictor, spacing=(1.0, 1.0), probabilities=True, exact=True))
        assert predictor.folds == [0, 1]
    assert answers[0].mask.any()
    np.testing.assert_array_equal(answers[0].mask, answers[1].mask)
    np.testing.assert_array_equal(answers[0].probabilities, answers[1].probabilities)
    assert answers[0].details == answers[1].details
    assert KnownInput.of(model, []) == KnownInput.of(plans.parent, [])
    summary = json.loads((plans.parent / "fold_1" / "validation" / "summary.json").read_text())
    assert summary == {"foreground_mean": {"Dice": 0.75}, "mean": {"1": {"Dice": 0.75}}}


def test_a_text_that_names_a_case_is_refused(model: Path, tmp_path: Path) -> None:
    content = json.loads((model / "dataset.json").read_text())
    archive = tmp_path / "model.zip"
    (model / "dataset.json").write_text(json.dumps(content | {"description": "all but Mueller_Eva"}))
    with pytest.raises(ValueError, match=r"dataset.json: 'all but Mueller_Eva' names 'Mueller_Eva', a case or patient"):
        export_model(model, archive, [0], "checkpoint_final.pth")
    (model / "dataset.json").write_text(json.dumps(content | {"description": "without P0815."}))
    with pytest.raises(ValueError, match="names 'P0815'"):
        export(["-m", str(model), "-o", str(archive)])  # cases.csv knows the patient
    with pytest.raises(FileNotFoundError, match="there is no such folder; make it"):
        export(["-m", str(model), "-o", str(tmp_path / "none" / "model.zip")])
    assert not list(tmp_path.glob("*.zip"))
