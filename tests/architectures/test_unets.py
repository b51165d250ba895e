"""U-Net, Attention U-Net and Joint U-Net of paper 001, RUNet of paper 003, and their blocks."""

import math
from typing import Any

import pytest
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from dynamic_network_architectures.building_blocks.residual import BasicBlockD
from network_contract import PLANS, NetworkContract, Plan, build_network, make_plan
from torch import nn

from braintum.architectures.blocks.attention_gate import AttentionGate
from braintum.architectures.heads.dense_classification_head import DenseClassificationHead
from braintum.architectures.networks.attention_unet import AttentionUNet
from braintum.architectures.networks.joint_unet import JointUNet, UNet
from braintum.architectures.networks.residual_unet import RUNet
from braintum.architectures.plan_topology import plain_arch_kwargs

PAPER_PLAN = make_plan("paper-2d", (64, 64), (4, 8, 16, 32, 64), ((1, 1), *[(2, 2)] * 4), [(3, 3)] * 5, residual=False)


class TestUNet(NetworkContract):
    network_class, classifies, stock_topology = UNet, False, True

    def test_is_the_stock_network_on_a_plain_plan(self) -> None:
        plan = PLANS[0]
        assert not plan.is_residual
        network, stock = self.build(plan), build_network(PlainConvUNet, plan)
        stock.load_state_dict(network.state_dict())
        patch = plan.patch(2, 1)
        torch.testing.assert_close(network(patch), stock(patch), rtol=0, atol=0)

    def test_two_convolutions_a_level_on_a_residual_plan(self) -> None:
        plan = PLANS[1]
        assert plan.is_residual
        network = self.build(plan)
        assert [len(stage[0].convs) for stage in network.encoder.stages] == [2] * plan.arch_kwargs["n_stages"]
        assert [len(stage.convs) for stage in network.decoder.stages] == [2] * (plan.arch_kwargs["n_stages"] - 1)


class TestJointUNet(NetworkContract):
    network_class, stock_topology = JointUNet, True

    def test_head_reads_the_bottleneck_only(self) -> None:
        network = self.build(PLANS[0])
        network(PLANS[0].patch(2, 1), with_classes=True)[1].sum().backward()
        used = {name.split(".")[0] for name, parameter in network.named_parameters() if parameter.grad is not None}
        assert used == {"encoder", "classification_head"}
        decoder_only = [p for name, p in network.decoder.named_parameters() if not name.startswith("encoder.")]
        assert decoder_only and all(parameter.grad is None for parameter in decoder_only)

    def test_stock_checkpoint_fits_all_but_the_head(self) -> None:
        network, stock = self.build(PLANS[0]), build_network(PlainConvUNet, PLANS[0])
        missing, unexpected = network.load_state_dict(stock.state_dict(), strict=False)
        assert unexpected == []
        assert missing and all(key.startswith("classification_head.seg_layers.") for key in missing)


class TestAttentionUNet(NetworkContract):
    network_class, classifies = AttentionUNet, False

    @pytest.mark.parametrize("score", [-20.0, 20.0])
    def test_open_gates_make_it_a_u_net_and_closed_ones_cut_the_skips(self, score: float) -> None:
        network = self.build(PLANS[0]).eval()
        with torch.no_grad():
            for gate in network.decoder.gates:
                gate.score.weight.zero_()
                gate.score.bias.fill_(score)
            patch = PLANS[0].patch(1, 1)
            skips = network.encoder(patch)
            if score < 0:
                skips = [*(torch.zeros_like(skip) for skip in skips[:-1]), skips[-1]]
            expected = super(type(network.decoder), network.decoder).forward(skips)  # nnU-Net's decoder
            torch.testing.assert_close(network(patch), expected, rtol=1e-4, atol=1e-5)

    def test_one_gate_a_skip_gated_by_the_level_below(self) -> None:
        network = self.build(PAPER_PLAN)
        assert [(gate.project_skip.in_channels, gate.project_gate.in_channels) for gate in network.decoder.gates] == [
            (32, 64),
            (16, 32),
            (8, 16),
            (4, 8),
        ]

    def test_memory_estimate_counts_what_the_gates_make(self, plan: Plan) -> None:
        network = self.build(plan)
        made: list[int] = []
        for gate in network.decoder.gates:
            for module in (gate.project_skip, gate.project_gate, gate.score, gate):
                module.register_forward_hook(lambda module, inputs, output: made.append(output.numel()))
        network(plan.patch(1, 1))
        stock = super(type(network.decoder), network.decoder).compute_conv_feature_map_size(plan.patch_size)
        assert network.decoder.compute_conv_feature_map_size(plan.patch_size) - stock == sum(made)


class TestRUNet(NetworkContract):
    network_class, classifies = RUNet, False

    def test_levels_of_the_paper(self) -> None:
        network = self.build(PAPER_PLAN)
        first, *others = network.encoder.stages
        assert [type(convolution) for convolution in first.modules()].count(nn.Conv2d) == 2
        assert not any(isinstance(module, BasicBlockD) for module in first.modules())
        assert all(isinstance(block, BasicBlockD) for block in [*others, *network.decoder.stages])
        assert [(block.input_channels, block.output_channels) for block in network.decoder.stages] == [
            (64 + 32, 32),
            (32 + 16, 16),
            (16 + 8, 8),
            (8 + 4, 4),
        ]
        between = [[type(layer) for layer in pool] for pool in list(network.encoder.pools)[1:]]
        assert between == [[nn.MaxPool2d, nn.Dropout]] * 4

    def test_pooling_keeps_maxima_and_drops_in_training_only(self) -> None:
        pool = self.build(PAPER_PLAN, pooling_dropout=0.5).encoder.pools[1]
        image = torch.arange(16.0).reshape(1, 1, 4, 4)
        assert pool.eval()(image).flatten().tolist() == [5, 7, 13, 15]
        many = pool.train()(torch.ones(1, 1, 64, 64))
        assert set(many.unique().tolist()) == {0.0, 2.0}

    def test_stride_in_the_first_level_is_refused(self) -> None:
        plan = PLANS[0]
        strided = Plan("strided", plan.patch_size, {**plan.arch_kwargs, "strides": [[2, 2]] * 3})
        with pytest.raises(ValueError, match="full resolution"):
            self.build(strided)


# ---------------------------------------------------------------------- blocks


def linear_interpolation(values: list[float], factor: int) -> list[float]:
    """Values at the centres of ``factor`` times finer cells, constant beyond the outer centres."""
    fine = []
    for index in range(len(values) * factor):
        position = min(max((index + 0.5) / factor - 0.5, 0.0), len(values) - 1.0)
        left = min(int(position), len(values) - 2)
        fine.append(values[left] + (position - left) * (values[left + 1] - values[left]))
    return fine


def test_attention_gate_against_the_papers_equation() -> None:
    torch.manual_seed(0)
    gate = AttentionGate(nn.Conv2d, skip_channels=3, gate_channels=4, stride=2, hidden_channels=2)
    gate.requires_grad_(False)
    skip, signal = torch.randn(1, 3, 4, 6), torch.randn(1, 4, 2, 3)
    coarse = [[0.0] * 3 for _ in range(2)]
    for y in range(2):
        for x in range(3):
            score = float(gate.score.bias)
            for hidden in range(2):
                total = float(gate.project_gate.bias[hidden])
                for channel in range(4):
                    total += float(gate.project_gate.weight[hidden, channel, 0, 0] * signal[0, channel, y, x])
                for channel in range(3):
                    for dy in range(2):
                        for dx in range(2):
                            weight = gate.project_skip.weight[hidden, channel, dy, dx]
                            total += float(weight * skip[0, channel, 2 * y + dy, 2 * x + dx])
                score += float(gate.score.weight[0, hidden, 0, 0]) * max(total, 0.0)
            coarse[y][x] = 1 / (1 + math.exp(-score))
    rows = [linear_interpolation(row, 2) for row in coarse]
    columns = [linear_interpolation([row[x] for row in rows], 2) for x in range(6)]
    expected = torch.tensor([[columns[x][y] for x in range(6)] for y in range(4)])
    torch.testing.assert_close(gate.attention(skip, signal)[0, 0], expected)
    torch.testing.assert_close(gate(skip, signal), skip * expected)


@pytest.mark.parametrize(
    ("conv_op", "stride", "skip_size", "gate_size"),
    [(nn.Conv2d, [2, 1], (4, 6), (2, 6)), (nn.Conv3d, [1, 2, 2], (3, 4, 4), (3, 2, 2))],
)
def test_attention_coefficients_lie_between_zero_and_one(
    conv_op: Any, stride: list[int], skip_size: tuple[int, ...], gate_size: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    gate = AttentionGate(conv_op, 5, 7, stride)
    attention = gate.attention(torch.randn(2, 5, *skip_size), torch.randn(2, 7, *gate_size))
    assert attention.shape == (2, 1, *skip_size)
    assert 0 < attention.min() < attention.max() < 1


def test_dense_head_against_a_literal_computation() -> None:
    torch.manual_seed(0)
    head = DenseClassificationHead(nn.Conv3d, 4, 3, hidden_features=(6,)).eval()
    features = torch.randn(2, 4, 2, 3, 4)
    hidden, output = head.seg_layers[0], head.seg_layers[-1]
    pooled = torch.stack([torch.stack([channel.mean() for channel in case]) for case in features])
    activated = (pooled @ hidden.weight.T + hidden.bias).clamp(min=0)
    torch.testing.assert_close(head(features), activated @ output.weight.T + output.bias)


def test_dense_head_refuses_one_class() -> None:
    with pytest.raises(ValueError, match="two classes"):
        DenseClassificationHead(nn.Conv2d, 4, 1)


def test_plain_arguments_stay_and_residual_ones_are_translated() -> None:
    plain, residual = PLANS[0].arch_kwargs, PLANS[1].arch_kwargs
    assert plain_arch_kwargs(plain) == plain
    translated = plain_arch_kwargs({**residual, "stem_channels": 5})
    assert translated["n_conv_per_stage"] == [2, 2, 2, 2] and translated["n_conv_per_stage_decoder"] == [2, 2, 2]
    changed = {"n_conv_per_stage", "n_conv_per_stage_decoder"}
    assert {key: value for key, value in translated.items() if key not in changed} == {
        key: value for key, value in residual.items() if key not in {"n_blocks_per_stage", "n_conv_per_stage_decoder"}
    }
