"""A trainer's training and prediction step by step, in the order of nnU-Net's own run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def start(trainer: Any) -> Any:
    """Everything up to the first iteration."""
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    return trainer


def one_epoch(trainer: Any) -> None:
    """Training and validation of a started epoch, on fresh batches; its end is left to the caller."""
    train = [trainer.train_step(next(trainer.dataloader_train)) for _ in range(trainer.num_iterations_per_epoch)]
    trainer.on_train_epoch_end(train)
    with torch.no_grad():
        trainer.on_validation_epoch_start()
        trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val))])


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    """A copy of all that a checkpoint holds of the network."""
    return {name: tensor.clone() for name, tensor in trainer.bare_network.state_dict().items()}


def scores_on_training_cases(trainer: Any, has_classes: bool = True) -> tuple[float, int, int]:
    """Dice of label 1 over all training cases of 2-D data, how many of their classes are right, and their number."""
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    keys, _ = trainer.do_split()
    intersection = total = correct = 0
    for key in keys:
        image, segmentation, *_ = trainer.dataset_class(trainer.preprocessed_dataset_folder, [key]).load_case(key)
        patch = torch.from_numpy(np.array(image[:]))[:, 0][None]
        with torch.no_grad():
            if has_classes:
                logits, classes = trainer.network(patch, with_classes=True)
                correct += int(classes.argmax()) == trainer.class_labels.label_of_case[key]
            else:
                logits = trainer.network(patch)
        predicted, truth = logits.argmax(1)[0].numpy() == 1, segmentation[:][0, 0] == 1
        intersection, total = intersection + 2 * (predicted & truth).sum(), total + predicted.sum() + truth.sum()
    return intersection / total, correct, len(keys)


def hand_over(
    trainer: Any, predictor: Any, weights_of_folds: Sequence[Any] | None = None, mirroring: tuple[int, ...] = (0, 1)
) -> Any:
    """Gives the network of a trainer to a predictor, as nnU-Net's final validation does; returns the predictor.

    Args:
        trainer: is initialized.
        predictor: nnU-Net's or one of ours.
        weights_of_folds: state dicts of the network; None: what it holds, for a single fold.
        mirroring: axes that are mirrored.
    """
    trainer.set_deep_supervision_enabled(False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        weights_of_folds,
        trainer.dataset_json,
        type(trainer).__name__,
        mirroring,
    )
    return predictor
