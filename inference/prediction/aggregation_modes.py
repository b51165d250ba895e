"""How class evidence of windows may be aggregated; apart, because a command's help needs no torch."""

from typing import Literal

AggregationMode = Literal["weighted", "mean", "max"]
AGGREGATION_MODES: tuple[AggregationMode, ...] = ("weighted", "mean", "max")
