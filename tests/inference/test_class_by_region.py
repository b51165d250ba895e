"""The class by the part of the tumour that the classifier sees, from network to case result."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import write_preprocessed
from trainer_steps import hand_over

from braintum.conversion.format.label_names import named_labels
from braintum.inference.prediction.class_evidence import aggregate
from braintum.inference.prediction.joint_predictor import JointPredictor

LABELS = {"background": 0, "core": 1, "oedema": 2}
REGIONS = {"background": 0, "whole": [1, 2], "core": [2]}


def verdict_of(folders: Any, labels: dict[str, Any], trainer_name: str) -> Any:
    dataset = write_preprocessed(folders.preprocessed, "2d", labels=labels)
    if any(isinstance(value, list) for value in labels.values()):
        dataset.dataset_json["regions_class_order"] = [1, 2]
    trainer = dataset.trainer(trainer_name)
    torch.manual_seed(0)
    trainer.initialize()
    empty = JointPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor = hand_over(trainer, empty, [trainer.network.state_dict()])
    channels = len(dataset.dataset_json["channel_names"])
    image = torch.randn(channels, 1, 40, 40, generator=torch.Generator().manual_seed(1))
    predictor.predict_logits_from_preprocessed_data(image)
    return aggregate(predictor.evidence)


@pytest.mark.parametrize("trainer_name", ["nnUNetTrainerMultiTask", "nnUNetTrainerBrainTumNet"])
def test_all_labels_together_are_what_the_classifier_sees_anyway(nnunet_folders: Any, trainer_name: str) -> None:
    verdict = verdict_of(nnunet_folders, LABELS, trainer_name)
    assert list(verdict.by_region) == list(named_labels({"labels": LABELS})) == ["core", "oedema", "any_label"]
    np.testing.assert_allclose(verdict.by_region["any_label"], verdict.probabilities, atol=1e-5)
    assert not np.allclose(verdict.by_region["core"], verdict.by_region["oedema"], atol=1e-6)
    for probabilities in verdict.by_region.values():
        assert probabilities.sum() == pytest.approx(1)


def test_regions(nnunet_folders: Any) -> None:
    verdict = verdict_of(nnunet_folders, REGIONS, "nnUNetTrainerMultiTask")
    assert list(verdict.by_region) == ["whole", "core"]


def test_one_label_needs_no_parts(nnunet_folders: Any) -> None:
    assert verdict_of(nnunet_folders, {"background": 0, "tumour": 1}, "nnUNetTrainerMultiTask").by_region == {}


def test_a_head_that_sees_no_segmentation_has_no_parts(nnunet_folders: Any) -> None:
    assert verdict_of(nnunet_folders, LABELS, "nnUNetTrainerJointUNet").by_region == {}
