"""The Figshare converter, on files with the original's quirks and faults."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from phantom_data import FAULTS, FOLDER, NAME, blob_slice, change, digest, request, write_source
from volume_data import verify

from braintum.conversion.building.inspection import SourceError
from braintum.conversion.building.raw_dataset import ConversionRequest
from braintum.conversion.format.cases import Case, ClassSchema, read_cases
from braintum.conversion.format.splits import check_splits
from braintum.conversion.sources import figshare
from braintum.conversion.sources.figshare import convert
from braintum.conversion.sources.phantoms import write_cvind, write_mat


@pytest.fixture
def source(tmp_path):
    return write_source(tmp_path / "source")


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


def splits_of(raw):
    return json.loads((raw / NAME / "splits_final.json").read_text(encoding="utf-8"))


def test_layout_and_dataset_json(source, raw):
    result = convert(request(source, raw))
    folder = raw / NAME
    assert result.folder == folder
    assert sorted(path.name for path in folder.iterdir()) == [
        "cases.csv",
        "dataset.json",
        "imagesTr",
        "labelsTr",
        "provenance.json",
        "splits_final.json",
    ]
    assert len(list((folder / "imagesTr").iterdir())) == len(list((folder / "labelsTr").iterdir())) == 12
    content = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    assert content["channel_names"] == {"0": "T1ce"}
    assert content["labels"] == {"background": 0, "tumour": 1}
    assert (content["numTraining"], content["file_ending"]) == (12, ".nii.gz")
    assert content["overwrite_image_reader_writer"] == "SimpleITKIO"
    assert content["licence"] == "CC BY 4.0"
    assert ClassSchema.from_dataset_json(content) == ClassSchema(("meningioma", "glioma", "pituitary"))


def test_arrays_are_transposed_back(source, raw):
    convert(request(source, raw))
    image, mask = blob_slice(3)
    written = sitk.ReadImage(str(raw / NAME / "imagesTr" / "figshare_0003_0000.nii.gz"))
    label = sitk.ReadImage(str(raw / NAME / "labelsTr" / "figshare_0003.nii.gz"))
    assert (written.GetDimension(), label.GetDimension()) == (2, 2)
    assert (written.GetPixelID(), label.GetPixelID()) == (sitk.sitkInt16, sitk.sitkUInt8)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), image)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(label), mask)
    # x 40, y 5 is tumour (wide, upper right), its transpose is not
    assert label.GetPixel(40, 5) == 1
    assert label.GetPixel(5, 40) == 0


@pytest.mark.parametrize(("size", "spacing"), [(512, 0.49), (256, 0.98)])
def test_spacing_keeps_the_field_of_view(tmp_path, raw, size, spacing):
    source = write_source(tmp_path / "source")
    image, mask = blob_slice(1, size)
    write_mat(source / FOLDER / "1.mat", image, mask, 1, "P000")
    convert(request(source, raw))
    for path in ("imagesTr/figshare_0001_0000.nii.gz", "labelsTr/figshare_0001.nii.gz"):
        assert sitk.ReadImage(str(raw / NAME / path)).GetSpacing() == pytest.approx((spacing, spacing))
    assert read_cases(raw / NAME / "cases.csv")["figshare_0001"].spacing == f"{spacing} {spacing}"


def test_cases_csv_holds_class_patient_and_source(source, raw):
    convert(request(source, raw))
    cases = read_cases(raw / NAME / "cases.csv", ["meningioma", "glioma", "pituitary"])
    assert list(cases) == [f"figshare_{number:04d}" for number in range(1, 13)]
    assert cases["figshare_0005"] == Case(
        "figshare_0005", "pituitary", "P002", "", "train", "", "3.92 3.92", f"{FOLDER}/5.mat"
    )
    assert [case.tumour_class for case in cases.values()][:6:2] == ["meningioma", "glioma", "pituitary"]


def test_patient_identifier_may_hold_letters_and_lie_either_way(source, raw):
    change(source / FOLDER / "1.mat", "PID", np.array([[ord(letter) for letter in "MR04B\0"]], np.uint16))
    convert(request(source, raw))
    assert read_cases(raw / NAME / "cases.csv")["figshare_0001"].patient == "MR04B"


def test_files_in_any_nesting_beside_rubbish(tmp_path, raw):
    source = write_source(tmp_path / "source")
    (source / "deep" / "er").mkdir(parents=True)
    shutil.move(source / FOLDER / "1.mat", source / "deep" / "er" / "1.mat")
    shutil.move(source / FOLDER / "2.mat", source / "2.mat")
    shutil.move(source / "cvind.mat", source / "deep" / "cvind.mat")
    (source / FOLDER / "._3.mat").write_bytes(b"macOS")
    (source / "README.txt").write_text("read me")
    convert(request(source, raw))
    cases = read_cases(raw / NAME / "cases.csv")
    assert len(cases) == 12
    assert [cases[f"figshare_000{n}"].source for n in (1, 2)] == ["deep/er/1.mat", "2.mat"]
    assert len(splits_of(raw)) == 3


@pytest.mark.parametrize("orientation", ["row", "column"])
def test_official_folds_are_honoured(source, raw, caplog, orientation):
    with h5py.File(source / "cvind.mat", "r+") as file:
        folds = file["cvind"][()]
        del file["cvind"]
        file["cvind"] = folds if orientation == "row" else folds.T
    with caplog.at_level(logging.INFO):
        convert(request(source, raw))
    # patient p (cases 2p+1 and 2p+2) is of fold p % 3 + 1
    assert [split["val"] for split in splits_of(raw)] == [
        [f"figshare_{number:04d}" for number in numbers] for numbers in ((1, 2, 7, 8), (3, 4, 9, 10), (5, 6, 11, 12))
    ]
    assert "splits: the authors' folds 1, 2, 3" in caplog.text
    check_splits(splits_of(raw), read_cases(raw / NAME / "cases.csv").values())


def test_folds_without_slices_are_skipped(source, raw, caplog):
    for number in (1, 2, 7, 8):
        (source / FOLDER / f"{number}.mat").unlink()
    convert(request(source, raw))
    assert [split["val"][0] for split in splits_of(raw)] == ["figshare_0003", "figshare_0005"]
    assert "fold(s) 1: skipped" in caplog.text


def test_single_official_fold_is_refused(source, raw):
    write_cvind(source / "cvind.mat", [2] * 12)
    with pytest.raises(SourceError, match=r"fold 2, at least 2 folds are needed; .* remove cvind.mat"):
        convert(request(source, raw))
    assert not raw.exists()


def test_patients_across_official_folds_are_kept_with_a_warning(source, raw, caplog):
    write_cvind(source / "cvind.mat", [1, 2] * 6)
    convert(request(source, raw))
    assert splits_of(raw)[0]["val"] == [f"figshare_{number:04d}" for number in range(1, 13, 2)]
    assert "6 patient(s) occur in more than one of the authors' folds" in caplog.text


def test_without_cvind_splits_are_made_by_patient(tmp_path, raw, caplog):
    source = write_source(tmp_path / "source", with_cvind=False)
    with caplog.at_level(logging.INFO):
        convert(request(source, raw))
    assert "made by patient and class (there is no cvind.mat)" in caplog.text
    assert len(splits_of(raw)) == 5
    check_splits(splits_of(raw), read_cases(raw / NAME / "cases.csv").values())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: write_cvind(path, [1, 2, 3]), "has 3 folds, none for slice 12.mat"),
        (lambda path: write_cvind(path, [float("nan")] * 12), "not all folds are whole numbers"),
        (lambda path: path.write_bytes(path.read_bytes()[:900]), "the folds cannot be read"),
        (lambda path: path.write_bytes(b""), "the folds cannot be read"),
    ],
)
def test_faulty_cvind_is_refused_before_anything_is_read(source, raw, monkeypatch, damage, words):
    damage(source / "cvind.mat")
    monkeypatch.setattr(figshare, "inspect_slice", pytest.fail)
    with pytest.raises(SourceError, match=words) as caught:
        convert(request(source, raw))
    assert str(source / "cvind.mat") in str(caught.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_names_file_fault_and_remedy_and_writes_nothing(source, raw, fault):
    damage, words = FAULTS[fault]
    path = source / FOLDER / "4.mat"
    damage(path)
    with pytest.raises(SourceError) as caught:
        convert(request(source, raw))
    header, *lines = str(caught.value).splitlines()
    assert header == f"{'2' if fault == 'volume' else '1'} problem(s) in {source}; nothing was written:"
    assert lines[0].startswith(f"  - {path}: ")
    assert words in lines[0]
    assert "; download it again" in lines[0]
    assert not raw.exists()


@pytest.mark.slow
@pytest.mark.parametrize("n_processes", [1, 2])
def test_all_faults_are_listed_at_once(source, raw, n_processes):
    for number, fault in ((2, "truncated"), (5, "label 4"), (5, "empty mask"), (9, "sizes")):
        FAULTS[fault][0](source / FOLDER / f"{number}.mat")
    with pytest.raises(SourceError) as caught:
        convert(ConversionRequest(source, raw, 511, "Figshare", n_processes=n_processes))
    lines = str(caught.value).splitlines()[1:]
    assert [Path(line.removeprefix("  - ").split(": ")[0]).name for line in lines] == [
        "2.mat",
        "5.mat",
        "5.mat",
        "9.mat",
    ]
    assert not raw.exists()


def test_source_without_slices_or_with_doubles_is_refused(source, raw, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no slices \(1.mat"):
        convert(request(tmp_path / "nothing", raw))
    (tmp_path / "nothing" / "brainTumorDataPublic_1-766.zip").touch()
    with pytest.raises(FileNotFoundError, match=r"unpack brainTumorDataPublic_1-766.zip"):
        convert(request(tmp_path / "nothing", raw))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        convert(request(tmp_path / "absent", raw))
    shutil.copy(source / FOLDER / "3.mat", source / "3.mat")
    with pytest.raises(SourceError, match="slice 3 occurs twice"):
        convert(request(source, raw))


def test_dry_run_checks_all_and_writes_nothing(source, raw, caplog):
    before = digest(source)
    result = convert(request(source, raw, dry_run=True))
    assert result.n_cases == 12
    assert "meningioma" in result.table
    assert not raw.exists()
    assert digest(source) == before
    FAULTS["label 4"][0](source / FOLDER / "4.mat")
    with pytest.raises(SourceError, match="label is 4"):
        convert(request(source, raw, dry_run=True))


@pytest.mark.slow
def test_two_processes_write_the_same_bytes_as_one(source, raw, tmp_path):
    convert(ConversionRequest(source, raw, 511, "Figshare", n_processes=1))
    convert(ConversionRequest(source, tmp_path / "parallel", 511, "Figshare", n_processes=2))
    assert digest(raw) == digest(tmp_path / "parallel")


@pytest.fixture
def command(monkeypatch, raw):
    """The command's main, which must not write into the nnU-Net of whoever runs the tests."""
    pytest.importorskip("braintum.commands.command")
    from braintum.commands import command as command_module
    from braintum.conversion import cli

    monkeypatch.setattr(command_module, "ensure_registered", lambda: None)
    monkeypatch.setenv("nnUNet_raw", str(raw))
    monkeypatch.delenv("nnUNet_preprocessed", raising=False)
    monkeypatch.delenv("nnUNet_results", raising=False)
    return cli.main


def test_command_converts_and_names_the_next_commands(command, source, raw, capsys):
    assert command(["figshare", str(source), "-d", "511", "--dry-run", "-np", "1"]) == 0
    out = capsys.readouterr().out
    assert "pituitary" in out and "nothing was written" in out
    assert not raw.exists()
    assert command(["figshare", str(source), "-d", "511", "-np", "1"]) == 0
    out = capsys.readouterr().out
    assert "nnUNetv2_plan_and_preprocess -d 511 -fpe BrainTumFingerprintExtractor -pl BrainTumPlanner -c 2d" in out
    assert "nnUNetv2_train 511 2d 0 -p BrainTumPlans -tr nnUNetTrainerMultiTask" in out
    assert "braintum_predict -d 511 -p BrainTumPlans -tr nnUNetTrainerMultiTask -c 2d -i INPUT -o OUTPUT" in out
    assert (raw / NAME / "dataset.json").exists()
    assert command(["figshare", str(source), "-d", "511", "--name", "Other", "-np", "1"]) == 1
    assert "Dataset511_Figshare: data-set number 511 is taken" in capsys.readouterr().err


def test_command_fails_clearly(command, source, raw, capsys, monkeypatch):
    FAULTS["truncated"][0](source / FOLDER / "2.mat")
    assert command(["figshare", str(source), "-d", "511", "-np", "1", "--strict"]) == 1
    assert "2.mat: not a complete MATLAB v7.3" in capsys.readouterr().err
    assert not raw.exists()
    monkeypatch.delenv("nnUNet_raw")
    assert command(["figshare", str(source), "-d", "511"]) == 1
    assert "nnUNet_raw is not set" in capsys.readouterr().err


def test_package_starts_without_torch_and_nnunet():
    code = (
        "import sys, braintum.conversion.sources.figshare, braintum.conversion.format.splits\n"
        "sys.exit(bool({'torch', 'nnunetv2', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    path = os.pathsep.join(path for path in sys.path if path)
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif("BRAINTUM_TEST_DATA" not in os.environ, reason="BRAINTUM_TEST_DATA is not set")
def test_real_slices_pass_nnunets_integrity_check(raw, tmp_path):
    tool = Path(os.environ["BRAINTUM_TEST_DATA"]).resolve().parent / "tools" / "figshare_to_mat.py"
    if not tool.exists():
        pytest.skip(f"no {tool}")
    subprocess.run([sys.executable, str(tool), str(tmp_path / "source"), "--limit", "20"], check=True)
    assert convert(request(tmp_path / "source", raw)).n_cases == 20
    # the reconstruction's patients are the authors' folds: nothing crosses
    check_splits(splits_of(raw), read_cases(raw / NAME / "cases.csv").values())
    verify(raw / NAME)
