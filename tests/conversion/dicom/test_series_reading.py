"""DICOM series as volumes: order, geometry, values, and what is refused; GDCM as the second reader."""

import itertools
import re
import zipfile
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_data import OBLIQUE, grid, uid, write_enhanced, write_series
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless

from braintum.conversion.building.slices import to_anatomical
from braintum.conversion.building.volume_reading import dicom_series, read_any
from braintum.conversion.files.volumes import VolumeError
from braintum.dicom.series import Series
from braintum.dicom.study import find_series
from braintum.inference.ready.own_images import read_image


def noise(size=(6, 5, 4), seed=0, dtype=np.int16, high=900):
    x, y, z = size
    return np.random.default_rng(seed).integers(0, high, (z, y, x)).astype(dtype)


def read_only(folder: Path) -> Series:
    found = find_series(folder)
    assert found.left_out == {}
    (series,) = found.series
    return series.read()


def assert_same_volume(image: sitk.Image, expected: sitk.Image) -> None:
    """Every voxel of one lies where the other has it, whatever the order of axes."""
    moved = sitk.Resample(image, expected, sitk.Transform(), sitk.sitkNearestNeighbor, -9999)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(moved), sitk.GetArrayFromImage(expected))
    assert np.prod(image.GetSize()) == np.prod(expected.GetSize())


def directions() -> list[tuple[float, ...]]:
    found = []
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1.0, -1.0), repeat=3):
            axes = np.zeros((3, 3))
            axes[range(3), order] = signs
            found.append(tuple(axes.ravel().tolist()))
    return found


@pytest.mark.slow
def test_all_48_orientations(tmp_path):
    assert len(set(directions())) == 48
    for number, direction in enumerate(directions()):
        if number % 4:  # oblique ones
            direction = tuple((np.reshape(OBLIQUE, (3, 3)) @ np.reshape(direction, (3, 3))).ravel().tolist())
        expected = grid(noise(seed=number), direction=direction)
        write_series(tmp_path / str(number), expected)
        read = read_only(tmp_path / str(number))
        assert_same_volume(read.image, expected)
        files = [str(file) for file in sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / str(number)))]
        second = sitk.ReadImage(files)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(second), sitk.GetArrayFromImage(read.image))
        for one, other in zip(
            (second.GetOrigin(), second.GetSpacing(), second.GetDirection()),
            (read.image.GetOrigin(), read.image.GetSpacing(), read.image.GetDirection()),
            strict=True,
        ):
            assert one == pytest.approx(other, abs=1e-5)


def test_slices_and_instances_are_in_one_order(tmp_path):
    expected = grid(noise())
    write_series(tmp_path, expected, {"SeriesDescription": "T1", "PatientID": " 17 "})
    read = read_only(tmp_path)
    assert read.frames == ((0, 1), (1, 1), (2, 1), (3, 1))
    for instance, pixels in zip(read.instances, sitk.GetArrayFromImage(read.image), strict=True):
        np.testing.assert_array_equal(instance.pixel_array, pixels)
    along = [np.dot(instance.ImagePositionPatient, np.reshape(OBLIQUE, (3, 3))[:, 2]) for instance in read.instances]
    assert along == sorted(along)
    numbers = [int(instance.InstanceNumber) for instance in read.instances]
    assert numbers != sorted(numbers) and numbers != sorted(numbers, reverse=True)
    assert (read.description, read.modality, read.patient_id) == ("T1", "MR", "17")
    assert read.series_uid == uid(read.study_uid, "T1") and read.frame_of_reference == uid(read.study_uid, "frame")


def test_enhanced_frames_have_positions_and_scales_of_their_own(tmp_path):
    stored = noise(dtype=np.uint16)
    scales = [(1.0, 0.0), (2.5, 0.0), (0.5, -3.0), (1.0, 10.0)]
    write_enhanced(tmp_path / "enhanced", [grid(stored)], {"SeriesDescription": "3D"}, rescale=scales)
    read = read_only(tmp_path)
    expected = np.stack([slope * pixels + intercept for pixels, (slope, intercept) in zip(stored, scales, strict=True)])
    np.testing.assert_allclose(sitk.GetArrayFromImage(read.image), expected)
    assert read.image.GetOrigin() == pytest.approx((-31.5, 40.25, -7.0))
    assert read.image.GetSpacing() == pytest.approx((0.7, 0.9, 2.5))
    assert len(read.instances) == 1
    for (instance, number), pixels in zip(read.frames, stored, strict=True):
        np.testing.assert_array_equal(read.instances[instance].pixel_array[number - 1], pixels)
    assert sorted(number for _, number in read.frames) == [1, 2, 3, 4]
    assert [number for _, number in read.frames] != [1, 2, 3, 4]


@pytest.mark.parametrize("fact", ["EchoTime", "TemporalPositionIndex"])
def test_volumes_of_an_enhanced_object_are_told_apart(tmp_path, fact):
    images = [grid(noise(seed=1)), grid(noise(seed=2))]
    write_enhanced(tmp_path / "enhanced", images, {"SeriesDescription": "two"}, [{fact: 20}, {fact: 80}])
    found = find_series(tmp_path)
    assert [series.title.partition(" ")[0] for series in found.series] == ["two", "two"]
    assert [series.part.rpartition(" ")[2] for series in found.series] == ["20", "80"]
    for series, image in zip(found.series, images, strict=True):
        assert_same_volume(series.read().image, image)


def test_single_enhanced_file_is_read_as_an_image_of_ones_own(tmp_path):
    image = grid(noise())
    file = write_enhanced(tmp_path / "enhanced.dcm", [image], rescale=[(1, 0), (2, 0), (1, 0), (1, 5)])
    read = read_image(file)
    np.testing.assert_array_equal(read.slices[2], sitk.GetArrayFromImage(to_anatomical(image))[2])
    np.testing.assert_array_equal(read.slices[1], 2 * sitk.GetArrayFromImage(to_anatomical(image))[1])
    write_enhanced(file, [image, grid(noise(seed=1))], per_image=[{"EchoTime": 20}, {"EchoTime": 80}])
    with pytest.raises(VolumeError, match="holds 2 volumes .*EchoTime 20.*EchoTime 80"):
        read_image(file)


def test_film_without_positions_is_left_out(tmp_path):
    (file,) = write_series(tmp_path, grid(noise((6, 5, 1))))
    dataset = pydicom.dcmread(file)
    dataset.NumberOfFrames = 2**31 - 1
    dataset.save_as(file)
    (fault,) = find_series(tmp_path).left_out.values()
    assert "frames without positions of their own" in fault


def test_gap_in_an_enhanced_object_is_no_spacing(tmp_path):
    write_enhanced(tmp_path / "enhanced", [grid(noise((6, 5, 7)))], without=[3])
    (fault,) = find_series(tmp_path).left_out.values()
    assert "1 slices are missing" in fault and "2.5 mm ×4, 5 mm ×1" in fault


def test_frames_that_nothing_tells_apart_are_refused_with_what_was_tried(tmp_path):
    write_enhanced(tmp_path / "enhanced", [grid(noise(seed=1)), grid(noise(seed=2))])
    found = find_series(tmp_path)
    (fault,) = found.left_out.values()
    assert found.series == [] and "up to 2 slices at one position" in fault and "headers are alike" in fault


@pytest.mark.parametrize(
    "facts",
    [
        [{"EchoTime": 20.0}, {"EchoTime": 80.0}],
        [{"TemporalPositionIdentifier": 1}, {"TemporalPositionIdentifier": 2}],
        [{"AcquisitionNumber": 1}, {"AcquisitionNumber": 2}],
        [{"ImageType": ["ORIGINAL", "PRIMARY", "M"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "P"]}],
    ],
)
def test_volumes_in_one_series_are_told_apart(tmp_path, facts):
    images = [grid(noise(seed=1)), grid(noise(seed=2))]
    for number, (image, own) in enumerate(zip(images, facts, strict=True)):
        write_series(
            tmp_path, image, {"SeriesDescription": "two", **own}, prefix=f"V{number}_", first_number=10 * number
        )
    found = find_series(tmp_path)
    assert len({series.title for series in found.series}) == 2 and found.left_out == {}
    for series, image in zip(sorted(found.series, key=lambda one: one.part), images, strict=True):
        assert next(iter(facts[0])) in series.part
        assert_same_volume(series.read().image, image)


def test_echoes_and_time_points_at_once(tmp_path):
    for echo, point in itertools.product((20.0, 80.0), (1, 2)):
        facts = {"EchoTime": echo, "TemporalPositionIdentifier": point}
        write_series(tmp_path, grid(noise(seed=int(echo) + point)), facts, prefix=f"{echo}_{point}_")
    found = find_series(tmp_path)
    assert len(found.series) == 4 and found.left_out == {}
    for series in found.series:
        seed = int(series.facts["EchoTime"] + series.facts["TemporalPositionIdentifier"])
        np.testing.assert_array_equal(sitk.GetArrayFromImage(series.read().image), noise(seed=seed))


def test_a_time_of_acquisition_for_each_slice_tells_nothing_apart(tmp_path):
    for number in range(2):
        times = {index: {"AcquisitionTime": f"12{number}{index}00"} for index in range(4)}
        write_series(tmp_path, grid(noise(seed=number)), per_slice=times, prefix=f"V{number}_")
    (fault,) = find_series(tmp_path).left_out.values()
    assert "nothing tells which belong together (AcquisitionTime: " in fault


@pytest.mark.parametrize(
    ("how", "fault"),
    [
        ({"without": [2]}, "1 slices are missing, .*2.5 mm ×4, 5 mm ×1"),
        ({"without": [2, 3, 5]}, "3 slices are missing"),
        ({"per_slice": {3: {"ImagePositionPatient": [-31.5, 40.25, 1.7]}}, "flat": True}, "unevenly spaced"),
        ({"shift": (0.0, 0.4, 0.0), "flat": True}, r"shifted sideways .*9.1°: a tilted gantry\?.*resample it"),
    ],
)
def test_gaps_uneven_slices_and_tilted_gantries_are_refused(tmp_path, how, fault):
    direction = (1, 0, 0, 0, 1, 0, 0, 0, 1) if how.pop("flat", False) else OBLIQUE
    write_series(tmp_path, grid(noise((6, 5, 7)), direction=direction), **how)
    found = find_series(tmp_path)
    assert found.series == [] and len(found.left_out) == 1
    assert re.search(fault, next(iter(found.left_out.values())))


def test_faulty_series_is_found_by_its_description_and_refused_when_read(tmp_path):
    write_series(tmp_path, grid(noise((6, 5, 7))), {"SeriesDescription": "T1"}, without=[2])
    (series,) = dicom_series(tmp_path)
    assert series.names == ("T1",)
    with pytest.raises(VolumeError, match=f"{tmp_path} .T1.: 'T1': 1 slices are missing"):
        read_any(series)


def test_copy_of_a_slice_is_taken_once_and_another_slice_at_its_place_is_refused(tmp_path):
    files = write_series(tmp_path, grid(noise()))
    (tmp_path / "copy").write_bytes(files[1].read_bytes())
    found = find_series(tmp_path)
    assert len(found.series[0].frames) == 4
    assert {*found.copies, *found.copies.values()} == {str(files[1]), str(tmp_path / "copy")}
    changed = pydicom.dcmread(files[1])
    changed.PixelData = bytes(len(changed.PixelData))
    changed.save_as(tmp_path / "copy")
    (fault,) = find_series(tmp_path).left_out.values()
    assert "differ, but have one SOPInstanceUID" in fault
    changed.SOPInstanceUID = uid("another")
    changed.save_as(tmp_path / "copy")
    (fault,) = find_series(tmp_path).left_out.values()
    assert "up to 2 slices at one position" in fault


def test_sizes_and_orientations_in_one_series_are_volumes_of_their_own(tmp_path):
    write_series(tmp_path, grid(noise()), prefix="a")
    write_series(tmp_path, grid(noise((8, 5, 4), 1)), prefix="b")
    write_series(tmp_path, grid(noise((6, 5, 4), 2), direction=(0, 0, 1, 1, 0, 0, 0, 1, 0)), prefix="c")
    found = find_series(tmp_path)
    assert sorted(series.grid.size for series in found.series) == [(6, 5, 4), (6, 5, 4), (8, 5, 4)]
    assert len({series.title for series in found.series}) == 3


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_values_against_gdcm(tmp_path, dtype):
    """12 bits in 16, signed or not, rescaled, and other bits above them (an overlay of old files)."""
    values = noise(dtype=dtype, high=4000) if dtype == np.uint16 else noise(dtype=dtype, high=4000) - 2000
    tags = {"BitsStored": 12, "RescaleSlope": 2.5, "RescaleIntercept": -100}
    write_series(tmp_path, grid(values), tags)
    read = sitk.GetArrayFromImage(read_only(tmp_path).image)
    np.testing.assert_allclose(read, values * 2.5 - 100)
    second = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    np.testing.assert_allclose(read, sitk.GetArrayFromImage(second))
    for file in tmp_path.iterdir():
        dataset = pydicom.dcmread(file)
        pixels = np.frombuffer(dataset.PixelData, np.uint16) & 0x0FFF
        dataset.PixelData = (pixels | 0x3000).astype(np.uint16).tobytes()
        dataset.save_as(file)
    np.testing.assert_allclose(sitk.GetArrayFromImage(read_only(tmp_path).image), read)


def test_scales_differ_between_slices(tmp_path):
    scales = {index: {"RescaleSlope": index + 1, "RescaleIntercept": -index} for index in range(4)}
    write_series(tmp_path, grid(noise()), per_slice=scales)
    expected = np.stack([(index + 1) * pixels - index for index, pixels in enumerate(noise())])
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_only(tmp_path).image), expected)


def test_bright_is_large_in_monochrome1_too(tmp_path):
    write_series(tmp_path, grid(noise(dtype=np.uint16)), {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12})
    read = sitk.GetArrayFromImage(read_only(tmp_path).image)
    np.testing.assert_array_equal(read, 4095 - noise().astype(int))


@pytest.mark.parametrize("syntax", [JPEGLSLossless, RLELossless, JPEG2000Lossless, DeflatedExplicitVRLittleEndian])
def test_packed_pixels(tmp_path, syntax):
    write_series(tmp_path, grid(noise(dtype=np.uint16, size=(32, 32, 4))))
    expected = sitk.GetArrayFromImage(read_only(tmp_path).image)
    for file in tmp_path.iterdir():
        dataset = pydicom.dcmread(file)
        if syntax == DeflatedExplicitVRLittleEndian:
            dataset.file_meta.TransferSyntaxUID = syntax
        elif syntax == JPEG2000Lossless:
            image = gdcm.ImageReader()
            image.SetFileName(str(file))
            image.Read()
            change, writer = gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
            change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEG2000Lossless))
            change.SetInput(image.GetImage())
            change.Change()
            writer.SetFileName(str(file))
            writer.SetFile(image.GetFile())
            writer.SetImage(change.GetOutput())
            writer.Write()
            continue
        else:
            dataset.compress(syntax)
        dataset.save_as(file)
    series = read_only(tmp_path)
    assert series.instances[0].file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(sitk.GetArrayFromImage(series.image), expected)


def test_archive_of_mixed_things(tmp_path):
    """Folders in any nesting, no endings, DICOMDIR, a report, a picture, a bare file; as a folder and as a ZIP file."""
    study = tmp_path / "study"
    write_series(study / "A" / "B", grid(noise()), {"SeriesDescription": "T1"})
    write_series(study / "A" / "B", grid(noise(seed=1)), {"SeriesDescription": "T2"}, prefix="other")
    write_series(study, grid(noise(seed=2)), {"SeriesDescription": "FLAIR", "PatientID": "18"}, prefix="0")
    (study / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(20))
    (study / "readme.txt").write_text("nothing")
    (study / "shot.png").write_bytes(b"\x89PNG")
    (study / "broken.dcm").write_bytes(bytes(128) + b"DICM" + b"\x08\x00\x16")
    (file,) = write_series(tmp_path / "bare", grid(noise((6, 5, 1))), {"SeriesDescription": "bare"})
    bare = pydicom.dcmread(file)
    del bare.file_meta, bare.preamble
    bare.save_as(study / "IM7", implicit_vr=True, little_endian=True)
    with zipfile.ZipFile(tmp_path / "study.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(study.rglob("*")):
            archive.write(file, file.relative_to(study))
    for source in (study, tmp_path / "study.zip"):
        found = find_series(source)
        titles = {series.title: series for series in found.series}
        assert titles.keys() == {"T1", "T2", "FLAIR", "bare"}
        np.testing.assert_array_equal(sitk.GetArrayFromImage(titles["T2"].read().image), noise(seed=1))
        assert {Path(name).name for name in found.left_out} == {"shot.png", "broken.dcm"}


def test_no_such_thing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find_series(tmp_path / "nothing")
    (tmp_path / "study.zip").write_bytes(b"PK\x03\x04 no archive")
    assert [*find_series(tmp_path / "study.zip").series] == []


def test_damaged_files_are_named(tmp_path):
    """Bytes changed, cut and filled with zeros: a message, or a volume, but nothing else."""
    files = write_series(tmp_path / "whole", grid(noise((6, 5, 1))))
    content = files[0].read_bytes()
    random = np.random.default_rng(0)
    outcomes = set()
    for number in range(60):
        damaged = bytearray(content)
        if number % 3 == 0:
            damaged = damaged[: random.integers(140, len(damaged))]
        else:
            for place in random.integers(132, len(damaged), 1 + number % 5):
                damaged[place] = random.integers(256)
        (tmp_path / "study").mkdir(exist_ok=True)
        (tmp_path / "study" / "file").write_bytes(bytes(damaged))
        found = find_series(tmp_path / "study")
        try:
            for series in found.series:
                series.read()
            outcomes.add("left out" if found.left_out else "read")
        except VolumeError as error:
            assert str(error).strip()
            outcomes.add("refused")
    assert outcomes == {"left out", "read", "refused"}
