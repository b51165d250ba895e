"""Plans and dataset.json beside a checkpoint have to be those that it was trained with."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import _plans, save_model, write_preprocessed

from braintum.inference.models.segmentation_predictor import SegmentationPredictor
from braintum.inference.models.trained_with import check_trained_with

DATASET = {
    "channel_names": {"0": "T1", "1": "T2"},
    "labels": {"background": 0, "whole": [1, 2], "core": [2]},
    "regions_class_order": [1, 2],
    "classification": {"class_names": ["glioma", "meningioma"]},
    "numTraining": 8,
}
PLANS = _plans("2d")
CONFIGURATION = PLANS["configurations"]["2d"]


def check(plans: dict[str, Any], dataset_json: dict[str, Any], trained: dict[str, Any] = PLANS) -> None:
    arguments = {"configuration": "2d", "plans": trained, "dataset_json": DATASET}
    check_trained_with({"init_args": arguments}, plans, dataset_json, "fold_1/checkpoint_final.pth")


def changed(content: dict[str, Any], change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    content = copy.deepcopy(content)
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["classification"]["class_names"].reverse(),
            r'classification.class_names is \["meningioma", "glioma"\] here, and was \["glioma", "meningioma"\] in',
        ),
        (
            lambda d: d["classification"].update(negative_class="glioma"),
            "classification.negative_class is .glioma. here, and was null",
        ),
        (lambda d: d.pop("classification"), "classification is null here"),
        (lambda d: d.update(channel_names={"0": "T2", "1": "T1"}), "channel_names.0 is .T2. here, and was .T1."),
        (lambda d: d.update(labels={"background": 0, "core": [2], "whole": [1, 2]}), "labels is .*core.*whole.* here"),
        (lambda d: d["labels"].update(core=[1]), "labels is"),
    ],
)
def test_other_dataset_json_is_refused(change: Callable, message: str) -> None:
    with pytest.raises(ValueError, match=f"fold_1/checkpoint_final.pth was trained with.*dataset.json: {message}.*-f"):
        check(PLANS, changed(DATASET, change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(normalization_schemes=["NoNormalization"]),
            r'2d.normalization_schemes is \["NoNormalization"\] here, and was \["ZScoreNormalization"\] in training',
        ),
        (lambda c: c.update(spacing=[2.0, 1.0]), r"2d.spacing is \[2.0, 1.0\] here"),
        (lambda c: c["architecture"]["arch_kwargs"].update(n_stages=3), "2d.architecture.arch_kwargs.n_stages is 3"),
    ],
)
def test_other_plans_are_refused(change: Callable, message: str) -> None:
    plans = changed(PLANS, lambda p: change(p["configurations"]["2d"]))
    with pytest.raises(ValueError, match=f"plans.json: {message}"):
        check(plans, DATASET)


def test_configuration_that_is_not_there_any_more_is_named() -> None:
    with pytest.raises(ValueError, match="plans.json: 2d is null here"):
        check(changed(PLANS, lambda p: p["configurations"].clear()), DATASET)


def test_what_prediction_does_not_depend_on_may_differ() -> None:
    def change(plans: dict[str, Any]) -> None:
        plans["configurations"]["2d"].update(batch_size=9, data_identifier="elsewhere")
        plans["foreground_intensity_properties_per_channel"] = {"0": {"mean": 1}}

    check(changed(PLANS, change), DATASET | {"numTraining": 99, "calibration": {}})
    check(PLANS, json.loads(json.dumps(DATASET | {"classification": {"class_names": ("glioma", "meningioma")}})))
    check_trained_with({"init_args": {"configuration": "2d"}}, {}, {}, "a ready model")


def test_intensities_count_where_they_normalise() -> None:
    ct = changed(PLANS, lambda p: p["configurations"]["2d"].update(normalization_schemes=["CTNormalization"]))
    other = changed(ct, lambda p: p.update(foreground_intensity_properties_per_channel={"0": {"mean": 1}}))
    with pytest.raises(ValueError, match="foreground_intensity_properties_per_channel.0 is"):
        check(other, DATASET, ct)


def test_classes_in_another_order_beside_one_fold(nnunet_folders: Any) -> None:
    dataset = write_preprocessed(nnunet_folders.preprocessed, "2d")
    model = save_model(dataset, "nnUNetTrainerMultiTask", (0,), "checkpoint_final.pth")
    content = json.loads((model / "dataset.json").read_text())
    content["classification"]["class_names"].sort()
    (model / "dataset.json").write_text(json.dumps(content))
    predictor = SegmentationPredictor(device=torch.device("cpu"), allow_tqdm=False)
    with pytest.raises(ValueError, match="fold_0/checkpoint_final.pth was trained with other files: .*class_names"):
        predictor.initialize_from_trained_model_folder(str(model), (0,))
    trainer = dataset.trainer("nnUNetTrainerMultiTask")
    trainer.dataset_json = content
    checkpoint = str(Path(model, "fold_0", "checkpoint_final.pth"))
    with pytest.raises(ValueError, match="class_names.*train from the beginning"):
        trainer.load_checkpoint(checkpoint)
