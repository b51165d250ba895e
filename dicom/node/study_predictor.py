"""A model that stays loaded and predicts study after study."""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from braintum.conversion.dicom.cases import write_cases
from braintum.inference.api import load_predictor, predict_folder
from braintum.inference.dicom.study_objects import OBJECTS_FOLDER, ObjectOptions, write_study_objects
from braintum.inference.models.segmentation_predictor import SegmentationPredictor
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.ready.predict_images import predict_images
from braintum.inference.ready.zoo import FOLD, ReadyModel


@dataclass(frozen=True, eq=False)
class StudyPredictor:
    """Predicts the study in a folder.

    Attributes:
        predictor: of the model.
        ready: the ready model, where it is one.
        patterns: channel → pattern of its series.
        options: which objects to write.
        calibrated: calibrate the class probabilities; ready models always do.
    """

    predictor: SegmentationPredictor
    ready: ReadyModel | None
    patterns: Mapping[str, str]
    options: ObjectOptions
    calibrated: bool = False

    @classmethod
    def of_ready_model(cls, ready: ReadyModel, device: str | torch.device, **rest: Any) -> "StudyPredictor":
        """Load a ready model."""
        return cls(load_predictor(ready.folder, folds=[FOLD], device=device), ready, **rest)

    def __call__(self, images: Path, output: Path) -> None:
        """Write the study's objects.

        Args:
            images: folder of one study.
            output: exists; gets ``seg.dcm``, ``sr.dcm``, …

        Raises:
            ValueError: the study has not the channels of the model, or cannot be read or predicted.
        """
        names = self.predictor.dataset_json.get("channel_names") or self.predictor.dataset_json["modality"]
        channels = [names[key] for key in sorted(names, key=int)]
        ending = self.predictor.dataset_json["file_ending"] if self.ready is None else ".nii.gz"
        with tempfile.TemporaryDirectory(prefix="braintum_") as folder:
            volumes, predicted = Path(folder, "volumes"), Path(folder, "predicted")
            volumes.mkdir()
            studies = write_cases(images, channels, volumes, self.patterns, ending=ending)
            if len(studies.cases) != 1:
                raise ValueError("; ".join(studies.left_out.values()) or "no series of MR images")
            failed = self._predict(volumes, predicted)
            if failed:
                raise ValueError("; ".join(failed.values()))
            card = None if self.ready is None else self.ready.card
            write_study_objects(studies.cases[0], predicted, self.options, card)
            for file in (predicted / OBJECTS_FOLDER).glob("*/*.dcm"):
                shutil.move(file, output)

    def _predict(self, volumes: Path, output: Path) -> Mapping[str, str]:
        """Predict a folder of volumes; what is wrong with those that could not be."""
        if self.ready is None:
            outcome = predict_folder(volumes, output, self.predictor, calibrated=self.calibrated, show_progress=False)
            return outcome.failed
        if not isinstance(self.predictor, JointPredictor):
            raise ValueError(f"the model {self.ready.name} predicts no classes")
        return predict_images(self.predictor, self.ready.suitability(), volumes, output).failed
