"""Programs that run an exported network on the CPU: onnxruntime and OpenVINO, called alike."""

import importlib
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

Engine = Literal["onnxruntime", "openvino"]
ENGINES: tuple[Engine, ...] = ("onnxruntime", "openvino")


class Session(Protocol):
    """An opened network. Several threads may run it at once.

    Attributes:
        shapes: of the inputs and outputs, by name; the batch is free.
    """

    shapes: Mapping[str, Sequence[Any]]

    def metadata(self, key: str) -> str | None:
        """A text that the file holds beside the network."""
        ...

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """All outputs by name, for a float32 batch."""
        ...


def import_engine(engine: Engine) -> Any:
    """The module.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(engine)
    except ImportError as error:
        extra = "onnx" if engine == "onnxruntime" else "openvino"
        raise ValueError(
            f'{engine} cannot be imported ({error}); install it with: pip install "braintum[{extra}]"'
        ) from error


def open_session(file: Path, num_threads: int, engine: Engine = "onnxruntime") -> Session:
    """A network on the CPU.

    Args:
        file: ONNX.
        num_threads: that one call uses, the caller's own among them.
        engine: that runs it.

    Raises:
        ValueError: the file is damaged, or the engine is missing.
    """
    module = import_engine(engine)
    session: Any = _OnnxRuntimeSession if engine == "onnxruntime" else _OpenVinoSession
    try:
        return session(module, file, num_threads)
    except Exception as error:  # the engines' errors have no base class but this one
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{file} is damaged, or no ONNX file: {reason[0]}; export it again") from error


class _OnnxRuntimeSession:
    def __init__(self, onnxruntime: Any, file: Path, num_threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3  # warnings are of graph optimisation, which the user cannot change
        self._session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]
        values = (*self._session.get_inputs(), *self._session.get_outputs())
        self.shapes = {value.name: value.shape for value in values}
        self._input = self._session.get_inputs()[0].name

    def metadata(self, key: str) -> str | None:
        return self._session.get_modelmeta().custom_metadata_map.get(key)

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(self._outputs, self._session.run(None, {self._input: image}), strict=True))


class _OpenVinoSession:
    """Computes in bfloat16 under torch's autocast, else in float32: as the same network of torch would."""

    def __init__(self, openvino: Any, file: Path, num_threads: int) -> None:
        # the bindings fill their tables of types when the first tensor is made; two threads that do wait for ever, one
        # for the table, the other for Python's lock
        openvino.Tensor(np.zeros(1, np.float32), shared_memory=True).data.copy()
        self._core = openvino.Core()
        self._model = self._core.read_model(str(file))
        values = (*self._model.inputs, *self._model.outputs)
        self.shapes = {
            value.any_name: [None if size.is_dynamic else size.get_length() for size in value.partial_shape]
            for value in values
        }
        self._outputs = [output.any_name for output in self._model.outputs]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        streams = max(1, cores // num_threads)
        self._threads = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams * num_threads}
        self._compiled: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._requests = threading.local()  # one of each precision a thread

    def metadata(self, key: str) -> str | None:
        path = ["framework", key]  # where it keeps the metadata of an ONNX file
        return self._model.get_rt_info(path).astype(str) if self._model.has_rt_info(path) else None

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        request = self._request("bf16" if torch.is_autocast_enabled("cpu") else "f32")
        request.infer([image], share_inputs=True)
        return {name: output.data.copy() for name, output in zip(self._outputs, request.output_tensors, strict=True)}

    def _request(self, precision: str) -> Any:
        requests = self._requests.__dict__
        if precision not in requests:
            with self._lock:
                if precision not in self._compiled:
                    options = {"INFERENCE_PRECISION_HINT": precision, **self._threads}
                    self._compiled[precision] = self._core.compile_model(self._model, "CPU", options)
            requests[precision] = self._compiled[precision].create_infer_request()
        return requests[precision]
