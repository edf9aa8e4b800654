"""Logits -> the next token, without state: the draw depends on (seed, position) and on this row of logits alone.

So the same request samples the same tokens in any batch, on any worker, before or after a migration. The uniform number
comes from a counter-based hash (SplitMix64 finalizer, Steele et al. 2014); the token is the inverse of the cumulative
distribution at it. top_k and top_p keep the most likely tokens (ties: lower token id first), then probabilities are
scaled to one. Shapes: R = rows, V = vocabulary, N = kept tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.types import SamplingParams

_MASK64 = (1 << 64) - 1
#: A nucleus is looked for among this many tokens before the whole vocabulary is sorted.
_FIRST_LOOK = 256


def sample(logits_RV: Tensor, params: Sequence[SamplingParams], positions: Sequence[int]) -> list[int]:
    """One token per row; `positions[i]` is the position that row i's token will have."""
    greedy = logits_RV.argmax(dim=-1).tolist()
    return [
        int(greedy[i]) if p.temperature == 0.0 else _draw(logits_RV[i], p, uniform(p.seed, positions[i]))
        for i, p in enumerate(params)
    ]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that only (seed, position) decide, with 53 random bits."""
    return (_mix(_mix(seed & _MASK64) ^ (position & _MASK64)) >> 11) * 2.0**-53


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def _draw(logits_V: Tensor, params: SamplingParams, u: float) -> int:
    probabilities_V = torch.softmax(logits_V.double() / params.temperature, dim=-1)
    if params.top_k == 0 and params.top_p == 1.0:
        return _invert(probabilities_V, u)
    kept_N, ids_N = _most_likely(probabilities_V, params.top_k, params.top_p)
    return int(ids_N[_invert(kept_N, u)])


def _invert(weights_N: Tensor, u: float) -> int:
    """Index whose stretch of the cumulative weights holds u * total. Never one of weight zero."""
    cumulative_N = weights_N.cumsum(0)
    index = int(torch.searchsorted(cumulative_N, u * float(cumulative_N[-1]), right=True))
    return min(index, int(weights_N.nonzero()[-1]))


def _most_likely(probabilities_V: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """The tokens that top_k keeps, and of these the shortest run with at least top_p of their mass: weights and ids."""
    vocabulary = len(probabilities_V)
    k = min(top_k or vocabulary, vocabulary)
    look = min(max(k if top_k else _FIRST_LOOK, 1), vocabulary)
    while True:
        sorted_N, ids_N = _top(probabilities_V, look)
        total = float(sorted_N.sum()) if top_k else 1.0
        before_N = sorted_N.cumsum(0) - sorted_N
        keep = int((before_N < top_p * total).sum())
        if keep < look or look >= k:
            return sorted_N[:keep], ids_N[:keep]
        look = min(look * 16, vocabulary)


def _top(probabilities_V: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` most likely tokens in order; equal ones by token id, also at the cut."""
    threshold = probabilities_V.topk(count).values[-1] if count < len(probabilities_V) else probabilities_V.min()
    ids = (probabilities_V >= threshold).nonzero().squeeze(1)
    order = probabilities_V[ids].sort(descending=True, stable=True).indices[:count]
    return probabilities_V[ids[order]], ids[order]
