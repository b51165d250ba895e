"""Weights of one network in another, as far as they fit, with an account of what was loaded, what was not, and why."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

_MOST_NAMED = 5  # tensors of a kind, in a message

_WRAPPERS = ("module.", "_orig_mod.")  # of DDP and torch.compile


@dataclass
class LoadReport:
    """What became of the weights.

    Attributes:
        loaded: tensors of the network that got theirs.
        adapted: those of them that read another number of channels, as a message each.
        missing: tensors of the network that kept their values, with the reason.
        unused: tensors of the file that the network has no place for.
        num_parameters: numbers that were loaded.
    """

    loaded: list[str] = field(default_factory=list)
    adapted: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    num_parameters: int = 0

    def lines(self) -> list[str]:
        """The account, a line each kind."""
        total = len(self.loaded) + len(self.missing)
        lines = [f"loaded {len(self.loaded)} of the network's {total} tensors ({self.num_parameters:,} numbers)"]
        lines += [f"adapted: {message}" for message in self.adapted]
        reasons: dict[str, list[str]] = {}
        for name, reason in self.missing.items():
            reasons.setdefault(reason, []).append(name)
        lines += [f"not loaded, {reason}: {_listed(names)}" for reason, names in reasons.items()]
        if self.unused:
            lines.append(f"in the file, but not in the network: {_listed(self.unused)}")
        return lines


def load_matching(
    network: nn.Module, weights: Mapping[str, torch.Tensor], like: Callable[[str], str] = lambda name: name
) -> LoadReport:
    """Load what fits by name and shape; the rest of the network stays as it is.

    A first convolution that reads another number of channels than the file's gets the average over those, scaled so
    that equal channels give what they gave before; three colours are repeated for several channels, as in timm.

    Args:
        network: without wrappers.
        weights: by name; the prefixes that DDP and ``torch.compile`` add are ignored.
        like: two tensors have the same name if this makes the same of their names.
    """
    theirs = {like(_unwrapped(name)): name for name in weights}
    report = LoadReport()
    state = network.state_dict()
    # older files do not count batches, and nothing reads the count
    own = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    # nnU-Net's blocks register a convolution under two names
    first = next((tensor.data_ptr() for tensor in own.values() if tensor.ndim >= 4), None)
    used = set()
    for name, tensor in own.items():
        source = theirs.get(like(name))
        if source is None:
            report.missing[name] = "the file has no such tensor"
            continue
        used.add(source)
        values = weights[source]
        if tensor.data_ptr() == first and values.ndim == tensor.ndim and values.shape[1] != tensor.shape[1]:
            report.adapted.append(f"{name} from {values.shape[1]} to {tensor.shape[1]} channels")
            values = _with_channels(values, tensor.shape[1])
        if values.shape != tensor.shape:
            report.missing[name] = f"its shape is {tuple(tensor.shape)}, the file's {tuple(values.shape)}"
            continue
        state[name] = values.to(tensor.dtype)
        report.loaded.append(name)
        report.num_parameters += values.numel()
    report.unused = [n for n in weights if n not in used and not n.endswith("num_batches_tracked")]
    network.load_state_dict(state)
    return report


def in_order_of(names: Sequence[str], weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights under other names, one after the other: for files that name the same layers differently.

    Args:
        names: of the network that the file is of, in its order.
        weights: of the file, in its order.

    Raises:
        ValueError: another number of tensors.
    """
    names = [name for name in names if not name.endswith("num_batches_tracked")]
    values = [tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")]
    if len(names) != len(values):
        raise ValueError(f"the file holds {len(values)} tensors, the network has {len(names)}")
    return dict(zip(names, values, strict=True))


def _with_channels(values: torch.Tensor, channels: int) -> torch.Tensor:
    stored = values.shape[1]
    if stored == 3 and channels > 1:
        repeated = values.repeat(1, -(-channels // 3), *[1] * (values.ndim - 2))[:, :channels]
        return repeated * (3 / channels)
    return values.mean(1, keepdim=True).expand(-1, channels, *[-1] * (values.ndim - 2)) * (stored / channels)


def _unwrapped(name: str) -> str:
    return re.sub(f"^({'|'.join(map(re.escape, _WRAPPERS))})+", "", name)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
