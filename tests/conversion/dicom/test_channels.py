"""Which series is which channel, and why; what is ambiguous is refused with the candidates."""

import numpy as np
import pytest
import SimpleITK as sitk
from dicom_data import grid, uid, write_series

from braintum.conversion.dicom.cases import write_cases
from braintum.conversion.dicom.channels import choose_series
from braintum.conversion.dicom.sequences import recognise, sequence_of_channel
from braintum.conversion.files.volumes import VolumeError
from braintum.dicom.study import find_series

T1 = {"EchoTime": 2.5, "RepetitionTime": 1900.0, "InversionTime": 900.0}
SPIN_ECHO_T1 = {"EchoTime": 9.0, "RepetitionTime": 550.0}
T2 = {"EchoTime": 98.0, "RepetitionTime": 4500.0}
FLAIR = {"EchoTime": 90.0, "RepetitionTime": 8500.0, "InversionTime": 2400.0}
AGENT = {"ContrastBolusAgent": "Dotarem"}


def image(seed=0, size=(6, 5, 3), **geometry):
    x, y, z = size
    return grid(np.random.default_rng(seed).integers(1, 900, (z, y, x)).astype(np.int16), **geometry)


@pytest.mark.parametrize(
    ("description", "tags", "sequence"),
    [
        ("t1_mprage_sag_p2_iso", T1, "T1"),
        ("t1_mprage_sag_p2_iso", {**T1, **AGENT}, "T1ce"),
        ("T1 tra KM", SPIN_ECHO_T1, "T1ce"),
        ("AX T1 POST GD", {}, "T1ce"),
        ("Ax T1 +C", SPIN_ECHO_T1, "T1ce"),
        ("T1W_nativ", SPIN_ECHO_T1, "T1"),
        ("3D BRAVO", {"EchoTime": 3.0, "RepetitionTime": 8.0}, "T1"),
        ("t2_tse_tra", T2, "T2"),
        ("t2_tse_tra", {**T2, **AGENT}, "T2"),
        ("t2_tirm_tra_dark-fluid", FLAIR, "FLAIR"),
        ("FLAIR ax", {}, "FLAIR"),
        ("AX T1 FLAIR", {"EchoTime": 25.0, "RepetitionTime": 2500.0, "InversionTime": 860.0}, "T1"),
        ("Serie 5", FLAIR, "FLAIR"),
        ("Serie 5", T2, "T2"),
        ("Serie 5", {**SPIN_ECHO_T1, **AGENT}, "T1ce"),
        # not recognised, or no channel
        ("T1 nativ", {**SPIN_ECHO_T1, **AGENT}, ""),
        ("t1 tra", T2, ""),
        ("T1 and T2", {}, ""),
        ("ep2d_diff_b1000", T2, ""),
        ("t2*_gre", {"EchoTime": 25.0, "RepetitionTime": 600.0}, ""),
        ("SWI", {}, ""),
        ("localizer", {}, ""),
        ("t1 survey", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, ""),
        ("pd_tse", {"EchoTime": 12.0, "RepetitionTime": 3000.0}, ""),
        ("Serie 5", {}, ""),
        ("T1 KM", {"Modality": "CT"}, ""),
        ("ce tof", {}, ""),
    ],
)
def test_recognition(tmp_path, description, tags, sequence):
    write_series(tmp_path, image(), {"SeriesDescription": description, **tags})
    (series,) = find_series(tmp_path).series
    found = recognise(series)
    assert found.sequence == sequence, found.reason
    assert len(found.reason) > 5


@pytest.mark.parametrize(
    ("channel", "sequence"),
    [
        ("T1ce", "T1ce"),
        ("t1-gd", "T1ce"),
        ("T1_post", "T1ce"),
        ("t1n", "T1"),
        ("T2w", "T2"),
        ("t2f", "FLAIR"),
        ("CT", ""),
    ],
)
def test_names_of_channels(channel, sequence):
    assert sequence_of_channel(channel) == sequence


def study(folder, *series):
    for number, (description, tags) in enumerate(series):
        write_series(folder, image(number), {"SeriesDescription": description, **tags}, prefix=str(number))
    return find_series(folder).series


def test_a_study_of_a_brain_tumour(tmp_path):
    found = study(
        tmp_path,
        ("localizer", {}),
        ("t1_mprage", T1),
        ("t2_tse", T2),
        ("t2_flair", FLAIR),
        ("t1_mprage_km", {**T1, **AGENT}),
        ("ADC", {"ImageType": ["DERIVED", "PRIMARY", "ADC"]}),
    )
    chosen = choose_series(found, ["FLAIR", "T1", "t1gd", "T2"], {})
    assert {name: choice.series.title for name, choice in chosen.items()} == {
        "FLAIR": "t2_flair", "T1": "t1_mprage", "t1gd": "t1_mprage_km", "T2": "t2_tse"
    }  # fmt: skip
    assert "contrast agent 'Dotarem'" in chosen["t1gd"].reason and "TI 2400 ms" in chosen["FLAIR"].reason


def test_ambiguous_and_missing_ones_are_refused_with_the_candidates(tmp_path):
    found = study(tmp_path, ("t1 tra km", SPIN_ECHO_T1), ("t1 cor km", SPIN_ECHO_T1), ("ADC", {}))
    with pytest.raises(VolumeError) as refused:
        choose_series(found, ["T1ce", "T2"], {})
    ambiguous, missing = refused.value.problems
    assert ambiguous.startswith("2 series could be T1ce: ") and "'t1 tra km' (3 slices)" in ambiguous
    assert "'t1 cor km'" in ambiguous and "--channel T1ce=" in ambiguous
    assert missing.startswith("no series was recognised as T2") and "'ADC'" in missing
    chosen = choose_series(
        found, ["T1ce", "T2"], {"T1ce": "*COR*", "T2": str(uid("1.2.826.0.1.3680043.2.1125.77", "ADC"))}
    )
    assert [choice.series.title for choice in chosen.values()] == ["t1 cor km", "ADC"]
    with pytest.raises(VolumeError, match="no series matches 'x'"):
        choose_series(found, ["T1ce"], {"T1ce": "x"})
    with pytest.raises(VolumeError, match="would be T1ce and another channel"):
        choose_series(found, ["T1ce", "T2"], {"T1ce": "*cor*", "T2": "*cor*"})


def test_the_original_is_taken_before_what_was_made_of_it(tmp_path):
    derived = {"ImageType": ["DERIVED", "SECONDARY", "MPR"]}
    found = study(tmp_path, ("t1 km", T1), ("t1 km tra", {**T1, **derived}))
    assert choose_series(found, ["T1ce"], {})["T1ce"].reason.endswith("the only original one of 2")


def test_the_only_series_is_taken_unless_it_is_another_sequence(tmp_path):
    assert "the only series" in choose_series(study(tmp_path / "a", ("Serie 1", {})), ["T1ce"], {})["T1ce"].reason
    for number, tags in enumerate((T2, SPIN_ECHO_T1)):
        with pytest.raises(VolumeError, match="no series was recognised as T1ce"):
            choose_series(study(tmp_path / str(number), ("Serie 1", tags)), ["T1ce"], {})


# ---------------------------------------------------------------------- cases


def test_cases_of_several_patients_and_studies(tmp_path):
    source, folder = tmp_path / "export", tmp_path / "cases"
    folder.mkdir()
    fine, coarse = image(1, (12, 10, 6), spacing=(0.5, 0.5, 1.0)), image(2, (7, 6, 4), spacing=(1.0, 1.0, 2.0))
    for patient, date in (("17", "20200102"), ("17", "20210304"), ("Ü 18", "20200102")):
        tags = {"PatientID": patient, "StudyDate": date, "StudyInstanceUID": uid(patient, date)}
        tags["SpecificCharacterSet"] = "ISO_IR 192"
        for description, volume, times in (
            ("T1 KM", fine, SPIN_ECHO_T1),
            ("flair", coarse, FLAIR),
            ("dwi", coarse, {}),
        ):
            series = {"SeriesInstanceUID": uid(patient, date, description), "SeriesDescription": description}
            write_series(source / patient / date, volume, {**tags, **times, **series}, prefix=description)
    write_series(source / "19", fine, {"PatientID": "19", "StudyInstanceUID": uid(19), "SeriesDescription": "T1 KM"})
    written = write_cases(source, ["T1ce", "FLAIR"], folder)
    assert [case.name for case in written.cases] == ["17_20200102", "17_20210304", "18_20200102"]
    assert {path.name for path in folder.iterdir()} == {
        f"{case.name}_{number:04d}.nii.gz" for case in written.cases for number in (0, 1)
    }
    assert (
        list(written.left_out) == ["19_20200102"]
        and "no series was recognised as FLAIR" in written.left_out["19_20200102"]
    )
    assert list(written.not_needed)[0] == "17_20200102: dwi"
    first, second = (sitk.ReadImage(str(folder / f"17_20200102_{number:04d}.nii.gz")) for number in (0, 1))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(first), sitk.GetArrayFromImage(fine))
    assert first.GetSize() == second.GetSize() == (12, 10, 6)
    expected = sitk.Resample(coarse, fine, sitk.Transform(), sitk.sitkLinear, 0, sitk.sitkFloat32)
    np.testing.assert_allclose(sitk.GetArrayFromImage(second), sitk.GetArrayFromImage(expected), atol=0.1)
    lines = "\n".join(written.cases[0].lines())
    assert "T1ce: 'T1 KM', its name has 't1', TE 9 ms" in lines and "grid: that of T1ce" in lines
    assert "FLAIR resampled onto it, linearly, by its header: size 7×6×4 instead of 12×10×6" in lines
    assert written.cases[0].reference.read().description == "T1 KM"
    other = write_cases(source, ["T1ce", "FLAIR"], folder, reference="FLAIR")
    assert other.cases[0].reference.title == "flair"
    assert sitk.ReadImage(str(folder / "17_20200102_0000.nii.gz")).GetSize() == (7, 6, 4)


def test_series_that_cannot_be_brought_together_are_refused(tmp_path):
    write_series(tmp_path / "a", image(), {"SeriesDescription": "t1 km"})
    far = image(1, (6, 5, 3), origin=(200.0, 0.0, 0.0))
    write_series(tmp_path / "a", far, {"SeriesDescription": "flair"}, prefix="far")
    write_series(tmp_path / "b", image(), {"SeriesDescription": "t1 km"})
    moved = {"SeriesDescription": "flair", "FrameOfReferenceUID": uid("moved")}
    write_series(tmp_path / "b", image(1, (6, 5, 3), spacing=(1, 1, 2)), moved, prefix="moved")
    for name, fault in (("a", "FLAIR covers only 0% of T1ce"), ("b", "has another frame of reference than T1ce")):
        assert fault in write_cases(tmp_path / name, ["T1ce", "FLAIR"], tmp_path).left_out["17_20200102"]


def test_patterns_of_a_study_go_before_those_of_all(tmp_path):
    study(tmp_path / "s", ("a", {}), ("b", {}), ("c", {}))
    rows = {"17_20200102": {"T1ce": "a"}, "1.2.3": {"T1ce": "b"}}
    written = write_cases(tmp_path / "s", ["T1ce", "FLAIR"], tmp_path, {"FLAIR": "c", "T1ce": "b"}, rows)
    assert [choice.series.title for choice in written.cases[0].channels.values()] == ["a", "c"]
    with pytest.raises(ValueError, match="the model has no channel T2; its channels are T1ce"):
        write_cases(tmp_path / "s", ["T1ce"], tmp_path, {"T2": "a"})
