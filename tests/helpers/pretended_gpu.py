"""A GPU that is not there: tensors that claim to be on CUDA, have no memory, and count when the host waits for them.

torch's fake tensors go through its own rules: tensors on two devices do not mix, autocast chooses the types, results
whose shape depends on values are refused. Backward passes need a device, and are replaced by gradients of any value.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda", 0)
_aten: Any = torch.ops.aten


class HostWaits(TorchDispatchMode):
    """Notes each operation for which the host waits for the GPU.

    Attributes:
        waits: what the host waited for, and where.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is _aten._local_scalar_dense.default:
            if args[0].device.type == "cuda":
                self._note("a number")
            try:
                return function(*args, **kwargs)
            except DataDependentOutputException:
                return 1.0 if args[0].is_floating_point() else 1
        if function is _aten.index.Tensor and args[0].device.type == "cpu" and args[1][0].dtype == torch.bool:
            return args[0].clone()  # a mask on the host: as if it chose everything
        result = function(*args, **kwargs)
        if function is _aten._to_copy.default:
            source, target, waits = args[0].device.type, result.device.type, not kwargs.get("non_blocking", False)
            if (source, target) == ("cuda", "cpu"):
                self._note("a copy to the host")
            elif (source, target) == ("cpu", "cuda") and waits:
                self._note("a copy to the GPU")
        elif function is _aten.copy_.default and {args[0].device.type, args[1].device.type} == {"cuda", "cpu"}:
            self._note("a copy in place")
        return result

    def _note(self, what: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename][:-2]
        self.waits.append(f"{what} at {frames[-1].filename}:{frames[-1].lineno}")


def _any_gradients(loss: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """Instead of ``Tensor.backward``: a gradient for every leaf that the loss depends on."""
    assert loss.numel() == 1 and loss.device.type == "cuda"
    seen, pending = set(), [loss.grad_fn]
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            node.variable.grad = torch.zeros_like(node.variable)
        pending.extend(following for following, _ in node.next_functions)


def _any_numbers(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> np.ndarray:
    assert tensor.device.type == "cpu" and not tensor.requires_grad
    return np.ones(tuple(tensor.shape), np.dtype(str(tensor.dtype).removeprefix("torch.")))


class _GeneratorOnHost:
    """Instead of ``torch.Generator``, which needs its device."""

    def __new__(cls, device: Any = "cpu", *, make: Any = torch.Generator) -> Any:
        return make()


@contextmanager
def pretended_gpu() -> Iterator[HostWaits]:
    """While entered, tensors on CUDA can be made; yields what counts the waiting of the host."""
    waits = HostWaits()
    with (
        mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        mock.patch("torch.Generator", _GeneratorOnHost),
        mock.patch.object(torch.Tensor, "backward", _any_gradients),
        mock.patch.object(FakeTensor, "numpy", _any_numbers, create=True),
        FakeTensorMode(allow_non_fake_inputs=True),
        waits,
    ):
        yield waits
