"""Class predictions whose right temperature is known, and results and calibrations as they are stored."""

import numpy as np
import scipy.special

from braintum.conversion.format.calibration import Calibration
from braintum.conversion.format.cases import ClassSchema
from braintum.evaluation.calibration.calibration import HeldOutCases
from braintum.inference.prediction.class_evidence import FoldEvidence, aggregate
from braintum.inference.results.calibration import result_of

NAMES = ("meningioma", "glioma", "no_tumor")


def simulated(temperature, cases=600, seed=0):
    """Probabilities that become true frequencies at a temperature, and labels drawn from these; (n, 3), (n,)."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (cases, 3))
    true = scipy.special.softmax(logits, axis=1)
    labels = (random.random((cases, 1)) > true.cumsum(1)).sum(1)
    return scipy.special.softmax(logits * temperature, axis=1), labels


def held_out(temperature=3.0, cases=300, folds=3, cases_a_patient=2, seed=0):
    probabilities, labels = simulated(temperature, cases, seed)
    patients = np.arange(cases) // cases_a_patient
    names = tuple(f"case_{number:03d}" for number in range(cases))
    clusters = np.array([f"P{patient:03d}" for patient in patients])
    return HeldOutCases(names, probabilities, labels, patients % folds, clusters, len(set(patients)), True)


def case_result(name, probabilities, mirrored=True):
    winner = int(np.argmax(probabilities))
    return {
        "case": name,
        "predicted_class": NAMES[winner],
        "confidence": float(probabilities[winner]),
        "probabilities": dict(zip(NAMES, map(float, probabilities), strict=True)),
        "mirror_spread": dict.fromkeys(NAMES, 0.1 if mirrored else None),
        "predictive_entropy": 0.5,
        "mutual_information": 0.25 if mirrored else None,
        "tumour_volume": 3.0,
        "volume_unit": "mm2",
    }


def calibrated(name, probabilities, **changes):
    """As predicted with one fold, one window and no mirroring, and then calibrated."""
    verdict = aggregate([FoldEvidence(np.array([[probabilities]], np.float32), np.ones((1, 1), np.float32))])
    return result_of(name, verdict, ClassSchema(NAMES), (3.0, "mm2"), make_calibration(**changes))


def make_calibration(**changes):
    given = {
        "temperature": 2.0,
        "folds": (0, 1),
        "checkpoint": "checkpoint_final.pth",
        "fingerprints": {},
        "aggregation": "weighted",
        "mirroring": True,
        "num_cases": 40,
        "num_patients": None,
        "target_accuracy": 0.9,
        "threshold": 0.6,
        "before": {"ece": 0.2, "nll": 1.0, "brier": 0.5},
        "after": {"ece": None, "nll": None, "brier": None},
    }
    return Calibration(**{**given, **changes})
