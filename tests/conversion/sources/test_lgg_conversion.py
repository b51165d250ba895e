"""The TCGA-LGG converter, on files with the original's quirks and faults, and on real ones."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from phantom_data import digest, fail_at
from PIL import Image
from volume_data import verify, write_lgg_patient, write_lgg_source

from braintum.conversion.building import volume_cases
from braintum.conversion.building.inspection import SourceError
from braintum.conversion.building.raw_dataset import STATE_FILE, ConversionRequest
from braintum.conversion.cli import main
from braintum.conversion.format.cases import read_cases
from braintum.conversion.format.splits import check_splits
from braintum.conversion.sources.lgg import convert

PATIENTS = {
    "TCGA_CS_4941_19960909": ("1", "2"),
    "TCGA_DU_5851_19950428": ("2", "1"),
    "TCGA_HT_A61B_19991127": ("", ""),
    "TCGA_FG_6688_20001212": ("3", "2"),
}
FIRST = "TCGA_CS_4941_19960909"
NAME = "Dataset611_TCGALGG"


@pytest.fixture
def source(tmp_path):
    return write_lgg_source(tmp_path / "source", PATIENTS)


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


def request(source, raw, **options):
    return ConversionRequest(source, raw, 611, "TCGALGG", n_processes=1, **options)


def dataset_json(raw):
    return json.loads((raw / NAME / "dataset.json").read_text(encoding="utf-8"))


def test_a_patient_becomes_a_volume_of_three_channels_in_numerical_order(source, raw):
    result = convert(request(source, raw))
    folder = raw / NAME
    assert (result.n_cases, result.configuration) == (4, "2d")
    assert dataset_json(raw)["channel_names"] == {"0": "T1", "1": "FLAIR", "2": "T1ce"}
    for channel in range(3):
        image = sitk.ReadImage(str(folder / "imagesTr" / f"{FIRST}_{channel:04d}.nii.gz"))
        array = sitk.GetArrayFromImage(image)
        assert array.dtype == np.uint8
        # slice 10 comes after 9, not after 1; the corner holds the slice's number
        assert array[:, 0, 0].tolist() == list(range(1, 12))
        with Image.open(source / "kaggle_3m" / FIRST / f"{FIRST}_10.tif") as tif:
            np.testing.assert_array_equal(array[9], np.asarray(tif)[..., channel])
    label = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "labelsTr" / f"{FIRST}.nii.gz")))
    assert np.unique(label).tolist() == [0, 1]
    assert np.flatnonzero(label.any(axis=(1, 2))).tolist() == [4, 5]


def test_unknown_spacing_is_said(source, raw):
    result = convert(request(source, raw))
    assert "has no spacing: 1 × 1 × 1 mm is written and stands for one voxel" in result.table
    assert "voxels" in result.table
    assert "no spacing" in dataset_json(raw)["spacing_note"]
    assert {case.spacing for case in read_cases(raw / NAME / "cases.csv").values()} == {""}


def test_given_spacing_is_written(source, raw):
    result = convert(request(source, raw), spacing=(0.9, 0.9, 5))
    image = sitk.ReadImage(str(raw / NAME / "labelsTr" / f"{FIRST}.nii.gz"))
    assert image.GetSpacing() == pytest.approx((0.9, 0.9, 5))
    assert read_cases(raw / NAME / "cases.csv")[FIRST].spacing == "0.9 0.9 5"
    assert (" ml" in result.table, result.configuration) == (True, "3d_fullres")


@pytest.mark.parametrize(
    ("class_by", "expected"),
    [
        ("grade", ["grade_3", "grade_2", "grade_3", ""]),
        ("histology", ["astrocytoma", "oligoastrocytoma", "oligodendroglioma", ""]),
    ],
)
def test_class_of_data_csv_whose_names_lack_the_date(source, raw, class_by, expected):
    result = convert(request(source, raw), class_by=class_by)
    cases = read_cases(raw / NAME / "cases.csv", dataset_json(raw)["classification"]["class_names"])
    assert [case.tumour_class for case in cases.values()] == expected
    assert [case.patient for case in cases.values()][:2] == ["TCGA_CS_4941", "TCGA_DU_5851"]
    assert "blank in data.csv or patient not in it: TCGA_HT_A61B." in result.table


def test_missing_sequences_are_reported(source, raw):
    for name, copies in (("TCGA_AA_0001_20000101", [2]), ("TCGA_AA_0002_20000101", [0, 2])):
        write_lgg_patient(source / "kaggle_3m", name, copies=copies)
    result = convert(request(source, raw))
    remarks = dataset_json(raw)["remarks"]
    assert remarks == {
        "T1 is missing (a copy of FLAIR stands in its place)": ["TCGA_AA_0002_20000101"],
        "T1ce is missing (a copy of FLAIR stands in its place)": ["TCGA_AA_0001_20000101", "TCGA_AA_0002_20000101"],
    }
    assert "T1ce is missing (a copy of FLAIR stands in its place): 2 volume(s): TCGA_AA_0001" in result.table


def test_slices_are_png_of_one_channel_each(source, raw):
    result = convert(request(source, raw), slices="all", class_by="tumour")
    folder = raw / NAME
    cases = read_cases(folder / "cases.csv")
    assert (result.n_cases, len(cases)) == (44, 44)
    case = cases[f"{FIRST}_010"]
    assert (case.tumour_class, case.plane, case.spacing) == ("no_tumor", "axial", "")
    assert case.source == f"kaggle_3m/{FIRST}/{FIRST}_10.tif"
    assert [name for name, case in cases.items() if case.tumour_class == "tumor"][:2] == [
        f"{FIRST}_005",
        f"{FIRST}_006",
    ]
    with Image.open(source / case.source) as tif:
        pixels = np.asarray(tif)
    for channel in range(3):
        with Image.open(folder / "imagesTr" / f"{FIRST}_010_{channel:04d}.png") as png:
            np.testing.assert_array_equal(np.asarray(png), pixels[..., channel])
    with Image.open(folder / "labelsTr" / f"{FIRST}_005.png") as png:
        assert np.unique(np.asarray(png)).tolist() == [0, 1]
    content = dataset_json(raw)
    assert content["classification"] == {"class_names": ["tumor", "no_tumor"], "negative_class": "no_tumor"}
    assert (content["file_ending"], content["overwrite_image_reader_writer"]) == (".png", "NaturalImage2DIO")
    check_splits(json.loads((folder / "splits_final.json").read_text(encoding="utf-8")), cases.values())


def test_tumour_slices_keep_the_class_of_the_patient(source, raw):
    convert(request(source, raw), slices="tumour", slice_margin=1, class_by="histology")
    cases = read_cases(raw / NAME / "cases.csv")
    assert [name[-3:] for name in cases][:4] == ["004", "005", "006", "007"]
    assert cases[f"{FIRST}_004"].tumour_class == "astrocytoma"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_by": "tumour"}, "add --slices"),
        ({"class_by": "age"}, "not one of grade"),
        ({"spacing": (1, 1, 0)}, "three positive numbers"),
        ({"spacing": (1, 1, 1), "slices": "all"}, "for volumes only"),
        ({"slice_margin": 1}, "need --slices tumour"),
    ],
)
def test_contradicting_options_are_refused(source, raw, options, words):
    with pytest.raises(ValueError, match=words):
        convert(request(source, raw), **options)


def _save(path, array):
    Image.fromarray(array).save(path)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-400])


FAULTS = {
    "truncated": (lambda f: _cut(f / f"{FIRST}_3.tif"), "_3.tif: not a complete TIFF"),
    "no mask": (lambda f: (f / f"{FIRST}_3_mask.tif").unlink(), "_3.tif: has no mask"),
    "no slice": (lambda f: (f / f"{FIRST}_11.tif").unlink(), "_11_mask.tif: has no slice"),
    "gap": (
        lambda f: [(f / f"{FIRST}_3{end}.tif").unlink() for end in ("", "_mask")],
        f"{FIRST}: slice(s) 3 of 11 are missing",
    ),
    "grey": (lambda f: _save(f / f"{FIRST}_3.tif", np.ones((16, 16), np.uint8)), "mode L, not RGB"),
    "mask values": (
        lambda f: _save(f / f"{FIRST}_3_mask.tif", np.full((16, 16), 7, np.uint8)),
        "_3_mask.tif: a mask with values other than 0 and 255",
    ),
    "size": (
        lambda f: _save(f / f"{FIRST}_3_mask.tif", np.zeros((16, 15), np.uint8)),
        "different sizes (15×16, 16×16)",
    ),
    "stranger": (
        lambda f: shutil.copy(f / f"{FIRST}_3.tif", f / "TCGA_DU_5851_19950428_3.tif"),
        "belongs to another patient",
    ),
    "code": (
        lambda f: (f.parent / "data.csv").write_text(
            "Patient,histological_type,neoplasm_histologic_grade\nTCGA_CS_4941,1,7\n"
        ),
        "neoplasm_histologic_grade is '7', not one of 1, 2",
    ),
    "column": (lambda f: (f.parent / "data.csv").write_text("Patient\nTCGA_CS_4941\n"), "has no column neoplasm"),
    "table": (lambda f: (f.parent / "data.csv").unlink(), "no such file, here or below"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named_and_nothing_is_written(source, raw, fault):
    damage, words = FAULTS[fault]
    damage(source / "kaggle_3m" / FIRST)
    with pytest.raises(SourceError) as caught:
        convert(request(source, raw))
    assert words in str(caught.value)
    assert ";" in str(caught.value).splitlines()[1]
    assert not raw.exists()


def test_all_problems_are_listed_at_once(source, raw):
    (source / "kaggle_3m" / FIRST / f"{FIRST}_3_mask.tif").unlink()
    (source / "kaggle_3m" / "TCGA_DU_5851_19950428" / "TCGA_DU_5851_19950428_2.tif").write_bytes(b"")
    with pytest.raises(SourceError, match=r"^2 problem\(s\)"):
        convert(request(source, raw, dry_run=True))


def test_second_copy_in_the_download_is_ignored(source, raw):
    shutil.copytree(source / "kaggle_3m", source / "lgg-mri-segmentation" / "kaggle_3m")
    result = convert(request(source, raw))
    assert (result.n_cases, result.unused) == (4, ())


def test_table_that_fits_no_patient_is_refused(source, raw):
    table = source / "kaggle_3m" / "data.csv"
    table.write_text(table.read_text().replace("TCGA_", "TCIA_"))
    with pytest.raises(SourceError, match="data.csv: none of its rows fits a patient"):
        convert(request(source, raw))


def test_no_patients(tmp_path, raw):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "archive.zip").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"no folders such as TCGA_CS_4941_19960909.*unpack archive.zip"):
        convert(request(tmp_path / "empty", raw))


@pytest.mark.parametrize("slices", [None, "all"])
def test_output_is_the_same_byte_for_byte_and_a_dry_run_writes_nothing(source, raw, tmp_path, slices):
    dry = convert(request(source, raw, dry_run=True), slices=slices)
    assert not raw.exists()
    assert dry.table == convert(request(source, raw), slices=slices).table
    convert(request(source, tmp_path / "other"), slices=slices)
    assert digest(raw) == digest(tmp_path / "other")


def test_interrupted_conversion_is_resumed(source, raw, tmp_path, monkeypatch):
    calls = fail_at(monkeypatch, volume_cases, "_write_png", 50, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(request(source, raw), slices="all")
    assert (raw / NAME / STATE_FILE).exists()
    convert(request(source, raw), slices="all")
    # 176 files in all; the case that was interrupted is written again as a whole
    assert 176 < len(calls) <= 176 + 4
    convert(request(source, tmp_path / "other"), slices="all")
    assert digest(raw) == digest(tmp_path / "other")


def test_fraction_takes_whole_patients(source, raw):
    convert(request(source, raw, fraction=0.5, seed=1), slices="all", class_by="tumour")
    cases = read_cases(raw / NAME / "cases.csv").values()
    assert len({case.patient for case in cases}) == 2
    assert len(cases) == 22


def test_command(source, raw, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(raw))
    options = ["--slices", "tumour", "--healthy-slices", "1", "--class-by", "tumour", "-np", "1"]
    assert main(["lgg", str(source), "-d", "611", *options]) == 0
    assert "12 cases written" in capsys.readouterr().out
    assert main(["lgg", str(source), "-d", "612", "--class-by", "tumour"]) != 0
    assert "add --slices" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif("BRAINTUM_TEST_DATA" not in os.environ, reason="needs real data")
@pytest.mark.parametrize("options", [{}, {"slices": "all", "class_by": "tumour"}], ids=["volumes", "slices"])
def test_real_data(raw, options):
    result = convert(request(Path(os.environ["BRAINTUM_TEST_DATA"]) / "lgg" / "kaggle_3m", raw), **options)
    assert result.n_cases == (171 if options else 4)
    assert "T1ce is missing (a copy of FLAIR stands in its place): 1 volume(s): TCGA_HT_A61B" in result.table
    verify(raw / NAME)
