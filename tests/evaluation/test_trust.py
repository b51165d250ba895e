"""What is promised of masks, sizes and class sets: values by hand, a reference library, simulated patients."""

import json

import numpy as np
import pytest
from calibration_data import NAMES, held_out
from sklearn.neural_network import MLPRegressor

from braintum.conversion.format.calibration import at_temperature
from braintum.conversion.format.familiarity import Familiarity
from braintum.conversion.format.mask_features import border_band, calibrated_voxels, mask_features, tumour_probability
from braintum.conversion.format.trust import (
    MaskTrust,
    QualityModel,
    Trust,
    dice_bounds,
    mask_statement,
    volume_bounds,
)
from braintum.evaluation.calibration.conformal import conformal_quantile, risk_controlled
from braintum.evaluation.calibration.held_out_masks import THRESHOLDS, HeldOutMasks
from braintum.evaluation.calibration.model_trust import trust_in_masks, trust_rows
from braintum.evaluation.calibration.trust import (
    Promises,
    Units,
    class_set_figures,
    fit_class_sets,
    fit_familiarity,
    fit_quality,
)
from braintum.evaluation.results.tables import number

# ------------------------------------------------------------------------------------------------------- quantiles


def test_with_a_case_a_patient_it_is_split_conformal_prediction():
    mapie = pytest.importorskip("mapie.regression")
    random = np.random.default_rng(0)
    x, y = random.normal(size=(100, 1)), random.normal(size=100)

    class Zero:
        def fit(self, x, y):
            return self

        def predict(self, x):
            return np.zeros(len(x))

        def __sklearn_is_fitted__(self):
            return True

    for coverage in (0.8, 0.9, 0.95):
        reference = mapie.SplitConformalRegressor(Zero(), confidence_level=coverage, prefit=True).conformalize(x, y)
        _, bounds = reference.predict_interval(x[:1])
        assert conformal_quantile(abs(y), np.arange(100), 1 - coverage) == pytest.approx(bounds[0, 1, 0])


def test_a_patient_counts_once():
    scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    units = np.array(["a", "a", "a", "a", "b", "c"])  # a case of a weighs 1/16, the others 1/4 each
    assert conformal_quantile(scores, units, 0.75) == 4
    assert conformal_quantile(scores, units, 0.5) == 5
    assert conformal_quantile(scores, units, 0.25) == 6
    assert conformal_quantile(scores, units, 0.2) == np.inf  # three patients promise 75 % at most
    assert conformal_quantile(scores[:0], units[:0], 0.1) == np.inf


def test_new_patients_are_covered_although_their_cases_resemble_each_other():
    random = np.random.default_rng(0)
    covered = []
    for _ in range(400):
        sizes = random.integers(1, 30, 20)
        units = np.repeat(np.arange(20), sizes)
        scores = (sizes + random.normal(size=20))[units] + 0.1 * random.normal(size=len(units))  # many cases: unusual
        new = random.integers(1, 30)
        covered.append(new + random.normal() + 0.1 * random.normal() <= conformal_quantile(scores, units, 0.2))
    assert np.mean(covered) == pytest.approx(0.8, abs=0.05)


def test_risk_control():
    losses = np.array([[1.0, 0.5, 0.1, 0.0], [1.0, 0.3, 0.1, 0.0], [1.0, 0.0, 0.0, 0.0]])
    # patients a and b: means of a are 1, 0.4, 0.1, 0; with 1 for the next patient they add up to 3, 1.4, 1.1, 1
    units = np.array(["a", "a", "b"])
    assert risk_controlled(losses, units, 0.5) == 1
    assert risk_controlled(losses, units, 0.4) == 2
    assert risk_controlled(losses, units, 0.34) == 3
    assert risk_controlled(losses, units, 0.3) is None


# --------------------------------------------------------------------------------------------------------- classes


def test_class_sets_cover_and_are_never_empty():
    cases = held_out(cases=1500, temperature=2.0)
    units = Units.of(cases.folds, cases.clusters, knows_patients=True)
    assert units.kind == "patients" and len(np.unique(units.parts)) == 3
    found = class_set_figures(cases, units, NAMES, 0.9)
    accuracy = cases.is_correct.mean()
    assert accuracy < 0.85
    for figures in found.values():
        assert figures["coverage"]["value"] == pytest.approx(0.9, abs=0.02)
        assert figures["coverage"]["low"] < figures["coverage"]["value"] < figures["coverage"]["high"]
        assert 1 < figures["size"] < 3
    assert list(found["class_set_of_each"]["coverage_of"].values()) == pytest.approx([0.9] * 3, abs=0.035)
    trust = fit_class_sets(cases, units.of_case, NAMES, 0.3)  # thresholds so high that sets would be empty
    assert trust.class_sets(dict(zip(NAMES, (0.34, 0.33, 0.33), strict=True))) == ([NAMES[0]], [NAMES[0]])
    few = Units.of(cases.folds, cases.folds.astype(str), knows_patients=True)
    assert few.kind == "cases" and len(np.unique(few.of_case)) == 1500


# ----------------------------------------------------------------------------------------------------------- masks


def test_features_by_hand():
    tumour = np.zeros((1, 4, 6), np.float32)
    tumour[0, 1, :4] = (0.9, 0.6, 0.4, 0.2)
    tumour[0, 3, 5] = 0.8
    found = mask_features(tumour, tumour > 0.5, 2.0, 0.9)
    assert found["soft_dice"] == pytest.approx(2 * 2.3 / (3 + 2.9))
    assert found["thresholds"] == pytest.approx(2 * 2 / (4 + 2))  # above 0.3: four, above 0.7: two
    entropy = -sum(p * np.log2(p) + (1 - p) * np.log2(1 - p) for p in (0.9, 0.6, 0.4, 0.2, 0.8))
    assert found["entropy"] == pytest.approx(entropy / 3.9, rel=1e-5)
    assert found["log_size"] == pytest.approx(np.log10(3.9 * 2))
    assert (found["peak"], found["agreement"]) == pytest.approx((0.9, 0.9))
    assert found["largest_part"] == pytest.approx(2 / 3)
    empty = mask_features(np.zeros_like(tumour), tumour > 1, 2.0, None)
    assert empty["soft_dice"] == empty["thresholds"] == empty["entropy"] == empty["largest_part"] == 0
    assert np.isnan(empty["agreement"])


def test_voxels_of_labels_and_of_regions():
    labels = np.random.default_rng(0).dirichlet((1, 1, 1), (1, 2, 2)).transpose(3, 0, 1, 2)
    assert tumour_probability(labels, False) == pytest.approx(1 - labels[0], abs=1e-6)
    nothing, everything = np.zeros((1, 2, 2), bool), np.ones((1, 2, 2), bool)
    found = calibrated_voxels(labels, nothing, 2.0, 3.0, False)
    assert found[:, 0, 1, 1] == pytest.approx(at_temperature(labels[:, 0, 1, 1], 2.0), rel=1e-5)
    found = calibrated_voxels(labels, everything, 2.0, 3.0, False)
    assert found[:, 0, 1, 1] == pytest.approx(at_temperature(labels[:, 0, 1, 1], 3.0), rel=1e-5)
    regions = np.array([0.9, 0.2]).reshape(2, 1, 1, 1)
    assert tumour_probability(regions, True).item() == pytest.approx(0.9)
    found = calibrated_voxels(regions, nothing[:, :1, :1], 2.0, 3.0, True)
    assert found.ravel() == pytest.approx([0.75, 1 / 3], rel=1e-5)
    mask = np.zeros((1, 30, 30), bool)
    mask[0, 10:20, 10:20] = True
    band = border_band(mask)
    assert band.sum() == 16**2 - 4**2 and not band[0, 13:17, 13:17].any()


def simulated_masks(cases=400, seed=0):
    """Masks of which the first feature says the Dice but for noise; sizes scatter more where it is low."""
    random = np.random.default_rng(seed)
    quality = random.uniform(0.2, 1, cases)
    dice = np.clip(quality + random.normal(0, 0.05, cases), 0, 1)
    size = np.exp(random.normal(6, 1, cases))
    true_size = size * np.exp((1.05 - quality) * random.normal(0, 0.5, cases))
    missed = THRESHOLDS[None] ** random.uniform(0.5, 2, (cases, 1))
    logits = random.normal(0, 3, (cases, 10))
    in_mask = 1 / (1 + np.exp(-logits / 2))  # the right temperature is 2
    inside = 1 / (1 + np.exp(-logits))
    return HeldOutMasks(
        names=tuple(map(str, range(cases))),
        features=np.stack([quality, np.log10(size), np.full(cases, np.nan)], 1),
        feature_names=("soft_dice", "log_size", "agreement"),
        dice=dice,
        true_size=true_size,
        voxel_size=np.ones(cases),
        missed=missed,
        wrong=1 - missed,
        voxels=np.stack([1 - inside, inside], -1).reshape(-1, 2),
        voxel_labels=(random.random(in_mask.shape) < in_mask).astype(np.int64).ravel(),
        voxel_cases=np.repeat(np.arange(cases), 10),
        in_band=np.tile(np.arange(10) < 5, cases),
        from_band=np.tile(np.arange(10) < 5, cases),
    )


@pytest.mark.slow
def test_promises_of_masks_are_kept():
    masks = simulated_masks()
    names = np.array([f"P{number // 2}" for number in range(400)])
    units = Units.of(np.arange(400) // 2 % 4, names, knows_patients=True)
    found, figures = trust_in_masks(masks, units, Promises(0.9, 0.7, 0.9, 0.2))
    assert found.quality.features == ("soft_dice",)  # what is not known of all cases is left out, as is the size
    assert figures["correlation"] > 0.95 and figures["auroc_bad"] > 0.97
    assert figures["dice_accepted"] > figures["dice"] + 0.08
    assert 0.6 < found.threshold < 0.8 and figures["accepted_good"] > 0.88
    for name in ("dice_interval", "volume_interval"):
        assert figures[name]["coverage"]["value"] == pytest.approx(0.9, abs=0.04)
    for name in ("outer", "inner"):
        assert figures[name]["loss"]["value"] == pytest.approx(0.2, abs=0.02)
    assert 0 < found.outer < found.inner < 1
    assert (found.voxel_temperature, found.border_temperature) == pytest.approx((2, 2), rel=0.15)
    for where in ("all", "border"):
        assert figures["voxels"][where]["after"] < 0.5 * figures["voxels"][where]["before"]
    json.dumps(figures, allow_nan=False)
    classes = class_set_figures(held_out(cases=60), Units.of(*_units_of(60)), NAMES, 0.9)
    rows = dict(trust_rows({"promises": vars(Promises()), "classes": classes, "masks": figures}))
    assert f"correlation {number(figures['correlation'])}" in rows["expected against true Dice"]


def _units_of(count):
    cases = held_out(cases=count)
    return cases.folds, cases.clusters, True


def test_the_stored_regressor_is_the_fitted_one():
    random = np.random.default_rng(0)
    table = random.normal(3, 2, (200, 3))
    dice = np.clip(0.5 + 0.2 * np.tanh(table[:, 0] - 3) + 0.05 * table[:, 1] - 0.15, 0, 1)
    quality = fit_quality(np.c_[table, np.full(200, np.nan)], ("a", "b", "c", "unknown"), dice)
    standard = np.clip((table - table.mean(0)) / table.std(0), -4, 4)
    network = MLPRegressor(
        hidden_layer_sizes=(8,), activation="tanh", solver="lbfgs", alpha=3.0, max_iter=1000, random_state=0
    )
    assert quality.features == ("a", "b", "c")
    assert quality.expected_dice(table) == pytest.approx(network.fit(standard, dice).predict(standard), abs=1e-9)
    assert np.corrcoef(quality.expected_dice(table), dice)[0, 1] > 0.9
    far = quality.expected_dice(np.array([[1e9, 3, 3], [-1e9, 3, 3]]))
    assert ((far >= 0) & (far <= 1)).all()


QUALITY = QualityModel(("soft_dice",), (0.5,), (0.25,), ((1.0,), (0.0,)), (0.4, 0.5))
MASKS = MaskTrust(QUALITY, 1.0, 0.5, 0.7, 0.95, 0.6, 2.0, float("inf"), 0.1, 0.05, 0.9, 1.5, 2.0)


def test_statement_by_hand():
    features = {"soft_dice": 0.75, "log_size": 2.0}
    dice = 0.5 + 0.4 * np.tanh(1)
    spread = 1.05 - dice
    found = mask_statement(MASKS, features, 4.0)
    assert found["expected_dice"] == pytest.approx(dice)
    assert found["dice_interval"] == pytest.approx([dice - spread, min(1, dice + 0.5 * spread)])
    assert found["volume_interval"] == [pytest.approx(100 * np.exp(-2 * spread) - 4), None]
    assert found["review"] is False and mask_statement(MASKS, {**features, "soft_dice": 0.0}, 4.0)["review"] is True
    with pytest.raises(ValueError, match="predict with mirroring"):
        mask_statement(MASKS, {**features, "soft_dice": float("nan")}, 4.0)
    low, high = dice_bounds(MASKS, np.array([0.0, 1.0]))
    assert (low >= 0).all() and (high <= 1).all()
    assert volume_bounds(MASKS, np.array([0.0]), np.array([0.0]), 1.0)[0] == 0


def test_what_travels_with_the_model():
    features = np.random.default_rng(0).normal(size=(60, 8)) * np.arange(1, 9)
    familiar, _ = fit_familiarity(features, np.arange(60) // 2)
    trust = Trust(0.9, "patients", 30, 60, 0.1, {"a": 0.2, "b": 0.0}, MASKS, {"0": familiar})
    text = json.dumps(trust.to_json(), allow_nan=False)
    found = Trust.from_dataset_json({"trust": json.loads(text)})
    assert found.masks == MASKS and found.class_thresholds == trust.class_thresholds
    assert found.familiarity["0"].distance(features) == pytest.approx(familiar.distance(features), rel=0.01)
    assert Trust.from_dataset_json({}) is None
    damaged = json.loads(text)
    damaged["masks"]["quality"]["hidden"] = [[1.0]]
    for entry in ({}, [], {**json.loads(text), "familiarity": {"0": {"mean": "?"}}}, damaged):
        with pytest.raises(ValueError, match="run braintum_calibrate again"):
            Trust.from_dataset_json({"trust": entry})


def test_images_of_another_kind_are_far():
    random = np.random.default_rng(0)
    mixing = random.normal(size=(5, 40))

    def images(count):
        return random.normal(size=(count, 5)) @ mixing + 0.1 * random.normal(size=(count, 40))

    familiar, distances = fit_familiarity(images(300), np.arange(300) // 3)
    assert (distances <= familiar.limit).mean() == pytest.approx(0.99, abs=0.004)
    assert (familiar.distance(images(300)) > familiar.limit).mean() < 0.05
    assert (familiar.distance(images(100) + 8 * mixing[0]) > familiar.limit).mean() > 0.9  # along a known direction
    other = images(100) + 0.5 * random.normal(size=(1, 40))  # in none of them
    assert (familiar.distance(other) > familiar.limit).all()
    with pytest.raises(ValueError, match="one image"):
        Familiarity.fit(images(1))
