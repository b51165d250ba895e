"""A tiny trained model with everything that a report can show, and a reader of the page."""

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import SimpleITK
import torch
from evaluation_data import SHAPE, SPACING, dataset_json, square, write_mask

from braintum.conversion.format.cases import Case, write_cases

HOSTILE = 'x"><script>alert(1)<b>'
CLASSES = ("menin<g>ioma", "gli$oma_1&", "no_tumor")
HEALTHY = CLASSES.index("no_tumor")
DATASET, MODEL = "Dataset042_Tiny", "nnUNetTrainerMultiTask__BrainTumPlans__2d"
# case: (class, patient, true mask, predicted mask, class probabilities)
CASES = {
    "c00": (0, "p0", square(2, 2, 4), square(2, 2, 4), (0.8, 0.1, 0.1)),
    "c01": (0, "p0", square(2, 2, 5), square(2, 4, 5), (0.6, 0.3, 0.1)),
    "c02": (1, "p1", square(5, 5, 6), square(5, 5, 0), (0.2, 0.7, 0.1)),  # missed
    "c03": (1, "p1", square(5, 5, 7), square(5, 5, 3), (0.5, 0.4, 0.1)),  # wrong class
    HOSTILE: (1, "p2", square(3, 3, 8), square(4, 3, 8), (0.45, 0.31, 0.24)),  # wrong class
    "c05": (2, "p3", square(0, 0, 0), square(1, 1, 2), (0.1, 0.2, 0.7)),  # false mask, and a contradiction
    "c06": (2, "p4", square(0, 0, 0), square(0, 0, 0), (0.1, 0.15, 0.75)),
    "c07": (0, "p5", square(6, 8, 3), square(7, 8, 3), (0.9, 0.06, 0.04)),
    "c08": (1, "p6", square(1, 9, 9), square(2, 9, 9), (0.15, 0.8, 0.05)),
    "c09": (None, "p8", square(8, 8, 10), square(8, 8, 5), (0.3, 0.6, 0.1)),  # class unknown
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
