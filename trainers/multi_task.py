"""nnU-Net's trainer with a classification head: segments the tumour and names its type in one network."""

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import join
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock_module
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.collate_outputs import collate_outputs
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.helpers import dummy_context
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import autocast, nn
from torch import distributed as dist
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from architectures.input_channels import num_network_channels
from architectures.multi_task_unet import multi_task_network_class
from dataset_conversion.cases import ClassSchema, classification_entry, find_cases_file, read_cases
from evaluation.classification_metrics import classification_metrics
from evaluation.segmentation_metrics import metrics_on_folder
from inference.checkpoints import to_builtin
from inference.class_evidence import ClassRecorder, aggregate
from inference.joint_predictor import JointPredictor
from inference.results import case_result
from trainers.class_supervision import UNKNOWN_CLASS, ClassLabels, class_loss, covered_shares, patch_weights
from trainers.progress import MultiTaskLogger
from trainers.schedule import PerGroupPolyLR
from trainers.seeded_batches import seed_everything, seeded_batches
from trainers.settings import TrainingSettings
from trainers.slice_sampling import SliceSampling, data_loader_class
from trainers.validation_results import write_validation_results

_TRAINING_STREAM, _VALIDATION_STREAM, _NETWORK_STREAM = 0, 1, 2


class nnUNetTrainerMultiTask(nnUNetTrainer):
    """Any nnU-Net plans plus a classification head: loss = segmentation + ``class_loss_weight`` · classification.

    Class names come from ``dataset.json``, labels from ``cases.csv``. Cases without a class train the segmentation,
    cases without a mask (ignore label) the classification. Segmentation loss, deep supervision and augmentation are
    nnU-Net's.

    Raises:
        ValueError: the data set declares no classes, or its ``cases.csv`` does not fit.
        FileNotFoundError: no ``cases.csv`` (when training starts, not at prediction).
    """

    # set by nnU-Net's untyped base
    network: Any
    num_epochs: int
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int
    _best_ema: Any

    class_loss_weight = 1.0
    class_label_smoothing = 0.1
    head_initial_lr = 1e-3
    head_weight_decay = 1e-2
    head_warmup = 0.02  # share of all epochs
    slice_sampling: SliceSampling | None = SliceSampling()  # of volumes, in 2-D configurations; None: nnU-Net's own

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
        self.initial_lr = 1e-3
        self.weight_decay = 1e-2
        settings = TrainingSettings.from_environment()
        self.seed = settings.seed
        self.num_epochs = settings.num_epochs or self.num_epochs
        if settings.num_iterations_per_epoch is not None:
            ratio = self.num_val_iterations_per_epoch / self.num_iterations_per_epoch
            self.num_iterations_per_epoch = settings.num_iterations_per_epoch
            self.num_val_iterations_per_epoch = max(1, round(ratio * self.num_iterations_per_epoch))
        self._shape_of_case: dict[str, tuple[int, ...]] = {}

    # ------------------------------------------------------------------ network and optimiser

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The plan's network with a classification head.

        ``num_input_channels`` counts the channels of the images; neighbouring slices of the plan come on top.

        Raises:
            ValueError: the plans name no classes, or their ``neighbouring_slices`` makes no sense.
            NotImplementedError: the plan's network has no multi-task counterpart.
        """
        classification = plans_manager.plans.get("classification")
        if classification is None:
            raise ValueError(
                f'the plans {plans_manager.plans_name} have no "classification"; plan again with BrainTumPlanner, or '
                "train with nnUNetTrainerMultiTask, which adds it"
            )
        network_class = multi_task_network_class(configuration_manager.network_arch_class_name)
        return get_network_from_plans(
            f"{network_class.__module__}.{network_class.__qualname__}",
            {
                **configuration_manager.network_arch_init_kwargs,
                "num_tumour_classes": len(classification["class_names"]),
                "sigmoid_segmentation": classification["region_based"],
            },
            configuration_manager.network_arch_init_kwargs_req_import,
            num_network_channels(num_input_channels, configuration_manager.configuration),
            num_output_channels,
            allow_init=True,
            deep_supervision=enable_deep_supervision,
        )

    def initialize(self) -> None:
        """As stock; under a seed the initial weights are reproducible."""
        if self.seed is not None:
            seed_everything(self.seed, _NETWORK_STREAM)
        super().initialize()

    @property
    def bare_network(self) -> Any:
        """The network without the wrappers of DDP and ``torch.compile``."""
        network = self.network
        if isinstance(network, DistributedDataParallel):
            network = network.module
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PerGroupPolyLR]:
        """AdamW, with a parameter group and a schedule of its own for the head.

        Not nnU-Net's SGD: the class loss has other gradients than Dice, and on a small set SGD with momentum 0.99
        takes thousands of iterations to find a small tumour.
        """
        head = list(self.bare_network.classification_head.parameters())
        head_ids = {id(parameter) for parameter in head}
        body = [parameter for parameter in self.bare_network.parameters() if id(parameter) not in head_ids]
        optimizer = torch.optim.AdamW(
            [
                {"params": body, "lr": self.initial_lr, "weight_decay": self.weight_decay},
                {"params": head, "lr": self.head_initial_lr, "weight_decay": self.head_weight_decay},
            ],
            fused=True,  # one pass over the parameters: otherwise the optimiser costs more than the head
        )
        return optimizer, PerGroupPolyLR(optimizer, self.num_epochs, [0, round(self.head_warmup * self.num_epochs)])

    # ------------------------------------------------------------------ data

    @cached_property
    def class_labels(self) -> ClassLabels:
        """Labels of all cases, read when training or validation begins.

        Raises:
            FileNotFoundError: no ``cases.csv``.
            ValueError: it is wrong.
        """
        raw_folder = nnUNet_raw.get() or "nnUNet_raw (not set)"
        cases_file = find_cases_file(
            self.preprocessed_dataset_folder_base, join(raw_folder, self.plans_manager.dataset_name)
        )
        cases = read_cases(cases_file, self.class_schema.class_names)
        return ClassLabels.from_cases(cases, self.class_schema)

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
        """As stock; the training identifiers are repeated for class balance, nnU-Net draws from them."""
        training, validation = super().get_tr_and_val_datasets()
        training.identifiers = self.class_labels.balanced(training.identifiers)
        return training, validation

    def get_dataloaders(self) -> tuple[Iterator[dict], Iterator[dict]]:
        """Stock loaders that draw slices by :attr:`slice_sampling`; under a seed, reproducible ones around them."""
        if self.seed is None:
            return self._loaders_by_policy()
        num_processes = get_allowed_n_proc_DA()
        with patch.dict(os.environ, nnUNet_n_proc_DA="0"):  # gives the loaders without worker processes
            training, validation = self._loaders_by_policy()
        first_epoch, pin_memory = self.current_epoch, self.device.type == "cuda"
        return (
            seeded_batches(
                training.data_loader,
                self.seed,
                _TRAINING_STREAM,
                first_epoch,
                self.num_iterations_per_epoch,
                num_processes,
                pin_memory,
            ),
            seeded_batches(
                validation.data_loader,
                self.seed,
                _VALIDATION_STREAM,
                first_epoch,
                self.num_val_iterations_per_epoch,
                num_processes // 2,
                pin_memory,
            ),
        )

    def _loaders_by_policy(self) -> tuple[Any, Any]:
        with patch.object(stock_module, "nnUNetDataLoader", data_loader_class(self.slice_sampling)):
            return super().get_dataloaders()

    # ------------------------------------------------------------------ training

    def on_train_epoch_start(self) -> None:
        """As stock; under a seed, dropout too depends on the epoch alone."""
        if self.seed is not None:
            seed_everything(self.seed, _NETWORK_STREAM, self.current_epoch)
        super().on_train_epoch_start()

    def train_step(self, batch: dict) -> dict:
        """One iteration on both tasks.

        Args:
            batch: ``data`` (B, C, [Z,] Y, X), ``target`` (a list under deep supervision) and ``keys``.

        Returns:
            ``loss`` (both tasks) and ``class_loss``.
        """
        data, target = self._to_device(batch)
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.device.type, enabled=True) if self.device.type == "cuda" else dummy_context():
            segmentation, class_logits = self.network(data, with_classes=True)
            segmentation_loss = self.loss(segmentation, target)
        classification_loss = self._classification_loss(class_logits, target, batch["keys"])
        loss = segmentation_loss + self.class_loss_weight * classification_loss
        if self.grad_scaler is not None:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        else:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
            self.optimizer.step()
        both = torch.stack([loss, classification_loss]).detach().cpu().numpy()  # one synchronisation, as in stock
        return {"loss": both[0], "class_loss": both[1]}

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
        return class_loss(class_logits, labels, weights, self.class_label_smoothing)

    def _covered_shares(self, keys: Any) -> torch.Tensor:
        """Share of each case's image that one patch covers; matters only where masks may be missing."""
        if not self.label_manager.has_ignore_label:
            return torch.ones(len(keys))
        for key in keys:
            if key not in self._shape_of_case:
                data, *_ = self.dataset_class(self.preprocessed_dataset_folder, [key]).load_case(key)
                self._shape_of_case[key] = tuple(data.shape[1:])
        return covered_shares(self.configuration_manager.patch_size, [self._shape_of_case[key] for key in keys])

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """As stock; also logs the class loss."""
        super().on_train_epoch_end(train_outputs)
        losses = self._gather(collate_outputs(train_outputs)["class_loss"])
        self.logger.log("train_class_losses", float(np.mean(losses)), self.current_epoch)

    # ------------------------------------------------------------------ validation on patches

    def validation_step(self, batch: dict) -> dict:
        """Stock's step; the class logits are picked up where it calls the network."""
        target = batch["target"][0] if isinstance(batch["target"], list) else batch["target"]
        target = target.to(self.device).clone()  # stock overwrites ignored voxels
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
        output["loss"] = output["loss"] + self.class_loss_weight * output["class_loss"]
        output["class_labels"] = labels[known].tolist()
        output["class_predictions"] = predictions[known].tolist()
        return output

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """As stock; also logs class metrics and the joint score, the mean of Dice and macro-F1."""
        super().on_validation_epoch_end(val_outputs)
        self._replace_undefined_dice()
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

    def _replace_undefined_dice(self) -> None:
        """Validation batches without any foreground have no Dice; one NaN would stay in nnU-Net's average for good."""
        means, averages = (self.logger.get_value(key, step=None) for key in ("mean_fg_dice", "ema_fg_dice"))
        if np.isnan(means[-1]):
            means[-1] = averages[-1] = averages[-2] if len(averages) > 1 else 0.0
            self.print_to_log_file("no foreground in the validation patches of this epoch: Dice carried over")

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
        scores = self.logger.get_value("ema_joint_score", step=None)
        if scores[-1] >= np.nanmax(scores):
            self.print_to_log_file(f"New best EMA joint score: {scores[-1]:.4f}")
            self._save_checkpoint_of_past_epoch("checkpoint_best_joint.pth")

    def _save_checkpoint_of_past_epoch(self, name: str) -> None:
        self.current_epoch -= 1  # on_epoch_end has counted it up already, and saving does so again
        self.save_checkpoint(join(self.output_folder, name))
        self.current_epoch += 1

    # ------------------------------------------------------------------ checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """Stock's checkpoint, complete or not there at all, readable with ``torch.load(weights_only=True)``."""
        to_builtin(self.logger.local_logger.my_fantastic_logging)
        self._best_ema = to_builtin(self._best_ema)
        temporary = f"{filename}.{os.getpid()}.partial"
        try:
            super().save_checkpoint(temporary)
            if os.path.isfile(temporary):  # another rank, or checkpointing disabled: nothing was written
                os.replace(temporary, filename)
        finally:
            Path(temporary).unlink(missing_ok=True)

    # ------------------------------------------------------------------ final validation

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Stock's validation, which also writes ``validation/classes.csv`` and ``validation/classification.json``."""
        predictors: list[JointPredictor] = []

        def joint_predictor(*args: Any, **kwargs: Any) -> JointPredictor:
            predictors.append(JointPredictor(*args, **kwargs))
            return predictors[-1]

        # what stock calls by these names does the same, keeps the class evidence, and computes more metrics
        with patch.multiple(stock_module, nnUNetPredictor=joint_predictor, compute_metrics_on_folder=metrics_on_folder):
            super().perform_actual_validation(save_probabilities)
        _, keys = self.do_split()
        keys = keys[self.local_rank :: dist.get_world_size()] if self.is_ddp else keys
        keys = self.dataset_class(self.preprocessed_dataset_folder, keys).identifiers
        evidence = predictors[0].evidence
        if len(evidence) != len(keys):
            raise RuntimeError(f"{len(keys)} validation cases but class evidence of {len(evidence)}")
        folder = Path(self.output_folder) / "validation"
        reader_writer = self.plans_manager.image_reader_writer_class()
        results = self._gather(
            case_result(
                key,
                aggregate([fold]),
                self.class_schema,
                folder / f"{key}{self.dataset_json['file_ending']}",
                reader_writer,
            )
            for key, fold in zip(keys, evidence, strict=True)
        )
        if self.local_rank == 0:
            metrics = write_validation_results(folder, results, self.class_labels)
            for subjects, figures in metrics.items():
                self.print_to_log_file(
                    f"Validation classification of {figures['num_cases']} {subjects}: accuracy "
                    f"{figures['accuracy']:.4f}, balanced accuracy {figures['balanced_accuracy']:.4f}, macro-F1 "
                    f"{figures['macro_f1']:.4f} (majority class {figures['majority_rate']:.4f})",
                    also_print_to_console=True,
                )
