"""The converter of a hospital's folders: formats, patterns, table, geometry, DICOM, and real volumes."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_data import write_enhanced, write_series, write_structures
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient
from phantom_data import digest
from volume_data import (
    DIRECTION,
    ORIGIN,
    SPACING,
    as_image,
    mask_array,
    verify,
    volume_array,
    write_dicom_series,
    write_volume_file,
)

from braintum.conversion.audit.audit_input import input_from_dataset
from braintum.conversion.building.inspection import SourceError
from braintum.conversion.building.raw_dataset import ConversionRequest
from braintum.conversion.building.slices import RESCALED_VOLUMES, rescaled
from braintum.conversion.building.source_tables import read_diagnoses
from braintum.conversion.building.volume_reading import read_any
from braintum.conversion.cli import main
from braintum.conversion.files.volumes import VolumeError, check_images, compact, read_volume
from braintum.conversion.format.cases import read_cases
from braintum.conversion.sources.folder import convert, find_cases
from braintum.evaluation.api import evaluate

NAME = "Dataset613_Hospital"
CHANNELS = ["T1ce=*t1c*", "FLAIR=*flair*"]
OPTIONS = {"channel": CHANNELS, "mask": "*seg*", "table": Path("cases.csv")}


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


@pytest.fixture
def source(tmp_path):
    """One patient of NIfTI, one of NRRD, one of DICOM series, and one without a mask."""
    folder = tmp_path / "source"
    for number, (patient, ending) in enumerate((("P 1", ".nii.gz"), ("P2", ".nrrd"), ("P4", ".mha"))):
        write_volume_file(folder / patient / f"ax_T1C{ending}", volume_array(10 * number))
        write_volume_file(folder / patient / "sub" / f"FLAIR{ending}", volume_array(10 * number + 1))
        if patient != "P4":
            write_volume_file(folder / patient / f"T1C_SEG{ending}", mask_array())
    write_dicom_series(folder / "P3" / "T1C_tra", volume_array(20), "1")
    write_dicom_series(folder / "P3" / "FLAIR", volume_array(21), "2")
    write_volume_file(folder / "P3" / "seg.nii.gz", mask_array())
    (folder / "cases.csv").write_text("patient,class\nP 1,Glioma\nP2,MET\nP3,glioma\nP4,Meningioma\n", encoding="utf-8")
    return folder


def request(source, raw, **options):
    return ConversionRequest(source, raw, 613, "Hospital", n_processes=1, **options)


def dataset_json(raw):
    return json.loads((raw / NAME / "dataset.json").read_text(encoding="utf-8"))


def read(raw, path):
    return sitk.ReadImage(str(raw / NAME / path))


def test_volumes_are_read_in_one_orientation(source, raw, tmp_path):
    turned = sitk.DICOMOrient(sitk.ReadImage(str(source / "P2" / "ax_T1C.nrrd")), "PIR")
    sagittal = tmp_path / "sagittal"
    shutil.copytree(source / "P 1", sagittal / "P5")
    shutil.copytree(source / "P2", sagittal / "P6")
    for file in (sagittal / "P6").rglob("*.nrrd"):
        sitk.WriteImage(sitk.DICOMOrient(sitk.ReadImage(str(file)), "PIR"), str(file))
    convert(request(sagittal, raw), channel=CHANNELS, mask="*seg*")
    assert dataset_json(raw)["overwrite_image_reader_writer"] == "SimpleITKIOWithReorient"
    reader = SimpleITKIOWithReorient()
    arrays = {name: reader.read_images([str(raw / NAME / f"imagesTr/{name}_0000.nii.gz")])[0] for name in ("P5", "P6")}
    upright = sitk.GetArrayFromImage(sitk.DICOMOrient(turned, "RAS"))
    assert arrays["P5"].shape == arrays["P6"].shape
    np.testing.assert_array_equal(arrays["P6"][0], upright)
    # thick slices from feet to head, however they are stored
    assert {case.plane for case in read_cases(raw / NAME / "cases.csv").values()} == {"axial"}

    convert(request(sagittal, raw, overwrite=True), channel=CHANNELS, mask="*seg*", keep_orientation=True)
    assert dataset_json(raw)["overwrite_image_reader_writer"] == "SimpleITKIO"


def test_every_format_keeps_values_and_geometry(source, raw):
    result = convert(request(source, raw), **OPTIONS)
    assert (result.n_cases, result.configuration) == (4, "3d_fullres")
    for number, name in enumerate(("P_1", "P2", "P3", "P4")):
        seed = {0: 0, 1: 10, 2: 20, 3: 20}[number]
        for channel in range(2):
            image = read(raw, f"imagesTr/{name}_{channel:04d}.nii.gz")
            np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume_array(seed + channel))
            assert image.GetPixelID() == sitk.sitkInt16
        for written in (image, read(raw, f"labelsTr/{name}.nii.gz")):
            np.testing.assert_allclose(written.GetSpacing(), SPACING, rtol=1e-5)
            np.testing.assert_allclose(written.GetOrigin(), ORIGIN, atol=1e-4)
            np.testing.assert_allclose(written.GetDirection(), DIRECTION, atol=1e-5)
    assert dataset_json(raw)["channel_names"] == {"0": "T1ce", "1": "FLAIR"}


def test_classes_are_unified_and_masks_binary_and_missing_ones_ignored(source, raw):
    result = convert(request(source, raw), **OPTIONS)
    content = dataset_json(raw)
    assert content["labels"] == {"background": 0, "tumour": 1, "ignore": 2}
    assert content["classification"] == {"class_names": ["glioma", "meningioma", "metastasis"]}
    cases = read_cases(raw / NAME / "cases.csv", content["classification"]["class_names"])
    assert [(name, case.tumour_class, case.patient, case.source) for name, case in cases.items()] == [
        ("P_1", "glioma", "P 1", "P 1"),
        ("P2", "metastasis", "P2", "P2"),
        ("P3", "glioma", "P3", "P3"),
        ("P4", "meningioma", "P4", "P4"),
    ]
    values = {name: np.unique(sitk.GetArrayFromImage(read(raw, f"labelsTr/{name}.nii.gz"))) for name in cases}
    assert [values[name].tolist() for name in cases] == [[0, 1], [0, 1], [0, 1], [2]]
    assert "no mask: learns the class only: 1 volume(s): P4" in result.table


def test_healthy_patient_without_a_mask_has_an_empty_one(source, raw):
    (source / "cases.csv").write_text("patient,class\nP 1,glioma\nP2,glioma\nP3,glioma\nP4,normal\n")
    convert(request(source, raw), **OPTIONS)
    assert dataset_json(raw)["labels"] == {"background": 0, "tumour": 1}
    assert dataset_json(raw)["classification"]["negative_class"] == "no_tumor"
    assert not sitk.GetArrayFromImage(read(raw, "labelsTr/P4.nii.gz")).any()


@pytest.mark.parametrize(("name", "options"), [("gesund", {}), ("keins", {"negative_class": "Keins"})])
def test_healthy_class_keeps_its_name(source, raw, name, options):
    (source / "cases.csv").write_text(f"patient,class\nP 1,glioma\nP2,glioma\nP3,glioma\nP4,{name}\n")
    result = convert(request(source, raw), **OPTIONS, **options)
    assert dataset_json(raw)["classification"] == {"class_names": ["glioma", name], "negative_class": name}
    assert not sitk.GetArrayFromImage(read(raw, "labelsTr/P4.nii.gz")).any()
    assert "empty masks only" not in result.table


def test_class_with_empty_masks_only_is_named(source, raw):
    write_volume_file(source / "P4" / "T1C_SEG.mha", mask_array() * 0)
    (source / "cases.csv").write_text("patient,class\nP 1,glioma\nP2,glioma\nP3,glioma\nP4,keins\n")
    result = convert(request(source, raw, dry_run=True), **OPTIONS)
    assert (
        "Class keins has empty masks only. If it is the healthy one, name it (--negative-class keins)" in result.table
    )


def test_named_labels(source, raw):
    convert(request(source, raw), **OPTIONS, labels=["core=1", "enhancing=4", "oedema=2"])
    content = dataset_json(raw)
    assert content["labels"] == {"background": 0, "core": 1, "enhancing": 2, "oedema": 3, "ignore": 4}
    assert content["source_labels"] == {"1": 1, "2": 4, "3": 2}
    written = sitk.GetArrayFromImage(read(raw, "labelsTr/P2.nii.gz"))
    expected = mask_array()
    np.testing.assert_array_equal(written == 2, expected == 4)
    np.testing.assert_array_equal(written == 3, expected == 2)


def test_value_without_a_name_is_refused(source, raw):
    with pytest.raises(SourceError, match="seg.nii.gz: holds 4, but --labels names 1, 2 only"):
        convert(request(source, raw), **OPTIONS, labels=["core=1", "oedema=2"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channel": []}, "name at least one"),
        ({"channel": ["T1"]}, "NAME=PATTERN|NAME=VALUE"),
        ({"channel": ["T1=*a*", "T1=*b*"]}, "is there twice"),
        ({"labels": ["core=0"]}, "whole numbers above 0"),
        ({"labels": ["core=1", "oedema=1"]}, "a value has two names"),
        ({"labels": ["ignore=1"]}, "correct it"),
        ({"mask": None, "labels": ["core=1"]}, "needs --mask"),
        ({"representative_slices": 0}, "at least 1"),
        ({"table": None, "split_column": "part"}, "--split-column needs --table"),
        ({"for_prediction": 0, "split_column": "part"}, "no meaning with --for-prediction"),
        ({"rescale_volumes": True}, "--rescale-volumes is for slices"),
    ],
)
def test_impossible_options_are_refused(source, raw, options, words):
    with pytest.raises(ValueError, match=words):
        convert(request(source, raw), **{**OPTIONS, **options})


def test_table_of_a_spreadsheet_with_other_columns(source, raw):
    text = "\ufeffNummer;Ordner;Diagnose\nA;P 1;Gliom\nA;P2;Gliom\nB;P3;\nC;P4;Lymphom\nD;P9;Gliom\n;;\n"
    (source / "cases.csv").write_text(text, encoding="utf-8")
    columns = {"patient_column": "Nummer", "class_column": "Diagnose", "case_column": "Ordner"}
    result = convert(request(source, raw), **OPTIONS, **columns)
    cases = read_cases(raw / NAME / "cases.csv")
    assert [(case.patient, case.tumour_class) for case in cases.values()] == [
        ("A", "gliom"), ("A", "gliom"), ("B", ""), ("C", "lymphom"),
    ]  # fmt: skip
    assert "Rows of the table without a folder: P9." in result.table
    # both folders of patient A are on one side
    for split in json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8")):
        assert ("P_1" in split["val"]) == ("P2" in split["val"])


def test_parts_of_the_table(source, raw, tmp_path):
    for number in (5, 6):
        shutil.copytree(source / "P2", source / f"P{number}")
    (source / "cases.csv").write_text(
        "patient,class,part\nP 1,Glioma,\nP2,MET,Train\nP3,glioma,test\n"
        "P4,Meningioma,EXTERNAL\nP5,MET,external\nP6,MET,train\n"
    )
    result = convert(request(source, raw), **OPTIONS, split_column="part")
    folder = raw / NAME
    cases = read_cases(folder / "cases.csv")
    assert {name: case.split for name, case in cases.items()} == {
        **dict.fromkeys(("P_1", "P2", "P6"), "train"),
        "P3": "test",
        **dict.fromkeys(("P4", "P5"), "external"),
    }
    for part, names in (("Tr", ["P2", "P6", "P_1"]), ("Ts", ["P3"]), ("External", ["P4", "P5"])):
        images = sorted(file.name for file in (folder / f"images{part}").iterdir())
        assert images == [f"{name}_{channel:04d}.nii.gz" for name in names for channel in (0, 1)]
        assert sorted(file.name for file in (folder / f"labels{part}").iterdir()) == [f"{n}.nii.gz" for n in names]
    assert "1 cases are the source's test part (imagesTs)" in result.table
    assert "2 cases are the source's external part (imagesExternal)" in result.table
    content, splits = dataset_json(raw), json.loads((folder / "splits_final.json").read_text())
    assert content["numTraining"] == 3 and {name for split in splits for name in split["val"]} == {"P_1", "P2", "P6"}
    # P4 has a class and no mask: the former is evaluated
    assert np.unique(sitk.GetArrayFromImage(read(raw, "labelsExternal/P4.nii.gz"))).tolist() == [2]
    assert content["labels"]["ignore"] == 2
    audited = input_from_dataset(folder)
    assert [split.name for split in audited.splits][-2:] == ["imagesTr and imagesTs", "imagesTr and imagesExternal"]
    assert not audited.not_read
    predictions = tmp_path / "predictions"
    shutil.copytree(folder / "labelsExternal", predictions)
    write_volume_file(predictions / "P4.nii.gz", (mask_array() > 0).astype(np.uint8))
    found = evaluate(predictions, folder / "labelsExternal", num_processes=1)
    assert found.summary["dice"]["value"] == 1 and not found.failed  # of P5: nobody knows the mask of P4
    assert found.summary["num_cases"] == 2


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("P 1,glioma,train\nP2,MET,val\n", "cases.csv, line 3: 'val' is no part of a data set; possible: train, test"),
        ("P 1,glioma,train\nP 1,glioma,test\n", "P 1 is there twice with different patients, classes or parts"),
    ],
)
def test_faulty_parts_are_refused(source, raw, rows, words):
    (source / "cases.csv").write_text(f"patient,class,part\n{rows}")
    with pytest.raises(SourceError, match=words):
        convert(request(source, raw), **OPTIONS, split_column="part")
    assert not (raw / NAME).exists()


def test_patient_in_two_parts_is_refused(source, raw):
    (source / "cases.csv").write_text(
        "folder,patient,class,part\nP 1,A,glioma,train\nP2,A,glioma,external\nP3,C,MET,train\nP4,D,MET,train\n"
    )
    shutil.copyfile(source / "P3" / "seg.nii.gz", source / "P4" / "seg.nii.gz")
    with pytest.raises(SourceError, match="patient A is in the parts external and train of the table"):
        convert(request(source, raw), **OPTIONS, case_column="folder", split_column="part")
    result = convert(request(source, raw, strict=False), **OPTIONS, case_column="folder", split_column="part")
    assert result.n_cases == 2


def test_folder_that_is_not_in_the_table_has_an_unknown_class(source, raw):
    (source / "cases.csv").write_text("patient,class\nP 1,glioma\nP2,met\nP4,met\n")
    result = convert(request(source, raw), **OPTIONS)
    assert "Folders that are not in the table (class unknown): P3." in result.table
    assert read_cases(raw / NAME / "cases.csv")["P3"].tumour_class == ""


def diagnoses(source, date_column=None):
    return read_diagnoses(source / "cases.csv", "patient", "class", "patient", date_column)


def write_examination(folder, seed):
    write_volume_file(folder / "t1c.nii.gz", volume_array(seed))
    write_volume_file(folder / "deeper" / "flair.nii.gz", volume_array(seed + 1))
    write_volume_file(folder / "seg.nii.gz", mask_array())


def test_examinations_in_folders_of_a_patient(tmp_path, raw):
    source = tmp_path / "source"
    for number, place in enumerate(
        ("P1/2019-01-05", "P1/MR_20200203", "P1/2021_03_04", "P2", "P3/baseline", "P3/v2", "P4/2018-07-08")
    ):
        write_examination(source / place, 10 * number)
    (source / "P1" / "2021_03_04" / "deeper" / "flair.nii.gz").unlink()
    rows = [
        "P1;05.01.2019;Gliom",
        "P1;3.2.2020;Rezidiv",
        "P1;1.1.2022;Gliom",
        "P2;;MET",
        "P3;Baseline;Gliom",
        "P4;7.8.2018;MET",
        "P4;8.7.2018;Gliom",
    ]
    (source / "cases.csv").write_text("\n".join(["patient;date;class", *rows]))
    result = convert(request(source, raw, strict=False), **OPTIONS, date_column="date")
    cases = read_cases(raw / NAME / "cases.csv").values()
    assert [(case.case, case.patient, case.tumour_class, case.date, case.source) for case in cases] == [
        ("P1_2019-01-05", "P1", "gliom", "2019-01-05", "P1/2019-01-05"),
        ("P1_MR_20200203", "P1", "rezidiv", "2020-02-03", "P1/MR_20200203"),
        ("P2", "P2", "metastasis", "", "P2"),
        ("P3_baseline", "P3", "gliom", "Baseline", "P3/baseline"),
        ("P3_v2", "P3", "", "", "P3/v2"),
        ("P4", "P4", "gliom", "2018-07-08", "P4"),
    ]
    (problem,) = result.problems
    assert problem.startswith(f"{source / 'P1' / '2021_03_04'}: no file for FLAIR; there is seg.nii.gz, t1c.nii.gz")
    assert "Several examinations: P1 (P1/2019-01-05, P1/MR_20200203).\n" in result.table
    assert "Rows of the table without a folder: P1 2022-01-01, P4 2018-08-07." in result.table
    for split in json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8")):
        assert ("P3_v2" in split["val"]) == ("P3_baseline" in split["val"])


def test_series_of_one_examination_are_no_examinations(source, raw):
    for name in ("T1C_a", "T1C_b"):
        write_dicom_series(source / "P5" / name, volume_array(30), name[-1:].replace("a", "8").replace("b", "9"))
    with pytest.raises(SourceError, match="P5: several files for T1ce: T1C_a, T1C_b; make its pattern narrower"):
        convert(request(source, raw), channel=["T1ce=*t1c*"], mask="*seg*")


@pytest.mark.parametrize("date", ["03/04/2020", "3/4/2020"])
def test_ambiguous_dates_and_rows_are_refused(source, raw, date):
    (source / "cases.csv").write_text(f"patient,date,class\nP2,{date},met\n")
    with pytest.raises(SourceError, match="line 2: .* may be 2020-03-04 or 2020-04-03; correct it"):
        convert(request(source, raw), **OPTIONS, date_column="date")
    (source / "cases.csv").write_text("patient,date,class\nP2,2020-01-01,met\nP2,2021-01-01,met\n")
    with pytest.raises(SourceError, match=r"P2: the table has several rows of P2 \(2020-01-01, 2021-01-01\); name the"):
        convert(request(source, raw), **OPTIONS, date_column="date")


DESCRIPTION, PROTOCOL, PATIENT_ID, STUDY, STUDY_DATE = "0008|103e", "0018|1030", "0010|0020", "0020|000d", "0008|0020"


@pytest.mark.parametrize("flat", [False, True])
def test_series_are_told_by_their_descriptions(source, raw, flat):
    shutil.rmtree(source / "P3")
    headers = ({DESCRIPTION: "t2_tse"}, {DESCRIPTION: "FLAIR tra"}, {DESCRIPTION: "mpr", PROTOCOL: "T1_MPR_T1c"})
    for number, header in enumerate(headers, start=1):
        folder = source / "P3" / ("export" if flat else f"{number:03d}")
        write_dicom_series(folder, volume_array(20 + number), str(number), prefix=f"IM{number}_", headers=header)
    result = convert(request(source, raw), **OPTIONS)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read(raw, "imagesTr/P3_0000.nii.gz")), volume_array(23))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read(raw, "imagesTr/P3_0001.nii.gz")), volume_array(22))
    (unused,) = result.unused
    assert unused.startswith(f"{source / 'P3' / ('export' if flat else '001')}: 8 DICOM file(s)")
    place = "export (mpr)" if flat else "003 (mpr)"
    with pytest.raises(SourceError, match=f"P3: no file for PD; there is .*{re.escape(place)}"):
        convert(request(source, raw, overwrite=True), channel=[*CHANNELS, "PD=*pd*"], mask="*seg*")


def test_export_of_several_studies_in_one_folder(tmp_path, raw):
    source = tmp_path / "export"
    for number, (patient, date) in enumerate((("17", "20190105"), ("17", "20200203"), ("18", "20190105")), start=1):
        for channel, name in enumerate(("T1c", "FLAIR")):
            headers = {DESCRIPTION: name, PATIENT_ID: patient, STUDY: f"1.2.3.{number}", STUDY_DATE: date}
            write_dicom_series(
                source,
                volume_array(10 * number + channel),
                f"{number}{channel}",
                prefix=f"{number}{channel}",
                headers=headers,
            )
    (source / "cases.csv").write_text("patient,class\n17,glioma\n18,met\n")
    assert convert(request(source, raw), channel=CHANNELS, table=Path("cases.csv")).unused == ()
    cases = read_cases(raw / NAME / "cases.csv").values()
    assert [(case.case, case.patient, case.tumour_class, case.date) for case in cases] == [
        ("17_2019-01-05", "17", "glioma", "2019-01-05"),
        ("17_2020-02-03", "17", "glioma", "2020-02-03"),
        ("18_2019-01-05", "18", "metastasis", "2019-01-05"),
    ]
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(read(raw, "imagesTr/18_2019-01-05_0001.nii.gz")), volume_array(31)
    )


@pytest.mark.parametrize("rows", ["A,glioma\nB,met\n", ""])
def test_table_that_fits_no_folder_is_refused(source, raw, rows):
    (source / "cases.csv").write_text("patient,class\n" + rows)
    with pytest.raises(SourceError, match="the table fits no folder: it names (A, B|nothing), .* with --case-column"):
        convert(request(source, raw), **OPTIONS)
    assert not raw.exists()


def test_volumes_and_series_that_no_pattern_fits_are_named(source, raw):
    write_dicom_series(source / "P3" / "T2", volume_array(22), "3")
    (source / "P5").symlink_to(source / "gone")
    (source / "P2" / "label").write_bytes((source / "P2" / "T1C_SEG.nrrd").read_bytes())
    result = convert(request(source, raw), **OPTIONS)
    assert [text.removeprefix(f"{source}/").partition(";")[0] for text in result.unused] == [
        "P2/label: an image that was not used",
        "P3/T2: 8 DICOM file(s) that were not used",
        "P5: a broken link that was not used",
    ]
    assert "Not used, although images: 3: " in result.table


def test_without_a_table_there_are_no_classes(source, raw):
    shutil.rmtree(source / "P4")
    result = convert(request(source, raw), channel=CHANNELS, mask="*seg*")
    assert "classification" not in dataset_json(raw)
    assert "No classes: no diagnosis is known" in result.table


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("patient,diagnosis\nP2,met\n", "has no column class, but patient, diagnosis; name them with"),
        ("patient,class\nP2,met\nP2,glioma\n", "line 3: P2 is there twice"),
        ("patient,class\n,met\n", "line 2: no patient; fill it in"),
        ("patient,class\nP2,?!\n", "line 2: class name '?!' holds no letter"),
        ("", "has no column class, patient, but none"),
    ],
)
def test_faulty_table_is_refused(source, raw, text, words):
    (source / "cases.csv").write_text(text)
    with pytest.raises(SourceError) as caught:
        convert(request(source, raw), **OPTIONS)
    assert words in str(caught.value)
    assert str(source / "cases.csv") in str(caught.value)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-8-sig"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_as_spreadsheets_save_them(source, raw, encoding, separator, caplog):
    (source / "P4").rename(source / "Müller")
    rows = [("patient", "class"), ("P 1", "Glioma"), ("Müller", "Meningioma")]
    (source / "cases.csv").write_bytes("\r\n".join(map(separator.join, rows)).encode(encoding))
    sources = find_cases(source, {"T1ce": "*t1c*"}, "*seg*", None, diagnoses(source))[0]
    assert {case.case.patient: case.case.tumour_class for case in sources} == {
        "P 1": "glioma", "P2": "", "P3": "", "Müller": "meningioma",
    }  # fmt: skip
    assert ("read as Windows-1252" in caplog.text) == (encoding == "cp1252")


def test_table_in_no_known_encoding_or_not_there(source, raw):
    (source / "cases.csv").write_bytes(b"patient,class\nP2,Hirn\x81\n")
    with pytest.raises(SourceError, match="cases.csv: not readable as a table"):
        convert(request(source, raw), **OPTIONS)
    (source / "cases.csv").unlink()
    with pytest.raises(FileNotFoundError, match="no such table"):
        convert(request(source, raw), **OPTIONS)


def test_pattern_faults_are_listed_together(source, raw):
    (source / "P2" / "sub" / "FLAIR.nrrd").unlink()
    write_volume_file(source / "P 1" / "t1c_old.nii.gz", volume_array(5))
    write_volume_file(source / "P 1" / "seg_old.nii.gz", mask_array())
    with pytest.raises(SourceError) as caught:
        convert(request(source, raw), **OPTIONS)
    message = str(caught.value)
    assert message.startswith("3 problem(s)")
    assert f"{source / 'P2'}: no file for FLAIR; there is T1C_SEG.nrrd, ax_T1C.nrrd: change its pattern" in message
    assert "several files for T1ce: ax_T1C.nii.gz, t1c_old.nii.gz; make its pattern narrower" in message
    assert "several files for mask: T1C_SEG.nii.gz, seg_old.nii.gz" in message


def test_pattern_with_a_slash_matches_the_path(source, raw):
    write_volume_file(source / "P2" / "other" / "FLAIR.nrrd", volume_array(5))
    channels = ["T1ce=*t1c*", "FLAIR=*flair*"]
    with pytest.raises(SourceError, match="several files for FLAIR: other/FLAIR.nrrd, sub/FLAIR.nrrd"):
        convert(request(source, raw), **{**OPTIONS, "channel": channels})
    shutil.move(source / "P3" / "FLAIR", source / "P3" / "sub" / "FLAIR")
    convert(request(source, raw), **{**OPTIONS, "channel": ["T1ce=*t1c*", "FLAIR=sub/*"]})


def test_neither_mask_nor_class_is_refused(source, raw):
    (source / "cases.csv").write_text("patient,class\nP 1,glioma\nP2,met\n")
    with pytest.raises(SourceError, match="P4: neither mask nor class"):
        convert(request(source, raw), **OPTIONS)


def test_geometry_mismatch_is_refused(source, raw):
    path = write_volume_file(source / "P2" / "T1C_SEG.nrrd", mask_array(), direction=(1, 0, 0, 0, 1, 0, 0, 0, 1))
    with pytest.raises(SourceError) as caught:
        convert(request(source, raw), **OPTIONS)
    assert f"{path}: not on the grid of {source / 'P2' / 'ax_T1C.nrrd'}: direction" in str(caught.value)
    assert "instead of" in str(caught.value)
    assert "Resample" in str(caught.value)


def test_two_folders_of_one_case_name_are_refused(source, raw):
    shutil.copytree(source / "P 1", source / "P+1")
    with pytest.raises(SourceError, match="case would be named P_1, as that of another folder; rename it"):
        convert(request(source, raw), **OPTIONS)


def new_patients(source):
    (source / "cases.csv").unlink()
    for path in source.rglob("*.*"):
        if "seg" in path.name.lower():
            path.unlink()


def test_new_patients_become_a_folder_to_predict(source, raw, monkeypatch, capsys):
    new_patients(source)
    monkeypatch.setenv("nnUNet_raw", str(raw))
    (raw / "Dataset530_Training").mkdir(parents=True)
    content = {"channel_names": {"0": "FLAIR", "1": "T1ce"}, "labels": {"background": 0, "tumour": 1}}
    content |= {"numTraining": 3, "file_ending": ".nii.gz"}
    (raw / "Dataset530_Training" / "dataset.json").write_text(json.dumps(content))
    channels = [word for channel in CHANNELS for word in ("--channel", channel)]
    common = ["folder", str(source), "-d", "613", "--name", "Hospital", "-np", "1", *channels]
    assert main([*common, "--for-prediction", "530"]) == 0
    assert f"braintum_predict -i {raw / NAME / 'imagesTs'} -o OUTPUT" in capsys.readouterr().out
    names = [f"{case}_{channel:04d}.nii.gz" for case in ("P2", "P3", "P4", "P_1") for channel in (0, 1)]
    assert sorted(path.name for path in (raw / NAME / "imagesTs").iterdir()) == names
    assert sorted(path.name for path in (raw / NAME).iterdir()) == [
        "cases.csv", "dataset.json", "imagesTs", "labelsTs", "provenance.json",
    ]  # fmt: skip
    # in the order of the data set that the model was trained on
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read(raw, "imagesTs/P3_0000.nii.gz")), volume_array(21))
    assert dataset_json(raw)["channel_names"] == {"0": "FLAIR", "1": "T1ce"}
    assert {case.split for case in read_cases(raw / NAME / "cases.csv").values()} == {"test"}
    assert main([*common, "--for-prediction", "531", "--overwrite"]) == 1
    assert "no data set 531 there" in capsys.readouterr().err
    assert main([*common, "--channel", "T2=*t2*", "--for-prediction", "530", "--overwrite"]) == 1
    assert "has the channels FLAIR, T1ce, but --channel names T1ce, FLAIR, T2; name the same" in capsys.readouterr().err


@pytest.mark.parametrize("slices", [None, 2])
def test_a_single_patient_with_a_mask_is_predicted_too(source, raw, slices):
    for name in ("P2", "P3", "P4"):
        shutil.rmtree(source / name)
    result = convert(request(source, raw), **OPTIONS, for_prediction=0, representative_slices=slices)
    assert (result.n_cases, result.unused) == (slices or 1, ())
    assert "No classes" not in result.table
    assert len(list((raw / NAME / "labelsTs").iterdir())) == result.n_cases
    assert not (raw / NAME / "splits_final.json").exists()


def test_mixed_planes_are_told_with_the_remedy(source, raw):
    for path in (source / "P2").rglob("*.nrrd"):
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(as_image(sitk.GetArrayFromImage(image), spacing=(2.5, 0.9, 1.1)), str(path))
    result = convert(request(source, raw, dry_run=True), **OPTIONS, representative_slices=2)
    assert (
        "Slices in several planes: axial (6), sagittal (2): a 2-D network learns them as one; --plane" in result.table
    )
    result = convert(request(source, raw, dry_run=True), **OPTIONS, representative_slices=2, plane="axial")
    assert "several planes" not in result.table
    assert "several planes" not in convert(request(source, raw, dry_run=True), **OPTIONS).table


@pytest.mark.parametrize(("plane", "axis"), [("axial", 2), ("coronal", 1), ("sagittal", 0)])
def test_number_and_position_of_a_slice_are_recorded(source, raw, plane, axis):
    convert(request(source, raw), **OPTIONS, representative_slices=2, plane=plane)
    cases = [case for case in read_cases(raw / NAME / "cases.csv").values() if case.patient == "P2"]
    volume = sitk.DICOMOrient(sitk.ReadImage(str(source / "P2" / "ax_T1C.nrrd")), "LPS")
    normal = np.array(volume.GetDirection()).reshape(3, 3)[:, axis]
    for case in cases:
        assert case.case == f"P2_{int(case.slice):03d}"
        index = [0, 0, 0]
        index[axis] = int(case.slice)
        expected = normal @ volume.TransformIndexToPhysicalPoint(index)
        assert float(case.position) == pytest.approx(expected, abs=1e-3)


def test_representative_slices(source, raw):
    result = convert(request(source, raw), **OPTIONS, representative_slices=4)
    assert (result.n_cases, result.configuration) == (16, "2d")
    cases = read_cases(raw / NAME / "cases.csv")
    # tumour in 3 and 4; the nearest others are 2 and 5. Without a mask: evenly over 1 to 6, since 0 and 7 are empty
    assert [name for name in cases if name.startswith("P2")] == ["P2_002", "P2_003", "P2_004", "P2_005"]
    assert [name for name in cases if name.startswith("P4")] == ["P4_001", "P4_003", "P4_004", "P4_006"]
    assert {(case.plane, case.spacing) for case in cases.values()} == {("axial", "0.9 1.1")}
    # turned to the usual orientation: the files are stored with x to the right and y to the front
    image = read(raw, "imagesTr/P3_003_0001.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), volume_array(21)[3, ::-1, ::-1])
    assert np.unique(sitk.GetArrayFromImage(read(raw, "labelsTr/P4_003.nii.gz"))).tolist() == [2]


def test_volumes_are_rescaled_before_they_are_sliced(source, raw):
    convert(request(source, raw), **OPTIONS, representative_slices=4, rescale_volumes=True)
    assert dataset_json(raw)[RESCALED_VOLUMES] is True
    image, volume = read(raw, "imagesTr/P3_003_0001.nii.gz"), volume_array(21).astype(float)
    expected = (volume - volume.min()) / (volume.max() - volume.min())
    np.testing.assert_allclose(sitk.GetArrayFromImage(image), expected[3, ::-1, ::-1], atol=1e-7)
    assert image.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_array_equal(rescaled(np.full((1, 2, 2), 7)), np.zeros((1, 2, 2)))


def test_other_plane(source, raw):
    convert(request(source, raw), **OPTIONS, representative_slices=2, plane="sagittal")
    assert {(case.plane, case.spacing) for case in read_cases(raw / NAME / "cases.csv").values()} == {
        ("sagittal", "1.1 2.5")
    }


def _missing_slice(folder):
    offsets = [number * SPACING[2] for number in range(9) if number != 5]
    shutil.rmtree(folder)
    write_dicom_series(folder, volume_array(20), "1", offsets)


def _same_object(folder):
    write_dicom_series(folder, volume_array(22)[:3], "1", prefix="echo2_")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_missing_slice, "distances between slices are not the same (2.5 mm ×6, 5 mm ×1)"),
        (lambda f: write_dicom_series(f, volume_array(22), "7", prefix="z"), "holds 2 DICOM series mixed"),
        (_same_object, "differ, but have one SOPInstanceUID"),
        (lambda f: (f / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM"), "broken.dcm: damaged, or no DICOM"),
    ],
)
def test_faulty_dicom_series_is_refused(source, raw, damage, words):
    folder = source / "P3" / "T1C_tra"
    damage(folder)
    with pytest.raises(SourceError) as caught:
        convert(request(source, raw), **OPTIONS)
    assert f"{folder}: " in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("flat", [False, True])
def test_dicom_masks(tmp_path, raw, flat):
    """A structure set on a series, found by the folder's name, or by the description where all lie in one folder."""
    image = as_image(volume_array(1))
    square = [(1.6, 2.6), (8.4, 2.6), (8.4, 7.4), (1.6, 7.4)]
    for patient in (tmp_path / "export" / "P1", tmp_path / "export" / "P2"):
        write_series(patient / ("all" if flat else "T1C"), image, {"SeriesDescription": "T1C"})
        place = patient / ("all" if flat else "contours")
        write_structures(place / "RS1", image, {4: [(2, square)], 7: [(5, square[:3])]})
    labels = ["core=4", "oedema=7"]
    result = convert(request(tmp_path / "export", raw), channel=["T1ce=T1C"], mask="contours", labels=labels)
    assert result.problems == () and result.unused == ()
    mask = sitk.GetArrayFromImage(read(raw, "labelsTr/P1.nii.gz"))
    assert (mask[2, 3:8, 2:9] == 1).all() and np.count_nonzero(mask == 1) == 35
    assert np.unique(mask[5]).tolist() == [0, 2] and not mask[[0, 1, 3, 4, 6, 7]].any()
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read(raw, "imagesTr/P1_0000.nii.gz")), volume_array(1))


def test_time_points_of_an_enhanced_object_are_not_stacked(tmp_path, raw):
    images = [as_image(volume_array(1)), as_image(volume_array(2))]
    points = [{"TemporalPositionIndex": 1}, {"TemporalPositionIndex": 2}]
    for patient in ("P1", "P2"):
        write_enhanced(tmp_path / "export" / patient / "T1C" / "1", images, {"SeriesDescription": "dyn"}, points)
    source = request(tmp_path / "export", raw)
    with pytest.raises(SourceError) as refused:
        convert(source, channel=["T1ce=T1C"], for_prediction=0)
    assert "holds 2 volumes (dyn (TemporalPositionIdentifier 1), dyn (TemporalPositionIdentifier 2))" in str(
        refused.value
    )
    convert(source, channel=["T1ce=*identifier 2"], for_prediction=0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read(raw, "imagesTs/P1_0000.nii.gz")), volume_array(2))


def test_rounded_dicom_positions_are_even(tmp_path):
    offsets = [round(number * SPACING[2] + 0.01 * (-1) ** number, 2) for number in range(8)]
    image = read_any(write_dicom_series(tmp_path / "series", volume_array(1), "1", offsets))
    assert image.GetSize() == (12, 10, 8)


def test_dicom_beside_other_files_and_without_an_ending(source, raw):
    folder = source / "P3" / "T1C_tra"
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"IM{number:03d}")
    (folder / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    (folder / "notes.txt").write_text("read me")
    (folder / "._IM000").write_bytes(b"macOS")
    convert(request(source, raw), **OPTIONS)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read(raw, "imagesTr/P3_0000.nii.gz")), volume_array(20))


@pytest.mark.parametrize("series", [False, True])
def test_path_that_is_not_utf8_is_refused(tmp_path, series):
    path = tmp_path / "\udce4"
    if series:
        write_dicom_series(tmp_path / "series", volume_array(1)).rename(path)
    else:
        path = path.with_suffix(".nii.gz")
        write_volume_file(tmp_path / "volume.nii.gz", volume_array(1))
        (tmp_path / "volume.nii.gz").rename(path)
    with pytest.raises(VolumeError, match="is not valid UTF-8; rename it"):
        read_any(path)


def test_volume_of_several_components_or_dimensions_is_refused(tmp_path):
    colour = sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True)
    sitk.WriteImage(colour, str(tmp_path / "colour.nrrd"))
    with pytest.raises(VolumeError, match="3 values a voxel"):
        read_volume(tmp_path / "colour.nrrd")
    time_points = sitk.JoinSeries([sitk.Image((4, 5, 6), sitk.sitkInt16)] * 2)
    sitk.WriteImage(time_points, str(tmp_path / "four.nii.gz"))
    with pytest.raises(VolumeError, match="has 4 dimensions"):
        read_volume(tmp_path / "four.nii.gz")
    with pytest.raises(VolumeError, match="four.nii.gz: has 4 dimensions; a volume has 3"):
        check_images([str(tmp_path / "four.nii.gz")])


def test_spacing_in_metres_is_refused(tmp_path):
    path = write_volume_file(tmp_path / "t1.nii.gz", volume_array(1), spacing=(0.001, 0.001, 0.005))
    for read_file in (read_volume, lambda path: check_images([str(path)])):
        with pytest.raises(VolumeError, match=r"t1.nii.gz: a spacing of 0.001 mm cannot be \(metres, not mm\?\)"):
            read_file(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    path = write_volume_file(tmp_path / "t1.nrrd", np.full((8, 10, 12), value, np.float32))
    with pytest.raises(VolumeError, match="t1.nrrd: holds NaN or infinity"):
        read_volume(path)


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        (np.array([0, 255], np.uint8), np.uint8),
        (np.array([0, 32767], np.uint16), np.int16),
        (np.array([0, 32768], np.uint16), np.float32),
        (np.array([-5.0, 7.0]), np.int16),
        (np.array([0.5, 7.0]), np.float32),
    ],
)
def test_compact_keeps_the_values(values, dtype):
    assert compact(values).dtype == dtype
    np.testing.assert_array_equal(compact(values), values)


@pytest.mark.slow
@pytest.mark.parametrize("slices", [None, 3])
def test_output_is_the_same_byte_for_byte_and_a_dry_run_writes_nothing(source, raw, tmp_path, slices):
    options = {**OPTIONS, "representative_slices": slices}
    dry = convert(request(source, raw, dry_run=True), **options)
    assert not raw.exists()
    assert dry.table == convert(request(source, raw), **options).table
    convert(request(source, tmp_path / "other"), **options)
    assert digest(raw) == digest(tmp_path / "other")


def test_no_folders(tmp_path, raw):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no folders in it"):
        convert(request(tmp_path / "empty", raw), channel=CHANNELS)


def test_command(source, raw, monkeypatch, capsys):
    monkeypatch.setenv("nnUNet_raw", str(raw))
    options = ["--channel", CHANNELS[0], "--channel", CHANNELS[1], "--mask", "*seg*", "--table", "cases.csv"]
    labels = ["--labels", "core=1", "oedema=2", "enhancing=4", "--representative-slices", "2"]
    assert main(["folder", str(source), "-d", "613", "--name", "Hospital", "-np", "1", *options, *labels]) == 0
    assert "8 cases written" in capsys.readouterr().out
    assert dataset_json(raw)["channel_names"] == {"0": "T1ce", "1": "FLAIR"}


@pytest.mark.slow
@pytest.mark.skipif("BRAINTUM_TEST_DATA" not in os.environ, reason="needs real data")
@pytest.mark.parametrize("slices", [None, 20])
def test_real_data(raw, tmp_path, slices):
    hospital = tmp_path / "hospital"
    shutil.copytree(Path(os.environ["BRAINTUM_TEST_DATA"]) / "brats2021", hospital)
    (hospital / "cases.csv").write_text("Patient;Diagnosis\nBraTS2021_01477;Metastasis\nBraTS2021_01478;Glioma\n")
    result = convert(
        request(hospital, raw),
        channel=["T1ce=*_t1ce.*", "FLAIR=*flair*"],
        mask="*seg*",
        table=Path("cases.csv"),
        patient_column="Patient",
        class_column="Diagnosis",
        representative_slices=slices,
    )
    assert result.n_cases == (2 if slices is None else 40)
    verify(raw / NAME)
