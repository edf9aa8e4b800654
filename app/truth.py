"""Every utilization side by side: fleet, pools, workers; wall and in-phase; derived and, where there is one, measured.

Values in, values out. The measured source sees a device, not a phase: it stands beside the derived sum of both phases,
with the difference in percentage points.
"""

from __future__ import annotations

from app import cards, format
from control.types.fleet import FleetSnapshot
from control.types.workers import PhaseUtilization, WorkerStatus

DERIVED_HEAD = ("", "Prefill compute", "Prefill bandwidth", "Decode compute", "Decode bandwidth", "Any step ran")
MEASURED_HEAD = ("Tensor cores", "DRAM", "utilization.gpu", "Power", "Memory")
_NOTHING = cards.Cell("–", num=True)


def head(snapshot: FleetSnapshot) -> tuple[str, ...]:
    """The columns of `rows`: those that devices measure only where one does."""
    return (*DERIVED_HEAD, *MEASURED_HEAD) if has_readings(snapshot) else DERIVED_HEAD


def rows(snapshot: FleetSnapshot) -> list[tuple[cards.Cell, ...]]:
    """The fleet, then its pools, then its workers."""
    found = [("Fleet", snapshot.prefill, snapshot.decode, None)]
    found += [
        (f"{pool.role.capitalize()} pool", pool.prefill, pool.decode, None)
        for pool in snapshot.pools
        if pool.num_ready or pool.num_desired
    ]
    workers = [(each.worker_id, each.prefill, each.decode, each) for each in snapshot.workers]
    num_columns = len(head(snapshot))
    return [_row(*each)[:num_columns] for each in (*found, *workers)]


def _row(
    name: str, prefill: PhaseUtilization | None, decode: PhaseUtilization | None, worker: WorkerStatus | None
) -> tuple[cards.Cell, ...]:
    derived = (
        cards.Cell(name),
        _both(prefill, "compute"),
        _both(prefill, "bandwidth"),
        _both(decode, "compute"),
        _both(decode, "bandwidth"),
        cards.Cell(format.percent(total(prefill, decode, "busy")), num=True),
    )
    if worker is None:
        return (*derived, *[_NOTHING] * 5)
    return (
        *derived,
        _beside(worker.measured_tensor_active, total(prefill, decode, "wall_compute")),
        _beside(worker.measured_dram_active, total(prefill, decode, "wall_bandwidth")),
        cards.Cell(format.percent(worker.gpu_utilization), num=True),
        cards.Cell(format.quantity(worker.power_w, "W") if worker.power_w is not None else "n/a", num=True),
        cards.Cell(format.size(worker.memory_used_bytes) if worker.memory_used_bytes is not None else "n/a", num=True),
    )


def total(prefill: PhaseUtilization | None, decode: PhaseUtilization | None, name: str) -> float | None:
    """Both phases as one, as a device sees them; unknown when what ran is unknown."""
    values = [getattr(each, name) for each in (prefill, decode) if each is not None]
    return sum(values) if values and None not in values else None


def _both(phase: PhaseUtilization | None, resource: str) -> cards.Cell:
    """Wall, then in-phase."""
    if phase is None:
        return _NOTHING
    wall, in_phase = getattr(phase, f"wall_{resource}"), getattr(phase, f"in_phase_{resource}")
    return cards.Cell(f"{format.percent(wall)} / {format.percent(in_phase)}", num=True)


def _beside(measured: float | None, derived: float | None) -> cards.Cell:
    """What the device says, and how far the derived number is from it."""
    if measured is None:
        return cards.Cell("n/a", num=True)
    if derived is None:
        return cards.Cell(format.percent(measured), num=True)
    return cards.Cell(f"{format.percent(measured)} ({100 * (derived - measured):+.1f})", num=True)


def has_readings(snapshot: FleetSnapshot) -> bool:
    """Whether any device answers anything."""
    return any(each.gpu_utilization is not None or each.power_w is not None for each in snapshot.workers)


def is_measured(snapshot: FleetSnapshot) -> bool:
    """Whether any device answers GPM."""
    return any(each.measured_tensor_active is not None for each in snapshot.workers)


def note(snapshot: FleetSnapshot) -> str:
    """What the two kinds of number are, and why one of them is missing."""
    words = "Each pair is wall / in-phase. "
    if is_measured(snapshot):
        return (
            words + "Measured: NVML's GPM, or DCGM, over each device; beside it how far the derived sum of both phases "
            "is off."
        )
    return words + no_measured_source(snapshot)


def no_measured_source(snapshot: FleetSnapshot) -> str:
    """Why there is no second source here."""
    told = sorted({each.device_note for each in snapshot.workers if each.device_note})
    ours = "no NVIDIA device with GPM answers on these hosts"
    theirs = "name dcgm-exporters where this fleet is attached (--gpu-metrics)"
    why = "; ".join(told) if told else theirs if snapshot.is_attached else ours
    return f"There is no measured source beside the derived one here: {why}."
