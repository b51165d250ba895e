"""Splits are checked when training starts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_training import TinyDataset, write_preprocessed

from braintum.conversion.format.cases import Case, write_cases
from braintum.trainers.data.split_check import splits_by_image

NAMES = [f"case_{number}" for number in range(8)]


@pytest.fixture
def dataset(nnunet_folders: Any) -> TinyDataset:
    return write_preprocessed(nnunet_folders.preprocessed, "2d")


def split(nnunet_folders: Any, dataset: Any, splits: Any, cases: list[Case] | None = None, fold: int = 0) -> Any:
    """What a trainer that learns no classes trains on."""
    folder = nnunet_folders.preprocessed / "Dataset007_Tiny"
    file = folder / "splits_final.json"
    file.unlink()
    if splits is not None:
        file.write_text(json.dumps(splits), encoding="utf-8")
    if cases is not None:
        write_cases(folder / "cases.csv", cases)
    return dataset.trainer("nnUNetTrainerMultiTask", fold).do_split()


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ([{"train": [*NAMES[4:], "case_9"], "val": NAMES[:4]}], r"fold 0 names 1 case\(s\).*preprocessed.*: case_9; "),
        ([{"train": NAMES[4:], "val": [*NAMES[:4], 7]}], r"names 1 case\(s\).*: 7; "),
        (
            [{"train": [f"{name}_0000" for name in NAMES[4:]], "val": NAMES[:4]}],
            "names files, not cases: case_4_0000, case_5_0000.*such as case_4$",
        ),
        ([{"train": NAMES[4:], "val": ["case_0.nii.gz"]}], "names files, not cases: case_0.nii.gz.*such as case_0$"),
        ([{"train": NAMES, "val": []}], '"val" names no case'),
        ([{"train": NAMES[3:], "val": NAMES[:4]}], "1 patient.*patient P3: train case_3, val case_3.*allow_leaks=1"),
        ({"train": NAMES[4:], "val": NAMES[:4]}, "has to be a list of objects"),
        ([NAMES], "has to be a list of objects"),
    ],
)
def test_split_that_does_not_fit_is_refused(dataset: Any, nnunet_folders: Any, splits: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"splits_final.json.*{message}"):
        split(nnunet_folders, dataset, splits)


@pytest.mark.parametrize("tie", ["patient", "group"])
def test_leak_needs_a_word(dataset: Any, nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch, tie: str) -> None:
    cases = [Case(name, "glioma", **{tie: "A" if name in ("case_1", "case_6") else ""}) for name in NAMES]
    splits = [{"train": NAMES[4:], "val": NAMES[:4]}]
    with pytest.raises(ValueError, match=r"splits_final.json, fold 0: 1 .*train case_6, val case_1\. .*allow_leaks=1"):
        split(nnunet_folders, dataset, splits, cases)
    monkeypatch.setenv("braintum_allow_leaks", "1")
    assert split(nnunet_folders, dataset, splits, cases) == (NAMES[4:], NAMES[:4])
    monkeypatch.delenv("braintum_allow_leaks")
    monkeypatch.setenv("braintum_split_by", "official")
    assert split(nnunet_folders, dataset, splits, cases) == (NAMES[4:], NAMES[:4])
    monkeypatch.setenv("braintum_split_by", "group")
    folds = [split(nnunet_folders, dataset, splits, cases, fold=fold) for fold in range(5)]
    assert sorted(name for _, validation in folds for name in validation) == NAMES
    assert all(len({"case_1", "case_6"} & {*validation}) in (0, 2) for _, validation in folds)


def test_fold_that_is_not_there_is_drawn_by_case(dataset: Any, nnunet_folders: Any) -> None:
    cases = [Case(name, "glioma", f"P{number // 4}") for number, name in enumerate(NAMES)]
    with pytest.raises(ValueError, match=r"fold 3 \(not among its 1: drawn at random, by case\): . patient"):
        split(nnunet_folders, dataset, [{"train": NAMES[4:], "val": NAMES[:4]}], cases, fold=3)


def test_splits_that_training_makes_are_by_patient(dataset: Any, nnunet_folders: Any) -> None:
    cases = [Case(name, "glioma", f"P{number % 4}") for number, name in enumerate(NAMES)]
    training, validation = split(nnunet_folders, dataset, None, cases)
    assert sorted([*training, *validation]) == NAMES
    assert {int(name[-1]) % 4 for name in training}.isdisjoint({int(name[-1]) % 4 for name in validation})
    written = json.loads(Path(nnunet_folders.preprocessed, "Dataset007_Tiny", "splits_final.json").read_text())
    assert len(written) == 4 and written[0] == {"train": training, "val": validation}


# ---------------------------------------------------------------------- by image, as papers split


def test_splits_by_image_have_equal_shares_of_the_classes_and_no_regard_for_patients() -> None:
    classes = ["glioma"] * 20 + ["meningioma"] * 10
    cases = {
        f"case_{number:02d}": Case(f"case_{number:02d}", name, patient=f"P{number // 10}")
        for number, name in enumerate(classes)
    }
    splits = splits_by_image(cases, cases, 12345, 5)
    held_out = [name for split in splits for name in split["val"]]
    assert sorted(held_out) == sorted(cases)
    for split in splits:
        assert sorted([*split["train"], *split["val"]]) == sorted(cases)
        assert [cases[name].tumour_class for name in split["val"]].count("glioma") == 4
    sides = [{cases[name].patient for name in splits[0][side]} for side in ("train", "val")]
    assert sides[0] & sides[1]
    assert splits == splits_by_image(reversed(cases), cases, 12345, 5)
    assert splits != splits_by_image(cases, cases, 1, 5)
    few = splits_by_image(NAMES, {}, 12345, 5)  # without classes, and fewer of each than folds
    assert np.bincount([len(split["val"]) for split in few]).tolist() == [0, 2, 3]


@pytest.mark.parametrize("name", ["nnUNetTrainerMultiTask", "nnUNetTrainerUNet"])
def test_split_by_image_is_a_control(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("braintum_split_by", "image")
    trainer = dataset.trainer(name, fold=1)
    training, validation = trainer.do_split()
    assert sorted([*training, *validation]) == NAMES and 1 <= len(validation) <= 2
    *_, control, data, model = Path(trainer.output_folder_base).parts
    assert (control, data) == ("split_by_image", "Dataset007_Tiny") and model.startswith(name)
    assert "CONTROL: split by image" in Path(trainer.log_file).read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="fold 5: braintum_split_by=image makes the folds 0 to 4"):
        dataset.trainer(name, fold=5).do_split()
    with pytest.raises(NotImplementedError, match="braintum_split_by needs held-out cases"):
        dataset.trainer(name, fold="all")
