"""Base of all our trainers: nnU-Net's trainer, told by a recipe what to do."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import join
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock_module
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn.functional import interpolate
from torch.nn.parallel import DistributedDataParallel

from braintum.architectures.weights.partial_loading import LoadReport, load_matching
from braintum.architectures.weights.store import RANDOM, VARIABLE, InstalledWeights, find, read_weights
from braintum.commands.provenance import PROVENANCE_FILE, provenance
from braintum.commands.seams import replaced
from braintum.commands.stopping import EXIT_STOPPED
from braintum.conversion.files.atomic import atomic_writes_of, write_json_atomic
from braintum.conversion.files.lease import leased
from braintum.conversion.format.calibration import stored_calibration
from braintum.evaluation.metrics.segmentation_metrics import metrics_on_folder
from braintum.inference.models.checkpoints import load_checkpoint_safely, to_builtin
from braintum.inference.models.trained_with import check_trained_with
from braintum.trainers.averaged_weights import NUM_UPDATES, TRAINED_WEIGHTS, AveragedWeights
from braintum.trainers.classes.progress import OVERLAP_KEYS, OverlapLogger
from braintum.trainers.cpu_arithmetic import CpuArithmetic, fastest, without_measuring
from braintum.trainers.data.data_of_recipe import DataOfRecipe
from braintum.trainers.data.device_batches import AugmentedBatches
from braintum.trainers.data.seeded_batches import (
    NETWORK,
    compute_deterministically,
    seed_everything,
    stream_of_rank,
)
from braintum.trainers.expectations import DurationEstimate, difference_from_paper
from braintum.trainers.identity import training_identity
from braintum.trainers.losses.losses import UpsamplingDeepSupervisionLoss
from braintum.trainers.losses.mask_supervision import MaskSupervision
from braintum.trainers.losses.training_overlap import OverlapOfTraining
from braintum.trainers.recipes.control_folder import control_folder
from braintum.trainers.recipes.papers import Paper
from braintum.trainers.recipes.recipe import ParameterGroup, Recipe
from braintum.trainers.recipes.schedule import PerGroupLR, epochs_without_improvement
from braintum.trainers.recipes.settings import TrainingSettings
from braintum.trainers.safety.checkpoint_writer import CheckpointWriter, checkpoint_of, on_cpu, write_checkpoint
from braintum.trainers.safety.crash_safety import begin_validation, export_completely, remove_partial_checkpoints
from braintum.trainers.safety.debug_information import remove_machine
from braintum.trainers.safety.stop_request import StopRequestedError, end_workers, stop_requested
from braintum.trainers.tensorboard import PICTURE_EVERY, TensorBoardLogger


class _StoppedEarly(Exception):
    """Leaves nnU-Net's loop over the epochs."""


class SegmentationTrainer(DataOfRecipe):
    """nnU-Net's trainer with loss, optimiser, schedule and augmentation of a recipe. Needs no classes.

    A trainer names its :attr:`recipe` and its network (``build_network_architecture``, see
    :mod:`braintum.trainers.networks`).

    Attributes:
        recipe: how to train.
        papers: that describe the network, or the idea added to nnU-Net's; none for our own.
        paper_parameters: of the network on the plans of its paper; None where there is no such thing.
        dimensions: of the configurations that it trains.
        takes_recipes: whether it can be trained by other recipes than its own.

    Raises:
        NotImplementedError: for the second stage of a cascade, or a balancing of tasks where there is one task.
    """

    # set by nnU-Net's untyped base
    network: Any
    dataset_json: dict[str, Any]
    num_epochs: int
    save_every: int
    _best_ema: Any

    papers: ClassVar[tuple[Paper, ...]] = ()
    paper_parameters: ClassVar[int | None] = None
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    balances_tasks: ClassVar[bool] = False
    takes_recipes: ClassVar[bool] = True

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  nnU-Net's own signature, which it reads back
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.is_cascaded:
            raise NotImplementedError(
                f"{type(self).__name__} does not train the second stage of a cascade; train the configuration "
                "3d_fullres or 2d, or use nnUNetTrainer"
            )
        self.settings = TrainingSettings.from_environment()
        if self.settings.task_balancing != "fixed" and not self.balances_tasks:
            raise NotImplementedError(
                f"{type(self).__name__} never trains two tasks at once, braintum_task_balancing="
                f"{self.settings.task_balancing} balances none; unset it"
            )
        if self.settings.permuted_labels is not None and not hasattr(type(self), "class_labels"):
            raise NotImplementedError(f"{type(self).__name__} learns no classes; unset braintum_permuted_labels")
        self.initial_lr = self.recipe.body.lr
        self.weight_decay = self.recipe.body.weight_decay
        self.enable_deep_supervision = self.recipe.deep_supervision
        self.checkpoint_writer: CheckpointWriter | None = None
        self.averaged_weights: AveragedWeights | None = None
        self.cpu_arithmetic = CpuArithmetic()
        self._resumes = False
        if self.precision_on_cuda == "float32":
            self.grad_scaler = None  # it scales what half precision would lose
        self.seed = self.settings.seed
        self.num_epochs = self.settings.num_epochs or self.recipe.num_epochs
        if self.settings.num_iterations_per_epoch is not None:
            ratio = self.num_val_iterations_per_epoch / self.num_iterations_per_epoch
            self.num_iterations_per_epoch = self.settings.num_iterations_per_epoch
            self.num_val_iterations_per_epoch = max(1, round(ratio * self.num_iterations_per_epoch))
        self.save_every = self.settings.save_every or self.save_every
        self.board: TensorBoardLogger | None = None
        self._shape_of_case: dict[str, tuple[int, ...]] = {}
        self.logger.local_logger = OverlapLogger()

    @property
    def output_folder_base(self) -> Any:
        """Folder of the model, see :func:`braintum.trainers.recipes.control_folder.control_folder`."""
        return self._output_folder_base

    @output_folder_base.setter
    def output_folder_base(self, folder: str | None) -> None:  # nnU-Net sets it, and derives all others from it
        self._output_folder_base = control_folder(folder, self.fold)

    @classmethod
    def adapted(cls, recipe: Recipe) -> Recipe:
        """A recipe as this kind of training follows it."""
        return recipe

    # ------------------------------------------------------------------ network, loss and optimiser

    def initialize(self) -> None:
        """As stock; under a seed the initial weights are reproducible."""
        if self.seed is not None:
            seed_everything(self.seed, NETWORK)
        super().initialize()
        if not self._resumes:  # a checkpoint holds all weights
            self.load_initial_weights()
        if self.recipe.averaging is not None:
            self.averaged_weights = AveragedWeights(self.bare_network, self.recipe.averaging)
            self.optimizer.register_step_post_hook(lambda *_: self.averaged_weights.update())

    def load_initial_weights(self) -> None:
        """Load the weights that a new training starts from: those that the user names, as far as they fit."""
        requested = os.environ.get(VARIABLE)
        if requested and requested != RANDOM:
            self.load_weights(find(requested, ""))

    def load_weights(self, weights: InstalledWeights | None) -> None:
        """Load weights into the network, and say what of them was loaded.

        Args:
            weights: of :func:`braintum.architectures.weights.store.find`; None for random ones.

        Raises:
            ValueError: nothing of them fits.
        """
        if weights is None:
            self.print_to_log_file("weights to start from: random")
            return
        report = self.load_into_network(weights)
        if not report.loaded:
            raise ValueError(f"nothing in {weights.file} fits the network of {type(self).__name__}")
        self.print_to_log_file(f"weights to start from: {weights.name} ({weights.file.name})")
        for line in report.lines():
            self.print_to_log_file(line)

    def load_into_network(self, weights: InstalledWeights) -> LoadReport:
        """Load weights by their names in the network."""
        return load_matching(self.bare_network, read_weights(weights))

    def _choose_cpu_arithmetic(self) -> None:
        """Decide how steps are computed on a CPU, where the recipe or the user lets us."""
        precision = self.settings.precision or self.recipe.cpu_precision
        if self.device.type != "cpu" or precision == "float32":
            return
        is_2d = len(self.configuration_manager.patch_size) == 2
        if precision == "bfloat16":
            self.cpu_arithmetic = CpuArithmetic(True, is_2d)
        elif self.seed is not None:
            self.cpu_arithmetic = without_measuring(is_2d)
        else:
            channels = next(self.bare_network.parameters()).shape[1]
            shape = self.configuration_manager.batch_size, channels, *self.configuration_manager.patch_size
            self.cpu_arithmetic = fastest(self.bare_network, shape, self.print_to_log_file)
        self.cpu_arithmetic.prepare(self.bare_network)
        self.print_to_log_file(f"Steps are computed in {self.cpu_arithmetic}")

    @property
    def precision_on_cuda(self) -> str:
        """``float32``, or ``mixed`` as in nnU-Net."""
        asked = self.settings.precision
        return "float32" if asked == "float32" or (not asked and not self.recipe.mixed_precision) else "mixed"

    def autocast(self) -> Any:
        """Context of a forward pass: on CUDA nnU-Net's or none, on a CPU what was chosen when training began."""
        if self.device.type == "cuda":
            return nullcontext() if self.precision_on_cuda == "float32" else torch.autocast("cuda")
        return self.cpu_arithmetic.autocast() if self.device.type == "cpu" else nullcontext()

    @property
    def bare_network(self) -> Any:
        """The network without the wrappers of DDP and ``torch.compile``."""
        network = self.network
        if isinstance(network, DistributedDataParallel):
            network = network.module
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    def _build_loss(self) -> nn.Module:
        """The recipe's loss of the masks, which also counts their overlap."""
        return OverlapOfTraining(self._loss_of_recipe(), self.label_manager)

    def _loss_of_recipe(self) -> nn.Module:
        wanted = self.recipe.segmentation_loss
        if wanted is None:
            loss = super()._build_loss()
        else:
            loss = wanted.build(self.label_manager, self.configuration_manager.batch_dice, self.is_ddp).to(self.device)
            if wanted.deep_supervision:
                loss = UpsamplingDeepSupervisionLoss(loss, wanted.deep_supervision)
        if self.settings.mask_supervision is None:
            return loss
        return MaskSupervision(loss, self.bare_network, self.label_manager, self.settings.mask_supervision)

    def _do_i_compile(self) -> bool:
        """As stock, except that hooks pick up the masks that are supervised."""
        return self.settings.mask_supervision is None and super()._do_i_compile()

    def parameter_groups(self) -> list[tuple[list[nn.Parameter], ParameterGroup]]:
        """What the optimiser optimises, and how."""
        return [(list(self.bare_network.parameters()), self.body_settings)]

    @property
    def body_settings(self) -> ParameterGroup:
        """The recipe's, with nnU-Net's attributes ``initial_lr`` and ``weight_decay``."""
        return replace(self.recipe.body, lr=self.initial_lr, weight_decay=self.weight_decay)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PerGroupLR]:
        """The recipe's optimiser and schedule."""
        groups = self.parameter_groups()
        optimizer = self.recipe.optimizer(
            [{"params": params, "lr": group.lr, "weight_decay": group.weight_decay} for params, group in groups],
            **self.recipe.optimizer_arguments,
        )
        warmups = [round(group.warmup * self.num_epochs) for _, group in groups]
        return optimizer, PerGroupLR(optimizer, self.num_epochs, warmups, self.recipe.decay, self.val_losses)

    def val_losses(self) -> Sequence[float]:
        """Validation loss of each past epoch."""
        return self.logger.get_value("val_losses", step=None)

    # ------------------------------------------------------------------ epochs

    def on_train_start(self) -> None:
        """As stock, which writes ``dataset.json`` of the model anew; a calibration in it is kept.

        It tells which weights it was fitted on, so that prediction warns where these are trained again.
        """
        self.dataset_json = {**self.dataset_json, **stored_calibration(Path(self.output_folder_base) / "dataset.json")}
        if self.local_rank == 0:
            remove_partial_checkpoints(self.output_folder)
        if self.settings.deterministic:
            compute_deterministically()
        self.set_length_of_epochs()
        with atomic_writes_of(stock_module):  # trainings of other folds read and write the same files
            super().on_train_start()
        self._choose_cpu_arithmetic()
        if (difference := difference_from_paper(self)) is not None:
            self.print_to_log_file(f"WARNING: {difference}", also_print_to_console=True)
        updates = (self.num_epochs - self.current_epoch) * self.num_iterations_per_epoch
        self.optimizer.register_step_post_hook(DurationEstimate(updates, self.print_to_log_file))
        if self.settings.tensorboard and self.local_rank == 0:
            self.board = TensorBoardLogger(self.output_folder, self.current_epoch)
            self.logger.loggers.append(self.board)
        if self.current_epoch > 0:
            self.save_missed_checkpoints()

    def set_length_of_epochs(self) -> None:
        """Decide how many iterations an epoch has, and say how many there will be in all."""
        batch_size = self.configuration_manager.batch_size
        images = [self.num_images(cases) for cases in self.do_split()]
        if self.recipe.epoch == "pass" and self.settings.num_iterations_per_epoch is None:
            updates = [-(-number // batch_size) for number in images]
            self.num_iterations_per_epoch, self.num_val_iterations_per_epoch = updates
        in_all = self.num_epochs * self.num_iterations_per_epoch
        self.print_to_log_file(
            f"Training will make {in_all} updates with batches of {batch_size}: {in_all * batch_size} images, "
            f"{in_all * batch_size / images[0]:.1f} passes over the {images[0]} there are; {self.num_epochs} epochs of "
            f"{self.num_iterations_per_epoch} updates",
            also_print_to_console=True,
        )

    def num_images(self, cases: Sequence[str]) -> int:
        """Images that cases have: their slices in 2-D configurations, themselves in 3-D ones."""
        if len(self.configuration_manager.patch_size) == 3:
            return len(cases)
        return sum(self.shape_of(case)[0] for case in cases)

    def shape_of(self, case: str) -> tuple[int, ...]:
        """Shape of a preprocessed case, (Z, Y, X)."""
        if case not in self._shape_of_case:
            data, *_ = self.dataset_class(self.preprocessed_dataset_folder, [case]).load_case(case)
            self._shape_of_case[case] = tuple(data.shape[1:])
        return self._shape_of_case[case]

    def save_missed_checkpoints(self) -> None:
        """Save the best checkpoints that a killed training did not get to: it writes the latest one first."""
        averages = self.logger.get_value("ema_fg_dice", step=None)
        if averages and (self._best_ema is None or averages[-1] > self._best_ema):
            self._best_ema = averages[-1]
            self._save_checkpoint_of_past_epoch("checkpoint_best.pth")

    def run_training(self) -> None:
        """As stock, with checkpoints written in the background while it runs.

        Where the recipe's early stopping ends it, the final checkpoint is written as ever.

        Raises:
            LeasedError: another process trains or validates this fold.
            SystemExit: with :data:`braintum.commands.stopping.EXIT_STOPPED`, where it was asked to stop.
        """
        with self.alone_in_fold(), CheckpointWriter() as self.checkpoint_writer:
            try:
                super().run_training()
            except _StoppedEarly:
                self.on_train_end()
            except StopRequestedError:
                for loader in (self.dataloader_train, self.dataloader_val):
                    end_workers(loader.batches if isinstance(loader, AugmentedBatches) else loader)
                raise SystemExit(EXIT_STOPPED) from None
            finally:
                self.checkpoint_writer = None

    def alone_in_fold(self) -> Any:
        """Within it, no other process trains or validates this fold: they would write over one another."""
        return leased(self.output_folder, "training", wait=False) if self.local_rank == 0 else nullcontext()

    def on_train_end(self) -> None:
        """As stock, which shuts down the workers of its own iterators only; from now on checkpoints are waited for."""
        self.wait_for_checkpoints()  # stock removes the latest, which must not appear afterwards
        self.checkpoint_writer = None
        for name in ("dataloader_train", "dataloader_val"):
            if isinstance(loader := getattr(self, name), AugmentedBatches):
                setattr(self, name, loader.batches)
        super().on_train_end()

    def should_stop(self) -> bool:
        """Whether training ends before the next epoch; asked at its start, so that a resumed training ends too."""
        patience = self.recipe.early_stopping
        return patience is not None and epochs_without_improvement(self.val_losses()) >= patience

    def on_epoch_start(self) -> None:
        """As stock, unless training has ended or is to be stopped, or a checkpoint could not be written."""
        if self.checkpoint_writer is not None:
            self.checkpoint_writer.raise_errors()
        if stop_requested(self.is_ddp):
            if self.current_epoch > 0:
                self._save_checkpoint_of_past_epoch("checkpoint_latest.pth")
            self.print_to_log_file(f"Asked to stop before epoch {self.current_epoch}; --c goes on from here")
            raise StopRequestedError
        if self.should_stop():
            self.print_to_log_file(f"Stopped before epoch {self.current_epoch} of {self.num_epochs}")
            raise _StoppedEarly
        super().on_epoch_start()

    def on_train_epoch_start(self) -> None:
        """As stock; under a seed, dropout too depends on the epoch (and the rank) alone."""
        if self.seed is not None:
            seed_everything(self.seed, stream_of_rank(NETWORK, self.local_rank), self.current_epoch)
        super().on_train_epoch_start()

    def shrunk(self, batch: dict) -> dict:
        """The batch, at a lower resolution for as long as the recipe says; patches stay divisible by the strides."""
        share, scale = self.recipe.small_first
        if self.current_epoch >= share * self.num_epochs or isinstance(batch["target"], list):
            return batch
        patch = batch["data"].shape[2:]
        steps = np.prod(self.configuration_manager.pool_op_kernel_sizes, 0)
        size = [max(1, round(edge * scale / step)) * int(step) for edge, step in zip(patch, steps, strict=True)]
        smaller = interpolate(batch["data"], size=size, mode="bilinear" if len(size) == 2 else "trilinear")
        target = interpolate(batch["target"].float(), size=size, mode="nearest-exact").to(batch["target"].dtype)
        return {**batch, "data": smaller, "target": target}

    def train_step(self, batch: dict) -> dict:
        """As stock, in :meth:`autocast`."""
        batch = self.shrunk(batch)
        with self.stocks_autocast():
            return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        """As stock, in :meth:`autocast`."""
        self._seen_batch = batch
        with self.stocks_autocast():
            return super().validation_step(batch)

    def stocks_autocast(self) -> Any:
        """Within it, :meth:`autocast` takes the place of what stock's steps enter with and without CUDA."""
        return replaced(stock_module, dummy_context=self.autocast, autocast=lambda *_, **__: self.autocast())

    def on_train_epoch_end(self, train_outputs: list[dict]) -> None:
        """As stock; also logs Dice and IoU of the training batches (of the first process)."""
        super().on_train_epoch_end(train_outputs)
        figures = self.loss.figures() if isinstance(self.loss, OverlapOfTraining) else (np.nan, np.nan)
        for key, value in zip(OVERLAP_KEYS, figures, strict=True):
            self.logger.log(key, value, self.current_epoch)

    def _show_patch(self, board: TensorBoardLogger) -> None:
        """A picture of the last validation batch."""
        target = self._seen_batch["target"]
        truth = (target[0] if isinstance(target, list) else target)[0]  # (1 or regions, [Z,] Y, X)
        image = self._seen_batch["data"][:1].to(self.device)
        with torch.no_grad(), self.autocast():
            output = self.network(image)
        logits = (output[0] if isinstance(output, (list, tuple)) else output)[0]
        regions = self.label_manager.has_regions
        predicted = (logits > 0).sum(0) if regions else logits.argmax(0)
        shown = truth.clamp(min=0).sum(0) if regions else truth[0]
        board.picture(image[0, 0], shown.to(self.device), predicted, self.current_epoch)

    def on_validation_epoch_start(self) -> None:
        """As stock, with the average of the weights where the recipe has one."""
        super().on_validation_epoch_start()
        if self.averaged_weights is not None:
            self.averaged_weights.swap()

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """As stock; Dice is carried over where no validation patch shows foreground."""
        super().on_validation_epoch_end(val_outputs)
        if self.board is not None and self.current_epoch % PICTURE_EVERY == 0:
            self._show_patch(self.board)
        if self.averaged_weights is not None:
            self.averaged_weights.swap()
        # one NaN would stay in nnU-Net's average for good
        means, averages = (self.logger.get_value(key, step=None) for key in ("mean_fg_dice", "ema_fg_dice"))
        if np.isnan(means[-1]):
            means[-1] = averages[-1] = averages[-2] if len(averages) > 1 else 0.0
            self.print_to_log_file("no foreground in the validation patches of this epoch: Dice carried over")

    # ------------------------------------------------------------------ what is written

    def _save_debug_information(self) -> None:
        """As stock, without what tells of the machine and its owner: exported models carry the file."""
        super()._save_debug_information()
        if self.local_rank == 0:
            remove_machine(Path(self.output_folder) / "debug.json")

    def save_checkpoint(self, filename: str) -> None:
        """Stock's checkpoint, complete or not there at all, readable with ``torch.load(weights_only=True)``.

        Within :meth:`run_training` it is written in the background; else it is there when this returns.
        """
        to_builtin(self.logger.local_logger.my_fantastic_logging)
        self._best_ema = to_builtin(self._best_ema)
        with self.weights_to_keep():
            checkpoint = checkpoint_of(super().save_checkpoint)
            if checkpoint is not None and self.averaged_weights is not None:
                checkpoint["network_weights"] = on_cpu(checkpoint["network_weights"])
        if checkpoint is None:  # another rank, or checkpointing disabled
            return
        checkpoint.update(self.more_for_checkpoint())
        if self.checkpoint_writer is None:
            write_checkpoint(checkpoint, filename)
        else:
            self.checkpoint_writer.submit(checkpoint, filename)

    def more_for_checkpoint(self) -> dict[str, Any]:
        """What belongs into a checkpoint and stock knows nothing of."""
        if self.averaged_weights is None:
            return {}
        return {
            TRAINED_WEIGHTS: self.bare_network.state_dict(),
            NUM_UPDATES: self.averaged_weights.num_updates,
        }

    def weights_to_keep(self) -> Any:
        """Within it, the network has the weights that predict: their average where the recipe has one."""
        return nullcontext() if self.averaged_weights is None else self.averaged_weights.in_network()

    def wait_for_checkpoints(self) -> None:
        """Wait until all checkpoints are written.

        Raises:
            OSError: one of them could not be.
        """
        if self.checkpoint_writer is not None:
            self.checkpoint_writer.wait()

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """As stock, after all checkpoints are written.

        Raises:
            ValueError: the recipe averages weights, and the checkpoint is of a training that did not; or plans or
                ``dataset.json`` are not those that it was trained with.
        """
        self.wait_for_checkpoints()
        self._resumes = True
        checkpoint = load_checkpoint_safely(filename_or_checkpoint)
        remedy = "put back the plans and the dataset.json that it was trained with, or train from the beginning"
        check_trained_with(checkpoint, self.plans_manager.plans, self.dataset_json, filename_or_checkpoint, remedy)
        if self.recipe.averaging is not None and TRAINED_WEIGHTS not in checkpoint:
            raise ValueError(
                f"{filename_or_checkpoint} is of a training without averaged weights, {type(self).__name__} cannot go "
                "on with it; start from it with -pretrained_weights"
            )
        super().load_checkpoint(filename_or_checkpoint)
        if self.averaged_weights is not None:
            self.averaged_weights.restore(checkpoint)

    def _save_checkpoint_of_past_epoch(self, name: str) -> None:
        self.current_epoch -= 1  # on_epoch_end has counted it up already, and saving does so again
        self.save_checkpoint(join(self.output_folder, name))
        self.current_epoch += 1

    def validation_predictor(self, **options: Any) -> nnUNetPredictor:
        """Predictor of the final validation."""
        return nnUNetPredictor(**options)

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Stock's validation, with the metrics of :mod:`braintum.evaluation.metrics.segmentation_metrics`."""
        if self.local_rank == 0:
            begin_validation(Path(self.output_folder) / "validation")
        with (
            self.alone_in_fold(),
            self.weights_to_keep(),
            replaced(  # one long method, which predicts, writes and evaluates
                stock_module,
                nnUNetPredictor=self.validation_predictor,
                compute_metrics_on_folder=metrics_on_folder,
                export_prediction_from_logits=export_completely,
            ),
        ):
            super().perform_actual_validation(save_probabilities)
        if self.local_rank == 0:
            made_by = provenance(**training_identity(self))
            write_json_atomic(Path(self.output_folder) / "validation" / PROVENANCE_FILE, made_by)
