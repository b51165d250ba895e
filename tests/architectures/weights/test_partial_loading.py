"""Weights of one network in another, and the account of it."""

import pytest
import torch
from torch import nn

from braintum.architectures.networks.multi_task_unet import MultiTaskResidualEncoderUNet
from braintum.architectures.weights.partial_loading import in_order_of, load_matching


def network(channels: int = 1, features: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, features, 3), nn.BatchNorm2d(features), nn.Conv2d(features, 2, 1))


def test_account_of_what_is_loaded_and_what_not_and_why() -> None:
    target = network()
    weights = dict(network().state_dict())
    weights["2.weight"] = torch.zeros(3, 4, 1, 1)
    del weights["1.running_mean"]
    weights["classifier.weight"] = torch.zeros(5)
    kept = target[2].weight.clone()
    report = load_matching(target, weights)
    assert set(report.loaded) == {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_var", "2.bias"}
    assert report.missing == {
        "1.running_mean": "the file has no such tensor",
        "2.weight": "its shape is (2, 4, 1, 1), the file's (3, 4, 1, 1)",
    }
    assert report.unused == ["classifier.weight"]
    assert torch.equal(target[0].weight, weights["0.weight"]) and torch.equal(target[2].weight, kept)
    text = "\n".join(report.lines())
    assert "loaded 6 of the network's 8 tensors (54 numbers)" in text
    for part in ("no such tensor: 1.running_mean", "the file's (3, 4, 1, 1): 2.weight", "network: classifier.weight"):
        assert part in text


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_do_not_matter(prefix: str) -> None:
    source, target = network(), network()
    report = load_matching(target, {prefix + name: tensor for name, tensor in source.state_dict().items()})
    assert not report.missing and not report.unused
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize(("stored", "wanted"), [(3, 1), (1, 4), (4, 1), (2, 3)])
def test_equal_channels_give_what_they_gave(stored: int, wanted: int) -> None:
    source, target = network(stored), network(wanted)
    report = load_matching(target, source.state_dict())
    assert report.adapted == [f"0.weight from {stored} to {wanted} channels"]
    image = torch.randn(2, 1, 8, 8)
    expected = source[0](image.expand(-1, stored, -1, -1))
    torch.testing.assert_close(target[0](image.expand(-1, wanted, -1, -1)), expected)


def test_only_the_first_convolution_is_adapted() -> None:
    source, target = network(features=4), network(features=6)
    report = load_matching(target, source.state_dict())
    assert "2.weight" in report.missing and not report.adapted


def test_order_instead_of_names() -> None:
    source = network().state_dict()
    others = {f"layer{index}": tensor for index, tensor in enumerate(source.values()) if tensor.ndim}
    assert all(torch.equal(tensor, source[name]) for name, tensor in in_order_of(list(source), others).items())


def resenc(channels: int = 1, classes: int | None = 3) -> nn.Module:
    """ResEnc in small, with the names that nnssl's checkpoints have."""
    from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet

    topology = {
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "conv_op": nn.Conv3d,
        "kernel_sizes": [[3] * 3] * 3,
        "strides": [[1] * 3, [2] * 3, [2] * 3],
        "n_blocks_per_stage": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": nn.InstanceNorm3d,
        "norm_op_kwargs": {"affine": True},
        "nonlin": nn.LeakyReLU,
        "input_channels": channels,
        "num_classes": 1 if classes is None else 2,
    }
    if classes is None:
        return ResidualEncoderUNet(**topology)
    return MultiTaskResidualEncoderUNet(**topology, num_tumour_classes=classes)


def test_self_supervised_3d_encoder_starts_a_multi_task_network() -> None:
    """nnssl trains an encoder with a decoder of its own, on one channel; here four sequences and a head are added."""
    theirs = resenc(classes=None).state_dict()
    theirs = {name: tensor for name, tensor in theirs.items() if name.startswith("encoder.")}
    target = resenc(channels=4)
    report = load_matching(target, theirs)
    assert {name for name in target.state_dict() if name.startswith("encoder.")} - set(report.missing) == set(
        name for name in target.state_dict() if name.startswith("encoder.")
    )
    assert any("from 1 to 4 channels" in line for line in report.adapted)
    assert {name.partition(".")[0] for name in report.missing} == {"decoder", "classification_head"}
    for name, tensor in theirs.items():
        if tensor.shape == target.state_dict()[name].shape:
            assert torch.equal(target.state_dict()[name], tensor), name
