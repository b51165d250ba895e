"""Self-supervised start: a network learns to fill in masked blocks of the images, without labels.

The checkpoint starts a training of the same plans with nnU-Net's ``-pretrained_weights``. Block-wise masking of the
input at this share, and a loss on the masked voxels alone, are those of SimMIM (Xie et al. 2022), which asks nothing
of the network; nnssl does the same for nnU-Net's 3-D networks. The fold's held-out cases are left out: the start must
not have seen what the training is validated on.
"""

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
from nnunetv2.utilities.collate_outputs import collate_outputs

from braintum.architectures.networks.multi_task_unet import stock_counterpart
from braintum.trainers.networks import reconstruction_network
from braintum.trainers.recipes.recipe import MASKED_IMAGES
from braintum.trainers.segmentation import SegmentationTrainer

MASKED_SHARE = 0.6
"""Of the blocks of an image."""

BLOCK_EDGE = 16
"""In pixels or voxels, along each axis; where an edge of the patch is shorter, half of that."""


def draw_masks(shape: torch.Size, device: torch.device) -> torch.Tensor:
    """Masks (B, 1, [Z,] Y, X), true for blocks that are to be filled in.

    Args:
        shape: of the images, (B, C, [Z,] Y, X).
        device: for the masks.
    """
    blocks = [min(BLOCK_EDGE, max(1, edge // 2)) for edge in shape[2:]]
    masks = torch.rand(shape[0], 1, *(-(-edge // block) for edge, block in zip(shape[2:], blocks, strict=True)))
    masks = masks.to(device) < MASKED_SHARE
    for axis, (edge, block) in enumerate(zip(shape[2:], blocks, strict=True), start=2):
        masks = masks.repeat_interleave(block, axis).narrow(axis, 0, edge)
    return masks


class nnUNetTrainerMaskedImages(SegmentationTrainer):
    """Self-supervised start of the plans' network, for ``-pretrained_weights`` of ``nnUNetTrainerMultiTask``.

    Labels are not used, Dice means nothing, and there is nothing to validate or to predict.
    """

    recipe = MASKED_IMAGES
    takes_recipes = False
    build_network_architecture = staticmethod(
        reconstruction_network(
            lambda plan: stock_counterpart(plan.network_arch_class_name, PlainConvUNet, ResidualEncoderUNet)
        )
    )

    def _build_loss(self) -> torch.nn.Module:
        """Of images: there are no masks whose overlap could be counted."""
        return self._loss_of_recipe()

    def initialize(self) -> None:
        """As stock, with patches from anywhere in the image."""
        self.oversample_foreground_percent = 0.0
        super().initialize()

    def _reconstruction(self, batch: dict) -> torch.Tensor:
        images = self.shrunk(batch)["data"].to(self.device, non_blocking=True)
        masks = draw_masks(images.shape, self.device)
        mean = images.mean(tuple(range(2, images.ndim)), keepdim=True)
        with self.autocast():
            output = self.network(torch.where(masks, mean, images))
        return self.loss(output, images, masks)

    def train_step(self, batch: dict) -> dict:
        """One iteration; returns ``loss``."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._reconstruction(batch)
        if self.grad_scaler is None:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
            self.optimizer.step()
        else:
            self.grad_scaler.scale(loss).backward()
            self.grad_scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), 12)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        return {"loss": loss.detach().cpu().numpy()}

    def validation_step(self, batch: dict) -> dict:
        """The same loss on the held-out cases, with counts of voxels that stock asks for and nobody reads."""
        loss = self._reconstruction(batch).detach().cpu().numpy()
        return {"loss": loss, "tp_hard": np.ones(1), "fp_hard": np.ones(1), "fn_hard": np.ones(1)}

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """As stock; the log says what the loss means."""
        super().on_validation_epoch_end(val_outputs)
        loss = float(np.mean(collate_outputs(val_outputs)["loss"]))
        self.print_to_log_file(f"masked voxels of held-out images: {1 - loss:.1%} of their variance is filled in")

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Nothing: there is no mask to compare."""
        self.print_to_log_file(
            "This training learned no masks. Start from it with: nnUNetv2_train ... -pretrained_weights "
            f"{self.output_folder}/checkpoint_final.pth",
            also_print_to_console=True,
        )
