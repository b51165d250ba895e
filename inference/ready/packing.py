"""Making a ready model of a trained one, with the training images that say what suits it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

from braintum.conversion.files.json_files import read_json_object
from braintum.inference.api import load_predictor
from braintum.inference.ready.suitability import Suitability, deepest_features
from braintum.inference.ready.zoo import pack, user_folder

_BATCH = 32


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
