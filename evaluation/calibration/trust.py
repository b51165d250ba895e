"""What may be promised of a model's predictions: expected Dice, class sets, sizes, outer and inner masks.

Everything is fitted on cases that folds held out, and what is said of it is cross-fitted: thresholds for a fold come
from the other folds (of a single fold, for a fifth of the patients from the others).

The guarantees hold on average over new patients that are drawn as the held-out ones were. Two things are approximate.
Residuals of the expected Dice come from as many regressors as there are folds, while one fitted on all cases predicts
(cross-conformal; Vovk 2015). And an ensemble of all folds predicts a little better than the single folds that the
held-out cases come from, so that its statements are rather too careful.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from braintum.conversion.format.calibration import at_temperature
from braintum.conversion.format.familiarity import Familiarity
from braintum.conversion.format.trust import (
    SIZE,
    MaskTrust,
    QualityModel,
    Trust,
    dice_bounds,
    doubt,
    volume_bounds,
)
from braintum.evaluation.calibration.calibration import HeldOutCases, parts_of_patients
from braintum.evaluation.calibration.conformal import conformal_quantile, risk_controlled
from braintum.evaluation.calibration.held_out_masks import THRESHOLDS, HeldOutMasks
from braintum.evaluation.calibration.reliability import CalibrationFigures
from braintum.evaluation.calibration.temperature import NoTemperatureError, fit_temperature
from braintum.evaluation.metrics.selective import threshold_for
from braintum.evaluation.metrics.statistics import bootstrap_means

MIN_PATIENTS = 20
"""Fewer are no base for promises; cases are then taken for exchangeable, and a warning says so."""
MIN_MASKS = 30
_HIDDEN_UNITS = 8
_DECAY = 3.0
_FAMILIAR = 0.99
"""Share of the data set's own images that are not to be warned of."""
_BAD_DICE = 0.5
_COVERAGE_SHOWN = 0.8


@dataclass(frozen=True)
class Promises:
    """What is to be promised.

    Attributes:
        coverage: of class sets and intervals.
        target_dice: that accepted masks should have.
        accepted_share: of them that should have it.
        missed_share: of a tumour that the outer mask may miss on average, and of the inner mask that may be wrong.
    """

    coverage: float = 0.95
    target_dice: float = 0.7
    accepted_share: float = 0.9
    missed_share: float = 0.1


@dataclass(frozen=True, eq=False)
class Units:
    """What is exchangeable, and how cases are divided for cross-fitting.

    Attributes:
        of_case: (cases,), patient and near-duplicate group; or the case itself where too few patients are known.
        parts: (cases,), of the cross-fitting.
        kind: ``patients`` or ``cases``.
    """

    of_case: np.ndarray
    parts: np.ndarray
    kind: str

    @classmethod
    def of(cls, folds: np.ndarray, clusters: np.ndarray, knows_patients: bool) -> "Units":
        """From fold and cluster of each case."""
        enough = knows_patients and len(np.unique(clusters)) >= MIN_PATIENTS
        units = clusters if enough else np.arange(len(clusters)).astype(str)
        parts = folds if len(np.unique(folds)) > 1 else parts_of_patients(units)
        return cls(units, parts, "patients" if enough else "cases")

    def chosen(self, rows: np.ndarray) -> "Units":
        """Of some cases."""
        return Units(self.of_case[rows], self.parts[rows], self.kind)

    def cross_fitted(self, fit_and_apply: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
        """What a function says of each part from the others, joined; it gets (others, own), bool each."""
        found: np.ndarray | None = None
        for part in np.unique(self.parts):
            own = self.parts == part
            values = np.asarray(fit_and_apply(~own, own))
            if found is None:
                found = np.empty((len(own), *values.shape[1:]), values.dtype)
            found[own] = values
        if found is None:
            raise ValueError("no case to fit on")
        return found

    def mean(self, values: np.ndarray) -> dict[str, Any]:
        """A mean over cases with its 95 % interval over units, and by part."""
        estimate = bootstrap_means({"": np.asarray(values, np.float64)}, self.of_case)[""]
        by_part = {str(part): float(np.nanmean(values[self.parts == part])) for part in np.unique(self.parts)}
        low, high = estimate.interval or (None, None)
        return {"value": estimate.value, "low": low, "high": high, "by_part": by_part}


# ------------------------------------------------------------------------------------------------------------- classes


def fit_class_sets(cases: HeldOutCases, units: np.ndarray, class_names: Sequence[str], coverage: float) -> Trust:
    """Smallest probabilities of classes in a set; see :class:`~braintum.conversion.format.trust.Trust`.

    Args:
        cases: held-out predictions.
        units: (cases,), what is exchangeable.
        class_names: of the model.
        coverage: of the sets.
    """
    scores = 1 - cases.probabilities[np.arange(len(cases.labels)), cases.labels]

    def smallest(chosen: np.ndarray) -> float:
        return max(0.0, 1 - conformal_quantile(scores[chosen], units[chosen], 1 - coverage))

    return Trust(
        coverage=coverage,
        unit="",
        num_units=len(np.unique(units)),
        num_cases=len(scores),
        class_threshold=smallest(np.ones(len(scores), bool)),
        class_thresholds={name: smallest(cases.labels == index) for index, name in enumerate(class_names)},
    )


def class_set_figures(
    cases: HeldOutCases, units: Units, class_names: Sequence[str], coverage: float
) -> dict[str, dict[str, Any]]:
    """Cross-fitted coverage and size of the sets: ``class_set`` over all cases, ``class_set_of_each`` within classes.

    Returns:
        Each with ``coverage`` (with interval and by part), ``size`` and ``coverage_of`` each class.
    """

    def sizes_and_hits(others: np.ndarray, own: np.ndarray) -> np.ndarray:
        fitted = fit_class_sets(_chosen(cases, others), units.of_case[others], class_names, coverage)
        rows = []
        for probabilities, label in zip(cases.probabilities[own], cases.labels[own], strict=True):
            sets = fitted.class_sets(dict(zip(class_names, probabilities.tolist(), strict=True)))
            rows.append([value for found in sets for value in (len(found), class_names[label] in found)])
        return np.array(rows, np.float64)

    found = units.cross_fitted(sizes_and_hits)
    return {
        key: {
            "coverage": units.mean(found[:, column + 1]),
            "size": float(found[:, column].mean()),
            "coverage_of": {
                name: float(found[cases.labels == index, column + 1].mean())
                for index, name in enumerate(class_names)
                if (cases.labels == index).any()
            },
        }
        for key, column in (("class_set", 0), ("class_set_of_each", 2))
    }


def _chosen(cases: HeldOutCases, rows: np.ndarray) -> HeldOutCases:
    names = tuple(np.array(cases.names)[rows])
    arrays = {key: getattr(cases, key)[rows] for key in ("probabilities", "labels", "folds", "clusters")}
    return replace(cases, names=names, **arrays)


# --------------------------------------------------------------------------------------------------------------- masks


def fit_quality(table: np.ndarray, names: Sequence[str], dice: np.ndarray) -> QualityModel:
    """The regressor of Dice; features that are not known of all cases are left out, as is the size.

    Args:
        table: (cases, features).
        names: of the features.
        dice: (cases,).
    """
    from sklearn.neural_network import MLPRegressor

    known = np.isfinite(table).all(0) & (table.std(0) > 1e-9) & (np.array(names) != SIZE)
    chosen = table[:, known]
    mean, scale = chosen.mean(0), chosen.std(0)
    network = MLPRegressor(
        hidden_layer_sizes=(_HIDDEN_UNITS,),
        activation="tanh",
        solver="lbfgs",
        alpha=_DECAY,
        max_iter=1000,
        random_state=0,
    ).fit(np.clip((chosen - mean) / scale, -4, 4), dice)
    hidden = np.vstack([network.coefs_[0], network.intercepts_[0]])
    output = np.concatenate([network.coefs_[1][:, 0], network.intercepts_[1]])
    return QualityModel(
        tuple(name for name, is_known in zip(names, known, strict=True) if is_known),
        tuple(mean.tolist()),
        tuple(scale.tolist()),
        tuple(map(tuple, hidden.tolist())),
        tuple(output.tolist()),
    )


def expected_dice_of(quality: QualityModel, masks: HeldOutMasks, rows: np.ndarray) -> np.ndarray:
    """Of some held-out cases, (rows,)."""
    columns = [masks.feature_names.index(name) for name in quality.features]
    return quality.expected_dice(masks.features[rows][:, columns])


def fit_masks(
    masks: HeldOutMasks, expected: np.ndarray, units: Units, rows: np.ndarray, promises: Promises
) -> MaskTrust:
    """All thresholds of masks from some of the cases.

    Args:
        masks: held-out cases.
        expected: (cases,), their cross-fitted expected Dice.
        units: of the cases.
        rows: (cases,) bool, the cases that count.
        promises: to be kept.
    """
    shown = rows & np.isfinite(masks.dice)
    of_shown, side = units.of_case[shown], (1 - promises.coverage) / 2
    residual = (masks.dice - expected)[shown] / doubt(expected[shown])
    log_ratio = _log_ratio(masks)[shown] / doubt(expected[shown])
    settings = {
        "outer": risk_controlled(masks.missed[shown][:, ::-1], of_shown, promises.missed_share),
        "inner": risk_controlled(
            np.maximum.accumulate(masks.wrong[shown][:, ::-1], 1)[:, ::-1], of_shown, promises.missed_share
        ),
    }
    thresholds = {"outer": THRESHOLDS[::-1], "inner": THRESHOLDS}
    chosen = rows[masks.voxel_cases]
    return MaskTrust(
        quality=fit_quality(masks.features[shown], masks.feature_names, masks.dice[shown]),
        dice_below=max(0.0, conformal_quantile(-residual, of_shown, side)),
        dice_above=max(0.0, conformal_quantile(residual, of_shown, side)),
        target_dice=promises.target_dice,
        accepted_share=promises.accepted_share,
        threshold=threshold_for(
            promises.accepted_share, expected[shown], masks.dice[shown] >= promises.target_dice, of_shown
        ),
        volume_below=conformal_quantile(-log_ratio, of_shown, side),
        volume_above=conformal_quantile(log_ratio, of_shown, side),
        missed_share=promises.missed_share,
        **{name: None if at is None else float(thresholds[name][at]) for name, at in settings.items()},
        voxel_temperature=_voxel_temperature(masks, chosen & ~masks.in_band),
        border_temperature=_voxel_temperature(masks, chosen & masks.in_band),
    )


def cross_fitted_dice(masks: HeldOutMasks, units: Units) -> np.ndarray:
    """Expected Dice of every held-out case by a regressor of the other parts, (cases,)."""
    shown = np.isfinite(masks.dice)

    def predict(others: np.ndarray, own: np.ndarray) -> np.ndarray:
        rows = others & shown
        return expected_dice_of(fit_quality(masks.features[rows], masks.feature_names, masks.dice[rows]), masks, own)

    return units.cross_fitted(predict)


def mask_figures(masks: HeldOutMasks, expected: np.ndarray, units: Units, promises: Promises) -> dict[str, Any]:
    """How good the statements on masks are, each fold judged by what the others say.

    Args:
        masks: held-out cases.
        expected: (cases,), see :func:`cross_fitted_dice`.
        units: of the cases.
        promises: to be kept.

    Returns:
        ``num_cases`` with a true tumour, ``dice``, ``correlation`` (Pearson) and ``rank_correlation`` of expected and
        true Dice, ``mean_error`` of it, ``auroc_bad`` (Dice below 0.5; None without such), ``dice_accepted`` at 80 %
        coverage, ``risk_coverage`` (``coverage``, ``dice``), ``accepted`` and ``accepted_good`` (shares at the
        threshold), ``dice_interval`` and ``volume_interval`` (``coverage``, ``width``: of sizes relative to the true
        one, median), ``outer`` and ``inner`` (``loss``, ``size`` relative to the true one, median) and ``voxels``
        (``ece`` before and after, of all and of the border).
    """
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    shown = np.isfinite(masks.dice)
    dice, guess, of = masks.dice[shown], expected[shown], units.chosen(shown)
    column = masks.feature_names.index(SIZE)
    rows: dict[str, np.ndarray] = {name: np.full(len(masks.dice), np.nan) for name in _JUDGED}
    after = np.empty(masks.voxels.shape)
    for part in np.unique(units.parts):
        own = units.parts == part
        fitted = fit_masks(masks, expected, units, ~own, promises)
        own_voxels = own[masks.voxel_cases]
        for is_near, temperature in ((False, fitted.voxel_temperature), (True, fitted.border_temperature)):
            there = own_voxels & (masks.in_band == is_near)
            after[there] = at_temperature(masks.voxels[there], temperature)
        own &= shown
        low, high = dice_bounds(fitted, expected[own])
        rows["dice_hit"][own] = (low - 1e-9 <= masks.dice[own]) & (masks.dice[own] <= high + 1e-9)
        rows["dice_width"][own] = high - low
        low, high = volume_bounds(fitted, masks.features[own, column], expected[own], masks.voxel_size[own])
        true = masks.true_size[own]
        rows["volume_hit"][own] = (low <= true) & (true <= high)
        rows["volume_width"][own] = (high - low) / true
        rows["accepted"][own] = np.nan if fitted.threshold is None else expected[own] >= fitted.threshold
        for name, losses, threshold in (("outer", masks.missed, fitted.outer), ("inner", masks.wrong, fitted.inner)):
            if threshold is not None:
                at = int(np.argmin(abs(THRESHOLDS - threshold)))
                rows[name][own] = losses[own, at]
                rows[f"{name}_size"][own] = (1 - masks.missed[own, at]) / np.maximum(1 - masks.wrong[own, at], 1e-9)
    found = {name: values[shown] for name, values in rows.items()}
    accepted = found["accepted"] == 1
    bad = dice < _BAD_DICE
    order = np.argsort(-guess, kind="stable")
    running = np.cumsum(dice[order]) / np.arange(1, len(dice) + 1)
    kept = max(1, round(_COVERAGE_SHOWN * len(dice)))
    return {
        "num_cases": len(dice),
        "dice": float(dice.mean()),
        "correlation": float(np.corrcoef(guess, dice)[0, 1]),
        "rank_correlation": float(spearmanr(guess, dice).statistic),
        "mean_error": float(abs(guess - dice).mean()),
        "auroc_bad": float(roc_auc_score(bad, -guess)) if 0 < bad.sum() < len(bad) else None,
        "dice_accepted": float(running[kept - 1]),
        "risk_coverage": {
            "coverage": (np.arange(1, len(dice) + 1) / len(dice)).tolist()[:: max(1, len(dice) // 200)],
            "dice": running.tolist()[:: max(1, len(dice) // 200)],
        },
        "accepted": None if np.isnan(found["accepted"]).all() else float(accepted.mean()),
        "accepted_good": float((dice[accepted] >= promises.target_dice).mean()) if accepted.any() else None,
        "dice_interval": {"coverage": of.mean(found["dice_hit"]), "width": float(found["dice_width"].mean())},
        "volume_interval": {"coverage": of.mean(found["volume_hit"]), "width": float(np.median(found["volume_width"]))},
        **{
            name: None
            if np.isnan(found[name]).any()
            else {"loss": of.mean(found[name]), "size": float(np.median(found[f"{name}_size"]))}
            for name in ("outer", "inner")
        },
        "voxels": {
            where: {
                "before": _ece(masks.voxels[chosen], masks.voxel_labels[chosen]),
                "after": _ece(after[chosen], masks.voxel_labels[chosen]),
            }
            for where, chosen in (("all", ~masks.from_band), ("border", masks.from_band))
            if chosen.any()
        },
    }


_JUDGED = (
    *("dice_hit", "dice_width", "volume_hit", "volume_width", "accepted"),
    *("outer", "outer_size", "inner", "inner_size"),
)


def _voxel_temperature(masks: HeldOutMasks, chosen: np.ndarray) -> float:
    """1, which changes nothing, where the voxels determine none: where all are right, or there are none."""
    try:
        return fit_temperature(masks.voxels[chosen], masks.voxel_labels[chosen]) if chosen.any() else 1.0
    except NoTemperatureError:
        return 1.0


def _log_ratio(masks: HeldOutMasks) -> np.ndarray:
    """Logarithm of true over expected size, one voxel added to both."""
    expected = 10.0 ** masks.features[:, masks.feature_names.index(SIZE)]
    return np.log(masks.true_size + masks.voxel_size) - np.log(expected)


def _ece(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return CalibrationFigures(probabilities, labels)(np.ones(len(labels)))["ece"]


# --------------------------------------------------------------------------------------------------------- familiarity


def fit_familiarity(features: np.ndarray, units: np.ndarray) -> tuple[Familiarity, np.ndarray]:
    """What images of the data set look like to one fold's encoder.

    Args:
        features: (images, features), of images that the fold held out.
        units: (images,), what is exchangeable, such as the patient; at least two.

    Returns:
        The fit, whose limit 99 % of the images keep; and each image's distance by a fit to other patients.
    """
    parts = parts_of_patients(units)
    distances = np.empty(len(features))
    for part in np.unique(parts):
        own = parts == part
        distances[own] = Familiarity.fit(features[~own]).distance(features[own])
    return replace(Familiarity.fit(features), limit=float(np.quantile(distances, _FAMILIAR))), distances
