"""The BRISC converter, on files with the original's quirks and faults."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from natural_image_data import blob, brisc_path, noisy_mask, request, save, slice_image, write_brisc
from phantom_data import digest, fail_at
from PIL import Image
from volume_data import verify

from braintum.conversion.building import natural_images
from braintum.conversion.building.inspection import SourceError
from braintum.conversion.building.natural_images import read_grey
from braintum.conversion.building.raw_dataset import ConversionRequest
from braintum.conversion.format.cases import read_cases
from braintum.conversion.format.splits import check_splits
from braintum.conversion.sources.brisc import convert

NAME = "Dataset601_Test"
TRAIN, SEGMENTATION = "classification_task/train", "segmentation_task/train"


@pytest.fixture
def source(tmp_path):
    return write_brisc(tmp_path / "source")


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


def label(raw, stem, end="Tr"):
    return pixels(raw / NAME / f"labels{end}" / f"{stem}.png")


def test_layout_and_dataset_json(source, raw):
    result = convert(request(source, raw))
    folder = raw / NAME
    assert result.n_cases == 20
    assert {path.name: len(list(path.iterdir())) for path in folder.iterdir() if path.is_dir()} == {
        "imagesTr": 16,
        "labelsTr": 16,
        "imagesTs": 4,
        "labelsTs": 4,
    }
    content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert content["labels"] == {"background": 0, "tumour": 1, "ignore": 2}
    assert content["channel_names"] == {"0": "T1"}
    assert (content["numTraining"], content["file_ending"]) == (16, ".png")
    assert content["overwrite_image_reader_writer"] == "NaturalImage2DIO"
    assert content["classification"] == {
        "class_names": ["glioma", "meningioma", "pituitary", "no_tumor"],
        "negative_class": "no_tumor",
    }
    with Image.open(folder / "imagesTr" / "brisc2025_train_00001_gl_ax_t1_0000.png") as image:
        assert (image.mode, image.format, image.size) == ("L", "PNG", (76, 72))
    splits = json.loads((folder / "splits_final.json").read_text(encoding="utf-8"))
    cases = read_cases(folder / "cases.csv", content["classification"]["class_names"])
    check_splits(splits, cases.values())
    assert len(splits) == 5


def test_class_plane_part_and_source(source, raw):
    convert(request(source, raw))
    cases = read_cases(raw / NAME / "cases.csv")
    described = {name: (case.tumour_class, case.plane, case.split) for name, case in cases.items()}
    assert described["brisc2025_train_00002_gl_co_t1"] == ("glioma", "coronal", "train")
    assert described["brisc2025_train_00009_no_ax_t1"] == ("no_tumor", "axial", "train")
    assert described["brisc2025_train_00015_pi_sa_t1"] == ("pituitary", "sagittal", "train")
    assert described["brisc2025_test_00018_me_ax_t1"] == ("meningioma", "axial", "test")
    assert {case.spacing for case in cases.values()} == {""}
    assert cases["brisc2025_train_00009_no_ax_t1"].source == f"{TRAIN}/no_tumor/brisc2025_train_00009_no_ax_t1.jpg"
    assert cases["brisc2025_train_00001_gl_ax_t1"].source == f"{SEGMENTATION}/images/brisc2025_train_00001_gl_ax_t1.jpg"


def test_masks_are_thresholded_not_taken_where_above_zero(source, raw):
    convert(request(source, raw))
    for stem, width in (("brisc2025_train_00001_gl_ax_t1", 76), ("brisc2025_train_00003_gl_sa_t1", 72)):
        np.testing.assert_array_equal(label(raw, stem), blob((width, 72)).astype(np.uint8))
    # this one is a JPEG
    difference = label(raw, "brisc2025_train_00008_me_ax_t1") != blob((80, 72))
    assert difference.mean() < 0.002


def test_tumour_without_mask_is_ignored_and_no_tumour_is_empty(source, raw):
    convert(request(source, raw))
    assert np.unique(label(raw, "brisc2025_train_00004_gl_ax_t1")).tolist() == [2]
    assert np.unique(label(raw, "brisc2025_train_00009_no_ax_t1")).tolist() == [0]


def test_ignore_label_is_declared_only_where_it_is_needed(source, raw):
    brisc_path(source, 4).unlink()
    convert(request(source, raw))
    content = json.loads((raw / NAME / "dataset.json").read_text(encoding="utf-8"))
    assert content["labels"] == {"background": 0, "tumour": 1}


@pytest.mark.parametrize(("number", "plane"), [(10, "co"), (11, "sa")])
def test_exif_orientation_is_applied(source, raw, number, plane):
    convert(request(source, raw))
    written = pixels(raw / NAME / "imagesTr" / f"brisc2025_train_{number:05d}_no_{plane}_t1_0000.png")
    upright = slice_image(number, (72 + 4 * (number % 3), 72))
    assert written.shape == upright.shape
    assert np.abs(written.astype(int) - upright).mean() < 3
    assert label(raw, f"brisc2025_train_{number:05d}_no_{plane}_t1").shape == upright.shape


def test_identical_images_of_training_and_test_part_share_a_group(source, raw, caplog):
    convert(request(source, raw))
    cases = read_cases(raw / NAME / "cases.csv")
    groups = {name: case.group for name, case in cases.items() if case.group}
    assert groups == dict.fromkeys(
        ("brisc2025_test_00017_gl_ax_t1", "brisc2025_train_00001_gl_ax_t1"), "brisc2025_test_00017_gl_ax_t1"
    )
    assert "the source's own test part leaks: 1 patient(s) or group(s)" in caplog.text


def test_pool_puts_the_test_part_into_the_splits_and_copies_on_one_side(source, raw, caplog):
    save(brisc_path(source, 20), slice_image(13, (76, 72))[:, ::-1])  # mirrored copy of a training image
    brisc_path(source, 20, "segmentation_task/test/images").write_bytes(brisc_path(source, 20).read_bytes())
    save(brisc_path(source, 20, "masks"), noisy_mask(blob((76, 72))), content="PNG")
    convert(request(source, raw), pool=True)
    assert not (raw / NAME / "imagesTs").exists()
    cases = read_cases(raw / NAME / "cases.csv")
    assert {case.split for case in cases.values()} == {"train"}
    check_splits(json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8")), cases.values())
    assert cases["brisc2025_test_00020_pi_ax_t1"].group == cases["brisc2025_train_00013_pi_ax_t1"].group != ""
    assert "leaks" not in caplog.text


def test_manifest_tells_what_names_do_not(source, raw):
    old = brisc_path(source, 14)
    new = old.with_name("scan14.jpg")
    for kind in ("segmentation_task/train/images", "masks"):
        path = brisc_path(source, 14, kind)
        path.rename(path.with_name(f"scan14{path.suffix}"))
    old.rename(new)
    manifest = source / "manifest.csv"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace(old.stem, "scan14"))
    convert(request(source, raw))
    case = read_cases(raw / NAME / "cases.csv")["scan14"]
    assert (case.tumour_class, case.plane) == ("pituitary", "coronal")


def test_table_says_what_is_special(source, raw):
    table = convert(request(source, raw, dry_run=True)).table
    assert "4 cases are the source's test part" in table
    assert "1 cases have no mask: their label map is the ignore label" in table
    assert "2 cases are in 1 groups of images of the same slice" in table
    assert "20 cases have no spacing: their distances are in pixels" in table
    assert not raw.exists()


def rename_code(source):
    path = brisc_path(source, 9)
    path.rename(path.with_name(path.name.replace("_no_", "_gl_")))


def twin(source):
    save(brisc_path(source, 13), slice_image(999, (76, 72)))


def half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def copy(path, target):
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(path.read_bytes())


FAULTS = {
    "truncated": (lambda s: half(brisc_path(s, 9)), "_00009_no_ax_t1.jpg: not a complete image"),
    "empty file": (lambda s: brisc_path(s, 9).write_bytes(b""), "_00009_no_ax_t1.jpg: not a complete image"),
    "text": (lambda s: brisc_path(s, 9).write_text("<html>"), "_00009_no_ax_t1.jpg: not a complete image"),
    "16 bits": (
        lambda s: Image.fromarray(np.full((72, 72), 999, np.uint16)).save(brisc_path(s, 9), "PNG"),
        "more than 8 bits a pixel (I;16)",
    ),
    "mask size": (
        lambda s: save(brisc_path(s, 1, "masks"), noisy_mask(blob((72, 72))), content="PNG"),
        "is 72×72 pixels, its image 76×72",
    ),
    "no mask": (
        lambda s: save(brisc_path(s, 1, "masks"), slice_image(5, (76, 72)), content="PNG"),
        "is no mask, it has many values",
    ),
    "empty mask": (
        lambda s: save(brisc_path(s, 1, "masks"), noisy_mask(blob((76, 72)) & False), content="PNG"),
        "the mask is empty",
    ),
    "mask of nothing": (
        lambda s: brisc_path(s, 1, "masks").rename(brisc_path(s, 1, "masks").with_name("x.png")),
        "x.png: there is no image of this name",
    ),
    "contradiction": (rename_code, "its class is contradictory (folder no_tumor, file name glioma)"),
    "other part": (
        lambda s: brisc_path(s, 18).rename(s / TRAIN / "meningioma" / brisc_path(s, 18).name),
        "brisc2025_test_00018_me_ax_t1.jpg: is in the train part too, as",
    ),
    "copies differ": (twin, "shows something else than the image of the same name"),
    "two classes": (
        lambda s: copy(brisc_path(s, 9), s / TRAIN / "glioma" / "brisc2025_train_00099_gl_ax_t1.jpg"),
        "is no_tumor, but its identical copy",
    ),
    "unknown folder": (lambda s: (s / TRAIN / "oedema").mkdir(), "oedema: no class has this name"),
    "mask of no tumour": (
        lambda s: save(
            s / SEGMENTATION / "masks" / "brisc2025_train_00009_no_ax_t1.png",
            noisy_mask(blob(Image.open(brisc_path(s, 9)).size)),
            content="PNG",
        ),
        "shows a tumour, but its image is in the class no_tumor",
    ),
    "turned image": (
        lambda s: save(brisc_path(s, 8, "segmentation_task/train/images"), slice_image(8, (80, 72)), orientation=3),
        "EXIF turns the image and not the mask",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_names_file_fault_and_remedy_and_writes_nothing(source, raw, fault):
    damage, words = FAULTS[fault]
    damage(source)
    with pytest.raises(SourceError) as caught:
        convert(request(source, raw))
    lines = [line for line in str(caught.value).splitlines()[1:] if words in line]
    assert len(lines) == 1, str(caught.value)
    assert lines[0].startswith(f"  - {source}")
    assert "; " in lines[0]
    assert not raw.exists()


@pytest.mark.parametrize("dry_run", [False, True])
def test_all_problems_are_listed_at_once(source, raw, dry_run):
    for fault in ("truncated", "mask size", "unknown folder"):
        FAULTS[fault][0](source)
    with pytest.raises(SourceError, match="3 problem"):
        convert(request(source, raw, dry_run=dry_run))


def test_empty_mask_of_no_tumour_is_in_order(source, raw):
    path = source / SEGMENTATION / "masks" / "brisc2025_train_00009_no_ax_t1.png"
    save(path, noisy_mask(np.zeros((72, 72), bool)), content="PNG")
    convert(request(source, raw))
    assert not label(raw, path.stem).any()


def test_copy_that_was_saved_again_is_the_same_image(source, raw):
    path = brisc_path(source, 13)
    with Image.open(path) as image:
        image.load()
        image.save(path, quality=60)
    assert convert(request(source, raw)).n_cases == 20


def test_folder_without_images_is_refused(tmp_path, raw):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images in classification_task"):
        convert(request(tmp_path / "empty", raw))
    (tmp_path / "empty" / "brisc2025.zip").touch()
    with pytest.raises(FileNotFoundError, match="unpack brisc2025.zip"):
        convert(request(tmp_path / "empty", raw))


def test_manifest_with_other_columns_is_refused(source, raw):
    (source / "manifest.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SourceError, match=r"manifest.csv: has no column 'relative_path'"):
        convert(request(source, raw))


def test_classification_task_alone_has_no_tumour_masks(source, raw):
    (source / "segmentation_task").rename(source.parent / "elsewhere")
    convert(request(source, raw))
    assert np.unique(label(raw, "brisc2025_train_00001_gl_ax_t1")).tolist() == [2]


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_as_one(source, raw, tmp_path):
    convert(request(source, raw))
    convert(ConversionRequest(source, tmp_path / "parallel", 601, "Test", n_processes=2))
    assert digest(raw) == digest(tmp_path / "parallel")


def test_interrupted_conversion_resumes_to_identical_files(source, raw, tmp_path, monkeypatch):
    convert(request(source, tmp_path / "uninterrupted"))
    with monkeypatch.context() as patch:
        fail_at(patch, natural_images, "write_png", 10, OSError("disk full"))
        with pytest.raises(OSError, match="disk full"):
            convert(request(source, raw))
    assert not (raw / NAME / "dataset.json").exists()
    # a mask that changes in between is read again
    mask = brisc_path(source, 2, "masks")
    later = max(path.stat().st_mtime for path in (raw / NAME).rglob("*.png")) + 5
    os.utime(mask, (later, later))
    with monkeypatch.context() as patch:
        written_again = fail_at(patch, natural_images, "write_png", 0, OSError)
        convert(request(source, raw))
    assert 2 * 16 <= len(written_again) < 2 * 20
    assert mask.with_suffix("").name in {path.stem for path, _ in written_again}
    assert digest(raw) == digest(tmp_path / "uninterrupted")


def test_fraction_is_valid_reproducible_and_resumed_only_as_the_same(source, raw, tmp_path):
    convert(request(source, raw, fraction=0.5), pool=True)
    cases = read_cases(raw / NAME / "cases.csv")
    assert len(cases) in range(9, 13)
    assert {case.tumour_class for case in cases.values()} == {"glioma", "meningioma", "pituitary", "no_tumor"}
    check_splits(json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8")), cases.values())
    convert(request(source, tmp_path / "again", fraction=0.5), pool=True)
    assert digest(raw) == digest(tmp_path / "again")
    convert(request(source, tmp_path / "other", fraction=0.5, seed=1), pool=True)
    assert digest(raw) != digest(tmp_path / "other")


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1", "CMYK"])
def test_every_mode_becomes_one_grey_channel(tmp_path, mode):
    grey = np.tile(np.arange(256, dtype=np.uint8), (8, 1))
    if mode == "1":
        grey = np.where(grey > 127, np.uint8(255), np.uint8(0))
    image = Image.fromarray(grey).convert(mode)
    image.save(tmp_path / "image.jpg", format="TIFF" if mode == "CMYK" else "PNG")
    np.testing.assert_array_equal(read_grey(tmp_path / "image.jpg").pixels, grey)


def test_colours_become_luminance(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 200, 90]]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "image.png")
    assert read_grey(tmp_path / "image.png").pixels.tolist() == [[76, 150, 29, 131]]


@pytest.mark.slow
@pytest.mark.skipif("BRAINTUM_TEST_DATA" not in os.environ, reason="BRAINTUM_TEST_DATA is not set")
@pytest.mark.parametrize("pool", [pytest.param(False, marks=pytest.mark.thorough), True])
def test_real_images_pass_nnunets_integrity_check(raw, pool, caplog):
    source = Path(os.environ["BRAINTUM_TEST_DATA"]) / "brisc2025"
    with caplog.at_level(logging.WARNING):
        result = convert(request(source, raw), pool=pool)
    assert result.n_cases == 420
    cases = read_cases(raw / NAME / "cases.csv").values()
    assert sum(case.split == "test" for case in cases) == (0 if pool else 100)
    assert all(case.plane for case in cases)
    assert len({case.group for case in cases} - {""}) > 30
    assert ("test part leaks" in caplog.text) is not pool
    assert "ignore" not in json.loads((raw / NAME / "dataset.json").read_text(encoding="utf-8"))["labels"]
    check_splits(json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8")), cases)
    verify(raw / NAME)
