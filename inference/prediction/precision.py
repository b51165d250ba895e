"""Whether bfloat16 may replace float32 on this CPU with this model: both are run on the first windows and compared."""

import logging
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

Precision = Literal["auto", "float32", "bfloat16"]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class AgreementLimits:
    """What bfloat16 has to reach against float32."""

    mean_dice: float = 0.999  # of all labels that either of them finds in a window; 95 % sure to be reached
    equal_voxels: float = 0.999  # share of all voxels of the windows
    class_difference: float = 0.02  # largest difference of any class probability


LIMITS = AgreementLimits()
_ONE_SIDED_95 = 1.645  # standard errors


def cpu_computes_bfloat16() -> bool:
    """Whether this CPU multiplies in bfloat16 itself; others emulate it, slowly."""
    try:
        capabilities = torch.cpu.get_capabilities()  # torch 2.10 and later
    except AttributeError:
        # the flags of the processor, as Linux lists them
        try:
            with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as stream:
                flags = next((set(line.split()) for line in stream if line.startswith("flags")), set())
        except OSError:
            return False
        return bool(flags & {"avx512_bf16", "amx_bf16"})
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def found_labels(logits: torch.Tensor, has_regions: bool) -> torch.Tensor:
    """Foreground that logits predict: (labels, ...), bool.

    Args:
        logits: (heads, ...).
        has_regions: heads are regions, which overlap; else labels, the first of them the background.
    """
    if has_regions:
        return logits > 0
    winner = logits.argmax(0)
    return torch.stack([winner == label for label in range(1, logits.shape[0])])


class PrecisionTrial:
    """Gathers comparisons of windows until it can decide.

    Args:
        windows: with foreground in them, to compare.
        most_windows: to look at altogether; bfloat16 is refused where too few of them show foreground.
        has_regions: see :func:`found_labels`.
    """

    def __init__(self, windows: int, most_windows: int, has_regions: bool) -> None:
        self._windows = windows
        self._most_windows = most_windows
        self._has_regions = has_regions
        self._seen = 0
        self._with_foreground = 0
        self._dice: list[float] = []
        self._equal: list[float] = []
        self._class_difference = 0.0
        self.accepted: bool | None = None

    def compare(
        self,
        logits: torch.Tensor,
        candidate: torch.Tensor,
        classes: torch.Tensor | None = None,
        candidate_classes: torch.Tensor | None = None,
    ) -> None:
        """Note one window, and decide if it was the last one needed.

        Args:
            logits: (heads, ...) of float32, summed or averaged over mirrors.
            candidate: the same of bfloat16.
            classes: (classes,), probabilities; None for a network without a classification head.
            candidate_classes: the same of bfloat16.
        """
        if self.accepted is not None:
            return
        expected, found = (found_labels(values, self._has_regions).flatten(1) for values in (logits, candidate))
        both, either = (expected & found).sum(1), expected.sum(1) + found.sum(1)
        self._dice += [2 * float(b) / float(e) for b, e in zip(both, either, strict=True) if e > 0]
        self._equal.append(float((expected == found).all(0).float().mean()))
        if classes is not None and candidate_classes is not None:
            self._class_difference = max(self._class_difference, float((classes - candidate_classes).abs().max()))
        self._seen += 1
        self._with_foreground += bool(either.any())
        if self._with_foreground >= self._windows or self._seen >= self._most_windows:
            self._decide()

    def _decide(self) -> None:
        enough = self._with_foreground >= self._windows
        dice = float(np.mean(self._dice)) if self._dice else float("nan")
        if len(self._dice) > 1:  # a few windows may agree better than the rest will
            dice -= _ONE_SIDED_95 * float(np.std(self._dice, ddof=1)) / len(self._dice) ** 0.5
        equal = float(np.mean(self._equal))
        self.accepted = (
            enough
            and dice >= LIMITS.mean_dice
            and equal >= LIMITS.equal_voxels
            and self._class_difference <= LIMITS.class_difference
        )
        if not enough:
            _LOGGER.info(
                "float32 it is: the first %d windows show too little foreground to verify bfloat16", self._seen
            )
            return
        _LOGGER.info(
            "%s it is: against float32, the first %d windows of bfloat16 have Dice of at least %.5f, %.5f of the "
            "voxels equal, class probabilities within %.4f (wanted: %.5f, %.5f, %.4f)",
            "bfloat16" if self.accepted else "float32",
            *(self._seen, dice, equal, self._class_difference),
            *(LIMITS.mean_dice, LIMITS.equal_voxels, LIMITS.class_difference),
        )
