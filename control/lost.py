"""What one request that was not good was lost to: which of its times was too long, and where that was spent. Pure.

    arrival |- line -|- queue of a worker -|- prefill -| first token |- handoff -|- decode -| end
             `------ what is left of the way to the first token, ----' `- and after it -' is the gateway's own

Decided here: one loss per request, at the place where most of the time went. Not decided here: what is good
(`control.traffic_stats`), and what all losses together say (`control.bottleneck`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

from control.types.bottleneck import Resource
from control.types.requests import RequestRecord, Slo

LossKind = Literal["refused", "late", "alone", "failed", "unknown"]
REFUSED: Final = 429
#: A gap of a stream is due to what took this much of it.
MOST: Final = 0.5


@dataclass(frozen=True, slots=True)
class Loss:
    """refused: 429. late: a bound was broken. alone: its own prefill takes longer than its bound, whoever else is
    there. failed: an error, or the stall of a lost worker. unknown: its record does not say where its time went."""

    kind: LossKind
    resource: Resource | None = None


#: Stages of which a record says how long they took.
STAGES: Final = ("line_s", "queue_s", "prefill_s", "handoff_s", "decode_s")


@dataclass(slots=True)
class Tally:
    """Requests that count, by how they ended, and the stages of those that were served; tallies add up."""

    num_good: int = 0
    lost: Counter[Loss] = field(default_factory=Counter)
    stage_s: dict[str, float] = field(default_factory=dict)
    num_staged: Counter[str] = field(default_factory=Counter)

    def add(self, record: RequestRecord, slo: Slo, *, is_good: bool) -> None:
        if is_good:
            self.num_good += 1
        else:
            self.lost[lost_to(record, slo)] += 1
        if record.status == 200:
            for stage in STAGES:
                if (spent_s := getattr(record, stage)) is not None:
                    self.stage_s[stage] = self.stage_s.get(stage, 0.0) + spent_s
                    self.num_staged[stage] += 1

    def merge(self, other: Tally) -> None:
        self.num_good += other.num_good
        self.lost.update(other.lost)
        for stage, spent_s in other.stage_s.items():
            self.stage_s[stage] = self.stage_s.get(stage, 0.0) + spent_s
        self.num_staged.update(other.num_staged)

    @property
    def num_decided(self) -> int:
        return self.num_good + self.lost.total()

    def share(self, losses: Iterable[Loss]) -> float:
        """Of the requests that count, those that were lost so."""
        return sum(self.lost[each] for each in losses) / self.num_decided if self.num_decided else 0.0

    def mean_s(self, stage: str) -> float | None:
        """Mean of a stage over the served requests that say it; one that a request had not counts as it says: 0."""
        return self.stage_s[stage] / self.num_staged[stage] if self.num_staged[stage] else None


def ttft_bound_s(uncached_tokens: int, slo: Slo) -> float:
    """The SLO's bound on the time to first token of a request with so many prompt tokens to compute."""
    return slo.ttft_base_s + slo.ttft_per_token_s * uncached_tokens


def lost_to(record: RequestRecord, slo: Slo) -> Loss:
    """Of a request that counts and is not good."""
    if record.status == REFUSED:
        lacked = _resource(record.waited_for)
        return Loss("refused", lacked) if lacked else Loss("unknown")
    if record.status != 200 or record.finish_reason == "error" or record.ttft_s is None:
        return Loss("failed")
    bound_s = ttft_bound_s(record.prompt_tokens - record.cached_tokens, slo)
    if record.ttft_s > bound_s:
        return _late_to_begin(record, record.ttft_s, bound_s)
    if any(each.kind == "failover" and (each.stall_s or 0.0) > MOST * slo.max_gap_s for each in record.moves):
        return Loss("failed")
    return _late_in_the_stream(record, record.ttft_s, slo)


def _late_to_begin(record: RequestRecord, ttft_s: float, bound_s: float) -> Loss:
    line_s, queue_s, prefill_s = record.line_s, record.queue_s, record.prefill_s
    if prefill_s is not None and prefill_s > bound_s:
        return Loss("alone")
    if line_s is None or queue_s is None or prefill_s is None:
        return Loss("unknown")
    own_s = ttft_s - line_s - queue_s - prefill_s
    if own_s >= max(line_s, queue_s):
        return Loss("late", Resource.GATEWAY)
    if queue_s >= line_s:
        return Loss("late", Resource.PREFILL)
    waited_for = _resource(record.waited_for)
    return Loss("late", waited_for) if waited_for else Loss("unknown")


def _late_in_the_stream(record: RequestRecord, ttft_s: float, slo: Slo) -> Loss:
    if record.decode_s is None or record.e2e_s is None:
        return Loss("unknown")
    handoff_s = record.handoff_s or 0.0
    own_s = record.e2e_s - ttft_s - handoff_s - record.decode_s
    num_gaps = max(1, record.output_tokens - 1)
    too_long_s = record.max_gap_s or 0.0
    if record.tpot_s is not None and record.tpot_s > slo.tpot_s:
        if record.decode_s > slo.tpot_s * num_gaps:
            return Loss("late", Resource.DECODE_BANDWIDTH)
        too_long_s = 0.0  # the steps were fast enough: it is one of the others
    if handoff_s >= max(own_s, MOST * too_long_s):
        return Loss("late", Resource.HANDOFF)
    if own_s >= MOST * too_long_s:
        return Loss("late", Resource.GATEWAY)
    return Loss("late", Resource.DECODE_BANDWIDTH)


def _resource(name: str) -> Resource | None:
    return Resource(name) if name in set(Resource) else None
