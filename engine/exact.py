"""Which shapes of kernel calls give every row the same bits, whatever goes with it. Found by a probe, not assumed.

A matrix product picks its kernel by shape, so the same row can come out one bit different alone and in a batch. On one
thread the kernels settle: above some least number of rows each row is computed alike. The same holds for attention
over KV padded to certain lengths, since masked positions add exact zeros. `probe_exact` finds these numbers for the
shapes of one model on this CPU; `KernelShape` carries them to the model. Not decided here: the computation itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.attention import STRETCH, attend_cpu
from engine.errors import ExactModeUnavailable
from engine.linear import linear

_ROW_FLOORS = (1, 2, 4, 8, 16)
_ROW_COUNTS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 48, 64, 65, 96)
_TAILS = tuple(range(64, STRETCH + 1, 64))
_MAX_PROBED_OUTPUTS = 8_192


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelShape:
    """Bounds that every kernel call keeps. `exact` says whether they were probed to give batch-independent bits."""

    exact: bool
    min_rows: int  # least rows of a linear
    attn_rows: int  # query rows of an attention call are a multiple of this
    kv_tails: tuple[int, ...]  # allowed lengths of the last, partial stretch of KV positions, ascending

    def num_rows(self, rows: int) -> int:
        """Rows to compute for `rows` wanted. Few different counts: each costs a generated kernel of half a megabyte."""
        if rows <= 8:
            return max(rows, self.min_rows)
        return rows + -rows % (8 if rows <= 64 else 32)

    def kv_length(self, length: int) -> int:
        """KV positions to read for `length` wanted (at least 1)."""
        full, rest = divmod(length, STRETCH)
        if rest == 0:
            return length
        return full * STRETCH + next(tail for tail in self.kv_tails if tail >= rest)


def fast_shape(block_tokens: int = 16) -> KernelShape:
    """No padding but to whole KV blocks: bits depend on the batch."""
    tails = tuple(range(block_tokens, STRETCH + 1, block_tokens))
    return KernelShape(exact=False, min_rows=1, attn_rows=1, kv_tails=tails)


def exact_shape(weights_KN: Sequence[Tensor], num_q_heads: int, num_kv_heads: int, head_dim: int) -> KernelShape:
    """The probed shape, or ExactModeUnavailable with what failed. Sets one torch thread: more change the kernels."""
    torch.set_num_threads(1)
    min_rows = probe_exact(weights_KN)
    if min_rows is None:
        raise ExactModeUnavailable(f"no row count up to {_ROW_FLOORS[-1]} gives linears the same bits for every batch")
    probed = probe_attention(num_q_heads, num_kv_heads, head_dim)
    if probed is None:
        raise ExactModeUnavailable(f"attention over {STRETCH} positions has other bits for other numbers of query rows")
    attn_rows, kv_tails = probed
    return KernelShape(exact=True, min_rows=min_rows, attn_rows=attn_rows, kv_tails=kv_tails)


def probe_exact(weights_KN: Sequence[Tensor]) -> int | None:
    """The least number of rows from which each row of `linear` has the same bits, for all these weights; or None.

    Shapes: K = inputs, N = outputs. One weight per distinct shape is enough; a long N is cut, its columns are alike.
    """
    floor: int | None = 0
    for weight_KN in {tuple(w.shape): w for w in weights_KN}.values():
        found = next((f for f in _ROW_FLOORS if _rows_agree(weight_KN[:, :_MAX_PROBED_OUTPUTS], f)), None)
        floor = None if found is None or floor is None else max(floor, found)
    return floor or None


def _rows_agree(weight_KN: Tensor, floor: int) -> bool:
    generator = torch.Generator().manual_seed(7)
    most = max(_ROW_COUNTS)
    x_MK = torch.randn(most, weight_KN.shape[0], generator=generator)
    whole_MN = linear(x_MK, weight_KN)
    counts = [count for count in _ROW_COUNTS if count >= floor]
    starts = {count: (0, (most - count) // 2, most - count) for count in counts}
    return all(
        torch.equal(linear(x_MK[start : start + count], weight_KN), whole_MN[start : start + count])
        for count in counts
        for start in starts[count]
    )


def probe_attention(num_q_heads: int, num_kv_heads: int, head_dim: int) -> tuple[int, tuple[int, ...]] | None:
    """Least multiple of query rows, and the KV tails that give the bits of a full stretch; None if none does."""
    generator = torch.Generator().manual_seed(11)
    most = 2 * STRETCH
    q_SQD = torch.randn(most, num_q_heads, head_dim, generator=generator)
    k_SHD, v_SHD = torch.randn(2, most, num_kv_heads, head_dim, generator=generator).unbind()
    probe = _AttentionProbe(q_SQD, k_SHD, v_SHD)
    for rows in _ROW_FLOORS:
        if probe.rows_agree(rows):
            tails = tuple(t for t in _TAILS if t == STRETCH or probe.tail_agrees(t, rows))
            return rows, tails
    return None


@dataclass(frozen=True, slots=True)
class _AttentionProbe:
    q_SQD: Tensor
    k_SHD: Tensor
    v_SHD: Tensor

    def at(self, positions: Sequence[int], kv_length: int, rows: int) -> Tensor:
        """Attention of these query positions over `kv_length` padded positions, rows filled up by repeating."""
        filled = [*positions, *[positions[-1]] * (-len(positions) % rows)]
        visible = torch.arange(kv_length) <= torch.tensor(filled)[:, None]
        mask = torch.zeros(visible.shape).masked_fill_(~visible, -torch.inf)
        q_1QRD = self.q_SQD[filled].transpose(0, 1)[None]
        k_1HSD, v_1HSD = (t[:kv_length].transpose(0, 1)[None] for t in (self.k_SHD, self.v_SHD))
        return attend_cpu(q_1QRD, k_1HSD, v_1HSD, mask[None, None])[0, :, : len(positions)]

    def rows_agree(self, rows: int) -> bool:
        positions = list(range(STRETCH - 70, STRETCH + 70))
        whole = self.at(positions, 2 * STRETCH, rows)
        for count in (1, 2, 3, 5, 8, 31, 33, 70, 101):
            first = self.at(positions[:count], STRETCH if count <= 70 else 2 * STRETCH, rows)
            last = self.at(positions[-count:], 2 * STRETCH, rows)
            if not (torch.equal(first, whole[:, :count]) and torch.equal(last, whole[:, -count:])):
                return False
        return True

    def tail_agrees(self, tail: int, rows: int) -> bool:
        for base in (0, STRETCH):
            positions = [base + offset for offset in sorted({0, 1, tail // 3, tail // 2, tail - 9, tail - 1})]
            short, full = (self.at(positions, base + length, rows) for length in (tail, STRETCH))
            if not torch.equal(short, full):
                return False
        return True
