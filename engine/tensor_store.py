"""A pool on a device as a handoff sees it: bytes in and out through host memory. No neighbour can map it.

A GPU transport (peer to peer, GPUDirect) would stand beside shm and tcp in `engine.handoff.TRANSPORTS`, not in here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from engine.errors import KvPoolError
from engine.kvpool import KvPool
from engine.pool_file import Bytes_NB


class TensorStore:
    """`engine.pool_file.KvStore` over a pool in torch's memory. Copies run in order, on the default stream."""

    path = ""

    def __init__(self, pool: KvPool) -> None:
        self._pool = pool
        self.block_bytes = pool.layout.block_bytes
        self.num_blocks = pool.num_blocks

    def read_blocks(self, blocks: Sequence[int]) -> bytes:
        return self._pool.gather(blocks).contiguous().cpu().view(torch.uint8).numpy().tobytes()

    def write_blocks(self, blocks: Sequence[int], payload: bytes | memoryview) -> None:
        wanted = len(blocks) * self.block_bytes
        if len(payload) != wanted:
            raise KvPoolError(f"{len(payload)} bytes do not fill {len(blocks)} blocks of {self.block_bytes} bytes")
        flat = torch.frombuffer(bytearray(payload), dtype=self._pool.dtype)
        self._pool.scatter(blocks, flat.view(len(blocks), -1))

    def copy_from(self, source: Bytes_NB, source_blocks: Sequence[int], own_blocks: Sequence[int]) -> None:
        self.write_blocks(own_blocks, np.take(source, list(source_blocks), axis=0).tobytes())

    def close(self) -> None:
        """The tensor's owner frees it."""
