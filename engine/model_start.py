"""From a worker's config to a model that can compute: weights, pool, warm kernels. The only torch of a worker's start.

Decided here: where the pool lies (a shared-memory file on a CPU, the device's memory otherwise).
"""

from __future__ import annotations

from pathlib import Path

import torch

from engine.kvpool import KvPool
from engine.model import load_model
from engine.pool_file import KvStore, PoolFile
from engine.runner import TorchRunner
from engine.tensor_store import TensorStore
from engine.types import DecodeItem, KvLayout, PrefillChunk, SamplingParams, StepPlan
from engine.worker_config import WorkerConfig
from engine.worker_parts import Loaded, num_kv_blocks


def load(config: WorkerConfig) -> tuple[TorchRunner, Loaded]:
    """Load, map or allocate the pool, and run one step. Raises EngineError, one line, when that cannot be done."""
    device = "cpu" if config.kind == "cpu" else f"cuda:{config.device_index}"
    if config.kind == "cpu":
        torch.set_num_threads(1)
    mode = "exact" if config.is_exact else "fast"
    model = load_model(config.model_dir, mode=mode, device=device, model_id=config.model_id)
    pool, store = _make_pool(config, model.kv_layout(config.block_tokens), device)
    runner = TorchRunner(model, pool)
    _warm_up(runner)
    size = float(pool.dtype.itemsize)
    return runner, Loaded(
        model=model.config,
        layout=pool.layout,
        store=store,
        weight_dtype_bytes=size,
        kv_dtype_bytes=size,
        simulated=False,
    )


def _make_pool(config: WorkerConfig, layout: KvLayout, device: str) -> tuple[KvPool, KvStore]:
    num_blocks = num_kv_blocks(config, config.kv_bytes, layout.block_bytes)
    if config.kind == "cuda":
        pool = KvPool.allocate(layout, num_blocks, device)
        return pool, TensorStore(pool)
    file = PoolFile.for_worker(Path(config.shm_dir), config.worker_id, config.epoch, layout.block_bytes, num_blocks)
    return KvPool.from_buffer(layout, num_blocks, file.memory), file


def _warm_up(runner: TorchRunner) -> None:
    """One prefill and one decode in block 0, which nobody holds yet, so that pages and kernels are ready."""
    params = SamplingParams(max_tokens=1)
    tokens = (0,) * max(1, runner.pool.layout.block_tokens - 1)
    runner.run(StepPlan(0, prefill=(PrefillChunk(0, tokens, 0, (0,), params),)))
    if runner.pool.layout.block_tokens > 1:
        runner.run(StepPlan(0, decode=(DecodeItem(0, 0, len(tokens), (0,), params),)))
