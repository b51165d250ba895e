"""A repository of NVIDIA's Triton Inference Server with an exported network in it.

Layout and configuration are those of Triton's user guide (``docs/user_guide/model_repository.md`` and
``model_configuration.md`` of triton-inference-server/server): ``NAME/config.pbtxt`` and ``NAME/1/model.onnx``. Triton
serves the network alone; what comes before and after it (preprocessing, windows, mirrors, resampling) is the client's.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import onnx

from braintum.conversion.files.atomic import atomic_path
from braintum.conversion.format.cases import ClassSchema
from braintum.inference.export.onnx_model import CLASSES, OnnxNetwork
from braintum.inference.models.model_files import read_dataset_json, read_plans

VERSION = "1"
LABELS = "class_names.txt"
_TYPES = {"FLOAT": "TYPE_FP32", "FLOAT16": "TYPE_FP16", "DOUBLE": "TYPE_FP64", "INT64": "TYPE_INT64"}


def write_triton_models(repository: Path, model_folder: Path, networks: Sequence[Path]) -> list[Path]:
    """Write exported networks of a model, each under the name of its data set, model folder and fold.

    Args:
        repository: of Triton, ``tritonserver --model-repository``.
        model_folder: with ``plans.json`` and ``dataset.json``.
        networks: files of :func:`braintum.inference.export.onnx_export.export_model`. Requests that wait are joined up
            to the batch of the plans.

    Returns:
        The folders.

    Raises:
        ValueError: see :func:`write_triton_model`.
    """
    plans = read_plans(model_folder / "plans.json")
    schema = ClassSchema.from_dataset_json(read_dataset_json(model_folder / "dataset.json"))
    folders = []
    for network in networks:
        description = OnnxNetwork(network).description
        parts = (plans.dataset_name, description.trainer, plans.plans_name, description.configuration)
        name = "__".join((*parts, network.parent.name, *(["int8"] * description.fingerprint.startswith("int8"))))
        max_batch = plans.get_configuration(description.configuration).batch_size
        names = () if schema is None else schema.class_names
        folders.append(write_triton_model(repository, name, network, max_batch, names))
    return folders


def write_triton_model(repository: Path, name: str, network: Path, max_batch: int, class_names: Sequence[str]) -> Path:
    """Write one model, or replace it.

    Args:
        repository: of Triton, ``tritonserver --model-repository``.
        name: of the model.
        network: ONNX file.
        max_batch: largest batch that Triton may make of requests that wait.
        class_names: of the class logits, which Triton's classification extension answers with; may be empty.

    Returns:
        The model's folder.

    Raises:
        ValueError: the network has an input or output that Triton cannot batch, or of a type not foreseen here.
    """
    graph = onnx.load(str(network), load_external_data=False).graph
    lines = [
        f"name: {_quoted(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {max_batch}",
        *_tensors("input", graph.input, network, ()),
        *_tensors("output", graph.output, network, class_names),
        "dynamic_batching {}",
    ]
    folder = repository / name
    (folder / VERSION).mkdir(parents=True, exist_ok=True)
    with atomic_path(folder / VERSION / "model.onnx") as partial:
        shutil.copyfile(network, partial)
    if class_names:
        with atomic_path(folder / LABELS) as partial:
            partial.write_text("".join(f"{label}\n" for label in class_names), encoding="utf-8")
    with atomic_path(folder / "config.pbtxt") as partial:  # last: without it Triton leaves the folder alone
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def _tensors(
    kind: str, values: Iterable[onnx.ValueInfoProto], network: Path, class_names: Sequence[str]
) -> Iterator[str]:
    """A block for each input or output; the free batch, their first dimension, is not named in it."""
    for value in values:
        tensor = value.type.tensor_type
        sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
        element = onnx.TensorProto.DataType.Name(tensor.elem_type)
        if not sizes or sizes[0] != -1 or element not in _TYPES:
            raise ValueError(
                f"{network}: {kind} {value.name!r} of type {element} and shape {sizes} cannot be served in batches; "
                "export the model again with braintum_export"
            )
        yield f"{kind} {{"
        yield f"  name: {_quoted(value.name)}"
        yield f"  data_type: {_TYPES[element]}"
        yield f"  dims: {sizes[1:]}"
        if value.name == CLASSES and class_names:
            yield f"  label_filename: {_quoted(LABELS)}"
        yield "}"


def _quoted(text: str) -> str:
    """A string of protobuf's text format."""
    return json.dumps(text, ensure_ascii=False)
