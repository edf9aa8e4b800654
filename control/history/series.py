"""Series: one metric over a range, per group.

Decided here: the step (at most MAX_POINTS points a line, fewer when there are many lines), and that missing buckets are
gaps. What is read for a bucket stands in `control.history.sums`, what its value is in `control.metrics`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, floor
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, select

from control.buckets import UNKNOWN, Buckets, Floats, Values, number
from control.errors import CommandRefused, NotFound
from control.history import schema
from control.history.chunks import STATE, TRAFFIC, latency_kind, phase_kind
from control.history.codec import Ints
from control.history.frames import Mask
from control.history.marks import read_marks
from control.history.sums import Lines, Range, Source, Sums, histograms
from control.history.tail import Tail
from control.metrics import METRICS_BY_NAME, Metric
from control.types.series import Series, SeriesPoint, SeriesResult

MAX_POINTS: Final = 1_000
#: Of all lines together: a chart of 200 lines has 40 points of each, and no extreme less.
MAX_ALL_POINTS: Final = 4_000
LEAST_POINTS: Final = 40
LIMIT_POINTS: Final = 20_000
NICE_STEPS: Final = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is known of each group in each bucket of a range, by cell (`control.buckets`)."""

    names: tuple[str, ...]  # of the groups
    begin: int  # of the first bucket
    num_buckets: int
    step_s: int
    known: Mask
    buckets: Buckets
    simulated: bool
    widest_s: Floats = field(default_factory=lambda: UNKNOWN)  # the widest slot in it: a long absence is told in such


def read_grid(connection: Connection, query: SeriesQuery, tail: Tail) -> Grid:
    """The sums behind a series. Raises NotFound and CommandRefused on a bad query."""
    return _Reader(connection, query, checked_metric(query), tail).grid()


def read_series(connection: Connection, query: SeriesQuery, tail: Tail) -> SeriesResult:
    """Raises NotFound and CommandRefused on a bad query."""
    metric = checked_metric(query)
    grid = read_grid(connection, query, tail)
    return SeriesResult(
        fleet_id=query.fleet_id,
        metric=metric.info.name,
        unit=metric.info.unit,
        provenance="simulated" if grid.simulated else metric.info.provenance,
        step_s=grid.step_s,
        since_unix_s=query.since_unix_s,
        until_unix_s=query.until_unix_s,
        by=query.by,
        series=_lines(grid, metric.formula(grid.buckets), _wholes(grid, metric), query.until_unix_s),
        note=_note(connection, query.fleet_id, metric),
    )


def read_good_counts(
    connection: Connection, tail: Tail, fleet_id: str, since_unix_s: float, until_unix_s: float, step_s: int
) -> list[tuple[int, int, int]]:
    """Per step that has any: (its begin, good requests, requests that count), by arrival."""
    query = SeriesQuery(
        fleet_id=fleet_id, metric="attainment", since_unix_s=since_unix_s, until_unix_s=until_unix_s, step_s=step_s
    )
    grid = read_grid(connection, query, tail)
    decided, good = (number(grid.buckets.traffic(name)) for name in ("decided", "good"))
    return [
        (grid.begin + cell * grid.step_s, int(good[cell]), int(decided[cell]))
        for cell in np.flatnonzero(decided).tolist()  # one group: a cell is a bucket
    ]


def _natural(name: str) -> tuple[str, int]:
    """w2 before w10."""
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :] or -1)


def _wholes(grid: Grid, metric: Metric) -> list[float | None]:
    """Of each group a percentile over all buckets together; of other metrics nothing."""
    num_groups = len(grid.names)
    if metric.source != "latency":
        return [None] * num_groups
    together = grid.buckets.latencies.merged(grid.num_buckets)
    values = metric.formula(Buckets(length_s=np.zeros(num_groups), latencies=together)).value.tolist()
    return [value if value == value else None for value in values]


def _lines(grid: Grid, values: Values, wholes: Sequence[float | None], until_unix_s: float) -> tuple[Series, ...]:
    """The groups of which anything is known, each with a point in every bucket."""
    shape = (len(grid.names), grid.num_buckets)
    times = grid.begin + grid.step_s * np.arange(grid.num_buckets)
    known_s, offered = grid.buckets.cover("num_cover_s"), number(grid.buckets.traffic("offered"))
    is_cut = times + grid.step_s > until_unix_s
    is_short = np.broadcast_to(known_s < grid.step_s - 0.5, grid.known.shape).reshape(shape)
    partial = np.array(is_short | is_cut | _is_part_of_a_slot(grid, times), np.bool_)
    counts = grid.buckets.latencies.totals(len(grid.known))
    counts = np.where(counts > 0, counts, np.where(number(known_s) > 0, number(known_s), offered)).astype(np.int64)
    numbers = (np.where(grid.known, each, np.nan).reshape(shape) for each in (values.value, values.min, values.max))
    columns = (*numbers, counts.reshape(shape), partial)
    has_any = grid.known.reshape(shape).any(axis=1)
    rows = sorted(np.flatnonzero(has_any).tolist(), key=lambda row: _natural(grid.names[row]))
    return tuple(
        Series(
            label=grid.names[row],
            points=_points(times.tolist(), *(each[row].tolist() for each in columns)),
            whole=wholes[row],
        )
        for row in rows
    )


def _is_part_of_a_slot(grid: Grid, times: Ints) -> Mask:
    """Buckets inside a slot that is wider: all that is known of them is its mean, told where it begins."""
    shape = (len(grid.names), grid.num_buckets)
    widest_s = np.broadcast_to(number(grid.widest_s), grid.known.shape).reshape(shape)
    ends = np.where(widest_s > grid.step_s, times + widest_s, 0.0)
    return np.asarray(np.maximum.accumulate(ends, axis=1) > times, np.bool_)


def _points(
    times: list[int],
    values: list[float],
    lows: list[float],
    highs: list[float],
    counts: list[int],
    partials: list[bool],
) -> tuple[SeriesPoint, ...]:
    """One line's points. NaN becomes None: it is the one value that differs from itself."""
    return tuple(
        SeriesPoint(
            t_unix_s=t,
            value=value if value == value else None,
            min=low if low == low else None,
            max=high if high == high else None,
            count=count,
            partial=partial,
        )
        for t, value, low, high, count, partial in zip(times, values, lows, highs, counts, partials, strict=True)
    )


def _note(connection: Connection, fleet_id: str, metric: Metric) -> str:
    """What a reader of the chart should know."""
    if metric.source in ("traffic", "latency") and metric.kind[:7] != "worker_":
        return "by arrival: the last seconds fill in as requests end"
    if metric.source == "phase" and metric.info.name.endswith(("_wall", "_in_phase")):
        epochs = schema.worker_epochs.c
        found = select(epochs.basis).where(epochs.fleet_id == fleet_id).distinct()
        return f"peak: {', '.join(sorted(connection.execute(found).scalars())) or 'unknown'}"
    return ""


class _Reader:
    """Reads what one query asks for."""

    def __init__(self, connection: Connection, query: SeriesQuery, metric: Metric, tail: Tail) -> None:
        self._connection, self._query, self._metric, self._tail = connection, query, metric, tail
        self._pruned = read_marks(connection, "pruned-")
        self._lines = find_lines(connection, query.fleet_id, query.by, query.names)
        self._step_s = choose_step(query, self._pruned, len(self._lines.names))
        self._end_s = ceil(query.until_unix_s)
        self._source = self._source_of(self._lines)

    def _source_of(self, lines: Lines) -> Source:
        since = floor(self._query.since_unix_s / self._step_s) * self._step_s
        base_s = base_step(self._step_s)
        span = Range(since, self._end_s, self._step_s, base_s, self._pruned.get(1, 0))
        return Source(self._connection, self._tail, lines, span)

    def grid(self) -> Grid:
        """Everything that is known."""
        match self._metric.source:
            case "phase":
                return self._phases()
            case "state":
                return self._state()
            case "traffic":
                sums = Sums(self._source, (TRAFFIC,))
                return self._grid(sums.known, sums.simulated, Buckets(length_s=self._length_s(), traffic=sums.column))
            case "latency":
                found, simulated = histograms(self._source, latency_kind(self._metric.kind))
                known = found.totals(self._source.num_cells) > 0
                return self._grid(known, simulated, Buckets(length_s=self._length_s(), latencies=found))

    def _grid(self, known: Mask, simulated: bool, buckets: Buckets, widest_s: Floats = UNKNOWN) -> Grid:
        span = self._source.span
        return Grid(
            names=self._lines.names,
            begin=span.begin,
            num_buckets=span.num_buckets,
            step_s=span.step_s,
            known=known,
            buckets=buckets,
            simulated=simulated,
            widest_s=widest_s,
        )

    def _phases(self) -> Grid:
        cover = Sums(self._source, (STATE,))
        work = Sums(self._source, [phase_kind(phase) for phase in self._metric.phases], cover.seconds[0])
        seconds = "worker_s" if self._query.by == "worker" else "num_cover_s"  # a flip: one second in two lines
        buckets = Buckets(
            length_s=self._length_s(),
            cover_s=number(cover.column(seconds)),
            work=work.column,
            cover=cover.column,
        )
        known, simulated = cover.known | work.known, cover.simulated or work.simulated
        return self._grid(known, simulated, buckets, cover.most("num_cover_s"))

    def _state(self) -> Grid:
        cover = Sums(self._source, (STATE,))
        buckets = Buckets(length_s=self._length_s(), cover=cover.column)
        if not self._metric.needs_fleet:
            return self._grid(cover.known, cover.simulated, buckets)
        num_groups, num_buckets = len(self._lines.names), self._source.span.num_buckets
        everybody = find_lines(self._connection, self._query.fleet_id, "fleet")
        fleet = cover if self._query.by == "fleet" else Sums(self._source_of(everybody), (STATE,))
        is_there = np.logical_or.reduce(cover.known.reshape(num_groups, num_buckets), axis=1, keepdims=True)
        known: Mask = (is_there & fleet.known).ravel()
        buckets = replace(buckets, fleet_cover=lambda name: np.tile(fleet.column(name), num_groups))
        return self._grid(known, cover.simulated or fleet.simulated, buckets)

    def _length_s(self) -> Floats:
        """Seconds of each bucket that the points read for it stand for."""
        span = self._source.span
        ends = span.begin + span.step_s * (1.0 + np.arange(span.num_buckets))
        reach = np.minimum(ends, self._end_s) if self._end_s >= self._pruned.get(1, 0) else ends
        return np.tile(reach - ends + span.step_s, len(self._lines.names))


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
