"""Networks ready for bulk prediction: one a fold in memory at once, and copies that share their weights."""

import copy
from typing import Any

import torch
from torch import nn
from torch._dynamo import OptimizedModule
from torch.nn import functional
from torch.nn.utils import convert_conv2d_weight_memory_format, convert_conv3d_weight_memory_format

_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def networks_of_folds(predictor: Any) -> list[nn.Module]:
    """A network with the weights of each fold, on the predictor's device, in evaluation mode.

    On the CPU instance normalisation is computed as a group normalisation with a channel a group, and convolutions keep
    the channels of a voxel together in memory (channels-last): the same to rounding, and faster there, where torch
    repeats and reshapes for the former and oneDNN would bring every tensor into an order of its own.

    Args:
        predictor: nnU-Net's, initialised. Its own network stays as it is.
    """
    original = predictor.network
    if isinstance(original, OptimizedModule):
        original = original._orig_mod
    networks = []
    for weights in predictor.list_of_parameters:
        network = copy.deepcopy(original)
        network.load_state_dict(weights)
        if predictor.device.type == "cpu":
            use_group_normalisation(network)
            use_channels_last(network)
        networks.append(network.to(predictor.device).eval())
    return networks


def use_group_normalisation(network: nn.Module) -> None:
    """Replace instance norms of the network by equal group norms that share their weights."""
    replacements: dict[int, nn.Module] = {}
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _INSTANCE_NORMS) and not child.track_running_stats:
                # a module may be registered at several places: all of them get the same replacement
                replacement = replacements.setdefault(id(child), _group_norm(child))
                setattr(module, name, replacement)


class _ChannelNorm(nn.GroupNorm):
    """Normalises each channel of each image: a group norm, and for one image in bfloat16 the faster batch norm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised, the shape of ``x``, (B, C, ...)."""
        if len(x) == 1 and x.dtype is torch.bfloat16:
            return functional.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)
        return super().forward(x)


def _group_norm(norm: Any) -> nn.GroupNorm:
    group_norm = _ChannelNorm(norm.num_features, norm.num_features, norm.eps, norm.affine)
    if norm.affine:
        group_norm.weight, group_norm.bias = norm.weight, norm.bias
    return group_norm


def use_channels_last(network: nn.Module) -> None:
    """Store the weights of convolutions, and no others, channels-last, which their outputs take over."""
    if torch.backends.mkldnn.is_available():
        convert_conv2d_weight_memory_format(network, torch.channels_last)
        convert_conv3d_weight_memory_format(network, torch.channels_last_3d)


def shared_copy(network: nn.Module) -> nn.Module:
    """A copy whose weights are the original's: for another thread, where hooks and buffers must not meet."""
    weights: list[torch.Tensor] = [*network.parameters(), *network.buffers()]
    return copy.deepcopy(network, {id(tensor): tensor for tensor in weights})
