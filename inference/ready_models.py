"""Ready models: put to use, and made of trained ones."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from braintum.conversion.files.json_files import read_json_object
from braintum.inference.api import load_predictor
from braintum.inference.prediction.joint_predictor import JointPredictor
from braintum.inference.prediction.precision import Precision
from braintum.inference.ready.predict_images import PredictedImages, predict_images
from braintum.inference.ready.suitability import Suitability, deepest_features
from braintum.inference.ready.zoo import FOLD, ReadyModel, pack, ready_model, user_folder

_BATCH = 32


def predict_with_ready_model(
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    name: str | None = None,
    device: str | None = None,
    mirroring: bool = True,
    precision: Precision = "float32",
    not_needed: Sequence[str] = (),
) -> tuple[ReadyModel, PredictedImages]:
    """Predict a folder of one's own images; see :func:`braintum.inference.ready.predict_images.predict_images`.

    Args:
        images: folder, or one image.
        output: folder.
        name: of the model; None for the default one.
        device: such as ``cuda`` or ``cpu``; None for CUDA where there is it.
        mirroring: average over mirrored images.
        precision: of the network on CPUs.
        not_needed: patterns of images that need not be predicted.

    Raises:
        ValueError: no such model, or one that takes other images.
        FileNotFoundError: no images.
    """
    model = ready_model(name)
    predictor = load_predictor(model.folder, folds=[FOLD], device=device, mirroring=mirroring)
    if not isinstance(predictor, JointPredictor) or len(predictor.configuration_manager.patch_size) != 2:
        raise ValueError(f"the model {model.name} is no 2-D model of masks and classes; name its folder with -m")
    return model, predict_images(predictor, model.suitability(), images, output, precision, not_needed)


def pack_trained(
    model_folder: Path, fold: int | str, card_file: Path, preprocessed: Path | None, target: Path | None
) -> Path:
    """Make a ready model.

    Args:
        model_folder: of a trained 2-D model.
        fold: that is packed.
        card_file: the card, without ``weights``.
        preprocessed: folder with the preprocessed training images, of the model's plans; None for a model that does not
            know what suits it.
        target: folder that gets the model's; None for where models are installed.

    Returns:
        The folder of the ready model.
    """
    suitability = None
    if preprocessed is not None:
        predictor = load_predictor(model_folder, folds=[fold], device="cpu")
        predictor.network.load_state_dict(predictor.list_of_parameters[0])
        features = deepest_features(
            predictor.network.eval(), _slices(preprocessed, predictor.configuration_manager.patch_size)
        )
        suitability = Suitability.fit(features)
    card = read_json_object(card_file)
    return pack(model_folder, card, target or user_folder(), fold, suitability)


def _slices(folder: Path, patch_size: list[int]) -> Iterator[torch.Tensor]:
    """The middle slices of all cases, (B, C, Y, X)."""
    dataset_class = infer_dataset_class(str(folder))
    cases = dataset_class.get_identifiers(str(folder))
    dataset = dataset_class(str(folder), cases)
    for start in range(0, len(cases), _BATCH):
        batch = []
        for case in cases[start : start + _BATCH]:
            data = np.asarray(dataset.load_case(case)[0])
            middle = torch.from_numpy(data[:, data.shape[1] // 2].astype(np.float32))
            batch.append(pad_nd_image(middle, patch_size, "constant", {"value": 0}))
        yield torch.stack(batch)
