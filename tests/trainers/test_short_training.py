"""The recipe for short trainings: averaged weights, arithmetic of the CPU, smaller patches, pretrained backbones."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from tiny_training import TinyDataset, write_preprocessed
from torch import nn
from trainer_steps import one_epoch, start, weights

from braintum.architectures.weights import store
from braintum.architectures.weights.store import VARIABLE
from braintum.trainers import cpu_arithmetic
from braintum.trainers.averaged_weights import NUM_UPDATES, TRAINED_WEIGHTS, AveragedWeights
from braintum.trainers.cpu_arithmetic import CpuArithmetic, fastest
from braintum.trainers.masked_images import MASKED_SHARE, draw_masks
from braintum.trainers.pretrained import pretrained_trainer

SMALL = "nnUNetTrainerPretrained_test_efficientnet"


@pytest.fixture
def dataset(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TinyDataset:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("braintum_num_iterations_per_epoch", "2")
    monkeypatch.setenv("braintum_num_epochs", "4")
    monkeypatch.setenv("braintum_seed", "5")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv(VARIABLE, "random")
    return write_preprocessed(nnunet_folders.preprocessed, "2d")


def log(trainer: Any) -> str:
    return Path(trainer.log_file).read_text(encoding="utf-8")


# ---------------------------------------------------------------------- averaged weights


def test_average_follows_its_formula() -> None:
    network = nn.Sequential(nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1))
    network[0].weight.data.fill_(0.0)
    averaged = AveragedWeights(network, 0.5)
    expected = 0.0
    for step in range(1, 5):
        network[0].weight.data.fill_(float(step))
        network[1].num_batches_tracked += 1
        averaged.update()
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with averaged.in_network():
        assert network[0].weight[0, 0].item() == pytest.approx(expected)
        assert network[1].num_batches_tracked.item() == 4  # counts are not averaged
    assert network[0].weight[0, 0].item() == 4.0


def epochs(trainer: Any, number: int) -> None:
    for _ in range(number):
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        one_epoch(trainer)
        trainer.on_epoch_end()


@pytest.mark.slow
def test_checkpoint_predicts_with_the_average_and_training_goes_on_without_a_difference(
    dataset: TinyDataset, nnunet_folders: Any
) -> None:
    whole = dataset.trainer("nnUNetTrainerMultiTaskShort")
    whole.on_train_start()
    epochs(whole, 2)
    file = nnunet_folders.results / "checkpoint.pth"
    whole.current_epoch -= 1  # as nnU-Net saves: the epoch is counted up afterwards
    whole.save_checkpoint(str(file))
    whole.current_epoch += 1
    checkpoint = torch.load(file, weights_only=True)
    live = weights(whole)
    assert checkpoint[NUM_UPDATES] == 4
    assert all(torch.equal(tensor, live[name]) for name, tensor in checkpoint[TRAINED_WEIGHTS].items())
    with whole.weights_to_keep():
        average = weights(whole)
    assert all(torch.equal(tensor, average[name]) for name, tensor in checkpoint["network_weights"].items())
    assert any(not torch.equal(tensor, live[name]) for name, tensor in average.items())
    epochs(whole, 1)

    resumed = dataset.trainer("nnUNetTrainerMultiTaskShort")
    resumed.load_checkpoint(str(file))
    resumed.on_train_start()
    epochs(resumed, 1)
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(resumed)[name], tensor), name
    with whole.weights_to_keep(), resumed.weights_to_keep():
        for name, tensor in weights(whole).items():
            assert torch.equal(weights(resumed)[name], tensor), name
    other = dataset.trainer("nnUNetTrainerMultiTask")
    other.initialize()
    other.save_checkpoint(str(file))
    with pytest.raises(ValueError, match="without averaged weights.*-pretrained_weights"):
        dataset.trainer("nnUNetTrainerMultiTaskShort").load_checkpoint(str(file))


# ---------------------------------------------------------------------- arithmetic and patch sizes


def test_fastest_arithmetic_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {
        CpuArithmetic(): 3.0,
        CpuArithmetic(True): 2.0,
        CpuArithmetic(False, True): 2.5,
        CpuArithmetic(True, True): 1.0,
    }
    monkeypatch.setattr(cpu_arithmetic, "cpu_computes_bfloat16", lambda: True)
    monkeypatch.setattr(cpu_arithmetic, "_step_time", lambda network, candidate, shape: seconds[candidate])
    lines: list[str] = []
    assert fastest(nn.Conv2d(1, 1, 3), (1, 1, 8, 8), lines.append) == CpuArithmetic(True, True)
    assert "1.00 s (bfloat16, channels last)" in lines[0]
    assert fastest(nn.Conv3d(1, 1, 3), (1, 1, 8, 8, 8), lines.append) == CpuArithmetic(True)  # no channels last in 3-D
    monkeypatch.setattr(cpu_arithmetic, "cpu_computes_bfloat16", lambda: False)
    assert fastest(nn.Conv2d(1, 1, 3), (1, 1, 8, 8), lines.append) == CpuArithmetic(False, True)


def test_measuring_changes_neither_the_network_nor_the_random_numbers() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.5))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    fastest(network, (2, 1, 8, 8), lambda line: None)
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("asked", "seed", "expected"),
    [
        ("float32", "", CpuArithmetic()),
        ("bfloat16", "", CpuArithmetic(True, True)),
        ("auto", "3", CpuArithmetic(True, True)),
        ("", "", CpuArithmetic(False, True)),
    ],
)
def test_precision_of_a_training(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch, asked: str, seed: str, expected: CpuArithmetic
) -> None:
    monkeypatch.setenv("braintum_precision", asked)
    monkeypatch.setenv("braintum_seed", seed)
    monkeypatch.setattr(cpu_arithmetic, "cpu_computes_bfloat16", lambda: True)
    module = "braintum.trainers.segmentation.fastest"
    monkeypatch.setattr(module, lambda network, shape, log: CpuArithmetic(False, True))
    trainer = dataset.trainer("nnUNetTrainerMultiTaskShort")
    trainer.on_train_start()
    assert trainer.cpu_arithmetic == expected
    types: list[torch.dtype] = []
    convolution = next(module for module in trainer.bare_network.modules() if isinstance(module, nn.Conv2d))
    convolution.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    one_epoch(trainer)
    assert set(types) == {torch.bfloat16 if expected.bfloat16 else torch.float32}  # in training and validation


def test_stock_recipe_computes_in_float32(dataset: TinyDataset) -> None:
    trainer = dataset.trainer("nnUNetTrainerMultiTask")
    trainer.on_train_start()
    assert trainer.cpu_arithmetic == CpuArithmetic()


def test_unknown_precision_is_refused(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("braintum_precision", "half")
    with pytest.raises(ValueError, match="braintum_precision takes one of float32, bfloat16, auto"):
        dataset.trainer("nnUNetTrainerMultiTask")


def test_first_epochs_see_smaller_patches(dataset: TinyDataset) -> None:
    trainer = dataset.trainer("nnUNetTrainerMultiTaskShort")
    trainer.initialize()
    patch = tuple(trainer.configuration_manager.patch_size)
    steps = np.prod(trainer.configuration_manager.pool_op_kernel_sizes, 0)
    target = torch.zeros(2, 1, *patch, dtype=torch.int16)
    target[:, :, : patch[0] // 2] = 1
    batch = {"data": torch.randn(2, 1, *patch), "target": target, "keys": ["a", "b"]}
    sizes = []
    for epoch in range(trainer.num_epochs):
        trainer.current_epoch = epoch
        small = trainer.shrunk(batch)
        sizes.append(small["data"].shape[2])
        assert small["data"].shape[2:] == small["target"].shape[2:] and small["keys"] == ["a", "b"]
        assert set(small["target"].unique().tolist()) == {0, 1} and small["target"].dtype == torch.int16
        assert float(small["target"].float().mean()) == pytest.approx(0.5, abs=0.1)
        assert all(edge % step == 0 for edge, step in zip(small["data"].shape[2:], steps, strict=True))
    assert sizes[0] == sizes[1] < patch[0] and sizes[2:] == [patch[0]] * 2


# ---------------------------------------------------------------------- backbones


def test_nnunet_finds_trainers_by_their_backbone() -> None:
    found = recursive_find_trainer_class_by_name(SMALL)
    assert found is pretrained_trainer("test_efficientnet") and found.__name__ == SMALL
    with pytest.raises(RuntimeError, match="Could not find"):
        recursive_find_trainer_class_by_name("nnUNetTrainerNonsense")


def test_unknown_backbone(dataset: TinyDataset) -> None:
    with pytest.raises(ValueError, match="has no model 'resnet1'"):
        dataset.trainer("nnUNetTrainerPretrained_resnet1").initialize()


@pytest.mark.slow
def test_backbone_trains_at_its_own_rate_and_loads_what_is_installed(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch, nnunet_folders: Any
) -> None:
    import timm
    from safetensors.torch import save_file

    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ValueError, match="test_efficientnet starts from trained weights.*braintum_pretrained_weights"):
        dataset.trainer(SMALL).initialize()
    whole = timm.create_model("test_efficientnet")
    file = nnunet_folders.results / "model.safetensors"
    save_file(whole.state_dict(), file)
    store.install_file(file, "test_efficientnet.tag", "a test", "test_efficientnet")
    trainer = start(dataset.trainer(SMALL))
    assert "weights to start from: test_efficientnet.tag" in log(trainer) and "adapted: conv_stem.weight" in log(
        trainer
    )
    name = "blocks.0.0.conv_dw.weight" if "blocks.0.0.conv_dw.weight" in whole.state_dict() else "bn1.weight"
    assert torch.equal(trainer.bare_network.encoder.backbone.state_dict()[name], whole.state_dict()[name])
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    assert rates[1] == pytest.approx(rates[0] / 2)
    in_groups = {id(parameter) for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert in_groups == {id(parameter) for parameter in trainer.bare_network.parameters()}
    one_epoch(trainer)
    trainer.on_epoch_end()
    checkpoint = nnunet_folders.results / "checkpoint.pth"
    trainer.save_checkpoint(str(checkpoint))
    for installed in store.installed():
        installed.file.unlink()
    dataset.trainer(SMALL).load_checkpoint(str(checkpoint))  # holds all weights


def test_any_trainer_starts_from_what_fits(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch, nnunet_folders: Any
) -> None:
    source = dataset.trainer("nnUNetTrainerMultiTask")
    source.initialize()
    state = {name: tensor for name, tensor in weights(source).items() if name.startswith("encoder.")}
    file = nnunet_folders.results / "encoder.pth"
    torch.save({"network_weights": state}, file)
    monkeypatch.setenv(VARIABLE, str(file))
    monkeypatch.setenv("braintum_seed", "6")
    trainer = dataset.trainer("nnUNetTrainerMultiTask")
    trainer.initialize()
    assert all(torch.equal(weights(trainer)[name], tensor) for name, tensor in state.items())
    assert "not loaded, the file has no such tensor: decoder." in log(trainer)
    torch.save({"other": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match="nothing in .*encoder.pth fits the network of nnUNetTrainerMultiTask"):
        dataset.trainer("nnUNetTrainerMultiTask").initialize()


# ---------------------------------------------------------------------- self-supervised start


@pytest.mark.parametrize("shape", [(64, 3, 128, 96), (8, 1, 32, 48, 40), (64, 1, 8, 6)])
def test_masks_cover_their_share_in_whole_blocks(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    masks = draw_masks(torch.Size(shape), torch.device("cpu"))
    assert masks.shape == (shape[0], 1, *shape[2:])
    assert float(masks.float().mean()) == pytest.approx(MASKED_SHARE, abs=0.12)
    if shape[2] >= 32:
        corner = masks[:, :, :16, :16]
        assert torch.equal(corner.float().mean((2, 3)).round(), corner.float().mean((2, 3)))


@pytest.mark.slow
def test_filling_in_is_learned_without_labels_and_starts_a_training(
    dataset: TinyDataset, nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("braintum_num_iterations_per_epoch", "30")
    trainer = dataset.trainer("nnUNetTrainerMaskedImages")
    trainer.on_train_start()
    epochs(trainer, 4)
    losses = trainer.logger.get_value("train_losses", step=None)
    assert losses[-1] < 0.9 * losses[0]
    assert "of their variance is filled in" in log(trainer)
    trainer.perform_actual_validation()
    assert "-pretrained_weights" in log(trainer)
    file = nnunet_folders.results / "start.pth"
    trainer.save_checkpoint(str(file))
    started = dataset.trainer("nnUNetTrainerMultiTask")
    started.initialize()
    load_pretrained_weights(started.network, str(file))
    learned = weights(trainer)
    for name, tensor in weights(started).items():
        if ".seg_layers." not in name:
            assert torch.equal(tensor, learned[name]), name


def test_labels_do_not_matter_to_the_start(dataset: TinyDataset) -> None:
    trainer = dataset.trainer("nnUNetTrainerMaskedImages")
    trainer.initialize()
    assert trainer.oversample_foreground_percent == 0
    patch = trainer.configuration_manager.patch_size
    images = torch.randn(2, 1, *patch)
    found = []
    for label in (0, 1):
        torch.manual_seed(0)
        batch = {"data": images, "target": torch.full((2, 1, *patch), label, dtype=torch.int16), "keys": ["a", "b"]}
        found.append(float(trainer.validation_step(batch)["loss"]))
    assert found[0] == found[1] and np.isfinite(found[0])
