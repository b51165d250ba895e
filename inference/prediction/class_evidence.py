"""Class evidence of windows, mirrors and folds, and its aggregation to one verdict a case."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy.special import entr
from torch import nn
from torch._dynamo import OptimizedModule

from braintum.architectures.heads.classification_head import part_probabilities, tumour_probability
from braintum.conversion.format.calibration import at_temperature
from braintum.inference.prediction.aggregation_modes import AGGREGATION_MODES, AggregationMode

WEIGHT_FLOOR = 0.01
COARSE_EDGE = 32
"""Voxels of each axis, at most, of the maps on which mirrored passes are compared."""


class ClassRecorder:
    """Stands in for a multi-task network where nnU-Net calls it, and keeps the class logits that it would not see.

    Args:
        network: called with ``with_classes=True``.
        sigmoid_segmentation: True where the segmentation heads are regions.
        region_channels: name → output channels of each part of the tumour that the classifier is to see alone.
        describe_passes: also keep what tells how far a case can be trusted: coarse maps and encoder features.

    Attributes:
        class_logits: one tensor (B, classes) a call.
        tumour_weights: one tensor (B,) a call: the highest tumour probability within the patch.
        region_class_logits: name → one tensor (B, classes) a call.
        coarse_maps: one tensor (B, [z,] y, x) a call: tumour probability, averaged to a coarse grid.
        features: one tensor (B, channels) a call, of a compiled network for the first call only: means of the encoder's
            deepest features; empty for networks without an encoder.
    """

    def __init__(
        self,
        network: Callable[..., Any],
        sigmoid_segmentation: bool,
        region_channels: Mapping[str, Sequence[int]] | None = None,
        describe_passes: bool = False,
    ) -> None:
        self._network = network
        self._sigmoid_segmentation = sigmoid_segmentation
        self._region_channels = region_channels or {}
        self._describe_passes = describe_passes
        self.class_logits: list[torch.Tensor] = []
        self.tumour_weights: list[torch.Tensor] = []
        self.region_class_logits: dict[str, list[torch.Tensor]] = {name: [] for name in self._region_channels}
        self.coarse_maps: list[torch.Tensor] = []
        self.features: list[torch.Tensor] = []

    def __call__(self, patch: torch.Tensor) -> Any:
        if self._region_channels:
            return self._classify_regions(patch)
        return self._classify(patch)

    def _classify(self, patch: torch.Tensor) -> Any:
        with self._features_noted(patch):
            segmentation, class_logits = self._network(patch, with_classes=True)
        self._note(segmentation, class_logits)
        return segmentation

    @contextmanager
    def _features_noted(self, patch: torch.Tensor) -> Iterator[None]:
        network: Any = self._network
        is_compiled = isinstance(network, OptimizedModule)
        encoder = getattr(network._orig_mod if is_compiled else network, "encoder", None)
        if not self._describe_passes or encoder is None:
            yield
        elif is_compiled:  # whose graphs know no hooks; only the first pass, which is not mirrored, counts
            if not self.features:
                self.features.append(_means(encoder(patch)))
            yield
        else:
            handle = encoder.register_forward_hook(lambda module, inputs, stages: self.features.append(_means(stages)))
            try:
                yield
            finally:
                handle.remove()

    def _note(self, segmentation: Any, class_logits: torch.Tensor) -> None:
        full_resolution = segmentation[0] if isinstance(segmentation, (list, tuple)) else segmentation
        self.class_logits.append(class_logits.float())
        probability = tumour_probability(full_resolution, self._sigmoid_segmentation)
        self.tumour_weights.append(probability.flatten(1).amax(1))
        if self._describe_passes:
            self.coarse_maps.append(_coarse(probability)[:, 0])

    def _classify_regions(self, patch: torch.Tensor) -> Any:
        """As :meth:`_classify`; the head alone runs once more a region, on what it was given."""
        head = self._network.classification_head  # type: ignore[attr-defined]
        given: list[tuple[torch.Tensor, torch.Tensor]] = []
        handle = head.register_forward_pre_hook(lambda module, inputs: given.append(inputs))
        try:
            segmentation = self._classify(patch)
        finally:
            handle.remove()
        features, logits = given[0]
        parts = part_probabilities(logits, list(self._region_channels.values()), self._sigmoid_segmentation)
        for name, part in zip(self._region_channels, parts, strict=True):
            self.region_class_logits[name].append(head.from_probability(features, part).float())
        return segmentation


@dataclass(frozen=True)
class FoldEvidence:
    """What one set of weights says of a case.

    Attributes:
        probabilities: (windows, mirrors, classes), float32; softmax of each forward pass.
        weights: (windows, mirrors), float32; the highest tumour probability that the pass predicts in its window.
        by_region: name → probabilities, shaped alike, where the classifier sees that part of the tumour only.
        agreement: of the mirrored passes about the mask, see :func:`mirror_agreement`; NaN where not known.
        features: (channels,), means of the encoder's deepest features over all windows, not mirrored; None where not
            known.
    """

    probabilities: np.ndarray
    weights: np.ndarray
    by_region: Mapping[str, np.ndarray] = field(default_factory=dict)
    agreement: float = float("nan")
    features: np.ndarray | None = None

    @staticmethod
    def from_records(records: Sequence[ClassRecorder], mirrors: Sequence[Sequence[int]]) -> "FoldEvidence":
        """Evidence from one recorder a window, each with one call a mirror and a batch of one.

        Args:
            records: of the windows.
            mirrors: axes that each call had mirrored.
        """
        weights = torch.stack([torch.cat(record.tumour_weights) for record in records])
        maps = [torch.cat(record.coarse_maps) for record in records if record.coarse_maps]
        features = [record.features[0] for record in records if record.features]
        return FoldEvidence(
            _softmax([record.class_logits for record in records]),
            weights.cpu().numpy(),
            {
                name: _softmax([record.region_class_logits[name] for record in records])
                for name in records[0].region_class_logits
            },
            mirror_agreement(torch.stack(maps), mirrors) if maps else float("nan"),
            torch.cat(features).mean(0).cpu().numpy() if features else None,
        )


def _means(stages: Sequence[torch.Tensor]) -> torch.Tensor:
    """Means of the deepest of an encoder's features, (B, channels)."""
    return stages[-1].float().flatten(2).mean(2)


def _coarse(probability: torch.Tensor) -> torch.Tensor:
    """(B, 1, [Z,] Y, X) averaged to at most :data:`COARSE_EDGE` voxels an axis."""
    pool: Any = nn.functional.adaptive_avg_pool2d if probability.ndim == 4 else nn.functional.adaptive_avg_pool3d
    return pool(probability, [min(COARSE_EDGE, edge) for edge in probability.shape[2:]])


def mirror_agreement(maps: torch.Tensor, mirrors: Sequence[Sequence[int]]) -> float:
    """Mean over all pairs of mirrors of the soft Dice of their tumour probabilities, all windows together.

    Args:
        maps: (windows, mirrors, [z,] y, x), as the passes saw them.
        mirrors: axes that each pass had mirrored, 0 the first spatial one.

    Returns:
        1 where all agree; NaN with a single mirror.
    """
    if len(mirrors) < 2:
        return float("nan")
    back = [torch.flip(maps[:, i], [1 + axis for axis in axes]) for i, axes in enumerate(mirrors)]
    sums = [float(values.sum()) for values in back]
    return float(
        np.mean(
            [
                (2 * float(torch.minimum(back[i], back[j]).sum()) + 1e-6) / (sums[i] + sums[j] + 1e-6)
                for i, j in itertools.combinations(range(len(back)), 2)
            ]
        )
    )


def _softmax(logits: Sequence[Sequence[torch.Tensor]]) -> np.ndarray:
    """Class logits of each window and mirror to (windows, mirrors, classes)."""
    return torch.softmax(torch.stack([torch.cat(list(mirrors)) for mirrors in logits]).float(), -1).cpu().numpy()


@dataclass(frozen=True)
class ClassVerdict:
    """Class probabilities of a case.

    Attributes:
        probabilities: (classes,), summing to one.
        per_fold: (folds, classes).
        fold_spread: (classes,), standard deviation over folds; NaN with one fold.
        mirror_spread: (classes,), standard deviation over mirrors, folds averaged; NaN without mirroring.
        tumour_evidence: weight of the case among those of its patient: the weights of its windows, summed over windows
            and averaged over mirrors and folds. Cases weighted by it agree as their windows together would.
        predictive_entropy: of the probabilities, in nats: 0 for one certain class, log(classes) where all are alike.
        mutual_information: the part of it that is disagreement between folds and mirrors, in nats: the entropy of their
            mean less the mean of their entropies (Houlsby et al. 2011); NaN with a single fold and no mirroring.
        per_pass: (folds, mirrors, classes), windows aggregated.
        pass_weights: (folds, mirrors), with which passes are averaged.
        by_region: name → (classes,), where the classifier sees that part of the tumour only.
        agreement: of the mirrored passes about the mask, mean over folds; NaN where not known.
        features: a fold, (channels,); None where not known.
    """

    probabilities: np.ndarray
    per_fold: np.ndarray
    fold_spread: np.ndarray
    mirror_spread: np.ndarray
    tumour_evidence: float
    predictive_entropy: float
    mutual_information: float
    per_pass: np.ndarray
    pass_weights: np.ndarray
    by_region: Mapping[str, np.ndarray] = field(default_factory=dict)
    agreement: float = float("nan")
    features: tuple[np.ndarray | None, ...] = ()

    @staticmethod
    def of(
        probabilities: np.ndarray,
        per_fold: np.ndarray,
        per_pass: np.ndarray,
        pass_weights: np.ndarray,
        by_region: Mapping[str, np.ndarray],
    ) -> "ClassVerdict":
        """A verdict with all that follows from its probabilities."""
        missing = np.full(probabilities.shape, np.nan)
        return ClassVerdict(
            probabilities=probabilities,
            per_fold=per_fold,
            fold_spread=per_fold.std(0, ddof=1) if len(per_fold) > 1 else missing,
            mirror_spread=per_pass.mean(0).std(0, ddof=1) if per_pass.shape[1] > 1 else missing,
            tumour_evidence=float(pass_weights.mean()),
            predictive_entropy=float(_entropy(probabilities)),
            mutual_information=_mutual_information(per_pass, pass_weights),
            per_pass=per_pass,
            pass_weights=pass_weights,
            by_region=by_region,
        )

    def at_temperature(self, temperature: float) -> "ClassVerdict":
        """Every probability scaled, and all that follows; see :mod:`braintum.conversion.format.calibration`."""
        whole, folds, passes = (
            at_temperature(p, temperature) for p in (self.probabilities, self.per_fold, self.per_pass)
        )
        regions = {name: at_temperature(values, temperature) for name, values in self.by_region.items()}
        scaled = ClassVerdict.of(whole, folds, passes, self.pass_weights, regions)
        return replace(scaled, agreement=self.agreement, features=self.features)


def aggregate(folds: Sequence[FoldEvidence], mode: AggregationMode = "weighted") -> ClassVerdict:
    """One verdict from all windows, mirrors and folds of a case.

    Args:
        folds: at least one.
        mode: ``weighted``: mean of the probabilities, weighted with the predicted tumour probability (floor 0.01, so a
            case without a tumour gets the plain mean); ``mean``: plain mean; ``max``: over windows the highest
            probability of each class, renormalised, then the mean over mirrors and folds.

    Raises:
        ValueError: no fold, or an unknown mode.
    """
    if not folds:
        raise ValueError("no evidence to aggregate: no fold was predicted")
    per_mirror = np.stack([_per_mirror(fold, mode) for fold in folds])  # (folds, mirrors, classes)
    mirror_weight = np.stack([_pass_weights(fold, mode).sum(0) for fold in folds])  # (folds, mirrors)
    per_fold = (per_mirror * mirror_weight[..., None]).sum(1) / mirror_weight.sum(1)[:, None]  # (folds, classes)
    fold_weight = mirror_weight.sum(1)
    probabilities = (per_fold * fold_weight[:, None]).sum(0) / fold_weight.sum()
    by_region = {
        name: aggregate(
            [replace(fold, probabilities=fold.by_region[name], by_region={}) for fold in folds], mode
        ).probabilities
        for name in folds[0].by_region
    }
    verdict = ClassVerdict.of(probabilities / probabilities.sum(), per_fold, per_mirror, mirror_weight, by_region)
    agreement = float(np.mean([fold.agreement for fold in folds]))
    return replace(verdict, agreement=agreement, features=tuple(fold.features for fold in folds))


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    """Entropy along the last axis, in nats; of values that are proportional to probabilities."""
    # not scipy.stats.entropy, whose module takes a second to import
    return entr(probabilities / probabilities.sum(axis=-1, keepdims=True)).sum(axis=-1)


def _mutual_information(per_mirror: np.ndarray, weights: np.ndarray) -> float:
    """Entropy of the weighted mean of all passes less the weighted mean of their entropies; NaN for a single pass.

    Args:
        per_mirror: (folds, mirrors, classes).
        weights: (folds, mirrors), with which passes are averaged.
    """
    if weights.size == 1:
        return float("nan")
    mean = (per_mirror * weights[..., None]).sum((0, 1)) / weights.sum()
    expected = (_entropy(per_mirror) * weights).sum() / weights.sum()
    return max(0.0, float(_entropy(mean) - expected))  # equal passes: rounding may leave -1e-17


def _pass_weights(fold: FoldEvidence, mode: AggregationMode) -> np.ndarray:
    """Weight of each forward pass, (windows, mirrors), in float64."""
    if mode == "weighted":
        return np.maximum(fold.weights.astype(np.float64), WEIGHT_FLOOR)
    if mode in ("mean", "max"):
        return np.ones(fold.weights.shape)
    raise ValueError(f"unknown aggregation {mode!r}; choose one of {', '.join(AGGREGATION_MODES)}")


def _per_mirror(fold: FoldEvidence, mode: AggregationMode) -> np.ndarray:
    """Windows of each mirror aggregated, (mirrors, classes), in float64."""
    probabilities = fold.probabilities.astype(np.float64)
    if mode == "max":
        highest = probabilities.max(0)
        return highest / highest.sum(-1, keepdims=True)
    weights = _pass_weights(fold, mode)[..., None]
    return (probabilities * weights).sum(0) / weights.sum(0)
