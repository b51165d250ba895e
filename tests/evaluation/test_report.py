"""``braintum_report``: every figure of the page recomputed, and the page itself as a browser would take it."""

import dataclasses
import json
import os
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import SimpleITK
import torch
from evaluation_data import SHAPE
from report_data import (
    AUDIT,
    CALIBRATION,
    CASES,
    DATASET,
    EXPLAINED,
    HOSTILE,
    MODEL,
    NAMES,
    STRESS,
    Page,
    write_checkpoint,
    write_image,
    write_model,
)
from report_expectations import expected_figures
from sklearn import metrics

from braintum.commands.command import run_command
from braintum.evaluation.report import figures
from braintum.evaluation.report import page as page_module
from braintum.evaluation.report.cases import failures, ranked_cases
from braintum.evaluation.report.curves import dice_by_size, precision_recall_curves, risk_coverage_of, roc_curves
from braintum.evaluation.report.images import case_picture
from braintum.evaluation.report.page import render_report
from braintum.evaluation.report.report import gather_report, read_explanations
from braintum.evaluation.report.training_log import read_training_log
from braintum.evaluation.report_cli import report

pytestmark = pytest.mark.slow  # all share a model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(root / name))
        yield root


@pytest.fixture(scope="module")
def gathered(folders):
    """A report with all its parts."""
    model = write_model(folders)
    for name, content in (("calibration", CALIBRATION), ("stress", STRESS)):  # found without being named
        (model / name).mkdir()
        (model / name / f"{name}.json").write_text(json.dumps(content))
    (folders / "audit.json").write_text(json.dumps(AUDIT))
    explanations = folders / "explanations"
    explanations.mkdir()
    (explanations / "explanations.json").write_text(json.dumps({"cases": [EXPLAINED]}))
    write_image(explanations / "c03.nii.gz", np.indices(SHAPE).sum(0))
    return gather_report(
        model, audit_file=folders / "audit.json", explanation_folders=[explanations], num_resamples=200
    )


@pytest.fixture(scope="module")
def html(gathered, folders):
    return render_report(gathered, folders / "report.html", 2, "braintum_report -d '<42>'")


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


@pytest.mark.slow
def test_every_figure_is_what_it_says(page):
    expected = expected_figures()
    bounds = {name for name in page.figures if name.endswith((".low", ".high"))} - expected.keys()
    shown = {name: values for name, values in page.figures.items() if name not in bounds}
    cards = {name for name in expected if name.startswith("case.")}
    assert {name for name in shown if name not in expected} == set(), "figures that nobody has checked"
    assert {name for name in expected if name not in shown} <= cards, "figures that are missing"
    num_cards = sum(attributes.get("class") == "card" for attributes in page.all("article"))
    assert num_cards and len(cards & shown.keys()) == 4 * num_cards
    wrong = {name: (values, expected[name]) for name, values in shown.items() if values != {expected[name]}}
    assert wrong == {}


def test_intervals_are_those_of_the_evaluation(page, gathered):
    summary = json.loads((gathered.evaluation_folder / "summary.json").read_text())["braintum"]
    paths = {
        "headline.dice": summary["dice"],
        "headline.classification.accuracy": summary["classification"]["accuracy"],
        "classification.macro_f1": summary["classification"]["macro_f1"],
        "joint.both_correct": summary["joint"]["both_correct"],
        "segmentation.tumour.all.Dice": summary["segmentation"]["tumour"]["figures"]["all"]["Dice"],
    }
    for name, values in paths.items():
        assert page.figures[f"{name}.low"] == {f"{values['low']:.3f}"}
        assert page.figures[f"{name}.high"] == {f"{values['high']:.3f}"}
    # a bootstrap over patients of a few lines comes near
    rng, patients = np.random.default_rng(1), sorted({CASES[name][1] for name in NAMES})
    dice = dict(zip(gathered.table.cases, gathered.table.dice, strict=True))
    means = []
    for _ in range(2000):
        drawn = rng.choice(patients, len(patients))
        means.append(np.nanmean([dice[name] for p in drawn for name in NAMES if CASES[name][1] == p]))
    low, high = np.percentile(means, (2.5, 97.5))
    assert float(*page.figures["headline.dice.low"]) == pytest.approx(low, abs=0.08)
    assert float(*page.figures["headline.dice.high"]) == pytest.approx(high, abs=0.08)


def test_structure(page):
    assert page.problems == []
    assert page.all("html") == [{"lang": "en"}]
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(identifiers)) == len(identifiers)
    links = [attributes[key] for _, attributes in page.tags for key in ("href", "src") if key in attributes]
    inner = {link[1:] for link in links if link.startswith("#")}
    assert inner and inner <= set(identifiers)
    referred = re.findall(r"url\(#([^)]+)\)", " ".join(str(attributes) for _, attributes in page.tags))
    assert set(referred) <= set(identifiers)
    labelled = {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a}
    assert labelled <= set(identifiers)


def test_nothing_is_fetched(html, page, folders):
    assert page.all("script") == [] and page.all("iframe") == []
    assert [a for _, a in page.tags if any(key.startswith("on") for key in a)] == []
    for _, attributes in page.tags:
        assert not any("http" in value or value.startswith("//") for value in attributes.values() if value)
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    links = [a[key] for _, a in page.tags for key in ("href", "src") if key in a and not a[key].startswith("#")]
    files = [link for link in links if not link.startswith("data:")]
    assert len(files) > 4
    assert all((folders / unquote(link)).is_file() for link in files)


def test_pictures_and_tables_speak(page):
    for attributes in page.all("svg"):
        assert attributes.get("aria-hidden") == "true" or (attributes["role"] == "img" and attributes["aria-label"])
    assert all(attributes.get("alt") for attributes in page.all("img"))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))
    charts = {
        attributes["aria-label"].split(":")[0].split(",")[0] for attributes in page.all("svg") if "role" in attributes
    }
    for start in (
        "loss over the epochs",
        "ROC curves",
        "Precision-recall",
        "Reliability",
        "Risk-coverage",
        "Dice of each",
    ):
        assert any(label.startswith(start) for label in charts), start


def test_strangers_text_stays_text(html, page, folders):
    assert HOSTILE in page.text and "<script" not in html and "alert(1)<b>" not in html
    for text in (
        "menin<g>ioma",
        "gli$oma_1&",
        "32 x 32 because <it> fits",
        "few <cases>",
        "<b>note",
        "slowly varying <gain>",
    ):
        assert text in page.text
    assert "braintum_report -d '<42>'" in page.text
    assert "secret-host" not in html and str(folders) not in html.replace("braintum_evaluate", "")


def test_what_was_trained(page, gathered):
    text = page.text
    for part in ("nnUNetTrainerMultiTask on Dataset042_Tiny", "BrainTumPlanner (BrainTumPlans)", "32 × 32", "T1ce"):
        assert part in text
    assert "nnUNetv2_train 42 2d 1 -p BrainTumPlans -tr nnUNetTrainerMultiTask" in text
    rows = dict(gathered.facts.model_rows())
    assert rows["Epochs"] == "2" and rows["Iterations an epoch"] == "16" and rows["Time of training"] == "30 s"
    assert rows["Training cases"] == "4 (fold 0), 6 (fold 1)"
    assert "Something crosses a split" in text


def test_parts_that_are_missing(folders, tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    model = write_model(tmp_path, with_classes=False)
    (tmp_path / "nnUNet_raw" / DATASET / "dataset.json").unlink()
    text = render_report(gather_report(model, num_resamples=100), tmp_path / "report.html")
    page = Page(text)
    assert page.problems == []
    assert 'id="classes"' not in text and 'id="confidence"' not in text and page.all("image") == []
    arguments = "-d 42 -p BrainTumPlans -tr nnUNetTrainerMultiTask -c 2d"
    for sentence in (
        "braintum_audit 42 -o FOLDER",
        f"braintum_evaluate --stress {arguments}",
        f"braintum_explain -i IMAGES -o FOLDER {arguments}",
        "hold no checkpoint",
        "the images are not in nnUNet_raw/Dataset042_Tiny",
    ):
        assert sentence in page.text
    shown = float(*page.figures["headline.dice"])
    assert f"{shown:.3f}" == expected_figures()["headline.dice"]


@pytest.mark.slow
def test_not_calibrated(gathered, tmp_path):
    page = Page(render_report(dataclasses.replace(gathered, calibration=None), tmp_path / "report.html", 1))
    assert "braintum_calibrate -d 42 -p BrainTumPlans -tr nnUNetTrainerMultiTask -c 2d" in page.text
    assert page.problems == [] and "calibration.temperature" not in page.figures


def test_cases_that_are_shown(gathered):
    by_key = {group.key: [gathered.table.cases[row] for row in group.rows] for group in ranked_cases(gathered.table, 2)}
    assert by_key["best"][0] == "c00" and by_key["worst"][0] == "c02"
    shown = [case for cases in by_key.values() for case in cases]
    assert len(set(shown)) == len(shown) == 6 and not {"c05", "c06"} & set(shown)
    failed = {group.key: [gathered.table.cases[row] for row in group.rows] for group in failures(gathered.table)}
    assert failed == {
        "missed": ["c02"], "false-masks": ["c05"], "wrong-class": ["c03", HOSTILE], "contradictions": ["c02", "c05"]
    }  # fmt: skip


@pytest.mark.slow
def test_of_many_failures_the_first_are_listed(gathered, tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "MAX_FAILURES", 1)
    page = Page(render_report(gathered, tmp_path / "report.html", 1))
    assert page.problems == [] and page.figures["failures.wrong-class"] == {"2"}
    assert "Wrong classes, the first 1 of 2; all cases are in cases.csv" in page.text
    assert "Missed tumours, all 1" in page.text


def test_charts_of_many_cases_show_some_of_each_class():
    random = np.random.default_rng(0)
    dice, volume = random.random(5000), random.uniform(1, 100, 5000)
    classes = ["a"] * 4900 + ["b"] * 100
    for chart in (
        figures.dice_by_class("x", {"a": dice[:4900], "b": dice[4900:]}),
        figures.dice_against_size("y", [], volume, dice, classes, "mm"),
    ):
        # a few more are dots of a legend
        assert 1100 <= chart.count("<use") <= 1130 and len(chart) < 300_000
    shown = dice[figures._shown(dice)]
    assert len(shown) == 1000 and (shown[0], shown[-1]) == (dice.min(), dice.max())
    assert np.median(shown) == pytest.approx(np.median(dice), abs=0.01)


@pytest.mark.slow
def test_evaluation_is_read_not_repeated(gathered, folders, caplog):
    model = folders / "nnUNet_results" / DATASET / MODEL
    file = model / "crossval_results_folds_0_1" / "summary.json"
    written = file.stat().st_mtime_ns
    gather_report(model)
    assert file.stat().st_mtime_ns == written and "evaluating again" not in caplog.text
    with pytest.raises(ValueError, match="evaluates 10 cases, the folds hold"):
        gather_report(model, [0], evaluation_folder=file.parent)
    mask = model / "fold_1" / "validation" / "c02.nii.gz"
    os.utime(mask, ns=(written + 10**9, written + 10**9))
    gather_report(model, num_resamples=100)
    assert "evaluating again" in caplog.text and file.stat().st_mtime_ns > written
    os.utime(mask, ns=(written - 10**9, written - 10**9))


@pytest.mark.slow
def test_command(gathered, folders, capsys):
    model = folders / "nnUNet_results" / DATASET / MODEL
    arguments = ["-d", "42", "-c", "2d", "--cases", "1", "-o", str(folders / "deep" / "page.html"), "-np", "1"]
    assert run_command(report, arguments, needs_nnunet=False) == 0
    assert "written to" in capsys.readouterr().out
    page = Page((folders / "deep" / "page.html").read_text(encoding="utf-8"))
    assert page.problems == [] and page.figures["headline.dice"]
    no_evaluation = folders / "no_evaluation"
    no_evaluation.mkdir()
    (no_evaluation / "summary.json").write_text("{}")
    for wrong, message in (
        (["-d", "42"], "which configuration"),
        (["-m", str(model), "-d", "42"], "which model"),
        (["-m", str(model / "nowhere")], "no trained model at"),
        (["-m", str(model), "--cases", "0"], "at least 1"),
        (["-m", str(model), "--audit", str(model / "plans.json")], "is no audit"),
        (["-m", str(model), "--stress", str(model / "plans.json")], "lacks clean, corruptions"),
        (["-m", str(model), "--calibration", str(model / "nowhere.json")], "braintum_calibrate writes it"),
        (["-m", str(model), "--explanations", str(model)], "braintum_explain writes it"),
        (["-m", str(model), "--evaluation", str(no_evaluation)], "is no evaluation by"),
    ):
        assert run_command(report, wrong, needs_nnunet=False) == 1
        assert message in capsys.readouterr().err


def test_damaged_explanations(tmp_path):
    (tmp_path / "explanations.json").write_text('{"cases": [{"case": "a"}]}')
    with pytest.raises(ValueError, match="was not written by braintum_explain"):
        read_explanations([tmp_path])


def test_training_log_runs_no_code(tmp_path):
    class Harmful:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    assert read_training_log(tmp_path) is None
    write_checkpoint(tmp_path / "checkpoint_best.pth")
    log = read_training_log(tmp_path)
    assert log.num_epochs == 2 and log.seconds == 15
    np.testing.assert_allclose(log.curves["val_losses"], [1.2, 0.8])
    assert "dice_per_class_or_region" not in log.curves
    torch.save({"logging": Harmful()}, tmp_path / "checkpoint_final.pth")
    with pytest.raises(ValueError, match="checkpoint_final.pth is damaged, is no checkpoint of nnU-Net, or holds code"):
        read_training_log(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_curves_by_thresholds():
    rng = np.random.default_rng(3)
    labels, scores = rng.integers(0, 3, 40), rng.dirichlet(np.ones(3), 40)
    for index, (roc, pr) in enumerate(
        zip(roc_curves(labels, scores, "abc"), precision_recall_curves(labels, scores, "abc"), strict=True)
    ):
        positive, score = labels == index, scores[:, index]
        called = [score >= t for t in np.unique(score)]
        rates = {(round(float(c[~positive].mean()), 9), round(float(c[positive].mean()), 9)) for c in called}
        assert {(round(float(x), 9), round(float(y), 9)) for x, y in zip(roc.x, roc.y, strict=True)} <= rates | {
            (0.0, 0.0)
        }
        pairs = {(round(float(c[positive].mean()), 9), round(float(positive[c].mean()), 9)) for c in called}
        assert {(round(float(x), 9), round(float(y), 9)) for x, y in zip(pr.x, pr.y, strict=True)} == pairs | {
            (0.0, 1.0)
        }
        wins = (score[positive][:, None] > score[~positive]).mean()
        assert roc.figure == pytest.approx(wins)
        assert pr.figure == pytest.approx(metrics.average_precision_score(positive, score))
    risk = risk_coverage_of(labels, scores)
    confidence, wrong = scores.max(1), scores.argmax(1) != labels
    for coverage, value in zip(risk.x, risk.y, strict=True):
        answered = np.argsort(-confidence)[: round(coverage * 40)]
        assert value == pytest.approx(wrong[answered].mean())
    assert roc_curves(np.zeros(3, int), np.full((3, 2), 0.5), "ab") == []


def test_dice_by_size_leaves_out_what_is_undefined():
    volume, dice = np.array([5.0, 1, 3, 2, 4, 0, np.nan]), np.array([0.5, 0.1, 0.3, 0.2, np.nan, 0.9, 0.9])
    small, large = dice_by_size(volume, dice, list("abcdefg"), groups=2)
    assert (small.low, small.high, small.count, large.low, large.high) == (1, 2, 2, 3, 5)
    assert small.dice.value == pytest.approx(0.15) and large.median == pytest.approx(0.4)


@pytest.mark.parametrize("turned", (False, True))
def test_picture_of_a_volume(gathered, tmp_path, turned):
    """The slice with most tumour, anterior up and the patient's right on the left, whatever way the file is stored."""
    truth = np.zeros((4, 30, 20), np.uint8)
    truth[1, 4:10, 3:7] = 1
    truth[2, 4:16, 3:7] = 1
    files = {}
    elsewhere = np.zeros_like(truth)
    elsewhere[0] = 1  # a large false mask does not draw the eye away
    for name, array in (("image", truth * 50.0), ("truth", truth), ("prediction", elsewhere)):
        array = array[:, ::-1, ::-1].copy() if turned else array
        image = SimpleITK.GetImageFromArray(array)
        image.SetSpacing((1.0, 2.0, 3.0))
        image.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1) if turned else (1, 0, 0, 0, 1, 0, 0, 0, 1))
        files[name] = tmp_path / f"{name}.nii.gz"
        SimpleITK.WriteImage(image, str(files[name]))
    predictions = dataclasses.replace(
        gathered.table.predictions, masks={"v": files["prediction"]}, references={"v": files["truth"]}
    )
    table = dataclasses.replace(gathered.table, predictions=predictions)
    picture = case_picture(table, 0, [str(files["image"])], files["image"])
    channel = predictions.dataset_json["channel_names"]["0"]
    assert picture.where == f"{channel}, axial, slice 3 of 4" and picture.prediction == ""
    assert (picture.width, picture.height) == (20, 60)  # square pixels
    assert picture.explanation.startswith("data:image/webp;base64,")
    points = np.array([[float(v) for v in pair.split()] for pair in re.findall(r"[\d.]+ [\d.]+", picture.truth)])
    np.testing.assert_allclose(points.min(0), (3, 8), atol=1.1)
    np.testing.assert_allclose(points.max(0), (7, 32), atol=1.1)
    left, top, width, height = picture.zoom
    assert left <= 3 and top <= 8 and left + width >= 7 and top + height >= 32
    with pytest.raises(ValueError, match="has shape"):
        write_image(tmp_path / "other.nii.gz", np.zeros((5, 5)))
        case_picture(table, 0, [str(files["image"])], tmp_path / "other.nii.gz")
