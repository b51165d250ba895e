"""One training step of any trainer, on a plan and random images, for measurements of memory and time.

Network, deep supervision, losses and optimiser are the trainer's own; no data set is needed. The memory of a step is
what the allocator holds at most: on CUDA torch's count, on the CPU :class:`HeldMemory`, which follows the storages of
all tensors. That works on fake tensors too, which have a shape and no memory, so that large patches cost seconds.
"""

import io
import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import torch
from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props
from timing import peak_on_cpu
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from braintum.planner.planning.presets import PlannerPreset

CONFIGURATION = "measured"
STOCK_TRAINER = "nnUNetTrainer"
_TUMOUR_CLASSES = ("glioma", "meningioma", "pituitary")
_GRADIENT_NORM = 12  # nnU-Net clips at it


def topology(patch_size: Sequence[int], preset: PlannerPreset) -> dict[str, Any]:
    """The entry ``architecture`` that a preset plans for a patch of equally spaced voxels, by nnU-Net's rules.

    Args:
        patch_size: ([z,] y, x).
        preset: size of the network.

    Raises:
        ValueError: nnU-Net would pad the patch, or not halve it once.
    """
    dimensions = len(patch_size)
    smallest = preset.smallest_edge_2d if dimensions == 2 else 4
    _, strides, kernel_sizes, padded, _ = get_pool_and_conv_props(
        [1.0] * dimensions, list(patch_size), smallest, 999999
    )
    if list(padded) != list(patch_size):
        raise ValueError(f"a U-Net would pad a patch of {list(patch_size)}; give {[int(edge) for edge in padded]}")
    stages = len(strides)
    if stages < 2:
        raise ValueError(f"a patch of {list(patch_size)} is too small for a U-Net; give larger edges")
    largest = preset.max_features_2d if dimensions == 2 else preset.max_features_3d
    arguments = {
        "n_stages": stages,
        "features_per_stage": [min(largest, preset.base_num_features * 2**stage) for stage in range(stages)],
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "kernel_sizes": [list(kernel) for kernel in kernel_sizes],
        "strides": [list(stride) for stride in strides],
        "n_blocks_per_stage": list(preset.blocks_per_stage_encoder[:stages]),
        "n_conv_per_stage_decoder": list(preset.blocks_per_stage_decoder[: stages - 1]),
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    return {
        "network_class_name": f"{preset.network_class.__module__}.{preset.network_class.__qualname__}",
        "arch_kwargs": preset.arguments(arguments),
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def configuration_of(architecture: Mapping[str, Any], patch_size: Sequence[int], batch_size: int) -> dict[str, Any]:
    """A configuration of plans around an architecture: what trainers read of it without data."""
    return {
        "data_identifier": CONFIGURATION,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": batch_size,
        "patch_size": list(patch_size),
        "spacing": [1.0] * len(patch_size),
        "batch_dice": len(patch_size) == 2,
        "architecture": dict(architecture),
    }


@contextmanager
def throwaway_folders() -> Iterator[None]:
    """nnU-Net's folders, which trainers want to know, in a temporary place."""
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    before = {name: os.environ.get(name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(dict.fromkeys(names, folder))
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def make_trainer(
    name: str, configuration: Mapping[str, Any], num_heads: int, num_channels: int, device: torch.device
) -> Any:
    """A trainer of nnU-Net or of this package that has no network and no data yet."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    from braintum.trainers import registered

    trainer_class = getattr(registered, name, None) or recursive_find_trainer_class_by_name(name)
    plans = {
        "dataset_name": "Dataset999_Random",
        "plans_name": "RandomPlans",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "continue_training": False,
        "configurations": {CONFIGURATION: dict(configuration)},
    }
    dataset_json = {
        "channel_names": {str(channel): f"channel {channel}" for channel in range(num_channels)},
        "labels": {"background": 0, **{f"label {label}": label for label in range(1, num_heads)}},
        "file_ending": ".nii.gz",
        "classification": {"class_names": list(_TUMOUR_CLASSES)},
    }
    return trainer_class(plans, CONFIGURATION, 0, dataset_json, device)


class TrainingStep:
    """Forward pass, losses, backward pass, clipping and optimiser, as a trainer does it.

    Args:
        trainer: name of the trainer.
        configuration: see :func:`configuration_of`.
        num_heads: of the segmentation.
        num_channels: of the images.
        device: to train on; on CUDA under autocast.
        compiled: with ``torch.compile``.
    """

    def __init__(
        self,
        trainer: str,
        configuration: Mapping[str, Any],
        num_heads: int = 2,
        num_channels: int = 1,
        device: torch.device | str = "cpu",
        compiled: bool = False,
    ) -> None:
        self.device = torch.device(device)
        with throwaway_folders(), redirect_stdout(io.StringIO()):  # nnU-Net prints what to cite
            self.trainer = make_trainer(trainer, configuration, num_heads, num_channels, self.device)
        with self.device:  # fake tensors cannot be moved later
            network = self.trainer.build_network_architecture(
                self.trainer.plans_manager,
                self.trainer.configuration_manager,
                num_channels,
                num_heads,
                self.trainer.enable_deep_supervision,
            )
        self.bare_network: Any = network.train()
        self.trainer.network = network
        self.loss = self.trainer._build_loss()
        self.optimizer, _ = self.trainer.configure_optimizers()
        self.network: Any = torch.compile(network) if compiled else network
        self.classifies = hasattr(network, "classification_head")
        self.scaler = torch.amp.GradScaler("cuda") if self.device.type == "cuda" else None
        patch_size, batch_size = configuration["patch_size"], configuration["batch_size"]
        self.data = torch.randn(batch_size, num_channels, *patch_size, device=self.device)
        scales = self.trainer._get_deep_supervision_scales() or [[1.0] * len(patch_size)]
        sizes = [[round(edge * factor) for edge, factor in zip(patch_size, scale, strict=True)] for scale in scales]
        targets = [
            torch.randint(num_heads, (batch_size, 1, *size), device=self.device).to(torch.int16) for size in sizes
        ]
        self.target = targets if self.trainer.enable_deep_supervision else targets[0]
        self.labels = torch.randint(len(_TUMOUR_CLASSES), (batch_size,), device=self.device)
        self.weights = torch.ones(batch_size, device=self.device)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.bare_network.parameters())

    def held_tensors(self) -> list[torch.Tensor]:
        """What is there before a step: weights, buffers, the optimiser's state and the batch."""
        state = [tensor for entry in self.optimizer.state.values() for tensor in entry.values()]
        targets = self.target if isinstance(self.target, list) else [self.target]
        everything = [*self.bare_network.parameters(), *self.bare_network.buffers(), *self.loss.buffers(), *state]
        everything += [self.data, *targets, self.labels, self.weights]
        return [tensor for tensor in everything if isinstance(tensor, torch.Tensor)]

    def forward(self) -> torch.Tensor:
        """The loss."""
        if not self.classifies:
            return self.loss(self.network(self.data), self.target)
        from braintum.trainers.classes.class_supervision import class_loss

        segmentation, class_logits = self.network(self.data, with_classes=True)
        segmentation_weight, class_weight = self.trainer.task_weights
        smoothing = self.trainer.recipe.class_label_smoothing
        return segmentation_weight * self.loss(segmentation, self.target) + class_weight * class_loss(
            class_logits, self.labels, self.weights, smoothing
        )

    def __call__(self) -> None:
        """One step."""
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda") if self.device.type == "cuda" else nullcontext():
            loss = self.forward()
        if self.scaler is None:
            loss.backward()
        else:
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
        del loss
        nn.utils.clip_grad_norm_(self.bare_network.parameters(), _GRADIENT_NORM)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()


class HeldMemory(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, while it is entered.

    A storage counts from the operation that makes it until nothing refers to it any more. Memory that a kernel takes
    and returns within one operation is not seen. torch has ``torch.distributed._tools.mem_tracker`` for this; it
    refuses modules that are called twice in a step, as losses are under deep supervision.

    Attributes:
        held: bytes now.
        peak: the largest number of bytes so far.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._storages: dict[int, weakref.ref] = {}
        for tensor in tensors:
            self._hold(tensor)

    def _hold(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._storages:
            self._storages[key] = weakref.ref(storage, lambda _: self._release(key, size))
            self.held += size
            self.peak = max(self.peak, self.held)

    def _release(self, key: int, size: int) -> None:
        del self._storages[key]
        self.held -= size

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for part in tree_iter(result):
            if isinstance(part, torch.Tensor):
                self._hold(part)
        return result


def fake_step(trainer: str, configuration: Mapping[str, Any], **arguments: Any) -> TrainingStep:
    """A step on fake tensors, see :class:`TrainingStep`; it has been run once, so that the optimiser has its state."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        step = TrainingStep(trainer, configuration, **arguments)
        step()
        step.optimizer.zero_grad(set_to_none=True)
    return step


def peak_of_fake(step: TrainingStep) -> int:
    """Bytes that a step on fake tensors would hold at most."""
    memory = HeldMemory(step.held_tensors())
    with FakeTensorMode(allow_non_fake_inputs=True), memory:
        step()
    return memory.peak


def peak_of_real(step: TrainingStep) -> int:
    """Bytes that the allocator holds at most while a step runs: weights, optimiser's state, batch and activations.

    On the CPU from the allocator's events, on CUDA torch's ``max_memory_allocated``.
    """
    step()  # the optimiser's state
    step.optimizer.zero_grad(set_to_none=True)
    if step.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    before = HeldMemory(step.held_tensors()).held
    return before + peak_on_cpu(step)
