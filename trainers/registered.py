"""The trainers that nnU-Net finds by name."""

from trainers.multi_task import nnUNetTrainerMultiTask

__all__ = ["nnUNetTrainerMultiTask"]
