"""Runs one StepPlan on the real model: a timed prefill forward, then a timed decode forward.

The plan says what to compute and where its KV lies; nothing is decided here but the order of rows. A paced worker has
another runner with the same `run`. Timings are wall seconds on the monotonic clock, which all processes of a host
share, and CPU seconds of this thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from engine.attention import DecodeAttention, PrefillAttention
from engine.errors import KvPoolError
from engine.kvpool import KvPool
from engine.model import LlamaModel, load_model
from engine.sampling import sample
from engine.types import DecodeItem, Phase, PhaseTiming, PrefillChunk, StepPlan, StepResult


class TorchRunner:
    """One model and one pool; every call of `run` is complete in itself."""

    def __init__(self, model: LlamaModel, pool: KvPool) -> None:
        if pool.layout != model.kv_layout(pool.layout.block_tokens):
            raise KvPoolError(f"pool of {pool.layout} does not fit the model's {model.kv_layout()}")
        self.model = model
        self.pool = pool

    @classmethod
    def load(
        cls,
        folder: Path | str,
        num_blocks: int,
        *,
        block_tokens: int = 16,
        mode: str | None = None,
        device: str = "cpu",
        dtype: str | None = None,
    ) -> TorchRunner:
        """A runner with its pool in torch's own memory; for benchmarks and tests."""
        model = load_model(folder, mode=mode, device=device, dtype=dtype)
        return cls(model, KvPool.allocate(model.kv_layout(block_tokens), num_blocks, device))

    def run(self, plan: StepPlan) -> StepResult:
        """Compute the step: KV of all its tokens is written; a token is sampled wherever the plan asks for one."""
        tokens: dict[int, int] = {}
        timings = []
        if plan.prefill:
            timings.append(self._timed(Phase.PREFILL, lambda: tokens.update(self._prefill(plan.prefill))))
        if plan.decode:
            timings.append(self._timed(Phase.DECODE, lambda: tokens.update(self._decode(plan.decode))))
        return StepResult(tokens=tokens, timings=tuple(timings))

    def _prefill(self, chunks: Sequence[PrefillChunk]) -> dict[int, int]:
        ends = [(chunk.seq_id, chunk.sample, chunk.start + len(chunk.token_ids)) for chunk in chunks]
        logits_RV = self.prefill_logits(chunks)
        asked = [(seq_id, params, end) for seq_id, params, end in ends if params is not None]
        sampled = sample(logits_RV, [params for _, params, _ in asked], [end for _, _, end in asked])
        return {seq_id: token for (seq_id, _, _), token in zip(asked, sampled, strict=True)}

    def _decode(self, items: Sequence[DecodeItem]) -> dict[int, int]:
        longest_first = sorted(items, key=lambda item: -item.position)
        logits_RV = self.decode_logits(longest_first)
        params = [item.sample for item in longest_first]
        sampled = sample(logits_RV, params, [item.position + 1 for item in longest_first])
        return {item.seq_id: token for item, token in zip(longest_first, sampled, strict=True)}

    def prefill_logits(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        """Logits at the last token of each chunk that ends its prompt, in the order of the chunks: [R, V]."""
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        logits_of: list[int] = []
        for chunk in chunks:
            count = len(chunk.token_ids)
            token_ids += chunk.token_ids
            positions += range(chunk.start, chunk.start + count)
            slots += self.pool.slots(chunk.block_table, chunk.start, count)
            if chunk.sample is not None:
                logits_of.append(len(token_ids) - 1)
        shape = self.model.shape
        attention = PrefillAttention(chunks, shape.num_rows(len(token_ids)), shape, self.pool)
        return self.model.forward(token_ids, positions, slots, attention, self.pool, logits_of)

    def decode_logits(self, items: Sequence[DecodeItem]) -> Tensor:
        """Logits after each item's token; items longest first: [R, V]."""
        shape = self.model.shape
        slots = [slot for item in items for slot in self.pool.slots(item.block_table, item.position, 1)]
        heads = self.model.config.num_q_heads
        attention = DecodeAttention(items, shape.num_rows(len(items)), heads, shape, self.pool)
        token_ids, positions = [item.token_id for item in items], [item.position for item in items]
        return self.model.forward(token_ids, positions, slots, attention, self.pool, range(len(items)))

    def _timed(self, phase: Phase, work: Callable[[], None]) -> PhaseTiming:
        start_s, cpu_start_s = time.monotonic(), time.thread_time()
        work()
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return PhaseTiming(phase, start_s, time.monotonic(), time.thread_time() - cpu_start_s)
