"""nnU-Net's predictor, which also collects the class evidence of every pass.

Windows, mirrors, folds, padding and resampling are nnU-Net's own code: the segmentation is the stock one, voxel for
voxel. The class evidence is collected where nnU-Net calls the network.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from braintum.conversion.format.cases import ClassSchema
from braintum.conversion.format.label_names import named_labels
from braintum.inference.models.segmentation_predictor import SegmentationPredictor
from braintum.inference.prediction.class_evidence import ClassRecorder, FoldEvidence
from braintum.inference.prediction.window_batches import mirror_axes


class JointPredictor(SegmentationPredictor):
    """Stock prediction plus class evidence.

    Attributes:
        evidence: class evidence of the sliding-window passes since :meth:`reset_evidence`, in order: one a fold for
            :meth:`predict_logits_from_preprocessed_data`.
    """

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
            where = "" if self.model_folder is None else f": {self.model_folder / 'dataset.json'} names none"
            raise ValueError(f"the model was trained by {self.trainer_name} without tumour classes{where}")
        return schema

    def initialize_from_trained_model_folder(
        self,
        model_training_output_dir: str,
        use_folds: Sequence[int | str] | None = None,
        checkpoint_name: str = "checkpoint_final.pth",
        trust_checkpoint: bool = False,
    ) -> None:
        """As :class:`SegmentationPredictor`'s, for models with a classification head.

        Raises:
            FileNotFoundError: a file of the model is missing.
            ValueError: a file of the model is damaged, or the model predicts no classes.
        """
        super().initialize_from_trained_model_folder(
            model_training_output_dir, use_folds, checkpoint_name, trust_checkpoint
        )
        self.check_classes()

    @classmethod
    def of(cls, loaded: SegmentationPredictor) -> "JointPredictor":
        """The same model, its class evidence collected.

        Raises:
            ValueError: see :meth:`check_classes`.
        """
        joint = cls()  # with nothing to print for nnU-Net; all attributes are the other's
        joint.__dict__.update(loaded.__dict__)
        joint.check_classes()
        return joint

    def check_classes(self) -> None:
        """Refuse what has been loaded, if it predicts no classes.

        Raises:
            ValueError: the model predicts no classes.
        """
        if not self.predicts_classes:
            raise ValueError(
                f"{self.model_folder} holds a model of {self.trainer_name}, which predicts no class; name one that does"
            )

    @cached_property
    def region_channels(self) -> dict[str, list[int]]:
        """Output channels of each label or region; none where there is one only, or where the head looks at none."""
        if len(named_labels(self.dataset_json)) < 2:
            return {}
        if not getattr(self.network.classification_head, "reads_segmentation", False):
            return {}
        return structure_channels(self.dataset_json, self.label_manager)

    def recorder(self, network: Any) -> ClassRecorder:
        """What is to be called in place of a network, and keeps the class evidence."""
        return ClassRecorder(network, self.label_manager.has_regions, self.region_channels, describe_passes=True)

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
        mirrors = mirror_axes(self.allowed_mirroring_axes if self.use_mirroring else None)
        self.evidence.append(FoldEvidence.from_records(self._windows, mirrors))
        return logits

    def _internal_predict_sliding_window_return_logits(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._windows = []  # nnU-Net repeats a pass that ran out of memory: only the one that succeeds counts
        return super()._internal_predict_sliding_window_return_logits(*args, **kwargs)

    def _internal_maybe_mirror_and_predict(self, x: torch.Tensor) -> torch.Tensor:
        network = self.network
        self.network = recorder = self.recorder(network)
        try:
            segmentation = super()._internal_maybe_mirror_and_predict(x)
        finally:
            self.network = network
        self._windows.append(recorder)
        return segmentation


def structure_channels(dataset_json: Mapping[str, Any], labels: LabelManager) -> dict[str, list[int]]:
    """Output channels of the network that make up each label or region of a data set.

    Args:
        dataset_json: with the labels.
        labels: nnU-Net's, of the same.
    """
    named = named_labels(dataset_json)
    if labels.has_regions:
        regions = list(labels.foreground_regions)
        return {name: [regions.index(region)] for name, region in named.items() if region in regions}
    heads = list(labels.all_labels)
    return {
        name: [heads.index(label) for label in ((value,) if isinstance(value, int) else value)]
        for name, value in named.items()
    }
