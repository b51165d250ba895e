"""Exported networks: ONNX files that other engines run on the CPU where otherwise torch would run a checkpoint.

``fold_X/checkpoint_final.onnx`` lies beside ``fold_X/checkpoint_final.pth``, and a small JSON within it says what it
was made from. See :mod:`braintum.inference.export.onnx_export` for how it is made.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from braintum.inference.export.sessions import Engine, open_session

INPUT = "image"
SEGMENTATION = "segmentation"
CLASSES = "class_logits"
CLASSES_BY_REGION = "class_logits_by_region"
METADATA_KEY = "braintum"
FORMAT = 1


@dataclass(frozen=True)
class OnnxDescription:
    """What prediction needs to know of an exported network beyond plans and ``dataset.json``.

    Attributes:
        trainer: that trained it.
        configuration: of the plans.
        fingerprint: of its weights, see :func:`braintum.architectures.weights_fingerprint.weights_fingerprint`.
        mirroring_axes: that it was trained with, 0 for the first spatial one; None for none.
        regions: parts of the tumour that its classification head is shown alone, in order.
        reads_segmentation: whether its classification head can be shown a part at all.
        feature_map_elements: nnU-Net's estimate for a patch, for the memory of a batch.
        patch_size: spatial size of its input.
        braintum: version that exported it.
        format: of this description.
    """

    trainer: str
    configuration: str
    fingerprint: str
    mirroring_axes: tuple[int, ...] | None
    regions: tuple[str, ...]
    reads_segmentation: bool
    feature_map_elements: int
    patch_size: tuple[int, ...]
    braintum: str
    format: int = FORMAT

    def to_json(self) -> str:
        """For the metadata of the ONNX file."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str, file: Path) -> "OnnxDescription":
        """What :meth:`to_json` wrote.

        Raises:
            ValueError: it is damaged, or of another format.
        """
        try:
            content = json.loads(text)
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']} instead of {FORMAT}")
            content = {field.name: content[field.name] for field in fields(OnnxDescription)}
            axes = content["mirroring_axes"]
            content["mirroring_axes"] = None if axes is None else tuple(int(axis) for axis in axes)
            content["regions"] = tuple(str(name) for name in content["regions"])
            content["patch_size"] = tuple(int(size) for size in content["patch_size"])
            content["feature_map_elements"] = int(content["feature_map_elements"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} was exported by another version of braintum ({error}); export it again with braintum_export"
            ) from error
        return OnnxDescription(**content)


def onnx_name(checkpoint: str) -> str:
    """Name of the exported file beside a checkpoint."""
    return str(Path(checkpoint).with_suffix(".onnx"))


class OnnxNetwork(nn.Module):
    """Stands in for a network of torch where nnU-Net calls it. One session serves several threads.

    Args:
        file: of :func:`braintum.inference.export.onnx_export.export_network`.
        num_threads: see :func:`braintum.inference.export.sessions.open_session`.
        engine: that runs it.

    Attributes:
        description: of the export.
        num_channels: of the input.
        num_heads: of the segmentation.
        num_classes: tumour types; None without a classification head.

    Raises:
        ValueError: the file is damaged, or was not exported by braintum.
    """

    def __init__(self, file: Path, num_threads: int = 1, engine: Engine = "onnxruntime") -> None:
        super().__init__()
        self.file = file
        self.num_threads = num_threads
        self.engine = engine
        self._session = open_session(file, num_threads, engine)
        text = self._session.metadata(METADATA_KEY)
        if text is None:
            raise ValueError(f"{file} was not exported by braintum; export the model with braintum_export")
        self.description = OnnxDescription.from_json(text, file)
        shapes = self._session.shapes
        self.num_channels = int(shapes[INPUT][1])
        self.num_heads = int(shapes[SEGMENTATION][1])
        self.num_classes = int(shapes[CLASSES][1]) if CLASSES in shapes else None
        if self.num_classes is not None:  # what predictors ask of a network's head
            self.classification_head: Any = SimpleNamespace(reads_segmentation=self.description.reads_segmentation)

    def __deepcopy__(self, memo: dict) -> "OnnxNetwork":
        return self  # sessions keep nothing between calls

    def with_threads(self, num_threads: int) -> "OnnxNetwork":
        """This network, or one on the same file, whose calls use so many threads."""
        return self if num_threads == self.num_threads else OnnxNetwork(self.file, num_threads, self.engine)

    def run(self, patch: torch.Tensor) -> dict[str, torch.Tensor]:
        """All outputs by name: segmentation logits (B, heads, [Z,] Y, X); class logits (B, classes), and those by
        region (B, regions, classes), where there are any.

        Args:
            patch: (B, C, [Z,] Y, X), float32, on the CPU.

        Raises:
            MemoryError: the batch does not fit into memory.
            RuntimeError: it has another shape than the network takes, or the engine fails.
        """
        try:
            outputs = self._session.run(patch.numpy())
        except Exception as error:  # see open_session
            if "allocate memory" in str(error).lower() or "bad_alloc" in str(error).lower():
                raise MemoryError(str(error)) from error
            raise RuntimeError(f"{self.file}: {error}") from error
        return {name: torch.from_numpy(output) for name, output in outputs.items()}

    def forward(self, x: torch.Tensor, with_classes: bool = False) -> Any:
        """As the networks of :mod:`braintum.architectures`."""
        outputs = self.run(x)
        return (outputs[SEGMENTATION], outputs[CLASSES]) if with_classes else outputs[SEGMENTATION]

    def compute_conv_feature_map_size(self, input_size: Sequence[int]) -> int:
        """nnU-Net's estimate for a patch of ``input_size``."""
        per_voxel = self.description.feature_map_elements / math.prod(self.description.patch_size)
        return round(per_voxel * math.prod(input_size))
