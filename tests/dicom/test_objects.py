"""Predictions as DICOM objects: what is in them, and that the mask comes back where it was."""

import itertools
import re
import shutil
import subprocess

import highdicom as hd
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_data import grid, write_enhanced
from dicom_results import BRATS, HEADER, RESULT, by_dcmqi, on_grid_of, series_of

from braintum.conversion.building.pseudonyms import Pseudonyms
from braintum.conversion.dicom.masks import read_mask
from braintum.conversion.dicom.study import find_series
from braintum.dicom.objects import KINDS, UsedModel, write_objects
from braintum.inference.dicom.codes import class_code, disjoint_labels, private_code
from braintum.inference.dicom.measurements import measure, outlines

MODEL = UsedModel("model", "3", "ab" * 32)
SIZE = (14, 12, 10)  # x, y, z
CODES = ["".join(axes) for order in itertools.permutations(("RL", "AP", "SI")) for axes in itertools.product(*order)]
SOME = {"LPS", "RAI", "ASL", "IPR"}


def volume() -> sitk.Image:
    array = np.random.default_rng(1).integers(0, 900, SIZE[::-1]).astype(np.int16)
    return grid(array)


def mask_image(values: tuple[int, ...] = (1, 2, 3)) -> sitk.Image:
    """Blocks that are symmetrical to nothing, with empty slices at both ends and between them."""
    array = np.zeros(SIZE[::-1], np.uint8)
    for number, value in enumerate(values):
        array[2 + 2 * number, 2 + number : 5 + number, 3 : 6 + number] = value
        array[1 + number, 1, 2:4] = value
    return grid(array)


def written(folder, series, mask, **options):
    folder.mkdir(exist_ok=True)
    files = write_objects(series, mask, RESULT, folder, dataset_json=BRATS, model=MODEL, **options)
    return {file.stem: file for file in files}


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """Series, mask on its grid, and the objects of all kinds."""
    folder = tmp_path_factory.mktemp("objects")
    series = series_of(folder / "in", volume(), SoftwareVersions="syngo", PatientComments="he fell")
    mask = on_grid_of(mask_image(), series)
    return series, mask, written(folder / "out", series, mask, kinds=KINDS)


def read_back(file, reference: sitk.Image) -> np.ndarray:
    """The segments' numbers in a DICOM SEG on a grid, (Z, Y, X), by highdicom."""
    found = hd.seg.segread(file).get_volume(combine_segments=True)
    found = found.to_patient_orientation("LPS")
    affine = found.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = grid(
        np.ascontiguousarray(found.array.transpose(2, 1, 0)).astype(np.uint8),
        spacing,
        affine[:3, 3],
        tuple((affine[:3, :3] / spacing).ravel()),
    )
    return sitk.GetArrayFromImage(sitk.Resample(image, reference, sitk.Transform(), sitk.sitkNearestNeighbor))


@pytest.mark.parametrize(
    "code", [code if code in SOME else pytest.param(code, marks=pytest.mark.thorough) for code in CODES]
)
def test_mask_comes_back_in_every_orientation(code, tmp_path):
    turned = sitk.DICOMOrient(volume(), code)
    assert turned.GetSize() != volume().GetSize() or code[0] in "RL"
    series = series_of(tmp_path / "in", turned)
    objects = written(tmp_path / "out", series, on_grid_of(mask_image(), series), kinds=["seg"])
    assert np.array_equal(read_back(objects["seg"], mask_image()), sitk.GetArrayFromImage(mask_image()))


def test_mask_comes_back_by_dcmqi(predicted, tmp_path):
    found = by_dcmqi(predicted[2]["seg"], mask_image(), tmp_path)
    assert np.array_equal(found, sitk.GetArrayFromImage(mask_image()))


def test_mask_of_enhanced_object_comes_back(tmp_path):
    write_enhanced(tmp_path / "in" / "enhanced", [volume()], {**HEADER, "SeriesDescription": "t1 km"})
    (found,) = find_series(tmp_path / "in").series
    series = found.read()
    objects = written(tmp_path / "out", series, on_grid_of(mask_image(), series), kinds=KINDS)
    assert np.array_equal(read_back(objects["seg"], mask_image()), sitk.GetArrayFromImage(mask_image()))
    contours = pydicom.dcmread(objects["rtstruct"]).ROIContourSequence[0].ContourSequence
    assert all(contour.ContourImageSequence[0].ReferencedFrameNumber for contour in contours)


def test_labelmap_comes_back(predicted, tmp_path):
    series, mask, _ = predicted
    objects = written(tmp_path / "out", series, mask, kinds=["seg"], labelmap=True)
    assert pydicom.dcmread(objects["seg"]).SegmentationType == "LABELMAP"
    assert np.array_equal(read_back(objects["seg"], mask_image()), sitk.GetArrayFromImage(mask_image()))


@pytest.mark.parametrize("kind", KINDS)
def test_objects_are_valid(predicted, kind):
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy is not installed (Debian: dicom3tools)")
    said = subprocess.run(["dciodvfy", "-new", predicted[2][kind]], capture_output=True, text=True).stderr
    assert "Error" not in said, said


@pytest.mark.parametrize("kind", KINDS)
def test_patient_and_study_are_copied_and_nothing_private(predicted, kind, tmp_path):
    series, mask, objects = predicted
    dataset = pydicom.dcmread(objects[kind])
    copied = ("PatientName", "PatientID", "PatientBirthDate", "PatientComments", "StudyDescription", "AccessionNumber")
    assert {name: dataset[name].value for name in copied} == {name: series.instances[0][name].value for name in copied}
    assert dataset.StudyInstanceUID == series.study_uid != dataset.SeriesInstanceUID
    assert "research use, not for diagnosis" in dataset.SeriesDescription
    assert dataset.Manufacturer == "braintum" and "syngo" not in str(dataset.SoftwareVersions)
    series.instances[0].private_block(0x0009, "MAKER", create=True).add_new(1, "LO", "secret")
    again = pydicom.dcmread(written(tmp_path / "out", series, mask, kinds=[kind, "seg"])[kind])
    assert not [element for element in again.iterall() if element.tag.is_private]


def uids(file) -> dict[str, str]:
    """Place → UID of all that a file holds, without its times."""
    return {
        f"{number} {element.keyword}": element.value
        for number, element in enumerate(pydicom.dcmread(file).iterall())
        if element.VR == "UI"
    }


@pytest.mark.parametrize("kind", KINDS)
def test_uids_are_those_of_images_and_model(predicted, kind, tmp_path):
    series, mask, objects = predicted
    kinds = dict.fromkeys([kind, "seg"])
    again = written(tmp_path / "out", series, mask, kinds=kinds)[kind]
    assert uids(again) == uids(objects[kind])
    other = write_objects(
        series, mask, RESULT, tmp_path, dataset_json=BRATS, model=UsedModel("model", "3", "cd" * 32), kinds=[kind]
    )
    assert pydicom.dcmread(other[0]).SOPInstanceUID != pydicom.dcmread(again).SOPInstanceUID
    assert all(re.fullmatch(r"[12][.\d]{1,63}", uid) for uid in uids(again).values() if isinstance(uid, str))


def test_what_viewers_look_for(predicted):
    """The attributes by which OHIF finds images and shows segments."""
    series, _, objects = predicted
    dataset = pydicom.dcmread(objects["seg"])
    (referenced,) = dataset.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == series.series_uid
    everywhere = {str(instance.SOPInstanceUID) for instance in series.instances}
    assert {item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence} <= everywhere
    assert dataset.FrameOfReferenceUID == series.frame_of_reference
    assert (dataset.Modality, dataset.SegmentationType, dataset.Rows) == ("SEG", "BINARY", SIZE[1])
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        assert frame.PlanePositionSequence[0].ImagePositionPatient
        assert frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber in (1, 2, 3)
        (source,) = frame.DerivationImageSequence[0].SourceImageSequence
        assert source.ReferencedSOPInstanceUID in everywhere
    segments = dataset.SegmentSequence
    assert [item.SegmentLabel for item in segments] == ["necrotic core", "oedema", "enhancing tumour"]
    assert [item.SegmentedPropertyTypeCodeSequence[0].CodeValue for item in segments] == [
        "6574001",
        "79654002",
        "C113842",
    ]
    for item in segments:
        assert item.SegmentAlgorithmType == "AUTOMATIC" and item.TrackingUID and item.TrackingID
        assert len(item.RecommendedDisplayCIELabValue) == 3
        assert item.AnatomicRegionSequence[0].CodeValue == "12738006"
        (algorithm,) = item.SegmentationAlgorithmIdentificationSequence
        assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("model", "3")
        assert MODEL.checksum in algorithm.AlgorithmParameters


def test_empty_slices_and_absent_segments_are_left_out(predicted, tmp_path):
    series, mask, _ = predicted
    only = np.where(mask == 3, mask, 0)
    dataset = pydicom.dcmread(written(tmp_path / "one", series, only)["seg"])
    assert [item.SegmentNumber for item in dataset.SegmentSequence] == [1]
    assert dataset.SegmentSequence[0].SegmentLabel == "enhancing tumour"
    assert dataset.NumberOfFrames == int((only != 0).any((1, 2)).sum()) < len(mask)
    assert set(written(tmp_path / "none", series, np.zeros_like(mask), kinds=KINDS)) == {"sr", "sc"}


def contents(file) -> list[tuple[str, object]]:
    """Name and value of every content item of a report."""
    found = []
    for element in pydicom.dcmread(file).iterall():
        if element.keyword == "ContentSequence":
            for item in element.value:
                name = item.ConceptNameCodeSequence[0].CodeMeaning if "ConceptNameCodeSequence" in item else ""
                if "MeasuredValueSequence" in item:
                    found.append((name, float(item.MeasuredValueSequence[0].NumericValue)))
                elif "ConceptCodeSequence" in item:
                    found.append((name, item.ConceptCodeSequence[0].CodeMeaning))
                elif "TextValue" in item:
                    found.append((name, item.TextValue))
    return found


@pytest.mark.parametrize("calibrated", [True, False])
def test_report(predicted, calibrated, tmp_path):
    series, mask, objects = predicted
    result = {**RESULT, **({"calibration": {"verdict": "uncertain"}} if calibrated else {})}
    write_objects(series, mask, result, tmp_path, dataset_json=BRATS, model=MODEL)
    found = contents(tmp_path / "sr.dcm")
    volumes = [value for name, value in found if name == "Volume"]
    voxel = float(np.prod(series.image.GetSpacing()))
    counts = [(mask != 0).sum(), *((mask == value).sum() for value in (1, 2, 3))]
    assert volumes == pytest.approx([count * voxel for count in counts], abs=1e-3)
    assert [name for name, _ in found].count("Long axis") == [name for name, _ in found].count("Short axis") == 4
    assert ("Finding", "uncertain" if calibrated else "Glioma") in found
    assert ("probabilities", "calibrated" if calibrated else "not calibrated") in found
    assert ("probability of meningioma", 0.15) in found
    assert ("Algorithm Name", "model") in found and ("Algorithm Version", "3") in found
    assert any(MODEL.checksum in str(value) for _, value in found)
    assert any("not for diagnosis" in str(value) for _, value in found)
    report = pydicom.dcmread(tmp_path / "sr.dcm")
    assert report.VerificationFlag == "UNVERIFIED"
    regions = [
        value for value in uids(objects["sr"]).values() if value == pydicom.dcmread(objects["seg"]).SOPInstanceUID
    ]
    assert len(regions) >= 3


def test_picture(predicted):
    dataset = pydicom.dcmread(predicted[2]["sc"])
    assert dataset.pixel_array.shape[2] == 3 and dataset.PhotometricInterpretation == "RGB"
    assert "glioma 80%" in dataset.ImageComments and "not for diagnosis" in dataset.ImageComments


def test_contours_hold_the_mask(predicted, tmp_path):
    series, mask, _ = predicted
    holed = np.zeros_like(mask)
    holed[4, 2:9, 3:11], holed[4, 4:6, 5:8] = 1, 0
    holed[5, 3, 3] = 1
    file = written(tmp_path / "out", series, holed, kinds=["rtstruct"])["rtstruct"]
    (found,) = find_series(file).masks
    assert np.array_equal(read_mask(found, series.image), holed)


def test_pseudonymised(predicted, tmp_path):
    series, mask, _ = predicted
    pseudonyms = Pseudonyms(b"s" * 32)
    objects = written(tmp_path / "out", series, mask, kinds=KINDS, pseudonyms=pseudonyms)
    identifying = [HEADER[name] for name in ("PatientName", "PatientID", "PatientBirthDate", "AccessionNumber")]
    identifying += ["Doe^Ann", "MR head", "he fell", "20200102", series.study_uid, series.series_uid]
    identifying += [series.frame_of_reference, *(str(instance.SOPInstanceUID) for instance in series.instances)]
    for kind, file in objects.items():
        content = file.read_bytes()
        assert [text for text in identifying if str(text).encode() in content] == [], kind
        dataset = pydicom.dcmread(file)
        assert dataset.PatientID == pseudonyms.of("patient", "P77") and dataset.PatientIdentityRemoved == "YES"
    assert np.array_equal(read_back(objects["seg"], mask_image()), sitk.GetArrayFromImage(mask_image()))


def test_headers_that_lack_or_misstate_what_is_copied(tmp_path):
    bare = {name: "" for name in ("PatientBirthDate", "AccessionNumber", "StudyTime", "ReferringPhysicianName")}
    series = series_of(tmp_path / "in", volume(), **bare, PatientSex="W", SeriesNumber="")
    for instance in series.instances:
        del instance.StudyID, instance.PatientBirthDate
    assert set(written(tmp_path / "out", series, on_grid_of(mask_image(), series), kinds=KINDS)) == set(KINDS)


def test_what_does_not_fit_is_refused(predicted, tmp_path):
    series, mask, _ = predicted
    tmp_path = tmp_path / "out"
    with pytest.raises(ValueError, match="mask has the shape"):
        written(tmp_path, series, mask[1:])
    with pytest.raises(ValueError, match=r"the mask holds \[9\]"):
        written(tmp_path, series, np.where(mask == 1, 9, mask))
    with pytest.raises(ValueError, match="unknown kind of object: jpeg"):
        written(tmp_path, series, mask, kinds=["jpeg"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"background": 0, "tumour": 1}, {1: "tumour"}),
        (BRATS["labels"], {1: "necrotic_core", 2: "oedema", 3: "enhancing_tumour"}),
        ({"background": 0, "all": [1, 2], "core": [2]}, {1: "all without core", 2: "core"}),
        ({"background": 0, "a": 1, "b": 2, "ignore": 3}, {1: "a", 2: "b"}),
    ],
)
def test_disjoint_labels(labels, expected):
    assert disjoint_labels({"labels": labels}) == expected


def test_codes():
    assert class_code("Glioma_tumor").value == "393564001"
    assert class_code("hospital's own").scheme_designator == "99BRAINTUM"
    names = [f"probability of {name}" for name in ("meningioma", "metastasis", "medulloblastoma")]
    values = {private_code(name).value for name in names}
    assert len(values) == 3 and all(len(value) <= 16 for value in values)


def plane(array: np.ndarray, spacing=(0.5, 2.0, 3.0)) -> tuple[np.ndarray, sitk.Image]:
    stack = np.stack([np.zeros_like(array), array])
    return stack != 0, grid(stack.astype(np.uint8), spacing)


def test_measures_of_a_rectangle():
    """Outlines cut the corners by half a pixel. By hand for 6 x 3 pixels of 1 mm: from (0, 0.5) to (6, 2.5), and at
    right angles to it from the lower edge to the upper one, along (-1, 3)."""
    array = np.zeros((9, 12))
    array[2:5, 3:9] = 1
    found = measure(*plane(array, (1, 1, 3)))
    assert (found.volume, found.slice_index) == (18 * 3, 1)
    assert found.longest == pytest.approx(np.hypot(6, 2))
    assert found.perpendicular == pytest.approx(np.hypot(3, 1))


def test_measures_of_an_ellipse():
    y, x = np.mgrid[:80, :120]
    array = ((x - 60) * 0.5 / 25) ** 2 + ((y - 40) * 0.5 / 10) ** 2 < 1
    found = measure(*plane(array, (0.5, 0.5, 1)))
    assert (found.longest, found.perpendicular) == (pytest.approx(50, abs=0.8), pytest.approx(20, abs=0.8))


def test_parts_are_measured_apart():
    array = np.zeros((20, 40))
    array[2:4, 2:4] = array[10:16, 30:32] = 1
    assert measure(*plane(array, (1, 1, 1))).longest < 7
    assert measure(*plane(np.zeros((5, 5)))) is None


def test_outlines_reach_the_edge_and_close():
    (outline,) = outlines(np.ones((3, 4), bool))
    assert np.array_equal(outline[0], outline[-1])
    assert (outline.min(), *outline.max(0)) == (-0.5, 2.5, 3.5)
