"""Banners: what a person must know to read the numbers right. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from control.types.routing import RoutingPolicy
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
    num_writes_spooled: int = 0,
    spooled_bytes: int = 0,
    spool_problem: str = "",
    tick_problem: str = "",
    stand_ins: str = "",
    observation_problems: tuple[str, ...] = (),
    is_attached: bool = False,
) -> tuple[str, ...]:
    """Every banner that holds now. `local_policy`: the local profile's thresholds, None in production."""
    found = []
    if history_problem:
        found.append(
            f"The history cannot be written: {history_problem}. Serving goes on, commands are refused; "
            f"{num_writes_waiting} writes wait in memory{_on_disk(num_writes_spooled, spooled_bytes)}."
        )
    elif num_writes_spooled:
        found.append(f"The history is back: {num_writes_spooled} writes of the spool are being written to it.")
    if spool_problem:
        found.append(f"The spool cannot be written: {spool_problem}. What waits for the history waits in memory only.")
    if num_writes_dropped:
        found.append(f"{num_writes_dropped} writes to the history were lost: it could not be written for too long.")
    if tick_problem:
        found.append(f"The last tick failed: {tick_problem}")
    if stand_ins:
        found.append(stand_ins)
    found += observation_problems
    if local_policy is not None and policy.min_fleet_devices < RoutingPolicy().min_fleet_devices:
        found.append(LOCAL_PROFILE)
    if sample_share:
        found.append(SAMPLE_TRAFFIC.format(share=sample_share))
    return (*found, *device_notices(readings, is_attached=is_attached))


def _on_disk(num_writes: int, num_bytes: int) -> str:
    return f", {num_writes} in the spool ({num_bytes / 1e6:.1f} MB)" if num_writes else ""


def device_notices(readings: Mapping[str, MeterReading], *, is_attached: bool = False) -> tuple[str, ...]:
    """What is simulated, and which devices have no known peak. Of an attached fleet that is said with its remedy
    (`FleetSnapshot.missing`)."""
    found = []
    simulated = sorted({r.device.name for r in readings.values() if r.simulated})
    if simulated and is_attached:
        found.append("Its engines only pretend (mock workers): every number of this fleet is simulated.")
    elif simulated:
        found.append(
            f"Simulated workers ({', '.join(simulated)}): step times come from a cost model, tokens from a seed."
        )
    unknown = sorted(
        {r.device.name for r in readings.values() if not r.device.peak_flops and not r.device.ceiling_flops}
    )
    if unknown and not is_attached:
        found.append(f"No peak is known for {', '.join(unknown)}: its utilization is not shown.")
    return tuple(found)
