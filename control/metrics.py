"""The catalogue of metrics: name, unit, meaning, and how each is computed from stored sums. A table and pure functions.

A bucket of a line holds sums over [t, t + step): work of a phase, cover (which seconds are known, and what the devices
could have done in them), gauges, traffic, histograms. A metric is a ratio of such sums, so a coarse bucket is exactly
what its seconds say together. A formula takes all buckets of an answer at once, as arrays (`control.buckets`). NaN is a
gap: nothing is known. Not decided here: how sums are stored and read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from control.buckets import Buckets, Columns, Floats, Values, number, ratio, where
from control.points import GAUGES
from control.types.series import MetricInfo
from control.types.values import Provenance
from control.types.workers import Phase

Source = Literal["phase", "state", "traffic", "latency"]
Formula = Callable[[Buckets], Values]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric: what it says, where its sums are, and its formula."""

    info: MetricInfo
    source: Source
    phases: tuple[Phase, ...] = ()
    kind: str = ""  # of a latency
    formula: Formula
    needs_fleet: bool = False


def _low(buckets: Buckets, name: str) -> Floats:
    """Smallest second: 0 when there were known seconds without any work."""
    is_idle = number(buckets.work("num_s")) < number(buckets.cover("num_cover_s")) - 0.5
    return np.where(is_idle, 0.0, buckets.work(f"min_{name}"))


def _per_capacity(part: str, whole: str, band: str, unknown: str = "") -> Formula:
    """Work over what the devices could have done in all the known time (or worker time)."""

    def formula(buckets: Buckets) -> Values:
        capacity = number(buckets.cover(whole))
        is_known = capacity > 0
        if unknown:
            is_known = is_known & ~(number(buckets.cover(unknown)) > 0)
        share = ratio(number(buckets.work(part)), capacity)
        return where(is_known, share, _low(buckets, band), number(buckets.work(f"max_{band}")))

    return formula


_busy_share: Final = _per_capacity("busy_s", "worker_s", "busy_wall")


def _busy(buckets: Buckets) -> Values:
    """Share of the workers' time in which steps ran; a gap where engines did steps and do not say for how long."""
    is_untimed = (number(buckets.work("steps")) > 0) & ~(number(buckets.work("busy_s")) > 0)
    found = _busy_share(buckets)
    return where(~is_untimed, found.value, found.min, found.max)


def _in_phase(part: str, band: str) -> Formula:
    """Work over what the device could have done while the phase ran; a gap when it did not run."""

    def formula(buckets: Buckets) -> Values:
        is_known = ~(number(buckets.work(f"{part}_unknown_s")) > 0)
        share = ratio(number(buckets.work(part)), number(buckets.work(f"{part}_room")))
        is_known &= ~np.isnan(share)
        return where(is_known, share, buckets.work(f"min_{band}"), buckets.work(f"max_{band}"))

    return formula


def _per_second(part: str) -> Formula:
    """Work per known second."""

    def formula(buckets: Buckets) -> Values:
        rate = ratio(number(buckets.work(part)), buckets.cover_s)
        return where(buckets.cover_s > 0, rate, _low(buckets, part), number(buckets.work(f"max_{part}")))

    return formula


def _amount(part: str) -> Formula:
    """Work in all; a gap where nothing is known. Exact: buckets of any step add up to the workers' own counters."""

    def formula(buckets: Buckets) -> Values:
        is_known = (buckets.cover_s > 0) | (number(buckets.work("num_s")) > 0)
        return Values(np.where(is_known, number(buckets.work(part)), np.nan))

    return formula


def _per(part: str, whole: str) -> Formula:
    """One kind of work over another; a gap when there was none."""
    return lambda buckets: Values(ratio(number(buckets.work(part)), number(buckets.work(whole))))


def _mean_of(sums: Columns, name: str, samples: str) -> Values:
    """Mean of the samples of one gauge; gauges may share a count: one without an extreme was not measured."""
    low, high = sums(f"min_{name}"), sums(f"max_{name}")
    return where(~np.isnan(high), ratio(number(sums(f"sum_{name}")), number(sums(samples))), low, high)


def _gauge(name: str) -> Formula:
    return lambda buckets: _mean_of(buckets.cover, name, GAUGES[name])


def _held(name: str, samples: str) -> Formula:
    return lambda buckets: _mean_of(buckets.traffic, name, samples)


def _num_workers(buckets: Buckets) -> Values:
    """Mean over all looks at the fleet: a role that nobody has is 0, not unknown."""
    looks, own = number(buckets.fleet_cover("num_load")), number(buckets.cover("num_load"))
    low = np.where(own >= looks, buckets.cover("min_num_workers"), 0.0)
    mean = ratio(number(buckets.cover("sum_num_workers")), looks)
    return where(looks > 0, mean, low, number(buckets.cover("max_num_workers")))


def _rate(name: str) -> Formula:
    """Requests per second, by arrival."""
    return lambda buckets: Values(ratio(number(buckets.traffic(name)), buckets.length_s))


def _attainment(buckets: Buckets) -> Values:
    return Values(ratio(number(buckets.traffic("good")), number(buckets.traffic("decided"))))


def _quantile(q: float) -> Formula:
    def formula(buckets: Buckets) -> Values:
        found = np.full(len(buckets.length_s), np.nan)
        some = buckets.latencies.quantile(q)
        found[: len(some)] = some
        return Values(found)

    return formula


# --- the table -------------------------------------------------------------------------------------------------------

_FLEET: Final = ("fleet",)
_POOLS: Final = ("fleet", "role")
_ALL: Final = ("fleet", "role", "worker")
_FLEET_RULE: Final = ("fleet", "rule")


def _info(name: str, unit: str, text: str, groups: tuple[str, ...], provenance: Provenance = "measured") -> MetricInfo:
    return MetricInfo(name=name, unit=unit, help=text, provenance=provenance, groups=groups)


def _utilizations(phase: Phase) -> list[Metric]:
    """The four utilizations of one phase, its busy share, its rates and its amounts."""
    rows: list[tuple[str, str, str, Formula, Provenance]] = [
        (
            "compute_wall",
            "fraction",
            f"{phase} FLOPs / (peak FLOP/s x all the time)",
            _per_capacity("flops", "flops_peak", "compute_wall", "no_flops_peak_s"),
            "derived",
        ),
        (
            "compute_in_phase",
            "fraction",
            f"{phase} FLOPs / (peak FLOP/s x the time {phase} ran)",
            _in_phase("flops", "compute_in_phase"),
            "derived",
        ),
        (
            "bandwidth_wall",
            "fraction",
            f"{phase} bytes / (peak bytes/s x all the time)",
            _per_capacity("bytes", "bytes_peak", "bandwidth_wall", "no_bytes_peak_s"),
            "derived",
        ),
        (
            "bandwidth_in_phase",
            "fraction",
            f"{phase} bytes / (peak bytes/s x the time {phase} ran)",
            _in_phase("bytes", "bandwidth_in_phase"),
            "derived",
        ),
        (
            "busy",
            "fraction",
            f"share of the workers' time in which a {phase} step ran: how long, not how hard",
            _busy,
            "measured",
        ),
        ("tokens_per_s", "tokens/s", f"tokens of {phase} steps", _per_second("tokens"), "measured"),
        ("flops_per_s", "FLOP/s", f"model FLOPs of {phase} steps", _per_second("flops"), "derived"),
        ("bytes_per_s", "bytes/s", f"model bytes of {phase} steps", _per_second("bytes"), "derived"),
        ("intensity", "FLOP/byte", f"FLOPs per byte of {phase} steps", _per("flops", "bytes"), "derived"),
        ("tokens_per_step", "tokens", f"tokens in one {phase} step", _per("tokens", "steps"), "measured"),
        ("tokens", "tokens", f"tokens of {phase} steps, in all of a point", _amount("tokens"), "measured"),
        ("steps", "steps", f"{phase} steps, in all of a point", _amount("steps"), "measured"),
        ("busy_s", "s", f"time in which {phase} steps ran, in all of a point", _amount("busy_s"), "measured"),
        ("flops", "FLOP", f"model FLOPs of {phase} steps, in all of a point", _amount("flops"), "derived"),
        ("bytes", "bytes", f"model bytes of {phase} steps, in all of a point", _amount("bytes"), "derived"),
    ]
    return [
        Metric(
            info=_info(f"{phase}_{name}", unit, text, _ALL, provenance),
            source="phase",
            phases=(phase,),
            formula=formula,
        )
        for name, unit, text, formula, provenance in rows
    ]


def _gauges() -> list[Metric]:
    rows: list[tuple[str, str, str, str]] = [
        ("kv_usage", "kv_usage", "fraction", "KV blocks held / KV blocks"),
        ("queued_prefill_tokens", "queued_prefill_tokens", "tokens", "uncached prompt tokens waiting or in chunks"),
        ("num_running", "num_running", "sequences", "sequences in decode"),
        ("num_waiting", "num_waiting", "requests", "requests that wait on a worker"),
        (
            "gpm_tensor_active",
            "tensor_active",
            "fraction",
            "tensor cores active, as NVML's GPM or DCGM says; mean over GPUs",
        ),
        (
            "gpm_dram_active",
            "dram_active",
            "fraction",
            "device memory active, as NVML's GPM or DCGM says; mean over GPUs",
        ),
        (
            "gpu_utilization",
            "gpu_utilization",
            "fraction",
            "time in which any kernel ran, as NVML's utilization.gpu says: the blended number; mean over GPUs",
        ),
        ("power_w", "power_w", "W", "power of the GPUs, as NVML says; sum"),
    ]
    return [
        Metric(info=_info(name, unit, text, _ALL), source="state", formula=_gauge(gauge))
        for name, gauge, unit, text in rows
    ]


def _latencies() -> list[Metric]:
    rows: list[tuple[str, str, tuple[float, ...], str, tuple[str, ...]]] = [
        ("ttft", "ttft", (0.5, 0.99), "time to first token, from arrival at the gateway", _FLEET_RULE),
        ("itl", "itl", (0.5, 0.99), "one gap between tokens, at the gateway; many per request", _FLEET_RULE),
        ("max_gap", "gap", (0.5, 0.99), "largest gap between two tokens of a request, one per request", _FLEET_RULE),
        ("tpot", "tpot", (0.5, 0.99), "(e2e - TTFT) / (tokens - 1), one per request", _FLEET_RULE),
        ("e2e", "e2e", (0.5, 0.99), "whole request, of those that were served", _FLEET_RULE),
        ("handoff", "worker_handoff", (0.5, 0.99), "KV from a prefill worker to a decode worker", _POOLS),
        ("queue", "worker_queue", (0.99,), "waiting on a worker before the first step", _POOLS),
        ("worker_ttft", "worker_ttft", (0.5, 0.99), "time to first token, as the workers or engines say it", _POOLS),
        ("worker_itl", "worker_itl", (0.5, 0.99), "one gap between tokens, as the workers or engines say it", _POOLS),
    ]
    return [
        Metric(
            info=_info(f"{name}_p{round(q * 100)}_s", "s", f"{text}; {round(q * 100)}th percentile", groups),
            source="latency",
            kind=kind,
            formula=_quantile(q),
        )
        for name, kind, quantiles, text, groups in rows
        for q in quantiles
    ]


def _traffic() -> list[Metric]:
    rows: list[tuple[str, str, str, Formula, tuple[str, ...]]] = [
        ("offered_rps", "requests/s", "arrivals that were ours to serve", _rate("offered"), _FLEET_RULE),
        ("goodput_rps", "requests/s", "arrivals that met every bound", _rate("good"), _FLEET_RULE),
        ("attainment", "fraction", "good / ended and not cancelled by the client", _attainment, _FLEET_RULE),
        ("error_rps", "requests/s", "arrivals that ended with an error or a time-out", _rate("errors"), _FLEET_RULE),
        ("rejected_rps", "requests/s", "arrivals answered with 429", _rate("rejected"), _FLEET_RULE),
        ("route_rps", "requests/s", "arrivals per routing rule", _rate("offered"), ("rule", "fleet")),
        ("in_flight", "requests", "requests that gateways hold", _held("in_flight", "num_samples"), _FLEET),
        (
            "oldest_waiting_s",
            "s",
            "age of the oldest request without a first token",
            _held("oldest_waiting_s", "num_waiting_samples"),
            _FLEET,
        ),
    ]
    return [
        Metric(info=_info(name, unit, text, groups), source="traffic", formula=formula)
        for name, unit, text, formula, groups in rows
    ]


_BLENDED: Final = Metric(
    info=_info(
        "blended_busy",
        "fraction",
        "share of the workers' time in which any step ran: the one number of other dashboards, which hides both phases",
        _ALL,
    ),
    source="phase",
    phases=(Phase.PREFILL, Phase.DECODE),
    formula=lambda buckets: Values(_busy(buckets).value),
)
_BOTH: Final = (Phase.PREFILL, Phase.DECODE)


def _whole_device(name: str, text: str, formula: Formula) -> Metric:
    """Both phases as one: what a device's own counters can be held against."""
    return Metric(
        info=_info(name, "fraction", text, _ALL, "derived"),
        source="phase",
        phases=_BOTH,
        formula=lambda buckets: Values(formula(buckets).value),
    )


_COMPUTE: Final = _whole_device(
    "compute_wall",
    "FLOPs of both phases / (peak FLOP/s x all the time); beside gpm_tensor_active",
    _per_capacity("flops", "flops_peak", "compute_wall", "no_flops_peak_s"),
)
_BANDWIDTH: Final = _whole_device(
    "bandwidth_wall",
    "bytes of both phases / (peak bytes/s x all the time); beside gpm_dram_active",
    _per_capacity("bytes", "bytes_peak", "bandwidth_wall", "no_bytes_peak_s"),
)
_WORKERS: Final = Metric(
    info=_info("num_workers", "workers", "living workers, by the role they have", _POOLS),
    source="state",
    formula=_num_workers,
    needs_fleet=True,
)

METRICS_BY_NAME: Final[Mapping[str, Metric]] = {
    metric.info.name: metric
    for metric in (
        *_utilizations(Phase.PREFILL),
        *_utilizations(Phase.DECODE),
        _BLENDED,
        _COMPUTE,
        _BANDWIDTH,
        *_gauges(),
        _WORKERS,
        *_traffic(),
        *_latencies(),
    )
}
#: The catalogue as the API shows it.
METRICS: Final[Mapping[str, MetricInfo]] = {name: metric.info for name, metric in METRICS_BY_NAME.items()}
