"""ImageNet weights from a file of the user's or from torch's cache; nothing is downloaded."""

import pickle
import re
from pathlib import Path

import torch
from torch import nn

VARIABLE = "braintum_pretrained_weights"
"""Environment variable: state dict of a classifier's network to start from, or ``random`` to do without; not set: what
torch's cache holds."""

RANDOM = "random"

# densenet121-a639ec97.pth was written when module names could hold dots: norm.1 is norm1 today
_OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")


def find_weights(url: str, requested: str | Path | None = None) -> Path | None:
    """The file to read the weights from.

    Args:
        url: where torchvision offers them; the last part names the file in torch's cache.
        requested: a file, ``"random"``, or None (or an empty string) for torch's cache.

    Returns:
        An existing file; None if random weights are requested.

    Raises:
        FileNotFoundError: the requested file does not exist.
        ValueError: nothing is requested and the cache does not hold the weights.
    """
    if requested == RANDOM:
        return None
    if requested:
        file = Path(requested)
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}, which {VARIABLE} asks for, does not exist; download {url} and give the file, or set "
                f"{VARIABLE}={RANDOM}"
            )
        return file
    cached = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not cached.is_file():
        raise ValueError(
            f"this network starts from ImageNet weights, and {cached} does not exist. Download {url} and put it "
            f"there, or set {VARIABLE} to the file; {VARIABLE}={RANDOM} trains from random weights instead"
        )
    return cached


def load_features(features: nn.Module, file: Path) -> None:
    """Load the convolutional features of a torchvision classifier.

    The file's classification layers are left out. If ``features`` take another number of channels than the file's
    three, each channel gets the average over the colours, scaled so that equal channels give what equal colours gave:
    for one channel that is what repeating a grey image three times gives.

    Args:
        features: named as in torchvision's model.
        file: state dict.

    Raises:
        ValueError: no state dict, or not of this network.
    """
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file} cannot be read as a state dict of torch: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"{file} holds a {type(state).__name__}, not a state dict; save model.state_dict()")
    state = {_OLD_DENSENET_KEY.sub(r"\1\2", key): value for key, value in state.items()}
    own = features.state_dict()
    # older files do not count batches, and nothing here reads the count
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(
            f"{file} does not hold the weights of this network: {missing[0]} and {len(missing) - 1} others are missing"
        )
    state = {key: state.get(key, value) for key, value in own.items()}
    first = next(f"{name}.weight" for name, module in features.named_modules() if isinstance(module, nn.Conv2d))
    channels, stored = own[first].shape[1], state[first].shape[1]
    if channels != stored:
        state[first] = state[first].mean(1, keepdim=True).expand(-1, channels, -1, -1) * (stored / channels)
    wrong = [key for key, value in state.items() if value.shape != own[key].shape]
    if wrong:
        raise ValueError(
            f"{file} does not hold the weights of this network: {wrong[0]} has the shape {tuple(state[wrong[0]].shape)}"
            f", expected {tuple(own[wrong[0]].shape)}"
        )
    features.load_state_dict(state)
