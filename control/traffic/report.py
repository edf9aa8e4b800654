"""What a traffic run achieved: goodput and attainment against the SLO, latencies, errors, per length class. Pure."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from control.traffic.client import Outcome
from control.types.requests import Slo

#: Upper bounds of the length classes, in prompt tokens.
LENGTH_CLASSES: tuple[tuple[str, int], ...] = (
    ("short <256", 256),
    ("medium <1024", 1024),
    ("long <4096", 4096),
    ("huge", 10**9),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Exact quantiles of one latency, in seconds; None without samples."""

    p50: float | None
    p90: float | None
    p99: float | None
    max: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassReport:
    offered: int
    good: int
    failed: int
    rejected: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run. attainment = good / offered; 429s, errors and time-outs are not good."""

    duration_s: float
    offered: int
    good: int
    failed: int
    rejected: int
    offered_rps: float
    goodput_rps: float
    attainment: float | None
    output_tokens_per_s: float
    ttft_s: Quantiles
    itl_s: Quantiles
    tpot_s: Quantiles
    e2e_s: Quantiles
    by_class: dict[str, ClassReport]
    by_rule: dict[str, int]
    errors: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def is_good(outcome: Outcome, slo: Slo) -> bool:
    """TTFT, TPOT and the largest gap within their bounds, all from the scheduled arrival."""
    if outcome.status != 200 or outcome.error or outcome.ttft_s is None:
        return False
    uncached = outcome.prompt_tokens - outcome.cached_tokens
    if outcome.ttft_s > slo.ttft_base_s + slo.ttft_per_token_s * uncached:
        return False
    if outcome.tpot_s is not None and outcome.tpot_s > slo.tpot_s:
        return False
    return max(outcome.gaps_s, default=0.0) <= slo.max_gap_s


def quantiles(values: Iterable[float | None]) -> Quantiles:
    ordered = sorted(value for value in values if value is not None)

    def at(q: float) -> float | None:
        return ordered[min(int(q * len(ordered)), len(ordered) - 1)] if ordered else None

    return Quantiles(p50=at(0.5), p90=at(0.9), p99=at(0.99), max=ordered[-1] if ordered else None)


def summarise(outcomes: Sequence[Outcome], slo: Slo, duration_s: float) -> Report:
    good = [is_good(each, slo) for each in outcomes]
    rejected = sum(1 for each in outcomes if each.status == 429)
    failed = sum(1 for each in outcomes if each.error and each.status != 429)
    return Report(
        duration_s=duration_s,
        offered=len(outcomes),
        good=sum(good),
        failed=failed,
        rejected=rejected,
        offered_rps=len(outcomes) / duration_s if duration_s else 0.0,
        goodput_rps=sum(good) / duration_s if duration_s else 0.0,
        attainment=sum(good) / len(outcomes) if outcomes else None,
        output_tokens_per_s=sum(each.output_tokens for each in outcomes) / duration_s if duration_s else 0.0,
        ttft_s=quantiles(each.ttft_s for each in outcomes),
        itl_s=quantiles(gap for each in outcomes for gap in each.gaps_s),
        tpot_s=quantiles(each.tpot_s for each in outcomes),
        e2e_s=quantiles(each.e2e_s for each in outcomes),
        by_class=_by_class(outcomes, good),
        by_rule=dict(Counter(_rule(each.route) for each in outcomes if each.route)),
        errors=dict(Counter(each.error for each in outcomes if each.error).most_common(20)),
    )


def _by_class(outcomes: Sequence[Outcome], good: Sequence[bool]) -> dict[str, ClassReport]:
    rows = {name: [0, 0, 0, 0] for name, _ in LENGTH_CLASSES}
    for each, ok in zip(outcomes, good, strict=True):
        name = next(name for name, bound in LENGTH_CLASSES if each.prompt_tokens < bound)
        row = rows[name]
        row[0] += 1
        row[1] += ok
        row[2] += bool(each.error) and each.status != 429
        row[3] += each.status == 429
    return {
        name: ClassReport(offered=offered, good=ok, failed=failed, rejected=rejected)
        for name, (offered, ok, failed, rejected) in rows.items()
        if offered
    }


def _rule(route: str) -> str:
    """The rule in an X-Phaseline-Route header: `rule=remote; prefill=w0; ...`."""
    return route.split(";", 1)[0].removeprefix("rule=").strip()


def fingerprint(outcome: Outcome) -> str:
    """What must be equal between two runs of the same plan: text, number of tokens, finish reason."""
    return hashlib.sha256(f"{outcome.finish}|{outcome.output_tokens}|{outcome.text}".encode()).hexdigest()[:16]
