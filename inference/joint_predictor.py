"""nnU-Net's predictor, which also collects the class evidence of every pass.

Windows, mirrors, folds, padding and resampling are nnU-Net's own code: the segmentation is the stock one, voxel for
voxel. The class evidence is collected where nnU-Net calls the network.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from dataset_conversion.cases import ClassSchema
from dataset_conversion.label_names import named_labels
from inference.checkpoints import load_checkpoint_safely
from inference.class_evidence import ClassRecorder, FoldEvidence


class JointPredictor(nnUNetPredictor):
    """Stock prediction plus class evidence.

    Attributes:
        evidence: class evidence of the sliding-window passes since :meth:`reset_evidence`, in order: one a fold for
            :meth:`predict_logits_from_preprocessed_data`.
    """

    network: Any  # set by nnU-Net's untyped base

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.evidence: list[FoldEvidence] = []
        self._windows: list[ClassRecorder] = []

    @property
    def class_schema(self) -> ClassSchema:
        """Class names of the model.

        Raises:
            ValueError: the model has none.
        """
        schema = ClassSchema.from_dataset_json(self.dataset_json)
        if schema is None:
            raise ValueError(
                f"the model was trained by {self.trainer_name} without tumour classes; use nnUNetv2_predict for it"
            )
        return schema

    def initialize_from_trained_model_folder(
        self,
        model_training_output_dir: str,
        use_folds: Sequence[int | str] | None = None,
        checkpoint_name: str = "checkpoint_final.pth",
    ) -> None:
        """Load a model folder as nnU-Net does, but without running code from its checkpoints.

        Args:
            model_training_output_dir: folder with ``plans.json``, ``dataset.json`` and ``fold_X``.
            use_folds: folds to average; None for all that have this checkpoint (without ``fold_all``).
            checkpoint_name: file within each fold.

        Raises:
            FileNotFoundError: a file of the model is missing.
            ValueError: a file of the model is damaged, or the model predicts no classes.
        """
        folder = Path(model_training_output_dir)
        dataset_json = _read_json(folder / "dataset.json")
        plans_manager = PlansManager(_read_json(folder / "plans.json"))
        folds = available_folds(folder, checkpoint_name) if use_folds is None else list(use_folds)
        checkpoints = [load_checkpoint_safely(folder / f"fold_{fold}" / checkpoint_name) for fold in folds]
        trainer_name = checkpoints[0]["trainer_name"]
        configuration_manager = plans_manager.get_configuration(checkpoints[0]["init_args"]["configuration"])
        trainer_class = recursive_find_trainer_class_by_name(trainer_name)
        network = trainer_class.build_network_architecture(
            plans_manager,
            configuration_manager,
            determine_num_input_channels(plans_manager, configuration_manager, dataset_json),
            plans_manager.get_label_manager(dataset_json).num_segmentation_heads,
            enable_deep_supervision=False,
        )
        self.manual_initialization(
            network,
            plans_manager,
            configuration_manager,
            [checkpoint["network_weights"] for checkpoint in checkpoints],
            dataset_json,
            trainer_name,
            checkpoints[0].get("inference_allowed_mirroring_axes"),
        )
        if not hasattr(network, "classification_head"):
            raise ValueError(f"{folder} holds a model of {trainer_name}, which predicts no class; use nnUNetv2_predict")

    @cached_property
    def _region_channels(self) -> dict[str, list[int]]:
        """Output channels of each label or region; none where there is one only, or where the head looks at none."""
        labels = named_labels(self.dataset_json)
        if len(labels) < 2 or not getattr(self.network.classification_head, "reads_segmentation", False):
            return {}
        if self.label_manager.has_regions:
            regions = list(self.label_manager.foreground_regions)
            return {name: [regions.index(region)] for name, region in labels.items() if region in regions}
        heads = list(self.label_manager.all_labels)
        return {
            name: [heads.index(label) for label in ((value,) if isinstance(value, int) else value)]
            for name, value in labels.items()
        }

    def reset_evidence(self) -> None:
        """Forget what was collected."""
        self.evidence = []

    def predict_logits_from_preprocessed_data(self, data: torch.Tensor) -> torch.Tensor:
        """Segmentation logits averaged over folds; :attr:`evidence` then holds one entry a fold."""
        self.reset_evidence()
        return super().predict_logits_from_preprocessed_data(data)

    def predict_sliding_window_return_logits(self, input_image: torch.Tensor) -> torch.Tensor:
        """Segmentation logits of one set of weights; appends its class evidence."""
        logits = super().predict_sliding_window_return_logits(input_image)
        self.evidence.append(FoldEvidence.from_records(self._windows))
        return logits

    def _internal_predict_sliding_window_return_logits(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._windows = []  # nnU-Net repeats a pass that ran out of memory: only the one that succeeds counts
        return super()._internal_predict_sliding_window_return_logits(*args, **kwargs)

    def _internal_maybe_mirror_and_predict(self, x: torch.Tensor) -> torch.Tensor:
        network = self.network
        recorder = ClassRecorder(network, self.label_manager.has_regions, self._region_channels)
        self.network = recorder
        try:
            segmentation = super()._internal_maybe_mirror_and_predict(x)
        finally:
            self.network = network
        self._windows.append(recorder)
        return segmentation


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
            "-chk (checkpoint_best.pth, for instance, while a training runs)"
        )
    return folds


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f"{file.parent} is no folder of a trained model: {file.name} is missing")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is damaged: {error}; copy the model again") from error
