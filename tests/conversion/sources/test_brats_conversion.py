"""The BraTS converter, on files with the originals' quirks and faults, and on real ones."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from phantom_data import digest, fail_at
from volume_data import (
    DIRECTION,
    ORIGIN,
    SPACING,
    as_image,
    mask_array,
    verify,
    volume_array,
    write_brats_case,
    write_volume_file,
)

from braintum.conversion.building import volume_cases
from braintum.conversion.building.inspection import SourceError
from braintum.conversion.building.raw_dataset import ConversionRequest
from braintum.conversion.cli import main
from braintum.conversion.format.cases import read_cases
from braintum.conversion.format.splits import check_splits
from braintum.conversion.sources.brats import (
    LABEL_OF_SOURCE,
    SOURCE_OF_LABEL,
    convert,
    map_labels,
    patient_of,
    to_source_labels,
)

NAME = "Dataset612_BraTS"
OLD = ("BraTS2021_00000", "BraTS2021_00002", "BraTS2021_00003")


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


@pytest.fixture
def source(tmp_path):
    """Three cases of 2021; the second has no enhancing tumour, the third a 16-bit mask."""
    folder = tmp_path / "source"
    for name, mask in zip(OLD, (mask_array(), mask_array((1, 2)), mask_array().astype(np.uint16)), strict=True):
        write_brats_case(folder, name, mask)
    return folder


def request(source, raw, **options):
    return ConversionRequest(source, raw, 612, "BraTS", n_processes=1, **options)


def dataset_json(raw):
    return json.loads((raw / NAME / "dataset.json").read_text(encoding="utf-8"))


def read(raw, path):
    return sitk.ReadImage(str(raw / NAME / path))


@pytest.mark.parametrize("slices", [None, "tumour"])
def test_t1ce_with_the_whole_tumour(source, raw, slices):
    convert(request(source, raw), slices=slices, t1ce_only=True)
    content = dataset_json(raw)
    assert content["channel_names"] == {"0": "T1ce"}
    assert content["labels"] == {"background": 0, "tumour": 1} and "source_labels" not in content
    if slices is None:
        assert len(list((raw / NAME / "imagesTr").iterdir())) == 3
        found = sitk.GetArrayFromImage(read(raw, f"labelsTr/{OLD[0]}.nii.gz"))
        np.testing.assert_array_equal(found, mask_array() > 0)
        original = sitk.GetArrayFromImage(sitk.ReadImage(str(source / OLD[0] / f"{OLD[0]}_t1ce.nii.gz")))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read(raw, f"imagesTr/{OLD[0]}_0000.nii.gz")), original)


def test_t1ce_has_no_regions(source, raw):
    with pytest.raises(ValueError, match="--t1ce-only has one label, --regions has three"):
        convert(request(source, raw), regions=True, t1ce_only=True)
    assert not (raw / NAME).exists()


def test_channels_labels_and_geometry(source, raw):
    result = convert(request(source, raw))
    assert (result.n_cases, result.configuration) == (3, "3d_fullres")
    content = dataset_json(raw)
    assert content["channel_names"] == {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"}
    assert content["labels"] == {"background": 0, "necrotic_core": 1, "oedema": 2, "enhancing_tumour": 3}
    assert "classification" not in content
    for channel, sequence in enumerate(("t1", "t1ce", "t2", "flair")):
        image = read(raw, f"imagesTr/{OLD[0]}_{channel:04d}.nii.gz")
        original = sitk.ReadImage(str(source / OLD[0] / f"{OLD[0]}_{sequence}.nii.gz"))
        array = sitk.GetArrayFromImage(image)
        np.testing.assert_array_equal(array, sitk.GetArrayFromImage(original))
        assert (array.dtype, array.max()) == (np.int16, 32767)
        np.testing.assert_allclose(image.GetSpacing(), SPACING, rtol=1e-6)
        np.testing.assert_allclose(image.GetOrigin(), ORIGIN, rtol=1e-6)
        np.testing.assert_allclose(image.GetDirection(), DIRECTION, atol=1e-6)
    for name in OLD:
        label = read(raw, f"labelsTr/{name}.nii.gz")
        np.testing.assert_allclose(label.GetDirection(), DIRECTION, atol=1e-6)
        expected = mask_array((1, 2) if name == OLD[1] else (1, 2, 4))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(label), np.where(expected == 4, 3, expected))
    assert content["remarks"] == {"no enhancing tumour": [OLD[1]]}
    case = read_cases(raw / NAME / "cases.csv")[OLD[0]]
    assert (case.tumour_class, case.patient, case.spacing, case.source) == ("glioma", OLD[0], "0.9 1.1 2.5", OLD[0])
    assert "No classes: all cases are glioma" in result.table


@pytest.mark.parametrize("convention", LABEL_OF_SOURCE)
def test_label_map_and_its_inverse(convention):
    values = np.array([[list(LABEL_OF_SOURCE[convention])]], np.uint16)
    ours = map_labels(values, Path("seg.nii.gz"), convention)
    assert ours.tolist() == [[[0, 1, 2, 3]]]
    np.testing.assert_array_equal(to_source_labels(ours, convention), values)
    assert SOURCE_OF_LABEL["2021"] == {0: 0, 1: 1, 2: 2, 3: 4}


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("BraTS2021_00000", (1, 3), "label(s) 3, but BraTS up to 2021 has 0, 1, 2, 4 only"),
        ("BraTS-GLI-00000-000", (1, 4), "label(s) 4, but BraTS 2023 and later has 0, 1, 2, 3 only"),
        ("BraTS2021_00000", (9, 10), "label(s) 9, 10, but"),
    ],
)
def test_unexpected_labels_are_refused(source, raw, name, values, words):
    path = write_brats_case(source, name, mask_array(values))
    with pytest.raises(SourceError) as caught:
        convert(request(source, raw))
    assert words in str(caught.value)
    assert str(path / name) in str(caught.value)
    assert not raw.exists()


def test_regions(source, raw):
    write_brats_case(source / "HGG", "Brats18_2013_2_1")
    write_brats_case(source / "LGG", "Brats18_2013_3_1", mask_array())
    convert(request(source, raw), regions=True, unlabelled="train")
    content = dataset_json(raw)
    assert content["labels"] == {
        "background": 0,
        "whole_tumour": [1, 2, 3],
        "tumour_core": [1, 3],
        "enhancing_tumour": [3],
        "ignore": 4,
    }
    # painted in this order, the regions leave the labels behind: oedema, then necrosis, then enhancing tumour
    assert content["regions_class_order"] == [2, 1, 3]
    assert np.unique(sitk.GetArrayFromImage(read(raw, "labelsTr/Brats18_2013_2_1.nii.gz"))).tolist() == [4]


def test_new_naming_with_several_cohorts(tmp_path, raw):
    source = tmp_path / "source"
    for name in (
        "BraTS-GLI-00001-000",
        "BraTS-GLI-00001-001",
        "BraTS-GLI-00002-000",
        "BraTS-MEN-00001-000",
        "BraTS-MET-00001-000",
        "BraTS-PED-00001-000",
        "BraTS-SSA-00001-000",
    ):
        write_brats_case(source / "deep" / "er", name, mask_array((1, 2, 3)))
    convert(request(source, raw))
    schema = dataset_json(raw)["classification"]["class_names"]
    assert sorted(schema) == ["glioma", "meningioma", "metastasis", "pediatric_glioma"]
    cases = read_cases(raw / NAME / "cases.csv", schema)
    assert [case.tumour_class for case in cases.values()] == [
        "glioma", "glioma", "glioma", "meningioma", "metastasis", "pediatric_glioma", "glioma",
    ]  # fmt: skip
    assert cases["BraTS-GLI-00001-001"].patient == cases["BraTS-GLI-00001-000"].patient == "BraTS-GLI-00001"
    assert cases["BraTS-GLI-00001-001"].source == "deep/er/BraTS-GLI-00001-001"
    # t1n, t1c, t2w, t2f are T1, T1ce, T2, FLAIR
    original = sitk.ReadImage(str(source / "deep/er/BraTS-MEN-00001-000/BraTS-MEN-00001-000-t1c.nii.gz"))
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(read(raw, "imagesTr/BraTS-MEN-00001-000_0001.nii.gz")), sitk.GetArrayFromImage(original)
    )
    splits = json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8"))
    check_splits(splits, cases.values())


def test_grades_of_folders(tmp_path, raw):
    for grade, name in (("HGG", "Brats18_2013_2_1"), ("HGG", "Brats18_TCIA02_117_1"), ("LGG", "Brats18_2013_0_1")):
        write_brats_case(tmp_path / "source" / grade, name, mask_array())
    convert(request(tmp_path / "source", raw))
    cases = read_cases(raw / NAME / "cases.csv", dataset_json(raw)["classification"]["class_names"])
    assert {name: case.tumour_class for name, case in cases.items()} == {
        "Brats18_2013_2_1": "high_grade_glioma",
        "Brats18_TCIA02_117_1": "high_grade_glioma",
        "Brats18_2013_0_1": "low_grade_glioma",
    }


def test_grades_of_name_mapping_with_uncompressed_files_and_a_misnamed_mask(tmp_path, raw):
    source = tmp_path / "source" / "MICCAI_BraTS2020_TrainingData"
    names = ("BraTS20_Training_001", "BraTS20_Training_002", "BraTS20_Training_355")
    for name in names:
        write_brats_case(source, name, mask_array() if name != names[2] else None, ending=".nii")
    write_volume_file(source / names[2] / "W39_1998.09.19_Segm.nii", mask_array((1, 2)))
    rows = [f"{grade},NA,{name}" for grade, name in zip(("HGG", "LGG", "HGG"), names, strict=True)]
    (source / "name_mapping.csv").write_text("\n".join(["Grade,BraTS_2019_subject_ID,BraTS_2020_subject_ID", *rows]))
    convert(request(tmp_path / "source", raw))
    cases = read_cases(raw / NAME / "cases.csv")
    assert [case.tumour_class for case in cases.values()] == [
        "high_grade_glioma",
        "low_grade_glioma",
        "high_grade_glioma",
    ]
    assert {case.split for case in cases.values()} == {"train"}
    assert sitk.GetArrayFromImage(read(raw, f"labelsTr/{names[2]}.nii.gz")).max() == 2


def test_contradicting_grade_is_refused(tmp_path, raw):
    write_brats_case(tmp_path / "source" / "HGG", "BraTS19_2013_2_1", mask_array())
    (tmp_path / "source" / "name_mapping.csv").write_text("Grade,BraTS_2019_subject_ID\nLGG,BraTS19_2013_2_1\n")
    with pytest.raises(SourceError, match="lies in HGG, but name_mapping.csv says LGG"):
        convert(request(tmp_path / "source", raw))


def test_cases_without_a_mask_are_the_test_part(source, raw):
    write_brats_case(source, "BraTS2021_00009")
    convert(request(source, raw))
    cases = read_cases(raw / NAME / "cases.csv")
    assert [case.split for case in cases.values()] == ["train"] * 3 + ["test"]
    assert len(list((raw / NAME / "imagesTs").iterdir())) == 4
    assert not list((raw / NAME / "labelsTs").glob("*"))
    assert dataset_json(raw)["numTraining"] == 3
    assert "ignore" not in dataset_json(raw)["labels"]


def test_case_with_neither_mask_nor_class_is_refused_for_training(source, raw):
    write_brats_case(source, "BraTS2021_00009")
    with pytest.raises(SourceError, match="BraTS2021_00009: neither segmentation nor class"):
        convert(request(source, raw), unlabelled="train")


def test_same_patient_under_two_names_is_grouped(source, raw):
    write_brats_case(source, "BraTS-GLI-00000-000", mask_array((1, 2, 3)))
    result = convert(request(source, raw))
    cases = read_cases(raw / NAME / "cases.csv")
    assert cases["BraTS2021_00000"].group == cases["BraTS-GLI-00000-000"].group == "BraTS-GLI-00000"
    assert cases["BraTS2021_00002"].group == ""
    assert "several years" not in result.table
    assert set(dataset_json(raw)["source_labels"]) == {"2021", "2023"}


def test_several_years_are_warned_of(source, raw):
    write_brats_case(source, "BraTS20_Training_001", mask_array())
    assert "Cases of several years: BraTS20 (1), BraTS2021 (3)" in convert(request(source, raw)).table


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("BraTS-MET-00012-001", "BraTS-MET-00012"),
        ("Brats17_TCIA_105_1", "Brats17_TCIA_105"),
        ("BraTS19_2013_10_1", "BraTS19_2013_10"),
        ("BraTS20_Training_001", "BraTS20_Training_001"),
        ("BraTS2021_00001", "BraTS2021_00001"),
    ],
)
def test_patient_is_the_name_without_the_time_point(name, patient):
    assert patient_of(name) == patient


def test_slices_are_2d_with_true_spacing_in_one_orientation(source, raw):
    # the same case stored the other way round gives the same slices
    folder = write_brats_case(source, "BraTS2021_00004", mask_array())
    for path in sorted((source / OLD[0]).iterdir()):
        turned = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
        sitk.WriteImage(turned, str(folder / path.name.replace(OLD[0], "BraTS2021_00004")))
    result = convert(request(source, raw), slices="tumour", slice_margin=1, healthy_slices=1)
    assert (result.n_cases, result.configuration) == (4 * 5, "2d")
    cases = read_cases(raw / NAME / "cases.csv")
    # tumour in 3 and 4, margin 2 and 5, and 6 of the others: 0 and 7 are empty, 1 and 6 are left
    assert [name[-3:] for name in cases][:5] == ["002", "003", "004", "005", "006"]
    case = cases[f"{OLD[0]}_003"]
    assert (case.plane, case.spacing, case.tumour_class, case.patient) == ("axial", "0.9 1.1", "glioma", OLD[0])
    stored = sitk.GetArrayFromImage(sitk.ReadImage(str(source / OLD[0] / f"{OLD[0]}_t1ce.nii.gz")))
    for name in (OLD[0], "BraTS2021_00004"):
        image = read(raw, f"imagesTr/{name}_003_0001.nii.gz")
        label = read(raw, f"labelsTr/{name}_003.nii.gz")
        assert (image.GetDimension(), label.GetPixelID()) == (2, sitk.sitkUInt8)
        np.testing.assert_allclose(image.GetSpacing(), SPACING[:2], rtol=1e-6)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), stored[3, ::-1, ::-1])
        np.testing.assert_array_equal(np.unique(sitk.GetArrayFromImage(label)), [0, 1, 2, 3])


def test_unlabelled_cases_give_all_slices_that_show_something(source, raw):
    write_brats_case(source, "BraTS2021_00009")
    convert(request(source, raw), slices="tumour")
    cases = read_cases(raw / NAME / "cases.csv")
    assert sum(case.split == "test" for case in cases.values()) == 6


def test_geometry_mismatch_names_both_files_and_the_differences(source, raw):
    path = source / OLD[0] / f"{OLD[0]}_seg.nii.gz"
    write_volume_file(path, mask_array(), spacing=(0.9, 1.1, 2.6), origin=(0, 40.25, -7))
    write_volume_file(source / OLD[1] / f"{OLD[1]}_t2.nii.gz", volume_array(1, (12, 10, 9)))
    with pytest.raises(SourceError) as caught:
        convert(request(source, raw))
    message = str(caught.value)
    assert message.startswith("2 problem(s)")
    assert f"{path}: not on the grid of {source / OLD[0] / OLD[0]}_t1.nii.gz" in message
    assert "difference 0.1 mm" in message
    assert "difference 31.5 mm" in message
    assert "size 12×10×9 instead of 12×10×8" in message


def test_rounding_of_the_geometry_is_no_mismatch(source, raw):
    path = source / OLD[0] / f"{OLD[0]}_seg.nii.gz"
    write_volume_file(path, mask_array(), origin=(ORIGIN[0] + 0.001, *ORIGIN[1:]))
    convert(request(source, raw))
    image, label = read(raw, f"imagesTr/{OLD[0]}_0000.nii.gz"), read(raw, f"labelsTr/{OLD[0]}.nii.gz")
    assert image.GetOrigin() == label.GetOrigin()


def _fractions(path):
    write_volume_file(path / f"{OLD[0]}_seg.nii.gz", mask_array().astype(np.float32) / 3)


FAULTS = {
    "missing": (lambda f: (f / f"{OLD[0]}_t2.nii.gz").unlink(), f"has no {OLD[0]}_t2.nii.gz, only "),
    "truncated": (lambda f: (f / f"{OLD[0]}_t1.nii.gz").write_bytes(b"half"), "_t1.nii.gz: not packed with gzip"),
    "twice": (lambda f: write_volume_file(f / f"{OLD[0]}_t1.nii", volume_array(1)), "is there twice"),
    "fractions": (_fractions, "a mask with fractions"),
    "slice": (
        lambda f: sitk.WriteImage(as_image(mask_array())[:, :, 0], str(f / f"{OLD[0]}_seg.nii.gz")),
        "dimensions",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named_and_nothing_is_written(source, raw, fault):
    damage, words = FAULTS[fault]
    damage(source / OLD[0])
    with pytest.raises(SourceError) as caught:
        convert(request(source, raw))
    assert words in str(caught.value)
    assert str(source / OLD[0]) in str(caught.value)
    assert not raw.exists()


@pytest.mark.slow
def test_several_processes_give_the_same_output(source, raw, tmp_path):
    for number in range(10, 14):
        write_brats_case(source, f"BraTS2021_{number:05d}", mask_array())
    convert(ConversionRequest(source, raw, 612, "BraTS", n_processes=2), slices="tumour")
    convert(request(source, tmp_path / "other"), slices="tumour")
    assert digest(raw) == digest(tmp_path / "other")


def test_no_cases(tmp_path, raw):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no files such as BraTS2021_00000_flair.nii.gz"):
        convert(request(tmp_path / "empty", raw))


@pytest.mark.parametrize("slices", [None, "all"])
def test_output_is_the_same_byte_for_byte_and_a_dry_run_writes_nothing(source, raw, tmp_path, slices):
    dry = convert(request(source, raw, dry_run=True), slices=slices)
    assert not raw.exists()
    assert dry.table == convert(request(source, raw), slices=slices).table
    convert(request(source, tmp_path / "other"), slices=slices)
    assert digest(raw) == digest(tmp_path / "other")


def test_finished_cases_are_not_written_again(source, raw, tmp_path, monkeypatch):
    written = fail_at(monkeypatch, volume_cases, "write_image", 7, OSError("no space left on device"))
    with pytest.raises(OSError, match="no space"):
        convert(request(source, raw))
    convert(request(source, raw))
    assert len(written) == 7 + 10  # the first case's five files are kept
    convert(request(source, tmp_path / "other"))
    assert digest(raw) == digest(tmp_path / "other")


@pytest.mark.parametrize("all_links", [False, True])
def test_linked_case_folders_are_taken_once(source, raw, tmp_path, all_links):
    root = tmp_path / "subset"
    root.mkdir()
    for name in OLD:
        if all_links or name == OLD[1]:
            (root / name).symlink_to(source / name)
        else:
            (source / name).rename(root / name)
    (root / "again").symlink_to(root)
    (root / "copy").symlink_to(root / OLD[0])
    result = convert(request(root, raw))
    assert (result.n_cases, result.unused) == (3, ())
    assert [case.source for case in read_cases(raw / NAME / "cases.csv").values()] == list(OLD)


def test_upper_case_endings_are_taken_and_other_names_are_told(source, raw, monkeypatch, capsys):
    for path in list((source / OLD[0]).iterdir()):
        path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))
    other = write_volume_file(source / OLD[1] / "flair_again.nii.gz", volume_array(3))
    other = other.rename(other.with_suffix("").with_suffix(""))  # no ending
    write_volume_file(source / "sub" / "BraTS2021_00005_T1w.nii.gz", volume_array(3))
    monkeypatch.setenv("nnUNet_raw", str(raw))
    assert main(["brats", str(source), "-d", "612", "-np", "1"]) == 3
    said = capsys.readouterr()
    assert "3 cases written" in said.out
    assert "Not used, although images: 2: " in said.out
    assert f"not used: {other}: an image that was not used" in said.err
    left_out = json.loads((raw / NAME / "left_out.json").read_text(encoding="utf-8"))
    assert [sentence.partition(": ")[0] for sentence in left_out] == [
        f"{OLD[1]}/flair_again",
        "sub/BraTS2021_00005_T1w.nii.gz",
    ]
    needless = ["--not-needed", "flair_again", "sub/*", "--overwrite"]
    assert main(["brats", str(source), "-d", "612", "-np", "1", *needless]) == 0


def test_name_mapping_that_fits_no_case_is_told(source, raw):
    (source / "name_mapping.csv").write_text("Grade,BraTS_2019_subject_ID\nLGG,BraTS19_2013_2_1\n")
    result = convert(request(source, raw, strict=False))
    assert (result.n_cases, len(result.problems)) == (3, 1)
    assert "name_mapping.csv: none of its rows fits a case" in result.problems[0]


def test_command(source, raw, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(raw))
    assert main(["brats", str(source), "-d", "612", "--regions", "-np", "1", "--dry-run"]) == 0
    assert "3 cases are in order, nothing was written" in capsys.readouterr().out
    assert not raw.exists()


@pytest.mark.slow
@pytest.mark.skipif("BRAINTUM_TEST_DATA" not in os.environ, reason="needs real data")
@pytest.mark.parametrize("options", [{}, {"slices": "tumour", "regions": True}], ids=["volumes", "slices"])
def test_real_data(raw, options):
    result = convert(request(Path(os.environ["BRAINTUM_TEST_DATA"]) / "brats2021", raw), **options)
    assert "no enhancing tumour: 1 volume(s): BraTS2021_01477" in result.table
    verify(raw / NAME)
