"""DICOM segmentations and structure sets as label maps on the grid of an image."""

from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_data import grid, write_series, write_structures
from highdicom.sr.coding import CodedConcept

from braintum.conversion.dicom.masks import read_mask
from braintum.conversion.files.volumes import VolumeError
from braintum.dicom.series import Series
from braintum.dicom.study import find_series


@pytest.fixture
def series(tmp_path: Path) -> Series:
    array = np.random.default_rng(0).integers(1, 900, (7, 10, 12)).astype(np.int16)
    write_series(tmp_path / "T1", grid(array), {"SeriesDescription": "T1", **dict.fromkeys(_PATIENT, "")})
    return find_series(tmp_path / "T1").series[0].read()


_PATIENT = (
    *("PatientBirthDate", "PatientSex", "StudyTime", "AccessionNumber", "StudyID", "ReferringPhysicianName"),
    *("Manufacturer", "PositionReferenceIndicator"),
)
"""Attributes that a segmentation copies."""


def labels() -> np.ndarray:
    """Two segments without symmetry, one in slices 2 and 3, one in 3 and 5; the others are empty."""
    mask = np.zeros((7, 10, 12), np.uint8)
    mask[2:4, 1:4, 2:9] = 1
    mask[[3, 5], 6:8, 1:3] = 2
    return mask


def write_seg(file: Path, series: Series, mask: np.ndarray, kind: str) -> Path:
    tumour = CodedConcept("108369006", "SCT", "Neoplasm")
    described = [
        highdicom.seg.SegmentDescription(
            number, f"part {number}", tumour, tumour, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for number in (1, 2)
    ]
    options = {"max_fractional_value": 200} if kind == "FRACTIONAL" else {}
    segmentation = highdicom.seg.Segmentation(
        series.instances,
        mask,
        kind,
        described,
        series_instance_uid=highdicom.UID(),
        series_number=9,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="x",
        manufacturer_model_name="x",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=True,
        **options,
    )
    file.parent.mkdir(exist_ok=True)
    segmentation.save_as(file)
    return file


def read_back(folder: Path, series: Series) -> np.ndarray:
    (mask,) = find_series(folder).masks
    return read_mask(mask, series.image)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "FRACTIONAL"])
def test_segmentation(tmp_path, series, kind):
    mask = labels()
    stored = np.stack([mask == 1, mask == 2], -1).astype(np.float32) * 0.75 if kind == "FRACTIONAL" else mask
    write_seg(tmp_path / "SEG" / "1", series, stored, kind)
    np.testing.assert_array_equal(read_back(tmp_path / "SEG", series), mask)


def test_nested_segments_and_overlapping_ones(tmp_path, series):
    inner, outer = labels() == 2, labels() != 0
    write_seg(tmp_path / "SEG" / "1", series, np.stack([outer, inner], -1).astype(np.uint8), "BINARY")
    np.testing.assert_array_equal(read_back(tmp_path / "SEG", series), labels())
    crossing = np.roll(outer, 1, axis=1)
    write_seg(tmp_path / "SEG" / "1", series, np.stack([outer, crossing], -1).astype(np.uint8), "BINARY")
    with pytest.raises(VolumeError, match="segment [12] overlaps [12] without lying within"):
        read_back(tmp_path / "SEG", series)


def test_image_in_another_order_of_axes(tmp_path, series):
    write_seg(tmp_path / "SEG" / "1", series, labels(), "BINARY")
    (mask,) = find_series(tmp_path / "SEG").masks
    turned = sitk.PermuteAxes(sitk.Flip(series.image, (True, False, True)), (2, 0, 1))
    expected = sitk.GetImageFromArray(labels())
    expected.CopyInformation(series.image)
    expected = sitk.PermuteAxes(sitk.Flip(expected, (True, False, True)), (2, 0, 1))
    np.testing.assert_array_equal(read_mask(mask, turned), sitk.GetArrayFromImage(expected))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda image: image.SetOrigin((-31.0, 40.25, -7.0)), "not on the grid of the image"),
        (lambda image: image.SetSpacing((0.7, 0.9, 3.0)), "not on the grid of the image"),
        (lambda image: image.SetOrigin(image.TransformIndexToPhysicalPoint((3, 0, 0))), "reaches beyond the image"),
    ],
)
def test_segmentation_of_another_image_is_refused(tmp_path, series, change, fault):
    write_seg(tmp_path / "SEG" / "1", series, labels(), "BINARY")
    change(series.image)
    with pytest.raises(VolumeError, match=fault):
        read_back(tmp_path / "SEG", series)


def test_damaged_segmentation_is_named(tmp_path, series):
    file = write_seg(tmp_path / "SEG" / "1", series, labels(), "BINARY")
    dataset = pydicom.dcmread(file)
    del dataset.SharedFunctionalGroupsSequence
    dataset.save_as(file)
    with pytest.raises(VolumeError, match="SEG/1: damaged"):
        read_back(tmp_path / "SEG", series)


def test_contours_with_a_hole(tmp_path, series):
    square = [(1.6, 2.6), (8.4, 2.6), (8.4, 7.4), (1.6, 7.4)]
    hole = [(3.6, 3.6), (5.4, 3.6), (5.4, 5.4), (3.6, 5.4)]
    triangle = [(0.5, 0.5), (4.2, 0.5), (0.5, 4.2)]
    write_structures(tmp_path / "RT" / "1", series.image, {4: [(2, square), (2, hole)], 7: [(5, triangle)]})
    expected = np.zeros((7, 10, 12), np.uint8)
    expected[2, 3:8, 2:9] = 4
    expected[2, 4:6, 4:6] = 0
    expected[5, 1, 1:4] = expected[5, 2, 1:3] = expected[5, 3, 1:2] = 7
    np.testing.assert_array_equal(read_back(tmp_path / "RT", series), expected)
    write_structures(tmp_path / "RT" / "1", series.image, {4: [(2.4, square)]})
    with pytest.raises(VolumeError, match="lies in no slice of the image"):
        read_back(tmp_path / "RT", series)
