"""Splits never leak, are complete and reproducible."""

import copy
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braintum.conversion.format.cases import Case
from braintum.conversion.format.splits import check_splits, find_crossings, group_cases, official_splits, patient_splits

CLASSES = ("meningioma", "glioma", "pituitary", "")


@st.composite
def case_lists(draw):
    number = draw(st.integers(2, 40))
    patients = st.sampled_from(["", *(f"p{i}" for i in range(12))])
    groups = st.sampled_from(["", "", "", "g0", "g1", "g2"])
    return [
        Case(
            f"c{i:02d}",
            draw(st.sampled_from(CLASSES)),
            draw(patients),
            draw(groups),
            draw(st.sampled_from(["train"] * 5 + ["test"])),
        )
        for i in range(number)
    ]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(case_lists(), st.integers(2, 6), st.randoms(use_true_random=False))
def test_splits_are_complete_leak_free_and_independent_of_the_order(cases, n_splits, random):
    training = [case for case in cases if case.split == "train"]
    groups = group_cases(cases)
    if len(groups) < 2:
        with pytest.raises(ValueError, match="at least 2 patients or groups"):
            patient_splits(cases, n_splits)
        return
    splits = patient_splits(cases, n_splits)
    assert len(splits) == min(n_splits, len(groups))
    assert sorted(name for split in splits for name in split["val"]) == sorted(case.case for case in training)
    for split in splits:
        assert split["val"] == sorted(split["val"])
        assert split["train"] == sorted(split["train"])
        assert split["train"]
        assert split["val"]
        for attribute in ("patient", "group"):
            sides = [
                {getattr(case, attribute) for case in training if case.case in split[side]} - {""}
                for side in ("train", "val")
            ]
            assert sides[0].isdisjoint(sides[1])
    check_splits(splits, cases)
    shuffled = list(cases)
    random.shuffle(shuffled)
    assert patient_splits(shuffled, n_splits) == splits


def test_classes_are_spread_over_the_folds():
    cases = [Case(f"c{i}_{j}", CLASSES[i % 3], f"p{i}") for i in range(30) for j in range(3)]
    for split in patient_splits(cases):
        counts = [sum(case.case in split["val"] for case in cases if case.tumour_class == name) for name in CLASSES[:3]]
        assert counts == [6, 6, 6]


def test_the_seed_matters():
    cases = [Case(f"c{i}", CLASSES[i % 3], f"p{i}") for i in range(30)]
    assert patient_splits(cases, seed=1) != patient_splits(cases, seed=2)


def test_ties_reach_through_other_cases():
    cases = [Case("a", patient="1"), Case("b", patient="1", group="x"), Case("c", group="x"), Case("d"), Case("e")]
    assert group_cases(cases) == [["a", "b", "c"], ["d"], ["e"]]


def test_a_patient_is_not_mistaken_for_a_group_of_the_same_name():
    assert group_cases([Case("a", patient="1"), Case("b", group="1")]) == [["a"], ["b"]]


def test_fewer_groups_than_folds_reduces_them_with_a_warning(caplog):
    cases = [Case(f"c{i}", "glioma", f"p{i % 3}") for i in range(9)]
    with caplog.at_level(logging.WARNING):
        assert len(patient_splits(cases)) == 3
    assert "only 3 patients or groups: making 3 splits instead of 5" in caplog.text


@pytest.mark.parametrize("cases", [[], [Case("a", patient="1"), Case("b", patient="1")]])
def test_less_than_two_groups_cannot_be_split(cases):
    with pytest.raises(ValueError, match="at least 2"):
        patient_splits(cases)


def test_repeated_case_and_single_fold_are_refused():
    with pytest.raises(ValueError, match="'a' occurs 2 times"):
        patient_splits([Case("a"), Case("a"), Case("b")])
    with pytest.raises(ValueError, match="at least 2"):
        patient_splits([Case("a"), Case("b")], n_splits=1)


def test_official_folds_with_gaps():
    splits = official_splits({"c": 5, "a": 2, "b": 5})
    assert splits == [{"train": ["b", "c"], "val": ["a"]}, {"train": ["a"], "val": ["b", "c"]}]
    with pytest.raises(ValueError, match="at least 2 folds"):
        official_splits({"a": 1, "b": 1})


CHECKED = [Case("a", patient="1"), Case("b", patient="1"), Case("c", patient="2"), Case("d"), Case("t", split="test")]
GOOD = [{"train": ["c", "d"], "val": ["a", "b"]}, {"train": ["a", "b"], "val": ["c", "d"]}]


def test_good_splits_pass():
    check_splits(GOOD, CHECKED)
    assert find_crossings(GOOD, CHECKED) == []


@pytest.mark.parametrize(
    ("fold", "side", "names", "words"),
    [
        (0, "train", ["c", "d", "z"], "split 0: unknown case: z"),
        (0, "train", ["c", "d", "t"], "split 0: unknown case: t"),
        (0, "train", ["c"], "split 0: case missing: d"),
        (1, "train", ["a", "b", "c"], "split 1: case listed twice: c"),
        (1, "val", ["c", "d", "d"], "split 1: case listed twice: d"),
    ],
)
def test_bad_splits_are_refused(fold, side, names, words):
    splits = copy.deepcopy(GOOD)
    splits[fold][side] = names
    with pytest.raises(ValueError, match=words):
        check_splits(splits, CHECKED)


def test_validation_has_to_cover_every_case_once():
    with pytest.raises(ValueError, match="validated in more than one split: a and 1 more"):
        check_splits([*GOOD, GOOD[0]], CHECKED)
    with pytest.raises(ValueError, match="validated in no split: c and 1 more"):
        check_splits(GOOD[:1], CHECKED)


def test_patient_on_both_sides_is_refused():
    crossing = official_splits({"a": 1, "b": 2, "c": 1, "d": 2})
    assert find_crossings(crossing, CHECKED) == [["a", "b"]]
    with pytest.raises(
        ValueError, match="1 patients or groups are on both sides of a split, for example the one of a, b"
    ):
        check_splits(crossing, CHECKED)
