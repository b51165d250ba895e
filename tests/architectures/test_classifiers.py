"""Standalone classifiers: the U-Net encoder of paper 001, FT-CNN of paper 003, and networks on ImageNet features."""

import re
from typing import Any

import pytest
import torch
from network_contract import NetworkContract, Plan, build_network, make_plan, outputs
from torch import nn
from torchvision import models

from braintum.architectures.blocks.averaging import average_to
from braintum.architectures.networks.classifiers import UNetEncoderClassifier
from braintum.architectures.networks.joint_unet import UNet
from braintum.architectures.networks.torchvision_classifiers import (
    FTCNN,
    DenseNet121Classifier,
    GoogLeNetClassifier,
    ResNet50Classifier,
    TorchvisionClassifier,
)
from braintum.architectures.weights.catalogue import entry_of_network

# two pixels an edge are left after five halvings, so that batch norm has something to average over
PLAN = make_plan("2d-plain", (64, 64), (4, 6, 8), ((1, 1), (2, 2), (2, 2)), [(3, 3)] * 3, residual=False)
RESIDUAL_PLAN = make_plan(
    "2d-residual", (64, 96), (4, 6, 8), ((1, 1), (2, 2), (2, 1)), [(3, 3)] * 3, residual=True, norm="BatchNorm"
)
PLAN_3D = make_plan("3d", (8, 8, 8), (4, 6), ((1, 1, 1), (2, 2, 2)), [(3, 3, 3)] * 2, residual=False)
CLASSIFIERS = [FTCNN, ResNet50Classifier, DenseNet121Classifier, GoogLeNetClassifier]


class ClassifierContract(NetworkContract):
    """What classifiers promise beyond the contract of networks."""

    @pytest.mark.parametrize("deep_supervision", [False, True])
    def test_segmentation_is_background_everywhere(self, plan: Plan, deep_supervision: bool) -> None:
        segmentation = self.build(plan, heads=3, deep_supervision=deep_supervision)(plan.patch(2, 1))
        for scale in outputs(segmentation):
            assert (torch.softmax(scale, 1)[:, 0] > 1 - 1e-6).all()

    def test_every_region_is_denied(self, plan: Plan) -> None:
        segmentation = self.build(plan, heads=3, sigmoid_segmentation=True)(plan.patch(2, 1))
        assert (torch.sigmoid(segmentation) < 1e-4).all()

    def test_class_logits_depend_on_the_image(self, plan: Plan) -> None:
        network = self.build(plan).eval()
        with torch.no_grad():
            logits = network(plan.patch(2, 1), with_classes=True)[1]
        assert not torch.allclose(logits[0], logits[1])


class TestUNetEncoderClassifier(ClassifierContract):
    network_class = UNetEncoderClassifier

    def test_encoder_is_the_u_nets(self, plan: Plan) -> None:
        ours, theirs = self.build(plan).encoder.state_dict(), build_network(UNet, plan).encoder.state_dict()
        assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.slow
class TestFTCNN(ClassifierContract):
    network_class = FTCNN
    plans = [PLAN]

    def test_layers_of_the_paper(self) -> None:
        network = self.build(PLAN)
        convolutions = [module for module in network.encoder.modules() if isinstance(module, nn.Conv2d)]
        assert [convolution.out_channels for convolution in convolutions] == (
            [64] * 2 + [128] * 2 + [256] * 4 + [512] * 8
        )
        head = network.classification_head
        assert [type(layer) for layer in head.seg_layers] == [nn.Linear, nn.ReLU, nn.Dropout] * 2 + [nn.Linear]
        sizes = [(layer.in_features, layer.out_features) for layer in head.seg_layers if isinstance(layer, nn.Linear)]
        assert sizes == [(8 * 8 * 512, 512), (512, 1024), (1024, 3)]
        assert {layer.p for layer in head.seg_layers if isinstance(layer, nn.Dropout)} == {0.2}

    @pytest.mark.slow
    def test_features_of_the_papers_slices_are_not_resampled(self) -> None:
        network = self.build(PLAN).eval()
        with torch.no_grad():
            features = network.deepest_features(torch.randn(1, 1, 256, 256))
        assert features.shape == (1, 512, 8, 8)
        assert average_to(features, network.classification_head.pooled_size).equal(features)


@pytest.mark.slow
class TestResNet50Classifier(ClassifierContract):
    network_class = ResNet50Classifier
    plans = [RESIDUAL_PLAN]


@pytest.mark.slow
class TestDenseNet121Classifier(ClassifierContract):
    network_class = DenseNet121Classifier
    plans = [RESIDUAL_PLAN]


@pytest.mark.slow
class TestGoogLeNetClassifier(ClassifierContract):
    network_class = GoogLeNetClassifier
    plans = [PLAN]

    def test_input_is_torchvisions_averaged_over_the_colours(self) -> None:
        image = torch.randn(2, 1, 5, 7)
        theirs = models.googlenet(aux_logits=False, init_weights=False, transform_input=True)
        expected = theirs._transform_input(image.repeat(1, 3, 1, 1)).mean(1, keepdim=True)
        ours = image * GoogLeNetClassifier.input_scale + GoogLeNetClassifier.input_offset
        torch.testing.assert_close(ours, expected)


# ---------------------------------------------------------------------- 2-D only, patch size


@pytest.mark.parametrize("network_class", CLASSIFIERS)
def test_3d_plan_is_refused(network_class: type[nn.Module]) -> None:
    with pytest.raises(NotImplementedError, match=f"{network_class.__name__} classifies 2-D images.*2d configuration"):
        build_network(network_class, PLAN_3D, num_tumour_classes=3)


def test_small_patch_is_refused() -> None:
    network = build_network(GoogLeNetClassifier, PLAN, num_tumour_classes=3)
    with pytest.raises(ValueError, match=r"32 × 32 pixels at least, got \(64, 31\)"):
        network(torch.randn(1, 1, 64, 31), with_classes=True)


# ---------------------------------------------------------------------- frozen features


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


@pytest.mark.parametrize(
    ("network_class", "arguments"), [(FTCNN, {}), (DenseNet121Classifier, {"freeze_features": True})]
)
def test_frozen_features_stay_as_they_are(network_class: type[nn.Module], arguments: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = build_network(network_class, PLAN, num_tumour_classes=3, **arguments)
    features, head = state_of(network.encoder), state_of(network.classification_head)
    network.eval()
    network.train()
    assert network.classification_head.training
    assert not any(module.training for module in network.encoder.modules())
    optimiser = torch.optim.SGD(network.parameters(), 0.1, weight_decay=0.1)  # all parameters, as nnU-Net does
    network(PLAN.patch(2, 1), with_classes=True)[1].square().sum().backward()
    optimiser.step()
    for key, value in network.encoder.state_dict().items():
        assert value.equal(features[key]), key
    assert any(not value.equal(head[key]) for key, value in network.classification_head.state_dict().items())


def test_features_are_fine_tuned_on_request() -> None:
    network = build_network(DenseNet121Classifier, PLAN, num_tumour_classes=3).train()
    features = state_of(network.encoder)
    network(PLAN.patch(2, 1), with_classes=True)
    changed = {key for key, value in network.encoder.state_dict().items() if not value.equal(features[key])}
    assert changed and all(re.search("running_|num_batches", key) for key in changed)
    assert all(parameter.requires_grad for parameter in network.parameters())


# ---------------------------------------------------------------------- ImageNet weights


def imagenet_weights(network_class: type[TorchvisionClassifier]) -> dict[str, torch.Tensor]:
    """What torchvision offers: features of an RGB image and classification layers."""
    torch.manual_seed(1)
    state = {key: value.clone() for key, value in network_class.build_features().state_dict().items()}
    return {**state, "fc.weight": torch.zeros(2, 3), "aux1.fc1.bias": torch.zeros(2)}


@pytest.mark.parametrize("network_class", CLASSIFIERS)
def test_weights_of_torchvision(network_class: type[TorchvisionClassifier]) -> None:
    weights = imagenet_weights(network_class)
    network: Any = build_network(network_class, PLAN, channels=3, num_tumour_classes=3)
    head = state_of(network.classification_head)
    report = network.load_pretrained(weights)
    assert report.unused == ["fc.weight", "aux1.fc1.bias"] and not report.missing
    assert weights.keys() - network.encoder.state_dict().keys() == set(report.unused)
    for key, value in network.encoder.state_dict().items():
        assert value.equal(weights[key]), key
    assert all(value.equal(head[key]) for key, value in network.classification_head.state_dict().items())
    assert entry_of_network(network_class.pretrained_network) is not None


def test_one_channel_equals_the_grey_image_repeated() -> None:
    weights = imagenet_weights(GoogLeNetClassifier)
    rgb, grey = (build_network(GoogLeNetClassifier, PLAN, channels=n, num_tumour_classes=3).eval() for n in (3, 1))
    for network in (rgb, grey):
        network.load_pretrained(weights)
    image = torch.randn(1, 1, 64, 64)
    torch.testing.assert_close(grey.encoder(image), rgb.encoder(image.repeat(1, 3, 1, 1)))


def test_names_of_old_densenet_files() -> None:
    weights = imagenet_weights(DenseNet121Classifier)
    old = {
        re.sub(r"(denselayer\d+\.(?:conv|norm))([12])", r"\1.\2", key): value
        for key, value in weights.items()
        if "num_batches" not in key
    }
    assert any(".norm.1." in key for key in old)
    network: Any = build_network(DenseNet121Classifier, PLAN, channels=3, num_tumour_classes=3)
    assert not network.load_pretrained(old).missing


def test_weights_of_another_network_are_refused() -> None:
    network: Any = build_network(GoogLeNetClassifier, PLAN, num_tumour_classes=3)
    with pytest.raises(ValueError, match="not the weights of googlenet: .* others are not loaded"):
        network.load_pretrained(imagenet_weights(FTCNN))
    wrong = {**imagenet_weights(GoogLeNetClassifier), "conv2.conv.weight": torch.zeros(2, 4, 1, 1)}
    with pytest.raises(ValueError, match="conv2.conv.weight and 0 others are not loaded, its shape is"):
        network.load_pretrained(wrong)


# ---------------------------------------------------------------------- input and features


@pytest.mark.parametrize(
    ("network_class", "theirs"),
    [
        (ResNet50Classifier, lambda: models.resnet50()),
        (
            GoogLeNetClassifier,
            lambda: models.googlenet(aux_logits=False, init_weights=False, transform_input=False),
        ),
    ],
)
def test_features_are_those_in_front_of_torchvisions_pooling(
    network_class: type[TorchvisionClassifier], theirs: Any
) -> None:
    torch.manual_seed(0)
    ours, network = network_class.build_features().eval(), theirs().eval()
    ours.load_state_dict(network.state_dict(), strict=False)
    pooled: list[torch.Tensor] = []
    network.avgpool.register_forward_hook(lambda module, inputs, output: pooled.append(inputs[0]))
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        network(image)
        torch.testing.assert_close(ours(image), pooled[0])


def test_features_do_not_depend_on_the_plans_normalisation() -> None:
    torch.manual_seed(0)
    network: Any = build_network(GoogLeNetClassifier, PLAN, channels=2, num_tumour_classes=3).eval()
    patch = PLAN.patch(1, 2)
    with torch.no_grad():
        expected = network(patch, with_classes=True)[1]
        rescaled = torch.stack((0.2 + 0.1 * patch[:, 0], 500 * patch[:, 1] - 80), 1)
        torch.testing.assert_close(network(rescaled, with_classes=True)[1], expected, rtol=1e-3, atol=1e-4)
        empty = network(torch.zeros(1, 2, 64, 64), with_classes=True)[1]
    assert empty.isfinite().all()


def test_memory_estimate_is_what_the_convolutions_make() -> None:
    network: Any = build_network(GoogLeNetClassifier, PLAN, channels=4, num_tumour_classes=3).train()
    estimate = network.compute_conv_feature_map_size((64, 64))
    made: list[int] = []
    for module in network.encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, inputs, output: made.append(output[0].numel()))
    network(PLAN.patch(2, 4), with_classes=True)
    assert made and estimate == sum(made)
    assert network.training and all(parameter.device.type == "cpu" for parameter in network.parameters())
