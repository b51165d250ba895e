"""Fingerprint of a network's weights: whether two checkpoints predict the same."""

import hashlib
from collections.abc import Mapping

import torch


def weights_fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and values of a state dict.

    Of the weights and not of the file: a checkpoint that is written again, or stripped of its optimiser, stays the
    same model.

    Args:
        weights: state dict, in any order.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
