"""The Br35H converter, on files with the original's quirks and faults."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from natural_image_data import CIRCLE, ELLIPSE, POLYGON, request, save, slice_image, write_br35h
from phantom_data import digest
from PIL import Image
from volume_data import verify

from braintum.conversion.building.inspection import SourceError
from braintum.conversion.building.via import Region, read_annotations, region_mask
from braintum.conversion.format.cases import read_cases
from braintum.conversion.format.splits import check_splits
from braintum.conversion.sources.br35h import convert

NAME = "Dataset601_Test"
OUTLINED = "Br35H-Mask-RCNN"


@pytest.fixture
def source(tmp_path):
    return write_br35h(tmp_path / "source")


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


def label(raw, case, end="Tr"):
    with Image.open(raw / NAME / f"labels{end}" / f"{case}.png") as image:
        return np.array(image)


def annotations(source, part="TRAIN"):
    path = source / OUTLINED / part / f"annotations_{part.lower()}.json"
    return path, json.loads(path.read_text(encoding="utf-8"))


def change_entry(source, name, **values):
    path, content = annotations(source)
    entry = next(entry for entry in content.values() if entry["filename"] == name)
    entry.update(values)
    path.write_text(json.dumps(content))


def regions(*shapes):
    return [{"shape_attributes": shape, "region_attributes": {}} for shape in shapes]


def in_ellipse(x, y, shape):
    """The textbook formula, in coordinates that VIA's canvas would turn back."""
    angle = shape.get("theta", 0)
    along, across = shape.get("rx", shape.get("r")), shape.get("ry", shape.get("r"))
    turned = (complex(x, y) - complex(shape["cx"], shape["cy"])) * complex(math.cos(angle), -math.sin(angle))
    return (turned.real / along) ** 2 + (turned.imag / across) ** 2 <= 1


def drawn(shape):
    return np.array([[in_ellipse(x, y, shape) for x in range(72)] for y in range(72)])


def test_layout_classes_and_labels(source, raw):
    assert convert(request(source, raw)).n_cases == 15
    content = json.loads((raw / NAME / "dataset.json").read_text(encoding="utf-8"))
    assert content["labels"] == {"background": 0, "tumour": 1, "ignore": 2}
    assert content["classification"] == {"class_names": ["tumor", "no_tumor"], "negative_class": "no_tumor"}
    cases = read_cases(raw / NAME / "cases.csv", ["tumor", "no_tumor"])
    assert list(cases) == sorted(
        [f"br35h_y{number}" for number in (0, 1, 2, 3, 4, 500, 501, 700, 100, 101, 102)]
        + ["br35h_no12", "br35h_no609", "br35h_no12_jpg", "br35h_no7"]
    )
    assert [name for name, case in cases.items() if case.split == "test"] == ["br35h_y700"]
    assert cases["br35h_no12"].source == "no/No12.jpg"
    assert cases["br35h_y0"].source == f"{OUTLINED}/TRAIN/y0.jpg"
    check_splits(json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8")), cases.values())


def test_outlines_become_masks(source, raw):
    convert(request(source, raw))
    polygon = np.zeros((72, 72), bool)
    polygon[10:21, 40:61] = True
    found = label(raw, "br35h_y0").astype(bool)
    # of the border's pixels scikit-image takes some
    assert (found & ~polygon).sum() == 0
    assert found[11:20, 41:60].all()
    np.testing.assert_array_equal(label(raw, "br35h_y2").astype(bool), drawn(CIRCLE))
    union = found | drawn(ELLIPSE) | drawn(CIRCLE)
    np.testing.assert_array_equal(label(raw, "br35h_y3").astype(bool), union)


def test_ellipse_is_rotated_clockwise_about_its_centre(source, raw):
    convert(request(source, raw))
    mask = label(raw, "br35h_y1").astype(bool)
    np.testing.assert_array_equal(mask, drawn(ELLIPSE))
    # theta = 30°, y points down: the long axis goes from upper left to lower right
    assert mask[36 + 8, 36 + 14]
    assert not mask[36 - 8, 36 + 14]
    assert mask.sum() == pytest.approx(math.pi * 20 * 6, rel=0.02)


@pytest.mark.parametrize("theta", [-3.006, -2.398, -0.588, 0.0, 0.499, math.pi / 2, 3.1])
def test_every_angle(theta):
    shape = {**ELLIPSE, "theta": theta}
    values = tuple((float(shape[key]),) for key in ("cx", "cy", "rx", "ry", "theta"))
    np.testing.assert_array_equal(region_mask(Region("ellipse", values), (72, 72)), drawn(shape))


def test_class_only_images(source, raw):
    convert(request(source, raw))
    for number in (100, 101, 102):
        assert np.unique(label(raw, f"br35h_y{number}")).tolist() == [2]
    assert np.unique(label(raw, "br35h_no609")).tolist() == [0]


@pytest.mark.parametrize("number", [100, 101, 102])
def test_png_with_the_ending_jpg_is_read_as_what_it_is(source, raw, number):
    convert(request(source, raw))
    with Image.open(raw / NAME / "imagesTr" / f"br35h_y{number}_0000.png") as image:
        assert image.mode == "L"
        # the palette of P has fewer grey values
        assert np.abs(np.array(image).astype(int) - slice_image(number)).max() <= (0 if number != 101 else 3)


def test_images_of_yes_are_merged_with_their_outlined_twin_only_if_identical(source, raw, caplog):
    save(source / "yes" / "y4.jpg", slice_image(444))
    # the twin of another name
    (source / "yes" / "y1.jpg").rename(source / "yes" / "y999.jpg")
    convert(request(source, raw))
    cases = read_cases(raw / NAME / "cases.csv")
    assert len(cases) == 16
    assert cases["br35h_y4_2"].source == "yes/y4.jpg"
    assert np.unique(label(raw, "br35h_y4_2")).tolist() == [2]
    assert "br35h_y999" not in cases


def test_identical_images_of_yes_and_no_are_a_contradiction(source, raw):
    (source / "no" / "no7.jpg").write_bytes((source / "yes" / "y100.jpg").read_bytes())
    with pytest.raises(SourceError, match=r"no7.jpg: is no_tumor, but its identical copy .*y100.jpg is tumor"):
        convert(request(source, raw))
    (source / "no" / "no7.jpg").write_bytes((source / "yes" / "y0.jpg").read_bytes())
    with pytest.raises(SourceError, match=r"no7.jpg: is no_tumor, but its identical copy .*TRAIN/y0.jpg is tumor"):
        convert(request(source, raw))


def test_copies_share_a_group(source, raw):
    save(source / "no" / "no8.png", slice_image(203)[:, ::-1], content="PNG")
    convert(request(source, raw))
    cases = read_cases(raw / NAME / "cases.csv")
    assert {name: case.group for name, case in cases.items() if case.group} == {
        "br35h_no7": "br35h_no7",
        "br35h_no8": "br35h_no7",
    }


def test_official_split_validates_on_val(source, raw, caplog):
    convert(request(source, raw), official_split=True)
    (split,) = json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8"))
    assert split["val"] == ["br35h_y500", "br35h_y501"]
    assert len(split["train"]) == 12
    assert "br35h_y700" not in split["train"]
    assert "leaks" not in caplog.text


def test_official_split_is_marked_where_it_leaks(source, raw, caplog):
    with Image.open(source / OUTLINED / "VAL" / "y500.jpg") as image:
        save(source / "yes" / "y888.jpg", np.array(image.convert("L"))[:, ::-1])
    convert(request(source, raw), official_split=True)
    assert "validation part leaks: 1 patient(s) or group(s)" in caplog.text


def test_outlined_only_is_a_data_set_of_masks_without_unknown_ones(source, raw):
    convert(request(source, raw), official_split=True, outlined_only=True)
    content = json.loads((raw / NAME / "dataset.json").read_text(encoding="utf-8"))
    assert content["labels"] == {"background": 0, "tumour": 1}
    cases = read_cases(raw / NAME / "cases.csv", ["tumor", "no_tumor"])
    assert {case.source.split("/")[1] for case in cases.values()} == {"TRAIN", "VAL", "TEST"}
    assert {case.tumour_class for case in cases.values()} == {"tumor"}
    (split,) = json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8"))
    assert {cases[case].source.split("/")[1] for case in split["val"]} == {"VAL"}
    assert {cases[case].source.split("/")[1] for case in split["train"]} == {"TRAIN"}
    assert all(label(raw, case).any() for case in split["train"])


def test_outlined_only_needs_outlines(tmp_path, raw):
    save(tmp_path / "source" / "yes" / "y1.jpg", slice_image(1))
    with pytest.raises(FileNotFoundError, match="no outlined images in TRAIN, VAL or TEST.*Br35H-Mask-RCNN"):
        convert(request(tmp_path / "source", raw), outlined_only=True)


def test_pool(source, raw):
    convert(request(source, raw), pool=True)
    cases = read_cases(raw / NAME / "cases.csv")
    assert {case.split for case in cases.values()} == {"train"}
    check_splits(json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8")), cases.values())
    with pytest.raises(ValueError, match="--pool and --official-split contradict"):
        convert(request(source, raw), pool=True, official_split=True)


def test_project_files_and_numbered_regions_of_via_1(source, raw, tmp_path):
    convert(request(source, tmp_path / "expected"))
    path, content = annotations(source)
    for entry in content.values():
        entry["regions"] = {str(number): region for number, region in enumerate(entry["regions"])}
    path.write_text(json.dumps({"_via_settings": {}, "_via_img_metadata": content}), encoding="utf-8-sig")
    convert(request(source, raw))
    assert digest(raw) == digest(tmp_path / "expected")


def test_entry_of_the_files_size_is_taken(source, raw):
    path, content = annotations(source)
    old = next(entry for entry in content.values() if entry["filename"] == "y2.jpg")
    content["y2.jpg77"] = {**old, "size": 77, "regions": regions(POLYGON)}
    path.write_text(json.dumps(content))
    convert(request(source, raw))
    np.testing.assert_array_equal(label(raw, "br35h_y2").astype(bool), drawn(CIRCLE))


def test_image_without_regions_has_an_unknown_mask(source, raw):
    change_entry(source, "y2.jpg", regions=[])
    convert(request(source, raw))
    assert np.unique(label(raw, "br35h_y2")).tolist() == [2]


def test_regions_are_cut_at_the_border(source, raw):
    change_entry(source, "y2.jpg", regions=regions({"name": "circle", "cx": -2, "cy": 70, "r": 9}))
    convert(request(source, raw))
    assert label(raw, "br35h_y2")[70, 0] == 1


def test_rectangles_are_read_as_well(tmp_path):
    shape = {"name": "rect", "x": 10, "y": 20, "width": 5, "height": 3}
    entry = {"filename": "a.jpg", "size": -1, "regions": regions(shape)}
    (tmp_path / "a.json").write_text(json.dumps({"a.jpg-1": entry}))
    (annotation,) = read_annotations(tmp_path / "a.json")
    assert annotation.size is None
    mask = region_mask(annotation.regions[0], (72, 72))
    assert mask[21:23, 11:15].all()
    assert not mask[:20].any()


FAULTS = {
    "json": (lambda s: annotations(s)[0].write_text("{"), "annotations_train.json is damaged: not valid JSON"),
    "list": (lambda s: annotations(s)[0].write_text("[1]"), "not an annotation file of VIA"),
    "no json": (lambda s: annotations(s)[0].unlink(), "there is no annotations_train.json"),
    "image": (lambda s: (s / OUTLINED / "TRAIN" / "y2.jpg").unlink(), "y2.jpg: there is no such image, but"),
    "size": (lambda s: change_entry(s, "y2.jpg", size=77), "outlines a file of 77 bytes"),
    "shape": (lambda s: change_entry(s, "y2.jpg", regions=regions({"name": "point"})), "'point' has no area"),
    "value": (lambda s: change_entry(s, "y2.jpg", regions=regions({"name": "circle", "cx": 3})), "misses 'r'"),
    "text": (lambda s: change_entry(s, "y2.jpg", regions=regions({**CIRCLE, "cx": "x"})), "cannot be read"),
    "points": (
        lambda s: change_entry(s, "y2.jpg", regions=regions({**POLYGON, "all_points_x": [1, 2]})),
        "2 x and 4 y, at least three points",
    ),
    "radius": (lambda s: change_entry(s, "y2.jpg", regions=regions({**CIRCLE, "r": -1})), "a radius of -1"),
    "outside": (
        lambda s: change_entry(s, "y2.jpg", regions=regions(CIRCLE, {**CIRCLE, "cx": 500})),
        "region 2 of y2.jpg covers no pixel",
    ),
    "truncated": (lambda s: (s / "no" / "no7.jpg").write_bytes(b"\xff\xd8\xff"), "no7.jpg: not a complete image"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_names_file_fault_and_remedy_and_writes_nothing(source, raw, fault):
    damage, words = FAULTS[fault]
    damage(source)
    with pytest.raises(SourceError) as caught:
        convert(request(source, raw))
    (line,) = (line for line in str(caught.value).splitlines()[1:] if words in line)
    assert line.startswith(f"  - {source}")
    assert "; " in line
    assert not raw.exists()


def test_outlines_of_an_image_that_exif_turns_are_refused(source, raw):
    path = save(source / OUTLINED / "TRAIN" / "y2.jpg", slice_image(2), orientation=6)
    change_entry(source, "y2.jpg", size=path.stat().st_size)
    with pytest.raises(SourceError, match="EXIF turns the image y2.jpg"):
        convert(request(source, raw))


def test_folder_without_images_is_refused(tmp_path, raw):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no images in yes, no, TRAIN"):
        convert(request(tmp_path / "empty", raw))


def test_yes_and_no_alone(source, raw):
    (source / OUTLINED).rename(source.parent / "elsewhere")
    assert convert(request(source, raw)).n_cases == 15
    assert set(np.unique(label(raw, "br35h_y0"))) == {2}


@pytest.mark.slow
@pytest.mark.skipif("BRAINTUM_TEST_DATA" not in os.environ, reason="BRAINTUM_TEST_DATA is not set")
@pytest.mark.parametrize(
    "options", [{}, *(pytest.param({o: True}, marks=pytest.mark.thorough) for o in ("pool", "official_split"))], ids=str
)
def test_real_images_pass_nnunets_integrity_check(raw, options):
    source = Path(os.environ["BRAINTUM_TEST_DATA"]) / "br35h"
    # 90 outlined, 60 of yes, of which 30 are outlined, and 60 of no
    assert convert(request(source, raw), **options).n_cases == 180
    cases = read_cases(raw / NAME / "cases.csv").values()
    assert sum(case.tumour_class == "tumor" for case in cases) == 120
    splits = json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8"))
    if "official_split" in options:
        assert len(splits[0]["val"]) == 20
    else:
        check_splits(splits, cases)
    verify(raw / NAME)
