"""What our trainers do about data: splits, loaders and augmentation, as a recipe and the settings say."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from batchgenerators.utilities.file_and_folder_operations import join
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from nnunetv2.paths import nnUNet_raw
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as stock_module
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.crossval_split import generate_crossval_split

from braintum.commands.seams import replaced
from braintum.conversion.files.atomic import atomic_writes_of
from braintum.conversion.format.cases import find_cases_file, read_cases
from braintum.conversion.format.splits import SPLITS_FILE, Splits, read_splits, splits_by_patient
from braintum.trainers.data.device_batches import AugmentedBatches, device_loader_class
from braintum.trainers.data.passes import CasesInPasses
from braintum.trainers.data.seeded_batches import seeded_iterators
from braintum.trainers.data.slice_sampling import SliceSampling, data_loader_class
from braintum.trainers.data.split_check import check_known, check_leaks, splits_by_image
from braintum.trainers.recipes.recipe import Recipe
from braintum.trainers.recipes.settings import TrainingSettings

_NUM_FOLDS, _SEED_OF_FOLDS = 5, 12345
"""nnU-Net's."""


class DataOfRecipe(nnUNetTrainer):
    """nnU-Net's trainer with the data of a recipe, base of ``SegmentationTrainer``.

    Attributes:
        recipe: how to train.
        settings: of this training.
        seed: of all that is drawn; None for none.
        slice_sampling: of volumes, in 2-D configurations; None for nnU-Net's own.
    """

    # set by nnU-Net's untyped base
    dataset_class: Any
    num_iterations_per_epoch: int
    num_val_iterations_per_epoch: int

    recipe: ClassVar[Recipe]
    settings: TrainingSettings
    seed: int | None
    slice_sampling: SliceSampling | None = SliceSampling()

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

        def by_image(names: list[str], seed: int, n_splits: int) -> Splits:
            return splits_by_image(names, cases, seed, n_splits)

        def by_patient(names: list[str], seed: int, n_splits: int) -> Splits:
            return splits_by_patient(names, cases, seed, n_splits) or generate_crossval_split(names, seed, n_splits)

        if self.settings.split_by == "image":
            self.print_to_log_file("CONTROL: split by image, patients are on both sides; the validation is too good")
            return self._drawn_split(by_image)
        if self.settings.split_by == "group":
            return self._drawn_split(by_patient)
        with atomic_writes_of(stock_module), replaced(stock_module, generate_crossval_split=by_patient):
            training, validation = super().do_split()
        place = f"{file}, fold {self.fold}"
        if num_splits is not None and int(self.fold) >= num_splits:
            place += f" (not among its {num_splits}: drawn at random, by case)"
        check_known(training, validation, self.dataset_class.get_identifiers(self.preprocessed_dataset_folder), place)
        if self.settings.split_by == "official":
            self.print_to_log_file(
                "CONTROL: the data set's own split; with copies on both sides the validation is too good"
            )
        elif not self.settings.allow_leaks:
            check_leaks(training, validation, cases, place)
        return training, validation

    def _drawn_split(self, draw: Callable[[list[str], int, int], Splits]) -> tuple[list[str], list[str]]:
        """Of folds that are not the data set's, see ``TrainingSettings.split_by``."""
        self.dataset_class = self.dataset_class or infer_dataset_class(self.preprocessed_dataset_folder)  # as stock
        names = sorted(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        splits = draw(names, _SEED_OF_FOLDS, _NUM_FOLDS)
        if int(self.fold) >= len(splits):
            kind = self.settings.split_by
            raise ValueError(f"fold {self.fold}: braintum_split_by={kind} makes the folds 0 to {len(splits) - 1}")
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
