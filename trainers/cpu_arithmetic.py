"""What a training step computes with on a CPU: bfloat16 or float32, and the order of the channels in memory.

Both are chosen by measuring: bfloat16 multiplies at least twice as fast where the processor knows it, and slower where
it is emulated. ``torch.compile`` is not among the choices: it took one to two minutes to begin, and its steps were as
long (``benchmarks/networks/training_steps.py``).
"""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from braintum.inference.prediction.precision import cpu_computes_bfloat16

_STEPS = 3


@dataclass(frozen=True)
class CpuArithmetic:
    """How a step is computed.

    Attributes:
        bfloat16: convolutions and products in bfloat16, by autocast; weights, statistics and losses stay float32.
        channels_last: 2-D feature maps with the channels of a pixel side by side.
    """

    bfloat16: bool = False
    channels_last: bool = False

    def autocast(self) -> Any:
        """Context of the forward pass."""
        return torch.autocast("cpu", dtype=torch.bfloat16) if self.bfloat16 else nullcontext()

    def prepare(self, network: nn.Module) -> nn.Module:
        """Lay the weights out; feature maps follow."""
        return network.to(memory_format=torch.channels_last) if self.channels_last else network

    def __str__(self) -> str:
        order = "channels last" if self.channels_last else "channels first"
        return f"{'bfloat16' if self.bfloat16 else 'float32'}, {order}"


def without_measuring(is_2d: bool) -> CpuArithmetic:
    """By the processor alone: the same on each run, as a seeded training needs it."""
    return CpuArithmetic(cpu_computes_bfloat16(), is_2d)


def fastest(network: nn.Module, batch_shape: Sequence[int], log: Callable[[str], None]) -> CpuArithmetic:
    """Measure a few steps of a copy of the network.

    Args:
        network: returns logits, or a list of them.
        batch_shape: (B, C, [Z,] Y, X).
        log: gets a line with what was measured.
    """
    is_2d = len(batch_shape) == 4
    candidates = [CpuArithmetic(), CpuArithmetic(bfloat16=True)] if cpu_computes_bfloat16() else [CpuArithmetic()]
    if is_2d:
        candidates += [CpuArithmetic(candidate.bfloat16, True) for candidate in candidates]
    with torch.random.fork_rng(devices=[]):
        seconds = {candidate: _step_time(copy.deepcopy(network), candidate, batch_shape) for candidate in candidates}
    log("a step takes " + ", ".join(f"{value:.2f} s ({candidate})" for candidate, value in seconds.items()))
    return min(seconds, key=lambda candidate: seconds[candidate])


def _step_time(network: nn.Module, arithmetic: CpuArithmetic, batch_shape: Sequence[int]) -> float:
    """Median of a few steps, forward and backward, after one that allocates."""
    network = arithmetic.prepare(network).train()
    images = torch.randn(*batch_shape)
    times = []
    for _ in range(_STEPS + 1):
        start = time.perf_counter()
        with arithmetic.autocast():
            output = network(images)
        outputs = output if isinstance(output, (list, tuple)) else [output]
        torch.stack([logits.float().square().mean() for logits in outputs]).sum().backward()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
