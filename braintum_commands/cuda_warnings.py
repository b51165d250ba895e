"""What other libraries say of CUDA where there is none."""

import shutil
import warnings
from pathlib import Path

__all__ = ["hide_cuda_warnings"]

_DEVICES = ("nvidia*", "nvhost*", "kfd", "dxg")  # of NVIDIA, Jetson, ROCm and WSL


def hide_cuda_warnings() -> None:
    """Ignore warnings that name CUDA on a machine without a graphics processor, where they tell nothing.

    Where there is one they may be the only word of a driver that is too old.
    """
    if shutil.which("nvidia-smi") is None and not any(any(Path("/dev").glob(name)) for name in _DEVICES):
        warnings.filterwarnings("ignore", message=r"(?is).*\b(cuda|nvidia|pin_memory)")
