"""Each worker under its device's roofline: FLOP per byte against FLOP/s, per phase. Pure, but for what it has added up.

Decided here: a point is a ratio of sums over its time, so that many short steps weigh as they should: FLOPs / bytes,
and FLOPs over the time in which that phase ran (on a CPU the thread's own seconds). A phase that did not run has none.
The last minute comes from the plane's memory, in slots of SLOT_S; any other range from the history's series.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from control.ceilings import roof_of
from control.history.store import SeriesQuery
from control.points import Ingested
from control.types.roofline import Roofline, RooflinePoint
from control.types.series import SeriesResult
from control.types.workers import Phase, Role
from engine.readings import MeterReading

SLOT_S: Final = 10
WINDOW_S: Final = 60
#: Late work still finds its slot.
_KEPT_SLOTS: Final = WINDOW_S // SLOT_S + 3
_COLUMNS: Final = ("flops", "bytes", "busy_s", "cpu_s", "tokens", "steps")
#: Metrics of one phase that a point of a range is made of.
RANGE_METRICS: Final = ("intensity", "compute_in_phase", "tokens_per_step")
MAX_BUCKETS: Final = 60
STEPS_S: Final = (10, 30, 60, 300, 600, 1800, 3600, 7200, 21_600, 43_200, 86_400)
_Key = tuple[str, Role, Phase]  # worker


class RecentWork:
    """Work of the last minute, per worker, role and phase. Bounded: workers that did nothing in it are forgotten."""

    def __init__(self) -> None:
        self._slots: dict[_Key, dict[int, list[float]]] = {}

    def add(self, ingested: Ingested) -> None:
        newest = int(ingested.at_unix_s) // SLOT_S
        for (line, phase, second), row in ingested.phases.items():
            if line.scope != "worker" or second // SLOT_S <= newest - _KEPT_SLOTS:
                continue
            slots = self._slots.setdefault((line.name, Role(line.role), phase), {})
            sums = slots.setdefault(second // SLOT_S, [0.0] * len(_COLUMNS))
            for index, name in enumerate(_COLUMNS):
                sums[index] += row.get(name, 0.0)
        for key, slots in list(self._slots.items()):
            for slot in [each for each in slots if each <= newest - _KEPT_SLOTS]:
                del slots[slot]
            if not slots:
                del self._slots[key]

    def totals(self, now_unix_s: float) -> dict[_Key, dict[str, float]]:
        """Sums over the slots of the last WINDOW_S, the running one included."""
        first = (int(now_unix_s) - WINDOW_S) // SLOT_S + 1
        found = {}
        for key, slots in self._slots.items():
            inside = [sums for slot, sums in slots.items() if slot >= first]
            if inside:
                found[key] = {
                    name: sum(column) for name, column in zip(_COLUMNS, zip(*inside, strict=True), strict=True)
                }
        return found


def live_roofline(
    fleet_id: str, recent: RecentWork, readings: Mapping[str, MeterReading], now_unix_s: float
) -> Roofline:
    """One point per worker, role and phase over the last minute."""
    points = []
    for (worker_id, role, phase), sums in sorted(recent.totals(now_unix_s).items()):
        reading = readings.get(worker_id)
        if reading is None:
            continue
        seconds = sums["cpu_s"] if reading.device.kind == "cpu" else sums["busy_s"]
        if seconds <= 0 or sums["bytes"] <= 0 or sums["flops"] <= 0:
            continue
        points.append(
            RooflinePoint(
                worker_id=worker_id,
                role=role,
                phase=phase,
                roof=roof_of(reading.device).name,
                t_unix_s=now_unix_s - WINDOW_S,
                length_s=float(WINDOW_S),
                intensity=sums["flops"] / sums["bytes"],
                flops_per_s=sums["flops"] / seconds,
                tokens_per_step=sums["tokens"] / sums["steps"] if sums["steps"] else None,
            )
        )
    return _roofline(fleet_id, points, readings.values(), now_unix_s - WINDOW_S, now_unix_s)


def range_queries(fleet_id: str, since_unix_s: float, until_unix_s: float) -> dict[tuple[Phase, str], SeriesQuery]:
    """What a range's points are made of: at most MAX_BUCKETS buckets of each worker."""
    least = (until_unix_s - since_unix_s) / MAX_BUCKETS
    step_s = next((step for step in STEPS_S if step >= least), STEPS_S[-1])
    return {
        (phase, name): SeriesQuery(
            fleet_id=fleet_id,
            metric=f"{phase}_{name}",
            since_unix_s=since_unix_s,
            until_unix_s=until_unix_s,
            step_s=step_s,
            by="worker",
        )
        for phase in Phase
        for name in RANGE_METRICS
    }


def range_roofline(
    fleet_id: str,
    series: Mapping[tuple[Phase, str], SeriesResult],
    readings: Mapping[str, MeterReading],
    since_unix_s: float,
    until_unix_s: float,
) -> Roofline:
    """One point per worker, phase and bucket of the series; workers that are gone have no device to stand under."""
    points = []
    for phase in Phase:
        values = {name: _by_bucket(series[phase, name]) for name in RANGE_METRICS}
        step_s = float(series[phase, "intensity"].step_s)
        for (worker_id, t), intensity in sorted(values["intensity"].items()):
            reading, share = readings.get(worker_id), values["compute_in_phase"].get((worker_id, t))
            roof = roof_of(reading.device) if reading else None
            if reading is None or roof is None or not share or not roof.peak_flops:
                continue
            points.append(
                RooflinePoint(
                    worker_id=worker_id,
                    role=reading.role,
                    phase=phase,
                    roof=roof.name,
                    t_unix_s=t,
                    length_s=step_s,
                    intensity=intensity,
                    flops_per_s=share * roof.peak_flops,
                    tokens_per_step=values["tokens_per_step"].get((worker_id, t)),
                )
            )
    return _roofline(fleet_id, points, readings.values(), since_unix_s, until_unix_s)


def _by_bucket(result: SeriesResult) -> dict[tuple[str, float], float]:
    return {
        (line.label, point.t_unix_s): point.value
        for line in result.series
        for point in line.points
        if point.value is not None
    }


def _roofline(
    fleet_id: str, points: list[RooflinePoint], readings: Iterable[MeterReading], since: float, until: float
) -> Roofline:
    known = list(readings)
    roofs = {roof.name: roof for roof in (roof_of(each.device) for each in known)}
    return Roofline(
        fleet_id=fleet_id,
        since_unix_s=since,
        until_unix_s=until,
        roofs=tuple(roofs[name] for name in sorted(roofs)),
        points=tuple(points),
        simulated=any(each.simulated for each in known),
    )
