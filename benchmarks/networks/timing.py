"""Times of steps that take turns, and the memory of one."""

import time
from collections.abc import Callable, Mapping

import torch
from torch.profiler import ProfilerActivity, profile


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


def peak_on_cpu(step: Callable[[], object]) -> int:
    """Bytes that the CPU's allocator holds at most while a step runs, beyond what it held before; from its events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    held = peak = 0
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def synchronise(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
