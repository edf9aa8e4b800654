"""The values that go from accounting to the history: lines, and sums per line and second. Nothing is decided here.

A line is what a chart draws: the fleet, one role, one routing rule, or one epoch of one worker. Every row belongs to a
line, so every row carries fleet, model, epoch and `simulated`. A row's columns are plain floats whose names say how two
rows of one bucket become one: `min_` and `max_` keep the extreme, all others add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, Literal

import msgspec

from control.types.events import FleetEvent
from control.types.workers import Phase, Role, RoleInterval, WorkerState
from engine.readings import DeviceInfo, MeterReading, PhaseCounters

Scope = Literal["fleet", "role", "rule", "worker"]
Row = dict[str, float]

#: Work of one phase. `*_room`: what the device could have done in the time this phase ran (peak x in-phase time).
PHASE_SUMS: Final = (
    "num_s",  # seconds with work of this phase
    "busy_s",
    "cpu_s",
    "flops",
    "bytes",
    "tokens",
    "steps",
    "flops_room",
    "bytes_room",
    "flops_unknown_s",  # in-phase time on a device without a known peak
    "bytes_unknown_s",
    "fallback_s",  # of busy_s: spread from counters because ring records were lost
)
#: Per-second values whose smallest and largest a rollup keeps.
PHASE_BANDS: Final = (
    "flops",
    "bytes",
    "tokens",
    "compute_in_phase",
    "bandwidth_in_phase",
    "compute_wall",
    "bandwidth_wall",
    "busy_wall",
)

#: How much of a second is known, and what the line's devices could have done in it. A device shared by several workers
#: (a host's CPU) counts once in every line.
COVER_SUMS: Final = (
    "num_cover_s",  # seconds of which anything is known
    "worker_s",
    "device_s",
    "flops_peak",
    "bytes_peak",
    "no_flops_peak_s",
    "no_bytes_peak_s",
)
#: Gauge -> the column that counts its samples.
GAUGES: Final[Mapping[str, str]] = {
    "num_workers": "num_load",
    "queued_prefill_tokens": "num_load",
    "num_running": "num_load",
    "num_waiting": "num_load",
    "oldest_wait_s": "num_load",
    "kv_usage": "num_kv",
    "tensor_active": "num_gpm",
    "dram_active": "num_gpm",
    "gpu_utilization": "num_gpu_utilization",
    "power_w": "num_power",
}
STATE_SUMS: Final = (*COVER_SUMS, *dict.fromkeys(GAUGES.values()), *(f"sum_{name}" for name in GAUGES))
STATE_EXTREMES: Final = tuple(f"{side}_{name}" for name in GAUGES for side in ("min", "max"))

#: What gateways saw, by arrival.
TRAFFIC_SUMS: Final = (
    "offered",
    "decided",  # ended, and not by the client
    "good",
    "errors",
    "rejected",
    "cancelled",
    "prompt_tokens",
    "cached_tokens",
    "output_tokens",
    "num_samples",  # beats behind the two gauges: without one, no arrivals is unknown, not zero
    "sum_in_flight",
    "num_waiting_samples",
    "sum_oldest_waiting_s",
    "kept_slow",  # requests by what became of their records: kept, and why, or only counted, and as what
    "kept_failed",
    "kept_moved",
    "kept_share",
    "dropped_served",
    "dropped_refused",
    "dropped_cancelled",
)
TRAFFIC_EXTREMES: Final = ("min_in_flight", "max_in_flight", "min_oldest_waiting_s", "max_oldest_waiting_s")


@dataclass(frozen=True, slots=True)
class Line:
    """Identity of one line of one fleet. `name`: role, rule or worker id; "" for the fleet. Epoch 0: not one worker."""

    scope: Scope
    name: str
    model_id: str
    simulated: bool
    epoch: int = 0
    role: str = ""


#: How far a meter has been counted, for comparison: epoch, step records, seconds. Within one worker it only grows.
Mark = tuple[int, int, float]


class WorkerCursor(msgspec.Struct, frozen=True, kw_only=True):
    """How far one worker's meter has been counted. Saved in the same transaction as what was counted."""

    epoch: int
    num_records: int  # of the step ring, since the epoch began
    counters: dict[str, PhaseCounters]
    histograms: dict[str, dict[int, int]]
    known_until_unix_s: float
    role: Role
    state: WorkerState
    role_since_unix_s: float
    device_key: str
    open: bool  # its role interval has no end yet
    resume: bytes = b""  # `MeterReading.resume` of the reading that was counted
    num_changes: int = 0  # of role and state, since the epoch began
    anchor_s: float | None = None  # `MeterReading.anchor_s` of the reading that was counted
    jumped_s: float = 0.0  # by which the worker's clock was set, in all; negative: back
    earlier: WorkerCursor | None = None  # of the life before, which may still be told of
    num_late: int = 0  # readings of it since this life was first seen

    @property
    def mark(self) -> Mark:
        return (self.epoch, self.num_records + self.num_late, self.known_until_unix_s - self.jumped_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerEpoch:
    """One life of one worker, and the device behind its numbers."""

    worker_id: str
    epoch: int
    model_id: str
    simulated: bool
    hostname: str
    started_unix_s: float
    device: DeviceInfo
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingested:
    """What one observation adds to the history. Rows add up with those of the same key that are there already."""

    fleet_id: str
    at_unix_s: float
    phases: Mapping[tuple[Line, Phase, int], Row] = field(default_factory=dict)
    states: Mapping[tuple[Line, int], Row] = field(default_factory=dict)
    latencies: Mapping[tuple[Line, str, int], dict[int, int]] = field(default_factory=dict)
    roles: tuple[RoleInterval, ...] = ()
    epochs: tuple[WorkerEpoch, ...] = ()
    events: tuple[FleetEvent, ...] = ()
    counted_from: Mapping[str, Mark | None] = field(default_factory=dict)  # per worker in it; None: never counted


def is_new(ingested: Ingested, counted: Mapping[str, Mark]) -> bool:
    """Whether nothing of this is counted yet. Counted less far: what lay between was dropped, and stays lost.

    All or nothing: the fleet's and the roles' rows cannot be taken apart by worker.
    """
    return all(
        worker_id not in counted or (start is not None and counted[worker_id] <= start)
        for worker_id, start in ingested.counted_from.items()
    )


#: Lines are made anew for each life of a worker. So many are remembered at most, which is enough for a large fleet.
MAX_KNOWN_LINES: Final = 4096
#: Columns that count a second once, however often something is added to it.
ONCE_A_SECOND: Final = frozenset(("num_s", "num_cover_s"))


@lru_cache(maxsize=MAX_KNOWN_LINES)
def _lines(worker_id: str, epoch: int, model_id: str, simulated: bool, role: Role) -> tuple[Line, Line, Line]:
    """Fleet, role and worker line of what one life of a worker did or was as `role`."""
    return (
        Line("fleet", "", model_id, simulated),
        Line("role", role.value, model_id, simulated, role=role.value),
        Line("worker", worker_id, model_id, simulated, epoch, role.value),
    )


def lines_of(reading: MeterReading, role: Role) -> tuple[Line, Line, Line]:
    """Fleet, role and worker line of this worker as `role`."""
    return _lines(reading.worker_id, reading.epoch, reading.model_id, reading.simulated, role)


def add_row(into: Row, row: Mapping[str, float]) -> None:
    """Combine two rows of one key, column by column, as the names say."""
    for name, value in row.items():
        before = into.get(name)
        if before is None:
            into[name] = value
        elif (extreme := _extreme(name)) is None:
            into[name] = before + value
        else:
            into[name] = extreme(before, value)


@lru_cache(maxsize=256)
def _extreme(name: str) -> Callable[[float, float], float] | None:
    """What is kept of two values of a column; None: their sum."""
    if name.startswith("min_"):
        return min
    return max if name.startswith("max_") or name in ONCE_A_SECOND else None
