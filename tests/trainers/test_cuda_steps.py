"""Training steps on a pretended GPU: devices do not mix, autocast holds, and the host waits no more than nnU-Net's."""

import io
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from examples import ALL_TRAINERS
from pretended_gpu import GPU, pretended_gpu
from tiny_training import write_preprocessed
from torch._subclasses.fake_tensor import DynamicOutputShapeException

from braintum.conversion.format.cases import ClassSchema
from braintum.inference.prediction import bulk_prediction, window_batches
from braintum.inference.prediction.bulk_prediction import BulkPredictor
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.planner.planning.presets import LIGHT
from braintum.trainers.classes.class_supervision import ClassLabels

KEYS = ("a", "b", "c")


@pytest.fixture(scope="module")
def steps(benchmark_scripts: None) -> Iterator[Any]:
    """The module of the benchmarks that makes trainers without data."""
    import training_steps

    with pytest.MonkeyPatch.context() as patch, training_steps.throwaway_folders():
        patch.setenv("braintum_pretrained_weights", "random")
        yield training_steps


def trainer_on_gpu(steps: Any, name: str, patch_size: list[int]) -> tuple[Any, dict[str, Any]]:
    """A trainer whose network is on the GPU, and a batch as the host loads it."""
    configuration = steps.configuration_of(steps.topology(patch_size, LIGHT), patch_size, len(KEYS))
    with redirect_stdout(io.StringIO()):
        trainer = steps.make_trainer(name, configuration, 2, 1, GPU)
    with GPU:
        trainer.network = trainer.build_network_architecture(
            trainer.plans_manager, trainer.configuration_manager, 1, 2, trainer.enable_deep_supervision
        ).train()
    trainer.loss = trainer._build_loss()
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    if hasattr(type(trainer), "class_labels"):
        names = ("glioma", "meningioma", "pituitary")
        trainer.class_labels = ClassLabels(ClassSchema(names), {key: i for i, key in enumerate(KEYS)})
    scales = trainer._get_deep_supervision_scales() or [[1.0] * len(patch_size)]
    targets = [
        torch.zeros(len(KEYS), 1, *(round(edge * factor) for edge, factor in zip(patch_size, scale, strict=True)))
        for scale in scales
    ]
    batch = {"data": torch.zeros(len(KEYS), 1, *patch_size), "keys": np.array(KEYS)}
    return trainer, batch | {"target": targets if trainer.enable_deep_supervision else targets[0]}


@cache
def waits_of_steps(steps: Any, name: str, patch_size: tuple[int, ...]) -> tuple[list[str], list[str]]:
    """What the host waits for in a step of training and one of validation."""
    with pretended_gpu() as host:
        trainer, batch = trainer_on_gpu(steps, name, list(patch_size))
        host.waits.clear()
        trainer.train_step(dict(batch))
        training = list(host.waits)
        host.waits.clear()
        trainer.validation_step(dict(batch))
        return training, list(host.waits)


@pytest.mark.slow
@pytest.mark.parametrize("patch_size", [(64, 64), (32, 32, 32)], ids=["2d", "3d"])
@pytest.mark.parametrize("name", ALL_TRAINERS)
def test_the_host_waits_no_more_than_nnunets(steps: Any, name: str, patch_size: tuple[int, ...]) -> None:
    try:
        training, validation = waits_of_steps(steps, name, patch_size)
    except NotImplementedError as reason:
        assert len(patch_size) == 3 and "2-D images" in str(reason)
        pytest.skip(str(reason))
    stock_training, stock_validation = waits_of_steps(steps, "nnUNetTrainer", patch_size)
    assert len(stock_training) == 2  # the scaler of the gradients looks for infinite ones, and the loss is logged
    assert len(training) <= len(stock_training), training
    classes = 2  # the predicted ones and their loss
    assert len(validation) <= len(stock_validation) + classes, validation


def test_waiting_is_noticed() -> None:
    with pretended_gpu() as host:
        on_gpu, on_host = torch.zeros(3, device=GPU), torch.zeros(3)
        with torch.autocast("cuda"):
            assert (torch.ones(2, 3, device=GPU) @ on_gpu).dtype == torch.float16
        assert host.waits == []
        on_gpu.sum().item()
        on_gpu.cpu()
        on_gpu.copy_(on_host)
        on_host.to(GPU)
        assert len(host.waits) == 4 and all(__file__ in wait for wait in host.waits)
        on_host.to(GPU, non_blocking=True)
        on_host.sum().item()
        assert len(host.waits) == 4
        with pytest.raises(RuntimeError, match="same device"):
            on_gpu + on_host
        with pytest.raises(DynamicOutputShapeException):
            on_gpu[on_gpu > 0]


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize(
    "name", ["nnUNetTrainerMultiTask", "nnUNetTrainerBrainTumNet", "nnUNetTrainerUNet", "nnUNetTrainerResSELKA"]
)
def test_augmentation_keeps_the_host_free(
    nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch, name: str, configuration: str
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("braintum_augmentation", "gpu")
    trainer = write_preprocessed(nnunet_folders.preprocessed, configuration).trainer(name)
    trainer.initialize()
    for batches in trainer.get_dataloaders():
        expected, loaded = next(batches), [next(batches.batches) for _ in range(4)]
        batches.batches, batches.device = iter(loaded), GPU
        with pretended_gpu() as host:
            for _ in loaded:
                batch = next(batches)
                assert batch["data"].device == GPU and batch["data"].dtype == torch.float32
                assert batch["data"].shape == expected["data"].shape
                targets = batch["target"] if isinstance(batch["target"], list) else [batch["target"]]
                assert all(target.device == GPU for target in targets)
            assert host.waits == []


class Inline(ThreadPoolExecutor):
    """Runs in the caller's thread, where tensors pretend to be on a GPU."""

    def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Future:
        future: Future = Future()
        future.set_result(function(*args, **kwargs))
        return future


@pytest.mark.slow
@pytest.mark.parametrize("patch_size", [[32, 32], [16, 32, 32]], ids=["2d", "3d"])
@pytest.mark.parametrize("name", ["nnUNetTrainerMultiTask", "nnUNetTrainerBrainTumNet"])
def test_prediction_waits_at_both_ends_of_a_case_alone(
    steps: Any, monkeypatch: pytest.MonkeyPatch, name: str, patch_size: list[int]
) -> None:
    monkeypatch.setattr(bulk_prediction, "ThreadPoolExecutor", Inline)
    monkeypatch.setattr(bulk_prediction, "largest_device_batch", lambda run, device, most: (run(2), most)[1])
    # nnU-Net's is computed once a process, and looks at its values
    monkeypatch.setattr(window_batches, "compute_gaussian", lambda size, device, **_: torch.ones(size, device=device))
    volume = (1, *([3] if len(patch_size) == 2 else []), *(edge + edge // 2 for edge in patch_size))
    with pretended_gpu() as host:
        trainer, _ = trainer_on_gpu(steps, name, patch_size)
        predictor = JointPredictor(device=GPU, allow_tqdm=False)
        plans = trainer.plans_manager, trainer.configuration_manager
        trainer.set_deep_supervision_enabled(False)
        networks = [trainer.network.eval()] * 2
        monkeypatch.setattr(predictor, "networks_of_folds", lambda num_threads: networks)  # pretended ones cannot move
        axes = tuple(range(len(patch_size)))
        predictor.manual_initialization(trainer.network, *plans, networks, trainer.dataset_json, name, axes)
        cases = [(case, np.zeros(volume, np.float32)) for case in "ab"]
        host.waits.clear()
        predicted = list(BulkPredictor(predictor, len(cases), 1).predict(cases))
        assert [case.logits.shape for case in predicted] == [(2, *volume[1:])] * 2
        assert all(len(case.evidence) == 2 for case in predicted)
        assert all(str(window_batches.__file__) in wait for wait in host.waits), host.waits
        # an image; then its logits, class probabilities, tumour weights, small maps of the tumour and encoder features
        assert [sum(f"copy to the {where}" in wait for wait in host.waits) for where in ("GPU", "host")] == [2, 10]
