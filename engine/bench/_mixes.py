"""Random steps of a real engine core, and what each of them did: by its meter, by torch's operators, by vLLM's formula.

Requests with random lengths come at random times, half of them with one of a few beginnings, so that steps are mixes of
prefill chunks, decode batches and prefix hits. The meter's figures are read from its page, as a node agent does.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from engine.bench._op_count import OpCount, OpWork, Unpadded
from engine.bench._vllm_work import VllmWork, vllm_work
from engine.core import EngineCore
from engine.core_types import CoreConfig
from engine.meter import Meter, MeterReader
from engine.readings import DeviceInfo, PhaseCounters
from engine.runner import TorchRunner
from engine.types import DecodeItem, ModelConfig, Phase, PrefillChunk, Role, SamplingParams, StepPlan, WorkKind
from engine.wire import Order, Submit

MAX_BATCH = 16
NUM_BEGINNINGS = 4
MAX_WAITING = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One phase of one step. `chunks`: (tokens, context after them), of decode one token each."""

    phase: Phase
    chunks: tuple[tuple[int, int], ...]
    num_cached: int  # prompt tokens of this step's first chunks that a prefix hit spared
    meter_flops: float
    meter_bytes: float
    ops: OpWork
    vllm: VllmWork


class CountedRunner(TorchRunner):
    """Counts the operators of each forward, phase by phase."""

    def count(self, *, carry_out: bool) -> None:
        shape = self.model.shape
        self.model.shape = Unpadded(exact=False, min_rows=1, attn_rows=1, kv_tails=shape.kv_tails)
        self._ops = OpCount(self.model.weights, self.pool.pool_NLCPHD, carry_out=carry_out)
        self.counted: dict[Phase, OpWork] = {}

    def prefill_logits(self, chunks: Sequence[PrefillChunk]) -> Tensor:
        with self._ops:
            logits_RV = super().prefill_logits(chunks)
        self.counted[Phase.PREFILL] = self._ops.take()
        return logits_RV

    def decode_logits(self, items: Sequence[DecodeItem]) -> Tensor:
        with self._ops:
            logits_RV = super().decode_logits(items)
        self.counted[Phase.DECODE] = self._ops.take()
        return logits_RV


def steps(runner: CountedRunner, page: Path, dice: random.Random, chunk_tokens: int) -> Iterator[list[Counted]]:
    """Steps without end, each with its phases. `chunk_tokens`: the prefill budget of a step."""
    model = runner.model.config
    meter = Meter.create(
        page, worker_id="bench", epoch=1, model_id=model.model_id, address="", simulated=False,
        device=DeviceInfo(name="cpu", kind="cpu"), host_id="bench", max_context=model.max_context,
    )  # fmt: skip
    config = CoreConfig(
        model=model, layout=runner.pool.layout, num_blocks=runner.pool.num_blocks, worker_id="bench", epoch=1,
        max_batch=MAX_BATCH, prefill_chunk_tokens=chunk_tokens,
    )  # fmt: skip
    core, reader = EngineCore(config=config, meter=meter), MeterReader(page)
    core.order(Order("bench", 1, "place", Role.MIXED), 0.0)
    traffic = _Traffic(model, dice, longest=min(model.max_context // 2, chunk_tokens * 4))
    before: dict[str, PhaseCounters] = {}
    for number in range(1, 1_000_000):
        for submit in traffic.arrivals(core.load(float(number)).num_waiting):
            core.submit("bench", submit, float(number))
        plan = core.next_step(float(number))
        if plan is None:
            continue
        runner.counted.clear()
        core.finish_step(plan, runner.run(plan), float(number))
        after = reader.read(0).counters
        yield [_counted(runner, plan, phase, before, after) for phase in runner.counted]
        before = after


class _Traffic:
    """Requests at random."""

    def __init__(self, model: ModelConfig, dice: random.Random, longest: int) -> None:
        self._model, self._dice, self._longest = model, dice, longest
        self._beginnings = [self._tokens(self._length(longest)) for _ in range(NUM_BEGINNINGS)]
        self._num = 0

    def _length(self, longest: int) -> int:
        """Short ones as often as long ones, by order of magnitude."""
        return round(math.exp(self._dice.uniform(math.log(2), math.log(longest))))

    def _tokens(self, count: int) -> list[int]:
        return [self._dice.randrange(self._model.vocab_size) for _ in range(count)]

    def arrivals(self, num_waiting: int) -> list[Submit]:
        count = self._dice.choice((0, 0, 0, 1, 1, 2)) if num_waiting < MAX_WAITING else 0
        return [self._submit() for _ in range(count)]

    def _submit(self) -> Submit:
        self._num += 1
        beginning = self._dice.choice(self._beginnings) if self._dice.random() < 0.5 else []
        prompt = beginning + self._tokens(self._length(self._longest))
        sampling = SamplingParams(max_tokens=self._dice.randint(1, 60), ignore_eos=True)
        return Submit(str(self._num), 1, WorkKind.LOCAL, prompt, len(prompt), sampling)


def _counted(
    runner: CountedRunner,
    plan: StepPlan,
    phase: Phase,
    before: dict[str, PhaseCounters],
    after: dict[str, PhaseCounters],
) -> Counted:
    key = f"{Role.MIXED}/{phase}"
    now, then = after[key], before.get(key, PhaseCounters())
    if phase is Phase.PREFILL:
        sizes = [(len(each.token_ids), each.start) for each in plan.prefill]
    else:
        sizes = [(1, each.position) for each in plan.decode]
    chunks = tuple((count, start + count) for count, start in sizes)
    return Counted(
        phase=phase,
        chunks=chunks,
        num_cached=sum(start for _, start in sizes) if phase is Phase.PREFILL else 0,
        meter_flops=now.flops - then.flops,
        meter_bytes=now.bytes - then.bytes,
        ops=runner.counted[phase],
        vllm=vllm_work(runner.model.config, chunks),
    )
