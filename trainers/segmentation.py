"""Base of all our trainers: nnU-Net's trainer, told by a recipe what to do."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgenerators.utilities.file_and_folder_operations import join
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock_module
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.crossval_split import generate_crossval_split
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
from braintum.conversion.format.cases import Case, find_cases_file, read_cases
from braintum.conversion.format.splits import SPLITS_FILE, Splits, read_splits, splits_by_patient
from braintum.evaluation.metrics.segmentation_metrics import metrics_on_folder
from braintum.inference.models.checkpoints import load_checkpoint_safely, to_builtin
from braintum.inference.models.trained_with import check_trained_with
from braintum.trainers.averaged_weights import NUM_UPDATES, TRAINED_WEIGHTS, AveragedWeights
from braintum.trainers.classes.progress import OVERLAP_KEYS, OverlapLogger
from braintum.trainers.cpu_arithmetic import CpuArithmetic, fastest, without_measuring
from braintum.trainers.data.device_batches import AugmentedBatches, device_loader_class
from braintum.trainers.data.passes import CasesInPasses
from braintum.trainers.data.seeded_batches import (
    NETWORK,
    compute_deterministically,
    seed_everything,
    seeded_iterators,
    stream_of_rank,
)
from braintum.trainers.data.slice_sampling import SliceSampling, data_loader_class
from braintum.trainers.data.split_check import check_known, check_leaks, splits_by_image
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

_NUM_FOLDS, _SEED_OF_FOLDS = 5, 12345
"""nnU-Net's."""


class _StoppedEarly(Exception):
    """Leaves nnU-Net's loop over the epochs."""


class SegmentationTrainer(nnUNetTrainer):
    """nnU-Net's trainer with loss, optimiser, schedule and augmentation of a recipe. Needs no classes.

    A trainer names its :attr:`recipe` and its network (``build_network_architecture``, see
    :mod:`braintum.trainers.networks`).

    Attributes:
        recipe: how to train.
        papers: that describe the network, or the idea added to nnU-Net's; none for our own.
        paper_parameters: of the network on the plans of its paper; None where there is no such thing.
        dimensions: of the configurations that it trains.
        takes_recipes: whether it can be trained by other recipes than its own.
        slice_sampling: of volumes, in 2-D configurations; None for nnU-Net's own.

    Raises:
        NotImplementedError: for the second stage of a cascade, or a balancing of tasks where there is one task.
    """

    # set by nnU-Net's untyped base
    network: Any
    dataset_class: Any
    dataset_json: dict[str, Any]
    num_epochs: int
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int
    save_every: int
    _best_ema: Any

    recipe: ClassVar[Recipe]
    papers: ClassVar[tuple[Paper, ...]] = ()
    paper_parameters: ClassVar[int | None] = None
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)
    balances_tasks: ClassVar[bool] = False
    takes_recipes: ClassVar[bool] = True
    slice_sampling: SliceSampling | None = SliceSampling()

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

    # ------------------------------------------------------------------ data

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, Any]:
        """Stock's answers where the recipe's augmentation gives no others."""
        rotation, in_plane_only, initial_patch_size, mirror_axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        augmentation = self.recipe.augmentation
        if augmentation is None:
            return rotation, in_plane_only, initial_patch_size, mirror_axes
        if not augmentation.flips:
            mirror_axes = self.inference_allowed_mirroring_axes = None
        elif augmentation.flips_last_axis_only:
            mirror_axes = self.inference_allowed_mirroring_axes = mirror_axes[-1:]
        patch_size = self.configuration_manager.patch_size
        initial_patch_size = np.array(augmentation.initial_patch_size(patch_size, in_plane_only))
        return augmentation.rotation, in_plane_only, initial_patch_size, mirror_axes

    def get_training_transforms(
        self,
        patch_size: Any,
        rotation_for_DA: Any,
        deep_supervision_scales: Any,
        mirror_axes: Any,
        do_dummy_2d_data_aug: bool,
        use_mask_for_norm: Any = None,
        is_cascaded: bool = False,
        foreground_labels: Any = None,
        regions: Any = None,
        ignore_label: Any = None,
    ) -> Any:
        """Stock's transforms, or the recipe's augmentation in place of stock's."""
        augmentation = self.recipe.augmentation
        if augmentation is None:
            return super().get_training_transforms(
                patch_size,
                rotation_for_DA,
                deep_supervision_scales,
                mirror_axes,
                do_dummy_2d_data_aug,
                use_mask_for_norm,
                is_cascaded,
                foreground_labels,
                regions,
                ignore_label,
            )
        transforms = augmentation.transforms(patch_size, mirror_axes, do_dummy_2d_data_aug)
        if use_mask_for_norm is not None and any(use_mask_for_norm):
            masked = [channel for channel, mask in enumerate(use_mask_for_norm) if mask]
            transforms.append(MaskImageTransform(masked, channel_idx_in_seg=0, set_outside_to=0))
        # what is left to do is what validation does
        validation = self.get_validation_transforms(
            deep_supervision_scales, is_cascaded, foreground_labels, regions, ignore_label
        )
        return ComposeTransforms([*transforms, *validation.transforms])

    @property
    def augments_on_device(self) -> bool:
        """Whether patches are augmented on the training device instead of in nnU-Net's workers."""
        if self.settings.augmentation == "default":
            return self.device.type == "cuda"
        return self.settings.augmentation == "gpu"

    def cases_file(self) -> Path:
        """``cases.csv`` of the data set.

        Raises:
            FileNotFoundError: there is none.
        """
        raw_folder = nnUNet_raw.get() or "nnUNet_raw (not set)"
        return find_cases_file(self.preprocessed_dataset_folder_base, join(raw_folder, self.plans_manager.dataset_name))

    def do_split(self) -> tuple[Any, Any]:
        """As stock, which writes the splits where there are none: by patient where ``cases.csv`` names patients.

        Raises:
            ValueError: the splits are not of nnU-Net's format, name cases that are not there, or put a patient on both
                sides (unless ``braintum_allow_leaks`` is 1).
        """
        if self.fold == "all":
            return super().do_split()
        file = Path(self.preprocessed_dataset_folder_base) / SPLITS_FILE
        num_splits = len(read_splits(file)) if file.is_file() else None
        try:
            cases = read_cases(self.cases_file())
        except FileNotFoundError:  # only masks are learned
            cases = {}
        if self.settings.split_by == "image":
            return self._split_by_image(cases)

        def split(names: list[str], seed: int, n_splits: int) -> Splits:
            return splits_by_patient(names, cases, seed, n_splits) or generate_crossval_split(names, seed, n_splits)

        with atomic_writes_of(stock_module), replaced(stock_module, generate_crossval_split=split):
            training, validation = super().do_split()
        place = f"{file}, fold {self.fold}"
        if num_splits is not None and int(self.fold) >= num_splits:
            place += f" (not among its {num_splits}: drawn at random, by case)"
        check_known(training, validation, self.dataset_class.get_identifiers(self.preprocessed_dataset_folder), place)
        if not self.settings.allow_leaks:
            check_leaks(training, validation, cases, place)
        return training, validation

    def _split_by_image(self, cases: Mapping[str, Case]) -> tuple[list[str], list[str]]:
        self.dataset_class = self.dataset_class or infer_dataset_class(self.preprocessed_dataset_folder)  # as stock
        names = self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)
        splits = splits_by_image(names, cases, _SEED_OF_FOLDS, _NUM_FOLDS)
        if int(self.fold) >= len(splits):
            raise ValueError(f"fold {self.fold}: braintum_split_by=image makes the folds 0 to {len(splits) - 1}")
        self.print_to_log_file("CONTROL: split by image, patients are on both sides; the validation is too good")
        return splits[int(self.fold)]["train"], splits[int(self.fold)]["val"]

    def get_dataloaders(self) -> tuple[Iterator[dict], Iterator[dict]]:
        """Stock loaders that draw slices by :attr:`slice_sampling`; under a seed, reproducible ones around them.

        Raises:
            NotImplementedError: an augmentation that the training device does not know.
        """
        if not self.augments_on_device:
            return self._loaders()[0]
        loaders, (training, validation) = self._loaders()
        self.print_to_log_file(f"Augmentation on {self.device}; braintum_augmentation=cpu does it in CPU workers")
        return (
            AugmentedBatches(loaders[0], training.augmentation, self.device),
            AugmentedBatches(loaders[1], validation.augmentation, self.device),
        )

    def _loaders(self) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        """Iterators over training and validation batches, and the loaders behind them."""
        choose = device_loader_class if self.augments_on_device else data_loader_class

        def loader(*args: Any, **kwargs: Any) -> Any:
            made: Any = choose(self.slice_sampling)(*args, **kwargs)
            if self.recipe.epoch == "pass":
                made.get_indices = CasesInPasses(made.indices, made.batch_size)
            return made

        # nnU-Net's method makes the loaders, and starts their workers, with all that it prepares for them
        stand_ins: dict[str, Any] = {"nnUNetDataLoader": loader}
        if self.seed is not None:
            stand_ins["get_allowed_n_proc_DA"] = lambda: 0  # the workers of seeded batches are others
        with replaced(stock_module, **stand_ins):
            iterators = super().get_dataloaders()
        training, validation = (getattr(made, "generator", None) or made.data_loader for made in iterators)
        if self.seed is not None:
            batches_per_epoch = self.num_iterations_per_epoch, self.num_val_iterations_per_epoch
            iterators = seeded_iterators(
                training, validation, self.seed, self.local_rank, self.current_epoch, batches_per_epoch, self.device
            )
        return iterators, (training, validation)

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
