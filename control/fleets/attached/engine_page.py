"""What one look at a foreign engine says, in our words: cumulative since it started. None is unknown, never 0.

Nothing is decided here. `read_page` (`dialects`) makes it; the ledger takes the difference of two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
class EnginePage:
    """One engine at one time."""

    model_id: str = ""
    started_unix_s: float | None = None
    counters: Counters = Counters()
    gauges: Gauges = Gauges()
    lengths: Buckets = ()  # uncached prompt tokens of the requests that ended
    latencies: Mapping[str, Buckets] = field(default_factory=dict)  # our kinds (engine.readings.LATENCY_KINDS), seconds
    findings: tuple[Finding, ...] = ()

    @property
    def has_anything(self) -> bool:
        """Something of this engine's kind is on the page."""
        return any(each.state in ("found", "off") for each in self.findings)
