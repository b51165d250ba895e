"""Faults of images grow with severity and leave files otherwise as they are; the stress test end to end."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK
from evaluation_data import class_result, dataset_json
from PIL import Image

from braintum.commands.command import run_command
from braintum.conversion.format.cases import Case, write_cases
from braintum.evaluation.cli import build_parser, evaluate
from braintum.evaluation.stress import corruptions as module
from braintum.evaluation.stress.corruptions import CORRUPTIONS, SEVERITIES, applicable, corrupt
from braintum.evaluation.stress.stress import CaseGroup, PredictionCommand, StressTest, run_stress_test
from braintum.evaluation.stress.stress_cli import _limited
from braintum.evaluation.stress.stress_images import CLEAN, Condition, ImageTask, write_images
from braintum.evaluation.stress.stress_results import stress_tables, to_json, write_stress_results

SLICE, VOLUME = (160, 140), (10, 144, 60)
SPACINGS = {SLICE: (0.5, 1.5), VOLUME: (4.0, 1.0, 1.0)}


def head(shape, sequences=2, dtype=np.uint8):
    """An ellipsoid with structure on a black background, (sequences, *shape)."""
    grid = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    inside = sum(axis**2 for axis in grid) < 0.8
    texture = 110 + 50 * np.sin(17 * grid[-1]) * np.cos(13 * grid[-2]) + 30 * grid[-1]
    return np.stack([inside * (texture + 12 * number) for number in range(sequences)]).astype(dtype)


@pytest.mark.parametrize("shape", [SLICE, VOLUME], ids=["slice", "volume"])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_grows_with_severity(name, shape):
    image = head(shape)
    before = image.copy()
    faulty = [corrupt(image, SPACINGS[shape], name, severity, "case_1") for severity in SEVERITIES]
    distances = [np.abs(other.astype(float) - image).mean() for other in faulty]
    assert distances[0] > 0
    assert distances == sorted(distances) and len(set(distances)) == 5
    assert all(other.shape == image.shape and other.dtype == image.dtype for other in faulty)
    np.testing.assert_array_equal(image, before)
    again = corrupt(image, SPACINGS[shape], name, 3, "case_1")
    np.testing.assert_array_equal(again, faulty[2])


@pytest.mark.parametrize("name", ["noise", "bias_field", "motion"])
def test_cases_differ(name):
    image = head(SLICE)
    first, second = (corrupt(image, SPACINGS[SLICE], name, 4, case) for case in ("a", "b"))
    assert (first != second).any()


def test_noise_has_the_stated_deviation():
    image = np.zeros((1, 200, 200), np.float32)
    image[:, 50:150, 50:150] = np.linspace(-300, 700, 100)  # negative values: nothing is cut off
    low, high = np.percentile(image, (0.5, 99.5))
    for severity, share in zip(SEVERITIES, CORRUPTIONS["noise"].strengths, strict=True):
        noise = corrupt(image, (1, 1), "noise", severity, "case") - image
        assert noise.std() == pytest.approx(share * (high - low), rel=0.02)
        assert abs(noise.mean()) < 0.02 * noise.std() + 1e-3


def test_blur_is_a_gaussian_of_the_stated_width():
    image = np.zeros((1, 201, 201), np.float32)
    image[0, 100, 100] = 1.0
    image[0, :3, :3] = 1.0  # a range, in spite of the percentiles
    spacing = (1.0, 0.5)
    blurred = corrupt(image, spacing, "blur", 5, "case")[0, 60:141, 60:141].astype(float)
    offsets = np.arange(-40, 41)
    variance = [
        np.sum(blurred.sum(1) * offsets**2) / blurred.sum() * spacing[0] ** 2,
        np.sum(blurred.sum(0) * offsets**2) / blurred.sum() * spacing[1] ** 2,
    ]
    np.testing.assert_allclose(np.sqrt(variance), 0.025 * 201, rtol=0.02)


def test_gamma_is_the_power():
    image = np.tile(np.linspace(0, 1000, 101), (1, 64, 1)).astype(np.float32)
    low, high = np.percentile(image, (0.5, 99.5))
    scaled = (image - low) / (high - low)
    faulty = (corrupt(image, (1, 1), "gamma", 5, "case") - low) / (high - low)
    middle = np.s_[:, :, 10:90]
    powers = np.log(faulty[middle]) / np.log(scaled[middle])
    np.testing.assert_allclose(np.abs(np.log(powers)), CORRUPTIONS["gamma"].strengths[4], rtol=1e-2)


def test_bias_field_has_the_stated_extremes():
    image = np.full((1, 96, 96), 500, np.float32)
    image[:, :2, :2] = 0
    image[:, 2:, 2:] += np.random.default_rng(0).uniform(0, 100, (94, 94)).astype(np.float32)
    image[0, :4, 10:] = 0  # more than half a percent of background
    inside = image[0] > 0
    factor = np.log(corrupt(image, (1, 1), "bias_field", 4, "case")[0][inside] / image[0][inside])
    assert np.abs(factor).max() == pytest.approx(CORRUPTIONS["bias_field"].strengths[3], rel=0.15)


def test_motion_leaves_the_head_in_its_place():
    """TorchIO turns about the origin of the affine; were that a corner, the head would be elsewhere."""
    image = head(SLICE, 1)
    centre = [np.average(axis, weights=image[0]) for axis in np.indices(SLICE)]
    for severity in SEVERITIES:
        moved = corrupt(image, SPACINGS[SLICE], "motion", severity, "case")[0]
        found = [np.average(axis, weights=moved) for axis in np.indices(SLICE)]
        assert np.linalg.norm(np.subtract(found, centre)) < 0.03 * max(SLICE)


def test_missing_sequence():
    image = head(VOLUME, 3, np.int16)
    faulty = corrupt(image, SPACINGS[VOLUME], "missing_sequence", 5, "case")
    missing = [bool((sequence == 0).all()) for sequence in faulty]
    assert missing.count(True) == 1
    kept = [number for number, gone in enumerate(missing) if not gone]
    np.testing.assert_array_equal(faulty[kept], image[kept])
    half = corrupt(image, SPACINGS[VOLUME], "missing_sequence", 2, "case")
    changed = (half != image).any((0, 2, 3))
    assert changed.sum() <= round(0.4 * VOLUME[0]) and (changed[0] != changed[-1] or not changed[[0, -1]].any())
    assert "missing_sequence" in applicable(2) and "missing_sequence" not in applicable(1)
    with pytest.raises(ValueError, match="at least 2 sequences, not 1"):
        corrupt(image[:1], SPACINGS[VOLUME], "missing_sequence", 1, "case")


def test_background_is_kept_on_request():
    image = head(SLICE)
    noisy, kept = (corrupt(image, (1, 1), "noise", 5, "case", keep) for keep in (False, True))
    outside = (image == 0).all(0)
    assert (noisy[:, outside] > 0).any() and not kept[:, outside].any()
    np.testing.assert_array_equal(noisy[:, ~outside], kept[:, ~outside])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rust", 1), "'rust' is no fault"),
        (("noise", 6), "severity 6"),
        (("noise", 0), "severity 0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        corrupt(head(SLICE), (1, 1), *arguments, "case")
    with pytest.raises(ValueError, match="a spacing an axis"):
        corrupt(head(SLICE), (1, 1, 1), "noise", 1, "case")


def test_strengths_are_ordered():
    assert set(CORRUPTIONS) == {
        *("noise", "blur", "bias_field", "gamma", "motion", "ghosting", "downsampling", "missing_sequence"),
    }
    for corruption in CORRUPTIONS.values():
        assert len(corruption.strengths) == len(SEVERITIES)
        ordered = sorted(corruption.strengths, reverse=corruption.name == "downsampling")
        assert list(corruption.strengths) == ordered
        assert type(corruption).__doc__ and corruption.description
    with pytest.raises(AttributeError):
        CORRUPTIONS["noise"].strengths = (1, 2, 3, 4, 5)
    assert replace(module.GaussianNoise(), strengths=(1, 2, 3, 4, 5)).strengths[4] == 5


def nifti(file, array, spacing=(0.5, 2.0, 3.0), origin=(10.0, -20.0, 30.0)):
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing[: array.ndim])
    image.SetOrigin(origin[: array.ndim])
    if array.ndim == 3:
        image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    SimpleITK.WriteImage(image, str(file))


@pytest.mark.parametrize("shape", [(40, 36), (8, 24, 20)], ids=["slice", "volume"])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_nifti_files_keep_geometry_and_type(tmp_path, shape, dtype):
    files = tuple(tmp_path / f"case_000{channel}.nii.gz" for channel in range(2))
    for file, array in zip(files, head(shape, 2, dtype), strict=True):
        nifti(file, array)
    (tmp_path / "out").mkdir()
    for condition in (Condition("noise", 3), Condition(CLEAN, 0)):
        write_images(ImageTask("case", files, condition, tmp_path / "out", ".nii.gz"))
        for channel, file in enumerate(files):
            before = SimpleITK.ReadImage(str(file))
            name = f"{condition.case_name('case')}_000{channel}.nii.gz"
            after = SimpleITK.ReadImage(str(tmp_path / "out" / name))
            assert after.GetPixelID() == before.GetPixelID()
            np.testing.assert_allclose(after.GetSpacing(), before.GetSpacing())
            np.testing.assert_allclose(after.GetOrigin(), before.GetOrigin())
            np.testing.assert_allclose(after.GetDirection(), before.GetDirection())
            same = (SimpleITK.GetArrayFromImage(after) == SimpleITK.GetArrayFromImage(before)).all()
            assert same == (condition.corruption == CLEAN)


@pytest.mark.parametrize("colours", [(), (3,)], ids=["grey", "RGB"])
def test_png_files_stay_8_bit(tmp_path, colours):
    array = head((40, 36), 3)
    array = array.transpose(1, 2, 0) if colours else array[0]
    file = tmp_path / "case_0000.png"
    Image.fromarray(array).save(file)
    write_images(ImageTask("case", (file,), Condition("blur", 4), tmp_path, ".png"))
    with Image.open(tmp_path / "case__blur_4_0000.png") as image:
        assert image.mode == ("RGB" if colours else "L")
        after = np.asarray(image)
    assert after.shape == array.shape and after.dtype == np.uint8 and (after != array).any()


def test_bad_files(tmp_path):
    nifti(tmp_path / "a_0000.nii.gz", head((20, 20), 1)[0])
    nifti(tmp_path / "a_0001.nii.gz", head((20, 22), 1)[0])
    files = (tmp_path / "a_0000.nii.gz", tmp_path / "a_0001.nii.gz")
    task = ImageTask("a", files, Condition("noise", 1), tmp_path, ".nii.gz")
    with pytest.raises(ValueError, match="a: its sequences differ in size"):
        write_images(task)
    (tmp_path / "b_0000.nii.gz").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b_0000\.nii\.gz: not a readable image"):
        write_images(replace(task, files=(tmp_path / "b_0000.nii.gz",)))
    with pytest.raises(ValueError, match=r"not \*\.dcm"):
        write_images(replace(task, ending=".dcm"))


# --------------------------------------------------------------------------- the whole test

CASES = {"a1": ("glioma", "a"), "b1": ("meningioma", "b"), "c1": ("glioma", "c"), "d1": ("meningioma", "d")}
CASES |= {"e1": ("glioma", "e"), "h1": ("no_tumor", "h")}
CLASSES = ("meningioma", "glioma", "no_tumor")


def write_dataset(raw):
    """Bright squares on black; the class is that of the case whatever is seen, none for h1."""
    folder = raw / "Dataset042_Tiny"
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for number, (case, (tumour_class, _)) in enumerate(CASES.items()):
        mask = np.zeros((32, 32), np.uint8)
        if tumour_class != "no_tumor":
            mask[4 + number : 16 + number, 6:18] = 1
        nifti(folder / "labelsTr" / f"{case}.nii.gz", mask)
        nifti(folder / "imagesTr" / f"{case}_0000.nii.gz", (mask * 200 + 10).astype(np.int16))
    write_cases(folder / "cases.csv", [Case(case, row[0], patient=row[1]) for case, row in CASES.items()])
    splits = [{"train": list(CASES)[3:], "val": list(CASES)[:3]}, {"train": list(CASES)[:3], "val": list(CASES)[3:]}]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    return folder


class Threshold:
    """A predictor without a network: bright is tumour; its class is right where noise leaves the background dark."""

    def __init__(self):
        self.calls = []

    def __call__(self, images, output, folds):
        names = sorted(file.name.removesuffix("_0000.nii.gz") for file in images.iterdir())
        self.calls.append((names, folds))
        (output / "classes").mkdir(parents=True, exist_ok=True)
        for name in names:
            array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(images / f"{name}_0000.nii.gz")))
            nifti(output / f"{name}.nii.gz", (array > 60).astype(np.uint8))
            truth = CLASSES.index(CASES[name.partition("__")[0]][0])
            right = np.std(array[:3]) < 15
            probabilities = np.eye(3)[truth if right else (truth + 1) % 3].tolist()
            result = class_result(name, probabilities)
            (output / "classes" / f"{name}.json").write_text(json.dumps(result))


@pytest.fixture
def tiny(tmp_path):
    folder = write_dataset(tmp_path)
    groups = []
    for fold, chosen in enumerate((list(CASES)[:3], list(CASES)[3:])):
        images = {case: (folder / "imagesTr" / f"{case}_0000.nii.gz",) for case in chosen}
        groups.append(CaseGroup((fold,), images, {case: folder / "labelsTr" / f"{case}.nii.gz" for case in chosen}))
    rows = {case: Case(case, row[0], patient=row[1]) for case, row in CASES.items()}
    return StressTest("tiny", groups, ["noise", "blur"], dataset_json(), rows)


def test_stress_test(tiny, tmp_path, monkeypatch):
    labels = {file: file.read_bytes() for file in (tmp_path / "Dataset042_Tiny" / "labelsTr").iterdir()}
    predict = Threshold()
    output = tmp_path / "out"
    result = run_stress_test(tiny, predict, output, num_resamples=100)
    assert [folds for _, folds in predict.calls] == [(0,), (1,)]
    assert [len(names) for names, _ in predict.calls] == [33, 33]  # 3 cases, as they are and 2 faults × 5 severities
    write_stress_results(result, output)
    found = json.loads((output / "stress.json").read_text(encoding="utf-8"))
    assert found["clean"]["Dice"] == found["clean"]["accuracy"] == 1
    assert list(found["corruptions"]) == ["noise", "blur"] and found["num_cases"] == 6
    noise = found["corruptions"]["noise"]
    assert noise["parameters"] == list(CORRUPTIONS["noise"].strengths)
    # independently: the share of the dark rows' deviation that the threshold of the class sees
    expected = {}
    for case in CASES:
        array = SimpleITK.GetArrayFromImage(
            SimpleITK.ReadImage(str(tmp_path / "Dataset042_Tiny" / "imagesTr" / f"{case}_0000.nii.gz"))
        )
        for severity in SEVERITIES:
            noisy = corrupt(array[None], (2.0, 0.5), "noise", severity, case)[0]
            mask, truth = noisy > 60, array > 60
            dice = 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) if truth.any() else np.nan
            expected.setdefault(severity, []).append((dice, np.std(noisy[:3]) < 15))
    for index, severity in enumerate(SEVERITIES):
        dice, right = np.array(expected[severity], float).T
        assert noise["Dice"][index] == pytest.approx(np.nanmean(dice))
        assert noise["accuracy"][index] == pytest.approx(right.mean())
    assert noise["accuracy"][0] == 1 and noise["accuracy"][4] < 1
    assert noise["Dice_low"][4] < noise["Dice"][4] < noise["Dice_high"][4]
    assert noise["accuracy_low"][0] is None  # all resamples agree
    with open(output / "stress.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 11
    (row,) = [row for row in rows if (row["corruption"], row["severity"], row["metric"]) == ("noise", "5", "Dice")]
    assert float(row["value"]) == pytest.approx(noise["Dice"][4], rel=1e-5) and row["parameter"] == "0.25"
    assert "| noise" in (output / "stress.md").read_text(encoding="utf-8")
    with Image.open(output / "stress.png") as image:
        assert image.width > 500
    assert not list(output.glob(".stress-*"))  # images and predictions are gone
    assert {file: file.read_bytes() for file in labels} == labels


def test_few_conditions_at_a_time(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("braintum.evaluation.stress.stress.DISK_BUDGET", 1)
    predict = Threshold()
    test = replace(tiny, groups=tiny.groups[:1], corruptions=["blur"])
    result = run_stress_test(test, predict, tmp_path / "out", num_resamples=100)
    assert [len(names) for names, _ in predict.calls] == [3] * 6
    assert to_json(result)["clean"]["Dice"] == 1
    assert to_json(result)["clean"]["Dice_low"] is None  # three patients
    assert [table.header[1] for table in stress_tables(to_json(result))] == ["none", "none"]


def test_missing_prediction(tiny, tmp_path):
    def predict(images, output, folds):
        Threshold()(images, output, folds)
        (output / "a1__blur_3.nii.gz").unlink(missing_ok=True)

    with pytest.raises(ValueError, match=r"1 cases were not predicted, such as .*a1__blur_3\.nii\.gz"):
        run_stress_test(tiny, predict, tmp_path / "out")


def test_limit_is_the_same_at_every_call(tiny):
    first, second = (_limited(list(tiny.groups), 4) for _ in range(2))
    assert first == second
    assert sum(len(group.images) for group in first) == 4
    assert _limited(list(tiny.groups), 6) == list(tiny.groups)


def test_command_line(tmp_path, monkeypatch, capsys):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    write_dataset(tmp_path / "nnUNet_raw")
    model = tmp_path / "nnUNet_results" / "Dataset042_Tiny" / "nnUNetTrainerMultiTask__BrainTumPlans__2d"
    for fold in range(2):
        (model / f"fold_{fold}" / "validation").mkdir(parents=True)
        for name in ("summary.json", "classification.json"):
            (model / f"fold_{fold}" / "validation" / name).write_text("{}")
    (model / "dataset.json").write_text(json.dumps(dataset_json()))
    plans = {"dataset_name": "Dataset042_Tiny", "configurations": {"2d": {"use_mask_for_norm": [False]}}}
    (model / "plans.json").write_text(json.dumps(plans))
    commands = []

    def fake(command, images, output, folds):
        commands.append((command, folds))
        Threshold()(images, output, folds)

    monkeypatch.setattr(PredictionCommand, "__call__", fake)
    arguments = ["-d", "42", "-p", "BrainTumPlans", "-c", "2d", "--stress", "-np", "1", "--resamples", "100"]
    assert run_command(evaluate, [*arguments, "--stress-corruptions", "noise", "-device", "cpu"]) == 0
    assert "accuracy of nnUNetTrainerMultiTask" in capsys.readouterr().out
    assert [folds for _, folds in commands] == [(0,), (1,)]
    assert commands[0][0].model == ("-d", "42", "-c", "2d", "-p", "BrainTumPlans", "-tr", "nnUNetTrainerMultiTask")
    assert commands[0][0].options == ("-device", "cpu") and commands[0][0].predicts_classes
    found = json.loads((model / "stress" / "stress.json").read_text(encoding="utf-8"))
    assert found["num_cases"] == 6 and found["num_patients"] == 6 and list(found["corruptions"]) == ["noise"]
    raw = tmp_path / "nnUNet_raw" / "Dataset042_Tiny"
    folders = ["-i", str(raw / "imagesTr"), "-g", str(raw / "labelsTr"), "-o", str(tmp_path / "out")]
    more = [*folders, "-f", "1", "--limit", "2", "--stress-corruptions", "gamma"]
    assert run_command(evaluate, [*arguments, *more]) == 0
    assert commands[-1][1] == (1,)
    assert json.loads((tmp_path / "out" / "stress.json").read_text())["num_cases"] == 2
    capsys.readouterr()
    for more, message in (
        (["-f", "2"], "has the folds 0 to 1"),
        (["--stress-corruptions", "missing_sequence"], "missing_sequence needs several sequences"),
        (["--stress-corruptions", "rust"], "rust is none; choose from noise"),
        (["-i", "x"], "give both -i and -g"),
        (["--limit", "0"], "at least one case"),
        (["--ensembles"], "--ensembles does not go with --stress"),
        (["-tr", "A", "B"], "one model at a time; give one value to -tr"),
    ):
        assert run_command(evaluate, [*arguments, *more]) == 1
        assert message in capsys.readouterr().err
    without = [argument for argument in arguments if argument != "--stress"]
    assert run_command(evaluate, [*without, "--limit", "3"]) == 1
    assert "belong to --stress" in capsys.readouterr().err
    assert build_parser().parse_args(["-p", "x"]).stress is False


def test_failing_prediction(tmp_path, monkeypatch):
    commands = []

    def run(command, check):
        commands.append(command)
        return type("Finished", (), {"returncode": 3})()

    monkeypatch.setattr("braintum.evaluation.stress.stress.subprocess.run", run)
    with pytest.raises(ValueError, match="failed with exit code 3"):
        PredictionCommand(("-d", "1"), options=("-device", "cpu"))(tmp_path, tmp_path / "out", (0, 2))
    assert commands[0][0].endswith("braintum_predict") and commands[0][-3:] == ["-f", "0", "2"]
    with pytest.raises(ValueError):
        PredictionCommand(("-d", "1"), predicts_classes=False)(tmp_path, tmp_path / "out", None)
    assert commands[1][0].endswith("nnUNetv2_predict") and "-f" not in commands[1]
