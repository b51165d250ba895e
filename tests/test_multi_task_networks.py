"""Contract of every multi-task network: what nnU-Net and our predictor rely on (DESIGN: a network)."""

from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from torch import nn

from architectures.classification_head import TumourWeightedClassificationHead, tumour_probability
from architectures.multi_task_unet import (
    MultiTaskPlainConvUNet,
    MultiTaskResidualEncoderUNet,
    multi_task_network_class,
)

NUM_TUMOUR_CLASSES = 3


def topology(dimensions: int, depth_key: str, strides: list[int], features: list[int]) -> dict[str, Any]:
    """Plan-like arguments of a small network."""
    stages = len(strides)
    return {
        "input_channels": 3,
        "num_classes": 2,
        "n_stages": stages,
        "features_per_stage": features,
        "conv_op": nn.Conv2d if dimensions == 2 else nn.Conv3d,
        "kernel_sizes": [[3] * dimensions] * stages,
        "strides": [[stride] * dimensions for stride in strides],
        depth_key: [1] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
        "conv_bias": True,
        "norm_op": nn.InstanceNorm2d if dimensions == 2 else nn.InstanceNorm3d,
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": nn.LeakyReLU,
        "nonlin_kwargs": {"inplace": True},
    }


class NetworkContract:
    """Subclassed once a network."""

    network_class: type[nn.Module]
    stock_class: type[nn.Module]
    depth_key: str

    @pytest.fixture(
        params=[(2, [1, 2, 2], [6, 10, 12], 32), (2, [1, 2], [5, 7], 32), (3, [1, 2, 2, 2], [4, 6, 8, 8], 16)],
        ids=["2d", "2d-shallow-odd-channels", "3d"],
    )
    def plan(self, request: pytest.FixtureRequest) -> tuple[dict[str, Any], torch.Tensor]:
        dimensions, strides, features, edge = request.param
        torch.manual_seed(0)
        return topology(dimensions, self.depth_key, strides, features), torch.randn(2, 3, *[edge] * dimensions)

    def build(self, arguments: dict[str, Any], **kwargs: Any) -> nn.Module:
        network = self.network_class(
            **arguments, num_tumour_classes=NUM_TUMOUR_CLASSES, **{"deep_supervision": False, **kwargs}
        )
        network.apply(network.initialize)
        return network

    def test_forward_without_classes_is_the_stock_networks(self, plan: tuple[dict, torch.Tensor]) -> None:
        arguments, patch = plan
        stock, ours = self.stock_class(**arguments, deep_supervision=False), self.build(arguments)
        missing, unexpected = ours.load_state_dict(stock.state_dict(), strict=False)
        assert not unexpected
        assert missing and all(key.startswith("classification_head.seg_layers.") for key in missing)
        torch.testing.assert_close(ours(patch), stock(patch), rtol=0, atol=0)

    @pytest.mark.parametrize("deep_supervision", [False, True])
    def test_shapes(self, plan: tuple[dict, torch.Tensor], deep_supervision: bool) -> None:
        arguments, patch = plan
        network = self.build(arguments, deep_supervision=deep_supervision)
        segmentation, class_logits = network(patch, with_classes=True)
        assert class_logits.shape == (2, NUM_TUMOUR_CLASSES) and class_logits.dtype == torch.float32
        if not deep_supervision:
            assert segmentation.shape == (2, 2, *patch.shape[2:])
            return
        assert len(segmentation) == arguments["n_stages"] - 1
        assert [scale.shape[2] for scale in segmentation] == sorted((s.shape[2] for s in segmentation), reverse=True)
        assert segmentation[0].shape == (2, 2, *patch.shape[2:])
        network.decoder.deep_supervision = False  # what nnU-Net does before prediction
        assert isinstance(network(patch), torch.Tensor)

    def test_every_parameter_receives_a_gradient(self, plan: tuple[dict, torch.Tensor]) -> None:
        arguments, patch = plan
        network = self.build(arguments, deep_supervision=True)
        segmentation, class_logits = network(patch, with_classes=True)
        (sum(scale.square().mean() for scale in segmentation) + class_logits.square().mean()).backward()
        without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
        assert without == []

    def test_class_loss_reaches_encoder_but_not_decoder(self, plan: tuple[dict, torch.Tensor]) -> None:
        arguments, patch = plan
        network = self.build(arguments)
        network(patch, with_classes=True)[1].square().sum().backward()
        assert any(parameter.grad is not None for parameter in network.encoder.parameters())
        decoder_only = [p for name, p in network.decoder.named_parameters() if not name.startswith("encoder.")]
        assert all(parameter.grad is None for parameter in decoder_only)

    def test_memory_estimate_adds_the_projected_features(self, plan: tuple[dict, torch.Tensor]) -> None:
        arguments, patch = plan
        size = tuple(patch.shape[2:])
        network = self.build(arguments, deep_supervision=True)
        stock = self.stock_class(**arguments, deep_supervision=True).compute_conv_feature_map_size(size)
        projected: list[torch.Tensor] = []
        for project in network.classification_head.seg_layers["project"]:
            project.register_forward_hook(lambda module, inputs, output: projected.append(output))
        network(patch[:1], with_classes=True)
        added = network.compute_conv_feature_map_size(size) - stock
        assert projected and added == sum(features.numel() for features in projected)

    def test_graphs_compile_without_breaks(self, plan: tuple[dict, torch.Tensor]) -> None:
        arguments, patch = plan
        network = self.build(arguments).eval()
        compiled = torch.compile(network, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(patch), network(patch))
        torch.testing.assert_close(compiled(patch, with_classes=True)[1], network(patch, with_classes=True)[1])
        torch._dynamo.reset()


class TestMultiTaskPlainConvUNet(NetworkContract):
    network_class, stock_class, depth_key = MultiTaskPlainConvUNet, PlainConvUNet, "n_conv_per_stage"


class TestMultiTaskResidualEncoderUNet(NetworkContract):
    network_class, stock_class, depth_key = MultiTaskResidualEncoderUNet, ResidualEncoderUNet, "n_blocks_per_stage"


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
