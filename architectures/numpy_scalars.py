"""numpy's scalars in the logs of stock checkpoints, for torch's weights-only loader."""

from typing import Any

import numpy as np
import torch

# where numpy 1 and 2 keep the constructor; a checkpoint names that of the numpy it was written with
_CONSTRUCTORS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_NUMBERS = np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"


def numpy_scalars_allowed() -> Any:
    """Within it, ``torch.load(weights_only=True)`` restores numpy's numbers too, which cannot run code."""
    constructor = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [(constructor, name) for name in _CONSTRUCTORS]
    return torch.serialization.safe_globals([*allowed, np.dtype, *{type(np.dtype(code)) for code in _NUMBERS}])
