"""Adaptive masked attention: local windows and the highest-scoring tokens, gated by one soft mask a head.

Paper 000 (BrainTumNet, https://doi.org/10.3389/fonc.2025.1585891), section 2.2: a light MLP reads low-level and
high-level features and gives each attention head a mask with values between 0 and 1; attention is computed in local
windows and, sparsely, over the whole grid; learnable weights mix the two. The paper gives no equations. Settled here,
for head h, query i and mask m:

- masked attention is Σ_j softmax_j(q_i · k_j / √d) m_j v_j. The mask multiplies the values: token j takes part to the
  degree m_j, and a query that finds only masked tokens receives nothing. So the class and segmentation losses reach the
  MLP, although choosing tokens is not differentiable. Adding log m_j to the logits would do the same up to a
  normalisation, but its gradient needs the whole attention matrix, which fused attention never forms.
- the global branch attends to the k tokens with the highest m of that head, k = min(N, ``num_global_tokens``), the same
  for any number of tokens N. Time and memory are O(N · k); a fraction of N would be quadratic again.
- both branches share queries, keys and values; the local branch's share of their mixture is, head by head, the sigmoid
  of a learnable number and a learnable linear function of the mean token, so that it follows the input. On a grid
  within one window and of at most k tokens both are the same dense attention.

The feed-forward network that follows is in :mod:`braintum.architectures.blocks.bt_block`.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from braintum.architectures.blocks.modality_masks import ModalityMaskNetwork, mask_network

_MANY_TOKENS = 1024
"""From so many on memory counts for more than time: most is computed again in the backward pass, and kept by none."""


class AdaptiveMaskedAttention(nn.Module):
    """Attention among the tokens of a grid, in 2-D and 3-D.

    Args:
        features: of a token, divisible by ``num_heads``.
        low_level_features: of the low-level features that the masks also depend on.
        num_heads: attention heads, each with its own mask.
        window_size: edges of a local window, one an axis.
        num_global_tokens: tokens that each head of the global branch attends to.
        mask_features: width of the MLP that gives the masks.
        num_modalities: branches of that MLP, see :mod:`braintum.architectures.blocks.modality_masks`; the last of the
            low-level features are those of the modalities. 0: one MLP for all.

    Raises:
        ValueError: ``features`` is not divisible by ``num_heads``.
    """

    def __init__(
        self,
        features: int,
        low_level_features: int,
        num_heads: int,
        window_size: Sequence[int],
        num_global_tokens: int = 256,
        mask_features: int = 32,
        num_modalities: int = 0,
    ) -> None:
        super().__init__()
        if features % num_heads:
            raise ValueError(f"{features} features do not divide into {num_heads} heads; take a multiple of the heads")
        self.num_heads = num_heads
        self.window_size = tuple(window_size)
        self.num_global_tokens = num_global_tokens
        read = features + low_level_features
        self.mask: nn.Module
        if num_modalities:
            self.mask = ModalityMaskNetwork(read, mask_features, num_heads, num_modalities)
        else:
            self.mask = mask_network(read, mask_features, num_heads)
        self.queries_keys_values = nn.Linear(features, 3 * features)
        self.mixture = nn.Parameter(torch.zeros(num_heads))  # the local branch's share, before sigmoid
        self.mixture_of_input = nn.Parameter(torch.zeros(num_heads, features))  # what the mean token adds to it
        self.project = nn.Linear(features, features)

    def forward(self, tokens: torch.Tensor, low_level: torch.Tensor) -> torch.Tensor:
        """Attend.

        Args:
            tokens: (B, [Z,] Y, X, features), high-level features; any grid size.
            low_level: (B, [Z,] Y, X, low_level_features), on the same grid.

        Returns:
            (B, [Z,] Y, X, features).
        """
        at_once = prod(tokens.shape[1:-1]) < _MANY_TOKENS or not torch.is_grad_enabled()
        masks = self.masks(tokens, low_level) if at_once else _recomputed(self.masks, tokens, low_level)
        shape = (*tokens.shape[:-1], 3, self.num_heads, tokens.shape[-1] // self.num_heads)
        queries, keys, values = self.queries_keys_values(tokens).reshape(shape).unbind(-3)  # (B, *grid, heads, d)
        share = self.local_share(tokens)
        if at_once:
            return self.project(self.attend(queries, keys, values, masks, share).flatten(-2))
        # one head at a time: windows and chosen tokens are copies, for all heads more than dense attention takes
        parts = (queries, keys, values, masks.unsqueeze(-1), share)
        of_heads = zip(*(part.split(1, -2) for part in parts), strict=True)
        attended = [_recomputed(self.attend, q, k, v, mask.squeeze(-1), local) for q, k, v, mask, local in of_heads]
        return self.project(torch.cat(attended, -2).flatten(-2))

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        masks: torch.Tensor,
        local_share: torch.Tensor,
    ) -> torch.Tensor:
        """Both branches and their mixture, of any of the heads: (B, [Z,] Y, X, heads, d), ``masks`` without d."""
        values = values * masks.unsqueeze(-1).to(values.dtype)
        nearby = self.local_attention(queries, keys, values)
        anywhere = self.global_attention(queries, keys, values, masks)
        return torch.lerp(anywhere, nearby, local_share.to(nearby.dtype).expand_as(nearby))

    def local_share(self, tokens: torch.Tensor) -> torch.Tensor:
        """The local branch's share (B, [1,] 1, 1, heads, 1) for tokens (B, [Z,] Y, X, features)."""
        axes = tuple(range(1, tokens.ndim - 1))
        of_input = functional.linear(tokens.mean(axes, keepdim=True), self.mixture_of_input.to(tokens.dtype))
        return torch.sigmoid(self.mixture + of_input).unsqueeze(-1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        # in models of version 0.1 the share is the same for all inputs
        state_dict.setdefault(f"{prefix}mixture_of_input", torch.zeros_like(self.mixture_of_input))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def masks(self, tokens: torch.Tensor, low_level: torch.Tensor) -> torch.Tensor:
        """Soft masks (B, [Z,] Y, X, heads) in (0, 1), in float32 also under autocast, where bfloat16 would reach 1."""
        return torch.sigmoid(self.mask(torch.cat((tokens, low_level), -1)).float())

    def local_attention(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Attention within windows that do not overlap; the last of an axis may be smaller than the others.

        All arguments and the result are (B, [Z,] Y, X, heads, d).
        """
        batch, *grid, heads, _ = queries.shape
        window = [min(edge, size) for edge, size in zip(self.window_size, grid, strict=True)]
        padded = [-(-size // edge) * edge for edge, size in zip(window, grid, strict=True)]
        is_token = None
        if padded != grid:
            inside = _pad(torch.ones((1, *grid, 1, 1), dtype=torch.bool, device=queries.device), padded)
            is_token = _to_windows(inside, window)  # (windows, 1, w, 1)
            is_token = is_token.transpose(2, 3).repeat(batch, 1, 1, 1)  # (B * windows, 1, 1, w)
        queries, keys, values = (_to_windows(_pad(part, padded), window) for part in (queries, keys, values))
        attended = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=is_token)
        attended = _from_windows(attended, batch, padded, window)  # (B, *padded, heads, d)
        for axis, size in enumerate(grid, start=1):
            attended = attended.narrow(axis, 0, size)
        return attended

    def global_attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, masks: torch.Tensor
    ) -> torch.Tensor:
        """Attention of all tokens to the ones that score highest, chosen head by head.

        ``masks`` is (B, [Z,] Y, X, heads); the other arguments and the result are (B, [Z,] Y, X, heads, d).
        """
        queries, keys, values = (part.flatten(1, -3).transpose(1, 2) for part in (queries, keys, values))
        scores = masks.flatten(1, -2).transpose(1, 2)  # (B, heads, N)
        if scores.shape[-1] > self.num_global_tokens:
            chosen = scores.topk(self.num_global_tokens, sorted=False).indices.unsqueeze(-1)  # (B, heads, k, 1)
            chosen = chosen.expand(-1, -1, -1, keys.shape[-1])
            keys, values = keys.gather(2, chosen), values.gather(2, chosen)  # (B, heads, k, d)
        attended = functional.scaled_dot_product_attention(queries, keys, values)  # (B, heads, N, d)
        return attended.transpose(1, 2).reshape(*masks.shape, -1)


def _recomputed(function: Callable[..., torch.Tensor], *arguments: torch.Tensor) -> torch.Tensor:
    """A function's result, whose backward pass computes it again instead of keeping what is within."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


def attentions_of(network: nn.Module) -> dict[str, AdaptiveMaskedAttention]:
    """All of a network, by their names in it, in the order in which they are registered."""
    return {name: part for name, part in network.named_modules() if isinstance(part, AdaptiveMaskedAttention)}


def _pad(x: torch.Tensor, grid: Sequence[int]) -> torch.Tensor:
    """Zeros after the end of each grid axis of (B, *grid, heads, d)."""
    missing = [target - size for target, size in zip(grid, x.shape[1:-2], strict=True)]
    if not any(missing):
        return x
    padding = [0, 0, 0, 0]  # torch counts from the last axis
    for amount in reversed(missing):
        padding += [0, amount]
    return functional.pad(x, padding)


def _to_windows(x: torch.Tensor, window: Sequence[int]) -> torch.Tensor:
    """(B, *grid, heads, d) to (B * windows, heads, w, d)."""
    batch, *grid, heads, features = x.shape
    axes = len(grid)
    split = [part for size, edge in zip(grid, window, strict=True) for part in (size // edge, edge)]
    x = x.reshape(batch, *split, heads, features)
    counts, edges = range(1, 2 * axes, 2), range(2, 2 * axes + 1, 2)
    x = x.permute(0, *counts, 2 * axes + 1, *edges, 2 * axes + 2)
    return x.reshape(-1, heads, prod(window), features)


def _from_windows(x: torch.Tensor, batch: int, grid: Sequence[int], window: Sequence[int]) -> torch.Tensor:
    """(B * windows, heads, w, d) to (B, *grid, heads, d)."""
    axes = len(grid)
    heads, features = x.shape[1], x.shape[3]
    x = x.reshape(batch, *(size // edge for size, edge in zip(grid, window, strict=True)), heads, *window, features)
    interleaved = [axis for i in range(axes) for axis in (1 + i, axes + 2 + i)]
    x = x.permute(0, *interleaved, axes + 1, 2 * axes + 2)
    return x.reshape(batch, *grid, heads, features)
