"""A ready model, loaded and put to use."""

import os

from braintum.inference.api import load_predictor
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.prediction.precision import Precision
from braintum.inference.ready.predict_images import PredictedImages, predict_images
from braintum.inference.ready.zoo import FOLD, ReadyModel, ready_model


def predict_with_ready_model(
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    name: str | None = None,
    device: str | None = None,
    mirroring: bool = True,
    precision: Precision = "float32",
) -> tuple[ReadyModel, PredictedImages]:
    """Predict a folder of one's own images; see :func:`braintum.inference.ready.predict_images.predict_images`.

    Args:
        images: folder, or one image.
        output: folder.
        name: of the model; None for the default one.
        device: such as ``cuda`` or ``cpu``; None for CUDA where there is it.
        mirroring: average over mirrored images.
        precision: of the network on CPUs.

    Raises:
        ValueError: no such model, or one that takes other images.
        FileNotFoundError: no images.
    """
    model = ready_model(name)
    predictor = load_predictor(model.folder, folds=[FOLD], device=device, mirroring=mirroring)
    if not isinstance(predictor, JointPredictor) or len(predictor.configuration_manager.patch_size) != 2:
        raise ValueError(f"the model {model.name} is no 2-D model of masks and classes; name its folder with -m")
    return model, predict_images(predictor, model.suitability(), images, output, precision)
