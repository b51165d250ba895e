"""Times of steps that take turns."""

import time
from collections.abc import Callable, Mapping

import torch


def times_in_turns(
    steps: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each repeat of each step; they take turns, in an order that changes, after one to warm up."""
    times: dict[str, list[float]] = {label: [] for label in steps}
    for repeat in range(-1, repeats):
        for label in list(steps) if repeat % 2 else list(reversed(steps)):
            synchronise(device)
            started = time.perf_counter()
            steps[label]()
            synchronise(device)
            if repeat >= 0:
                times[label].append(time.perf_counter() - started)
    return times


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
