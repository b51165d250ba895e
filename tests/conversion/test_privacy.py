"""No name of a patient, file or machine gets into what may be passed on."""

import csv
import gzip
import json
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import SimpleITK as sitk
from phantom_data import digest
from volume_data import mask_array, volume_array, write_dicom_series, write_volume_file

from braintum.conversion.building.key_list import read_keys, write_keys
from braintum.conversion.building.pseudonyms import Pseudonyms
from braintum.conversion.cli import main
from braintum.conversion.files.volumes import read_volume, write_image
from braintum.conversion.format.cases import Case, read_cases
from braintum.conversion.identify_cli import main as identify
from braintum.conversion.sources.phantoms import write_figshare_phantoms
from braintum.trainers.safety.debug_information import remove_machine, without_folders

SALT = Pseudonyms(b"0123456789abcdef")


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    """Patients whose names are in folders, table, DICOM tags and NIfTI headers."""
    folder = tmp_path / "source"
    for number, name in enumerate(("Doe_Jane", "Roe_Richard", "Poe_Edgar")):
        array = volume_array(number)
        if number:
            image = sitk.GetImageFromArray(array)
            image.SetMetaData("descrip", f"{name} hospital")
            (folder / name).mkdir(parents=True)
            sitk.WriteImage(image, str(folder / name / "t1c.nii.gz"))
            mask = sitk.GetImageFromArray(mask_array())
            sitk.WriteImage(mask, str(folder / name / "seg.nii.gz"))
        else:
            write_dicom_series(folder / name / "T1C", array)
            for file in (folder / name / "T1C").iterdir():
                one = sitk.ReadImage(str(file))
                one.SetMetaData("0010|0010", name)
                writer = sitk.ImageFileWriter()
                writer.KeepOriginalImageUIDOn()
                writer.SetFileName(str(file))
                writer.Execute(one)
            write_volume_file(folder / name / "seg.nii.gz", mask_array())
    rows = "Doe_Jane,glioma\nRoe_Richard,meningioma\nPoe_Edgar,glioma\n"
    (folder / "cases.csv").write_text("patient,class\n" + rows, encoding="utf-8")
    return folder


def everything(folder: Path) -> Iterator[bytes]:
    """Names and contents, unpacked, of all files."""
    for path in folder.rglob("*"):
        yield path.relative_to(folder).as_posix().encode()
        if path.is_file():
            yield gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def convert(source: Path, raw: Path, salt: Path, *options: str) -> Path:
    arguments = ["folder", str(source), "-d", "614", "--name", "Private", "-np", "1", "--pseudonymise", str(salt)]
    assert main([*arguments, "--channel", "T1ce=*t1c*", "--mask", "*seg*", "--table", "cases.csv", *options]) == 0
    return raw / "Dataset614_Private"


@pytest.mark.parametrize("slices", [[], ["--representative-slices", "2"]])
def test_no_name_is_left(hospital: Path, tmp_path: Path, slices: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    folder = convert(hospital, tmp_path / "raw", tmp_path / "salt", *slices)
    for content in everything(folder):
        for name in (b"Doe", b"Roe", b"Poe", b"hospital", str(tmp_path).encode()):
            assert name.lower() not in content.lower()
    cases = list(read_cases(folder / "cases.csv").values())
    assert len(cases) == len({case.case for case in cases}) == (6 if slices else 3)
    assert len({case.patient for case in cases}) == 3
    assert sorted(case.tumour_class for case in cases)[-1] == "meningioma"
    splits = json.loads((folder / "splits_final.json").read_text())
    assert {name for split in splits for name in split["val"]} == {case.case for case in cases}
    images = sorted(path.name for path in (folder / "imagesTr").iterdir())
    assert images == sorted(f"{case.case}_0000.nii.gz" for case in cases)


def test_same_salt_same_bytes_other_salt_other_names(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = []
    for number, salt in enumerate(("salt", "salt", "other")):
        monkeypatch.setenv("nnUNet_raw", str(tmp_path / f"raw{number}"))
        digests.append(digest(convert(hospital, tmp_path / f"raw{number}", tmp_path / salt)))
    assert digests[0] == digests[1] != digests[2]
    assert stat.S_IMODE((tmp_path / "salt").stat().st_mode) == 0o600


def test_key_list_names_cases_and_lies_beside_the_salt(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    salt, keys = tmp_path / "salt", tmp_path / "salt.keys.csv"
    folder = convert(hospital, tmp_path / "raw", salt, "--representative-slices", "2")
    with open(keys, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert stat.S_IMODE(keys.stat().st_mode) == 0o600
    assert {row["patient"] for row in rows} == {"Doe_Jane", "Roe_Richard", "Poe_Edgar"}
    cases = read_cases(folder / "cases.csv")
    assert {(row["case_pseudonym"], row["patient_pseudonym"]) for row in rows} == {
        (name, case.patient) for name, case in cases.items()
    }
    for row in rows:
        assert (row["dataset"], row["plane"]) == ("Dataset614_Private", "axial")
        assert row["case"] == f"{row['patient']}_{int(row['slice']):03d}"
        assert row["source"] == row["patient"] and cases[row["case_pseudonym"]].position == row["position"] != ""
    # another data set adds to it, the same one replaces its rows
    write_keys(keys, "Dataset615_Other", [{"case": "Älter, A.", "case_pseudonym": "case_0123456789abcdef"}])
    convert(hospital, tmp_path / "raw", salt, "--overwrite")
    assert len(read_keys(keys)) == 3 + 3 + 1


def test_salt_among_the_data_is_refused(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "raw").mkdir()
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    arguments = ["folder", str(hospital), "-d", "614", "--channel", "T1ce=*t1c*", "--mask", "*seg*"]
    assert main([*arguments, "--pseudonymise", str(tmp_path / "raw" / "salt")]) == 1
    assert "lies in nnUNet_raw; keep the salt and the list of keys apart" in capsys.readouterr().err


def test_results_are_mapped_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case, patient = SALT.name("Doe_Jane"), SALT.of("patient", 'Doe, "J"')
    rows = [{"case": "Doe_Jane", "case_pseudonym": case, "patient": 'Doe, "J"', "patient_pseudonym": patient}]
    write_keys(tmp_path / "keys.csv", "Dataset614_Private", rows)
    results = tmp_path / "results"
    (results / "classes").mkdir(parents=True)
    (results / f"{case}.nii.gz").write_bytes(gzip.compress(case.encode()))
    digest_of_weights = 4 * patient  # 64 hexadecimal digits are no pseudonym
    (results / "classes" / f"{case}.json").write_text(json.dumps({"case": case, "weights": digest_of_weights}))
    (results / "patients.csv").write_text(f"patient,cases\n{patient},{case} {SALT.name('other')}\n")
    (results / "report.html").write_text(f"<td>{patient}</td>")
    arguments = [str(results), "-o", str(tmp_path / "out"), "--keys", str(tmp_path / "keys.csv")]
    assert identify(arguments) == 3
    assert f"not in the key list: {SALT.name('other')}" in capsys.readouterr().err
    out = tmp_path / "out"
    assert gzip.decompress((out / "Doe_Jane.nii.gz").read_bytes()) == case.encode()
    assert json.loads((out / "classes" / "Doe_Jane.json").read_text()) == {
        "case": "Doe_Jane",
        "weights": digest_of_weights,
    }
    with open(out / "patients.csv", encoding="utf-8", newline="") as file:
        assert list(csv.reader(file))[1] == ['Doe, "J"', f"Doe_Jane {SALT.name('other')}"]
    assert (out / "report.html").read_text() == "<td>Doe, &quot;J&quot;</td>"
    assert identify(arguments) == 1
    assert "is there already; choose another folder" in capsys.readouterr().err
    arguments[1:3] = ["-o", str(tmp_path / "new")]
    assert identify([*arguments[:-1], str(tmp_path / "none")]) == 1
    assert "no such key list" in capsys.readouterr().err
    (tmp_path / "keys.csv").write_text("a,b\n1,2\n")
    assert identify(arguments) == 1
    assert "no key list, it has no column dataset" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_dry_run_makes_no_salt(hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    assert not convert(hospital, tmp_path / "raw", tmp_path / "salt", "--dry-run").exists()
    assert not (tmp_path / "salt").exists()


@pytest.mark.slow
def test_official_folds_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_figshare_phantoms(tmp_path / "source", n_patients=10, slices_per_patient=2)
    common = ["figshare", str(tmp_path / "source"), "-d", "615", "-np", "1"]
    splits = []
    for name, options in (("open", []), ("closed", ["--pseudonymise", str(tmp_path / "salt")])):
        monkeypatch.setenv("nnUNet_raw", str(tmp_path / name))
        assert main([*common, *options]) == 0
        folder = next((tmp_path / name).glob("Dataset615_*"))
        splits.append(json.loads((folder / "splits_final.json").read_text()))
    pseudonyms = Pseudonyms.from_file(tmp_path / "salt")
    for open_split, closed_split in zip(*splits, strict=True):
        assert sorted(pseudonyms.name(name) for name in open_split["val"]) == closed_split["val"]


def test_pseudonyms_do_not_mix_kinds_and_keep_what_is_unknown() -> None:
    assert SALT.of("case", "1") != SALT.of("patient", "1")
    assert SALT.case(Case("a")) == Case(SALT.name("a"))
    assert SALT.case(Case("a", patient="1")).patient == SALT.case(Case("b", patient="1")).patient != ""


def test_dates_become_days() -> None:
    dates = {"a": "2024-01-31", "b": "2024-03-01", "c": "2023-12-24", "d": "baseline"}
    cases = [Case(name, patient="2" if name == "c" else "1", date=date) for name, date in dates.items()]
    days = {case.case: case.date for case in SALT.cases(cases)}
    assert [days[SALT.name(name)] for name in "abcd"] == ["0", "30", "0", ""]


def test_short_salt_is_refused(tmp_path: Path) -> None:
    (tmp_path / "salt").write_text("secret\n")
    with pytest.raises(ValueError, match="salt: holds 6 bytes"):
        Pseudonyms.from_file(tmp_path / "salt")


def test_header_keeps_geometry_only(tmp_path: Path) -> None:
    image = sitk.GetImageFromArray(volume_array(0))
    image.SetMetaData("descrip", "Doe")
    write_image(image, tmp_path / "a.nii.gz")
    assert b"Doe" not in gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    assert image.HasMetaDataKey("descrip")  # the caller's image is left alone
    assert read_volume(tmp_path / "a.nii.gz").GetSpacing() == image.GetSpacing()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/jane/nnUNet/results/fold_0", "…/fold_0"),
        ("{'folder': '/data/Doe, Jane/raw', 'n': 3}", "{'folder': '…/raw', 'n': 3}"),
        ("/data/Doe, Jane/raw", "…/raw"),
        ("PosixPath('/a/b/c.json')", "PosixPath('…/c.json')"),
        (r"C:\\Users\\jane\\x", "…/x"),
        ("1/2 of 3/4, lr 1e-3", "1/2 of 3/4, lr 1e-3"),
        ("cuda:0", "cuda:0"),
    ],
)
def test_paths_are_cut(text: str, expected: str) -> None:
    assert without_folders(text) == expected


def test_debug_information_names_no_machine(tmp_path: Path) -> None:
    file = tmp_path / "debug.json"
    file.write_text(json.dumps({"hostname": "ward7", "output_folder": "/home/jane/results/fold_0", "lr": "0.01"}))
    remove_machine(file)
    assert json.loads(file.read_text()) == {"output_folder": "…/fold_0", "lr": "0.01"}
