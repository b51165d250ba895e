"""The same parameters give the same results on the training device as in batchgeneratorsv2."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.contrast import BGContrast, ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
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
from device_augmentation_data import LABELS, SIGNIFICANT, augment, batch_of, cut, generator, stock_transforms
from scipy.stats import ks_2samp

from braintum.trainers.augmentation.device_augmentation import DeviceAugmentation
from braintum.trainers.augmentation.device_spatial import Spatial, affine_matrices

CONTRAST = BGContrast((0.75, 1.25))


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
