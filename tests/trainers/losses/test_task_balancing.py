"""Balancing of the two tasks on toy gradients."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from braintum.trainers.losses.task_balancing import (
    FixedWeights,
    GradNorm,
    PCGrad,
    UncertaintyWeighting,
    build_balancing,
    without_conflict,
)
from braintum.trainers.recipes.settings import TrainingSettings


@pytest.mark.parametrize("value", ["pcGrad", "1"])
def test_unknown_balancing_in_the_environment(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    assert TrainingSettings.from_environment().task_balancing == "fixed"
    monkeypatch.setenv("braintum_task_balancing", value)
    with pytest.raises(ValueError, match=f"takes one of fixed, uncertainty, pcgrad, gradnorm.*{value}"):
        TrainingSettings.from_environment()


def backward(
    balancing: FixedWeights, losses: Any, parameters: Any = (), weights: Any = (1.0, 0.7), **given: Any
) -> None:
    balancing.backward(losses, weights, list(parameters), lambda loss: loss, **{"has_classes": True, **given})


def test_fixed_weights() -> None:
    parameter = nn.Parameter(torch.tensor([2.0]))
    backward(FixedWeights(), ((3 * parameter).sum(), (10 * parameter).sum()), [parameter])
    assert parameter.grad.item() == pytest.approx(3 + 7)  # type: ignore[union-attr]


def test_uncertainty_weighting_by_hand() -> None:
    balancing = UncertaintyWeighting(lowest_segmentation_loss=-1.0)
    with torch.no_grad():
        balancing.log_variances.copy_(torch.tensor([0.5, -0.3]))
    parameter = nn.Parameter(torch.tensor([2.0]))
    losses = (0.4 * parameter).sum() - 1.2, (0.3 * parameter).sum()  # -0.4 and 0.6
    backward(balancing, losses, [parameter])
    first, second = math.exp(-0.5), math.exp(0.3)
    assert parameter.grad.item() == pytest.approx(0.4 * first + 0.7 * 0.3 * second)  # type: ignore[union-attr]
    gradient = balancing.log_variances.grad
    assert gradient is not None
    # d/ds of w (exp(-s) (loss - lowest) + s / 2)
    assert gradient.tolist() == pytest.approx([0.5 - first * 0.6, 0.7 * (0.5 - second * 0.6)])


def test_uncertainty_finds_twice_the_loss() -> None:
    """exp(-s) loss + s / 2 is lowest at σ² = 2 · loss."""
    balancing = UncertaintyWeighting(lowest_segmentation_loss=-1.0)
    optimizer = torch.optim.Adam(balancing.parameters(), lr=0.05)
    for _ in range(500):
        optimizer.zero_grad()
        backward(balancing, (torch.tensor(-0.75), torch.tensor(2.0)))
        optimizer.step()
    assert torch.exp(balancing.log_variances).tolist() == pytest.approx([0.5, 4.0], rel=1e-3)


def test_batch_without_classes_leaves_their_uncertainty_alone() -> None:
    balancing = UncertaintyWeighting(lowest_segmentation_loss=0.0)
    backward(balancing, (torch.tensor(1.0), torch.tensor(0.0)), has_classes=False)
    gradient = balancing.log_variances.grad
    assert gradient is not None and gradient[0] != 0 and gradient[1] == 0


def test_gradnorm_by_hand() -> None:
    balancing = GradNorm(lowest_segmentation_loss=-1.0, asymmetry=1.0)
    shared, own = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([1.0]))

    def step(has_classes: bool = True) -> None:
        losses = (0.4 * shared + 0.1 * own).sum() - 1.0, (0.3 * shared).sum()  # -0.1 and 0.6, 0.9 above the lowest
        backward(balancing, losses, [shared, own], weights=(1.0, 2.0), has_classes=has_classes)

    step()
    assert balancing.first_losses.tolist() == pytest.approx([0.9, 0.6])
    assert shared.grad.item() == pytest.approx(0.4 + 2 * 0.3)  # type: ignore[union-attr]
    assert own.grad.item() == pytest.approx(0.1)  # type: ignore[union-attr]
    # norms 0.4 and 0.6 with weights of one, both wanted at their mean of 0.5: the first weight has to rise
    assert balancing.task_weights.grad.tolist() == pytest.approx([-0.4, 0.6])  # type: ignore[union-attr]
    with torch.no_grad():
        balancing.task_weights.copy_(torch.tensor([3.0, 1.0]))
        shared.copy_(torch.tensor([1.0]))
    step()  # now at 0.5 / 0.9 and 0.3 / 0.6 of the first losses; weights become 1.5 and 0.5
    assert balancing.first_losses.tolist() == pytest.approx([0.9, 0.6])
    assert balancing.task_weights.tolist() == pytest.approx([1.5, 0.5])
    assert shared.grad.item() == pytest.approx(1.5 * 0.4 + 0.5 * 0.6)  # type: ignore[union-attr]
    # sizes 0.6 and 0.3 around a mean of 0.45, times 0.5556 and 0.5 over their mean of 0.5278: 0.4737 and 0.4263
    assert balancing.task_weights.grad.tolist() == pytest.approx([0.4, -0.6])  # type: ignore[union-attr]
    step(has_classes=False)
    assert not balancing.task_weights.grad.any()  # type: ignore[union-attr]


def test_gradnorm_brings_gradients_to_the_same_size() -> None:
    balancing = GradNorm(lowest_segmentation_loss=0.0, asymmetry=0.0)
    optimizer = torch.optim.Adam(balancing.parameters(), lr=0.025)
    parameter = nn.Parameter(torch.tensor([1.0]))
    for _ in range(200):
        backward(balancing, ((4 * parameter).sum(), parameter.sum()), [parameter], weights=(1.0, 1.0))
        optimizer.step()
    first, second = balancing.task_weights.tolist()
    assert 4 * first == pytest.approx(second, rel=0.15)
    assert first + second == pytest.approx(2, abs=0.1)


def pcgrad_reference(gradients: list[torch.Tensor]) -> torch.Tensor:
    """Algorithm 1 of Yu et al. 2020, literally."""
    projected = [gradient.clone() for gradient in gradients]
    for i, gradient in enumerate(projected):
        for j in np.random.permutation([other for other in range(len(gradients)) if other != i]):
            dot = gradient @ gradients[j]
            if dot < 0:
                gradient -= dot / gradients[j].norm() ** 2 * gradients[j]
    return torch.stack(projected).sum(0)


@pytest.mark.parametrize("seed", range(6))
def test_gradient_surgery_against_the_algorithm(seed: int) -> None:
    torch.manual_seed(seed)
    first, second = torch.randn(2, 12).unbind()
    if seed % 2:
        second = second - 2 * first  # surely a conflict
    found = without_conflict([first[:4].view(2, 2), first[4:]], [second[:4].view(2, 2), second[4:]])
    flat = torch.cat([gradient.flatten() for gradient in found])
    torch.testing.assert_close(flat, pcgrad_reference([first, second]))
    if seed % 2:
        assert first @ second < 0 and not torch.allclose(flat, first + second)
        torch.testing.assert_close(flat @ (first / first.norm() + second / second.norm()), _bisector(first, second))


def _bisector(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Length of both projections along the bisector, from lengths and angle alone."""
    cosine = first @ second / (first.norm() * second.norm())
    return (first.norm() + second.norm()) * (1 - cosine**2)


def test_gradient_surgery_on_shared_parameters_only() -> None:
    shared, own, of_classes, unused = (nn.Parameter(torch.tensor([1.0, 2.0])) for _ in range(4))
    frozen = nn.Parameter(torch.ones(2), requires_grad=False)
    segmentation = (shared * torch.tensor([1.0, 0.0])).sum() + (own * 5).sum()
    classes = (shared * torch.tensor([-1.0, 1.0])).sum() + (of_classes * 10).sum() + frozen.sum()
    backward(PCGrad(), (segmentation, classes), [shared, own, of_classes, unused, frozen], weights=(1.0, 1.0))
    # (1, 0) loses its part along (-1, 1): (1/2, 1/2); (-1, 1) its part along (1, 0): (0, 1)
    torch.testing.assert_close(shared.grad, torch.tensor([0.5, 1.5]))
    torch.testing.assert_close(own.grad, torch.full((2,), 5.0))
    torch.testing.assert_close(of_classes.grad, torch.full((2,), 10.0))
    assert unused.grad is None and frozen.grad is None


def test_gradient_surgery_with_a_gradient_scaler() -> None:
    """The factor of the scaler drops out of the projection, and an overflow reaches the scaler."""

    def losses(parameter: nn.Parameter) -> Any:
        return (parameter * torch.tensor([1.0, 0.5])).sum(), (parameter * torch.tensor([-1.0, 1.0])).sum()

    plain, scaled = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    backward(PCGrad(), losses(plain), [plain])
    PCGrad().backward(losses(scaled), (1.0, 0.7), [scaled], lambda loss: 1024 * loss, has_classes=True)
    assert plain.grad is not None and scaled.grad is not None
    torch.testing.assert_close(scaled.grad / 1024, plain.grad)
    PCGrad().backward(losses(scaled), (1.0, 0.7), [scaled], lambda loss: torch.inf * loss, has_classes=True)
    assert not scaled.grad.isfinite().all()


@pytest.mark.parametrize("name", ["uncertainty", "pcgrad", "gradnorm"])
def test_no_balancing_over_several_processes(name: str) -> None:
    assert type(build_balancing("fixed", 0.0, is_ddp=True)) is FixedWeights
    with pytest.raises(NotImplementedError, match=f"{name} trains on one GPU.*fixed weights"):
        build_balancing(name, 0.0, is_ddp=True)
