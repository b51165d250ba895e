"""Batches that are cut on the host and augmented on the training device.

The loader's workers draw all parameters, so that under a seed a batch still depends on (seed, epoch, index) alone, and
cut from each image what its parameters need. The iterator around the loader moves and augments, on a CUDA device one
batch ahead of the network and on a stream of its own.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from braintum.trainers.augmentation.device_augmentation import DeviceAugmentation, to_device
from braintum.trainers.data.slice_sampling import SliceSampling, SliceSamplingLoader


class _Collector:
    """Stands in for the transforms of nnU-Net's loader and keeps the samples, which differ in size."""

    def __init__(self) -> None:
        self.samples: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, image: torch.Tensor, segmentation: torch.Tensor) -> dict[str, torch.Tensor]:
        self.samples.append((image, segmentation))
        nothing = torch.empty(0)
        return {"image": nothing, "segmentation": nothing}


class DeviceLoader(nnUNetDataLoader):
    """nnU-Net's loader, which leaves the transforms to the training device.

    Batches have ``keys``; ``plain`` and ``transformed``, each data and segmentations or None; and the parameters
    ``spatial`` and ``steps``: see :meth:`braintum.trainers.augmentation.device_augmentation.DeviceAugmentation.apply`.

    Args:
        data: nnU-Net's data set.
        batch_size: B.
        patch_size: that the loader would cut for nnU-Net.
        final_patch_size: of the network.
        label_manager: nnU-Net's.
        *args: see ``nnUNetDataLoader``.
        transforms: what nnU-Net would do to each patch.
        **kwargs: see ``nnUNetDataLoader``.

    Raises:
        UnsupportedAugmentation: a transform without a counterpart on the device.
    """

    def __init__(
        self,
        data: Any,
        batch_size: int,
        patch_size: Any,
        final_patch_size: Any,
        label_manager: Any,
        *args: Any,
        transforms: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(data, batch_size, patch_size, final_patch_size, label_manager, *args, **kwargs)
        labels = {-1, 0, *(int(label) for label in label_manager.all_labels)}
        if label_manager.has_ignore_label:
            labels.add(int(label_manager.ignore_label))
        self.augmentation = DeviceAugmentation.of(transforms, patch_size, sorted(labels))
        self.transforms = _Collector()
        self._boxes: Iterator[tuple[list[int], list[int]]] = iter(())

    def get_bbox(self, *args: Any, **kwargs: Any) -> tuple[list[int], list[int]]:
        """Corners of the part of nnU-Net's patch that the next sample needs."""
        lower, _ = super().get_bbox(*args, **kwargs)
        low, high = next(self._boxes)
        if self.patch_size_was_2d:
            low, high = [0, *low], [1, *high]
        return (
            [int(corner) + start for corner, start in zip(lower, low, strict=True)],
            [int(corner) + stop for corner, stop in zip(lower, high, strict=True)],
        )

    def generate_train_batch(self) -> dict[str, Any]:
        """The next batch, not yet augmented."""
        # numpy's global generator is the one that workers and seeded batches seed
        seed = int(np.random.randint(np.iinfo(np.int64).max, dtype=np.int64))
        generator = torch.Generator().manual_seed(seed)
        boxes, spatial = self.augmentation.draw_spatial(self.batch_size, generator)
        self._boxes = zip(boxes.lower, boxes.upper, strict=True)
        self.transforms.samples.clear()
        keys = super().generate_train_batch()["keys"]
        samples = list(self.transforms.samples)
        self.transforms.samples.clear()
        steps = self.augmentation.draw_steps(self.batch_size, len(samples[0][0]), generator)
        parts: dict[bool, Any] = {False: [], True: []}
        for sample, is_transformed in zip(samples, boxes.is_transformed, strict=True):
            parts[is_transformed].append(sample)
        plain, transformed = (
            tuple(torch.stack(tensors) for tensors in zip(*part, strict=True)) if part else None
            for part in parts.values()
        )
        return {"plain": plain, "transformed": transformed, "spatial": spatial, "steps": steps, "keys": keys}


class DeviceSliceSamplingLoader(DeviceLoader, SliceSamplingLoader):
    """The same with the drawn slices of :class:`braintum.trainers.data.slice_sampling.SliceSamplingLoader`."""


def device_loader_class(policy: SliceSampling | None) -> Callable[..., DeviceLoader]:
    """What to make nnU-Net's loaders with; see :func:`braintum.trainers.data.slice_sampling.data_loader_class`."""
    return DeviceLoader if policy is None else partial(DeviceSliceSamplingLoader, slice_sampling=policy)


class AugmentedBatches(Iterator[dict]):
    """Batches as nnU-Net's loader returns them, on the training device.

    Args:
        batches: of a :class:`DeviceLoader`, or of workers that have one.
        augmentation: of that loader.
        device: to augment on.
    """

    def __init__(self, batches: Iterator[dict], augmentation: DeviceAugmentation, device: torch.device) -> None:
        self.batches = batches
        self.augmentation = augmentation
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ahead: dict | None = None

    def __next__(self) -> dict:
        if self._stream is None:
            return self._augmented()
        ready = self._ahead or self._augmented_on_stream()
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self._stream)  # the GPU waits, the host does not
        for tensor in _tensors(ready):
            tensor.record_stream(current)  # its memory is in use there too
        self._ahead = self._augmented_on_stream()
        return ready

    def _augmented_on_stream(self) -> dict:
        with torch.cuda.stream(self._stream):
            return self._augmented()

    def _augmented(self) -> dict:
        batch = next(self.batches)
        keys = batch.pop("keys")
        data, target = self.augmentation.apply(**to_device(batch, self.device))
        return {"data": data, "target": target, "keys": keys}


def _tensors(batch: dict) -> list[torch.Tensor]:
    target = batch["target"]
    return [batch["data"], *(target if isinstance(target, list) else [target])]
