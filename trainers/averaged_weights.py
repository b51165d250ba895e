"""Exponential moving average of a network's weights, which is what a short training is validated and saved with.

At the rates of a short training the weights of one step are noisy; their average over the last few hundred steps is
better than the last ones are (Polyak and Juditsky 1992; Izmailov et al. 2018), which saves the tail of small rates.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

TRAINED_WEIGHTS = "weights_before_averaging"
"""Entry of a checkpoint: the weights that go on training; ``network_weights`` are their average."""

NUM_UPDATES = "num_averaged_updates"
"""Entry of a checkpoint: how many steps the average has seen."""


class AveragedWeights:
    """Average of parameters and statistics (batch norm) of a network.

    Args:
        network: without wrappers.
        decay: of the average, a step; the average's length is 1 / (1 - decay) steps, less at the beginning.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = network
        self.decay = decay
        self.num_updates = 0
        self._average = [tensor.clone() for tensor in self._live()]

    def _live(self) -> list[torch.Tensor]:
        # once each: nnU-Net's blocks register a convolution under two names
        tensors = {tensor.data_ptr(): tensor for tensor in self.network.state_dict().values()}
        return [tensor for tensor in tensors.values() if tensor.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's present weights in; after each step of the optimiser."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self._average, self._live(), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights of the network and their average."""
        for average, live in zip(self._average, self._live(), strict=True):
            kept = live.clone()
            live.copy_(average)
            average.copy_(kept)

    @contextmanager
    def in_network(self) -> Iterator[None]:
        """Within the block the network has the average for its weights."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @torch.no_grad()
    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on from a checkpoint, of which the network has ``network_weights`` already."""
        for average, live in zip(self._average, self._live(), strict=True):
            average.copy_(live)
        self.num_updates = checkpoint[NUM_UPDATES]
        self.network.load_state_dict(checkpoint[TRAINED_WEIGHTS])
