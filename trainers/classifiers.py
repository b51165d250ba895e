"""Training of standalone classifiers: those of papers 001 and 003, and those that paper 000 compares with.

They segment nothing, so only ``braintum_predict`` makes sense for them, also as ``--class-model`` beside a segmentation
model. For nnU-Net their mask is background.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import nn

from braintum.trainers.augmentation.augmentation import Augmentation
from braintum.trainers.multi_task import nnUNetTrainerMultiTask
from braintum.trainers.pretrained import StartsFromPretrained
from braintum.trainers.recipes.recipe import Recipe, classifier_recipe


class ClassifierTrainer(nnUNetTrainerMultiTask):
    """Base of the classifiers' trainers: trains the classification alone."""

    balances_tasks = False

    @classmethod
    def adapted(cls, recipe: Recipe) -> Recipe:
        """The recipe without its segmentation."""
        return classifier_recipe(recipe)

    def on_train_start(self) -> None:
        """As ever, after a word on what the model is good for."""
        self.print_to_log_file(
            f"{type(self).__name__} trains a classifier: Dice and masks mean nothing. Predict with braintum_predict, "
            "and with checkpoint_best_joint.pth where you want the best checkpoint",
            also_print_to_console=True,
        )
        super().on_train_start()


class PretrainedClassifierTrainer(StartsFromPretrained, ClassifierTrainer):
    """Base of those that start from ImageNet weights."""

    dimensions = (2,)

    def pretrained_network(self) -> str:
        """The network's name in the catalogue of weights."""
        return self.bare_network.pretrained_network


class FrozenFeaturesTrainer(PretrainedClassifierTrainer):
    """Base of those whose features are never trained: each image passes through them once in a training.

    Only where the network sees an image in the same way each time: without augmentation, and where patches have the
    size of the images, as by the paper's plans. Otherwise the features are computed in each step.
    """

    features: "FeatureMemory | None" = None

    def on_train_start(self) -> None:
        """As ever, after a decision on whether features are kept."""
        self.oversample_foreground_percent = 0.0  # which moves a patch to the tumour, beyond the image's edge as well
        super().on_train_start()
        patch_size = self.configuration_manager.patch_size
        shapes = [self.shape_of(case) for cases in self.do_split() for case in cases]
        fits = bool((np.array(shapes) == (1, *patch_size)).all())  # nnU-Net pads smaller ones here or there
        if fits and self.recipe.augmentation == Augmentation():
            self.features = FeatureMemory(self.bare_network.encoder)
            self.print_to_log_file(f"The features of {len(shapes)} images are computed once and kept in memory")

    def _do_i_compile(self) -> bool:
        """No: a compiled network would not ask for what is kept."""
        return False

    def train_step(self, batch: dict) -> dict:
        """As ever, with features that are kept."""
        with nullcontext() if self.features is None else self.features.of(batch["keys"]):
            return super().train_step(batch)

    def validation_step(self, batch: dict) -> dict:
        """As ever, with features that are kept."""
        with nullcontext() if self.features is None else self.features.of(batch["keys"]):
            return super().validation_step(batch)


class FeatureMemory:
    """Features of images by the names of their cases, so that an encoder that does not change runs once for each.

    Args:
        encoder: gives features (B, C, Y, X) of images.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = encoder
        self._compute = encoder.forward
        self._features: dict[str, torch.Tensor] = {}

    @contextmanager
    def of(self, cases: Sequence[str]) -> Iterator[None]:
        """Within the block the encoder gets the images of these cases, and looks at those only that are new."""
        self.encoder.forward = partial(self._features_of, cases)
        try:
            yield
        finally:
            self.encoder.forward = self._compute

    @torch.no_grad()
    def _features_of(self, cases: Sequence[str], images: torch.Tensor) -> torch.Tensor:
        new = {case: index for index, case in enumerate(cases) if case not in self._features}  # each case once
        if new:
            for case, features in zip(new, self._compute(images[list(new.values())]), strict=True):
                self._features[case] = features.float().cpu()
        return torch.stack([self._features[case] for case in cases]).to(images.device)
