"""``braintum_report`` of several models: figures side by side, recomputed, and the page as a browser would take it."""

import shutil

import numpy as np
import pytest
from evaluation_data import write_mask
from report_data import CASES, NAMES, Page, write_model
from sklearn import metrics

from braintum.commands.command import run_command
from braintum.evaluation.report.curves import micro_average_roc
from braintum.evaluation.report_cli import report

OTHER = "nnUNetTrainerUNet__BrainTumPlans__2d"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A model of both tasks, and one of masks alone that is perfect but for one case."""
    root = tmp_path_factory.mktemp("comparison")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(root / name))
        model = write_model(root)
        other = model.with_name(OTHER)
        shutil.copytree(model, other)
        for fold in (0, 1):
            validation = other / f"fold_{fold}" / "validation"
            (validation / "classification.json").unlink()
            for file in validation.glob("*.nii.gz"):
                if (case := file.name.removesuffix(".nii.gz")) != "c01":
                    write_mask(file, CASES[case][2])
        yield model, other


@pytest.fixture(scope="module")
def page(models):
    output = models[0].parent / "comparison.html"
    arguments = ["-m", *map(str, models), "--cases", "2", "--resamples", "200", "-np", "1"]
    assert report(arguments) == 0 and output.is_file()
    return Page(output.read_text(encoding="utf-8"))


def values(page: Page, name: str) -> str:
    (text,) = page.figures[name]
    return text


@pytest.mark.slow
def test_figures_are_what_they_say(page):
    tumour = [name for name in NAMES if CASES[name][2].any()]
    truth, masks = (np.stack([CASES[name][k] for name in tumour]) > 0 for k in (2, 3))
    common, union = ((truth & masks).sum((1, 2)), (truth | masks).sum((1, 2)))
    assert float(values(page, "MultiTask.masks.tumour.Jaccard_distance")) == pytest.approx(
        (1 - common / union).mean(), abs=6e-4
    )
    assert float(values(page, "MultiTask.masks.tumour.accuracy")) == pytest.approx((truth == masks).mean(), abs=6e-4)
    dice = 2 * common / (truth.sum((1, 2)) + masks.sum((1, 2)))
    of_folds = [dice[[int(CASES[name][1][1:]) % 2 == fold for name in tumour]].mean() for fold in (0, 1)]
    mean, spread = values(page, "MultiTask.folds.mean.Dice").split(" ± ")
    assert float(mean) == pytest.approx(np.mean(of_folds), abs=6e-4)
    assert float(spread) == pytest.approx(np.std(of_folds, ddof=1), abs=6e-4)
    assert float(values(page, "MultiTask.folds.1.Dice")) == pytest.approx(of_folds[1], abs=6e-4)
    wrong = dice[tumour.index("c01")]
    assert float(values(page, "UNet.masks.tumour.Dice")) == pytest.approx(1 - (1 - wrong) / len(tumour), abs=6e-4)
    assert "UNet.classes.accuracy" not in page.figures and "MultiTask.classes.accuracy" in page.figures


@pytest.mark.slow
def test_page(page):
    assert page.problems == []
    assert "Best by joint: MultiTask" in page.text and "Differences of Dice" in page.text
    assert "MultiTask − UNet" in page.text and "Where the models differ most" in page.text
    panels = [attributes["aria-label"] for attributes in page.all("svg") if " by " in attributes.get("aria-label", "")]
    cases = {label.partition(" by ")[0] for label in panels}
    assert len(panels) == 2 * len(cases) and {"c02", "c03"} <= cases  # each by both models, the most different ones too
    assert len([image for image in page.all("image") if image["href"].startswith("data:image/webp")]) == len(panels)
    identifiers = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    charts = [attributes["aria-label"] for attributes in page.all("svg") if attributes.get("class") == "chart"]
    assert any(label.startswith("Micro-average ROC") for label in charts)
    assert any(label.startswith("Figures of the models. Dice: MultiTask ") for label in charts)
    assert any(label.startswith("validation loss over the epochs of training, of MultiTask, UNet") for label in charts)


@pytest.mark.slow
def test_wrong_arguments(models, tmp_path, capsys):
    def fails(*arguments: object) -> str:
        assert run_command(report, [str(argument) for argument in arguments]) == 1
        return capsys.readouterr().err

    assert "a model is named twice" in fails("-m", models[0], models[0])
    assert "--audit: of one model only" in fails("-m", *models, "--audit", tmp_path / "audit.json")
    assert "no trained model at" in fails("-m", models[0], tmp_path / "absent")
    missing = models[0].with_name("nnUNetTrainerAttentionUNet__BrainTumPlans__2d")
    shutil.copytree(models[1], missing)
    next((missing / "fold_0" / "validation").glob("*.nii.gz")).unlink()
    shutil.rmtree(missing / "crossval_results_folds_0_1", ignore_errors=True)
    assert "different cases" in fails("-m", models[1], missing, "--resamples", 200, "-np", 1)


def test_micro_average_is_scikit_learns():
    generator = np.random.default_rng(0)
    labels, probabilities = generator.integers(0, 3, 40), generator.dirichlet(np.ones(3), 40)
    curve = micro_average_roc(labels, probabilities)
    expected = metrics.roc_auc_score(np.eye(3)[labels], probabilities, average="micro")
    assert curve.figure == pytest.approx(expected)
