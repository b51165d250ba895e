"""nnU-Net's own networks with a classification head, and the head."""

from typing import Any, ClassVar

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from network_contract import PLANS, NetworkContract, Plan, build_network
from torch import nn

from braintum.architectures.heads.classification_head import TumourWeightedClassificationHead, tumour_probability
from braintum.architectures.networks.attended_multi_task_unet import (
    LargeKernelMultiTaskPlainConvUNet,
    LargeKernelMultiTaskResidualEncoderUNet,
    MaskedAttentionMultiTaskPlainConvUNet,
    MaskedAttentionMultiTaskResidualEncoderUNet,
)
from braintum.architectures.networks.multi_task_unet import (
    MultiTaskPlainConvUNet,
    MultiTaskResidualEncoderUNet,
    multi_task_network_class,
)


class MultiTaskContract(NetworkContract):
    """What nnU-Net's own networks with a head promise beyond the contract."""

    stock_class: ClassVar[type[nn.Module]]
    stock_topology = True

    def test_forward_without_classes_is_the_stock_networks(self, plan: Plan) -> None:
        patch = plan.patch(2, 1)
        stock, ours = build_network(self.stock_class, plan), self.build(plan)
        missing, unexpected = ours.load_state_dict(stock.state_dict(), strict=False)
        assert not unexpected
        assert missing and all(key.startswith("classification_head.seg_layers.") for key in missing)
        torch.testing.assert_close(ours(patch), stock(patch), rtol=0, atol=0)

    def test_class_loss_reaches_encoder_but_not_decoder(self, plan: Plan) -> None:
        network = self.build(plan)
        network(plan.patch(2, 1), with_classes=True)[1].square().sum().backward()
        assert any(parameter.grad is not None for parameter in network.encoder.parameters())
        decoder_only = [p for name, p in network.decoder.named_parameters() if not name.startswith("encoder.")]
        assert all(parameter.grad is None for parameter in decoder_only)

    def test_memory_estimate_adds_the_projected_features(self, plan: Plan) -> None:
        network = self.build(plan, deep_supervision=True)
        stock = build_network(self.stock_class, plan, deep_supervision=True).compute_conv_feature_map_size(
            plan.patch_size
        )
        projected: list[torch.Tensor] = []
        for project in network.classification_head.seg_layers["project"]:
            project.register_forward_hook(lambda module, inputs, output: projected.append(output))
        network(plan.patch(1, 1), with_classes=True)
        added = network.compute_conv_feature_map_size(plan.patch_size) - stock
        assert projected and added == sum(features.numel() for features in projected)


class TestMultiTaskPlainConvUNet(MultiTaskContract):
    network_class, stock_class = MultiTaskPlainConvUNet, PlainConvUNet
    plans = [plan for plan in PLANS if not plan.is_residual]


class TestMultiTaskResidualEncoderUNet(MultiTaskContract):
    network_class, stock_class = MultiTaskResidualEncoderUNet, ResidualEncoderUNet
    plans = [plan for plan in PLANS if plan.is_residual]


class AttendedContract(NetworkContract):
    """What the variants with an attention in the encoder promise beyond the contract."""

    stock_class: ClassVar[type[nn.Module]]
    stock_topology = True

    def test_stock_keys_are_kept_and_the_attention_starts_small(self, plan: Plan) -> None:
        stock, ours = build_network(self.stock_class, plan), self.build(plan)
        missing, unexpected = ours.load_state_dict(stock.state_dict(), strict=False)
        assert not unexpected
        assert {key.split(".")[0] for key in missing} == {"classification_head", "refinements"}
        patch = plan.patch(2, 1)
        assert not torch.equal(ours(patch), stock(patch))
        for refine in ours.refinements:
            torch.nn.init.zeros_(refine.scale)
        torch.testing.assert_close(ours(patch), stock(patch), rtol=0, atol=0)


class TestLargeKernelPlainConvUNet(AttendedContract):
    network_class, stock_class = LargeKernelMultiTaskPlainConvUNet, PlainConvUNet
    plans = [plan for plan in PLANS if not plan.is_residual]


class TestLargeKernelResidualEncoderUNet(AttendedContract):
    network_class, stock_class = LargeKernelMultiTaskResidualEncoderUNet, ResidualEncoderUNet
    plans = [plan for plan in PLANS if plan.is_residual]


class TestMaskedAttentionPlainConvUNet(AttendedContract):
    network_class, stock_class = MaskedAttentionMultiTaskPlainConvUNet, PlainConvUNet
    plans = [plan for plan in PLANS if not plan.is_residual]


class TestMaskedAttentionResidualEncoderUNet(AttendedContract):
    network_class, stock_class = MaskedAttentionMultiTaskResidualEncoderUNet, ResidualEncoderUNet
    plans = [plan for plan in PLANS if plan.is_residual]


@pytest.mark.parametrize("network_class", [MultiTaskPlainConvUNet, MultiTaskResidualEncoderUNet])
def test_plans_name_the_stock_class_in_any_module(network_class: type[nn.Module]) -> None:
    stock = network_class.__name__.removeprefix("MultiTask")
    assert multi_task_network_class(f"some.older.module.{stock}") is network_class


def test_network_without_counterpart_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="PrimusNetwork.*BrainTumPlanner"):
        multi_task_network_class("somewhere.PrimusNetwork")


def test_tumour_probability_softmax_and_union_of_regions() -> None:
    logits = torch.tensor([[[0.0]], [[1.0]], [[3.0]]])[None]  # (1, 3, 1, 1)
    exponentials = torch.exp(logits)
    expected = (exponentials[:, 1:].sum(1, keepdim=True)) / exponentials.sum(1, keepdim=True)
    torch.testing.assert_close(tumour_probability(logits, False), expected)
    torch.testing.assert_close(tumour_probability(logits, True), torch.sigmoid(logits[:, 2:]))


def head_2d(**kwargs: Any) -> TumourWeightedClassificationHead:
    torch.manual_seed(1)
    return TumourWeightedClassificationHead(
        nn.Conv2d, (3, 4, 6), 2, num_stages=2, projected_features=8, **kwargs
    ).eval()


def test_pooling_equals_a_literal_computation() -> None:
    head = head_2d(background_weight=0.01)
    skips = [torch.randn(1, 3, 16, 16), torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4)]
    logits = torch.randn(1, 3, 16, 16)
    probability = 1 - torch.softmax(logits, 1)[0, 0]
    pooled = []
    for stage, (features, edge) in enumerate(zip(skips[1:], (8, 4), strict=True)):
        projected = head.seg_layers["project"][stage](features)[0]
        block = 16 // edge
        weight = torch.zeros(edge, edge)
        for y in range(edge):
            for x in range(edge):
                weight[y, x] = probability[y * block : (y + 1) * block, x * block : (x + 1) * block].mean() + 0.01
        pooled.append(torch.stack([(channel * weight).sum() / weight.sum() for channel in projected]))
        pooled.append(torch.stack([channel.mean() for channel in projected]))
    expected = head.seg_layers["classify"](torch.cat(pooled)[None])
    torch.testing.assert_close(head(skips, logits), expected)


def test_tumour_region_decides_what_is_pooled() -> None:
    head = head_2d()
    skips = [torch.randn(1, 3, 8, 8), torch.randn(1, 4, 8, 8), torch.randn(1, 6, 4, 4)]
    left, right = torch.full((1, 2, 8, 8), 0.0), torch.full((1, 2, 8, 8), 0.0)
    left[:, 1, :, :4], left[:, 1, :, 4:] = 9, -9
    right[:, 1, :, :4], right[:, 1, :, 4:] = -9, 9
    assert (head(skips, left) - head(skips, right)).abs().max() > 1e-3


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="two classes"):
        TumourWeightedClassificationHead(nn.Conv2d, (4, 6), 1)
