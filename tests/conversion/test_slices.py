"""Which slices of a volume are chosen, and that they keep orientation and geometry."""

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from volume_data import DIRECTION, ORIGIN, SPACING, as_image, volume_array

from braintum.conversion.building.slices import (
    SliceChoice,
    choose_plane,
    representative_slices,
    slice_choice,
    slice_geometry,
    stack_slices,
    to_anatomical,
)


def flags(length, *numbers):
    array = np.zeros(length, bool)
    array[list(numbers)] = True
    return array


@pytest.mark.parametrize(
    ("choice", "tumour", "expected"),
    [
        (SliceChoice("all"), flags(10, 4, 5), [1, 2, 3, 4, 5, 6, 7, 8]),
        (SliceChoice("all"), None, [1, 2, 3, 4, 5, 6, 7, 8]),
        (SliceChoice("tumour"), flags(10, 4, 5), [4, 5]),
        (SliceChoice("tumour", margin=2), flags(10, 2, 3), [1, 2, 3, 4, 5]),
        (SliceChoice("tumour", healthy=2), flags(10, 1, 2, 3, 4), [1, 2, 3, 4, 6, 8]),
        (SliceChoice("tumour", healthy=99), flags(10, 4), [1, 2, 3, 4, 5, 6, 7, 8]),
        (SliceChoice("tumour"), flags(10), []),
        (SliceChoice("tumour"), None, [1, 2, 3, 4, 5, 6, 7, 8]),
        (SliceChoice("tumour"), flags(10, 0), [0]),
    ],
)
def test_policies_leave_out_empty_slices_unless_they_hold_tumour(choice, tumour, expected):
    content = ~flags(10, 0, 9)
    assert choice.select(content, tumour) == expected


def test_representative_slices_are_spread_over_a_large_tumour():
    assert representative_slices(np.ones(100, bool), flags(100, *range(20, 60)), 4) == [25, 35, 45, 55]


def test_representative_slices_grow_around_a_small_tumour():
    usable = ~flags(30, 12)
    # 10 and 11 hold tumour; then 9 (distance 1; 12 is empty), 8 and 13 (distance 2, the lower one first)
    assert representative_slices(usable, flags(30, 10, 11), 4) == [8, 9, 10, 11]
    assert representative_slices(usable, flags(30, 10, 11), 5) == [8, 9, 10, 11, 13]


def test_representative_slices_without_a_tumour_are_uniform():
    assert representative_slices(np.ones(20, bool), np.zeros(20, bool), 4) == [2, 7, 12, 17]


@given(
    st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80),
    st.integers(1, 30),
)
def test_representative_slices_are_as_many_as_asked_for(slices, count):
    usable, tumour = (np.array(column, bool) for column in zip(*slices, strict=True))
    chosen = representative_slices(usable, tumour, count)
    assert chosen == sorted(set(chosen))
    assert usable[chosen].all()
    assert len(chosen) == min(count, usable.sum())
    # tumour comes first
    assert tumour[chosen].sum() == min(count, (usable & tumour).sum())


@pytest.mark.parametrize(
    "options", [("nearest", 0, 0, 0), ("tumour", -1, 0, 0), ("tumour", 0, -1, 0), ("representative", 0, 0, 0)]
)
def test_impossible_choices_are_refused(options):
    with pytest.raises(ValueError, match="slice"):
        SliceChoice(*options)


def test_options_without_meaning_are_refused():
    assert slice_choice(None, 0, 0) is None
    assert slice_choice("tumour", 1, 2) == SliceChoice("tumour", 1, 2)
    with pytest.raises(ValueError, match="need --slices tumour"):
        slice_choice("all", 1, 0)


@pytest.mark.parametrize(
    ("spacing", "plane"),
    [
        ((1, 1, 1), "axial"),
        ((1, 1, 1.4), "axial"),
        ((1, 1, 6), "axial"),
        ((1, 6, 1), "coronal"),
        ((6, 1, 1), "sagittal"),
    ],
)
def test_plane_is_that_of_the_acquisition(spacing, plane):
    image = sitk.GetImageFromArray(np.zeros((4, 4, 4), np.int16))
    image.SetSpacing(spacing)
    assert choose_plane(image) == plane
    assert choose_plane(image, "coronal") == "coronal"


def test_slices_look_alike_whatever_way_round_the_volume_is_stored():
    stored = as_image(volume_array(1))
    expected = stack_slices(sitk.GetArrayFromImage(to_anatomical(stored)), "axial")
    for code in ("RAS", "PIR", "LPS", "ASL"):
        turned = to_anatomical(sitk.DICOMOrient(stored, code))
        np.testing.assert_array_equal(stack_slices(sitk.GetArrayFromImage(turned), "axial"), expected)
        np.testing.assert_allclose(slice_geometry(turned, "axial")[0], SPACING[:2])


@pytest.mark.parametrize(("plane", "axes"), [("axial", (0, 1)), ("coronal", (0, 2)), ("sagittal", (1, 2))])
def test_slice_geometry(plane, axes):
    image = to_anatomical(as_image(volume_array(1)))
    spacing, origin = slice_geometry(image, plane)
    np.testing.assert_allclose(spacing, np.array(SPACING)[list(axes)])
    # the first pixel's position in space, measured along the axes of the slice
    direction = np.array(image.GetDirection()).reshape(3, 3)
    corner = (0, 0, 0) if plane == "axial" else (0, 0, image.GetSize()[2] - 1)
    point = direction.T @ np.array(image.TransformIndexToPhysicalPoint(corner))
    sign = (1, 1) if plane == "axial" else (1, -1)
    np.testing.assert_allclose(origin, point[list(axes)] * sign)


def test_coronal_and_sagittal_slices_have_the_head_on_top():
    image = to_anatomical(as_image(volume_array(1)))
    array = sitk.GetArrayFromImage(image)
    np.testing.assert_array_equal(stack_slices(array, "coronal")[3], array[::-1, 3])
    np.testing.assert_array_equal(stack_slices(array, "sagittal")[3], array[::-1, :, 3])


def test_orienting_does_not_resample():
    image = as_image(volume_array(1))
    turned = to_anatomical(image)
    assert sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(DIRECTION) == "RAS"
    np.testing.assert_array_equal(sitk.GetArrayFromImage(turned), volume_array(1)[:, ::-1, ::-1])
    # the same voxel keeps its place in space
    np.testing.assert_allclose(turned.TransformIndexToPhysicalPoint((11, 9, 0)), ORIGIN)
