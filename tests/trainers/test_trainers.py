"""Every trainer that nnU-Net finds by name: from plans to a checkpoint, and what is special to some."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import ALL_TRAINERS, OWN_TRAINERS, SOME_TRAINERS
from nnunet_runs import make_trainer, plan_and_preprocess, write_dataset
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.logging.nnunet_logger import LocalLogger
from tiny_training import CLASS_NAMES, TinyDataset, write_preprocessed
from torch import nn
from trainer_steps import hand_over, one_epoch, scores_on_training_cases, start, weights

from braintum.architectures.weights.store import VARIABLE
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.trainers import registered
from braintum.trainers.classes.progress import MultiTaskLogger
from braintum.trainers.recipes.schedule import CosineDecay, PolynomialDecay

SEGMENTATION_ONLY = {name for name in registered.__all__ if not hasattr(getattr(registered, name), "class_labels")}
TORCHVISION = {f"nnUNetTrainerClassifier{name}" for name in ("FTCNN", "ResNet50", "DenseNet121", "GoogLeNet")}
CLASSIFIERS = TORCHVISION | {"nnUNetTrainerClassifierUNet"}
TWO_STAGE = "nnUNetTrainerBrainTumNetTwoStage"
EVERYWHERE = [(name, "2d") for name in OWN_TRAINERS] + [
    pytest.param(name, "3d_fullres", marks=() if name in SOME_TRAINERS else pytest.mark.thorough)
    for name in OWN_TRAINERS
    if 3 in getattr(registered, name).dimensions
]


@pytest.fixture
def folders(nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """nnU-Net's folders; seeded training without worker processes, two iterations an epoch, random weights."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("braintum_num_iterations_per_epoch", "2")
    monkeypatch.setenv("braintum_seed", "5")
    monkeypatch.setenv(VARIABLE, "random")
    for logger in (LocalLogger, MultiTaskLogger):  # a second a picture
        monkeypatch.setattr(logger, "plot_progress_png", lambda self, folder: None)
    return nnunet_folders


@pytest.fixture
def dataset(folders: Any) -> TinyDataset:
    return write_preprocessed(folders.preprocessed, "2d")


def predict(predictor: Any, trainer: Any) -> torch.Tensor:
    """Segmentation logits of a case, as nnU-Net's final validation predicts it."""
    hand_over(trainer, predictor, mirroring=trainer.inference_allowed_mirroring_axes)
    data, *_ = trainer.dataset_class(trainer.preprocessed_dataset_folder, ["case_0"]).load_case("case_0")
    logits = predictor.predict_sliding_window_return_logits(torch.from_numpy(np.array(data[:])))
    trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
    return logits


@pytest.mark.slow
@pytest.mark.parametrize(("name", "configuration"), EVERYWHERE)
def test_trains_saves_loads_and_predicts(folders: Any, name: str, configuration: str) -> None:
    has_classes = name not in SEGMENTATION_ONLY
    data = write_preprocessed(folders.preprocessed, configuration, classes=has_classes)
    trainer = start(data.trainer(name))
    before = weights(trainer)
    one_epoch(trainer)
    trainer.on_epoch_end()
    assert any(not torch.equal(tensor, before[key]) for key, tensor in weights(trainer).items())
    parameters = trainer.bare_network.named_parameters()
    without_gradient = [key for key, parameter in parameters if parameter.requires_grad and parameter.grad is None]
    if trainer.recipe.segmentation_loss is not None:  # nnU-Net's loss spares the coarsest output, save under DDP
        assert without_gradient == []  # which wants one for each
    keys = ["train_losses", "val_losses", "mean_fg_dice"]
    keys += [] if name == "nnUNetTrainerMaskedImages" else ["train_dice", "train_iou"]
    keys += ["train_class_losses", "val_class_losses", "joint_score"] if has_classes else []
    assert all(np.isfinite(trainer.logger.get_value(key, step=-1)) for key in keys)

    checkpoint = folders.results / "checkpoint.pth"
    trainer.save_checkpoint(str(checkpoint))
    torch.load(checkpoint, weights_only=True)
    loaded = data.trainer(name)
    loaded.load_checkpoint(str(checkpoint))
    for key, tensor in weights(trainer).items():
        assert torch.equal(loaded.bare_network.state_dict()[key], tensor), key

    # the loaded one has not trained, so that its mirroring has to come from the checkpoint
    logits = predict(nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False), loaded)
    assert logits.shape[0] == 2 and logits.isfinite().all()
    assert hasattr(loaded.bare_network, "classification_head") == has_classes
    if has_classes:
        predictor = JointPredictor(device=torch.device("cpu"), allow_tqdm=False)
        torch.testing.assert_close(predict(predictor, loaded), logits, rtol=0, atol=0)
        (evidence,) = predictor.evidence
        assert evidence.probabilities.shape[-1] == len(CLASS_NAMES)
        np.testing.assert_allclose(evidence.probabilities.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["nnUNetTrainerBrainTumNet", "nnUNetTrainerJointUNet", "nnUNetTrainerResSELKA", "nnUNetTrainerResidualUNet"]
)
def test_regions_and_ignored_voxels(folders: Any, name: str) -> None:
    data = write_preprocessed(folders.preprocessed, "2d", labels={"background": 0, "whole": [1, 2], "ignore": 3})
    trainer = start(data.trainer(name))
    one_epoch(trainer)
    trainer.on_epoch_end()
    assert np.isfinite(trainer.logger.get_value("train_losses", step=-1))


@pytest.mark.slow
def test_networks_of_torchvision_are_imported_only_where_they_are_trained() -> None:
    code = (
        "import sys, braintum.trainers.registered as r; "
        "late = ('torchvision_classifiers', 'timm_backbone'); "
        "sys.exit(any(name.endswith(late) or name in ('torchvision', 'timm') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("name", ["nnUNetTrainerUNet", "nnUNetTrainerMultiTask"])
def test_no_cascade(dataset: TinyDataset, name: str) -> None:
    plans = {**dataset.plans, "configurations": dict(dataset.plans["configurations"])}
    plans["configurations"]["2d"] = {**plans["configurations"]["2d"], "previous_stage": "3d_lowres"}
    with pytest.raises(NotImplementedError, match="cascade.*3d_fullres or 2d"):
        replace(dataset, plans=plans).trainer(name)


def test_multi_task_trainers_want_classes(folders: Any) -> None:
    data = write_preprocessed(folders.preprocessed, "2d", classes=False)
    with pytest.raises(ValueError, match='has no "classification".*braintum_convert'):
        data.trainer("nnUNetTrainerJointUNet")


# ---------------------------------------------------------------------- classifiers


def test_classifier_says_that_it_segments_nothing(dataset: TinyDataset) -> None:
    trainer = dataset.trainer("nnUNetTrainerClassifierUNet")
    trainer.on_train_start()
    assert "braintum_predict" in Path(trainer.log_file).read_text(encoding="utf-8")


@pytest.mark.slow
def test_imagenet_weights_are_asked_for_once(dataset: TinyDataset, folders: Any, monkeypatch: Any) -> None:
    trainer = dataset.trainer("nnUNetTrainerClassifierFTCNN")
    trainer.initialize()
    saved = folders.results / "features.pth"
    torch.save(trainer.bare_network.encoder.state_dict(), saved)
    checkpoint = folders.results / "checkpoint.pth"
    trainer.save_checkpoint(str(checkpoint))
    monkeypatch.setenv(VARIABLE, str(saved))
    fresh = dataset.trainer("nnUNetTrainerClassifierFTCNN")
    fresh.seed = 6  # other random weights
    fresh.initialize()
    for key, tensor in trainer.bare_network.encoder.state_dict().items():
        assert torch.equal(fresh.bare_network.encoder.state_dict()[key], tensor), key
    monkeypatch.setenv(VARIABLE, str(folders.results / "missing.pth"))
    with pytest.raises(FileNotFoundError, match="missing.pth"):
        dataset.trainer("nnUNetTrainerClassifierFTCNN").initialize()
    dataset.trainer("nnUNetTrainerClassifierFTCNN").load_checkpoint(str(checkpoint))  # holds all weights


# ---------------------------------------------------------------------- two stages


@pytest.mark.slow
def test_two_stages(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch, folders: Any) -> None:
    monkeypatch.setenv("braintum_num_epochs", "4")
    trainer = dataset.trainer(TWO_STAGE)
    trainer.on_train_start()
    checkpoint = str(folders.results / "checkpoint.pth")

    def changed_by_epoch(running: Any) -> set[str]:
        before = weights(running)
        running.on_epoch_start()
        running.on_train_epoch_start()
        one_epoch(running)
        running.on_epoch_end()
        return {key.partition(".")[0] for key, value in weights(running).items() if not torch.equal(value, before[key])}

    rates = []
    for epoch in range(4):
        if epoch == 3:  # a resume in the midst of the second stage goes on with its optimiser
            trainer.save_checkpoint(checkpoint)
            trainer = dataset.trainer(TWO_STAGE)
            trainer.load_checkpoint(checkpoint)
            trainer.current_epoch = 3
            trainer.on_train_start()
            moments = len(trainer.optimizer.state)
            assert 0 < moments < sum(1 for _ in trainer.bare_network.parameters())
        changed = changed_by_epoch(trainer)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        assert changed == ({"encoder", "decoder"} if epoch < 2 else {"classification_head"}), epoch
        assert trainer.bare_network.segmentation_is_frozen == (epoch >= 2)
    assert len(trainer.optimizer.state) == moments
    assert rates == pytest.approx([1e-4, 0.5e-4, 1e-4, 0.5e-4])
    segmentation_losses = np.subtract(
        trainer.logger.get_value("train_losses", step=None),
        np.multiply([0, 0, 0.7, 0.7], trainer.logger.get_value("train_class_losses", step=None)),
    )
    assert (segmentation_losses[:2] > 0.1).all()
    np.testing.assert_allclose(segmentation_losses[2:], 0, atol=1e-6)  # the class loss alone


# ---------------------------------------------------------------------- balancing of the tasks


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nnUNetTrainerMultiTask", "nnUNetTrainerBrainTumNet", "nnUNetTrainerJointUNet"])
@pytest.mark.parametrize("balancing", ["uncertainty", "pcgrad", "gradnorm"])
def test_balanced_tasks(dataset: TinyDataset, monkeypatch: Any, folders: Any, name: str, balancing: str) -> None:
    monkeypatch.setenv("braintum_task_balancing", balancing)
    trainer = start(dataset.trainer(name))
    before = weights(trainer)
    one_epoch(trainer)
    trainer.on_epoch_end()
    changed = {
        key.partition(".")[0] for key, tensor in weights(trainer).items() if not torch.equal(tensor, before[key])
    }
    assert changed == {"encoder", "decoder", "classification_head"}
    checkpoint = str(folders.results / "checkpoint.pth")
    trainer.save_checkpoint(checkpoint)
    learned = [parameter.detach().clone() for parameter in trainer.balancing.parameters()]
    assert all((parameter != 0).all() for parameter in learned)
    loaded = dataset.trainer(name)
    loaded.load_checkpoint(checkpoint)
    for parameter, expected in zip(loaded.balancing.parameters(), learned, strict=True):
        assert torch.equal(parameter, expected)
        assert any(parameter is member for group in loaded.optimizer.param_groups for member in group["params"])
        assert loaded.optimizer.state[parameter]["step"] == 2
    monkeypatch.setenv("braintum_task_balancing", "fixed")
    if balancing != "pcgrad":
        with pytest.raises(ValueError, match=f"was trained with braintum_task_balancing={balancing}"):
            dataset.trainer(name).load_checkpoint(checkpoint)
    else:
        dataset.trainer(name).load_checkpoint(checkpoint)


@pytest.mark.parametrize("class_weight", [1.0, -1.0], ids=["agreement", "conflict"])
def test_gradient_surgery_in_a_network(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch, class_weight: float
) -> None:
    """The gradients that a step leaves against those of the two losses, one by one."""
    monkeypatch.setenv("braintum_task_balancing", "pcgrad")
    trainer = start(dataset.trainer("nnUNetTrainerJointUNet"))
    # the tasks agree on this batch; with the class loss turned round they do not
    monkeypatch.setattr(type(trainer), "recipe", replace(trainer.recipe, class_weight=class_weight))
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda parameters, norm: None)
    trainer.network.eval()  # no dropout: three passes alike
    batch = next(trainer.dataloader_train)

    def gradients(backward: Any) -> dict[str, torch.Tensor]:
        trainer.network.zero_grad()
        backward()
        named = trainer.network.named_parameters()
        return {key: parameter.grad.clone() for key, parameter in named if parameter.grad is not None}

    def single_task(index: int) -> Any:
        def backward() -> None:
            segmentation, class_logits = trainer.network(batch["data"], with_classes=True)
            target = batch["target"]
            losses = (
                trainer.loss(segmentation, target),
                trainer._classification_loss(class_logits, target, batch["keys"]),
            )
            (trainer.task_weights[index] * losses[index]).backward()

        return backward

    segmentation, classes = gradients(single_task(0)), gradients(single_task(1))
    both = gradients(lambda: trainer.train_step(batch))
    shared = sorted(segmentation.keys() & classes.keys())
    assert shared and all(key.startswith("encoder.") for key in shared)
    flat = [torch.cat([of[key].flatten() for key in shared]) for of in (segmentation, classes, both)]
    dot = flat[0] @ flat[1]
    assert (dot < 0) == (class_weight < 0)
    expected = flat[0] + flat[1]
    if dot < 0:
        expected = flat[0] - dot / (flat[1] @ flat[1]) * flat[1] + flat[1] - dot / (flat[0] @ flat[0]) * flat[0]
    torch.testing.assert_close(flat[2], expected, rtol=1e-4, atol=1e-6)
    for key in both.keys() - set(shared):
        torch.testing.assert_close(both[key], (segmentation if key in segmentation else classes)[key])


@pytest.mark.parametrize("name", ["nnUNetTrainerUNet", TWO_STAGE, "nnUNetTrainerClassifierUNet"])
def test_one_task_cannot_be_balanced(dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("braintum_task_balancing", "pcgrad")
    with pytest.raises(NotImplementedError, match="never trains two tasks at once"):
        dataset.trainer(name)


# ---------------------------------------------------------------------- early stopping


def test_early_stopping_ends_training_with_its_final_checkpoint(
    dataset: TinyDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = dataset.trainer("nnUNetTrainerUNet")
    monkeypatch.setattr(type(trainer), "recipe", replace(trainer.recipe, early_stopping=2))
    losses = iter([3.0, 2.0, 2.5, 2.25])  # the second epoch is the best, the fourth the last
    original = trainer.on_validation_epoch_end

    def with_planned_loss(outputs: list[dict]) -> None:
        loss = next(losses)
        original([{**output, "loss": np.array(loss)} for output in outputs])

    monkeypatch.setattr(trainer, "on_validation_epoch_end", with_planned_loss)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    checkpoint = torch.load(folder / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["current_epoch"] == 4
    assert checkpoint["logging"]["val_losses"] == [3.0, 2.0, 2.5, 2.25]
    assert not (folder / "checkpoint_latest.pth").exists()
    resumed = dataset.trainer("nnUNetTrainerUNet")
    resumed.load_checkpoint(str(folder / "checkpoint_final.pth"))
    resumed.run_training()  # ends again at once
    assert resumed.current_epoch == 4
    assert predict(nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False), resumed).isfinite().all()


@pytest.mark.slow
def test_stopped_training_is_validated_and_its_models_predict(
    nnunet_folders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As nnUNetv2_train goes: training, final validation; then from the model's folder."""
    monkeypatch.setenv("braintum_num_iterations_per_epoch", "2")
    write_dataset(nnunet_folders.raw, 7)
    plans = plan_and_preprocess(7)
    for name, written in (
        ("nnUNetTrainerUNet", {"summary.json"}),
        ("nnUNetTrainerJointUNet", {"summary.json", "classes.csv", "classification.json", "encoder_features.npy"}),
    ):
        trainer = make_trainer(7, plans, trainer=name)
        monkeypatch.setattr(type(trainer), "recipe", replace(trainer.recipe, early_stopping=1, num_epochs=100))
        monkeypatch.setattr(trainer, "val_losses", lambda: [1.0, 2.0])
        trainer.run_training()
        assert trainer.current_epoch == 0  # stopped, whatever is still to come
        trainer.perform_actual_validation()
        validation = Path(trainer.output_folder) / "validation"
        assert written <= {file.name for file in validation.iterdir()}
        predictor: Any = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
        joint = JointPredictor(device=torch.device("cpu"), allow_tqdm=False)
        if name == "nnUNetTrainerUNet":
            with pytest.raises(ValueError, match="nnUNetTrainerUNet, which predicts no class; name one"):
                joint.initialize_from_trained_model_folder(trainer.output_folder_base, (0,))
        else:
            joint.initialize_from_trained_model_folder(trainer.output_folder_base, (0,))
            assert joint.class_schema.class_names == CLASS_NAMES


# ---------------------------------------------------------------------- learning


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in ALL_TRAINERS if not any(slow in str(name) for slow in ("MaskedImages", "PlansNetwork"))]
)
def test_overfits_eight_cases(folders: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    data = write_preprocessed(folders.preprocessed, "2d", classes=name not in SEGMENTATION_ONLY)
    trainer = data.trainer(name, fold="all")
    lr, iterations, batch_size = (1e-3, 40, 8) if name in TORCHVISION else (3e-3, 100, 2)
    if name == "nnUNetTrainerClassifierFTCNN":  # on frozen random features, which hardly differ between images
        lr, iterations = 3e-4, 80
    decay = CosineDecay(cycles=2) if name == TWO_STAGE else PolynomialDecay(exponent=0)
    body = replace(trainer.recipe.body, lr=lr, warmup=0.0)
    monkeypatch.setattr(type(trainer), "recipe", replace(trainer.recipe, body=body, decay=decay, balances_classes=True))
    trainer.initial_lr = lr
    trainer.num_epochs = 2
    trainer.initialize()
    trainer.batch_size = batch_size
    trainer.on_train_start()
    for trainer.current_epoch in range(2):
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        for _ in range(iterations):
            trainer.train_step(next(trainer.dataloader_val))  # the same cases, without augmentation
    dice, correct, number = scores_on_training_cases(trainer, name not in SEGMENTATION_ONLY)
    assert number == 8
    if name not in SEGMENTATION_ONLY:
        assert correct == 8
    if name not in CLASSIFIERS:
        assert dice > 0.9


# ---------------------------------------------------------------------- features that do not change


@pytest.mark.slow
def test_frozen_features_are_computed_once_an_image(dataset: TinyDataset) -> None:
    """The losses are those of features that are computed in each step."""
    losses = {}
    for remembers in (True, False):
        trainer = dataset.trainer("nnUNetTrainerClassifierFTCNN")
        trainer.on_train_start()
        encoder, images = trainer.bare_network.encoder, []
        encoder.register_forward_pre_hook(lambda module, args, images=images: images.append(len(args[0])))
        computed: list[int] = []
        if remembers:
            compute = trainer.features._compute
            trainer.features._compute = lambda x, compute=compute, computed=computed: (
                computed.append(len(x)),
                compute(x),
            )[1]
        else:
            trainer.features = None
        trainer.network.train()
        trainer.on_epoch_start()
        trainer.on_train_epoch_start()
        steps = [trainer.train_step(next(trainer.dataloader_train))["loss"] for _ in range(4)]
        losses[remembers] = [float(loss) for loss in steps]
        assert sum(images) == 4 * trainer.batch_size
        if remembers:
            assert sum(computed) == len(trainer.features._features) <= len(trainer.do_split()[0])
    assert losses[True] == pytest.approx(losses[False], rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_features_are_not_kept_where_images_change(dataset: TinyDataset) -> None:
    name = "nnUNetTrainerClassifierFTCNN"
    plans = {**dataset.plans, "configurations": dict(dataset.plans["configurations"])}
    plans["configurations"]["2d"] = {**plans["configurations"]["2d"], "patch_size": [32, 16]}  # the images have 32 x 32
    trainer = replace(dataset, plans=plans).trainer(name)
    trainer.on_train_start()
    assert trainer.features is None
    augmented = dataset.trainer(f"{name}_JointUNet")
    augmented.on_train_start()
    assert augmented.features is None
