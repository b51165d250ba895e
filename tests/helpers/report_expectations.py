"""Every figure of the page of :mod:`report_data`, from its masks and probabilities by numpy, scipy and scikit-learn."""

import numpy as np
from evaluation_data import SPACING
from report_data import CALIBRATION, CASES, CLASSES, FOLD, HEALTHY, NAMES
from scipy.ndimage import binary_erosion
from scipy.spatial.distance import cdist
from sklearn import metrics


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
            "Dice": dice, "IoU": tp / (n_true + n_pred - tp), "Jaccard_distance": 1 - tp / (n_true + n_pred - tp),
            "accuracy": (truth == masks).mean((1, 2)), "HD95": distances[:, 0], "ASSD": distances[:, 1],
            "precision": tp / n_pred, "recall": tp / n_true, "relative_volume_error": (n_pred - n_true) / n_true,
            "lesion_recall": (tp / (n_true + n_pred - tp) >= 0.1).astype(float),  # one square a case
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
