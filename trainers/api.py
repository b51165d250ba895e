"""Python API: training of one fold, by nnU-Net's own function."""

from contextlib import nullcontext
from pathlib import Path

import torch
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.run.run_training import run_training
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from braintum.commands.boundary import api_function
from braintum.commands.errors import RunError
from braintum.commands.model_arguments import dataset_name, results_folder
from braintum.inference.prediction.devices import usable_device
from braintum.trainers.recipes.control_folder import control_folder
from braintum.trainers.recipes.settings import TrainingSettings
from braintum.trainers.segmentation import SegmentationTrainer

__all__ = ["train"]


@api_function()
def train(
    dataset: int | str,
    configuration: str,
    fold: int | str,
    *,
    trainer: str = "nnUNetTrainerMultiTask",
    plans: str = "BrainTumPlans",
    device: str | torch.device | None = None,
    settings: TrainingSettings | None = None,
    continue_training: bool = False,
    pretrained_weights: str | Path | None = None,
    save_probabilities: bool = False,
    num_gpus: int = 1,
) -> Path:
    """Train one fold and validate it, as ``nnUNetv2_train`` does.

    Example:
        >>> settings = bt.TrainingSettings(num_epochs=1, num_iterations_per_epoch=2)  # just to see that all works
        >>> folder = bt.train(901, "2d", 0, plans=plans.stem, settings=settings, device="cpu")
        >>> folder.name
        'fold_0'

    Args:
        dataset: number or name of a planned data set.
        configuration: of the plans, such as ``2d``.
        fold: of ``splits_final.json``, or ``all``.
        trainer: nnU-Net's or ours, by name.
        plans: stem of the plans file that :func:`braintum.plan` returned.
        device: such as ``cuda`` or ``cpu``; None for CUDA where there is one, else the CPU.
        settings: of our trainers, in place of all environment variables that they have; None reads those.
        continue_training: from the latest checkpoint, if there is one.
        pretrained_weights: checkpoint to begin from.
        save_probabilities: of the final validation, as ensembles need them.
        num_gpus: more than one starts a process each.

    Returns:
        The fold's folder, with checkpoints and ``validation``; its parent is the model folder that
        :func:`braintum.predict` takes.

    Raises:
        InputError: no such data set, trainer or configuration, or a setting that makes no sense.
        FileError: plans are missing, or a file cannot be written.
        UnsupportedError: a setting or configuration that this trainer cannot train.
        RunError: nnU-Net gave up; its output before says why.
    """
    name = dataset_name(dataset)
    chosen = usable_device(device)
    plans_file = Path(nnUNet_preprocessed) / name / f"{plans}.json"
    if not plans_file.is_file():
        raise FileNotFoundError(f"no plans at {plans_file}; plan the data set first, or name other plans")
    try:
        trainer_class = recursive_find_trainer_class_by_name(trainer)
    except RuntimeError as error:
        raise ValueError(f"nnU-Net finds no trainer {trainer}; check the name, or run braintum_register") from error
    with nullcontext() if settings is None else settings.in_environment():
        model = results_folder(name, trainer, plans, configuration)
        if issubclass(trainer_class, SegmentationTrainer):
            model = Path(control_folder(str(model), fold) or model)
        try:
            run_training(
                name,
                configuration,
                fold,
                trainer,
                plans,
                None if pretrained_weights is None else str(pretrained_weights),
                num_gpus,
                save_probabilities,
                continue_training,
                device=chosen,
            )
        except (NotImplementedError, torch.OutOfMemoryError):
            raise
        except RuntimeError as error:
            raise RunError(f"training {trainer} on {name} failed: {error}") from error
    return model / f"fold_{fold}"
