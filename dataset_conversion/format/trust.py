"""How far a prediction can be trusted: what `dataset.json` of the model folder carries under `trust`.

Fitted by ``braintum_calibrate`` on the cases that the folds held out, applied by ``braintum_predict --calibrated``.
Only numbers travel: no pickled model, so that a model folder of somebody else runs no code.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from braintum.conversion.format.familiarity import Familiarity

TRUST_KEY = "trust"
SIZE = "log_size"
"""Name of the feature that is the expected size; the others are for the expected Dice."""


@dataclass(frozen=True)
class QualityModel:
    """Expected Dice from features of the mask: a network with one small hidden layer.

    Attributes:
        features: names, see :func:`braintum.conversion.format.mask_features.mask_features`.
        mean: of each feature.
        scale: standard deviation of each feature.
        hidden: weights (features + 1, units), the bias last.
        output: weights (units + 1,), likewise.
    """

    features: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    hidden: tuple[tuple[float, ...], ...]
    output: tuple[float, ...]

    def expected_dice(self, table: np.ndarray) -> np.ndarray:
        """Dice of each row of (cases, features), between 0 and 1.

        Features more than four deviations from the mean count as four: nothing is known of what lies beyond.
        """
        standard = np.clip((table - np.array(self.mean)) / np.array(self.scale), -4, 4)
        hidden, output = np.array(self.hidden), np.array(self.output)
        return np.clip(np.tanh(standard @ hidden[:-1] + hidden[-1]) @ output[:-1] + output[-1], 0, 1)


@dataclass(frozen=True)
class MaskTrust:
    """What is said of masks.

    Attributes:
        quality: expected Dice.
        dice_below: how far Dice may lie below what is expected, in units of :func:`doubt`.
        dice_above: how far above.
        target_dice: that a mask should have.
        accepted_share: of the accepted masks that should have it.
        threshold: expected Dice below which a case is to be reviewed; None where no threshold keeps the promise.
        volume_below: natural logarithm by which the size may lie below the expected one, in units of :func:`doubt`.
        volume_above: likewise above.
        missed_share: of a tumour that the outer mask may miss on average, and that may be wrong in the inner mask.
        outer: tumour probability from which on a voxel is in the outer mask; None where none keeps the promise.
        inner: likewise for the inner mask.
        voxel_temperature: of the voxel probabilities away from the border of the mask.
        border_temperature: near the border.
    """

    quality: QualityModel
    dice_below: float
    dice_above: float
    target_dice: float
    accepted_share: float
    threshold: float | None
    volume_below: float
    volume_above: float
    missed_share: float
    outer: float | None
    inner: float | None
    voxel_temperature: float
    border_temperature: float


@dataclass(frozen=True)
class Trust:
    """All that is said of a case, and what it was fitted on.

    Attributes:
        coverage: probability that a class set holds the class, and an interval the value.
        unit: `patients` or `cases`: what was taken for exchangeable.
        num_units: how many there were.
        num_cases: held-out cases.
        class_threshold: smallest probability of a class in a set that covers the cases of all classes together.
        class_thresholds: class → the same for sets that cover each class.
        masks: None where the folds were validated without ``--npz``.
        familiarity: fold (as text) → what images look like to its encoder; empty where not known.
    """

    coverage: float
    unit: str
    num_units: int
    num_cases: int
    class_threshold: float
    class_thresholds: Mapping[str, float]
    masks: MaskTrust | None = None
    familiarity: Mapping[str, Familiarity] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the value of `trust` in `dataset.json`; without infinity, which JSON does not know."""
        entry = asdict(replace(self, familiarity={}))
        return {**finite(entry), "familiarity": {fold: found.to_json() for fold, found in self.familiarity.items()}}

    @classmethod
    def from_dataset_json(cls, dataset_json: Mapping[str, Any]) -> "Trust | None":
        """Reads the entry from the content of a model's `dataset.json`; None for a model without one.

        Raises:
            ValueError: the entry is damaged.
        """
        entry = dataset_json.get(TRUST_KEY)
        if entry is None:
            return None
        try:
            masks = entry["masks"]
            if masks is not None:
                masks = _built(MaskTrust, {**masks, "quality": _built(QualityModel, masks["quality"])})
            familiarity = {str(fold): Familiarity.from_json(found) for fold, found in entry["familiarity"].items()}
            trust = _built(cls, {**entry, "masks": masks, "familiarity": familiarity})
            if masks is not None:  # wrong shapes show here, not in the middle of a prediction
                masks.quality.expected_dice(np.zeros((1, len(masks.quality.features))))
            return trust
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            raise ValueError(
                f'"{TRUST_KEY}" in dataset.json of the model is damaged ({error}); run braintum_calibrate again'
            ) from error

    def class_sets(self, probabilities: Mapping[str, float]) -> tuple[list[str], list[str]]:
        """Classes that a case may have, likeliest first: with coverage over all cases, and within each class.

        Args:
            probabilities: class → as predicted, without calibration. The likeliest class is always in.
        """
        ordered = sorted(probabilities, key=lambda name: -probabilities[name])
        of_all = [name for name in ordered if probabilities[name] >= self.class_threshold]
        of_each = [name for name in ordered if probabilities[name] >= self.class_thresholds[name]]
        return of_all or ordered[:1], of_each or ordered[:1]


def doubt(expected_dice: np.ndarray | float) -> np.ndarray | float:
    """By what intervals are widened where the expected Dice is low."""
    return 0.05 + (1 - expected_dice)


def mask_statement(masks: MaskTrust, features: Mapping[str, float], voxel_size: float) -> dict[str, Any]:
    """What is said of a mask, ready for JSON.

    Args:
        masks: of the model.
        features: of the mask, see :func:`braintum.conversion.format.mask_features.mask_features`.
        voxel_size: in the unit of sizes.

    Returns:
        ``expected_dice``, ``dice_interval``, ``volume_interval`` (None: no bound), ``review`` (None where no threshold
        was found).
    """
    row = np.array([[features[name] for name in masks.quality.features]])
    if not np.isfinite(row).all():
        lacking = [name for name in masks.quality.features if not np.isfinite(features[name])]
        raise ValueError(
            f"the model's trust was fitted with mirrored passes ({', '.join(lacking)}), this prediction has none; "
            "predict with mirroring, or validate without and run braintum_calibrate again"
        )
    dice = float(masks.quality.expected_dice(row)[0])
    low, high = dice_bounds(masks, np.array([dice]))
    smallest, largest = volume_bounds(masks, np.array([features[SIZE]]), np.array([dice]), voxel_size)
    return {
        "expected_dice": dice,
        "dice_interval": [float(low[0]), float(high[0])],
        "volume_interval": [float(smallest[0]), None if np.isinf(largest[0]) else float(largest[0])],
        "review": None if masks.threshold is None else dice < masks.threshold,
    }


def dice_bounds(masks: MaskTrust, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the Dice of cases, (cases,) each."""
    spread = doubt(expected)
    return np.clip(expected - masks.dice_below * spread, 0, 1), np.clip(expected + masks.dice_above * spread, 0, 1)


def volume_bounds(
    masks: MaskTrust, log_size: np.ndarray, expected: np.ndarray, voxel_size: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the size of tumours, (cases,) each, in the unit of ``voxel_size``.

    Args:
        masks: of the model.
        log_size: feature of that name.
        expected: Dice.
        voxel_size: one voxel more is counted on both sides of the logarithm, so that no size is its infinity.
    """
    spread, size = doubt(expected), 10.0**log_size
    low = size * np.exp(-np.minimum(masks.volume_below * spread, 700)) - voxel_size
    with np.errstate(over="ignore"):
        high = size * np.exp(masks.volume_above * spread) - voxel_size
    return np.maximum(low, 0), np.maximum(high, 0)


def _built(kind: type, entry: Mapping[str, Any]) -> Any:
    """A dataclass from its fields in an entry; lists become tuples, an absent bound infinity."""

    def value(name: str) -> Any:
        found = entry[name]
        if found is None and name in _UNBOUNDED:
            return float("inf")
        return _as_tuple(found) if isinstance(found, list) else found

    return kind(**{each.name: value(each.name) for each in fields(kind)})


_UNBOUNDED = {"dice_below", "dice_above", "volume_below", "volume_above"}


def _as_tuple(found: Any) -> Any:
    return tuple(_as_tuple(each) for each in found) if isinstance(found, list) else float_or_text(found)


def float_or_text(found: Any) -> float | str:
    """A text or a number."""
    return found if isinstance(found, str) else float(found)


def finite(found: Any) -> Any:
    if isinstance(found, Mapping):
        return {name: finite(value) for name, value in found.items()}
    if isinstance(found, (list, tuple)):
        return [finite(value) for value in found]
    return None if isinstance(found, float) and not np.isfinite(found) else found
