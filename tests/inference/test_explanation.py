"""What attributions say, where they lie, and the figures that check them."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from examples import OWN_TRAINERS
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from scipy.stats import rankdata
from tiny_training import CLASS_NAMES, write_preprocessed
from torch import nn
from volume_data import write_volume_file

from braintum.architectures.blocks.adaptive_masked_attention import attentions_of
from braintum.inference.explanation.attribution import (
    METHODS,
    attention_masks,
    choose_stage,
    feature_modules,
    hires_cam,
    integrated_gradients,
)
from braintum.inference.explanation.explanation import (
    draw_weights_anew,
    explain_preprocessed,
    mask_figures,
    similarity,
    to_image_grid,
)
from braintum.inference.explanation.explanation_files import centre_of_interest, write_map
from braintum.inference.explanation.subjects import AttentionSubject, ClassLogits, ClassSubject
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.prediction.preprocessing import ModelDescription, preprocess_case
from braintum.trainers import registered

CLASSIFYING = [name for name in OWN_TRAINERS if hasattr(getattr(registered, name), "class_labels")]


SIZE = {"2d": (32, 32), "3d_fullres": (8, 16, 16)}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Plans with classes and dataset.json of a tiny data set, by configuration."""
    found = {}
    for configuration in SIZE:
        data = write_preprocessed(tmp_path_factory.mktemp(configuration), configuration)
        plans = {**data.plans, "classification": {"class_names": list(CLASS_NAMES), "region_based": False}}
        plans["foreground_intensity_properties_per_channel"] = {"0": {}}
        found[configuration] = (plans, dict(data.dataset_json))
    return found


def build(datasets: dict[str, Any], trainer: str, configuration: str = "2d", seed: int = 0) -> Any:
    """The network of a trainer, in evaluation mode."""
    manager = PlansManager(datasets[configuration][0])
    torch.manual_seed(seed)
    network = recursive_find_trainer_class_by_name(trainer).build_network_architecture(
        manager, manager.get_configuration(configuration), 1, 2, False
    )
    return network.eval()


def window(configuration: str = "2d", seed: int = 0) -> torch.Tensor:
    """(1, 1, [Z,] Y, X) with a bright block."""
    image = 0.3 * torch.randn(1, 1, *SIZE[configuration], generator=torch.Generator().manual_seed(seed))
    image[..., 4:12, 6:14] += 2
    return image


class ToyNetwork(nn.Module):
    """Class 1 is bright somewhere, class 0 is dark somewhere; nothing else counts."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU())
        self.classification_head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        with torch.no_grad():
            self.encoder[0].weight.copy_(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1))
            self.encoder[0].bias.fill_(-0.5)

    def forward(self, x: torch.Tensor, with_classes: bool = False) -> Any:
        segmentation = torch.cat((torch.zeros_like(x), x - 0.5), 1)
        return (segmentation, self.classification_head(self.encoder(x))) if with_classes else segmentation


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("class_index", "inside"), [(1, np.s_[2:8, 2:8]), (0, np.s_[12:20, 10:16])])
def test_attribution_lies_where_the_class_logit_comes_from(method: str, class_index: int, inside: Any) -> None:
    image = torch.zeros(1, 1, 24, 24)
    image[..., 2:8, 2:8], image[..., 12:20, 10:16] = 1.0, -1.0
    found = METHODS[method]()(ToyNetwork().eval(), image, ClassSubject(class_index)).attribution.numpy()
    mask = np.zeros((24, 24), bool)
    mask[inside] = True
    assert found.shape == (24, 24)
    if method == "integrated_gradients" and class_index == 0:
        # against the darkest intensity, what speaks for "dark" is that everything else is brighter: it is negative
        assert np.abs(found[mask]).max() == 0 and found[~mask].max() < 0
        return
    assert np.abs(found[mask]).min() > 0
    assert np.abs(found[~mask]).sum() < 1e-6 * np.abs(found[mask]).sum()


@pytest.mark.parametrize("trainer", CLASSIFYING)
def test_every_network_is_explained(trainer: str, datasets: dict[str, Any]) -> None:
    network, image = build(datasets, trainer), window()
    sizes = [size for _, size in feature_modules(network, image, ClassSubject())]
    assert sizes == sorted(sizes)  # deepest first
    before = {name: value.clone() for name, value in network.state_dict().items()}
    for method in ("gradcam", "hirescam"):
        found = METHODS[method](len(sizes) - 1)(network, image, ClassSubject(1))
        assert found.attribution.shape == (32, 32) and found.attribution.min() >= 0
        assert found.attribution.isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_attention_masks_are_those_of_the_block(configuration: str, datasets: dict[str, Any]) -> None:
    network, image = build(datasets, "nnUNetTrainerBrainTumNetAllLevels", configuration), window(configuration)
    seen: dict[str, torch.Tensor] = {}
    found = {name: attention_masks(network, image, AttentionSubject(name=name)) for name in attentions_of(network)}
    for name, attention in attentions_of(network).items():
        attention.masks = lambda *inputs, name=name, masks=attention.masks: seen.setdefault(name, masks(*inputs))
    with torch.no_grad():
        network(image)
    assert len(found) > 1 and found.keys() == seen.keys()
    for name, attribution in found.items():
        shown, mask = attribution.attribution, seen[name].mean(-1)[0]
        assert shown.shape == image.shape[2:] and 0 < mask.min() < mask.max() < 1
        assert mask.min() - 1e-6 <= shown.min() and shown.max() <= mask.max() + 1e-6
    torch.testing.assert_close(shown, mask)  # the last one is of full resolution


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "configuration"),
    [
        ("nnUNetTrainerMultiTask", "2d"),
        ("nnUNetTrainerBrainTumNet", "2d"),
        ("nnUNetTrainerMultiTask", "3d_fullres"),
    ],
)
def test_integrated_gradients_are_complete(trainer: str, configuration: str, datasets: dict[str, Any]) -> None:
    network, image = build(datasets, trainer, configuration), window(configuration)
    with torch.no_grad():
        darkest = torch.full_like(image, float(image.min()))
        expected = float((network(image, with_classes=True)[1] - network(darkest, with_classes=True)[1])[0, 2])
    found = integrated_gradients(tolerance=0.05, max_parts=60)(network, image, ClassSubject(2))
    assert abs(expected) > 1e-3
    assert found.difference == pytest.approx(expected, rel=1e-4)
    assert float(found.attribution.sum()) == pytest.approx(expected, rel=0.06)
    assert found.error == pytest.approx(float(found.attribution.sum()) - expected, abs=1e-4)


def test_standardising_classifiers_are_explained_behind_the_standardisation(datasets: dict[str, Any]) -> None:
    network, image = build(datasets, "nnUNetTrainerClassifierResNet50"), window()
    classifier, x = ClassSubject().scorer_and_input(network, image)
    assert (float(x.mean()), float(x.std(correction=0))) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-4))
    with torch.no_grad():
        torch.testing.assert_close(classifier(x), network(image, with_classes=True)[1])


def test_gradient_passes_through_the_segmentation_only_in_explanations(datasets: dict[str, Any]) -> None:
    network, image = build(datasets, "nnUNetTrainerMultiTask"), window()
    weight = network.decoder.seg_layers[-1].weight
    logits = network(image, with_classes=True)[1]
    assert torch.autograd.grad(logits.sum(), weight, allow_unused=True) == (None,)
    explained = ClassLogits(network)(image)
    torch.testing.assert_close(explained, logits, rtol=0, atol=0)
    assert torch.autograd.grad(explained.sum(), weight)[0].abs().sum() > 0
    assert network.classification_head.detaches_segmentation


def test_stages() -> None:
    sizes: list[tuple[int, ...]] = [(4, 4), (8, 8), (16, 16)]
    assert [choose_stage(sizes, stage) for stage in (None, 0, 2)] == [1, 0, 2]
    assert choose_stage([(2, 2), (4, 4)], None) == 1
    with pytest.raises(ValueError, match="no stage 3: there are 3 to explain, 0 is the deepest"):
        choose_stage(sizes, 3)


def test_network_whose_features_no_module_makes() -> None:
    class Shifted(ToyNetwork):
        def forward(self, x: torch.Tensor, with_classes: bool = False) -> Any:
            return x, self.classification_head(self.encoder(x) + 1)

    with pytest.raises(NotImplementedError, match="no module of Shifted .* integrated gradients"):
        hires_cam()(Shifted(), torch.zeros(1, 1, 8, 8), ClassSubject())


@pytest.mark.parametrize("trainer", ["nnUNetTrainerMultiTaskLKA", "nnUNetTrainerBrainTumNet", "nnUNetTrainerJointUNet"])
def test_control_draws_all_weights_anew(trainer: str, datasets: dict[str, Any]) -> None:
    network = build(datasets, trainer)
    with torch.no_grad():  # as after training: no two weights are the same
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    trained = copy.deepcopy(network.state_dict())

    def same() -> list[str]:
        drawn = network.state_dict()
        return [name for name, value in trained.items() if value.numel() > 1 and torch.equal(value, drawn[name])]

    state = torch.get_rng_state()
    draw_weights_anew(network, network.classification_head, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert same() == [name for name in trained if not name.startswith("classification_head.") and name in same()]
    assert not [name for name in same() if name.startswith("classification_head.")]
    head = copy.deepcopy(network.state_dict())
    draw_weights_anew(network, network, seed=3)
    parameters = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    assert parameters.isdisjoint(same())
    network.load_state_dict(trained)
    draw_weights_anew(network, network.classification_head, seed=3)
    assert all(torch.equal(value, head[name]) for name, value in network.state_dict().items())


def make_predictor(datasets: dict[str, Any], network: Any, configuration: str, **plans: Any) -> JointPredictor:
    manager = PlansManager({**copy.deepcopy(datasets[configuration][0]), **plans})
    predictor = JointPredictor(device=torch.device("cpu"), allow_tqdm=False, perform_everything_on_device=False)
    predictor.manual_initialization(
        network,
        manager,
        manager.get_configuration(configuration),
        [copy.deepcopy(network.state_dict())],
        datasets[configuration][1],
        "nnUNetTrainerMultiTask",
        (0, 1),
    )
    return predictor


def test_windows_are_weighted_as_in_the_class_probabilities(datasets: dict[str, Any]) -> None:
    """Three windows of one slice each: their maps count by the tumour that is predicted in them."""
    predictor = make_predictor(datasets, ToyNetwork().eval(), "2d")
    data = torch.zeros(1, 3, 32, 32)
    data[0, 0, 4:10, 4:10], data[0, 1, 4:10, 4:10] = 3.0, 1.0
    maps = explain_preprocessed(predictor, data, ClassSubject(1), hires_cam(), controls=False)
    assert maps.random_head is None and maps.random_network is None and maps.completeness_error is None
    tumour = torch.sigmoid(torch.tensor([2.5, 0.5, -0.5]))  # of the brightest pixel
    activation = torch.tensor([2.5, 0.5, 0.0]) / 32**2  # mean pooling
    expected = activation * tumour / tumour.mean()
    np.testing.assert_allclose(maps.trained[:, 6, 6], expected.numpy(), rtol=1e-5)
    assert maps.trained[:, 20:, 20:].max() == 0


def test_overlapping_windows_average(datasets: dict[str, Any]) -> None:
    """The toy's maps do not depend on where a window lies, so that their average is each of them."""
    predictor = make_predictor(datasets, ToyNetwork().eval(), "2d")
    data = torch.full((1, 1, 44, 70), 1.5)
    maps = explain_preprocessed(predictor, data, ClassSubject(1), hires_cam(), controls=True)
    np.testing.assert_allclose(maps.trained, 1 / 32**2, rtol=1e-5)
    assert maps.random_network is not None and maps.random_network.shape == (1, 44, 70)
    assert not np.allclose(maps.random_network, maps.trained)
    loaded, kept = predictor.network.state_dict(), predictor.list_of_parameters[0]
    assert all(torch.equal(loaded[name], value) for name, value in kept.items())


def test_map_returns_to_the_voxels_it_came_from(datasets: dict[str, Any], tmp_path: Path) -> None:
    """Cropped, transposed and resampled by nnU-Net's preprocessing, and back."""
    array = np.zeros((14, 18, 22), np.float32)
    array[2:12, 4:16, 3:19] = np.random.default_rng(0).uniform(1, 2, (10, 12, 16))
    array[6:8, 10:12, 13:15] = 60
    file = write_volume_file(tmp_path / "a_0000.nii.gz", array)
    axes = {"transpose_forward": [1, 0, 2], "transpose_backward": [1, 0, 2]}
    predictor = make_predictor(datasets, ToyNetwork(), "3d_fullres", **axes)
    predictor.configuration_manager.configuration["spacing"] = [1.0, 2.0, 0.7]
    data, properties = preprocess_case([str(file)], ModelDescription.of(predictor))
    assert data.shape[1:] != array.shape
    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    returned = to_image_grid(data[0], properties, plans, configuration)
    assert returned.shape == array.shape and returned.dtype == np.float32
    peak = np.unravel_index(returned.argmax(), returned.shape)
    assert all(start <= index < stop for index, start, stop in zip(peak, (6, 10, 13), (8, 12, 15), strict=True))
    assert not returned[array == 0][: 2 * 18 * 22].any()  # cropped slices stay empty
    write_map(tmp_path / "map.nii.gz", returned, str(file), plans.image_reader_writer_class, properties)
    written, image = SimpleITK.ReadImage(str(tmp_path / "map.nii.gz")), SimpleITK.ReadImage(str(file))
    np.testing.assert_allclose(written.GetDirection(), image.GetDirection(), atol=1e-6)
    np.testing.assert_allclose(written.GetOrigin(), image.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(written.GetSpacing(), image.GetSpacing(), atol=1e-6)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(written), returned)


def test_map_of_a_reader_that_reorients(tmp_path: Path) -> None:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIOWithReorient

    array = np.random.default_rng(0).uniform(1, 2, (4, 5, 6)).astype(np.float32)
    file = write_volume_file(tmp_path / "a_0000.nii.gz", array, direction=(-1, 0, 0, 0, 1, 0, 0, 0, -1))
    as_read, properties = SimpleITKIOWithReorient().read_images((str(file),))
    assert not np.array_equal(as_read[0], array)
    write_map(tmp_path / "map.nii.gz", as_read[0], str(file), SimpleITKIOWithReorient, properties)
    written = SimpleITK.ReadImage(str(tmp_path / "map.nii.gz"))
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(written), array)
    np.testing.assert_allclose(written.GetDirection(), (-1, 0, 0, 0, 1, 0, 0, 0, -1), atol=1e-6)


def test_figures_by_hand() -> None:
    attribution = np.array([[[3.0, -1.0], [0.0, 1.0]]])
    mask = np.array([[[True, True], [False, False]]])
    assert mask_figures(attribution, mask) == {
        "share": pytest.approx(0.8),
        "positive_share": pytest.approx(0.75),
        "area": pytest.approx(0.5),
        "ratio": pytest.approx(1.6),
    }
    nothing = {"share": None, "positive_share": None, "area": 0.0, "ratio": None}
    assert mask_figures(attribution, ~mask & mask) == nothing
    assert mask_figures(0 * attribution, mask)["share"] is None
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(2, 5, 7))
    ranks = [rankdata(np.abs(values)) for values in (first, second)]
    assert similarity(first, second) == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert similarity(first, np.ones((5, 7))) is None
    tumour = np.zeros((4, 5, 6), bool)
    tumour[1, 2:4, 3], tumour[2, 2, 3] = True, True
    assert centre_of_interest(np.zeros((4, 5, 6)), tumour) == (1, 2, 3)
