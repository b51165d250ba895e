"""Prediction by onnxruntime or OpenVINO: the predictors of exported models. All but the network is the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

from braintum.architectures.input_channels import num_network_channels
from braintum.architectures.weights_fingerprint import weights_fingerprint
from braintum.conversion.format.cases import ClassSchema
from braintum.inference.export.onnx_model import (
    CLASSES,
    CLASSES_BY_REGION,
    SEGMENTATION,
    OnnxNetwork,
    onnx_name,
)
from braintum.inference.export.sessions import Engine, import_engine
from braintum.inference.models.checkpoints import load_checkpoint_safely
from braintum.inference.models.model_files import checked_configuration, read_dataset_json, read_plans
from braintum.inference.models.segmentation_predictor import SegmentationPredictor, available_folds
from braintum.inference.models.trained_with import check_trained_with
from braintum.inference.prediction.class_evidence import ClassRecorder
from braintum.inference.prediction.joint_predictor import JointPredictor


class OnnxSegmentationPredictor(SegmentationPredictor):
    """As its base, for a model that ``braintum_export`` exported; on the CPU, in bulk.

    ``list_of_parameters`` holds the fingerprint of the weights of each fold.

    Attributes:
        engine: that runs the networks; set it before a model is loaded.
    """

    engine: Engine = "onnxruntime"

    def initialize_from_trained_model_folder(
        self,
        model_training_output_dir: str,
        use_folds: Sequence[int | str] | None = None,
        checkpoint_name: str = "checkpoint_final.pth",
        trust_checkpoint: bool = False,
    ) -> None:
        """Load the exported networks of a model folder.

        Args:
            model_training_output_dir: folder with ``plans.json``, ``dataset.json`` and ``fold_X``.
            use_folds: folds to average; None for all that have this checkpoint or its export (without ``fold_all``).
            checkpoint_name: that was exported. It need not be there; where it is, the export has to be of its weights.
            trust_checkpoint: see :func:`braintum.inference.models.checkpoints.load_checkpoint_safely`.

        Raises:
            FileNotFoundError: a file of the model is missing, or it was not exported.
            ValueError: a file is damaged or not safe, an export does not belong to its checkpoint, plans or
                ``dataset.json``, or the engine is missing.
        """
        import_engine(self.engine)
        folder = Path(model_training_output_dir)
        dataset_json = read_dataset_json(folder / "dataset.json")
        plans_manager = read_plans(folder / "plans.json")
        folds = list(_available_folds(folder, checkpoint_name) if use_folds is None else use_folds)
        beside = plans_manager.plans, dataset_json
        networks = [_open(folder, fold, checkpoint_name, trust_checkpoint, *beside, self.engine) for fold in folds]
        description = networks[0].description
        configuration = checked_configuration(plans_manager, description.configuration, folder / "plans.json")
        channels = determine_num_input_channels(plans_manager, configuration, dataset_json)
        expected = (
            num_network_channels(channels, configuration.configuration),
            plans_manager.get_label_manager(dataset_json).num_segmentation_heads,
            tuple(int(size) for size in configuration.patch_size),
        )
        for network in networks:
            found = (network.num_channels, network.num_heads, network.description.patch_size)
            if found != expected or network.description.configuration != description.configuration:
                raise ValueError(
                    f"{network.file} (channels, labels and patch size {found}) does not belong to plans.json and "
                    f"dataset.json of {folder} ({expected}); {_export_again(folder)}"
                )
        self.manual_initialization(
            networks[0],
            plans_manager,
            configuration,
            [network.description.fingerprint for network in networks],
            dataset_json,
            description.trainer,
            description.mirroring_axes,
        )
        self.network = networks[0]  # whatever nnUNet_compile says
        self.model_folder = folder
        self.folds = folds
        self.configuration_name = description.configuration
        self._networks = networks

    @property
    def fingerprints(self) -> list[str]:
        """Of the weights that were exported."""
        return list(self.list_of_parameters)

    def networks_of_folds(self, num_threads: int) -> list[Any]:
        """The exported networks."""
        return [network.with_threads(num_threads) for network in self._networks]

    def predict_logits_from_preprocessed_data(self, data: torch.Tensor) -> torch.Tensor:
        """nnU-Net's own order of computation, which loads weights into one network.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("exported networks predict in bulk only; leave --exact away, or predict with torch")


class OnnxJointPredictor(JointPredictor, OnnxSegmentationPredictor):
    """As :class:`JointPredictor`, for an exported model."""

    def check_classes(self) -> None:
        """As :class:`JointPredictor`'s.

        Raises:
            ValueError: the model predicts no classes, or others than ``dataset.json`` lists.
        """
        super().check_classes()
        schema = ClassSchema.from_dataset_json(self.dataset_json)
        num_classes = 0 if schema is None else len(schema.class_names)
        for network in self._networks:
            if network.num_classes != num_classes or network.description.regions != tuple(self.region_channels):
                raise ValueError(
                    f"{network.file} does not belong to dataset.json of {self.model_folder}: it predicts "
                    f"{network.num_classes} classes and the regions {list(network.description.regions)}, not "
                    f"{num_classes} and {list(self.region_channels)}; {_export_again(self.model_folder)}"
                )

    def recorder(self, network: Any) -> ClassRecorder:
        """As :class:`JointPredictor`'s."""
        return _OnnxRecorder(network, self.label_manager.has_regions, self.region_channels, describe_passes=True)


class _OnnxRecorder(ClassRecorder):
    """Takes the class logits by region from the network's outputs."""

    def _classify_regions(self, patch: torch.Tensor) -> Any:
        outputs = self._network.run(patch)  # type: ignore[attr-defined]
        self._note(outputs[SEGMENTATION], outputs[CLASSES])
        for name, logits in zip(self._region_channels, outputs[CLASSES_BY_REGION].unbind(1), strict=True):
            self.region_class_logits[name].append(logits)
        return outputs[SEGMENTATION]


def _available_folds(folder: Path, checkpoint_name: str) -> list[int]:
    """Folds that are trained or exported: none that is trained is left out unsaid."""
    found: set[int] = set()
    for name in (checkpoint_name, onnx_name(checkpoint_name)):
        try:
            found.update(available_folds(folder, name))
        except FileNotFoundError:
            continue
    return sorted(found) or available_folds(folder, checkpoint_name)  # which raises


def _open(
    folder: Path,
    fold: int | str,
    checkpoint_name: str,
    trust_checkpoint: bool,
    plans: Mapping[str, Any],
    dataset_json: Mapping[str, Any],
    engine: Engine,
) -> OnnxNetwork:
    """The exported network of a fold.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of other weights than the checkpoint beside it, or that one was trained with other
            plans or another ``dataset.json``.
    """
    file = folder / f"fold_{fold}" / onnx_name(checkpoint_name)
    again = _export_again(folder, fold, checkpoint_name)
    if not file.is_file():
        raise FileNotFoundError(f"no exported model at {file}; {again}")
    network = OnnxNetwork(file, engine=engine)
    checkpoint = file.with_name(checkpoint_name)
    if checkpoint.is_file():
        content = load_checkpoint_safely(checkpoint, trust_checkpoint)
        if weights_fingerprint(content["network_weights"]) != network.description.fingerprint:
            raise ValueError(f"{file} was exported from other weights than {checkpoint.name} beside it holds; {again}")
        check_trained_with(content, plans, dataset_json, checkpoint)
    return network


def _export_again(folder: Path | None, fold: int | str | None = None, checkpoint_name: str | None = None) -> str:
    chosen = "" if fold is None else f" -f {fold} -chk {checkpoint_name}"
    return f"export it with: braintum_export -m {folder}{chosen}"
