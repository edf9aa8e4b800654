"""The evidence of a bottleneck's verdict: what is known of one window of a fleet, as plain values. Pure.

Decided here: which workers stand for prefill and which for decode, and what their numbers are shares of. What nobody
measured is None, and is told as unknown. Not decided here: what it all says (`control.bottleneck`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression

from control.accounting import UtilizationView
from control.ceilings import ceilings_of
from control.lost import Tally
from control.traffic_stats import Gateways
from control.types.values import Provenance
from control.types.workers import Phase, PhaseUtilization, Role, WorkerState
from engine.readings import MeterReading


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """The workers that most prompts go to. None is unknown, here and below."""

    num_workers: int
    queue_s: float | None = None  # prompts that wait on the workers, in seconds of their time
    queue_growth: float | None = None  # seconds of queue per second
    busy: float | None = None  # share of the workers' time in which they computed prompts
    compute: float | None = None  # in-phase, of the achievable FLOP/s
    kv_used: float | None = None  # by prompts, and by those that wait to be fetched


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """The workers that decode."""

    num_workers: int
    kv_used: float | None = None  # blocks held and reserved / blocks
    bandwidth: float | None = None  # in-phase, of the achievable bytes/s
    batch: float | None = None  # sequences that decode, of one worker
    tpot_s: float | None = None  # median
    tpot_bound_s: float = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of one window."""

    at_unix_s: float
    window_s: float
    requests: Tally
    prefill: Prefill
    decode: Decode
    gateways: Gateways
    simulated: bool = False
    ceiling_source: Provenance = "assumed"  # of what `compute` and `bandwidth` are shares of


# --- one look ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one look at the workers says; a window is the mean of its looks, each where it is known."""

    at_unix_s: float
    queue_s: float | None = None
    prefill_busy: float | None = None
    compute: float | None = None
    prefill_kv_used: float | None = None
    kv_used: float | None = None
    bandwidth: float | None = None
    batch: float | None = None


def look_at(
    readings: Iterable[MeterReading],
    utilization: UtilizationView | None,
    line_tokens: float,
    at_unix_s: float,
) -> Look:
    """`line_tokens`: uncached prompt tokens that wait in the gateways' lines."""
    prefilling, decoding = pools_of(readings)
    prefill, decode = _phase(utilization, prefilling, Phase.PREFILL), _phase(utilization, decoding, Phase.DECODE)
    roof = ceilings_of([*prefilling, *decoding])
    unsaid = {name for each in (*prefilling, *decoding) for name in each.unknown}  # what nobody measures there
    queued = line_tokens + sum(each.load.queued_prefill_tokens for each in prefilling)
    rate = prefill.tokens_per_s / prefill.busy if prefill and prefill.tokens_per_s and prefill.busy else None
    return Look(
        at_unix_s=at_unix_s,
        queue_s=None if "queued_prefill_tokens" in unsaid else 0.0 if not queued else queued / rate if rate else None,
        prefill_busy=prefill.busy if prefill else None,
        compute=_share(prefill.in_phase_compute if prefill else None, roof.compute if roof else None),
        prefill_kv_used=_kv_used(prefilling),
        kv_used=_kv_used(decoding),
        bandwidth=_share(decode.in_phase_bandwidth if decode else None, roof.bandwidth if roof else None),
        batch=fmean(each.load.num_running for each in decoding) if decoding and "num_running" not in unsaid else None,
    )


def pools_of(readings: Iterable[MeterReading]) -> tuple[list[MeterReading], list[MeterReading]]:
    """Those that most prompts go to, and those that decode; the same ones where nothing is split."""
    serving = [each for each in readings if each.alive and each.state is WorkerState.READY]
    decoding = [each for each in serving if each.role in (Role.DECODE, Role.MIXED)]
    return [each for each in serving if each.role is Role.PREFILL] or decoding, decoding


def _phase(utilization: UtilizationView | None, pool: Sequence[MeterReading], phase: Phase) -> PhaseUtilization | None:
    if utilization is None or not pool:
        return None
    return utilization.roles.get(pool[0].role, {}).get(phase)


def _kv_used(pool: Sequence[MeterReading]) -> float | None:
    if any("kv_blocks_held" in each.unknown or "kv_blocks_reserved" in each.unknown for each in pool):
        return None
    total = sum(each.load.kv_blocks_total for each in pool)
    used = sum(each.load.kv_blocks_held + each.load.kv_blocks_reserved for each in pool)
    return min(1.0, used / total) if total else None


def _share(of_peak: float | None, achievable: float | None) -> float | None:
    return of_peak / achievable if of_peak is not None and achievable else None


def ceiling_source(pool: Sequence[MeterReading]) -> Provenance:
    """Where the ceilings come from of which `compute` and `bandwidth` are shares."""
    roof = ceilings_of(pool)
    return roof.provenance if roof else "assumed"


# --- a window of looks ---------------------------------------------------------------------------------------------


def mean_of(looks: Sequence[Look], name: str) -> float | None:
    known = [value for each in looks if (value := getattr(each, name)) is not None]
    return fmean(known) if known else None


def growth_of(looks: Sequence[Look]) -> float | None:
    """How fast the queue of prompts grows, in seconds per second; None for less than three looks."""
    known = [(each.at_unix_s, each.queue_s) for each in looks if each.queue_s is not None]
    if len(known) < 3 or known[0][0] == known[-1][0]:
        return None
    return linear_regression([at for at, _ in known], [queue_s for _, queue_s in known]).slope
