"""The device that a command was asked to use, and what the process needs to be fast on it."""

import os

import torch

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""torch's variable: ask Linux for huge pages where a tensor is large. Read once, when the first tensor is made."""


def usable_device(wanted: str | torch.device | None = None) -> torch.device:
    """A device that is there.

    Args:
        wanted: such as ``cuda`` or ``cpu``; None for CUDA where there is it, else the CPU.

    Raises:
        ValueError: there is no such device.
    """
    if wanted is None:
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{wanted!r} is no device; choose cuda, cpu or mps") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError('there is no CUDA device; add -device cpu, or in Python device="cpu"')
    return device


def prepare_device(name: str) -> torch.device:
    """The device of this name, once for a process and before it makes a tensor.

    On the CPU, torch gets all cores, and huge pages unless the environment says otherwise: for the feature maps of a
    3-D network, being given their memory page by page takes longer than filling it.

    Args:
        name: ``cuda``, ``cpu`` or ``mps``.

    Raises:
        ValueError: there is no CUDA device.
    """
    device = usable_device(name)
    if name == "cpu":
        os.environ.setdefault(HUGE_PAGES, "1")
    torch.set_num_threads((os.cpu_count() or 1) if name == "cpu" else 1)
    return device
