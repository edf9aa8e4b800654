"""Attention over the paged KV cache: which blocks are gathered, what is masked, in how many calls.

All index tensors and masks are made once per forward and used by every layer. What is decided here: how sequences of
different length share a call (decode), and how much of the future a chunk skips (prefill). Which row counts and padded
lengths are allowed comes from `KernelShape`; who owns a block does not matter here.

Shape suffixes: T = tokens in this forward, B = sequences of one call, Q = query heads, H = KV heads, G = Q / H,
D = head dim, R = query rows of a call (padded), S = KV positions of a call (padded), P = tokens per block, X = Q * D
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.kvpool import KvPool
from engine.types import DecodeItem, PrefillChunk

if TYPE_CHECKING:
    from engine.exact import KernelShape

#: KV positions that the CPU kernel takes at once. Its last stretch may be shorter.
STRETCH = 512
#: Query positions of one prefill call on a CPU: later KV is skipped in steps of this. A GPU takes a chunk at once.
PREFILL_ROWS = 64
#: Padded KV positions that a decode call may waste before the batch is cut in two.
MAX_WASTED_POSITIONS = 512


class Attention(Protocol):
    """Attention of one forward's tokens, layer by layer, after that layer's new KV is in the pool."""

    def __call__(self, layer: int, q_TQD: Tensor, pool: KvPool) -> Tensor:
        """-> [T, X]; rows beyond the real tokens hold anything finite."""


def attend_cpu(q_BQRD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
    """The fused CPU kernel, called directly: the public function may choose another one by shape. -> [B, Q, R, D]"""
    op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    return op(q_BQRD, k_BHSD, v_BHSD, 0.0, causal, attn_mask=mask)[0]  # type: ignore[no-any-return]


def attend(q_BQRD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor, mask: Tensor | None) -> Tensor:
    if q_BQRD.device.type == "cpu":
        return attend_cpu(q_BQRD, k_BHSD, v_BHSD, mask)
    gqa = q_BQRD.shape[1] != k_BHSD.shape[1]
    return F.scaled_dot_product_attention(q_BQRD, k_BHSD, v_BHSD, attn_mask=mask, enable_gqa=gqa)


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)


def _gather_rows(table: Sequence[int], kv_length: int, pool: KvPool) -> list[int]:
    """Rows of the pool's block table for `kv_length` positions. Slots past the table repeat its first block: they are
    masked, and a sequence never reads what another one wrote."""
    num_blocks = -(-kv_length // pool.layout.block_tokens)
    held = table[:num_blocks]
    return [block * pool.blocks_stride for block in (*held, *[table[0]] * (num_blocks - len(held)))]


@dataclass(frozen=True, slots=True)
class _DecodeGroup:
    """Sequences `[first, end)` of the batch, padded to one KV length."""

    first: int
    end: int
    kv_length: int
    block_rows: Tensor
    mask_B1RS: Tensor
    q_pad_BHRD: Tensor | None


class DecodeAttention:
    """One new token per sequence. Items must be sorted by position, longest first, so that groups are slices."""

    def __init__(self, items: Sequence[DecodeItem], num_rows: int, num_q_heads: int, shape: KernelShape, pool: KvPool):
        self._num_rows = num_rows
        lengths = [shape.kv_length(item.position + 1) for item in items]
        per_kv_head = num_q_heads // pool.layout.num_kv_heads
        q_rows = per_kv_head + -per_kv_head % shape.attn_rows
        self._groups = [self._group(items, a, b, lengths[a], q_rows, per_kv_head, pool) for a, b in cut(lengths)]

    @staticmethod
    def _group(
        items: Sequence[DecodeItem], a: int, b: int, kv_length: int, q_rows: int, per_kv_head: int, pool: KvPool
    ) -> _DecodeGroup:
        device, dtype = pool.device, pool.dtype
        rows = [row for item in items[a:b] for row in _gather_rows(item.block_table, kv_length, pool)]
        positions_B = torch.tensor([item.position for item in items[a:b]], device=device)
        mask_BS = _additive(torch.arange(kv_length, device=device) <= positions_B[:, None], dtype)
        layout = pool.layout
        padded = (b - a, layout.num_kv_heads, q_rows, layout.head_dim)
        return _DecodeGroup(
            a,
            b,
            kv_length,
            torch.tensor(rows, device=device),
            mask_BS[:, None, None, :].expand(-1, 1, q_rows, -1),
            torch.zeros(padded, dtype=dtype, device=device) if q_rows != per_kv_head else None,
        )

    def __call__(self, layer: int, q_TQD: Tensor, pool: KvPool) -> Tensor:
        out_TX = q_TQD.new_zeros(self._num_rows, q_TQD.shape[1] * q_TQD.shape[2])
        H, D = pool.layout.num_kv_heads, pool.layout.head_dim
        G = q_TQD.shape[1] // H
        for group in self._groups:
            B = group.end - group.first
            k_BHSD, v_BHSD = pool.gather_kv(layer, group.block_rows, B, group.kv_length)
            q_BHRD = q_TQD[group.first : group.end].reshape(B, H, G, D)
            if group.q_pad_BHRD is not None:
                group.q_pad_BHRD[:, :, :G] = q_BHRD
                q_BHRD = group.q_pad_BHRD
            attended_BHRD = attend(q_BHRD, k_BHSD, v_BHSD, group.mask_B1RS)
            out_TX[group.first : group.end].view(B, H, G, D).copy_(attended_BHRD[:, :, :G])
        return out_TX


def cut(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Cut a descending list into `[a, b)` runs, each padded to its first length, with bounded waste per run."""
    groups, first, wasted = [], 0, 0
    for i, length in enumerate(lengths):
        wasted += lengths[first] - length
        if wasted > MAX_WASTED_POSITIONS:
            groups.append((first, i))
            first, wasted = i, 0
    if lengths:
        groups.append((first, len(lengths)))
    return groups


@dataclass(frozen=True, slots=True)
class PrefillRows:
    """Query rows `[first, end)` of the forward over the first `kv_length` positions of their sequence."""

    first: int
    end: int
    kv_length: int
    mask_11RS: Tensor


class PrefillAttention:
    """Chunks of prompts, one sequence after the other; each row sees the KV up to itself."""

    def __init__(self, chunks: Sequence[PrefillChunk], num_rows: int, shape: KernelShape, pool: KvPool):
        self._num_rows = num_rows
        self._sequences: list[tuple[Tensor, int, list[PrefillRows]]] = []
        row = 0
        for chunk in chunks:
            kv_length = shape.kv_length(chunk.start + len(chunk.token_ids))
            block_rows = torch.tensor(_gather_rows(chunk.block_table, kv_length, pool), device=pool.device)
            step = PREFILL_ROWS if pool.device.type == "cpu" else len(chunk.token_ids)
            spans = [(a, min(a + step, len(chunk.token_ids))) for a in range(0, len(chunk.token_ids), step)]
            calls = [self._rows(row, chunk, a, b, shape, pool) for a, b in spans]
            self._sequences.append((block_rows, kv_length, calls))
            row += len(chunk.token_ids)

    @staticmethod
    def _rows(row: int, chunk: PrefillChunk, offset: int, end: int, shape: KernelShape, pool: KvPool) -> PrefillRows:
        kv_length = shape.kv_length(chunk.start + end)
        padded = end - offset + -(end - offset) % shape.attn_rows
        positions_R = torch.arange(chunk.start + offset, chunk.start + offset + padded, device=pool.device)
        mask_RS = _additive(torch.arange(kv_length, device=pool.device) <= positions_R[:, None], pool.dtype)
        return PrefillRows(row + offset, row + end, kv_length, mask_RS[None, None])

    def calls(self) -> list[PrefillRows]:
        """Every call of a layer, in the order of the rows; their masks say what is computed."""
        return [call for _, _, calls in self._sequences for call in calls]

    def __call__(self, layer: int, q_TQD: Tensor, pool: KvPool) -> Tensor:
        out_TX = q_TQD.new_zeros(self._num_rows, q_TQD.shape[1] * q_TQD.shape[2])
        for block_rows, kv_length, calls in self._sequences:
            k_1HSD, v_1HSD = pool.gather_kv(layer, block_rows, 1, kv_length)
            for call in calls:
                R = call.end - call.first
                q_RQD = F.pad(q_TQD[call.first : call.end], (0, 0, 0, 0, 0, call.mask_11RS.shape[2] - R))
                k, v = k_1HSD[:, :, : call.kv_length], v_1HSD[:, :, : call.kv_length]
                attended_1QRD = attend(q_RQD.transpose(0, 1)[None], k, v, call.mask_11RS)
                out_TX[call.first : call.end].view(R, *q_TQD.shape[1:]).copy_(attended_1QRD[0, :, :R].transpose(0, 1))
        return out_TX
