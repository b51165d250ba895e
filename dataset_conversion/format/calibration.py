"""Calibration of a model's class probabilities: what `dataset.json` of the model folder carries under `calibration`.

nnU-Net exports and installs models with that file, so a calibration in it travels with the model. It is fitted by
`braintum_calibrate` and applied by `braintum_predict --calibrated`. Beside it, under `trust`, lies what may be promised
of masks, sizes and class sets.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from braintum.conversion.format.trust import TRUST_KEY, Trust

CALIBRATION_KEY = "calibration"
UNCERTAIN = "uncertain"
"""The verdict on a case whose confidence is below the threshold."""

SMALLEST_PROBABILITY = 1e-12
"""Softmax in float32 underflows to 0; a probability of 0 would stay 0 at any temperature, and cost infinitely much."""


@dataclass(frozen=True)
class Calibration:
    """A temperature, what it was fitted on, and how well it did.

    Attributes:
        temperature: probabilities become `p ** (1 / temperature)`, normalised; above 1 they become less certain.
        folds: whose held-out cases it was fitted on.
        checkpoint: name of the checkpoint file that predicted them.
        fingerprints: fold (as text) -> fingerprint of that checkpoint's weights.
        aggregation: how class evidence was aggregated.
        mirroring: whether mirrored images were predicted too.
        num_cases: how many held-out cases with a known class it was fitted on.
        num_patients: of these cases; None where patients are not known.
        target_accuracy: that accepted cases should reach; None if none was asked for.
        threshold: confidence below which a case is uncertain; None where no target was asked for, or none reached it.
        before: `ece`, `nll` and `brier` of the held-out cases as predicted; None where undefined.
        after: the same of probabilities at temperatures that were fitted without the case's own fold.
        trust: what is promised beside; None for models that an earlier version calibrated.
    """

    temperature: float
    folds: tuple[int, ...]
    checkpoint: str
    fingerprints: Mapping[str, str]
    aggregation: str
    mirroring: bool
    num_cases: int
    num_patients: int | None
    target_accuracy: float | None
    threshold: float | None
    before: Mapping[str, float | None]
    after: Mapping[str, float | None]
    trust: Trust | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the value of `calibration` in `dataset.json`; that of `trust` is apart."""
        entry = {**asdict(replace(self, trust=None)), "folds": list(self.folds)}
        del entry["trust"]
        return entry

    @classmethod
    def from_dataset_json(cls, dataset_json: Mapping[str, Any]) -> "Calibration | None":
        """Reads the calibration from the content of a model's `dataset.json`.

        Returns:
            None for a model without one.

        Raises:
            ValueError: the entry is not valid.
        """
        entry = dataset_json.get(CALIBRATION_KEY)
        if entry is None:
            return None
        names = [field.name for field in fields(cls) if field.name != "trust"]
        missing = [name for name in names if name not in entry] if isinstance(entry, Mapping) else names
        if missing:
            raise ValueError(
                f'"calibration" in dataset.json of the model lacks {", ".join(missing)}; fit it again with '
                "braintum_calibrate"
            )
        again = "fit it again with braintum_calibrate"
        if not isinstance(entry["folds"], (list, tuple)):
            raise ValueError(
                f'"calibration" in dataset.json of the model: folds has to be a list, not {entry["folds"]!r}; {again}'
            )
        for name in ("temperature", "threshold"):
            value = entry[name]
            valid = isinstance(value, (int, float)) and np.isfinite(value) and value > 0
            if not valid and not (name == "threshold" and value is None):
                raise ValueError(
                    f'"calibration" in dataset.json of the model: {name} has to be a positive number, not {value!r}; '
                    f"{again}"
                )
        found = {**{name: entry[name] for name in names}, "folds": tuple(entry["folds"])}
        return cls(**found, trust=Trust.from_dataset_json(dataset_json))

    def verdict(self, class_name: str, confidence: float) -> str:
        """Returns the predicted class, or `uncertain` where its calibrated probability is below the threshold."""
        return UNCERTAIN if self.threshold is not None and confidence < self.threshold else class_name


def stored_calibration(dataset_file: Path) -> dict[str, Any]:
    """Returns the entries `calibration` and `trust` of a model's `dataset.json` as they stand there.

    Returns:
        Empty where there is no such file, or no calibration in it.

    Raises:
        ValueError: the file is damaged.
    """
    if not dataset_file.is_file():
        return {}
    try:
        content = json.loads(dataset_file.read_text(encoding="utf-8"))
        return {key: content[key] for key in (CALIBRATION_KEY, TRUST_KEY) if key in content}
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"{dataset_file} is damaged ({error}); restore it, or delete it to start afresh") from error


def at_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Returns `p ** (1 / temperature)`, normalised (temperature scaling: Guo et al. 2017, eq. 9).

    The logits' softmax is `p` itself up to a constant that normalisation removes, so that aggregated probabilities,
    which have no logits, are scaled alike.

    Args:
        probabilities: (..., classes).
        temperature: above 0.

    Returns:
        (..., classes), float64, summing to one along the last axis.
    """
    scaled = relative_logs(probabilities) / temperature
    powers = np.exp(scaled)
    return powers / powers.sum(-1, keepdims=True)


def relative_logs(probabilities: np.ndarray) -> np.ndarray:
    """Returns `log p - max log p`, (..., classes), float64; probabilities below 1e-12 count as 1e-12."""
    logs = np.log(np.maximum(np.asarray(probabilities, dtype=np.float64), SMALLEST_PROBABILITY))
    return logs - logs.max(-1, keepdims=True)
