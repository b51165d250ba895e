"""Networks on backbones of timm: levels, outputs, weights."""

from typing import Any

import pytest
import timm
import torch
from torch import nn

from braintum.architectures.networks.timm_backbone import TimmEncoder
from braintum.architectures.networks.timm_braintumnet import TimmBrainTumNet
from braintum.architectures.networks.timm_unet import TimmUNet
from braintum.architectures.standardisation import imagenet_scale_and_offset, standardise

LEVELS = 6
PLAN: dict[str, Any] = {
    "n_stages": LEVELS,
    "features_per_stage": [8, 8, 12, 16, 24, 24],
    "conv_op": nn.Conv2d,
    "kernel_sizes": [[3, 3]] * LEVELS,
    "strides": [[1, 1]] + [[2, 2]] * (LEVELS - 1),
    "n_blocks_per_stage": [1] * LEVELS,
    "n_conv_per_stage_decoder": [1] * (LEVELS - 1),
    "norm_op": nn.BatchNorm2d,
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "nonlin": nn.ReLU,
    "nonlin_kwargs": {"inplace": True},
}
BACKBONE = "tf_efficientnet_lite0"


def build(network: type[nn.Module] = TimmUNet, backbone: str = "test_efficientnet", **changes: Any) -> Any:
    arguments = {**PLAN, "input_channels": 1, "num_classes": 2, "num_tumour_classes": 3, **changes}
    return network(backbone=backbone, **arguments)


@pytest.mark.parametrize("network", [TimmUNet, TimmBrainTumNet])
@pytest.mark.parametrize("backbone", ["test_efficientnet", "test_resnet", "test_convnext", "resnet18"])
def test_outputs_are_those_that_nnunet_expects(network: type[nn.Module], backbone: str) -> None:
    built = build(network, backbone).eval()
    x = torch.randn(2, 1, 64, 96)
    masks, classes = built(x, with_classes=True)
    assert masks.shape == (2, 2, 64, 96) and classes.shape == (2, 3)
    assert torch.equal(built(x), masks)
    built.decoder.deep_supervision = True
    outputs = built(x)
    assert [tuple(output.shape[2:]) for output in outputs] == [(64 >> k, 96 >> k) for k in range(LEVELS - 1)]
    assert torch.equal(outputs[0], masks)


def test_levels_without_a_feature_map_are_left_out() -> None:
    encoder = build().encoder
    assert encoder.reductions == [2, 4, 8, 16, 32] and encoder.levels == [1, 2, 3, 4, 5]
    assert build(backbone="test_convnext").encoder.reductions == [4, 8, 16, 32]
    shallow = {"strides": PLAN["strides"][:4], "kernel_sizes": PLAN["kernel_sizes"][:4], "n_stages": 4}
    shallow |= {"features_per_stage": PLAN["features_per_stage"][:4], "n_conv_per_stage_decoder": [1] * 3}
    network = build(**shallow)
    assert network.encoder.reductions == [2, 4, 8]
    assert network(torch.randn(1, 1, 40, 40)).shape == (1, 2, 40, 40)


@pytest.mark.parametrize(
    ("backbone", "changes", "fault"),
    [
        ("resnet1", {}, "timm .* has no model 'resnet1'"),
        ("resnet18", {"strides": [[1, 1]] + [[1, 2]] * 5}, "halves both axes alike"),
        ("resnet18", {"strides": [[1, 1]] + [[3, 3]] * 5}, "needs two at least"),
        ("vit_tiny_patch16_224", {}, "each once|gives no feature maps"),
    ],
)
def test_backbone_that_does_not_fit(backbone: str, changes: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        build(backbone=backbone, **changes)


def test_3d_plan_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="sees 2-D images"):
        TimmEncoder("resnet18", 1, [8, 8], [[1, 1, 1], [2, 2, 2]], None, None)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_weights_of_timm_give_timms_features(channels: int) -> None:
    """Of a whole model, with the first convolution adapted by timm's own rule."""
    torch.manual_seed(1)
    name = "test_efficientnet"
    whole = timm.create_model(name).eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    network = build(backbone=name, input_channels=channels).eval()
    report = network.load_pretrained(whole.state_dict())
    assert not report.missing and bool(report.adapted) == (channels != 3)
    expected = timm.create_model(name, features_only=True, in_chans=channels).eval()
    first = next(key for key, tensor in whole.state_dict().items() if tensor.ndim == 4)
    state = dict(whole.state_dict())
    state[first] = timm.models.adapt_input_conv(channels, state[first])
    expected.load_state_dict(state, strict=False)
    x = torch.randn(1, channels, 64, 64)
    for ours, theirs in zip(network.encoder.backbone(x), expected(x), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_file_in_timms_order_with_other_names() -> None:
    whole = timm.create_model("test_efficientnet")
    renamed = {f"_layer_{index}": tensor for index, tensor in enumerate(_without_counts(whole.state_dict()).values())}
    network = build()
    report = network.load_pretrained(renamed, in_order=True)
    assert not report.missing and report.unused  # the classifier
    with pytest.raises(ValueError, match="holds 3 tensors"):
        network.load_pretrained(dict(list(renamed.items())[:3]), in_order=True)
    with pytest.raises(ValueError, match="nothing in these weights fits"):
        network.load_pretrained({"other": torch.zeros(3)})


def test_input_is_scaled_as_the_weights_expect() -> None:
    """On average over ImageNet: mean 0.449 and deviation 0.226 of intensities, whatever the weights subtract."""
    grey = 0.449 + 0.226 * torch.randn(4, 1, 200, 200)
    for mean, std in (((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), ((0.5,) * 3, (0.5,) * 3)):
        scale, offset = imagenet_scale_and_offset(mean, std)
        theirs = (grey - sum(mean) / 3) / (sum(std) / 3)
        torch.testing.assert_close(standardise(1000 * grey - 7, scale, offset), theirs, rtol=0, atol=0.02)
    assert torch.equal(standardise(torch.full((1, 1, 4, 4), 3.0), 2.0, 0.5), torch.full((1, 1, 4, 4), 0.5))
    assert build(backbone=BACKBONE).encoder.input_scale == pytest.approx(0.226 / 0.5)


def _without_counts(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
