"""braintum_export --triton: what Triton's own format reads of it, and what the file answers to."""

from pathlib import Path

import numpy as np
import pytest

from braintum.inference.export.triton import write_triton_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
text_format = pytest.importorskip("google.protobuf.text_format")
model_config_pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")

NUMPY = {"TYPE_FP32": np.float32}
CLASS_NAMES = ("glioma", 'a "rare" one')


def write_network(file: Path, sizes: tuple[int, ...], batch: int | str = "batch", element: int = 1) -> Path:
    """A network with the inputs and outputs of an exported one: means of the image, and the image twice."""
    helper = onnx.helper
    nodes = [
        helper.make_node("Concat", ["image", "image"], ["segmentation"], axis=1),
        helper.make_node("ReduceMean", ["segmentation"], ["means"], axes=list(range(2, 2 + len(sizes))), keepdims=0),
        helper.make_node("Identity", ["means"], ["class_logits"]),
    ]
    tensors = {"image": (batch, 1, *sizes), "segmentation": (batch, 2, *sizes), "class_logits": (batch, 2)}
    image, *outputs = (helper.make_tensor_value_info(name, element, shape) for name, shape in tensors.items())
    graph = helper.make_graph(nodes, "network", [image], outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), str(file))
    return file


@pytest.mark.parametrize("sizes", [(8, 12), (4, 8, 12)])
def test_configuration_is_that_of_the_network(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    network = write_network(tmp_path / "network.onnx", sizes)
    folder = write_triton_model(tmp_path / "repository", "tumours", network, 5, CLASS_NAMES)
    files = sorted(str(file.relative_to(tmp_path / "repository")) for file in folder.rglob("*") if file.is_file())
    assert files == ["tumours/1/model.onnx", "tumours/class_names.txt", "tumours/config.pbtxt"]
    config = text_format.Parse((folder / "config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("tumours", "onnxruntime", 5)
    assert config.HasField("dynamic_batching")
    labels = {output.name: output.label_filename for output in config.output}
    assert labels == {"segmentation": "", "class_logits": "class_names.txt"}
    assert (folder / "class_names.txt").read_text().splitlines() == list(CLASS_NAMES)
    graph = onnx.load(str(folder / "1" / "model.onnx")).graph
    for described, values in ((config.input, graph.input), (config.output, graph.output)):
        assert len(described) == len(values)
        for tensor, value in zip(described, values, strict=True):
            shape = [size.dim_value for size in value.type.tensor_type.shape.dim]
            assert (tensor.name, list(tensor.dims)) == (value.name, shape[1:])
    session = onnxruntime.InferenceSession(str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, config.max_batch_size):
        feed = {
            tensor.name: np.ones((batch, *tensor.dims), NUMPY[model_config_pb2.DataType.Name(tensor.data_type)])
            for tensor in config.input
        }
        answers = session.run([output.name for output in config.output], feed)
        for output, answer in zip(config.output, answers, strict=True):
            assert answer.shape == (batch, *output.dims)
            assert answer.dtype == NUMPY[model_config_pb2.DataType.Name(output.data_type)]


@pytest.mark.parametrize(("batch", "element"), [(3, 1), ("batch", 16)])
def test_networks_that_triton_cannot_batch(tmp_path: Path, batch: int | str, element: int) -> None:
    network = write_network(tmp_path / "network.onnx", (8, 8), batch, element)
    with pytest.raises(ValueError, match=r"network.onnx: input 'image' of type .* cannot be served in batches"):
        write_triton_model(tmp_path / "repository", "tumours", network, 5, ())
    assert not (tmp_path / "repository").exists()
