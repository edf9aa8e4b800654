"""The last seconds of a fleet in memory, and the live utilization read from them.

Decided here: which seconds are finished. The window ends at the newest whole second that every fresh worker has passed
and in which no step is still running (a step is counted when it ends), at most LAG_S back: a longer step shows late.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor
from typing import Final

from control.points import Line, Row, add_row
from control.types.workers import Phase, PhaseUtilization, Role
from engine.readings import MeterReading
from engine.types import PHASES

#: As far as the longest window that is asked for reaches back, and some for a late reading.
KEEP_S: Final = 20
LAG_S: Final = 3
_Key = tuple[str, str]  # scope and name


@dataclass(frozen=True, slots=True, kw_only=True)
class UtilizationView:
    """Live utilization. A phase is there for every group of which anything is known in the window."""

    start_unix_s: int
    end_unix_s: int
    fleet: Mapping[Phase, PhaseUtilization] = field(default_factory=dict)
    roles: Mapping[Role, Mapping[Phase, PhaseUtilization]] = field(default_factory=dict)
    workers: Mapping[str, Mapping[Phase, PhaseUtilization]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Seen:
    """When one worker was last read, and how far its work is known."""

    at_unix_s: float
    finished_unix_s: float
    role: Role
    simulated: bool
    basis: str
    is_timed: bool  # it says how long its steps took


class Recent:
    """Rows of the last KEEP_S seconds, summed per fleet, role and worker."""

    def __init__(self) -> None:
        self._work: dict[tuple[_Key, Phase], dict[int, Row]] = {}
        self._cover: dict[_Key, dict[int, Row]] = {}
        self._seen: dict[str, _Seen] = {}
        self._newest_s = 0

    def add(self, phases: Mapping[tuple[Line, Phase, int], Row], states: Mapping[tuple[Line, int], Row]) -> None:
        """Take in what one observation added, and forget what is too old."""
        for (line, second), row in states.items():
            self._newest_s = max(self._newest_s, second)
            seconds = self._cover.setdefault((line.scope, line.name), {})
            add_row(seconds.setdefault(second, {}), {name: row[name] for name in row if name in _COVER})
        for (line, phase, second), row in phases.items():
            key = ((line.scope, line.name), phase)
            add_row(self._work.setdefault(key, {}).setdefault(second, {}), row)
        self._forget()

    def seen(self, readings: Iterable[MeterReading], basis: Mapping[str, str]) -> None:
        """Note how far each living worker's work is known."""
        for reading in readings:
            running_s = reading.step_running_s or 0.0
            self._seen[reading.worker_id] = _Seen(
                reading.at_unix_s,
                reading.at_unix_s - running_s,
                reading.role,
                reading.simulated,
                basis.get(reading.worker_id, "unknown"),
                "busy_s" not in reading.unknown,
            )

    def utilization(self, now_unix_s: float, window_s: int) -> UtilizationView:
        """Over `window_s` whole seconds; groups of which nothing is known in them are absent."""
        fresh = {name: seen for name, seen in self._seen.items() if seen.at_unix_s > now_unix_s - LAG_S}
        passed = min((seen.finished_unix_s for seen in fresh.values()), default=now_unix_s)
        end = max(floor(passed), floor(now_unix_s) - LAG_S)
        start = end - window_s
        roles: dict[Role, dict[Phase, PhaseUtilization]] = {}
        workers: dict[str, dict[Phase, PhaseUtilization]] = {}
        fleet: dict[Phase, PhaseUtilization] = {}
        for scope, name in self._cover:
            found = self._group((scope, name), start, end)
            if not found:
                continue
            if scope == "fleet":
                fleet = found
            elif scope == "role":
                roles[Role(name)] = found
            else:
                workers[name] = found
        return UtilizationView(start_unix_s=start, end_unix_s=end, fleet=fleet, roles=roles, workers=workers)

    def _group(self, key: _Key, start: int, end: int) -> dict[Phase, PhaseUtilization]:
        known = self._cover[key]
        seconds = [second for second in range(start, end) if "worker_s" in known.get(second, {})]
        if not seconds:
            return {}
        cover = _total(known, seconds)
        members = self._members(key)
        found = {
            phase: phase_utilization(
                _total(self._work.get((key, phase), {}), seconds), cover, len(seconds), *_provenance(members)
            )
            for phase in PHASES
        }
        if all(each.is_timed for each in members):
            return found
        return {phase: replace(each, busy=None) for phase, each in found.items()}

    def _members(self, key: _Key) -> list[_Seen]:
        scope, name = key
        if scope == "worker":
            return [self._seen[name]] if name in self._seen else []
        return [seen for seen in self._seen.values() if scope == "fleet" or seen.role == name]

    def _forget(self) -> None:
        oldest = self._newest_s - KEEP_S
        for table in (self._work, self._cover):
            for key in list(table):
                rows = table[key]  # type: ignore[index]
                for second in [each for each in rows if each < oldest]:
                    del rows[second]
                if not rows:
                    del table[key]  # type: ignore[arg-type]
        self._seen = {name: seen for name, seen in self._seen.items() if seen.at_unix_s >= oldest}


_COVER: Final = frozenset(("worker_s", "device_s", "flops_peak", "bytes_peak", "no_flops_peak_s", "no_bytes_peak_s"))


def _provenance(members: Sequence[_Seen]) -> tuple[str, bool]:
    """The basis of their peaks, and whether one of them is simulated."""
    found = {seen.basis for seen in members}
    basis = found.pop() if len(found) == 1 else "mixed" if found else "unknown"
    return basis, any(seen.simulated for seen in members)


def _total(rows: Mapping[int, Row], seconds: Iterable[int]) -> Row:
    total: Row = {}
    for second in seconds:
        add_row(total, rows.get(second, {}))
    return total


def ratio(part: float, whole: float, unknown: float = 0.0) -> float | None:
    """part / whole; None when there is no whole, or when part of it is unknown."""
    return part / whole if whole > 0 and unknown <= 0 else None


def phase_utilization(work: Row, cover: Row, num_seconds: int, basis: str, simulated: bool) -> PhaseUtilization:
    """The five numbers of one phase. No in-phase number when the phase did not run."""
    flops, num_bytes = work.get("flops", 0.0), work.get("bytes", 0.0)
    is_untimed = work.get("steps", 0.0) > 0 and work.get("busy_s", 0.0) <= 0  # an engine that does not say how long
    return PhaseUtilization(
        wall_compute=ratio(flops, cover.get("flops_peak", 0.0), cover.get("no_flops_peak_s", 0.0)),
        wall_bandwidth=ratio(num_bytes, cover.get("bytes_peak", 0.0), cover.get("no_bytes_peak_s", 0.0)),
        in_phase_compute=ratio(flops, work.get("flops_room", 0.0), work.get("flops_unknown_s", 0.0)),
        in_phase_bandwidth=ratio(num_bytes, work.get("bytes_room", 0.0), work.get("bytes_unknown_s", 0.0)),
        busy=None if is_untimed else ratio(work.get("busy_s", 0.0), cover.get("worker_s", 0.0)),
        tokens_per_s=work.get("tokens", 0.0) / num_seconds,
        basis=basis,
        provenance="simulated" if simulated else "derived",
    )
