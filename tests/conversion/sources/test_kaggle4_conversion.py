"""The converter of the Kaggle four-class sets, on files with the originals' quirks."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from natural_image_data import request, save, slice_image, write_kaggle4
from phantom_data import digest
from PIL import Image
from volume_data import verify

from braintum.conversion.building.inspection import SourceError
from braintum.conversion.format.cases import read_cases
from braintum.conversion.format.splits import check_splits
from braintum.conversion.sources.kaggle4 import convert

NAME = "Dataset601_Test"
CLASSES = ["glioma", "meningioma", "pituitary", "no_tumor"]


@pytest.fixture
def source(tmp_path):
    return write_kaggle4(tmp_path / "source")


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


@pytest.mark.parametrize("sartaj", [False, True])
def test_layout_of_both_distributions(tmp_path, raw, sartaj):
    source = write_kaggle4(tmp_path / "source", sartaj)
    assert convert(request(source, raw)).n_cases == 24
    content = json.loads((raw / NAME / "dataset.json").read_text(encoding="utf-8"))
    assert content["labels"] == {"background": 0, "tumour": 1, "ignore": 2}
    assert content["classification"] == {"class_names": CLASSES, "negative_class": "no_tumor"}
    assert content["numTraining"] == 16
    cases = read_cases(raw / NAME / "cases.csv", CLASSES)
    # SARTAJ's file names are the same in every folder
    names = [f"test_no_tumor_image_{number}" if sartaj else f"test_no_tumor_Te-no_000{number}" for number in (0, 1)]
    assert [name for name, case in cases.items() if (case.split, case.tumour_class) == ("test", "no_tumor")] == names
    assert len(list((raw / NAME / "imagesTs").iterdir())) == len(list((raw / NAME / "labelsTs").iterdir())) == 8
    check_splits(json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8")), cases.values())


def test_only_the_class_of_tumours_is_known(source, raw):
    convert(request(source, raw))
    for name, case in read_cases(raw / NAME / "cases.csv").items():
        folder = {"train": "labelsTr", "test": "labelsTs"}[case.split]
        with Image.open(raw / NAME / folder / f"{name}.png") as image:
            assert np.unique(np.array(image)).tolist() == [0 if case.tumour_class == "no_tumor" else 2]


def test_table_says_that_masks_are_unknown(source, raw):
    assert "18 cases have no mask" in convert(request(source, raw, dry_run=True)).table
    assert not raw.exists()


def test_copies_share_a_group_and_pool_keeps_them_on_one_side(source, raw, caplog):
    original = source / "Training" / "glioma" / "Tr-gl_0001.jpg"
    (source / "Testing" / "glioma" / "Te-gl_0001.jpg").write_bytes(original.read_bytes())
    with Image.open(source / "Training" / "notumor" / "Tr-no_0000.jpg") as image:
        save(source / "Training" / "notumor" / "Tr-no_0009.jpg", np.array(image.convert("L").resize((96, 96))))
    convert(request(source, raw))
    cases = read_cases(raw / NAME / "cases.csv")
    assert {name: case.group for name, case in cases.items() if case.group} == {
        "test_glioma_Te-gl_0001": "test_glioma_Te-gl_0001",
        "train_glioma_Tr-gl_0001": "test_glioma_Te-gl_0001",
        "train_no_tumor_Tr-no_0000": "train_no_tumor_Tr-no_0000",
        "train_no_tumor_Tr-no_0009": "train_no_tumor_Tr-no_0000",
    }
    assert "test part leaks: 1 patient(s) or group(s)" in caplog.text
    convert(request(source, raw, overwrite=True), pool=True)
    cases = read_cases(raw / NAME / "cases.csv")
    assert not (raw / NAME / "imagesTs").exists()
    check_splits(json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8")), cases.values())


def test_copies_of_contradicting_classes_are_all_reported(source, raw):
    first = source / "Training" / "glioma" / "Tr-gl_0001.jpg"
    others = [source / "Testing" / "meningioma" / "Te-me_0000.jpg", source / "Training" / "notumor" / "Tr-no_0000.jpg"]
    for other in others:
        other.write_bytes(first.read_bytes())
    (source / "Training" / "pituitary" / "Tr-pi_0000.jpg").write_bytes(b"")
    with pytest.raises(SourceError) as caught:
        convert(request(source, raw))
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 3
    assert all("identical copy" in line and "remove the wrong one, or both" in line for line in lines[:2])
    assert all(any(str(path) in line for line in lines) for path in (first, *others))
    assert "Tr-pi_0000.jpg: not a complete image" in lines[2]
    assert not raw.exists()


def test_unknown_folder_is_a_problem_unless_it_is_empty(source, raw):
    (source / "Training" / "other").mkdir()
    assert convert(request(source, raw, dry_run=True)).n_cases == 24
    save(source / "Training" / "other" / "1.jpg", slice_image(1))
    with pytest.raises(SourceError, match="other: no class has this name; known: glioma"):
        convert(request(source, raw))


def test_file_names_that_become_the_same_case_name(source, raw):
    for number, name in enumerate(("gg (1).jpg", "gg_1.jpg", "GG.1.jpg")):
        save(source / "Training" / "glioma" / name, slice_image(900 + number))
    convert(request(source, raw))
    sources = {name: case.source for name, case in read_cases(raw / NAME / "cases.csv").items() if "gg" in name.lower()}
    assert sources == {
        "train_glioma_GG_1": "Training/glioma/GG.1.jpg",
        "train_glioma_gg_1_2": "Training/glioma/gg (1).jpg",
        "train_glioma_gg_1_3": "Training/glioma/gg_1.jpg",
    }


def test_fraction_is_reproducible_and_splits_are_valid(source, raw, tmp_path):
    convert(request(source, raw, fraction=0.5))
    cases = read_cases(raw / NAME / "cases.csv")
    counts = {(part, name): 0 for part in ("train", "test") for name in CLASSES}
    for case in cases.values():
        counts[case.split, case.tumour_class] += 1
    assert counts == {("train", name): 2 for name in CLASSES} | {("test", name): 1 for name in CLASSES}
    check_splits(json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8")), cases.values())
    convert(request(source, tmp_path / "again", fraction=0.5))
    assert digest(raw) == digest(tmp_path / "again")


def test_folder_without_images_is_refused(tmp_path, raw):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images in Training/glioma"):
        convert(request(tmp_path / "empty", raw))


@pytest.mark.slow
@pytest.mark.skipif("BRAINTUM_TEST_DATA" not in os.environ, reason="BRAINTUM_TEST_DATA is not set")
@pytest.mark.parametrize("pool", [False, True])
def test_real_images_pass_nnunets_integrity_check(raw, pool):
    source = Path(os.environ["BRAINTUM_TEST_DATA"]) / "kaggle_4class"
    assert convert(request(source, raw), pool=pool).n_cases == 112
    cases = read_cases(raw / NAME / "cases.csv", CLASSES).values()
    assert sum(case.split == "test" for case in cases) == (0 if pool else 32)
    check_splits(json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8")), cases)
    verify(raw / NAME)
