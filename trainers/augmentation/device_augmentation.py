"""nnU-Net's augmentation as batched operations on the training device.

The transforms that a trainer would give to nnU-Net's CPU workers are read one by one and translated, so that a trainer
that changes the augmentation means the same here. What has no counterpart is named and refused.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from batchgeneratorsv2.transforms.intensity.brightness import (
    BrightnessAdditiveTransform,
    MultiplicativeBrightnessTransform,
)
from batchgeneratorsv2.transforms.intensity.contrast import ContrastTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.intensity.gaussian_noise import GaussianNoiseTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.low_resolution import SimulateLowResolutionTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.pseudo2d import Convert2DTo3DTransform, Convert3DTo2DTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from batchgeneratorsv2.transforms.utils.seg_to_regions import ConvertSegmentationToRegionsTransform

from braintum.trainers.augmentation.augmentation_parameters import Parameters, Sometimes, Step, UnsupportedAugmentation
from braintum.trainers.augmentation.device_intensity import (
    AdditiveBrightness,
    Contrast,
    Gamma,
    GaussianNoise,
    MultiplicativeBrightness,
)
from braintum.trainers.augmentation.device_sharpness import GaussianBlur, LowResolution
from braintum.trainers.augmentation.device_spatial import Boxes, Mirror, Spatial
from braintum.trainers.augmentation.device_targets import ConvertToRegions, DownsampleTarget, MaskImage, RemoveLabel

# exact types: a subclass may do anything. The second argument is the number of spatial axes.
_TRANSLATIONS: dict[type, Callable[[Any, int], Step]] = {
    GaussianNoiseTransform: lambda transform, num_axes: GaussianNoise.of(transform),
    GaussianBlurTransform: GaussianBlur.of,
    MultiplicativeBrightnessTransform: lambda transform, num_axes: MultiplicativeBrightness.of(transform),
    BrightnessAdditiveTransform: lambda transform, num_axes: AdditiveBrightness.of(transform),
    ContrastTransform: lambda transform, num_axes: Contrast.of(transform),
    SimulateLowResolutionTransform: LowResolution.of,
    GammaTransform: lambda transform, num_axes: Gamma.of(transform),
    MirrorTransform: lambda transform, num_axes: Mirror.of(transform),
    MaskImageTransform: lambda transform, num_axes: MaskImage.of(transform),
    RemoveLabelTansform: lambda transform, num_axes: RemoveLabel.of(transform),
    ConvertSegmentationToRegionsTransform: lambda transform, num_axes: ConvertToRegions.of(transform),
    DownsampleSegForDSTransform: lambda transform, num_axes: DownsampleTarget.of(transform),
}


@dataclass(frozen=True)
class DeviceAugmentation:
    """Augmentation of a batch.

    Attributes:
        initial_size: of the patch that the loader would cut for nnU-Net, ([Z,] Y, X).
        spatial: what happens first; None for nothing.
        steps: what happens then.
    """

    initial_size: tuple[int, ...]
    spatial: Spatial | None
    steps: tuple[Step, ...]

    @staticmethod
    def of(transforms: Any, initial_size: Sequence[int], labels: Sequence[int]) -> "DeviceAugmentation":
        """Translate the transforms of a trainer.

        Args:
            transforms: as ``get_training_transforms`` or ``get_validation_transforms`` returns them.
            initial_size: of the patch that the loader would cut, ([Z,] Y, X).
            labels: that segmentations may contain: all of the data set, the ignore label, and -1 for what lies beyond
                the image.

        Raises:
            UnsupportedAugmentation: a transform without a counterpart, or one at an unexpected place.
        """
        initial_size = tuple(int(edge) for edge in initial_size)
        pending = list(_flat(transforms))
        spatial = None
        kinds = [type(transform) for transform in pending]
        if kinds[:3] == [Convert3DTo2DTransform, SpatialTransform, Convert2DTo3DTransform]:
            spatial = Spatial.of(pending[1], True, labels)
            pending = pending[3:]
        elif kinds[:1] == [SpatialTransform]:
            spatial = Spatial.of(pending[0], False, labels)
            pending = pending[1:]
        if spatial is not None:
            spatial.check(initial_size)
        steps = tuple(_translate(transform, len(initial_size)) for transform in pending)
        return DeviceAugmentation(initial_size, spatial, steps)

    # ------------------------------------------------------------------ on the host

    def draw_spatial(self, batch_size: int, generator: torch.Generator) -> tuple[Boxes, Parameters]:
        """Draw what the loader has to cut for each sample, and what happens to it."""
        if self.spatial is None:
            boxes = Boxes(
                [[0] * len(self.initial_size)] * batch_size,
                [list(self.initial_size)] * batch_size,
                [False] * batch_size,
            )
            return boxes, {}
        parameters = self.spatial.draw(batch_size, self.initial_size, generator)
        boxes = self.spatial.boxes(parameters, self.initial_size)
        return boxes, self.spatial.host_to_device(parameters, boxes)

    def draw_steps(self, batch_size: int, num_channels: int, generator: torch.Generator) -> list[Parameters]:
        """Draw the parameters of all other steps."""
        active = torch.ones(batch_size, dtype=torch.bool)
        return [step.draw(active, num_channels, generator) for step in self.steps]

    # ------------------------------------------------------------------ on the device

    @torch.no_grad()
    def apply(
        self,
        plain: tuple[torch.Tensor, torch.Tensor] | None,
        transformed: tuple[torch.Tensor, torch.Tensor] | None,
        spatial: Parameters,
        steps: Sequence[Parameters],
    ) -> tuple[torch.Tensor, torch.Tensor | list[torch.Tensor]]:
        """Augment a batch; everything on one device, outside autocast.

        Args:
            plain: data (n, C, [Z,] Y, X) float32 and segmentations (n, 1, [Z,] Y, X) int16 of the samples that are
                neither rotated nor scaled, None for none. Changed in place.
            transformed: the same of the others, in their boxes.
            spatial: as :meth:`draw_spatial` gave them.
            steps: as :meth:`draw_steps` gave them.

        Returns:
            What nnU-Net's loader returns as ``data`` and ``target``.
        """
        parts = [] if plain is None else [plain]
        if transformed is not None:
            if self.spatial is None:
                raise ValueError("samples to rotate or scale, but the augmentation does neither")
            parts.append(self.spatial.apply(*transformed, spatial))
        data, target = parts[0]
        if len(parts) == 2:
            data, target = (
                torch.cat(tensors).index_select(0, spatial["place"]) for tensors in zip(*parts, strict=True)
            )
        result: torch.Tensor | list[torch.Tensor] = target
        for step, parameters in zip(self.steps, steps, strict=True):
            if isinstance(result, list):
                raise UnsupportedAugmentation(f"{type(step).__name__} after the targets of deep supervision")
            data, result = step.apply(data, result, parameters)
        return data, result


def _flat(transform: Any) -> Iterator[Any]:
    """The transforms in their order, out of compositions within compositions."""
    if type(transform) is ComposeTransforms:
        for child in transform.transforms:
            yield from _flat(child)
    else:
        yield transform


def _translate(transform: Any, num_axes: int) -> Step:
    if type(transform) is RandomTransform:
        return Sometimes(_translate(transform.transform, num_axes), transform.apply_probability)
    translation = _TRANSLATIONS.get(type(transform))
    if translation is None:
        raise UnsupportedAugmentation(f"The transform {type(transform).__name__} at its place in the augmentation")
    return translation(transform, num_axes)


def to_device(value: Any, device: torch.device) -> Any:
    """Move all tensors in lists, tuples and dictionaries without waiting; everything else stays."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: to_device(child, device) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(child, device) for child in value)
    return value
