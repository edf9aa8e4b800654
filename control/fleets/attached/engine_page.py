"""What one look at a foreign engine says, in our words: cumulative since it started. None is unknown, never 0.

Decided here: only that an engine's own word comes before what somebody else says of it (`filled`). `read_page`
(`dialects`) makes a page; the ledger takes the difference of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

from control.fleets.attached.types import Finding

#: Upper bounds, ascending, each with the count at or below it (Prometheus's own form); the last bound is infinite.
Buckets = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Monotonic within one life of the engine, all of its ranks together."""

    prefill_tokens: float | None = None  # computed here: neither cached nor received
    cached_tokens: float | None = None
    received_tokens: float | None = None  # KV that another worker computed
    decode_tokens: float | None = None  # tokens of answers, the first ones too
    num_prompts: float | None = None  # whose answers have ended
    prompt_tokens: float | None = None  # of those
    length_tokens: float | None = None  # sum behind `EnginePage.lengths`
    steps: float | None = None
    num_requests: float | None = None  # that it answered, where it tells no more than that
    itl_s: float | None = None  # seconds between tokens, added up over all sequences
    prefill_busy_s: float | None = None
    decode_busy_s: float | None = None
    exported_flops: float | None = None  # the engine's own estimate, both phases in one
    exported_bytes: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """As of this look."""

    num_running: float | None = None
    num_waiting: float | None = None
    kv_usage: float | None = None  # 0..1


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """The mean prompt of a fleet as its router has it: tokens to compute, and tokens that are cached where it goes."""

    computed_tokens: float
    cached_tokens: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnginePage:
    """One engine at one time. `worker_id`: whose page it says it is; "" when it does not say."""

    worker_id: str = ""
    model_id: str = ""
    started_unix_s: float | None = None
    counters: Counters = Counters()
    gauges: Gauges = Gauges()
    lengths: Buckets = ()  # uncached prompt tokens of the requests that ended
    latencies: Mapping[str, Buckets] = field(default_factory=dict)  # our kinds (engine.readings.LATENCY_KINDS), seconds
    findings: tuple[Finding, ...] = ()
    prompts: Prompts | None = None

    @property
    def has_anything(self) -> bool:
        """Something of this engine's kind is on the page."""
        return any(each.state in ("found", "off") for each in self.findings)

    def why_nothing(self, url: str, kind: str) -> str:
        """Of a page without anything: which values were refused, or that there are no such series."""
        refused = [each.series for each in self.findings if each.state == "refused"]
        if not refused:
            return f"{url} has no series of {kind}"
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        return f"{url}: nothing that it says of {kind} can be: {'; '.join(refused[:3])}{more}"


_T = TypeVar("_T", Counters, Gauges)


def filled(own: EnginePage, other: EnginePage) -> EnginePage:
    """`own`, and of `other` what `own` does not know."""
    known = {each.quantity for each in own.findings if each.state == "found"}
    better = {each.quantity for each in other.findings if each.state == "found"} - known
    named = {each.quantity for each in own.findings}
    return replace(
        own,
        worker_id=own.worker_id or other.worker_id,
        model_id=own.model_id or other.model_id,
        started_unix_s=other.started_unix_s if own.started_unix_s is None else own.started_unix_s,
        counters=_filled(own.counters, other.counters),
        gauges=_filled(own.gauges, other.gauges),
        lengths=own.lengths or other.lengths,
        latencies={**other.latencies, **own.latencies},
        findings=(
            *(each for each in own.findings if each.quantity not in better),
            *(each for each in other.findings if each.quantity in better or each.quantity not in named),
        ),
        prompts=own.prompts or other.prompts,
    )


def _filled(own: _T, other: _T) -> _T:
    unknown = {each.name: getattr(other, each.name) for each in fields(own) if getattr(own, each.name) is None}
    return replace(own, **unknown)
