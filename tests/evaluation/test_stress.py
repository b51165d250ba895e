"""The stress test end to end."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK
from evaluation_data import class_result, dataset_json
from evaluation_data import write_mask as write_slice
from PIL import Image

from braintum.commands.command import run_command
from braintum.conversion.format.cases import Case, write_cases
from braintum.evaluation.cli import build_parser, evaluate
from braintum.evaluation.stress.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from braintum.evaluation.stress.stress import CaseGroup, PredictionCommand, StressTest, run_stress_test
from braintum.evaluation.stress.stress_cli import _limited
from braintum.evaluation.stress.stress_results import stress_tables, to_json, write_stress_results

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
        write_slice(folder / "labelsTr" / f"{case}.nii.gz", mask)
        write_slice(folder / "imagesTr" / f"{case}_0000.nii.gz", (mask * 200 + 10).astype(np.int16))
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
            write_slice(output / f"{name}.nii.gz", (array > 60).astype(np.uint8))
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


@pytest.mark.slow
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


@pytest.mark.slow
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
