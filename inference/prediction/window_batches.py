"""Windows and mirrors of a case as single forward passes, and the sums that they add up to.

nnU-Net's sliding window (its own steps, weights and padding), cut so that passes of any windows, mirrors and cases can
share a batch.
"""

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_gaussian

from braintum.inference.prediction.class_evidence import ClassRecorder, FoldEvidence, mirror_agreement
from braintum.inference.prediction.memory_budget import is_out_of_memory


@dataclass(frozen=True)
class Pass:
    """One forward pass: a window of a case, mirrored along some axes."""

    case: "CaseInProgress"
    window: int
    mirror: int

    def patch(self) -> torch.Tensor:
        """Input of the network, (C, [Z,] Y, X)."""
        return _flip(self.case.data[self.case.windows[self.window]], self.case.mirrors[self.mirror])


def mirror_axes(allowed: Sequence[int] | None) -> list[tuple[int, ...]]:
    """Axes to flip in each pass of a window, in nnU-Net's order; axis 0 is the first spatial one."""
    axes = tuple(allowed or ())
    return [chosen for count in range(len(axes) + 1) for chosen in itertools.combinations(axes, count)]


def _flip(patch: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    return torch.flip(patch, [axis + 1 for axis in axes]) if axes else patch


class CaseInProgress:
    """A preprocessed case with what its passes have added so far.

    Args:
        predictor: nnU-Net's; says windows, mirrors, patch size and number of heads.
        name: of the case.
        data: (C, Z, Y, X) float32.
        num_folds: sets of weights that run every pass.
        device: where the sums are kept if they fit; else on the host.
    """

    def __init__(self, predictor: Any, name: str, data: np.ndarray, num_folds: int, device: torch.device) -> None:
        self.name = name
        patch_size = tuple(predictor.configuration_manager.patch_size)
        padded, self._unpadded = pad_nd_image(
            torch.from_numpy(data), patch_size, "constant", {"value": 0}, return_slicer=True
        )
        windows = predictor._internal_get_sliding_window_slicers(padded.shape[1:])
        self.windows: list[tuple] = sorted(windows, key=lambda window: _from_centre(window, padded.shape))
        self.mirrors = mirror_axes(predictor.allowed_mirroring_axes if predictor.use_mirroring else None)
        self._num_folds = num_folds
        num_heads = predictor.label_manager.num_segmentation_heads
        try:
            self.data = padded.to(device)
            self._sums = torch.zeros((num_heads, *padded.shape[1:]), device=device)
        except (RuntimeError, MemoryError) as error:
            if device.type == "cpu" or not is_out_of_memory(error):
                raise
            self.data = padded
            self._sums = torch.zeros((num_heads, *padded.shape[1:]))
        self._gaussian: torch.Tensor | None = None
        if predictor.use_gaussian and len(self.windows) > 1:  # where no windows meet, all weights cancel
            self._gaussian = compute_gaussian(
                patch_size, sigma_scale=1.0 / 8, value_scaling_factor=10, device=self._sums.device
            ).float()
        self._class_logits: dict[tuple[int, int, int], torch.Tensor] = {}  # fold, window, mirror
        self._tumour_weights: dict[tuple[int, int, int], torch.Tensor] = {}
        self._region_logits: dict[str, dict[tuple[int, int, int], torch.Tensor]] = {}
        self._coarse_maps: dict[tuple[int, int, int], torch.Tensor] = {}
        self._features: dict[tuple[int, int, int], torch.Tensor] = {}
        self._open = num_folds * len(self.windows) * len(self.mirrors)
        self._lock = threading.Lock()

    def passes(self) -> Iterator[Pass]:
        """All passes, the windows in the middle of the image first and those of one window together."""
        for window in range(len(self.windows)):
            for mirror in range(len(self.mirrors)):
                yield Pass(self, window, mirror)

    @property
    def complete(self) -> bool:
        """Whether all passes of all folds are in."""
        return self._open == 0

    def contribution(self, logits: torch.Tensor) -> torch.Tensor:
        """What a window's logits, summed over mirrors, add to the sums."""
        logits = logits.to(self._sums.device)
        return logits if self._gaussian is None else logits * self._gaussian

    def add(self, window: int, count: int, contribution: torch.Tensor) -> None:
        """Add ``count`` mirrors of a window. Allocates nothing, so that a pass is counted once or not at all."""
        with self._lock:
            target = self._sums[self.windows[window]]
            target += contribution
            self._open -= count

    def note_classes(self, fold: int, item: Pass, recorder: ClassRecorder, index: int) -> None:
        """Keep what a pass, number ``index`` of its batch, says of the class."""
        key = (fold, item.window, item.mirror)
        self._class_logits[key] = recorder.class_logits[0][index]
        self._tumour_weights[key] = recorder.tumour_weights[0][index]
        for name, logits in recorder.region_class_logits.items():
            self._region_logits.setdefault(name, {})[key] = logits[0][index]
        for kept, noted in ((self._coarse_maps, recorder.coarse_maps), (self._features, recorder.features)):
            if noted:
                kept[key] = noted[0][index]

    def logits(self) -> np.ndarray:
        """Segmentation logits (heads, Z, Y, X) in float32, averaged over windows, mirrors and folds."""
        per_window = float(self._num_folds * len(self.mirrors))
        if len(self.windows) == 1:
            self._sums /= per_window
        else:
            weights = torch.zeros(self._sums.shape[1:], device=self._sums.device)
            for window in self.windows:
                weights[window[1:]] += per_window if self._gaussian is None else per_window * self._gaussian
            self._sums /= weights
        unpadded = (slice(None), *self._unpadded[1:])
        return self._sums[unpadded].cpu().numpy()

    def evidence(self) -> list[FoldEvidence]:
        """Class evidence of each fold; none for a network without a classification head."""
        if not self._class_logits:
            return []
        # folds together: the host waits for the device once a table
        probabilities = self._probabilities(self._class_logits)
        weights = self._table(self._tumour_weights).cpu().numpy()
        by_region = {name: self._probabilities(logits) for name, logits in self._region_logits.items()}
        maps = self._table(self._coarse_maps).cpu() if self._coarse_maps else None
        features = self._table(self._features)[:, :, 0].mean(1).cpu().numpy() if self._features else None
        return [
            FoldEvidence(
                probabilities[fold],
                weights[fold],
                {name: values[fold] for name, values in by_region.items()},
                float("nan") if maps is None else mirror_agreement(maps[fold], self.mirrors),
                None if features is None else features[fold],
            )
            for fold in range(self._num_folds)
        ]

    def _table(self, values: dict[tuple[int, int, int], torch.Tensor]) -> torch.Tensor:
        """Values to (folds, windows, mirrors, ...), float32."""
        shape = self._num_folds, len(self.windows), len(self.mirrors)
        folds, windows, mirrors = map(range, shape)
        rows = [values[key] for key in itertools.product(folds, windows, mirrors)]
        return torch.stack(rows).unflatten(0, shape).float()

    def _probabilities(self, logits: dict[tuple[int, int, int], torch.Tensor]) -> np.ndarray:
        return torch.softmax(self._table(logits), -1).cpu().numpy()


def _from_centre(window: Sequence[Any], shape: Sequence[int]) -> float:
    """Squared distance between the centres of a window and of the padded image, in voxels."""
    distance = 0.0
    for part, size in zip(window[1:], shape[1:], strict=True):
        centre = (part.start + part.stop) / 2 if isinstance(part, slice) else part + 0.5
        distance += (centre - size / 2) ** 2
    return distance


def batch(passes: Sequence[Pass], device: torch.device) -> torch.Tensor:
    """Input of the network for several passes, (B, C, [Z,] Y, X)."""
    return torch.stack([item.patch() for item in passes]).to(device)


def runs_of_windows(passes: Sequence[Pass]) -> Iterator[tuple[int, int]]:
    """Start and end of each run of passes that belong to one window."""
    start = 0
    for _, run in itertools.groupby(passes, key=lambda item: (id(item.case), item.window)):
        end = start + len(list(run))
        yield start, end
        start = end


def summed_over_mirrors(passes: Sequence[Pass], logits: torch.Tensor) -> torch.Tensor:
    """Logits of one window's passes, mirrored back and summed in float32.

    Args:
        passes: of one window.
        logits: (B, heads, [Z,] Y, X).

    Returns:
        (heads, [Z,] Y, X).
    """
    total = torch.zeros_like(logits[0], dtype=torch.float32)
    for item, prediction in zip(passes, logits, strict=True):
        total += _flip(prediction, item.case.mirrors[item.mirror])
    return total
