"""Dice and IoU of training batches, by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from braintum.trainers.classes.progress import CLASS_KEYS, OVERLAP_KEYS, MultiTaskLogger, OverlapLogger
from braintum.trainers.losses.training_overlap import OverlapOfTraining


class Sum(nn.Module):
    def forward(self, output: Any, target: Any) -> torch.Tensor:
        return (output[0] if isinstance(output, list) else output).sum()


def counting(**labels: Any) -> OverlapOfTraining:
    manager: Any = SimpleNamespace(**{"has_regions": False, "has_ignore_label": False, "ignore_label": 9} | labels)
    return OverlapOfTraining(Sum(), manager)


def logits_of(labels: list[int], num_labels: int = 3) -> torch.Tensor:
    return nn.functional.one_hot(torch.tensor([[labels]]), num_labels).movedim(-1, 1).float().requires_grad_()


def test_labels_over_all_batches_of_an_epoch() -> None:
    loss = counting()
    predicted, truth = [0, 1, 1, 2], torch.tensor([[[[0, 1, 2, 2]]]])
    value = loss([logits_of(predicted), None], [truth, None])  # of deep supervision, the first counts
    value.backward()
    with torch.no_grad():
        loss(logits_of([1, 1, 1, 1]), truth)  # as in validation: not counted
    loss(logits_of([1, 0, 0, 0]), torch.tensor([[[[1, 0, 0, 0]]]]))
    # label 1: 2 found, 1 too many; label 2: 1 found, 1 missed
    assert loss.figures() == pytest.approx((np.mean([4 / 5, 2 / 3]), np.mean([2 / 3, 1 / 2])))
    assert np.isnan(loss.figures()).all()


def test_ignored_voxels_do_not_count() -> None:
    loss = counting(has_ignore_label=True)
    loss(logits_of([1, 1, 1, 0]), torch.tensor([[[[1, 1, 9, 0]]]]))
    assert loss.figures() == (1.0, 1.0)
    loss(logits_of([0, 0, 0, 0]), torch.tensor([[[[9, 9, 9, 9]]]]))
    assert np.isnan(loss.figures()).all()


def test_regions() -> None:
    loss = counting(has_regions=True, has_ignore_label=True)
    logits = torch.tensor([[[[5.0, 5.0, -5.0, 5.0]], [[5.0, -5.0, -5.0, -5.0]]]], requires_grad=True)
    truth = torch.tensor([[[[1, 1, 1, 0]], [[1, 0, 0, 0]], [[0, 0, 0, 1]]]])  # the last voxel is ignored
    loss(logits, truth)
    assert loss.figures() == pytest.approx((np.mean([4 / 5, 1]), np.mean([2 / 3, 1])))


def test_logs_of_earlier_trainings_go_on() -> None:
    for logger, keys in ((OverlapLogger(), OVERLAP_KEYS), (MultiTaskLogger(), OVERLAP_KEYS + CLASS_KEYS)):
        assert all(logger.get_value(key, None) == [] for key in keys)
        logger.load_checkpoint({"epoch_end_timestamps": [1.0, 2.0], "train_losses": [0.1, 0.2]})
        assert all(np.isnan(logger.get_value(key, None)).tolist() == [True, True] for key in keys)
