"""Whole pipelines on the training device against batchgeneratorsv2, and what they refuse."""

from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.intensity.inversion import InvertImageTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from device_augmentation_data import LABELS, SIGNIFICANT, augment, batch_of, generator, stock_transforms
from scipy.stats import ks_2samp
from torch.utils._python_dispatch import TorchDispatchMode

from braintum.trainers.augmentation.augmentation import Augmentation
from braintum.trainers.augmentation.device_augmentation import DeviceAugmentation
from braintum.trainers.recipes.recipe import JOINT_UNET, RESSE_LKA


@pytest.fixture
def seeded() -> None:
    np.random.seed(0)
    torch.manual_seed(0)


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


@pytest.mark.slow
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


@pytest.mark.slow
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
