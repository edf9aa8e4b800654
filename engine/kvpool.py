"""The paged KV cache of one worker as a tensor: where KV is written, and how it is gathered for attention.

pool_NLCPHD: N = blocks, L = layers, C = key/value (2), P = tokens per block, H = KV heads, D = head dim. A block is one
contiguous stretch, so a handoff moves it with one copy. Who owns a block is the scheduler's business; the memory may
belong to a shared-memory file (engine/pool_file.py), or to torch on the device. It starts as zeros: masked
positions are multiplied by zero, so they must be finite.

Other suffixes: B = sequences, S = KV positions, T = tokens, Z = values of one block.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.errors import KvPoolError
from engine.types import KvLayout

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class KvPool:
    """`num_blocks` blocks of `layout`, with the views that the model reads and writes through."""

    def __init__(self, layout: KvLayout, pool_NLCPHD: Tensor) -> None:
        L, P, H, D = layout.num_layers, layout.block_tokens, layout.num_kv_heads, layout.head_dim
        if tuple(pool_NLCPHD.shape[1:]) != (L, 2, P, H, D) or not pool_NLCPHD.is_contiguous():
            raise KvPoolError(f"pool of shape {tuple(pool_NLCPHD.shape)} is not contiguous [N, {L}, 2, {P}, {H}, {D}]")
        self.layout = layout
        self.pool_NLCPHD = pool_NLCPHD
        self.num_blocks = pool_NLCPHD.shape[0]
        self.dtype, self.device = pool_NLCPHD.dtype, pool_NLCPHD.device
        by_token, by_block = pool_NLCPHD.view(-1, H * D), pool_NLCPHD.view(-1, P * H * D)
        #: Rows of one token's K (or V), and of one block's, counted from layer 0's K; a layer's views start further on,
        #: so that one index serves all layers.
        self.tokens_stride, self.blocks_stride = L * 2 * P, L * 2
        self._token_rows = [(by_token[2 * i * P :], by_token[(2 * i + 1) * P :]) for i in range(L)]
        self._block_rows = [(by_block[2 * i :], by_block[2 * i + 1 :]) for i in range(L)]
        self._gathered_2NZ = by_block.new_empty(2, 0, P * H * D)  # grows to the largest gather, then serves all layers

    @classmethod
    def allocate(cls, layout: KvLayout, num_blocks: int, device: str | torch.device = "cpu") -> KvPool:
        """A pool in torch's own memory, zeroed."""
        return cls(layout, torch.zeros(_shape(layout, num_blocks), dtype=_dtype(layout), device=device))

    @classmethod
    def from_buffer(cls, layout: KvLayout, num_blocks: int, buffer: mmap.mmap | memoryview | bytearray) -> KvPool:
        """A pool over writable memory that the caller keeps, such as a shared-memory file, of finite values."""
        wanted = layout.block_bytes * num_blocks
        held = memoryview(buffer).nbytes
        if held < wanted:
            raise KvPoolError(f"buffer of {held} bytes is too small for {num_blocks} blocks ({wanted} bytes)")
        flat = torch.frombuffer(buffer, dtype=_dtype(layout), count=wanted // _dtype(layout).itemsize)
        return cls(layout, flat.view(_shape(layout, num_blocks)))

    def slots(self, block_table: Sequence[int], start: int, count: int) -> list[int]:
        """Token rows of positions `[start, start + count)` of a sequence, for `write`."""
        size = self.layout.block_tokens
        if start + count > len(block_table) * size:
            raise KvPoolError(
                f"positions up to {start + count} do not fit a table of {len(block_table)} blocks of {size}"
            )
        span = range(start, start + count)
        return [block_table[i // size] * self.tokens_stride + i % size for i in span]

    def write(self, layer: int, slots_T: Tensor, k_THD: Tensor, v_THD: Tensor) -> None:
        """Put new tokens' K and V into their slots."""
        k_rows, v_rows = self._token_rows[layer]
        k_rows.index_copy_(0, slots_T, k_THD.flatten(1))
        v_rows.index_copy_(0, slots_T, v_THD.flatten(1))

    def gather_kv(self, layer: int, block_rows: Tensor, num_sequences: int, kv_length: int) -> tuple[Tensor, Tensor]:
        """Copy `kv_length` positions of each sequence out: two [B, H, S, D] views, valid until the next call."""
        count, width = len(block_rows), self._gathered_2NZ.shape[2]
        if self._gathered_2NZ.shape[1] < count:
            self._gathered_2NZ = self._gathered_2NZ.new_zeros(2, count, width)
        shape = (num_sequences, -1, self.layout.num_kv_heads, self.layout.head_dim)
        k_BHSD, v_BHSD = (
            torch.index_select(rows, 0, block_rows, out=room[:count]).view(shape)[:, :kv_length].transpose(1, 2)
            for rows, room in zip(self._block_rows[layer], self._gathered_2NZ, strict=True)
        )
        return k_BHSD, v_BHSD

    def gather(self, blocks: Sequence[int]) -> Tensor:
        """Copy whole blocks out, in this order: [n, Z]."""
        return self.pool_NLCPHD.view(self.num_blocks, -1)[self._checked(blocks)]

    def scatter(self, blocks: Sequence[int], values_nZ: Tensor) -> None:
        """Inverse of `gather`."""
        self.pool_NLCPHD.view(self.num_blocks, -1)[self._checked(blocks)] = values_nZ.to(self.device)

    def _checked(self, blocks: Sequence[int]) -> Tensor:
        if blocks and (min(blocks) < 0 or max(blocks) >= self.num_blocks):
            raise KvPoolError(f"block index {min(blocks)}..{max(blocks)} is outside 0..{self.num_blocks - 1}")
        return torch.tensor(list(blocks), dtype=torch.int64, device=self.device)


def _dtype(layout: KvLayout) -> torch.dtype:
    if layout.dtype not in TORCH_DTYPES:
        raise KvPoolError(f"KV dtype {layout.dtype!r} is not computed here; expected one of {', '.join(TORCH_DTYPES)}")
    return TORCH_DTYPES[layout.dtype]


def _shape(layout: KvLayout, num_blocks: int) -> tuple[int, ...]:
    if num_blocks < 1:
        raise KvPoolError(f"num_blocks {num_blocks} must be at least 1")
    return (num_blocks, layout.num_layers, 2, layout.block_tokens, layout.num_kv_heads, layout.head_dim)
