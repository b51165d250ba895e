"""Class names, groups of copies, and the random share of a data set."""

import json
import logging
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from natural_image_data import request, save, slice_image
from phantom_data import write_source

from braintum.conversion.building.selection import (
    assign_groups,
    byte_identical_groups,
    contradicting_classes,
    join_groups,
    select_fraction,
    warn_of_leaks,
)
from braintum.conversion.format.cases import Case, ClassSchema, read_cases
from braintum.conversion.format.class_names import CANONICAL_NAMES, canonical_name, known_name, unified_schema
from braintum.conversion.format.splits import check_splits, group_cases, patient_splits
from braintum.conversion.sources.figshare import convert


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gl", "glioma"),
        ("glioma_tumor", "glioma"),
        ("GLI", "glioma"),
        ("me", "meningioma"),
        ("MEN", "meningioma"),
        ("pi", "pituitary"),
        ("Pituitary Tumour", "pituitary"),
        ("MET", "metastasis"),
        ("no", "no_tumor"),
        ("nt", "no_tumor"),
        ("notumor", "no_tumor"),
        ("No Tumour", "no_tumor"),
        ("no-tumor", "no_tumor"),
        ("yes", "tumor"),
        ("HGG", "high_grade_glioma"),
    ],
)
def test_spellings_of_all_sources_agree(name, expected):
    assert canonical_name(name) == known_name(name) == expected


def test_names_of_other_classes_are_kept():
    assert canonical_name("Vestibular Schwannoma ") == "vestibular_schwannoma"
    assert known_name("Vestibular Schwannoma") is None
    assert known_name("?") is None
    with pytest.raises(ValueError, match="holds no letter or digit"):
        canonical_name(" - ")


def test_canonical_names_are_their_own_spelling():
    assert [canonical_name(name) for name in CANONICAL_NAMES] == list(CANONICAL_NAMES)


def test_schema_of_several_sources_has_canonical_order():
    schema = unified_schema(["notumor", "tumor", "schwannoma", "pi", "MET", "gl", "pituitary_tumor"])
    names = ("glioma", "pituitary", "metastasis", "schwannoma", "tumor", "no_tumor")
    assert schema == ClassSchema(names, "no_tumor")
    assert unified_schema(["me", "gl"]) == ClassSchema(("glioma", "meningioma"))


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("gesund", "gesund"),
        ("Gesund", "gesund"),
        ("Control", "control"),
        ("ohne Befund", "ohne_befund"),
        ("unauffällig", "unauffällig"),
        ("sain", "sain"),
        ("Témoin", "témoin"),
        ("sano", "sano"),
        ("zdrowy", "zdrowy"),
        ("здоровый", "здоровый"),
        ("正常", "正常"),
        ("tumour-free", "tumor_free"),
    ],
)
def test_words_for_healthy_name_the_negative_class_and_are_kept(name, kept):
    assert unified_schema(["glioma", name]) == ClassSchema(("glioma", kept), kept)


def test_negative_class_by_name():
    assert unified_schema(["b", "A1", "x"], "A1") == ClassSchema(("b", "x", "a1"), "a1")
    assert unified_schema(["gesund", "control"], "control").negative_class == "control"
    assert unified_schema(["gesund", "normal"]).negative_class == "no_tumor"
    with pytest.raises(ValueError, match="negative class 'c' is none of the classes a, b"):
        unified_schema("ab", "c")
    with pytest.raises(ValueError, match="classes control and gesund both mean healthy; .*--negative-class"):
        unified_schema(["gesund", "control", "glioma"])


def write_copies(folder):
    """Files 0, 2, 4 are the same bytes, 3 is 1 mirrored, 5 is alone but as large as the first."""
    paths = [folder / f"{number}.png" for number in range(6)]
    pixels = slice_image(1)
    save(paths[0], slice_image(0), content="PNG")
    save(paths[1], pixels, content="PNG")
    save(paths[3], pixels[:, ::-1], content="PNG")
    for number in (2, 4):
        paths[number].write_bytes(paths[0].read_bytes())
    save(paths[5], slice_image(5), content="PNG")
    return paths


def test_byte_identical_files_are_found(tmp_path):
    paths = write_copies(tmp_path)
    assert byte_identical_groups(paths) == [[0, 2, 4]]
    same_size = bytearray(paths[0].read_bytes())
    same_size[-20] ^= 1
    paths[5].write_bytes(bytes(same_size))
    assert byte_identical_groups(paths) == [[0, 2, 4]]


def test_copies_and_mirrored_copies_share_a_group(tmp_path):
    paths = write_copies(tmp_path)
    cases = [Case(f"c{number}") for number in range(6)]
    groups = [case.group for case in assign_groups(cases, paths, 1)]
    assert groups == ["c0", "c1", "c0", "c1", "c0", ""]


def test_identical_files_of_different_classes_are_a_problem_with_both_names(tmp_path):
    paths = write_copies(tmp_path)
    classes = ["glioma", "glioma", "glioma", "glioma", "no_tumor", ""]
    (problem,), copies = contradicting_classes([Case(str(i), name) for i, name in enumerate(classes)], paths)
    assert problem == (
        f"{paths[0]}: is glioma, but its identical copy {paths[4]} is no_tumor; remove the wrong one, or both"
    )
    assert {0, 4} <= copies
    unknown = [Case(str(i), name) for i, name in enumerate(["", "glioma", "no_tumor", "", "", ""])]
    assert contradicting_classes(unknown, paths) == ([], set())


def test_near_copies_of_different_classes_are_only_warned_of(tmp_path, caplog):
    paths = write_copies(tmp_path)
    cases = [Case(str(i), "pituitary" if i == 3 else "glioma", source=path.name) for i, path in enumerate(paths)]
    assign_groups(cases, paths, 1)
    assert "of different classes: 1.png (glioma), 3.png (pituitary)" in caplog.text


def test_ties_of_several_kinds_are_joined():
    cases = [Case(name, group="old") for name in "abcdef"]
    joined = join_groups(cases, ["x", "x", "", "", "", ""], ["", "p", "p", "", "", "q"], ["", "", "", "y", "y", ""])
    assert [case.group for case in joined] == ["a", "a", "a", "d", "d", ""]


def test_leaking_test_part_is_named(caplog):
    cases = [
        Case("a", group="g"),
        Case("b", group="g", split="test"),
        Case("c", patient="p"),
        Case("d", patient="p"),
        Case("e", split="test"),
    ]
    with caplog.at_level(logging.WARNING):
        assert warn_of_leaks(cases) == [["a", "b"]]
    assert "test part leaks: 1 patient(s) or group(s)" in caplog.text
    assert "(b/a)" in caplog.text


CLASSES = ("glioma", "meningioma", "no_tumor")


def patients(number, slices=3):
    return [
        Case(f"p{patient:03d}_{index}", CLASSES[patient % 3], f"P{patient}")
        for patient in range(number)
        for index in range(slices)
    ]


def test_fraction_takes_whole_patients_of_each_class():
    chosen = select_fraction(patients(60), 0.1, 42)
    assert len(chosen) == 18
    for name in CLASSES:
        assert len({case.patient for case in chosen if case.tumour_class == name}) == 2
    check_splits(patient_splits(chosen), chosen)


def test_fraction_depends_on_the_seed_only():
    cases = patients(60)
    shuffled = random.Random(3).sample(cases, len(cases))
    chosen = {case.case for case in select_fraction(cases, 0.2, 42)}
    assert {case.case for case in select_fraction(shuffled, 0.2, 42)} == chosen
    assert {case.case for case in select_fraction(cases, 0.2, 43)} != chosen
    assert chosen < {case.case for case in select_fraction(cases, 0.4, 42)}
    # pinned: the same share on every machine and in every release
    assert sorted({case.patient for case in select_fraction(cases, 0.1, 42)}) == PINNED


PINNED = ["P11", "P35", "P52", "P54", "P55", "P6"]


def test_fraction_takes_of_training_and_test_part():
    cases = [Case(f"c{i:03d}", CLASSES[i % 3], split="test" if i >= 60 else "train") for i in range(90)]
    chosen = select_fraction(cases, 0.2, 42)
    counts = {
        (part, name): sum(case.split == part and case.tumour_class == name for case in chosen)
        for part in ("train", "test")
        for name in CLASSES
    }
    assert counts == {("train", name): 4 for name in CLASSES} | {("test", name): 2 for name in CLASSES}


def test_whole_data_set_stays_in_order_and_nonsense_is_refused():
    cases = patients(4)[::-1]
    assert select_fraction(cases, 1, 42) == cases
    for fraction in (0, -0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match="change --fraction"):
            select_fraction(cases, fraction, 42)


@st.composite
def case_lists(draw):
    return [
        Case(
            f"c{number:02d}",
            draw(st.sampled_from(CLASSES)),
            draw(st.sampled_from(["", *"abcdefgh"])),
            draw(st.sampled_from(["", "", *"xyz"])),
            draw(st.sampled_from(["train", "train", "test"])),
        )
        for number in range(draw(st.integers(1, 40)))
    ]


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(case_lists(), st.floats(0.01, 1), st.integers(0, 5))
def test_fraction_never_tears_patients_or_groups(cases, fraction, seed):
    chosen = select_fraction(cases, fraction, seed)
    left = {case.case for case in cases} - {case.case for case in chosen}
    for attribute in ("patient", "group"):
        inside = {getattr(case, attribute) for case in chosen} - {""}
        assert inside.isdisjoint({getattr(case, attribute) for case in cases if case.case in left})
    assert chosen == [case for case in cases if case.case not in left]
    training = group_cases(chosen)
    if len(training) > 1:
        check_splits(patient_splits(chosen), chosen)


def test_fraction_of_figshare_keeps_the_authors_folds_and_patients(tmp_path):
    source = write_source(tmp_path / "source", n_patients=12)
    convert(request(source, tmp_path / "raw", fraction=0.5))
    folder = tmp_path / "raw" / "Dataset601_Test"
    cases = read_cases(folder / "cases.csv")
    assert len(cases) == 12
    assert len({case.patient for case in cases.values()}) == 6
    assert len(list((folder / "imagesTr").iterdir())) == 12
    splits = json.loads((folder / "splits_final.json").read_text(encoding="utf-8"))
    check_splits(splits, cases.values())
    # patient p has fold p % 3 + 1
    assert all(len({int(cases[name].patient[1:]) % 3 for name in split["val"]}) == 1 for split in splits)


def test_images_of_different_seeds_are_no_copies(tmp_path):
    """The fixtures of all converters rely on it."""
    paths = [save(tmp_path / f"{seed}.jpg", slice_image(seed)) for seed in range(60)]
    cases = [Case(path.stem) for path in paths]
    assert not any(case.group for case in assign_groups(cases, paths, 1))
    assert np.abs(slice_image(1).astype(int) - slice_image(2)).mean() > 10
