"""nnU-Net's trainer with a classification head: segments the tumour and names its type in one network."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.utilities.collate_outputs import collate_outputs
from torch import distributed as dist
from torch import nn

from braintum.architectures.networks.multi_task_unet import multi_task_network_class
from braintum.conversion.format.cases import ClassSchema, classification_entry, read_cases, read_dates
from braintum.evaluation.metrics.classification_metrics import classification_metrics
from braintum.inference.models.checkpoints import load_checkpoint_safely
from braintum.inference.prediction.class_evidence import ClassRecorder, aggregate
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.results.results import case_result, tumour_volume_in_file
from braintum.trainers.classes.class_supervision import (
    UNKNOWN_CLASS,
    ClassLabels,
    class_loss,
    covered_shares,
    patch_weights,
)
from braintum.trainers.classes.permuted_labels import PERMUTATION_SEED, with_permuted_training
from braintum.trainers.classes.progress import MultiTaskLogger
from braintum.trainers.classes.validation_results import write_encoder_features, write_validation_results
from braintum.trainers.losses.task_balancing import LOG_VARIANCES, NAME, STATE, build_balancing
from braintum.trainers.networks import multi_task_network
from braintum.trainers.recipes.recipe import MULTI_TASK, ParameterGroup, split_off
from braintum.trainers.segmentation import SegmentationTrainer


class nnUNetTrainerMultiTask(SegmentationTrainer):
    """Any nnU-Net plans plus a classification head; the loss is the recipe's weighted sum of both tasks.

    Class names come from ``dataset.json``, labels from ``cases.csv``. Cases without a class train the segmentation,
    cases without a mask (ignore label) the classification. Segmentation loss, deep supervision and augmentation are
    nnU-Net's.

    Raises:
        ValueError: the data set declares no classes, or its ``cases.csv`` does not fit.
        FileNotFoundError: no ``cases.csv`` (when training starts, not at prediction).
        NotImplementedError: for the second stage of a cascade, or a balancing of tasks with DDP.
    """

    recipe = MULTI_TASK
    balances_tasks = True
    build_network_architecture = staticmethod(
        multi_task_network(lambda plan: multi_task_network_class(plan.network_arch_class_name))
    )

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's own signature, which it reads back
    ) -> None:
        plans = dict(plans)
        schema, entry = ClassSchema.from_dataset_json(dataset_json), classification_entry(dataset_json)
        if schema is None:
            raise ValueError(
                f'dataset.json of {plans["dataset_name"]} has no "classification": {type(self).__name__} has nothing '
                "to classify. Convert the data with braintum_convert, or train with a stock nnU-Net trainer"
            )
        plans["classification"] = entry  # a stock planner knows nothing of it
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.class_schema = schema
        self.logger.local_logger = MultiTaskLogger()
        self.balancing = build_balancing(
            self.settings.task_balancing, self.recipe.lowest_segmentation_loss, self.is_ddp
        ).to(self.device)

    # ------------------------------------------------------------------ optimiser

    @property
    def task_weights(self) -> tuple[float, float]:
        """Weight of the segmentation loss and of the class loss, in this epoch."""
        return self.recipe.segmentation_weight, self.recipe.class_weight

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], ParameterGroup]]:
        """Groups of body, head (if the recipe gives it one) and what the balancing of the tasks learns."""
        ((body, settings),) = super().parameter_groups()
        groups = [(body, settings)]
        if self.recipe.head is not None:
            body, head = split_off(body, self.bare_network.classification_head)
            groups = [(body, settings), (head, self.recipe.head)]
        if learned := list(self.balancing.parameters()):
            groups.append((learned, ParameterGroup(lr=self.balancing.learning_rate or settings.lr)))
        return groups

    def _do_i_compile(self) -> bool:
        """As stock, except that compiled networks allow one backward pass only."""
        return self.balancing.backward_passes == 1 and super()._do_i_compile()

    # ------------------------------------------------------------------ data

    @cached_property
    def class_labels(self) -> ClassLabels:
        """Labels of all cases, read when training or validation begins.

        Raises:
            FileNotFoundError: no ``cases.csv``.
            ValueError: it is wrong.
        """
        cases = read_cases(self.cases_file(), self.class_schema.class_names)
        labels = ClassLabels.from_cases(cases, self.class_schema)
        if self.settings.permuted_labels is None:
            return labels
        training, _ = self.do_split()
        labels, unchanged = with_permuted_training(labels, cases, training, self.settings.permuted_labels)
        self.print_to_log_file(
            f"CONTROL: classes are permuted among the training patients (seed {self.settings.permuted_labels}; "
            f"{unchanged:.0%} of the cases keep theirs by chance). This model is for measuring the chance level only.",
            also_print_to_console=True,
        )
        return labels

    def on_train_start(self) -> None:
        """As stock, after a look at the class labels."""
        training, validation = self.do_split()
        for name, keys in (("training", training), ("validation", validation)):
            labels = self.class_labels.of(keys)
            counts = ", ".join(f"{(labels == i).sum()} {c}" for i, c in enumerate(self.class_schema.class_names))
            self.print_to_log_file(f"{name} cases: {counts}, {(labels == UNKNOWN_CLASS).sum()} without a class")
        if not (self.class_labels.of(training) != UNKNOWN_CLASS).any():
            raise ValueError(f"no training case of fold {self.fold} has a class; fill in the column class of cases.csv")
        super().on_train_start()

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """As stock; where the recipe balances classes, training identifiers, which nnU-Net draws from, are repeated."""
        training, validation = super().get_tr_and_val_datasets()
        if self.recipe.balances_classes:
            training.identifiers = self.class_labels.balanced(training.identifiers)
        return training, validation

    # ------------------------------------------------------------------ training

    def train_step(self, batch: dict) -> dict:
        """One iteration on both tasks.

        Args:
            batch: ``data`` (B, C, [Z,] Y, X), ``target`` (a list under deep supervision) and ``keys``.

        Returns:
            ``loss`` (both tasks) and ``class_loss``.
        """
        batch = self.shrunk(batch)
        data, target = self._to_device(batch)
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            segmentation, class_logits = self.network(data, with_classes=True)
            segmentation_loss = self.loss(segmentation, target)
        classification_loss = self._classification_loss(class_logits, target, batch["keys"])
        losses = segmentation_loss, classification_loss
        scaler = self.grad_scaler
        self.balancing.backward(
            losses,
            self.task_weights,
            list(self.network.parameters()),
            (lambda loss: loss) if scaler is None else scaler.scale,
            bool((self.class_labels.of(batch["keys"]) != UNKNOWN_CLASS).any()),
        )
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
        if scaler is not None:
            scaler.step(self.optimizer)
            scaler.update()
        else:
            self.optimizer.step()
        both = torch.stack([self._weighted(*losses), classification_loss]).detach().cpu().numpy()  # one synchronisation
        return {"loss": both[0], "class_loss": both[1]}

    def _weighted(self, segmentation_loss: Any, classification_loss: Any) -> Any:
        """The sum that is logged, whatever balances the tasks."""
        weights = self.task_weights
        return weights[0] * segmentation_loss + weights[1] * classification_loss

    def _to_device(self, batch: dict) -> tuple[torch.Tensor, Any]:
        data = batch["data"].to(self.device, non_blocking=True)
        target = batch["target"]
        if isinstance(target, list):
            return data, [scale.to(self.device, non_blocking=True) for scale in target]
        return data, target.to(self.device, non_blocking=True)

    def _classification_loss(self, class_logits: torch.Tensor, target: Any, keys: Any) -> torch.Tensor:
        labels = self.class_labels.of(keys).to(self.device, non_blocking=True)
        weights = patch_weights(
            target[0] if isinstance(target, list) else target,
            labels,
            self._covered_shares(keys).to(self.device, non_blocking=True),
            self.label_manager.ignore_label,
            self.label_manager.has_regions,
            self.class_labels.negative_label,
        )
        return class_loss(class_logits, labels, weights, self.recipe.class_label_smoothing)

    def _covered_shares(self, keys: Any) -> torch.Tensor:
        """Share of each case's image that one patch covers; matters only where masks may be missing."""
        if not self.label_manager.has_ignore_label:
            return torch.ones(len(keys))
        return covered_shares(self.configuration_manager.patch_size, [self.shape_of(key) for key in keys])

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """As stock; also logs the class loss."""
        super().on_train_epoch_end(train_outputs)
        losses = self._gather(collate_outputs(train_outputs)["class_loss"])
        self.logger.log("train_class_losses", float(np.mean(losses)), self.current_epoch)

    # ------------------------------------------------------------------ validation on patches

    def validation_step(self, batch: dict) -> dict:
        """Stock's step; the class logits are picked up where it calls the network."""
        target = batch["target"][0] if isinstance(batch["target"], list) else batch["target"]
        target = target.to(self.device, non_blocking=True).clone()  # stock overwrites ignored voxels
        network, recorder = self.network, ClassRecorder(self.network, self.label_manager.has_regions)
        self.network = recorder
        try:
            output = super().validation_step(batch)
        finally:
            self.network = network
        class_logits = recorder.class_logits[0]
        classification_loss = self._classification_loss(class_logits, target, batch["keys"])
        labels = self.class_labels.of(batch["keys"])
        known = labels != UNKNOWN_CLASS
        predictions = class_logits.argmax(1).cpu()
        output["class_loss"] = classification_loss.detach().cpu().numpy()
        output["loss"] = self._weighted(output["loss"], output["class_loss"])
        output["class_labels"] = labels[known].tolist()
        output["class_predictions"] = predictions[known].tolist()
        return output

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """As stock; also logs class metrics and the joint score, the mean of Dice and macro-F1."""
        super().on_validation_epoch_end(val_outputs)
        outputs = collate_outputs(val_outputs)
        metrics = classification_metrics(
            self._gather(outputs["class_labels"]),
            self._gather(outputs["class_predictions"]),
            self.class_schema.class_names,
        )
        dice = float(self.logger.get_value("mean_fg_dice", step=-1))
        joint = float(np.nanmean([dice, metrics["macro_f1"]]))
        previous = self.logger.get_value("ema_joint_score", step=None)
        values = {
            "val_class_losses": float(np.mean(self._gather(outputs["class_loss"]))),
            "class_accuracy": metrics["accuracy"],
            "class_balanced_accuracy": metrics["balanced_accuracy"],
            "class_macro_f1": metrics["macro_f1"],
            "joint_score": joint,
            "ema_joint_score": 0.9 * previous[-1] + 0.1 * joint if previous and np.isfinite(previous[-1]) else joint,
        }
        for key, value in values.items():
            self.logger.log(key, value, self.current_epoch)

    def _gather(self, values: Any) -> list:
        """``values`` of all DDP workers in one list."""
        values = list(values)
        if not self.is_ddp:
            return values
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, values)
        return [value for worker in gathered for value in worker]

    def on_epoch_end(self) -> None:
        """As stock; also prints the class metrics and keeps the checkpoint with the best joint score."""
        for key in ("train_class_losses", "val_class_losses"):
            self.print_to_log_file(key, np.round(self.logger.get_value(key, step=-1), 4))
        self.print_to_log_file(
            "Pseudo classification:",
            ", ".join(
                f"{key.removeprefix('class_')} {self.logger.get_value(key, step=-1):.4f}"
                for key in ("class_accuracy", "class_balanced_accuracy", "class_macro_f1")
            ),
        )
        super().on_epoch_end()
        self._save_best_joint()

    def save_missed_checkpoints(self) -> None:
        """As of any training, and the one with the best joint score."""
        super().save_missed_checkpoints()
        self._save_best_joint()

    def _save_best_joint(self) -> None:
        scores = self.logger.get_value("ema_joint_score", step=None)
        if scores and scores[-1] >= np.nanmax(scores):
            self.print_to_log_file(f"New best EMA joint score: {scores[-1]:.4f}")
            self._save_checkpoint_of_past_epoch("checkpoint_best_joint.pth")

    # ------------------------------------------------------------------ checkpoints

    def more_for_checkpoint(self) -> dict[str, Any]:
        """The learned weights of the tasks, and which permutation of the labels was learned."""
        more = super().more_for_checkpoint()
        if state := self.balancing.state_dict():
            more[STATE] = {name: tensor.detach().cpu() for name, tensor in state.items()}
            more[NAME] = self.settings.task_balancing
        if self.settings.permuted_labels is not None:
            more[PERMUTATION_SEED] = self.settings.permuted_labels
        return more

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """As stock, with the learned weights of the tasks.

        Raises:
            ValueError: the checkpoint is of a training with another ``braintum_task_balancing`` or
                ``braintum_permuted_labels``.
        """
        self.wait_for_checkpoints()
        checkpoint = load_checkpoint_safely(filename_or_checkpoint)
        if checkpoint.get(PERMUTATION_SEED) != self.settings.permuted_labels:
            raise ValueError(
                f"{filename_or_checkpoint} was trained with braintum_permuted_labels="
                f"{checkpoint.get(PERMUTATION_SEED, '(not set)')}; set the environment variable as it was then"
            )
        if LOG_VARIANCES in checkpoint:
            checkpoint = {**checkpoint, STATE: {"log_variances": checkpoint[LOG_VARIANCES]}, NAME: "uncertainty"}
        trained, wanted = checkpoint.get(NAME), self.settings.task_balancing if self.balancing.state_dict() else None
        if trained != wanted:
            raise ValueError(
                f"{filename_or_checkpoint} was {'' if trained else 'not '}trained with braintum_task_balancing="
                f"{trained or wanted}; set the environment variable as it was then"
            )
        super().load_checkpoint(filename_or_checkpoint)
        if wanted is not None:
            self.balancing.load_state_dict(checkpoint[STATE])

    # ------------------------------------------------------------------ final validation

    def validation_predictor(self, **options: Any) -> JointPredictor:
        """nnU-Net's predictor, which keeps the class evidence too."""
        self._predictor = JointPredictor(**options)
        return self._predictor

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Stock's validation, which also writes ``validation/classes.csv`` and ``validation/classification.json``."""
        super().perform_actual_validation(save_probabilities)
        _, keys = self.do_split()
        keys = keys[self.local_rank :: dist.get_world_size()] if self.is_ddp else keys
        keys = self.dataset_class(self.preprocessed_dataset_folder, keys).identifiers
        evidence = self._predictor.evidence
        if len(evidence) != len(keys):
            raise RuntimeError(f"{len(keys)} validation cases but class evidence of {len(evidence)}")
        folder = Path(self.output_folder) / "validation"
        reader_writer = self.plans_manager.image_reader_writer_class()
        results = self._gather(
            case_result(
                key,
                aggregate([fold]),
                self.class_schema,
                tumour_volume_in_file(folder / f"{key}{self.dataset_json['file_ending']}", reader_writer),
            )
            for key, fold in zip(keys, evidence, strict=True)
        )
        features = self._gather(fold.features for fold in evidence)
        if self.local_rank == 0:
            write_encoder_features(folder, features)
            metrics = write_validation_results(folder, results, self.class_labels, read_dates(self.cases_file()))
            for subjects, figures in metrics.items():
                if not figures["num_cases"]:
                    self.print_to_log_file(f"Validation classification: none of the {subjects} has one known class")
                    continue
                self.print_to_log_file(
                    f"Validation classification of {figures['num_cases']} {subjects}: accuracy "
                    f"{figures['accuracy']:.4f}, balanced accuracy {figures['balanced_accuracy']:.4f}, macro-F1 "
                    f"{figures['macro_f1']:.4f} (majority class {figures['majority_rate']:.4f})",
                    also_print_to_console=True,
                )
