"""BrainTumNet against the contract of all networks, and what is special to it."""

from typing import Any

import pytest
import torch
from network_contract import PLANS, NetworkContract, Plan, first_of_each_dimension, make_plan
from torch import nn

from braintum.architectures.blocks.bt_block import BTBlock, SelfAttention
from braintum.architectures.blocks.modality_masks import MODALITY_FEATURES, ModalityFeatures, ModalityMaskNetwork
from braintum.architectures.heads.t_inception import ParallelConvolutions, TInceptionBlock
from braintum.architectures.networks.braintumnet import BrainTumNet

DEEP_PLAN = make_plan(  # large enough for BT blocks above the bottleneck, odd sizes there
    "2d-deep", (48, 80), (4, 6, 8, 10, 12), [(1, 1), *[(2, 2)] * 4], [(3, 3)] * 5, residual=False
)


class TestBrainTumNet(NetworkContract):
    network_class = BrainTumNet
    plans = (*PLANS, DEEP_PLAN)


class TestBrainTumNetWithoutTransformer(NetworkContract):
    network_class = BrainTumNet
    extra_kwargs = {"use_transformer": False}
    plans = first_of_each_dimension(PLANS)

    def test_nothing_attends(self, representative_plan: Plan) -> None:
        parts = list(self.build(representative_plan).modules())
        assert not any(isinstance(part, (BTBlock, SelfAttention)) for part in parts)
        assert any(isinstance(part, TInceptionBlock) for part in parts)


class TestBrainTumNetWithoutInception(NetworkContract):
    network_class = BrainTumNet
    extra_kwargs = {"use_inception": False}
    plans = first_of_each_dimension(PLANS)

    def test_no_inception_but_transformers(self, representative_plan: Plan) -> None:
        parts = list(self.build(representative_plan).modules())
        assert not any(isinstance(part, TInceptionBlock) for part in parts)
        assert any(isinstance(part, BTBlock) for part in parts)


class TestBrainTumNetWithAllOptions(NetworkContract):
    network_class = BrainTumNet
    extra_kwargs = {"bt_blocks_at_all_levels": True, "modality_masks": True}
    plans = first_of_each_dimension(PLANS)


def network(plan: Plan = DEEP_PLAN, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return TestBrainTumNet().build(plan, **kwargs)


def test_bt_blocks_stand_at_low_resolution_in_encoder_and_decoder() -> None:
    net = network()
    assert [len(blocks) for blocks in net.encoder.bt_blocks] == [0, 0, 0, 1, 1]
    assert [len(blocks) for blocks in net.decoder.bt_blocks] == [1, 0, 0, 0]  # lowest resolution first
    assert [len(blocks) for blocks in network(PLANS[0]).encoder.bt_blocks] == [0, 0, 1]  # at least the bottleneck


def test_bt_blocks_at_all_levels_of_the_decoder() -> None:
    usual, more = network(), network(bt_blocks_at_all_levels=True)
    assert [len(blocks) for blocks in more.encoder.bt_blocks] == [0, 0, 0, 1, 1]
    assert [len(blocks) for blocks in more.decoder.bt_blocks] == [1, 1, 1, 1]
    added = sum(parameter.numel() for block in more.decoder.bt_blocks[1:] for parameter in block.parameters())
    assert num_parameters(more) == num_parameters(usual) + added
    more.load_state_dict(usual.state_dict(), strict=False)
    more, usual = more.eval(), usual.eval()
    patch = DEEP_PLAN.patch(1, 1)
    with torch.no_grad():
        torch.testing.assert_close(more(patch), usual(patch), rtol=0, atol=0)  # they start as the identity
        nn.init.normal_(more.decoder.bt_blocks[-1][0].restore.weight)
        assert (more(patch) - usual(patch)).abs().max() > 1e-3
    without = network(bt_blocks_at_all_levels=True, use_transformer=False)
    assert not any(len(blocks) for blocks in without.decoder.bt_blocks)


def test_each_branch_of_the_masks_reads_its_modality() -> None:
    torch.manual_seed(0)
    mask = ModalityMaskNetwork(3 + 2 * MODALITY_FEATURES, 5, 4, 2)
    tokens = torch.randn(2, 6, 3 + 2 * MODALITY_FEATURES, requires_grad=True)
    first, second = tokens[..., : 3 + MODALITY_FEATURES], torch.cat((tokens[..., :3], tokens[..., -8:]), -1)
    torch.testing.assert_close(mask(tokens), mask.branches[0](first) + mask.branches[1](second))
    features = ModalityFeatures(nn.Conv2d, 2)
    image = torch.randn(1, 2, 9, 9, requires_grad=True)
    features(image)[:, :MODALITY_FEATURES].square().sum().backward()
    assert image.grad is not None and image.grad[:, 0].any() and not image.grad[:, 1].any()


def test_masks_see_modalities_in_the_encoder_only() -> None:
    torch.manual_seed(0)
    net = TestBrainTumNet().build(DEEP_PLAN, 2, modality_masks=True).eval()
    kinds = [isinstance(each.mask, ModalityMaskNetwork) for each in net.modules() if hasattr(each, "mixture_of_input")]
    assert kinds == [True, True, False]  # two levels of the encoder, one of the decoder
    for block in (blocks[0] for blocks in net.encoder.bt_blocks if len(blocks)):
        nn.init.normal_(block.restore.weight)
    patch = DEEP_PLAN.patch(1, 2)
    with torch.no_grad():
        before = net(patch)
        net.encoder.modalities[0].weight[MODALITY_FEATURES:] *= -1  # of the second modality
        assert (net(patch) - before).abs().max() > 1e-6


def num_parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_encoder_levels_convolve_with_three_kernel_sizes() -> None:
    kernels = [
        {branch.kernel_size for branch in module.branches}
        for stage in network().encoder.stages
        for module in stage.modules()
        if isinstance(module, ParallelConvolutions)
    ]
    assert kernels == [{(1, 1), (3, 3), (5, 5)}] * 5


def test_bt_blocks_start_as_the_identity() -> None:
    with_blocks, without = network().eval(), network(use_transformer=False).eval()
    without.load_state_dict(with_blocks.state_dict(), strict=False)
    patch = DEEP_PLAN.patch(1, 1)
    with torch.no_grad():
        torch.testing.assert_close(with_blocks(patch), without(patch), rtol=0, atol=0)
        for block in with_blocks.encoder.bt_blocks[-1]:
            nn.init.normal_(block.restore.weight)
        assert (with_blocks(patch) - without(patch)).abs().max() > 1e-3


def test_class_loss_reaches_encoder_and_decoder() -> None:
    net = network(num_tumour_classes=3)
    net(DEEP_PLAN.patch(2, 1), with_classes=True)[1][:, 0].sum().backward()
    assert all(parameter.grad is not None for parameter in net.encoder.parameters())
    assert net.decoder.seg_layers[-1].weight.grad.any()


def test_frozen_segmentation_learns_classes_only() -> None:
    plan = make_plan(
        "batch-norm", (16, 16), (4, 6, 8), [(1, 1), *[(2, 2)] * 2], [(3, 3)] * 3, residual=False, norm="BatchNorm"
    )
    net = network(plan, deep_supervision=True).train()
    patch = plan.patch(4, 1)
    net.freeze_segmentation()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.train()
    segmentation, class_logits = net(patch, with_classes=True)
    assert not any(scale.requires_grad for scale in segmentation)
    class_logits.square().sum().backward()
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for p in net.classification_head.parameters()}
    torch.optim.SGD(trainable, lr=1.0).step()
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(key.startswith("classification_head.") for key in changed)
    assert net.classification_head.training and not net.encoder.training


def test_memory_estimate_counts_every_large_map() -> None:
    """What convolutions and the projections of the tokens put out, counted while they run."""
    net = network(deep_supervision=True)
    counted = 0

    def count(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        nonlocal counted
        if output[0, 0].numel() > 1:  # not CBAM's channel attention
            counted += output.numel()

    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.register_forward_hook(count)
    net(DEEP_PLAN.patch(1, 1), with_classes=True)
    estimate = net.compute_conv_feature_map_size(DEEP_PLAN.patch_size)
    assert estimate == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_stages": 1}, "two levels"),
        ({"n_blocks_per_stage": 2}, "either n_conv_per_stage or n_blocks_per_stage"),
        ({"features_per_stage": [4, 6]}, "features_per_stage has 2 entries"),
        ({"features_per_stage": 2}, "3 channels at least"),
        ({"num_tumour_classes": 1}, "two classes"),
    ],
)
def test_impossible_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        network(**change)
