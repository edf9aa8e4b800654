"""Our handoff on one host against Ray's object store, the same scattered blocks, interleaved in one run.

    python bench/handoff_vs_ray.py --rounds 20

Ours: one `HandoffAsker.pull` over shared memory and over TCP, pool to pool, Fetch to release (engine.bench.handoff).
Ray: actor A gathers the blocks and `ray.put`s them, actor B `ray.get`s them (zero copy) and scatters into its pool.
For Ray two times are printed: `copy` adds up only what A and B spend inside put, get and the copies, without any actor
call; `whole` is what the driver sees, with two actor calls. The ratio that counts is against `copy`, the kinder one.

Ray runs on loopback, in its own session, with a small object store, and is shut down at the end.
"""

from __future__ import annotations

import asyncio
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from engine.bench._setup import parser_of, show
from engine.bench.handoff import LAYOUT, POOL_BLOCKS, SIZES, HandoffPair, fill, scattered, summary


class PoolActor:
    """One worker as it would be with the object store: a pool in its own memory."""

    def __init__(self) -> None:
        self.pool_NB = np.zeros((POOL_BLOCKS, LAYOUT.block_bytes), np.uint8)

    def fill(self) -> None:
        fill(self.pool_NB)

    def put(self, blocks: Sequence[int]) -> tuple[list[Any], float]:
        began = time.perf_counter()
        reference = ray.put(self.pool_NB[list(blocks)])
        return [reference], time.perf_counter() - began

    def take(self, references: list[Any], blocks: Sequence[int]) -> float:
        began = time.perf_counter()
        values_nB = ray.get(references[0])
        for row, block in enumerate(blocks):
            np.copyto(self.pool_NB[block], values_nB[row])
        return time.perf_counter() - began

    def block(self, index: int) -> bytes:
        return self.pool_NB[index].tobytes()


class RayPair:
    def __init__(self) -> None:
        actor = ray.remote(num_cpus=0)(PoolActor)
        self.first, self.second = actor.remote(), actor.remote()
        ray.get(self.first.fill.remote())

    def once(self, source: Sequence[int], own: Sequence[int]) -> tuple[float, float]:
        """(copy, whole) seconds."""
        began = time.perf_counter()
        references, put_s = ray.get(self.first.put.remote(list(source)))
        take_s = ray.get(self.second.take.remote(references, list(own)))
        return put_s + take_s, time.perf_counter() - began

    def check(self, source: Sequence[int], own: Sequence[int]) -> None:
        for block, to in zip(source, own, strict=True):
            sent, came = ray.get([self.first.block.remote(block), self.second.block.remote(to)])
            assert sent == came, f"block {block} did not arrive in {to}"


async def _run(rounds: int, shm_dir: str, as_json: bool) -> None:
    ours, rays = HandoffPair(shm_dir), RayPair()
    for name, num_blocks in SIZES.items():
        source, own = scattered(num_blocks, 1), scattered(num_blocks, 2)
        times: dict[str, list[float]] = {"ours shm": [], "ours tcp": [], "ray copy": [], "ray whole": []}
        for number in range(rounds + 2):  # the first two warm both up
            shm_s, tcp_s = await ours.once("shm", source, own), await ours.once("tcp", source, own)
            copy_s, whole_s = await asyncio.to_thread(rays.once, source, own)
            if number >= 2:
                for kept, took in zip(times.values(), (shm_s, tcp_s, copy_s, whole_s), strict=True):
                    kept.append(took)
        ours.check(source[:2], own[:2])
        await asyncio.to_thread(rays.check, source[:2], own[:2])
        for what, kept in times.items():
            text = f"{name:6} {what:9} {summary(kept)}"
            show(as_json, text, size=name, way=what, median_s=statistics.median(kept))
        if not as_json:
            _ratios(name, times)
    await ours.close()


def _ratios(name: str, times: dict[str, list[float]]) -> None:
    median = {what: statistics.median(kept) for what, kept in times.items()}
    for ray_side in ("ray copy", "ray whole"):
        print(f"{name:6} {ray_side} / ours shm = {median[ray_side] / median['ours shm']:.2f}x", end="   ")
        print(f"{ray_side} / ours tcp = {median[ray_side] / median['ours tcp']:.2f}x")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    root = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        object_store_memory=512 * 2**20,
        num_cpus=2,
        logging_level=logging.ERROR,
        log_to_driver=True,
    )
    try:
        with tempfile.TemporaryDirectory(dir=root, prefix="phaseline-bench-") as shm_dir:
            asyncio.run(_run(options.rounds, shm_dir, options.json))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
