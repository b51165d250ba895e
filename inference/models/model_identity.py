"""Which model predicted: its plans and weights, by hash."""

from typing import Any

from braintum.architectures.weights_fingerprint import weights_fingerprint
from braintum.commands.provenance import content_hash
from braintum.inference.models.segmentation_predictor import SegmentationPredictor


def model_identity(predictor: SegmentationPredictor) -> dict[str, Any]:
    """Names and hashes of a model that is loaded, ready for JSON.

    Returns:
        ``trainer``, ``plans`` (name), ``plans_hash``, ``checkpoint`` and ``weights``: fold -> fingerprint (see
        :func:`braintum.architectures.weights_fingerprint.weights_fingerprint`); without a model folder,
        folds are counted.
    """
    fingerprints = predictor.fingerprints or [weights_fingerprint(predictor.network.state_dict())]
    folds = predictor.folds or list(range(len(fingerprints)))
    plans = predictor.plans_manager.plans
    return {
        "trainer": predictor.trainer_name,
        "plans": plans.get("plans_name"),
        "plans_hash": content_hash(plans),
        "checkpoint": predictor.checkpoint_name,
        "weights": {str(fold): own for fold, own in zip(folds, fingerprints, strict=True)},
    }
