"""Counts what a step did: its work by `engine.work`, under the role that was held when it began."""

from __future__ import annotations

from engine.core_types import CoreConfig
from engine.duty import Duty
from engine.meter import Meter
from engine.types import DecodeItem, Load, Phase, PhaseTiming, PrefillChunk, Role, StepPlan, StepResult
from engine.work import ModelWork, prefill_sums


class StepMeter:
    """The core's side of a meter; with `meter` None it counts nothing."""

    __slots__ = ("_meter", "_work")

    def __init__(self, meter: Meter | None, config: CoreConfig) -> None:
        self._meter = meter
        self._work = ModelWork(config.model, config.weight_dtype_bytes, config.kv_dtype_bytes)

    def state(self, duty: Duty, now_unix_s: float | None = None) -> None:
        """`now_unix_s` None: the meter's own clock."""
        meter = self._meter
        if meter is not None:
            at = meter.clock.unix() if now_unix_s is None else now_unix_s
            meter.set_state(duty.role, duty.state, duty.fence, duty.reason, at)

    def load(self, load: Load) -> None:
        if self._meter is not None:
            self._meter.set_load(load)

    def heartbeat(self, now_s: float) -> None:
        if self._meter is not None:
            self._meter.heartbeat(now_s)

    def begin(self, now_s: float) -> None:
        if self._meter is not None:
            self._meter.step_begin(now_s)

    def abandon(self) -> None:
        """The step in flight, if there is one, will never be finished."""
        if self._meter is not None:
            self._meter.step_end()

    def latency(self, kind: str, value_s: float, n: int = 1) -> None:
        if self._meter is not None:
            self._meter.observe_latency(kind, value_s, n)

    def end(self, plan: StepPlan, result: StepResult, role: Role) -> None:
        """Record each timed forward of a finished step."""
        if self._meter is None:
            return
        self._meter.step_end()
        for timing in result.timings:
            if timing.phase is Phase.PREFILL:
                self._record_prefill(self._meter, plan.prefill, timing, role)
            else:
                self._record_decode(self._meter, plan.decode, timing, role)

    def _record_prefill(self, meter: Meter, chunks: tuple[PrefillChunk, ...], timing: PhaseTiming, role: Role) -> None:
        tokens, pairs, contexts, sampled = prefill_sums(chunks)
        meter.record(
            role,
            timing,
            tokens=tokens,
            context_tokens=contexts,
            batch=len(chunks),
            flops=self._work.prefill_flops(tokens, pairs, sampled),
            bytes=self._work.prefill_bytes(tokens, contexts, sampled),
        )

    def _record_decode(self, meter: Meter, items: tuple[DecodeItem, ...], timing: PhaseTiming, role: Role) -> None:
        batch = len(items)
        contexts = sum([item.position for item in items]) + batch
        meter.record(
            role,
            timing,
            tokens=batch,
            context_tokens=contexts,
            batch=batch,
            flops=self._work.decode_flops(contexts, batch),
            bytes=self._work.decode_bytes(contexts, batch),
        )
