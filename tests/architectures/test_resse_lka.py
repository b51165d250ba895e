"""ResSE-LKA-UNet: its blocks against the equations of paper 002, computed literally; the network's contract."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from dynamic_network_architectures.building_blocks.regularization import SqueezeExcite
from network_contract import PLANS, NetworkContract, Plan
from torch import nn

from braintum.architectures.blocks.context_extraction import ContextExtraction
from braintum.architectures.blocks.large_kernel_attention import LargeKernelAttention
from braintum.architectures.blocks.residual_squeeze_excitation import ResidualSqueezeExcitationBlock, SqueezeExcitation
from braintum.architectures.networks.resse_lka_unet import ResSELKAUNet

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORM = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE_NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def ready(block: nn.Module) -> Any:
    """The block in evaluation mode and double precision, with norms that are not the identity."""
    torch.manual_seed(0)
    for module in block.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
            for values in (module.running_mean, module.bias):
                nn.init.normal_(values)
            for values in (module.running_var, module.weight):
                nn.init.uniform_(values, 0.5, 2)
    return block.eval().double().requires_grad_(False)


def features(channels: int, dimensions: int, edge: int, cases: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(dimensions)
    return torch.randn(cases, channels, *range(edge, edge + dimensions), generator=generator, dtype=torch.double)


# ------------------------------------------------------------------ literal layers


def convolution(x: np.ndarray, layer: Any) -> np.ndarray:
    """A convolution of (B, C, [Z,] Y, X) by its definition, zero-padded, tap by tap."""
    weight = layer.weight.numpy()
    padding = [(pad, pad) for pad in layer.padding]
    padded = np.pad(x, [(0, 0), (0, 0), *padding])
    channels_per_group, kernel = weight.shape[1], weight.shape[2:]
    size = [
        (edge + 2 * pad - dilation * (width - 1) - 1) // step + 1
        for edge, pad, dilation, width, step in zip(
            x.shape[2:], layer.padding, layer.dilation, kernel, layer.stride, strict=True
        )
    ]
    result = np.zeros((len(x), len(weight), *size))
    for out in range(len(weight)):
        group = out // (len(weight) // layer.groups)
        for c, tap in product(range(channels_per_group), product(*map(range, kernel))):
            window = tuple(
                slice(t * dilation, t * dilation + step * (length - 1) + 1, step)
                for t, dilation, step, length in zip(tap, layer.dilation, layer.stride, size, strict=True)
            )
            result[:, out] += weight[(out, c, *tap)] * padded[(slice(None), group * channels_per_group + c, *window)]
        if layer.bias is not None:
            result[:, out] += float(layer.bias[out])
    return result


def batch_norm(x: np.ndarray, layer: Any) -> np.ndarray:
    """Batch norm with running statistics, channel by channel."""
    result = np.empty_like(x)
    for c in range(x.shape[1]):
        standardised = (x[:, c] - float(layer.running_mean[c])) / np.sqrt(float(layer.running_var[c]) + layer.eps)
        result[:, c] = standardised * float(layer.weight[c]) + float(layer.bias[c])
    return result


def relu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def assert_equals(block: nn.Module, x: torch.Tensor, expected: np.ndarray) -> None:
    before = x.clone()
    torch.testing.assert_close(block(x), torch.from_numpy(expected))
    torch.testing.assert_close(x, before, rtol=0, atol=0)  # the nonlinearity in place must not reach the input


# ------------------------------------------------------------------ blocks


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(
    ("channels", "stride", "bias"), [((5, 5), 1, True), ((3, 7), 1, False), ((4, 4), 2, True), ((3, 5), 2, False)]
)
def test_resse_follows_equations_1_to_3(dimensions: int, channels: tuple[int, int], stride: int, bias: bool) -> None:
    block = ready(
        ResidualSqueezeExcitationBlock(
            CONV[dimensions],
            *channels,
            3,
            stride,
            conv_bias=bias,
            norm_op=BATCH_NORM[dimensions],
            nonlin=nn.ReLU,
            nonlin_kwargs={"inplace": True},
        )
    )
    x = features(channels[0], dimensions, 5)
    residual = x.numpy()
    for layer in block.residual:
        residual = relu(batch_norm(convolution(residual, layer.conv), layer.norm))
    shortcut = x.numpy()
    if channels[0] != channels[1] or stride != 1:
        shortcut = batch_norm(convolution(shortcut, block.shortcut.conv), block.shortcut.norm)
    total = shortcut + residual  # F
    expected = np.empty_like(total)
    gate = block.squeeze_excitation
    w1, b1, w2, b2 = (p.numpy().reshape(len(p), -1) for p in (*gate.fc1.parameters(), *gate.fc2.parameters()))
    for case in range(len(total)):
        z = np.array([[channel.sum() / channel.size] for channel in total[case]])
        s = sigmoid(w2 @ relu(w1 @ z + b1) + b2)
        for c in range(channels[1]):
            expected[case, c] = s[c, 0] * total[case, c]
    assert_equals(block, x, expected)


def test_identity_shortcut_has_no_parameters() -> None:
    assert isinstance(ResidualSqueezeExcitationBlock(nn.Conv2d, 4, 4).shortcut, nn.Identity)
    strided = ResidualSqueezeExcitationBlock(nn.Conv3d, 4, 4, stride=(1, 2, 2))
    assert strided.shortcut.conv.kernel_size == (1, 1, 1) and strided.shortcut.conv.stride == (1, 2, 2)


@pytest.mark.parametrize(("channels", "hidden"), [(5, 4), (64, 4), (96, 6), (320, 20)])
def test_squeeze_excitation_is_the_librarys_in_2d(channels: int, hidden: int) -> None:
    ours, reference = SqueezeExcitation(channels, nn.Conv2d), SqueezeExcite(channels, nn.Conv2d, rd_channels=hidden)
    ours.load_state_dict(reference.state_dict())
    x = torch.randn(2, channels, 4, 5)
    torch.testing.assert_close(ours(x), reference(x))


@pytest.mark.parametrize("channels", [5, 80, 320])
def test_gate_of_a_new_network_is_never_constant(channels: int) -> None:
    """Whatever the initialisation draws, some hidden channel is positive; 80 channels have an odd number, 5."""
    network = nn.Sequential(SqueezeExcitation(channels, nn.Conv2d))
    for seed in range(50):
        torch.manual_seed(seed)
        network.apply(ResSELKAUNet.initialize)
        hidden = network[0].fc1(torch.rand(8, channels, 1, 1))
        assert (hidden > 0).flatten(1).any(1).all()


@pytest.mark.parametrize("dilation", [1, 3])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_lka_follows_equations_5_to_8(dimensions: int, dilation: int) -> None:
    block = ready(LargeKernelAttention(CONV[dimensions], 3, dilation=dilation, norm_op=BATCH_NORM[dimensions]))
    first, second, point, norm, _ = block.attention
    assert first.kernel_size == (5,) * dimensions and first.groups == 3
    assert (
        second.kernel_size == (7,) * dimensions and second.groups == 3 and second.dilation == (dilation,) * dimensions
    )
    assert point.kernel_size == (1,) * dimensions and point.groups == 1
    x = features(3, dimensions, 6)
    f3 = convolution(convolution(convolution(x.numpy(), first), second), point)
    assert_equals(block, x, x.numpy() * sigmoid(batch_norm(f3, norm)))


@pytest.mark.parametrize(("options", "field"), [({}, 23), ({"dilation": 1}, 11)])
def test_lka_sees_its_field(options: dict[str, int], field: int) -> None:
    block = LargeKernelAttention(nn.Conv2d, 1, **options)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.fill_(0.1)
    x = torch.full((1, 1, 41, 41), 1e-3, requires_grad=True)
    block(x)[0, 0, 20, 20].backward()
    seen = x.grad[0, 0].nonzero()
    assert (seen.min(0).values.tolist(), seen.max(0).values.tolist()) == ([20 - field // 2] * 2, [20 + field // 2] * 2)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_context_extraction_sums_three_branches(dimensions: int, dilation: int) -> None:
    block = ready(
        ContextExtraction(
            CONV[dimensions],
            3,
            dilation=dilation,
            norm_op=BATCH_NORM[dimensions],
            nonlin=nn.ReLU,
            nonlin_kwargs={"inplace": True},
        )
    )
    x = features(3, dimensions, 4)
    mean = x.numpy().mean(axis=tuple(range(2, x.ndim)), keepdims=True)
    total = convolution(x.numpy(), block.point) + convolution(x.numpy(), block.neighbourhood)
    assert_equals(block, x, relu(batch_norm(total + convolution(mean, block.patch[1]), block.norm)))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("norm_op", [BATCH_NORM, INSTANCE_NORM])
def test_global_branch_survives_the_norm(norm_op: dict, dimensions: int) -> None:
    torch.manual_seed(0)
    block = ContextExtraction(CONV[dimensions], 4, norm_op=norm_op[dimensions], norm_op_kwargs={"affine": True})
    x = features(4, dimensions, 4).float()
    before = block(x)
    with torch.no_grad():
        block.patch[1].weight.copy_(torch.randn_like(block.patch[1].weight))
    assert (block(x) - before).abs().max() > 0.1
    # a case's features do not depend on the others of the batch where the plan's norm does not mix them either
    if norm_op is INSTANCE_NORM:
        torch.testing.assert_close(block(x[:1]), block(x)[:1])


# ------------------------------------------------------------------ network


class TestResSELKAUNet(NetworkContract):
    network_class = ResSELKAUNet
    classifies = False


class TestResSELKAUNetWithClasses(NetworkContract):
    network_class = ResSELKAUNet


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_levels(plan: Plan) -> None:
    network = TestResSELKAUNet().build(plan)
    assert len(network.encoder.stages) == plan.arch_kwargs["n_stages"]
    for level, stage in enumerate(network.encoder.stages):
        *blocks, attention = stage
        num_blocks = plan.arch_kwargs["n_blocks_per_stage"][level] if plan.is_residual else 1  # two convolutions each
        assert [type(block) for block in blocks] == [ResidualSqueezeExcitationBlock] * num_blocks
        assert isinstance(attention, LargeKernelAttention)
        thin = [edge == 1 for edge in plan.arch_kwargs["kernel_sizes"][level]]
        assert attention.attention[0].kernel_size == tuple(1 if one else 5 for one in thin)
        assert attention.attention[1].kernel_size == tuple(1 if one else 7 for one in thin)
        assert set(attention.attention[1].dilation) == {3}
    assert isinstance(network.encoder.context_extraction, ContextExtraction)
    assert set(network.encoder.context_extraction.neighbourhood.dilation) == {1}


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_memory_estimate_counts_every_feature_map(plan: Plan) -> None:
    network = TestResSELKAUNetWithClasses().build(plan, deep_supervision=True)
    elements = []

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        if output[0, 0].numel() > 1:  # the squeezed ones do not matter
            elements.append(output[0].numel())

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            module.register_forward_hook(count)
    network(plan.patch(1, 1), with_classes=True)
    assert elements and network.compute_conv_feature_map_size(plan.patch_size) == sum(elements)


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_state_dict_holds_every_tensor_once(plan: Plan) -> None:
    state = TestResSELKAUNetWithClasses().build(plan).state_dict()
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)


def test_dilations_are_options() -> None:
    network = TestResSELKAUNet().build(PLANS[0], lka_dilation=1, context_dilation=2)
    assert network.encoder.stages[0][-1].attention[1].dilation == (1, 1)
    assert network.encoder.context_extraction.neighbourhood.dilation == (2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_blocks_per_stage": [1, 1, 1]}, "either n_conv_per_stage or n_blocks_per_stage"),
        ({"n_conv_per_stage": None}, "either n_conv_per_stage or n_blocks_per_stage"),
        ({"strides": [[1, 1], [2, 2]]}, "strides has 2 entries; give one for each of the 3 levels"),
    ],
)
def test_contradictory_topology_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TestResSELKAUNet().build(PLANS[0], **change)


def test_classes_of_a_network_without_head_are_refused() -> None:
    network = TestResSELKAUNet().build(PLANS[0])
    with pytest.raises(ValueError, match="num_tumour_classes"):
        network(PLANS[0].patch(1, 1), with_classes=True)
