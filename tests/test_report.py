"""``braintum_report``: every figure of the page recomputed, and the page itself as a browser would take it."""

import dataclasses
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import SimpleITK
import torch
from evaluation_data import SHAPE, SPACING, dataset_json, square, write_mask
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist
from sklearn import metrics

from braintum_commands.command import run_command
from dataset_conversion.cases import Case, write_cases
from evaluation.report import gather_report, read_explanations
from evaluation.report_cases import failures, ranked_cases
from evaluation.report_cli import report
from evaluation.report_curves import dice_by_size, precision_recall_curves, risk_coverage_of, roc_curves
from evaluation.report_images import case_picture
from evaluation.report_page import render_report
from evaluation.training_log import read_training_log

HOSTILE = 'x"><script>alert(1)<b>'
CLASSES = ("menin<g>ioma", "gli$oma_1&", "no_tumor")
HEALTHY = CLASSES.index("no_tumor")
DATASET, MODEL = "Dataset042_Tiny", "nnUNetTrainerMultiTask__BrainTumPlans__2d"
PIXEL = SPACING[0] * SPACING[1]
# case: (class, patient, true mask, predicted mask, class probabilities)
CASES = {
    "c00": (0, "p0", square(2, 2, 4), square(2, 2, 4), (0.8, 0.1, 0.1)),
    "c01": (0, "p0", square(2, 2, 5), square(2, 4, 5), (0.6, 0.3, 0.1)),
    "c02": (1, "p1", square(5, 5, 6), square(5, 5, 0), (0.2, 0.7, 0.1)),  # missed
    "c03": (1, "p1", square(5, 5, 7), square(5, 5, 3), (0.5, 0.4, 0.1)),  # wrong class
    HOSTILE: (1, "p2", square(3, 3, 8), square(4, 3, 8), (0.45, 0.31, 0.24)),  # wrong class
    "c05": (2, "p3", square(0, 0, 0), square(1, 1, 2), (0.1, 0.2, 0.7)),  # false mask, and a contradiction
    "c06": (2, "p4", square(0, 0, 0), square(0, 0, 0), (0.1, 0.15, 0.75)),
    "c07": (0, "p5", square(6, 8, 5), square(7, 8, 5), (0.9, 0.06, 0.04)),
    "c08": (1, "p6", square(1, 9, 9), square(2, 9, 9), (0.15, 0.8, 0.05)),
    "c09": (None, "p8", square(8, 8, 6), square(8, 8, 5), (0.3, 0.6, 0.1)),  # class unknown
}
NAMES = list(sorted(CASES))
FOLD = {name: int(CASES[name][1][1:]) % 2 for name in NAMES}
CALIBRATION = {
    "temperature": 0.8, "temperature_low": None, "temperature_high": None, "folds": [0, 1], "num_cases": 9,
    "before": {"ece": 0.31, "nll": 0.62, "brier": 0.41},
    "after": {"ece": 0.21, "ece_low": 0.11, "ece_high": 0.32, "nll": 0.52, "brier": 0.37},
    "reliability": {"before": [], "after": [{"confidence": 0.5, "accuracy": 0.6, "count": 9}]},
    "risk_coverage": [{"coverage": 0.5, "risk": 0.0, "threshold": 0.7}, {"coverage": 1.0, "risk": 0.2, "threshold": 0}],
    "aurc": 0.07, "target_accuracy": 0.9, "threshold": 0.7, "coverage_at_threshold": 0.5, "warnings": ["few <cases>"],
}  # fmt: skip
STRESS = {
    "num_cases": 9,
    "metrics": ["Dice", "accuracy"],
    "clean": {"Dice": 0.66, "Dice_low": 0.5, "Dice_high": 0.8, "accuracy": None},
    "corruptions": {
        "bias_field": {
            "description": "slowly varying <gain>", "severities": [1, 2, 3, 4, 5], "Dice": [0.6, 0.5, 0.4, 0.3, 0.2],
            "Dice_low": [None] * 5, "Dice_high": [None] * 5, "accuracy": [None] * 5,
        }
    },
}  # fmt: skip
AUDIT = {
    "format": "braintum-audit", "leaks": True, "images": 77, "notes": ["<b>note"],
    "pairs": [{}, {}, {}], "groups": [["a", "b"]], "image_problems": {"a": "broken"}, "mask_problems": {},
    "splits": [
        {
            "name": "fold 0", "largest_difference_percentage_points": 3.25,
            "crossings": [{"what": "patient"}, {"what": "case"}, {"what": "patient"}],
        }
    ],
}  # fmt: skip
EXPLAINED = {"case": "c03", "class": CLASSES[0], "method": "gradcam", "true_mask_share": 0.4, "true_mask_area": 0.1}


def write_image(file: Path, pixels: np.ndarray) -> None:
    image = SimpleITK.GetImageFromArray(pixels.astype(np.float32))
    image.SetSpacing(SPACING)
    SimpleITK.WriteImage(image, str(file))


def write_model(root: Path, with_classes: bool = True) -> Path:
    """nnU-Net's folders after the training of two folds; returns the model's."""
    results, raw, preprocessed = (root / f"nnUNet_{name}" / DATASET for name in ("results", "raw", "preprocessed"))
    for folder in (raw / "imagesTr", preprocessed / "gt_segmentations"):
        folder.mkdir(parents=True)
    description = dataset_json(classification={"class_names": list(CLASSES), "negative_class": "no_tumor"})
    if not with_classes:
        del description["classification"]
    rng = np.random.default_rng(0)
    for name in NAMES:
        write_mask(preprocessed / "gt_segmentations" / f"{name}.nii.gz", CASES[name][2])
        if with_classes:
            write_image(raw / "imagesTr" / f"{name}_0000.nii.gz", 100 * CASES[name][2] + rng.random(SHAPE))
    (raw / "dataset.json").write_text(json.dumps(description))
    if with_classes:
        rows = [Case(n, "" if (i := CASES[n][0]) is None else CLASSES[i], patient=CASES[n][1]) for n in NAMES]
        write_cases(preprocessed / "cases.csv", rows)
    splits = [{"train": [n for n in NAMES if FOLD[n] != f], "val": [n for n in NAMES if FOLD[n] == f]} for f in (0, 1)]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    model = results / MODEL
    for fold in (0, 1):
        validation = model / f"fold_{fold}" / "validation"
        validation.mkdir(parents=True)
        held_out = [name for name in NAMES if FOLD[name] == fold]
        for name in held_out:
            write_mask(validation / f"{name}.nii.gz", CASES[name][3])
        if with_classes:
            by_case = {name: class_result(CASES[name][4]) for name in held_out}
            (validation / "classification.json").write_text(json.dumps({"cases": by_case}))
            write_checkpoint(model / f"fold_{fold}" / "checkpoint_final.pth")
            debug = {"num_iterations_per_epoch": "16", "hostname": "secret-host", "torch_version": "2.0"}
            (model / f"fold_{fold}" / "debug.json").write_text(json.dumps(debug))
        (validation / "summary.json").write_text("{}")
    (model / "dataset.json").write_text(json.dumps(description))
    plans = {
        "dataset_name": DATASET,
        "plans_name": "BrainTumPlans",
        "image_reader_writer": "SimpleITKIO",
        "experiment_planner_used": "BrainTumPlanner",
        "original_median_shape_after_transp": [1, *SHAPE],
        "configurations": {"2d": {"patch_size": [32, 32], "spacing": [2.0, 0.5], "batch_size": 4}},
        "braintum_decisions": {"2d": {"patch": "32 x 32 because <it> fits"}},
    }
    (model / "plans.json").write_text(json.dumps(plans))
    return model


def class_result(probabilities):
    return {
        "predicted_class": CLASSES[int(np.argmax(probabilities))],
        "probabilities": dict(zip(CLASSES, probabilities, strict=True)),
    }


def write_checkpoint(file: Path) -> None:
    logging = {
        "train_losses": [1.5, 0.5], "val_losses": [np.float64(1.2), 0.8], "ema_fg_dice": [np.float32(0.1), 0.4],
        "class_macro_f1": [float("nan"), 0.6], "dice_per_class_or_region": [[0.1], [0.4]],
        "epoch_start_timestamps": [10.0, 20.0], "epoch_end_timestamps": [18.0, 27.0],
    }  # fmt: skip
    torch.save({"logging": logging, "network_weights": {"w": torch.zeros(3)}}, file)


class Page(HTMLParser):
    """What a browser would make of a page, with every fault in its structure."""

    VOID = {"meta", "link", "br", "img", "input"}

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.problems: list[str] = []
        self.figures: dict[str, set[str]] = {}
        self.texts: list[str] = []
        self._reading: list[tuple[str, int]] = []
        self.feed(text)
        self.close()
        self.problems += [f"<{tag}> is not closed" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in self.VOID:
            self.open.append(tag)
            if name := dict(attributes).get("data-figure"):
                self.figures.setdefault(name, set())
                self._reading.append((name, len(self.open)))

    def handle_startendtag(self, tag, attributes):
        if len(dict(attributes)) != len(attributes):
            self.problems.append(f"<{tag}> has an attribute twice")
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> at line {self.getpos()[0]}, open: {self.open[-3:]}")
        elif self._reading and self._reading[-1][1] == len(self.open):
            self._reading.pop()
        if tag in self.open:
            del self.open[len(self.open) - 1 - self.open[::-1].index(tag) :]

    def handle_data(self, text):
        self.texts.append(text)
        if self._reading:
            self.figures[self._reading[-1][0]].add(text.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


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


def expected_figures() -> dict[str, str]:
    """Every figure of the page, from the masks and probabilities of this module."""
    found: dict[str, float | str] = {}
    truth, masks = (np.stack([CASES[name][k] for name in NAMES]) > 0 for k in (2, 3))
    labels = np.array([-1 if CASES[name][0] is None else CASES[name][0] for name in NAMES])
    probabilities = np.array([CASES[name][4] for name in NAMES])
    predicted, known = probabilities.argmax(1), labels >= 0
    fold = np.array([FOLD[name] for name in NAMES])
    patients = np.array([CASES[name][1] for name in NAMES])
    tp, n_true, n_pred = (
        (a & b).sum((1, 2)).astype(float) for a, b in ((truth, masks), (truth, truth), (masks, masks))
    )
    tumour, marked = n_true > 0, n_pred > 0
    dice = np.where(tumour, 2 * tp / np.maximum(n_true + n_pred, 1), np.nan)

    def mean(values, chosen):
        return float(np.nanmean(np.where(np.isfinite(values), values, np.nan)[chosen]))

    with np.errstate(invalid="ignore", divide="ignore"):
        distances = np.array([surface_distances(a, b) for a, b in zip(truth, masks, strict=True)])
        mask_figures = {
            "Dice": dice, "IoU": tp / (n_true + n_pred - tp), "HD95": distances[:, 0], "ASSD": distances[:, 1],
            "precision": tp / n_pred, "recall": tp / n_true, "relative_volume_error": (n_pred - n_true) / n_true,
            "lesion_recall": (tp > 0).astype(float),  # one square a case
        }  # fmt: skip
    groups = {"all": tumour} | {name: tumour & (labels == k) for k, name in enumerate(CLASSES)}
    for group, members in groups.items():
        if members.any():
            found |= {f"segmentation.tumour.{group}.{key}": mean(v, members) for key, v in mask_figures.items()}
    found["headline.dice"] = mean(dice, tumour)

    def class_figures(y, scores):
        guess = scores.argmax(1)
        one_hot = np.eye(3)[y]
        confidence, right = scores.max(1), guess == y
        bins = np.floor(confidence * 15).astype(int)
        ece = sum((bins == b).mean() * abs(confidence[bins == b].mean() - right[bins == b].mean()) for b in set(bins))
        return {
            "accuracy": metrics.accuracy_score(y, guess),
            "balanced_accuracy": metrics.balanced_accuracy_score(y, guess),
            "macro_f1": metrics.f1_score(y, guess, average="macro"),
            "macro_auc": metrics.roc_auc_score(one_hot, scores, average="macro"),
            "macro_average_precision": metrics.average_precision_score(one_hot, scores, average="macro"),
            "brier_score": ((scores - one_hot) ** 2).sum(1).mean(),
            "calibration_error": ece,
            "majority_rate": np.bincount(y).max() / len(y),
        }

    y, scores = labels[known], probabilities[known]
    overall = class_figures(y, scores)
    found |= {f"classification.{name}": value for name, value in overall.items()}
    found |= {f"headline.classification.{name}": overall[name] for name in ("accuracy", "macro_f1", "macro_auc")}
    report_of_class = metrics.classification_report(y, scores.argmax(1), output_dict=True, zero_division=0)
    matrix = metrics.confusion_matrix(y, scores.argmax(1))
    for k, name in enumerate(CLASSES):
        of_class = report_of_class[str(k)]
        per_class = {
            "sensitivity": of_class["recall"], "precision": of_class["precision"], "f1": of_class["f1-score"],
            "specificity": metrics.recall_score(y != k, scores.argmax(1) != k),
            "auc": metrics.roc_auc_score(y == k, scores[:, k]),
            "average_precision": metrics.average_precision_score(y == k, scores[:, k]),
        }  # fmt: skip
        found |= {f"classification.per_class.{name}.{key}": value for key, value in per_class.items()}
        found |= {f"confusion.{k}.{column}": str(matrix[k, column]) for column in range(3)}
        found[f"data.{name}.cases"] = str((labels == k).sum())
        found[f"data.{name}.patients"] = str(len(set(patients[labels == k])))
    found |= {"data.unknown.cases": "1", "data.unknown.patients": "1"}

    healthy = labels == HEALTHY
    contradiction = marked == (predicted == HEALTHY)
    right = (predicted == labels) & np.where(healthy, ~marked, np.nan_to_num(dice) >= 0.5)
    joint = {
        "both_correct": right[known].mean(), "contradictions": contradiction.mean(),
        "false_masks": marked[healthy].mean(), "missed_tumours": (~marked)[tumour].mean(),
    }  # fmt: skip
    found |= {f"joint.{name}": value for name, value in joint.items()}
    found |= {f"headline.joint.{name}": v for name, v in joint.items() if name != "contradictions"}
    wrong = known & (predicted != labels)
    failed = {"missed": tumour & ~marked, "false-masks": healthy & marked, "wrong-class": wrong}
    failed["contradictions"] = contradiction
    found |= {f"failures.{name}": str(members.sum()) for name, members in failed.items()}
    found["failures.cases"] = str(np.any(list(failed.values()), axis=0).sum())

    for f in (0, 1):
        here = known & (fold == f)
        values = class_figures_of_fold = {
            "Dice": mean(dice, tumour & (fold == f)),
            "accuracy": (predicted == labels)[here].mean(),
            "balanced_accuracy": metrics.balanced_accuracy_score(labels[here], predicted[here]),
            "macro_f1": metrics.f1_score(labels[here], predicted[here], average="macro"),
        }
        found |= {f"folds.{f}.{name}": value for name, value in values.items()}
    for name in class_figures_of_fold:
        both = [float(found[f"folds.{f}.{name}"]) for f in (0, 1)]
        found |= {f"folds.value.{name}": np.mean(both), f"folds.sd.{name}": np.std(both, ddof=1)}

    by_patient = {p: patients == p for p in dict.fromkeys(patients)}
    patient_dice = [
        2 * tp[m].sum() / (n_true[m].sum() + n_pred[m].sum()) for m in by_patient.values() if n_true[m].sum()
    ]
    found["patients.Dice.tumour"] = np.mean(patient_dice)
    sure = [m for m in by_patient.values() if known[m].all()]
    of_patients = class_figures(
        np.array([labels[m][0] for m in sure]), np.array([probabilities[m].mean(0) for m in sure])
    )
    found |= {f"patients.classification.{name}": value for name, value in of_patients.items()}
    found |= {f"segmentation.tumour.all.{key}": mean(v, tumour) for key, v in mask_figures.items()}

    order = np.argsort(n_true[tumour], kind="stable")
    for k, part in enumerate(np.array_split(dice[tumour][order], 4)):
        found |= {f"size.{k}.Dice": part.mean(), f"size.{k}.median": np.median(part)}
    confidence, correct = scores.max(1), scores.argmax(1) == y
    bins = np.floor(confidence * 15).astype(int)
    for k, b in enumerate(sorted(set(bins))):
        members = bins == b
        found |= {
            f"reliability.{k}.confidence": confidence[members].mean(),
            f"reliability.{k}.accuracy": correct[members].mean(),
            f"reliability.{k}.count": str(members.sum()),
        }  # fmt: skip
    found["aurc"] = np.mean([(~correct[confidence >= c]).mean() for c in confidence])

    for k, name in enumerate(NAMES):
        found[f"case.{name}.Dice"] = dice[k] if tumour[k] else "–"
        found |= {f"case.{name}.probability.{c}": probabilities[k, i] for i, c in enumerate(CLASSES)}
    found |= {f"calibration.{when}.{key}": CALIBRATION[when][key] for when in ("before", "after") for key in
              ("ece", "nll", "brier")}  # fmt: skip
    found |= {"calibration.after.ece.low": 0.11, "calibration.after.ece.high": 0.32}
    found |= {"calibration.temperature": 0.8, "calibration.threshold": 0.7, "calibration.coverage": 0.5}
    found |= {f"stress.bias_field.Dice.{k}": value for k, value in enumerate((0.6, 0.5, 0.4, 0.3, 0.2))}
    found["stress.clean.Dice"] = 0.66
    found |= {"audit.images": "77", "audit.pairs": "3", "audit.image_problems": "1", "audit.mask_problems": "0"}
    found |= {"explanations.count": "1", "explanations.true_mask_share": 0.4, "explanations.true_mask_area": 0.1}
    return {name: value if isinstance(value, str) else f"{value:.3f}" for name, value in found.items()}


def surface_distances(truth, mask):
    """HD95 and ASSD, by all distances between the border pixels."""
    if not truth.any() or not mask.any():
        return np.nan, np.nan
    first, second = (np.argwhere(m & ~binary_erosion(m)) * SPACING[::-1] for m in (truth, mask))
    distances = cdist(first, second)
    forth, back = distances.min(1), distances.min(0)
    return max(np.percentile(forth, 95), np.percentile(back, 95)), np.concatenate([forth, back]).mean()


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
    for name, array in (("image", truth * 50.0), ("truth", truth), ("prediction", np.zeros_like(truth))):
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
    assert picture.where == "slice 3 of 4" and picture.prediction == ""
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
