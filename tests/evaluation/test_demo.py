"""``braintum_demo``: what it shows at the end, and what it refuses before it begins."""

import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from evaluation_data import CASES, DICE, SHAPE, SPACING, write_predictions, write_truth
from PIL import Image

from braintum.commands.command import run_command
from braintum.evaluation.demo import demo, headlines, what_next
from braintum.evaluation.demo_stages import Demo, copy_held_out_cases, finished_epochs
from braintum.evaluation.report.case_sheet import draw_case_sheet
from braintum.evaluation.report_cli import build_parser as report_parser
from braintum.evaluation.results.case_table import case_table
from braintum.evaluation.results.predictions import predictions_in_folder
from braintum.evaluation.results.summary import summarise_table
from braintum.inference.cli import build_parser as predict_parser
from braintum.inference.explain_cli import build_parser as explain_parser


@pytest.fixture
def show(tmp_path):
    return Demo(tmp_path / "out", None, fold=1, epochs=2, iterations=3, spacing=2.6, device="cpu", num_slices=9)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo")
    return case_table(predictions_in_folder(write_predictions(root / "predictions"), write_truth(root)))


@pytest.fixture
def images(tmp_path):
    """Channels of each case: dark, with the true mask bright."""
    files = {}
    for name, row in CASES.items():
        image = SimpleITK.GetImageFromArray((10 + 50 * row[2] + np.indices(SHAPE).sum(0) / 20).astype(np.float32))
        image.SetSpacing(SPACING)
        files[name] = [str(tmp_path / f"{name}_0000.nii.gz")]
        SimpleITK.WriteImage(image, files[name][0])
    return files


def test_a_folder_of_somebody_else_is_refused(tmp_path, capsys):
    (tmp_path / "thesis.docx").write_text("years of work")
    assert run_command(demo, ["--out", str(tmp_path)], needs_nnunet=False) == 1
    assert "is not empty and was not written by braintum_demo" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.docx"]


def test_data_that_is_no_data_is_refused_before_anything_is_emptied(tmp_path, capsys):
    out = tmp_path / "out"
    (out / "source").mkdir(parents=True)
    (out / ".braintum_demo").touch()  # an earlier demonstration's
    (out / "source" / "1.mat").touch()
    for data, message in ((out / "source", "which is emptied first"), (tmp_path / "nowhere", "holds no slices")):
        assert run_command(demo, ["--out", str(out), "--data", str(data)], needs_nnunet=False) == 1
        assert message in capsys.readouterr().err
    assert (out / "source" / "1.mat").exists()


def test_a_stage_that_fails_ends_it(tmp_path, capsys, monkeypatch):
    """Its converter finds no slices; nothing after it is tried."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "elsewhere")  # and is what it was after the test
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("braintum_convert", "echo no slices here; exit 4"), ("nnUNetv2_train", "exit 0")):
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "1.mat").touch()
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--data", str(tmp_path / "data"), "--device", "cpu"]
    for _ in range(2):  # its own folder is emptied and filled again
        assert run_command(demo, arguments, needs_nnunet=False) == 1
        printed = capsys.readouterr()
        assert "stage convert failed: braintum_convert ended with exit code 4" in printed.err
        assert f"{out / 'log.txt'}, the last lines:" in printed.err and "no slices here" in printed.err
        assert "what the tools say, in " in printed.out and "no slices here" not in printed.out
    command, said, end = (out / "log.txt").read_text().split("\n", 2)
    assert command.startswith("$ braintum_convert figshare ") and said == "no slices here" and "exit code 4" in end


def test_held_out_cases_are_set_aside(show):
    show.raw.mkdir(parents=True)
    for name, content in (
        ("dataset.json", {"file_ending": ".nii.gz"}),
        ("splits_final.json", [{"train": ["b", "c"], "val": ["a"]}, {"train": ["a"], "val": ["b", "c"]}]),
    ):
        (show.raw / name).write_text(json.dumps(content))
    for folder, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (show.raw / folder).mkdir()
        for case in "abc":
            (show.raw / folder / f"{case}{ending}").touch()
    assert copy_held_out_cases(show) == 2
    assert sorted(file.name for file in show.images.iterdir()) == ["b_0000.nii.gz", "c_0000.nii.gz"]
    assert sorted(file.name for file in show.labels.iterdir()) == ["b.nii.gz", "c.nii.gz"]
    with pytest.raises(ValueError, match="--fold 2: the data has the folds 0 to 1"):
        copy_held_out_cases(dataclasses.replace(show, fold=2))


def test_finished_epochs_are_those_with_a_time(tmp_path):
    assert finished_epochs(tmp_path / "fold_0") == 0
    log = tmp_path / "training_log_2026_1_2_03_04_05.txt"
    log.write_text("2026: Epoch 0\n2026: Epoch time: 1.2 s\n2026: \n2026: Epoch 1\n", encoding="utf-8")
    assert finished_epochs(tmp_path) == 1


@pytest.mark.slow
def test_headlines_are_those_of_the_evaluation(show, table):
    text = headlines(show, summarise_table(table, 200))
    assert text.startswith("Fold 1, which training has not seen: 6 slices of 4 patients; no intervals, which need 5")
    rows = [re.split(r"  +", line) for line in text.splitlines()[4:]]
    assert [row[0] for row in rows] == [
        *("Dice, tumour", "HD95 (mm), tumour", "accuracy", "macro-F1", "healthy cases with a mask")
    ]
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["Dice, tumour"] == [f"{np.mean(list(DICE.values())):.3f}", "–", "4"]
    assert by_name["HD95 (mm), tumour"][2] == "3", "a missed tumour has none"
    assert by_name["accuracy"] == [f"{5 / 6:.3f}", "–", "6"]
    assert by_name["healthy cases with a mask"] == ["0.500", "–", "2"]


def test_what_to_type_next_is_understood(show, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))  # as make has it, off the PATH
    show = dataclasses.replace(show, out=Path("a folder"))
    lines = what_next(show).splitlines()
    assert lines[0].startswith("Look at a folder/cases.png.")
    export = next(line for line in lines if line.startswith("export "))
    assert "nnUNet_raw=\"$PWD\"/'a folder/nnUNet_raw'" in export
    assert export.endswith(' PATH="$PWD"/.venv/bin:$PATH')
    parsers = {
        "braintum_report": report_parser(),
        "braintum_explain": explain_parser(),
        "braintum_predict": predict_parser(),
    }
    commands = [shlex.split(line) for line in lines if line.startswith("braintum_")]
    assert {command[0] for command in commands} == parsers.keys()
    for name, *arguments in commands:
        args = parsers[name].parse_args(arguments)
        assert (args.d, args.p, args.c) == ("999", "BrainTumLightPlans", "2d")
        assert name == "braintum_report" or (args.i, args.f) == ("a folder/held_out/images", [1])


def test_the_picture_shows_worst_median_and_best(table, images, tmp_path):
    file = tmp_path / "cases.png"
    shown = draw_case_sheet(table, images, file, 1)
    assert shown == ["b1", "b2", "a1"]
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    red, green, blue = np.moveaxis(pixels, -1, 0)
    truth, prediction, wrong_class = green - red > 60, green - blue > 60, (red > 160) & (green < 60)
    thirds = np.array_split(np.arange(pixels.shape[1]), 3)
    assert truth[:, thirds[1]].sum() > 20 * truth[:, thirds[2]].sum() and not truth[:, thirds[0]].any()
    assert prediction[:, thirds[2]].any() and not prediction[:, thirds[0]].any()
    height = np.flatnonzero(wrong_class.any(1)) / len(pixels)
    assert height.min() > 1 / 3 and height.max() < 2 / 3, "one heading is red: that of b2, whose class is wrong"
    assert draw_case_sheet(table, images, file, 2)[0] == "b1"


def test_no_picture_without_tumours(table, images, tmp_path):
    healthy = table.without(dict.fromkeys(DICE, "left out"))
    with pytest.raises(ValueError, match="no case truly shows a tumour"):
        draw_case_sheet(healthy, images, tmp_path / "cases.png")
    assert not (tmp_path / "cases.png").exists()
