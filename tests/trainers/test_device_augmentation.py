"""Augmentation on the training device against batchgeneratorsv2: parameters, results, trainers."""

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import (
    BrightnessAdditiveTransform,
    MultiplicativeBrightnessTransform,
)
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.intensity.inversion import InvertImageTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import (
    SpatialTransform,
    create_affine_matrix_2d,
    create_affine_matrix_3d,
)
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from scipy.stats import ks_2samp
from tiny_training import write_preprocessed
from torch.utils._python_dispatch import TorchDispatchMode

from braintum.trainers.augmentation.augmentation import Augmentation
from braintum.trainers.augmentation.augmentation_parameters import Distribution, UnsupportedAugmentation
from braintum.trainers.augmentation.device_augmentation import DeviceAugmentation
from braintum.trainers.augmentation.device_spatial import Spatial, affine_matrices
from braintum.trainers.data.device_batches import AugmentedBatches, DeviceLoader
from braintum.trainers.recipes.recipe import JOINT_UNET, RESSE_LKA
from braintum.trainers.recipes.settings import TrainingSettings

LABELS = (-1, 0, 1, 2, 3)
CONTRAST = BGContrast((0.75, 1.25))
SIGNIFICANT = 1e-3
"""Of a Kolmogorov-Smirnov test. All draws are seeded: a test that passes once passes always."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def seeded() -> None:
    np.random.seed(0)
    torch.manual_seed(0)


def smooth(shape: Sequence[int], seed: int) -> torch.Tensor:
    """Noise without its high frequencies, so that rounding a coordinate changes little."""
    noise = torch.randn((1, *shape), generator=generator(seed))
    coarse = [max(2, edge // 4) for edge in shape[1:]]
    mode = "bilinear" if len(coarse) == 2 else "trilinear"
    small = torch.nn.functional.interpolate(noise, coarse, mode=mode)
    return torch.nn.functional.interpolate(small, shape[1:], mode=mode)[0]


def batch_of(shape: Sequence[int], batch_size: int = 4, channels: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and segmentations (B, C, …) with all labels."""
    data = torch.stack([smooth((channels, *shape), seed) for seed in range(batch_size)])
    target = (data[:, :1] * 2.5).round().clamp(-1, 3).to(torch.int16)
    return data, target


def stock_transforms(
    patch_size: tuple[int, ...], in_plane: bool = False, rotation: float = 0.5, **options: Any
) -> ComposeTransforms:
    scales = [[1.0] * len(patch_size), [0.5] * len(patch_size)]
    mirror_axes = tuple(range(len(patch_size)))
    return nnUNetTrainer.get_training_transforms(
        patch_size, (-rotation, rotation), scales, mirror_axes, in_plane, **options
    )


def cut(tensor: torch.Tensor, lower: Sequence[int], upper: Sequence[int]) -> torch.Tensor:
    return tensor[(slice(None), *(slice(low, high) for low, high in zip(lower, upper, strict=True)))]


def augment(
    augmentation: DeviceAugmentation, data: torch.Tensor, target: torch.Tensor, seed: int
) -> tuple[torch.Tensor, Any]:
    """What loader and device do with whole patches of the initial size."""
    drawn = generator(seed)
    boxes, spatial = augmentation.draw_spatial(len(data), drawn)
    steps = augmentation.draw_steps(len(data), data.shape[1], drawn)
    parts: dict[bool, list] = {False: [], True: []}
    for index, is_transformed in enumerate(boxes.is_transformed):
        box = boxes.lower[index], boxes.upper[index]
        parts[is_transformed].append((cut(data[index], *box), cut(target[index], *box)))
    stacked = [
        tuple(torch.stack(tensors) for tensors in zip(*part, strict=True)) if part else None for part in parts.values()
    ]
    return augmentation.apply(*stacked, spatial, steps)


# ---------------------------------------------------------------------- parameters


@pytest.mark.parametrize("scalar", [0.3, (0.7, 1.4), BGContrast((0.75, 1.25)), BGContrast((1.1, 1.5)), (2, 2)])
def test_numbers_have_batchgenerators_distribution(seeded: None, scalar: Any) -> None:
    from batchgeneratorsv2.helpers.scalar_type import sample_scalar

    theirs = np.array([sample_scalar(scalar) for _ in range(4000)])
    ours = Distribution.of(scalar).draw((40, 100), generator()).flatten().numpy()
    assert ks_2samp(theirs, ours).pvalue > SIGNIFICANT
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.02) and ours.std() == pytest.approx(theirs.std(), abs=0.02)


@pytest.mark.parametrize("scalar", [lambda **_: 0.5, BGContrast(lambda: 1.0)], ids=["function", "BGContrast"])
def test_a_function_whose_distribution_is_unknown_is_refused(scalar: Any) -> None:
    with pytest.raises(UnsupportedAugmentation, match="braintum_augmentation=cpu"):
        Distribution.of(scalar)


def drawn_values(transform: Any, name: str, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Numbers a sample and whether a channel takes part, as batchgeneratorsv2 draws them for three channels."""
    image = torch.zeros(3, 8, 8)
    values, takes_part = [], []
    for _ in range(count):
        parameters = transform.get_parameters(image=image)
        channels = parameters.get("apply_to_channel", parameters.get("apply_idx"))
        if isinstance(channels, torch.Tensor) and channels.dtype == torch.bool:
            channels = channels.nonzero().flatten()
        takes_part.append(len(channels))
        if len(channels):
            values.append(np.ravel(np.asarray(parameters[name], float)))
    return np.concatenate(values), np.array(takes_part)


@pytest.mark.parametrize("synchronize", [False, True])
@pytest.mark.parametrize(
    ("make", "theirs", "ours"),
    [
        (lambda s: GaussianNoiseTransform((0, 0.1), 0.6, s), "sigmas", "sigma"),
        (lambda s: GaussianBlurTransform((0.5, 1.0), s, False, 0.5), "sigmas", "sigma"),
        (lambda s: MultiplicativeBrightnessTransform(CONTRAST, s, 0.7), "multipliers", "factor"),
        (lambda s: BrightnessAdditiveTransform(0.1, 0.3, s, 0.7), "shift", "shift"),
        (lambda s: ContrastTransform(CONTRAST, True, s, 0.7), "multipliers", "factor"),
        (lambda s: SimulateLowResolutionTransform((0.5, 1), s, True, (0,), None, 0.5), "scales", "scales"),
        (lambda s: GammaTransform(BGContrast((0.7, 1.5)), 0.3, s, 0.8, 0.6), "gamma", "exponent"),
    ],
    ids=["noise", "blur", "brightness", "shift", "contrast", "resolution", "gamma"],
)
def test_parameters_of_intensities_have_batchgenerators_distribution(
    seeded: None, make: Callable[[bool], Any], theirs: str, ours: str, synchronize: bool
) -> None:
    transform = make(synchronize)
    their_values, their_channels = drawn_values(transform, theirs)
    (step,) = DeviceAugmentation.of(transform, (8, 8), LABELS).steps
    parameters = step.draw(torch.ones(2000, dtype=torch.bool), 3, generator(1))
    assert ks_2samp(their_values, np.ravel(np.asarray(parameters[ours], float))).pvalue > SIGNIFICANT
    counts = np.bincount((parameters["channels"] // 3).numpy(), minlength=2000)
    assert ks_2samp(their_channels, counts).pvalue > SIGNIFICANT
    assert counts.mean() == pytest.approx(their_channels.mean(), abs=0.15)
    if synchronize:
        values = np.asarray(parameters[ours], float).reshape(len(parameters["channels"]), -1)
        first = values[np.searchsorted(parameters["channels"].numpy() // 3, parameters["channels"].numpy() // 3)]
        np.testing.assert_array_equal(values, first)  # the channels of a sample are treated alike
    if "inverts" in parameters:
        assert parameters["inverts"].float().mean().item() == pytest.approx(0.3, abs=0.04)
        assert parameters["retains"].float().mean().item() == pytest.approx(0.6, abs=0.04)


def test_inactive_samples_and_forbidden_channels_are_left_alone() -> None:
    transform = RandomTransform(
        SimulateLowResolutionTransform((0.5, 1), False, True, None, allowed_channels=(2,), p_per_channel=1), 0.25
    )
    (step,) = DeviceAugmentation.of(transform, (8, 8), LABELS).steps
    channels = step.draw(torch.arange(4000) % 2 == 0, 3, generator())["channels"]
    assert set((channels % 3).tolist()) == {2} and set((channels // 3 % 2).tolist()) == {0}
    assert len(channels) == pytest.approx(500, abs=60)


@pytest.mark.parametrize("synchronize", [0, 0.5, 1])
@pytest.mark.parametrize("num_axes", [2, 3])
def test_parameters_of_space_have_batchgenerators_distribution(seeded: None, num_axes: int, synchronize: float) -> None:
    patch, initial = (8,) * num_axes, (12,) * num_axes
    transform = SpatialTransform(
        patch, (5,) * num_axes, True, p_rotation=0.4, rotation=(-0.5, 0.7), p_rot_per_axis=0.7,
        p_scaling=0.4, scaling=(0.7, 1.4), p_synchronize_scaling_across_axes=synchronize,
    )  # fmt: skip
    image = torch.zeros(1, *initial)
    theirs = [transform.get_parameters(image=image) for _ in range(1500)]
    ours = Spatial.of(transform, False, LABELS).draw(3000, initial, generator(3))
    transformed = np.array(ours["is_transformed"])
    assert transformed.mean() == pytest.approx(1 - 0.6**2, abs=0.03)
    assert np.mean([one["grid"] is not None for one in theirs]) == pytest.approx(1 - 0.6**2, abs=0.03)
    their_matrices = np.stack([one["affine"] for one in theirs if one["grid"] is not None])
    our_matrices = ours["affine"].numpy()[transformed]
    for row in range(num_axes):
        for column in range(num_axes):
            assert ks_2samp(their_matrices[:, row, column], our_matrices[:, row, column]).pvalue > SIGNIFICANT
    assert ks_2samp(np.linalg.det(their_matrices), np.linalg.det(our_matrices)).pvalue > SIGNIFICANT
    their_centres = np.array([one["center_location_in_pixels"] for one in theirs])
    for axis in range(num_axes):
        assert ks_2samp(their_centres[:, axis], ours["centre"].numpy()[:, axis]).pvalue > SIGNIFICANT
    np.testing.assert_array_equal(
        ours["affine"].numpy()[~transformed], np.eye(num_axes)[None].repeat(sum(~transformed), 0)
    )


# ---------------------------------------------------------------------- the same results from the same parameters


@pytest.mark.parametrize("num_axes", [2, 3])
def test_affine_matrices_are_batchgenerators(num_axes: int) -> None:
    angles = torch.rand((20, num_axes), generator=generator(), dtype=torch.float64) * 4 - 2
    factors = torch.rand((20, num_axes), generator=generator(1), dtype=torch.float64) + 0.5
    for angle, factor, matrix in zip(angles, factors, affine_matrices(angles, factors), strict=True):
        expected = (
            create_affine_matrix_2d(float(angle[-1]), factor.numpy())
            if num_axes == 2
            else create_affine_matrix_3d(angle.numpy(), factor.numpy())
        )
        np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-12)


def stock_spatial(transform: SpatialTransform, data: Any, target: Any, is_transformed: Any, affine: Any, centre: Any):
    """batchgeneratorsv2's result for one sample and given parameters."""
    size = data.shape[1:]
    grid = None
    if is_transformed:
        grid = transform._get_base_grid_clone() @ affine.T.float()
        grid += torch.Tensor([middle - edge / 2 for middle, edge in zip(centre, size, strict=True)])
        grid = torch.flip(grid / (torch.tensor(size) / 2), (-1,))
    parameters = {"grid": grid, "center_location_in_pixels": centre}
    return transform._apply_to_image(data, **parameters), transform._apply_to_segmentation(target, **parameters)


@pytest.mark.parametrize("tiebreak", ["nearest", "lowest", "highest"])
@pytest.mark.parametrize("border", ["constant", "zeros", "border"])
@pytest.mark.parametrize(
    ("patch", "initial", "in_plane"),
    [
        ((15, 12), (20, 19), False),
        ((15, 12), (70, 61), False),
        ((6, 9, 8), (9, 12, 13), False),
        ((6, 9, 8), (40, 39, 38), False),
        ((4, 9, 8), (4, 13, 12), True),
        ((4, 9, 8), (4, 40, 39), True),
    ],
    ids=["2-D", "2-D in boxes", "3-D", "3-D in boxes", "3-D in plane", "3-D in plane in boxes"],
)
def test_rotated_scaled_and_cropped_patches_are_batchgenerators(
    patch: tuple[int, ...], initial: tuple[int, ...], in_plane: bool, border: str, tiebreak: str
) -> None:
    plane, size = (patch[1:], initial[1:]) if in_plane else (patch, initial)
    transform = SpatialTransform(
        plane, [edge / 2 - 1 for edge in size], True, p_rotation=0.5, rotation=(-3, 3), p_scaling=0.5,
        scaling=(0.7, 1.4), border_mode_seg=border, padding_value_seg=-1, padding_mode_image=border,
        padding_value_image=0.5, seg_tiebreak=tiebreak,
    )  # fmt: skip
    spatial = Spatial.of(transform, in_plane, LABELS)
    spatial.check(initial)
    data, target = batch_of(initial, batch_size=12)
    drawn = spatial.draw(12, initial, generator(4))
    boxes = spatial.boxes(drawn, initial)
    parameters = spatial.host_to_device(drawn, boxes)
    assert {True, False} == set(boxes.is_transformed)
    smaller = 0
    which = [index for index, value in enumerate(boxes.is_transformed) if value]
    pieces = {index: (boxes.lower[index], boxes.upper[index]) for index in range(12)}
    image, segmentation = spatial.apply(
        torch.stack([cut(data[index], *pieces[index]) for index in which]),
        torch.stack([cut(target[index], *pieces[index]) for index in which]),
        parameters,
    )
    flat = (lambda tensor: tensor.flatten(0, 1)) if in_plane else (lambda tensor: tensor)
    for index in range(12):
        expected, expected_labels = stock_spatial(
            transform, flat(data[index]), flat(target[index]), boxes.is_transformed[index],
            drawn["affine"][index], drawn["centre"][index].tolist(),
        )  # fmt: skip
        if boxes.is_transformed[index]:
            found, found_labels = image[which.index(index)], segmentation[which.index(index)]
            smaller += pieces[index][1] != list(initial)
        else:
            found, found_labels = cut(data[index], *pieces[index]), cut(target[index], *pieces[index])
        torch.testing.assert_close(flat(found), expected, rtol=0, atol=2e-5)
        assert found_labels.dtype == torch.int16
        assert (flat(found_labels) != expected_labels).float().mean() < 1e-3
    if size[-1] > 30:
        assert min(min(pieces[index][0][-len(size) :]) for index in which) > 0 and smaller == len(which)
    assert parameters["place"].tolist() == [
        sorted(range(12), key=lambda index: (boxes.is_transformed[index], index)).index(sample) for sample in range(12)
    ]


def test_boxes_leave_out_what_no_grid_reaches() -> None:
    transform = SpatialTransform((32, 32), 0, False, p_rotation=0.3, rotation=(-0.1, 0.1))
    spatial = Spatial.of(transform, False, LABELS)
    boxes = spatial.boxes(spatial.draw(20, (64, 64), generator()), (64, 64))
    extents = {
        (high - low, is_transformed)
        for lower, upper, is_transformed in zip(boxes.lower, boxes.upper, boxes.is_transformed, strict=True)
        for low, high in zip(lower, upper, strict=True)
    }
    assert (32, False) in extents and max(extent for extent, _ in extents) <= 46
    assert len({extent for extent, is_transformed in extents if is_transformed}) <= 2  # one box for all, by axis


INTENSITIES: dict[str, tuple[Any, Callable[[Any, Any], dict]]] = {
    "blur": (
        GaussianBlurTransform((0.4, 1.6), False, False, 0.7, benchmark=False),
        lambda p, own: {"sigmas": p["sigma"][own].tolist()},
    ),
    "brightness": (
        MultiplicativeBrightnessTransform(CONTRAST, False, 0.7),
        lambda p, own: {"multipliers": p["factor"][own]},
    ),
    "contrast": (ContrastTransform(CONTRAST, True, False, 0.7), lambda p, own: {"multipliers": p["factor"][own]}),
    "contrast beyond the range": (
        ContrastTransform(CONTRAST, False, False, 0.7),
        lambda p, own: {"multipliers": p["factor"][own]},
    ),
    "resolution": (
        SimulateLowResolutionTransform((0.5, 1), False, False, (0,), None, 0.7),
        lambda p, own: {"scales": torch.tensor(p["scales"])[own]},
    ),
    "gamma": (
        GammaTransform(BGContrast((0.7, 1.5)), 0.5, False, 0.8, 0.5),
        lambda p, own: {
            "gamma": p["exponent"][own],
            "retain_stats": p["retains"][own],
            "invert_image": p["inverts"][own],
        },
    ),
}


@pytest.mark.parametrize("shape", [(17, 14), (7, 12, 9)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("name", INTENSITIES)
def test_intensities_are_batchgenerators(name: str, shape: tuple[int, ...]) -> None:
    transform, translate = INTENSITIES[name]
    (step,) = DeviceAugmentation.of(transform, shape, LABELS).steps
    data, target = batch_of(shape, batch_size=6, channels=3)
    parameters = step.draw(torch.tensor([True, True, False, True, True, True]), 3, generator(2))
    result, _ = step.apply(data.clone(), target, parameters)
    channels = parameters["channels"]
    assert 6 <= len(channels) < 15
    for index in range(6):
        own = (channels // 3 == index).nonzero().flatten()
        chosen = channels[own] % 3
        if name == "blur":
            chosen = torch.isin(torch.arange(3), chosen)
        expected = data[index].clone()
        if len(own):
            expected = transform._apply_to_image(expected, apply_to_channel=chosen, **translate(parameters, own))
        torch.testing.assert_close(result[index], expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(result[index], data[index]) == (len(own) == 0)


def test_noise_has_its_deviation_and_is_new_in_every_channel() -> None:
    (step,) = DeviceAugmentation.of(GaussianNoiseTransform((0.05, 0.2), 1, True), (64, 64), LABELS).steps
    parameters = step.draw(torch.ones(3, dtype=torch.bool), 2, generator(5))
    clean = torch.full((3, 2, 64, 64), 7.0)
    noise = step.apply(clean.clone(), clean, parameters)[0] - clean
    again = step.apply(clean.clone(), clean, parameters)[0] - clean
    assert torch.equal(noise, again)
    deviations = noise.std((2, 3)).flatten()
    torch.testing.assert_close(deviations, parameters["sigma"], rtol=0.05, atol=0)
    assert deviations[0].item() == pytest.approx(deviations[1].item(), rel=0.05)  # synchronised
    assert abs(np.corrcoef(noise.flatten(2).flatten(0, 1))[np.triu_indices(6, 1)]).max() < 0.06
    standardised = (noise / parameters["sigma"].view(3, 2, 1, 1)).flatten().numpy()
    assert ks_2samp(standardised, np.random.default_rng(0).normal(size=20000)).pvalue > SIGNIFICANT


def test_flips_are_batchgenerators() -> None:
    transform = MirrorTransform((0, 2))
    (step,) = DeviceAugmentation.of(transform, (3, 4, 5), LABELS).steps
    data, target = batch_of((3, 4, 5), batch_size=200)
    parameters = step.draw(torch.ones(200, dtype=torch.bool), 2, generator())
    axes_of = dict.fromkeys(range(200), ())
    for axes, samples in zip(parameters["flips"], parameters["samples"], strict=True):
        axes_of |= dict.fromkeys(samples.tolist(), axes)
    counts = {axes: list(axes_of.values()).count(axes) for axes in set(axes_of.values())}
    assert set(counts) == {(), (0,), (2,), (0, 2)} and all(
        count == pytest.approx(50, abs=22) for count in counts.values()
    )
    flipped, flipped_target = step.apply(data.clone(), target.clone(), parameters)
    for index, axes in axes_of.items():
        expected = transform.apply({"image": data[index], "segmentation": target[index]}, axes=list(axes))
        assert torch.equal(flipped[index], expected["image"])
        assert torch.equal(flipped_target[index], expected["segmentation"])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_mask_for_norm": [True, False]},
        {"regions": [(1, 2, 3), (2, 3), 3]},
        {"regions": [(1, 2), 2], "ignore_label": 3, "use_mask_for_norm": [False, True]},
    ],
    ids=["labels", "masked", "regions", "regions with ignore"],
)
@pytest.mark.parametrize("shape", [(10, 12), (5, 8, 6)], ids=["2-D", "3-D"])
def test_targets_are_nnunets(shape: tuple[int, ...], options: dict) -> None:
    """Without anything random, whole pipelines give the same."""
    stock = stock_transforms(shape, **options)
    spatial = SpatialTransform(shape, 0, False)  # crops alone
    fixed = [one for one in stock.transforms[1:] if not isinstance(one, (RandomTransform, MirrorTransform))]
    pipeline = ComposeTransforms([spatial, *fixed])
    initial = tuple(edge + 3 for edge in shape)
    data, target = batch_of(initial)
    found, targets = augment(DeviceAugmentation.of(pipeline, initial, LABELS), data.clone(), target.clone(), 0)
    assert len(targets) == 2
    for index in range(len(data)):
        expected = pipeline(image=data[index].clone(), segmentation=target[index].clone())
        assert torch.equal(found[index], expected["image"])
        for ours, theirs in zip(targets, expected["segmentation"], strict=True):
            assert ours.dtype == theirs.dtype and torch.equal(ours[index], theirs)


# ---------------------------------------------------------------------- whole pipelines


def statistics_of(data: torch.Tensor, target: torch.Tensor) -> np.ndarray:
    """Figures of each sample that one or the other transform changes: (B, figures)."""
    first = data[:, 0]
    axes = tuple(range(1, first.ndim))
    figures = [
        first.mean(axes),
        first.std(axes),
        first.amin(axes),
        first.amax(axes),
        first.diff(dim=-1).abs().mean(axes),  # noise, blur and resolution
        first.diff(dim=1).abs().mean(axes),
        (first[:, : first.shape[1] // 2].mean(axes) - first.mean(axes)),  # flips and rotation
        first[(slice(None), *(edge // 4 for edge in first.shape[1:]))],
        (first * data[:, 1]).mean(axes),
        (target[:, 0] == 1).float().mean(axes),
        (target[:, 0] == 3).float().mean(axes),
    ]
    return torch.stack(figures, 1).double().numpy()


@pytest.mark.parametrize(
    ("patch", "initial", "in_plane"),
    [((16, 14), (22, 20), False), ((6, 10, 8), (8, 14, 12), False), ((5, 12, 12), (5, 17, 17), True)],
    ids=["2-D", "3-D", "3-D in plane"],
)
def test_outputs_have_batchgenerators_distribution(
    seeded: None, patch: tuple[int, ...], initial: tuple[int, ...], in_plane: bool
) -> None:
    transforms = stock_transforms(patch, in_plane, rotation=3.0)
    check_outputs(transforms, initial, count=500)


@pytest.mark.parametrize("recipe", [JOINT_UNET, RESSE_LKA], ids=["JointUNet", "ResSE-LKA"])
def test_recipes_outputs_have_batchgenerators_distribution(seeded: None, recipe: Any) -> None:
    augmentation: Augmentation = recipe.augmentation
    transforms = augmentation.transforms((16, 16), (0, 1) if augmentation.flips else None, False)
    check_outputs(ComposeTransforms(transforms), tuple(augmentation.initial_patch_size((16, 16), False)), count=500)


def check_outputs(transforms: ComposeTransforms, initial: tuple[int, ...], count: int) -> None:
    for transform in transforms.transforms:
        if isinstance(getattr(transform, "transform", None), GaussianBlurTransform):
            transform.transform.benchmark = False
    data, target = (tensor[:1] for tensor in batch_of(initial))
    theirs = []
    for _ in range(count):
        result = transforms(image=data[0].clone(), segmentation=target[0].clone())
        segmentation = result["segmentation"]
        theirs.append((result["image"], segmentation[0] if isinstance(segmentation, list) else segmentation))
    their_figures = statistics_of(*(torch.stack(tensors) for tensors in zip(*theirs, strict=True)))
    whole = [tensor.repeat(count, *[1] * (tensor.ndim - 1)) for tensor in (data, target)]
    ours, targets = augment(DeviceAugmentation.of(transforms, initial, LABELS), *whole, 1)
    our_figures = statistics_of(ours, targets[0] if isinstance(targets, list) else targets)
    assert our_figures.shape == their_figures.shape
    for figure in range(our_figures.shape[1]):
        assert ks_2samp(their_figures[:, figure], our_figures[:, figure]).pvalue > SIGNIFICANT, figure
        error = their_figures[:, figure].std() / np.sqrt(count)
        assert abs(their_figures[:, figure].mean() - our_figures[:, figure].mean()) < 4 * np.sqrt(2) * error + 1e-9, (
            figure
        )


@pytest.mark.parametrize("p_rotation", [0, 0.5, 1])
def test_samples_keep_their_order(p_rotation: float) -> None:
    transform = SpatialTransform((8, 8), 0, False, p_rotation=p_rotation, rotation=(-0.1, 0.1))
    data = torch.arange(12.0).view(12, 1, 1, 1).expand(12, 2, 16, 16).clone()
    augmentation = DeviceAugmentation.of(transform, (16, 16), range(-1, 12))
    result, target = augment(augmentation, data, data[:, :1].to(torch.int16), 0)
    torch.testing.assert_close(result, data[..., :8, :8])
    torch.testing.assert_close(target, data[:, :1, :8, :8].to(torch.int16), rtol=0, atol=0)


class NoSynchronisation(TorchDispatchMode):
    """Fails where an operation would make the host wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in {"_local_scalar_dense", "nonzero", "masked_select", "unique", "_unique2", "equal"}, name
        if name in {"index", "index_put", "index_put_"}:
            assert all(one is None or one.dtype != torch.bool for one in args[1]), f"{name} with a mask"
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device(seeded: None) -> None:
    transforms = stock_transforms((16, 14), use_mask_for_norm=[True, True], regions=[(1, 2), 3])
    augmentation = DeviceAugmentation.of(transforms, (22, 20), LABELS)
    data, target = batch_of((22, 20), batch_size=64)
    drawn = generator(1)
    boxes, spatial = augmentation.draw_spatial(64, drawn)
    steps = augmentation.draw_steps(64, 2, drawn)
    count = sum(boxes.is_transformed)
    box = boxes.lower[boxes.is_transformed.index(True)], boxes.upper[boxes.is_transformed.index(True)]
    size = [high - low for low, high in zip(*box, strict=True)]
    plain = data[count:, :, :16, :14].clone(), target[count:, :, :16, :14].clone()
    transformed = tuple(tensor[:count, :, : size[0], : size[1]].clone() for tensor in (data, target))
    with NoSynchronisation():
        result, _ = augmentation.apply(plain, transformed, spatial, steps)
    assert result.shape == (64, 2, 16, 14)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoSynchronisation():
        data.sum().item()


# ---------------------------------------------------------------------- what is refused


class OwnNoise(GaussianNoiseTransform):
    pass


@pytest.mark.parametrize(
    ("transform", "named"),
    [
        (OwnNoise(), "OwnNoise"),
        (RandomTransform(InvertImageTransform(0.5, False, 1.0)), "InvertImageTransform"),
        (ComposeTransforms([MirrorTransform((0,)), SpatialTransform((8, 8), 0, False)]), "SpatialTransform"),
        (SpatialTransform((8, 8), 0, False, p_elastic_deform=0.1), "elastic deformation"),
        (SpatialTransform((13, 8), 0, False), "reaches over the border"),
        (SpatialTransform((8, 8), 1, True), "reaches over the border"),
    ],
)
def test_what_is_unknown_is_named_and_refused(transform: Any, named: str) -> None:
    with pytest.raises(NotImplementedError, match=f"{named}.*braintum_augmentation=cpu"):
        DeviceAugmentation.of(transform, (12, 12), LABELS)


# ---------------------------------------------------------------------- trainers


@pytest.mark.parametrize(("value", "expected"), [(None, "default"), ("gpu", "gpu"), ("cpu", "cpu")])
def test_switch(monkeypatch: pytest.MonkeyPatch, value: str | None, expected: str) -> None:
    monkeypatch.delenv("braintum_augmentation", raising=False)
    if value:
        monkeypatch.setenv("braintum_augmentation", value)
    assert TrainingSettings.from_environment().augmentation == expected


def test_bad_switch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("braintum_augmentation", "cuda")
    with pytest.raises(ValueError, match="braintum_augmentation.*default, gpu, cpu.*cuda"):
        TrainingSettings.from_environment()


@pytest.fixture
def on_device(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("braintum_augmentation", "gpu")
    return nnunet_folders


def loaders(trainer: Any) -> tuple[Any, Any]:
    trainer.initialize()
    return trainer.get_dataloaders()


@pytest.mark.parametrize(
    ("name", "configuration", "labels"),
    [
        ("nnUNetTrainerMultiTask", "2d", None),
        ("nnUNetTrainerMultiTask", "3d_fullres", {"background": 0, "tumour": 1, "ignore": 2}),
        ("nnUNetTrainerMultiTask", "3d_fullres", {"background": 0, "whole": [1, 2], "ignore": 3}),
        ("nnUNetTrainerResSELKAMultiTask", "2d", None),
        ("nnUNetTrainerUNet", "3d_fullres", None),
    ],
)
def test_trainers_get_the_batches_that_workers_would_make(
    on_device: Any, monkeypatch: pytest.MonkeyPatch, name: str, configuration: str, labels: Any
) -> None:
    dataset = write_preprocessed(on_device.preprocessed, configuration, labels=labels)
    ours = loaders(dataset.trainer(name))
    monkeypatch.setenv("braintum_augmentation", "cpu")
    stock = loaders(dataset.trainer(name))
    for made, reference in zip(ours, stock, strict=True):
        assert isinstance(made, AugmentedBatches) and not isinstance(reference, AugmentedBatches)
        batch, expected = next(made), next(reference)
        assert batch.keys() == expected.keys() and batch["keys"].shape == expected["keys"].shape
        assert batch["data"].shape == expected["data"].shape and batch["data"].dtype == expected["data"].dtype
        targets, references = (
            one["target"] if isinstance(one["target"], list) else [one["target"]] for one in (batch, expected)
        )
        assert type(batch["target"]) is type(expected["target"])
        for target, wanted in zip(targets, references, strict=True):
            assert target.shape == wanted.shape and target.dtype == wanted.dtype and target.min() >= 0


def test_validation_batches_are_stocks(on_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_preprocessed(on_device.preprocessed, "2d")
    made = []
    for where in ("gpu", "cpu"):
        monkeypatch.setenv("braintum_augmentation", where)
        _, validation = loaders(dataset.trainer("nnUNetTrainerMultiTask"))
        loader = validation.batches if where == "gpu" else validation
        drawn = np.random.randint
        np.random.seed(7)
        if where == "cpu":
            drawn(np.iinfo(np.int64).max, dtype=np.int64)  # what ours seeds its parameters with
        made.append(next(validation))
        assert (type(loader.data_loader).__mro__.count(DeviceLoader) == 1) == (where == "gpu")
    assert made[0]["keys"].tolist() == made[1]["keys"].tolist()
    assert torch.equal(made[0]["data"], made[1]["data"])
    assert all(torch.equal(one, other) for one, other in zip(made[0]["target"], made[1]["target"], strict=True))


def test_seeded_batches_depend_on_seed_epoch_and_index_alone(on_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("braintum_seed", "3")
    monkeypatch.setenv("braintum_num_iterations_per_epoch", "2")
    dataset = write_preprocessed(on_device.preprocessed, "2d")

    def batches(first_epoch: int, number: int, workers: str = "0") -> list[dict]:
        monkeypatch.setenv("nnUNet_n_proc_DA", workers)
        trainer = dataset.trainer("nnUNetTrainerMultiTask")
        trainer.current_epoch = first_epoch
        torch.manual_seed(first_epoch + number)  # of no influence
        training, _ = loaders(trainer)
        return [next(training) for _ in range(number)]

    whole, again, resumed = batches(0, 6), batches(0, 6, workers="1"), batches(2, 2)
    for one, other in [*zip(whole, again, strict=True), *zip(whole[4:], resumed, strict=True)]:
        assert one["keys"].tolist() == other["keys"].tolist() and torch.equal(one["data"], other["data"])
        assert torch.equal(one["target"][0], other["target"][0])
    assert not torch.equal(whole[0]["data"], whole[1]["data"])


def test_a_trainer_trains_on_the_device(on_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("braintum_num_epochs", "1")
    monkeypatch.setenv("braintum_num_iterations_per_epoch", "2")
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")  # workers of their own, which have to end
    trainer = write_preprocessed(on_device.preprocessed, "2d").trainer("nnUNetTrainerMultiTask")
    monkeypatch.setattr(trainer, "plot_network_architecture", lambda: None)
    trainer.run_training()
    assert np.isfinite(trainer.logger.get_value("train_losses", step=-1))
    assert np.isfinite(trainer.logger.get_value("val_losses", step=-1))
    workers = trainer.dataloader_train._processes + trainer.dataloader_val._processes
    assert not any(worker.is_alive() for worker in workers)


def test_a_changed_augmentation_keeps_its_meaning(on_device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_preprocessed(on_device.preprocessed, "2d")
    trainer = dataset.trainer("nnUNetTrainerMultiTask")

    def brighter(*args: Any, **kwargs: Any) -> ComposeTransforms:
        return ComposeTransforms(
            [SpatialTransform((32, 32), 0, False), MultiplicativeBrightnessTransform(1000.0, True)]
        )

    monkeypatch.setattr(trainer, "get_training_transforms", brighter)
    training, _ = loaders(trainer)
    assert next(training)["data"].abs().max() > 100
    monkeypatch.setattr(trainer, "get_training_transforms", lambda *args, **kwargs: OwnNoise())
    with pytest.raises(NotImplementedError, match="OwnNoise"):
        trainer.get_dataloaders()


def test_loaders_can_be_sent_to_spawned_workers(on_device: Any) -> None:
    training, _ = loaders(write_preprocessed(on_device.preprocessed, "2d").trainer("nnUNetTrainerMultiTask"))
    copied = pickle.loads(pickle.dumps(training.batches.data_loader))
    batch = copied.generate_train_batch()
    assert len(batch["keys"]) == 2 and len(batch["steps"]) == len(training.augmentation.steps)
