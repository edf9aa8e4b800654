"""Courses of metrics over time, smooth and the same at each run, for `tests.app.fake_plane`."""

from __future__ import annotations

import math

from control.types.commands import Desired
from control.types.series import MetricInfo
from control.types.workers import Role

FRACTIONS = ("compute", "bandwidth", "busy", "usage", "attainment", "active")
GROUPS = ("fleet", "role", "worker")


def metric_names() -> list[str]:
    phases = [
        f"{p}_{r}_{b}" for p in ("prefill", "decode") for r in ("compute", "bandwidth") for b in ("wall", "in_phase")
    ]
    rest = (
        "blended_busy num_workers goodput_rps offered_rps ttft_p50_s ttft_p99_s itl_p50_s itl_p99_s kv_usage "
        "oldest_waiting_s attainment compute_wall bandwidth_wall gpm_tensor_active gpm_dram_active "
        "queued_prefill_tokens num_running in_flight decode_tokens_per_s route_rps decode_bytes_per_s "
        "worker_ttft_p99_s worker_itl_p99_s"
    )
    return [*phases, *rest.split()]


def unit_of(metric: str) -> str:
    if any(part in metric for part in FRACTIONS) and not metric.endswith("_s"):
        return "fraction"
    for ending, unit in (("_bytes_per_s", "bytes/s"), ("_tokens_per_s", "tokens/s"), ("_rps", "rps"), ("_s", "s")):
        if metric.endswith(ending):
            return unit
    return "tokens" if "tokens" in metric else "count"


def catalogue() -> list[MetricInfo]:
    return [
        MetricInfo(
            name=name,
            unit=unit_of(name),
            help=name.replace("_", " ").capitalize(),
            provenance="derived",
            groups=("fleet", "rule") if name == "route_rps" else ("role",) if name == "num_workers" else GROUPS,
        )
        for name in metric_names()
    ]


def course(metric: str, label: str, at_s: float, desired: Desired, *, has_gpm: bool) -> float | None:
    """A smooth, deterministic course; a gap of 20 s every ten minutes shows what a gap looks like."""
    if 340.0 < at_s % 600.0 < 352.0 and "prefill" in metric:
        return None
    wave = math.sin(at_s / 97.0) * 0.5 + math.sin(at_s / 13.0) * 0.3 + math.sin(at_s * 1.7) * 0.2
    num_prefill = max(1, desired.pool_size(Role.PREFILL))
    share = num_prefill / max(1, len(desired.roles))
    if metric == "num_workers":
        return float(desired.pool_size(Role(label)) if label else len(desired.roles))
    if metric.startswith("prefill_compute"):
        level = min(0.95, 0.17 / share)
        return bounded(level + 0.07 * wave if metric.endswith("wall") else 0.88 + 0.05 * wave)
    if metric.startswith("decode_bandwidth"):
        level = min(0.9, 0.5 * 0.75 / max(0.05, 1 - share))
        return bounded(level + 0.05 * wave if metric.endswith("wall") else 0.72 + 0.04 * wave)
    if metric.startswith("gpm_"):
        return bounded(0.4 + 0.19 * wave) if has_gpm else None
    if metric == "blended_busy":
        return bounded(0.96 + 0.03 * wave)
    if unit_of(metric) == "fraction":
        return bounded(0.4 + 0.2 * wave)
    scale = {
        "s": 0.4 if "ttft" in metric else 0.03,
        "rps": 3.2,
        "tokens/s": 240.0,
        "bytes/s": 2.1e9,
        "tokens": 400.0,
    }
    return scale.get(unit_of(metric), 6.0) * (1.0 + 0.3 * wave)


def labels(metric: str, by: str, desired: Desired) -> list[str]:
    if by == "role":
        if metric == "num_workers":
            return [role for role in ("prefill", "decode", "mixed") if desired.pool_size(Role(role))]
        return ["prefill", "decode"]
    if by == "worker":
        return list(desired.roles)
    return ["remote", "short_local", "cached_local"] if by == "rule" else [""]


def bounded(value: float) -> float:
    return min(1.0, max(0.0, value))
