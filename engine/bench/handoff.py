"""How long a handoff takes on one host, from scattered blocks of one process's pool to scattered blocks of another's.

    python -m engine.bench.handoff --rounds 20

Blocks are those of SmolLM2-135M in float32 (16 tokens, 737,280 bytes): 8 of them are 6 MB (128 tokens), 94 are 69 MB
(1,500 tokens). A round is one whole `HandoffAsker.pull`: Fetch, copy, acknowledgement, release. Pools are warm, as in a
worker that has served for a while: pages exist, mappings are cached. Printed: median and 90th percentile per transport.
"""

from __future__ import annotations

import asyncio
import itertools
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import numpy as np

from engine.bench._setup import parser_of, show
from engine.connection import Connection, bound_port, listen
from engine.handoff import HandoffAsker, HandoffHolder
from engine.host import format_address, host_id
from engine.pool_file import PoolFile
from engine.types import KvLayout, Load, Role, WorkerState
from engine.wire import Fetch, HandoffAck, Hello, Lease, Welcome

LAYOUT = KvLayout(
    model_id="smollm2-135m", weights_digest="bench", dtype="float32", num_layers=30, block_tokens=16, num_kv_heads=3,
    head_dim=64,
)  # fmt: skip
POOL_BLOCKS = 128
SIZES = {"6 MB": 8, "69 MB": 94}
TOKEN = "bench"


def scattered(num_blocks: int, seed: int) -> list[int]:
    """Blocks as a pool hands them out after a while: in no order."""
    return random.Random(seed).sample(range(POOL_BLOCKS), num_blocks)


def fill(pool_NB: Any) -> None:
    """Every block its own pattern, so that a wrong copy is seen."""
    for block in range(len(pool_NB)):
        pool_NB[block] = np.random.default_rng(block).integers(0, 256, pool_NB.shape[1], dtype=np.uint8)


class _Holder:
    """A prefill worker's side: leases that never run out."""

    def __init__(self, shm_dir: str) -> None:
        self.pool = PoolFile.for_worker(Path(shm_dir), "holder", 1, LAYOUT.block_bytes, POOL_BLOCKS)
        fill(self.pool.blocks_NB)
        everything = list(range(POOL_BLOCKS))
        self.side = HandoffHolder(
            layout=LAYOUT, store=self.pool, leased_blocks=lambda _id: everything, acknowledge=lambda _id: True
        )

    def on_peer(self, connection: Connection, _hello: Hello) -> None:
        def on_message(connection: Connection, message: Any) -> None:
            if isinstance(message, Fetch):
                self.side.on_fetch(connection, message)
            elif isinstance(message, HandoffAck):
                self.side.on_ack(connection, message)

        connection.on_message = on_message
        connection.send(Welcome("holder", 1, Role.PREFILL, WorkerState.READY, "m", LAYOUT, 1, False, Load()))


def _hold(shm_dir: str, pipe: Pipe) -> None:
    async def serve() -> None:
        holder = _Holder(shm_dir)
        server = await listen("127.0.0.1", 0, TOKEN, holder.on_peer)
        pipe.send((format_address("127.0.0.1", bound_port(server)), holder.pool.path))
        await asyncio.to_thread(pipe.recv)
        server.close()
        holder.pool.close()

    asyncio.run(serve())


class HandoffPair:
    """A holder in a process of its own, and askers here, one per transport. Use inside one event loop."""

    def __init__(self, shm_dir: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_hold, args=(shm_dir, theirs), daemon=True)
        self._process.start()
        self._address, self._pool_path = self._pipe.recv()
        self.pool = PoolFile.for_worker(Path(shm_dir), "asker", 1, LAYOUT.block_bytes, POOL_BLOCKS)
        self.pool.blocks_NB[:] = 0
        self._executor = ThreadPoolExecutor(1)
        self._askers = {
            wish: HandoffAsker(
                hello=Hello("asker", "worker", TOKEN), layout=LAYOUT, store=self.pool, own_host_id=host_id(),
                executor=self._executor, wish=wish,
            )
            for wish in ("shm", "tcp")
        }  # fmt: skip
        self._ids = itertools.count()

    async def once(self, wish: str, source: Sequence[int], own: Sequence[int]) -> float:
        """Seconds of one handoff, ended and released."""
        lease = Lease(
            f"l-{next(self._ids)}", "holder", 1, self._address, LAYOUT, len(source) * 16, list(source),
            self._pool_path, host_id(), 30.0,
        )  # fmt: skip
        began = time.perf_counter()
        await self._askers[wish].pull(lease, source, own)
        return time.perf_counter() - began

    def check(self, source: Sequence[int], own: Sequence[int]) -> None:
        """Raises AssertionError when a block did not arrive as it was sent."""
        expected = np.empty((1, LAYOUT.block_bytes), np.uint8)
        for block, to in zip(source, own, strict=True):
            expected[0] = np.random.default_rng(block).integers(0, 256, LAYOUT.block_bytes, dtype=np.uint8)
            assert np.array_equal(expected[0], self.pool.blocks_NB[to]), f"block {block} did not arrive in {to}"

    async def close(self) -> None:
        for asker in self._askers.values():
            await asker.close()
        self._pipe.send(None)
        self._process.join()
        self.pool.close()
        self._executor.shutdown()


def summary(times_s: Sequence[float]) -> str:
    ordered = sorted(times_s)
    p90 = ordered[int(len(ordered) * 0.9)]
    return f"median {statistics.median(ordered) * 1e3:7.2f} ms   p90 {p90 * 1e3:7.2f} ms"


async def _run(rounds: int, shm_dir: str, as_json: bool) -> None:
    pair = HandoffPair(shm_dir)
    for name, num_blocks in SIZES.items():
        source, own = scattered(num_blocks, 1), scattered(num_blocks, 2)
        times: dict[str, list[float]] = {"shm": [], "tcp": []}
        for number in range(rounds + 2):
            for wish, kept in times.items():
                took = await pair.once(wish, source, own)
                if number >= 2:
                    kept.append(took)
            pair.check(source[:2], own[:2])
        for wish, kept in times.items():
            rate = num_blocks * LAYOUT.block_bytes / statistics.median(kept) / 1e9
            text = f"{name:6} {wish}  {summary(kept)}   {rate:5.2f} GB/s"
            show(as_json, text, size=name, transport=wish, median_s=statistics.median(kept), gb_per_s=rate)
    await pair.close()


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    root = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=root, prefix="phaseline-bench-") as shm_dir:
        asyncio.run(_run(options.rounds, shm_dir, options.json))


if __name__ == "__main__":
    main()
