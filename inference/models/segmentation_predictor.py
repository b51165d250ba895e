"""nnU-Net's predictor, loaded from a model folder without running code that somebody put into a checkpoint."""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch._dynamo import OptimizedModule

from braintum.architectures.weights_fingerprint import weights_fingerprint
from braintum.inference.models.checkpoints import check_weights, in_single_precision, load_checkpoint_safely
from braintum.inference.models.model_files import check_size, checked_configuration, read_dataset_json, read_plans
from braintum.inference.models.network_copies import networks_of_folds, shared_copy
from braintum.inference.models.trained_with import check_trained_with


class SegmentationPredictor(nnUNetPredictor):
    """Stock prediction with any of nnU-Net's models, a classification head or none.

    Attributes:
        model_folder: where the model was loaded from; None for a network that is still in memory.
        folds: that were loaded from there.
        configuration_name: of the plans, loaded from there.
        checkpoint_name: of them.
    """

    network: Any  # set by nnU-Net's untyped base
    list_of_parameters: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_folder: Path | None = None
        self.folds: list[int | str] = []
        self.configuration_name = ""
        self.checkpoint_name: str | None = None
        self._networks_in_memory: list[Any] = []

    def initialize_from_trained_model_folder(
        self,
        model_training_output_dir: str,
        use_folds: Sequence[int | str] | None = None,
        checkpoint_name: str = "checkpoint_final.pth",
        trust_checkpoint: bool = False,
    ) -> None:
        """Load a model folder as nnU-Net does, but without running code that its files name or hold.

        Args:
            model_training_output_dir: folder with ``plans.json``, ``dataset.json`` and ``fold_X``.
            use_folds: folds to average; None for all that have this checkpoint (without ``fold_all``).
            checkpoint_name: file within each fold.
            trust_checkpoint: see :func:`braintum.inference.models.checkpoints.load_checkpoint_safely`.

        Raises:
            FileNotFoundError: a file of the model is missing.
            ValueError: a file of the model is damaged or not safe, plans or ``dataset.json`` are not those that a fold
                was trained with, or nnU-Net does not find its trainer.
        """
        folder = Path(model_training_output_dir)
        dataset_json = read_dataset_json(folder / "dataset.json")
        plans_manager = read_plans(folder / "plans.json")
        folds: list[int | str] = [*(available_folds(folder, checkpoint_name) if use_folds is None else use_folds)]
        checkpoints = [
            load_checkpoint_safely(folder / f"fold_{fold}" / checkpoint_name, trust_checkpoint) for fold in folds
        ]
        trainer_name = checkpoints[0]["trainer_name"]
        configuration = checkpoints[0]["init_args"]["configuration"]
        if configuration not in plans_manager.available_configurations:
            raise ValueError(
                f"{folder / f'fold_{folds[0]}' / checkpoint_name} is of the configuration {configuration[:100]!r}, "
                f"which {folder / 'plans.json'} does not have; copy the model again"
            )
        configuration_manager = checked_configuration(plans_manager, configuration, folder / "plans.json")
        for fold, checkpoint in zip(folds, checkpoints, strict=True):
            file = folder / f"fold_{fold}" / checkpoint_name
            check_trained_with(checkpoint, plans_manager.plans, dataset_json, file)
        try:
            build = recursive_find_trainer_class_by_name(trainer_name).build_network_architecture
        except RuntimeError as error:
            raise ValueError(
                f"{folder} was trained by {trainer_name}, which nnU-Net does not find here; install what it comes "
                "with, or name its folder in the environment variable nnUNet_extTrainer"
            ) from error
        network_description: tuple[Any, ...] = (plans_manager, configuration_manager)
        if "plans_manager" not in inspect.signature(build).parameters:  # trainers written for nnU-Net before 2.7
            network_description = (
                configuration_manager.network_arch_class_name,
                configuration_manager.network_arch_init_kwargs,
                configuration_manager.network_arch_init_kwargs_req_import,
            )
        build_network = partial(
            build,
            *network_description,
            determine_num_input_channels(plans_manager, configuration_manager, dataset_json),
            plans_manager.get_label_manager(dataset_json).num_segmentation_heads,
            enable_deep_supervision=False,
        )
        check_size(build_network, folder / "plans.json")
        network = build_network()
        for fold, checkpoint in zip(folds, checkpoints, strict=True):
            check_weights(network, checkpoint, folder / f"fold_{fold}" / checkpoint_name)
        self.manual_initialization(
            network,
            plans_manager,
            configuration_manager,
            [in_single_precision(checkpoint["network_weights"]) for checkpoint in checkpoints],
            dataset_json,
            trainer_name,
            checkpoints[0].get("inference_allowed_mirroring_axes"),
        )
        self.model_folder, self.folds, self.checkpoint_name = folder, folds, checkpoint_name
        self.configuration_name = configuration

    @property
    def predicts_classes(self) -> bool:
        """Whether the network has a classification head."""
        return hasattr(self.network, "classification_head")

    @contextmanager
    def folds_in_memory(self) -> Iterator[None]:
        """Within the block, :meth:`predict_logits_from_preprocessed_data` keeps the network of each fold.

        nnU-Net loads the weights of every fold again for every image. A compiled network does so here too.
        """
        if isinstance(self.network, OptimizedModule):
            yield
            return
        networks = [self.network, *(copy.deepcopy(self.network) for _ in self.list_of_parameters[1:])]
        for network, weights in zip(networks, self.list_of_parameters, strict=True):
            network.load_state_dict(weights)
        self._networks_in_memory = networks
        try:
            yield
        finally:
            self.network, self._networks_in_memory = networks[0], []

    @property
    def can_have_twins(self) -> bool:
        """Whether the networks are in memory, see :meth:`folds_in_memory`."""
        return bool(self._networks_in_memory)

    def twin(self) -> "SegmentationPredictor":
        """A predictor with the same weights for another thread, while the networks are in memory."""
        twin = copy.copy(self)
        twin._networks_in_memory = [shared_copy(network) for network in self._networks_in_memory]
        twin.network = twin._networks_in_memory[0]
        return twin

    @torch.inference_mode()
    def predict_logits_from_preprocessed_data(self, data: torch.Tensor) -> torch.Tensor:
        """Segmentation logits (heads, Z, Y, X) on the CPU, averaged over folds, from an image (C, Z, Y, X)."""
        if not self._networks_in_memory:
            return super().predict_logits_from_preprocessed_data(data)
        first, *others = self._networks_in_memory
        logits = self._logits_of(first, data)
        for network in others:
            logits += self._logits_of(network, data)
        if others:
            logits /= len(self._networks_in_memory)
        return logits

    def _logits_of(self, network: Any, data: torch.Tensor) -> torch.Tensor:
        self.network = network
        return self.predict_sliding_window_return_logits(data).to("cpu")

    @property
    def fingerprints(self) -> list[str]:
        """Of the weights of each fold, see :func:`braintum.architectures.weights_fingerprint.weights_fingerprint`."""
        return [weights_fingerprint(weights) for weights in self.list_of_parameters]

    def networks_of_folds(self, num_threads: int) -> list[Any]:
        """A network with the weights of each fold, ready to be called.

        Args:
            num_threads: that a call may use where the network itself decides it; torch's do not.
        """
        return networks_of_folds(self)


def available_folds(model_folder: str | Path, checkpoint_name: str) -> list[int]:
    """Folds of a model folder that have a checkpoint of this name; ``fold_all`` does not count, as in nnU-Net.

    Raises:
        FileNotFoundError: there is none.
    """
    model_folder = Path(model_folder)
    folds = sorted(
        int(file.parent.name.removeprefix("fold_"))
        for file in model_folder.glob(f"fold_*/{checkpoint_name}")
        if file.parent.name.removeprefix("fold_").isdecimal()
    )
    if not folds:
        raise FileNotFoundError(
            f"{model_folder} has no fold with a {checkpoint_name}; train one first, or name what is there with -f and "
            "-chk, --class-folds and --class-checkpoint (checkpoint_best.pth, for instance, while a training runs)"
        )
    return folds
