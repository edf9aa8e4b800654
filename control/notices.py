"""Banners: what a person must know to read the numbers right. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from control.types import RoutingPolicy
from engine.readings import MeterReading

LOCAL_PROFILE = (
    "Routing thresholds of the local profile, so that a few CPU workers split at all: not production values."
)
SAMPLE_TRAFFIC = (
    "{share:.0%} of the last minute's requests are sample traffic, made up here. "
    "`phaseline sample-traffic off` stops it."
)


def notices_of(
    readings: Mapping[str, MeterReading],
    policy: RoutingPolicy,
    local_policy: RoutingPolicy | None,
    *,
    sample_share: float | None = None,
    history_problem: str = "",
    num_writes_waiting: int = 0,
    num_writes_dropped: int = 0,
    tick_problem: str = "",
    observation_problems: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Every banner that holds now. `local_policy`: the local profile's thresholds, None in production."""
    found = []
    if history_problem:
        found.append(
            f"The history cannot be written: {history_problem}. Serving goes on, commands are refused; "
            f"{num_writes_waiting} writes wait in memory."
        )
    if num_writes_dropped:
        found.append(f"{num_writes_dropped} writes to the history were lost: it could not be written for too long.")
    if tick_problem:
        found.append(f"The last tick failed: {tick_problem}")
    found += observation_problems
    if local_policy is not None and policy.min_fleet_devices < RoutingPolicy().min_fleet_devices:
        found.append(LOCAL_PROFILE)
    if sample_share:
        found.append(SAMPLE_TRAFFIC.format(share=sample_share))
    return (*found, *device_notices(readings))


def device_notices(readings: Mapping[str, MeterReading]) -> tuple[str, ...]:
    """What is simulated, and which devices have no known peak."""
    found = []
    simulated = sorted({r.device.name for r in readings.values() if r.simulated})
    if simulated:
        found.append(
            f"Simulated workers ({', '.join(simulated)}): step times come from a cost model, tokens from a seed."
        )
    unknown = sorted(
        {r.device.name for r in readings.values() if not r.device.peak_flops and not r.device.ceiling_flops}
    )
    if unknown:
        found.append(f"No peak is known for {', '.join(unknown)}: its utilization is not shown.")
    return tuple(found)
