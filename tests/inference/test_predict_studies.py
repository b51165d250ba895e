"""`braintum_predict` on DICOM studies: what reaches the prediction, what is said, and where the mask lies."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from dicom_data import grid, uid, write_series

from braintum.conversion.dicom.cases import write_cases
from braintum.conversion.files.folders import holds_studies
from braintum.inference import cli
from braintum.inference.predict_studies import predict_studies
from braintum.inference.prediction.input_files import LEFT_OUT_FILE, write_left_out

KM = {"SeriesDescription": "t1 km", "EchoTime": 9.0, "RepetitionTime": 550.0}


def bright(args, has_own_model):
    """In a model's place: the mask of a case is where its first channel is bright."""
    for file in sorted(Path(args.i).glob("*_0000.nii.gz")):
        mask = sitk.Cast(sitk.ReadImage(str(file)) > 500, sitk.sitkUInt8)
        Path(args.o).mkdir(exist_ok=True)
        sitk.WriteImage(mask, str(Path(args.o) / file.name.replace("_0000", "")))
    write_left_out(Path(args.o) / LEFT_OUT_FILE, {"17_other": "the network said so"}, Path(args.i))
    return 0


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    content = {"channel_names": {"0": "T1ce", "1": "FLAIR"}, "labels": {"background": 0, "tumour": 1}}
    (folder / "dataset.json").write_text(json.dumps({**content, "numTraining": 1, "file_ending": ".nii.gz"}))
    return folder


@pytest.fixture
def study(tmp_path):
    folder = tmp_path / "study"
    array = np.random.default_rng(0).integers(1, 900, (5, 8, 9)).astype(np.int16)
    write_series(folder / "a", grid(array), {**KM, "SeriesNumber": 3})
    write_series(folder / "b", grid(array[:4]), {"SeriesDescription": "flair"})
    write_series(folder / "c", grid(array), {"SeriesDescription": "dwi"})
    write_series(folder / "d", grid(array), {"SeriesDescription": "T2"}, without=[2])
    (folder / "broken.dcm").write_bytes(bytes(128) + b"DICM")
    return folder


def predict(source, output, model, *options):
    arguments = ["-i", str(source), "-o", str(output), "-m", str(model), *options]
    return predict_studies(cli.build_parser().parse_args(arguments), True, bright)


@pytest.mark.parametrize("packed", [False, True])
def test_mask_lies_on_the_reference_series(tmp_path, model, study, packed, capsys):
    source, output = study, tmp_path / "output"
    if packed:
        source = tmp_path / "study.zip"
        with zipfile.ZipFile(source, "w") as archive:
            for file in study.rglob("*"):
                archive.write(file, file.relative_to(study))
    assert holds_studies(source)
    assert predict(source, output, model) == 3
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(output / "17_20200102.nii.gz")))
    # slice k of the mask belongs to the frame at position k, whatever name and number its file has
    (case,) = write_cases(source, ["T1ce"], output, {"T1ce": "t1 km"}).cases
    reference = case.reference.read()
    for (instance, _), pixels in zip(reference.frames, mask, strict=True):
        np.testing.assert_array_equal(pixels, reference.instances[instance].pixel_array > 500)
    assert case.mask_file(output).is_file() and case.class_file(output) == output / "classes" / "17_20200102.json"
    said = capsys.readouterr()
    assert "T1ce: 't1 km', its name has 't1', TE 9 ms" in said.out and "FLAIR resampled onto it" in said.out
    assert "not needed: 17_20200102: dwi" in said.out and "1 slices are missing" in said.err
    left_out = json.loads((output / LEFT_OUT_FILE).read_text())
    assert left_out.keys() == {"broken.dcm", "d (T2)", "17_20200102: dwi", "17_other"}


def test_options_choose(tmp_path, model, study, capsys):
    assert predict(study, tmp_path / "o", model, "--channel", "T1ce=dwi", "--reference", "FLAIR") == 3
    assert "T1ce: 'dwi', matches 'dwi'" in capsys.readouterr().out
    assert sitk.ReadImage(str(tmp_path / "o" / "17_20200102.nii.gz")).GetSize() == (9, 8, 4)


def test_table_of_series(tmp_path, model, study, capsys):
    table = tmp_path / "series.csv"
    table.write_text("study;T1ce;FLAIR\n17_20200102;dwi;\n1.2.3;flair;dwi\n")
    assert predict(study, tmp_path / "o", model, "--series-table", str(table)) == 3
    assert "T1ce: 'dwi', matches 'dwi'" in capsys.readouterr().out
    table.write_text("patient,T1ce\n1,a\n")
    with pytest.raises(ValueError, match="it needs study"):
        predict(study, tmp_path / "o", model, "--series-table", str(table))


def test_nothing_to_predict_is_an_error_that_names_the_candidates(tmp_path, model, study, capsys):
    with pytest.raises(ValueError, match="none of the studies in it can be predicted"):
        predict(study, tmp_path / "output", model, "--channel", "T1ce=nothing")
    said = capsys.readouterr().err
    assert "no series matches 'nothing' as T1ce; there is 'dwi' (5 slices): not recognised" in said
    assert "'t1 km' (3, 5 slices): T1ce, its name has 't1'" in said
    assert not (tmp_path / "output").exists()


def test_model_of_pictures_takes_no_dicom(tmp_path, model, study):
    content = json.loads((model / "dataset.json").read_text())
    (model / "dataset.json").write_text(json.dumps({**content, "file_ending": ".png"}))
    with pytest.raises(ValueError, match="takes .png, not volumes"):
        predict(study, tmp_path / "output", model)


def test_what_counts_as_studies(tmp_path):
    write_series(tmp_path / "deep" / "folder", grid(np.ones((1, 5, 6), np.int16)))
    assert holds_studies(tmp_path)
    (tmp_path / "case_0000.nii.gz").write_bytes(b"")
    assert not holds_studies(tmp_path) and not holds_studies(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no DICOM studies"):
        cli.predict(["-i", str(tmp_path), "-o", str(tmp_path / "o"), "-d", "1", "-c", "2d", "--channel", "T1=a"])


@pytest.mark.slow  # imports torch
def test_slices_without_a_position_are_images_of_their_own(tmp_path):
    """For a ready model, which takes any picture."""
    (file,) = write_series(tmp_path, grid(np.ones((1, 5, 6), np.int16)), {"SeriesInstanceUID": uid("x")})
    dataset = pydicom.dcmread(file)
    del dataset.ImagePositionPatient
    dataset.save_as(tmp_path / "slice.dcm")
    file.unlink()
    args = cli.build_parser().parse_args(["-i", str(tmp_path), "-o", str(tmp_path / "o")])
    seen = []
    assert predict_studies(args, False, lambda args, has_own_model: seen.append(args.i) or 7) == 7
    assert seen == [str(tmp_path)]
