"""Networks of others: the contract of all networks, sizes that do not divide, and published numbers of parameters."""

import importlib
import sys
from typing import Any, ClassVar

import pytest
import torch
from network_contract import NetworkContract, build_network, make_plan, outputs
from tiny_baselines import TINY
from torch import nn

from braintum.architectures.baselines.baseline import BaselineNetwork, SafeBatchNorm2d
from braintum.architectures.baselines.medformer import MedFormer
from braintum.architectures.baselines.monai_networks import MedNeXt, SwinUNETR
from braintum.architectures.baselines.smp_networks import DeepLabV3Plus, SegFormer, UPerNet
from braintum.architectures.baselines.swin_unet import SwinUNet
from braintum.architectures.baselines.transunet import TransUNet

PLAN = make_plan("2d", (64, 48), (6, 10, 12), ((1, 1), (2, 2), (2, 2)), [(3, 3)] * 3, residual=False)
VOLUMES = make_plan(
    "3d", (12, 32, 20), (4, 7, 8), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), [(1, 3, 3), *[(3, 3, 3)] * 2], residual=False
)
NETWORKS: list[type[BaselineNetwork]] = [
    *(TransUNet, SwinUNet, DeepLabV3Plus, MedFormer, SwinUNETR, MedNeXt, UPerNet, SegFormer),
]
IN_3D = (MedFormer, SwinUNETR, MedNeXt)


class BaselineContract(NetworkContract):
    plans: ClassVar = (PLAN,)

    @property
    def extra_kwargs(self) -> dict[str, Any]:  # type: ignore[override]
        """Of the network under test."""
        return TINY[self.network_class.__name__]

    @pytest.mark.thorough
    def test_graphs_compile_without_breaks(self) -> None:
        """Seconds each, and code of others for the most part."""
        super().test_graphs_compile_without_breaks()

    @pytest.mark.thorough
    def test_can_be_exported(self, representative_plan: Any) -> None:
        """Likewise."""
        super().test_can_be_exported(representative_plan)


class TestTransUNet(BaselineContract):
    network_class = TransUNet


class TestSwinUNet(BaselineContract):
    network_class = SwinUNet


class TestDeepLabV3Plus(BaselineContract):
    network_class = DeepLabV3Plus


class TestMedFormer(BaselineContract):
    network_class = MedFormer


class TestSwinUNETR(BaselineContract):
    network_class = SwinUNETR


class TestMedNeXt(BaselineContract):
    network_class = MedNeXt


class TestUPerNet(BaselineContract):
    network_class = UPerNet


class TestSegFormer(BaselineContract):
    network_class = SegFormer


def build(network_class: type[BaselineNetwork], plan: Any = PLAN, **kwargs: Any) -> Any:
    return build_network(network_class, plan, **{**TINY[network_class.__name__], **kwargs})


@pytest.mark.parametrize("network_class", IN_3D)
def test_volumes(network_class: type[BaselineNetwork]) -> None:
    network = build(network_class, VOLUMES, deep_supervision=True, num_tumour_classes=3).train()
    prediction = network(VOLUMES.patch(1, 1), with_classes=True)
    segmentation, classes = prediction
    assert [tuple(logits.shape[2:]) for logits in segmentation] == VOLUMES.scales() and classes.shape == (1, 3)
    sum(each.float().square().sum() for each in outputs(prediction)).backward()
    assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("network_class", [each for each in NETWORKS if each not in IN_3D])
def test_networks_of_2d_images_say_so(network_class: type[BaselineNetwork]) -> None:
    with pytest.raises(NotImplementedError, match="sees 2-D images; train it with a 2d configuration"):
        build(network_class, VOLUMES)


@pytest.mark.parametrize("network_class", [TransUNet, SwinUNETR])
def test_images_that_do_not_divide_are_padded_and_cropped(network_class: type[BaselineNetwork]) -> None:
    network = build(network_class).eval()
    x = torch.randn(1, 1, 70, 66)
    padded = nn.functional.pad(x, (0, 128 - 66, 0, 128 - 70))
    assert network.divisor in (16, 32)
    size = [-(-edge // network.divisor) * network.divisor for edge in x.shape[2:]]
    with torch.no_grad():
        expected = network(padded[..., : size[0], : size[1]])[..., :70, :66]
        torch.testing.assert_close(network(x), expected, rtol=0, atol=0)


def test_weights_do_not_need_memory_to_be_counted() -> None:
    """By which the size of a model from elsewhere is checked before it is loaded."""
    with torch.device("meta"):
        for network_class in NETWORKS:
            assert all(parameter.is_meta for parameter in build(network_class).parameters())


def test_one_value_a_channel_takes_the_running_statistics() -> None:
    norm = SafeBatchNorm2d(2).train()
    x = torch.randn(1, 2, 1, 1)
    torch.testing.assert_close(norm(x), x / (1 + norm.eps) ** 0.5)
    several = torch.randn(3, 2, 4, 4)
    torch.testing.assert_close(norm(several), nn.BatchNorm2d(2).train()(several))


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "braintum.architectures.baselines.smp_networks"
    monkeypatch.delitem(sys.modules, module)
    for name in [name for name in sys.modules if name.startswith("segmentation_models_pytorch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ImportError, match=r"pip install braintum\[baselines\]"):
        importlib.import_module(module)
