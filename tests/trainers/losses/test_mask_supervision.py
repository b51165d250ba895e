"""Supervised masks of attention: the loss by hand, and what it teaches."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import TinyDataset, write_preprocessed
from torch import nn
from trainer_steps import start

from braintum.architectures.blocks.adaptive_masked_attention import AdaptiveMaskedAttention, attentions_of
from braintum.trainers.losses.mask_supervision import MaskSupervision

IGNORE = 9


class Zero(nn.Module):
    def forward(self, output: torch.Tensor, target: Any) -> torch.Tensor:
        return 0 * output.sum()


def supervision(weight: float = 1.0, **labels: Any) -> tuple[Any, nn.Module]:
    """The loss, and attention in windows of two tokens, with two heads, that it watches."""
    torch.manual_seed(0)
    manager: Any = SimpleNamespace(**{"has_regions": False, "ignore_label": None} | labels)
    network = nn.Sequential(AdaptiveMaskedAttention(4, 3, 2, (1, 2)))
    return MaskSupervision(Zero(), network, manager, weight), network[0]


def expected_loss(masks: torch.Tensor, holds: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Of masks (B, Y, X, heads), literally."""
    mean = masks.mean(-1)
    return -(holds * mean.log() + (1 - holds) * (1 - mean).log())[counts.bool()].mean()


@pytest.mark.parametrize("is_listed", [False, True])
def test_loss_by_hand(is_listed: bool) -> None:
    loss, attention = supervision(0.5)
    tokens, low_level = torch.randn(1, 2, 2, 4), torch.randn(1, 2, 2, 3)
    output = attention(tokens, low_level)
    target = torch.zeros(1, 1, 4, 6)
    target[..., 0, 2], target[..., 3, 5] = 2, 1  # within the first and the last token, each of two by three
    found = loss(output, [target, None] if is_listed else target)
    holds = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    expected = expected_loss(attention.masks(tokens, low_level), holds, torch.ones_like(holds))
    torch.testing.assert_close(found, 0.5 * expected)
    found.backward()
    assert all(parameter.grad.any() for parameter in attention.mask.parameters())
    with torch.no_grad():  # as in validation
        assert loss(attention(tokens, low_level), target) == 0


@pytest.mark.parametrize("has_regions", [False, True])
def test_ignored_voxels_do_not_count_but_tumour_beside_them_does(has_regions: bool) -> None:
    loss, attention = supervision(has_regions=has_regions, ignore_label=IGNORE)
    tokens, low_level = torch.randn(1, 1, 4, 4), torch.randn(1, 1, 4, 3)
    labels = torch.tensor([[[[0, 0, 1, IGNORE, IGNORE, 0, 0, 2]]]])  # two voxels a token
    if has_regions:
        labels = torch.cat([(labels == 1) | (labels == 2), labels == 2, labels == IGNORE], 1)
    found = loss(attention(tokens, low_level), labels)
    holds, counts = torch.tensor([[[0.0, 1.0, 0.0, 1.0]]]), torch.tensor([[[1, 1, 0, 1]]])
    torch.testing.assert_close(found, expected_loss(attention.masks(tokens, low_level), holds, counts))
    unknown = torch.full_like(labels, IGNORE)
    assert loss(attention(tokens, low_level), unknown if not has_regions else labels[:, [2, 2, 2]] | True) == 0


def test_volumes_and_grids_that_do_not_divide() -> None:
    loss, _ = supervision()
    attention = attentions_of(nn.Sequential(AdaptiveMaskedAttention(4, 3, 2, (2, 2, 2))))["0"]
    loss = MaskSupervision(Zero(), nn.Sequential(attention), loss.label_manager, 1.0)
    output = attention(torch.randn(2, 2, 3, 2, 4), torch.randn(2, 2, 3, 2, 3))
    assert loss(output, torch.ones(2, 1, 5, 7, 4)).isfinite()


@pytest.fixture
def dataset(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> TinyDataset:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("braintum_seed", "1")
    return write_preprocessed(nnunet_folders.preprocessed, "2d")


def contrast_of_masks(trainer: Any, steps: int) -> float:
    """Mean mask of tokens with tumour minus that of the others, of all blocks and batches, after some steps."""
    for group in trainer.optimizer.param_groups:
        group["lr"] = 1e-2
    for _ in range(steps):
        trainer.train_step(next(trainer.dataloader_train))
    batch = next(trainer.dataloader_val)
    masks: list[torch.Tensor] = []
    handles = [
        each.mask.register_forward_hook(lambda _, inputs, output: masks.append(output.sigmoid().mean(-1)))
        for each in attentions_of(trainer.network).values()
    ]
    with torch.no_grad():
        trainer.network.eval()(batch["data"])
    for handle in handles:
        handle.remove()
    target = batch["target"][0] if isinstance(batch["target"], list) else batch["target"]
    differences = []
    for mask in masks:
        holds = nn.functional.adaptive_max_pool2d((target[:, 0] > 0).float(), mask.shape[1:]).bool()
        differences.append(float(mask[holds].mean() - mask[~holds].mean()))
    return float(np.mean(differences))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnUNetTrainerBrainTumNet", "nnUNetTrainerMultiTaskMaskedAttention"])
def test_masks_learn_the_tumour(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    without = contrast_of_masks(start(dataset.trainer(name)), 15)
    monkeypatch.setenv("braintum_mask_supervision", "1")
    assert contrast_of_masks(start(dataset.trainer(name)), 15) > max(0.3, without + 0.2)


@pytest.mark.parametrize("name", ["nnUNetTrainerBrainTumNetNoTransformer", "nnUNetTrainerMaskedImages"])
def test_networks_without_masks_are_refused(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("braintum_mask_supervision", "1")
    with pytest.raises(NotImplementedError, match="no attention masks to supervise; unset braintum_mask_supervision"):
        dataset.trainer(name).initialize()
