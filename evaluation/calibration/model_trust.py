"""The trust in a trained model, put together from the validation of its folds, and what is told of it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from braintum.commands.provenance import provenance
from braintum.conversion.files.atomic import write_json_atomic
from braintum.conversion.format.familiarity import FEATURES_FILE, Familiarity
from braintum.conversion.format.trust import MaskTrust, Trust, finite
from braintum.evaluation.calibration.calibration import HeldOutCases
from braintum.evaluation.calibration.held_out_masks import HeldOutMasks, held_out_masks
from braintum.evaluation.calibration.trust import (
    MIN_MASKS,
    MIN_PATIENTS,
    Promises,
    Units,
    class_set_figures,
    cross_fitted_dice,
    fit_class_sets,
    fit_familiarity,
    fit_masks,
    mask_figures,
)
from braintum.evaluation.results.case_table import CaseTable
from braintum.evaluation.results.predictions import VALIDATION_CLASSES_FILE, Predictions, read_json
from braintum.evaluation.results.tables import number

TRUST_FILE = "trust.json"
_CLEARLY_LESS = 0.05
"""By how much less than promised a fold may be covered before the folds are said to differ."""


def fit_trust(
    predictions: Predictions, cases: HeldOutCases, model_folder: Path, promises: Promises
) -> tuple[Trust, dict[str, Any]]:
    """All promises, and how well they were kept by each fold from what the others say.

    Args:
        predictions: of :func:`braintum.evaluation.results.predictions.predictions_of_folds`.
        cases: their class predictions.
        model_folder: with the folds.
        promises: to be kept.

    Returns:
        What the model is to carry, and figures for JSON: ``promises``, ``unit``, ``num_units``, ``classes`` (see
        :func:`~braintum.evaluation.calibration.trust.class_set_figures`), ``masks`` (see
        :func:`~braintum.evaluation.calibration.trust.mask_figures`; None without voxel probabilities), ``familiar``
        (fold → images, and share of them within the limit) and ``warnings``.

    Raises:
        ValueError: a file is damaged.
    """
    assert predictions.schema is not None  # held_out_cases() refused others
    names = predictions.schema.class_names
    knows_patients = cases.num_patients is not None
    units = Units.of(cases.folds, cases.clusters, knows_patients)
    trust = replace(fit_class_sets(cases, units.of_case, names, promises.coverage), unit=units.kind)
    figures: dict[str, Any] = {
        "promises": vars(promises),
        "unit": trust.unit,
        "num_units": trust.num_units,
        "classes": class_set_figures(cases, units, names, promises.coverage),
        "masks": None,
    }
    masks = held_out_masks(predictions)
    if masks is not None:
        table = CaseTable(predictions, {}, [])
        cluster = dict(zip(table.cases, table.clusters, strict=True))
        folds = np.array([predictions.fold_of_case[case] for case in masks.names])
        of_masks = Units.of(folds, np.array([cluster[case] for case in masks.names]), knows_patients)
        shown, parts = np.isfinite(masks.dice), np.unique(of_masks.parts)
        if len(parts) > 1 and min(int(shown[of_masks.parts != part].sum()) for part in parts) >= MIN_MASKS:
            found, figures["masks"] = trust_in_masks(masks, of_masks, promises)
            trust = replace(trust, masks=found)
    familiarity = _familiarity(predictions, model_folder, dict(zip(cases.names, units.of_case, strict=True)))
    trust = replace(trust, familiarity={fold: found for fold, (found, _) in familiarity.items()})
    figures["familiar"] = {
        fold: {"num_cases": len(distances), "share": float((distances <= found.limit).mean())}
        for fold, (found, distances) in familiarity.items()
    }
    figures["warnings"] = _warnings(trust, figures, promises)
    return trust, finite(figures)


def trust_in_masks(masks: HeldOutMasks, units: Units, promises: Promises) -> tuple[MaskTrust, dict[str, Any]]:
    """What is promised of masks, and how well it was kept."""
    expected = cross_fitted_dice(masks, units)
    everything = np.ones(len(masks.dice), dtype=bool)
    return fit_masks(masks, expected, units, everything, promises), mask_figures(masks, expected, units, promises)


def _familiarity(
    predictions: Predictions, model_folder: Path, unit_of_case: Mapping[str, str]
) -> dict[str, tuple[Familiarity, np.ndarray]]:
    """By fold; folds whose validation kept no features are missing."""
    found = {}
    for fold in sorted(set(predictions.fold_of_case.values())):
        folder = model_folder / f"fold_{fold}" / "validation"
        file = folder / FEATURES_FILE
        if not file.is_file():
            continue
        cases = list(read_json(folder / VALIDATION_CLASSES_FILE)["cases"])
        try:
            features = np.load(file, allow_pickle=False).astype(np.float64)
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{file} is damaged ({error}); validate the fold again with --val") from error
        if features.ndim != 2 or len(features) != len(cases) or not np.isfinite(features).all():
            raise ValueError(f"{file} is not of the {len(cases)} cases beside it; validate the fold again with --val")
        units = np.array([unit_of_case.get(case, case) for case in cases])
        if len(np.unique(units)) >= MIN_PATIENTS:
            found[str(fold)] = fit_familiarity(features, units)
    return found


def _warnings(trust: Trust, figures: Mapping[str, Any], promises: Promises) -> list[str]:
    found = []
    if trust.unit == "cases":
        found.append(
            f"fewer than {MIN_PATIENTS} patients are known, so that cases are taken for independent: of new patients "
            "with several images, less is covered than stated"
        )
    masks = trust.masks
    if masks is None:
        found.append(
            "nothing is promised of masks: a fold was validated without voxel probabilities (add --val --npz to "
            f"nnUNetv2_train), or fewer than {MIN_MASKS} cases of other folds have a tumour"
        )
    else:
        if masks.threshold is None:
            found.append(
                f"no expected Dice is high enough to promise that {promises.accepted_share:.0%} of the masks above "
                f"it reach {promises.target_dice:g}: no case is marked for review because of its mask"
            )
        if not np.isfinite([masks.dice_below, masks.dice_above, masks.volume_below, masks.volume_above]).all():
            found.append(
                f"{trust.num_units} {trust.unit} are too few for intervals of {promises.coverage:.0%} coverage: they "
                "lack a bound; ask for less, or validate more folds"
            )
        for name in ("outer", "inner"):
            if getattr(masks, name) is None:
                found.append(f"no {name} mask keeps an error of {promises.missed_share:g}")
    if not trust.familiarity:
        found.append("the validation kept no encoder features: images of another kind are not told apart by them")
    for name, judged in _coverages(figures):
        for part, value in judged["by_part"].items():
            if value < promises.coverage - _CLEARLY_LESS:
                found.append(f"{name}: only {value:.1%} of fold or part {part} are covered; the folds differ")
    return found


def _coverages(figures: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    masks = figures["masks"] or {}
    return [
        *((name.replace("_", " "), found["coverage"]) for name, found in figures["classes"].items()),
        *((name.replace("_", " "), masks[name]["coverage"]) for name in ("dice_interval", "volume_interval") if masks),
    ]


def trust_rows(figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the figures say, a line a promise: its name, and how it was kept by held-out folds."""
    promises = figures["promises"]
    rows = []
    for name, title in (("class_set", "class sets"), ("class_set_of_each", "class sets, within each class")):
        found = figures["classes"][name]
        of_each = ", ".join(f"{key} {value:.3f}" for key, value in found["coverage_of"].items())
        rows.append((title, f"{_kept(found['coverage'], promises)}; {found['size']:.2f} classes a case; {of_each}"))
    masks = figures["masks"]
    if masks is None:
        return rows
    rows += [
        (
            "expected against true Dice",
            f"correlation {number(masks['correlation'])}, of ranks {number(masks['rank_correlation'])}; mean error "
            f"{number(masks['mean_error'])}; AUROC for Dice below 0.5 {number(masks['auroc_bad'])}",
        ),
        (
            "mean Dice of the 80 % with the highest expected one",
            f"{masks['dice_accepted']:.3f}; all {masks['dice']:.3f}",
        ),
    ]
    if masks["accepted"] is not None:
        good = "none" if masks["accepted_good"] is None else f"{masks['accepted_good']:.1%}"
        rows.append(
            (
                f"accepted without review (target: {promises['accepted_share']:.0%} with Dice of "
                f"{promises['target_dice']:g} or more)",
                f"{masks['accepted']:.1%} of the cases, {good} of them good",
            )
        )
    rows += [
        (title, f"{_kept(masks[name]['coverage'], promises)}; {width} {number(masks[name]['width'])}")
        for name, title, width in (
            ("dice_interval", "Dice intervals", "mean width"),
            ("volume_interval", "size intervals", "median width, of the true size,"),
        )
    ]
    for name, loss in (("outer", "of the tumour missed"), ("inner", "of the mask wrong")):
        if (found := masks[name]) is not None:
            text = f"{_figure(found['loss'])} {loss} on average; median size {found['size']:.2f} of the true one"
            rows.append((f"{name} mask (target: {promises['missed_share']:g})", text))
    for where, title in (("all", "all voxels"), ("border", "voxels near the border")):
        if where in masks["voxels"]:
            error = masks["voxels"][where]
            rows.append((f"calibration error of {title}", f"{error['before']:.4f} before, {error['after']:.4f} after"))
    return rows


def _kept(coverage: Mapping[str, Any], promises: Mapping[str, Any]) -> str:
    parts = coverage["by_part"].values()
    return f"{_figure(coverage)} covered (target {promises['coverage']:g}; parts {min(parts):.3f} to {max(parts):.3f})"


def _figure(found: Mapping[str, Any]) -> str:
    interval = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    return f"{found['value']:.3f}{interval}"


def write_trust(figures: Mapping[str, Any], folder: Path) -> None:
    """Write ``trust.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / TRUST_FILE, {**figures, "provenance": provenance()})
