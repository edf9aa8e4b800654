"""Series: one metric over a range, per group.

Decided here: the step (at most MAX_POINTS points a line, fewer when there are many lines), and that missing buckets are
gaps. What is read for a bucket stands in `control.history.sums`, what its value is in `control.metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, select

from control.errors import CommandRefused, NotFound
from control.history import schema
from control.history.chunks import STATE, TRAFFIC, latency_kind, phase_kind
from control.history.marks import read_marks
from control.history.sums import Lines, Range, Source, Sums, histograms
from control.history.tail import Tail
from control.metrics import METRICS_BY_NAME, Bucket, Metric
from control.types import Series, SeriesPoint, SeriesResult

MAX_POINTS: Final = 1_000
#: Of all lines together: a chart of 200 lines has 40 points of each, and no extreme less.
MAX_ALL_POINTS: Final = 4_000
LEAST_POINTS: Final = 40
LIMIT_POINTS: Final = 20_000
NICE_STEPS: Final = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)

_Buckets = dict[tuple[str, int], Bucket]  # by group and time


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesQuery:
    """[since, until) of one metric of one fleet. `step_s` None: chosen. `names`: only these groups; () is all."""

    fleet_id: str
    metric: str
    since_unix_s: float
    until_unix_s: float
    step_s: int | None = None
    by: str = "fleet"
    names: tuple[str, ...] = ()


def _bad(field: str, value: Any, bound: str) -> CommandRefused:
    return CommandRefused(f"{field} is {value}, must be {bound}", field=field, value=value, bound=bound)


def checked_metric(query: SeriesQuery) -> Metric:
    """The metric asked for. Raises NotFound or CommandRefused, naming field, value and bound."""
    metric = METRICS_BY_NAME.get(query.metric)
    if metric is None:
        raise NotFound(f"unknown metric {query.metric!r}", field="metric", value=query.metric)
    if query.by not in metric.info.groups:
        raise _bad("by", query.by, f"one of {', '.join(metric.info.groups)} for {query.metric}")
    if not 0 <= query.since_unix_s < query.until_unix_s < 1e11:
        raise _bad("since_unix_s", query.since_unix_s, f"at least 0 and before until_unix_s ({query.until_unix_s})")
    if query.step_s is not None and not 1 <= query.step_s <= NICE_STEPS[-1]:
        raise _bad("step_s", query.step_s, f"1 to {NICE_STEPS[-1]} seconds")
    length_s = query.until_unix_s - query.since_unix_s
    if query.step_s is not None and length_s / query.step_s > LIMIT_POINTS:
        raise _bad("step_s", query.step_s, f"at least {ceil(length_s / LIMIT_POINTS)} s for this range")
    return metric


def choose_step(query: SeriesQuery, pruned: Mapping[int, int], num_lines: int = 1) -> int:
    """Smallest nice step with few enough points a line that is still stored back to the range's start."""
    length_s = query.until_unix_s - query.since_unix_s
    most = min(MAX_POINTS, max(LEAST_POINTS, MAX_ALL_POINTS // max(1, num_lines)))
    nice = (step for step in NICE_STEPS if length_s / step <= most)
    step_s = query.step_s or next(nice, NICE_STEPS[-1])
    while query.since_unix_s < pruned.get(base_step(step_s), 0) and base_step(step_s) < schema.STEPS[-1]:
        coarser = schema.STEPS[schema.STEPS.index(base_step(step_s)) + 1]
        step_s = ceil(step_s / coarser) * coarser
    return step_s


def base_step(step_s: int) -> int:
    """Coarsest stored step that divides `step_s`."""
    return next(step for step in reversed(schema.STEPS) if step_s % step == 0)


def read_buckets(
    connection: Connection, query: SeriesQuery, tail: Tail
) -> tuple[int, dict[tuple[str, int], Bucket], bool]:
    """The sums behind a series: step, what is known per group and bucket, whether any of it is simulated. Raises
    NotFound and CommandRefused on a bad query."""
    reader = _Reader(connection, query, checked_metric(query), tail)
    return reader.step_s, reader.buckets(), reader.simulated


def read_series(connection: Connection, query: SeriesQuery, tail: Tail) -> SeriesResult:
    """Raises NotFound and CommandRefused on a bad query."""
    metric = checked_metric(query)
    reader = _Reader(connection, query, metric, tail)
    buckets, step_s = reader.buckets(), reader.step_s
    times = range(floor(query.since_unix_s / step_s) * step_s, ceil(query.until_unix_s), step_s)
    groups = sorted({group for group, _ in buckets}, key=_natural)
    series = tuple(
        Series(label=group, points=tuple(reader.point(t, buckets.get((group, t))) for t in times)) for group in groups
    )
    return SeriesResult(
        fleet_id=query.fleet_id,
        metric=metric.info.name,
        unit=metric.info.unit,
        provenance="simulated" if reader.simulated else metric.info.provenance,
        step_s=step_s,
        since_unix_s=query.since_unix_s,
        until_unix_s=query.until_unix_s,
        by=query.by,
        series=series,
        note=reader.note(),
    )


def read_good_counts(
    connection: Connection, tail: Tail, fleet_id: str, since_unix_s: float, until_unix_s: float, step_s: int
) -> list[tuple[int, int, int]]:
    """Per step that has any: (its begin, good requests, requests that count), by arrival."""
    query = SeriesQuery(
        fleet_id=fleet_id, metric="attainment", since_unix_s=since_unix_s, until_unix_s=until_unix_s, step_s=step_s
    )
    found = _Reader(connection, query, METRICS_BY_NAME["attainment"], tail).buckets()
    return [
        (t, int(bucket.traffic.get("good") or 0), int(decided))
        for (_, t), bucket in sorted(found.items())
        if (decided := bucket.traffic.get("decided") or 0)
    ]


def _natural(name: str) -> tuple[str, int]:
    """w2 before w10."""
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :] or -1)


class _Reader:
    """Reads what one query asks for."""

    def __init__(self, connection: Connection, query: SeriesQuery, metric: Metric, tail: Tail) -> None:
        self._connection, self._query, self._metric, self._tail = connection, query, metric, tail
        self._pruned = read_marks(connection, "pruned-")
        lines = find_lines(connection, query.fleet_id, query.by, query.names)
        self.step_s = choose_step(query, self._pruned, len(lines.names))
        self._end_s = ceil(query.until_unix_s)
        self._source = self._source_of(lines)
        self.simulated = False  # until a simulated line has given something

    def _source_of(self, lines: Lines) -> Source:
        since = floor(self._query.since_unix_s / self.step_s) * self.step_s
        base_s = base_step(self.step_s)
        span = Range(since, self._end_s, self.step_s, base_s, self._pruned.get(1, 0))
        return Source(self._connection, self._tail, lines, span)

    def buckets(self) -> _Buckets:
        """Everything that is known, per group and bucket."""
        match self._metric.source:
            case "phase":
                return self._phase_buckets()
            case "state":
                return self._state_buckets()
            case "traffic":
                found = self._noted(Sums(self._source, (TRAFFIC,)))
                return {key: Bucket(length_s=self._length_s(key[1]), traffic=sums) for key, sums in found.rows.items()}
            case "latency":
                counts, simulated = histograms(self._source, latency_kind(self._metric.kind))
                self.simulated |= simulated
                return {key: Bucket(length_s=self._length_s(key[1]), latencies=each) for key, each in counts.items()}

    def _noted(self, sums: Sums) -> Sums:
        self.simulated |= sums.simulated
        return sums

    def _phase_buckets(self) -> _Buckets:
        cover = self._noted(Sums(self._source, (STATE,)))
        kinds = [phase_kind(phase) for phase in self._metric.phases]
        work = self._noted(Sums(self._source, kinds, cover.seconds[0]))
        seconds = "worker_s" if self._query.by == "worker" else "num_cover_s"  # a flip: one second in two lines
        return {
            key: Bucket(
                length_s=self._length_s(key[1]),
                cover_s=cover.rows[key].get(seconds) or 0.0 if key in cover.rows else 0.0,
                work=work.rows.get(key, {}),
                cover=cover.rows.get(key, {}),
            )
            for key in cover.rows.keys() | work.rows.keys()
        }

    def _state_buckets(self) -> _Buckets:
        cover = self._noted(Sums(self._source, (STATE,)))
        fleet, keys = cover, set(cover.rows)
        if self._metric.needs_fleet:
            if self._query.by != "fleet":
                everybody = find_lines(self._connection, self._query.fleet_id, "fleet")
                fleet = self._noted(Sums(self._source_of(everybody), (STATE,)))
            keys = {(group, t) for group in {group for group, _ in cover.rows} for _, t in fleet.rows}
        return {
            (group, t): Bucket(
                length_s=self._length_s(t),
                cover=cover.rows.get((group, t), {}),
                fleet_cover=fleet.rows.get((_FLEET_LABEL, t), {}),
            )
            for group, t in keys
        }

    def point(self, t: int, bucket: Bucket | None) -> SeriesPoint:
        is_cut = t + self.step_s > self._query.until_unix_s
        if bucket is None:
            return SeriesPoint(t_unix_s=t, value=None, partial=is_cut)
        found = self._metric.formula(bucket)
        known_s = bucket.cover.get("num_cover_s")
        count = sum(bucket.latencies.values()) or int(known_s or bucket.traffic.get("offered") or 0)
        is_partial = is_cut or (known_s is not None and known_s < self.step_s - 0.5)
        return SeriesPoint(t_unix_s=t, value=found.value, min=found.min, max=found.max, count=count, partial=is_partial)

    def note(self) -> str:
        """What a reader of the chart should know."""
        if self._metric.source in ("traffic", "latency") and self._metric.kind[:7] != "worker_":
            return "by arrival: the last seconds fill in as requests end"
        if self._metric.source == "phase" and self._metric.info.name.endswith(("_wall", "_in_phase")):
            epochs = schema.worker_epochs.c
            found = select(epochs.basis).where(epochs.fleet_id == self._query.fleet_id).distinct()
            return f"peak: {', '.join(sorted(self._connection.execute(found).scalars())) or 'unknown'}"
        return ""

    def _length_s(self, t: int) -> float:
        """Seconds of this bucket that the points read for it stand for."""
        reach = self._end_s if self._end_s >= self._pruned.get(1, 0) else t + self.step_s
        return float(min(t + self.step_s, reach) - t)


def find_lines(connection: Connection, fleet_id: str, scope: str, names: tuple[str, ...] = ()) -> Lines:
    """Lines of one scope of a fleet; a group is all lines of one name."""
    line, shelf = schema.lines.c, schema.shelves.c
    wanted = (
        select(line.line_id, line.shelf_id, shelf.folded, line.name, line.simulated)
        .join_from(schema.lines, schema.shelves, line.shelf_id == shelf.shelf_id)
        .where(line.fleet_id == fleet_id, line.scope == scope)
        .order_by(line.line_id)
    )
    rows = connection.execute(wanted.where(line.name.in_(names)) if names else wanted).all()
    labels = {name: index for index, name in enumerate(dict.fromkeys(row.name for row in rows))}
    return Lines(
        ids=np.array([row.line_id for row in rows], np.int64),
        shelves=np.array([row.shelf_id for row in rows], np.int64),
        folded=np.array([row.folded for row in rows], np.int64),
        groups=np.array([labels[row.name] for row in rows], np.int64),
        names=tuple(name or _FLEET_LABEL for name in labels),
        simulated=np.array([row.simulated for row in rows], np.bool_),
    )


_FLEET_LABEL: Final = "fleet"
