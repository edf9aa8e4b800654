"""Series: one metric over a range, per group, from the coarsest points that fit and finer ones where those end.

Decided here: the step (at most about MAX_POINTS points a line), which stored steps are read for it, and that missing
buckets are gaps. What a bucket's value is stands in `control.metrics`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil, floor
from typing import Any, Final

from sqlalchemy import Connection, Integer, Table, cast, func, select, union_all
from sqlalchemy.sql.elements import ColumnElement

from control.errors import CommandRefused, NotFound
from control.history import schema
from control.history.points import decode_counts
from control.history.rollup import aggregate, read_marks
from control.metrics import METRICS_BY_NAME, Bucket, Metric, Sums
from control.types import Phase, Series, SeriesPoint, SeriesResult
from engine.histogram import merge

MAX_POINTS: Final = 1_000
LIMIT_POINTS: Final = 20_000
NICE_STEPS: Final = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400)

_Table = dict[tuple[str, int], Sums]  # (group, bucket) -> sums


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesQuery:
    """[since, until) of one metric of one fleet. `step_s` None: chosen."""

    fleet_id: str
    metric: str
    since_unix_s: float
    until_unix_s: float
    step_s: int | None = None
    by: str = "fleet"


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


def choose_step(query: SeriesQuery, pruned: dict[int, int]) -> int:
    """Smallest nice step with at most MAX_POINTS points that is still stored back to the range's start."""
    length_s = query.until_unix_s - query.since_unix_s
    nice = (step for step in NICE_STEPS if length_s / step <= MAX_POINTS)
    step_s = query.step_s or next(nice, NICE_STEPS[-1])
    while query.since_unix_s < pruned.get(base_step(step_s), 0) and base_step(step_s) < schema.STEPS[-1]:
        coarser = schema.STEPS[schema.STEPS.index(base_step(step_s)) + 1]
        step_s = ceil(step_s / coarser) * coarser
    return step_s


def base_step(step_s: int) -> int:
    """Coarsest stored step that divides `step_s`."""
    return next(step for step in reversed(schema.STEPS) if step_s % step == 0)


def read_buckets(connection: Connection, query: SeriesQuery) -> tuple[int, dict[tuple[str, int], Bucket], bool]:
    """The sums behind a series: step, what is known per group and bucket, whether any of it is simulated. Raises
    NotFound and CommandRefused on a bad query."""
    metric = checked_metric(query)
    step_s = choose_step(query, read_marks(connection, "pruned-"))
    reader = _Reader(connection, query, metric, step_s)
    return step_s, reader.buckets(), reader.simulated


def read_series(connection: Connection, query: SeriesQuery) -> SeriesResult:
    """Raises NotFound and CommandRefused on a bad query."""
    metric = checked_metric(query)
    step_s = choose_step(query, read_marks(connection, "pruned-"))
    reader = _Reader(connection, query, metric, step_s)
    buckets = reader.buckets()
    first = floor(query.since_unix_s / step_s) * step_s
    times = range(first, ceil(query.until_unix_s), step_s)
    groups = sorted({group for group, _ in buckets}, key=_natural)
    series = tuple(
        Series(label=group, points=tuple(_point(metric, t, buckets.get((group, t))) for t in times)) for group in groups
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
    connection: Connection, fleet_id: str, since_unix_s: float, until_unix_s: float, step_s: int
) -> list[tuple[int, int, int]]:
    """Per step that has any: (its begin, good requests, requests that count), by arrival."""
    query = SeriesQuery(
        fleet_id=fleet_id, metric="attainment", since_unix_s=since_unix_s, until_unix_s=until_unix_s, step_s=step_s
    )
    found = _Reader(connection, query, METRICS_BY_NAME["attainment"], step_s).buckets()
    return [
        (t, int(bucket.traffic.get("good") or 0), int(decided))
        for (_, t), bucket in sorted(found.items())
        if (decided := bucket.traffic.get("decided") or 0)
    ]


def _natural(name: str) -> tuple[str, int]:
    """w2 before w10."""
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :] or -1)


def _point(metric: Metric, t: int, bucket: Bucket | None) -> SeriesPoint:
    if bucket is None:
        return SeriesPoint(t_unix_s=t, value=None)
    found = metric.formula(bucket)
    count = sum(bucket.latencies.values()) or int(bucket.cover.get("num_cover_s") or bucket.traffic.get("offered") or 0)
    return SeriesPoint(t_unix_s=t, value=found.value, min=found.min, max=found.max, count=count)


class _Reader:
    """Reads the sums of one query."""

    def __init__(self, connection: Connection, query: SeriesQuery, metric: Metric, step_s: int) -> None:
        self._connection = connection
        self._query = query
        self._metric = metric
        self._step_s = step_s
        self._marks = read_marks(connection, "rolled-")
        last_step_s, _, until = self._ranges()[-1]
        self._end_s = ceil(until / last_step_s) * last_step_s  # up to where the points that are read reach
        self.simulated = False  # until a simulated line has given something

    def buckets(self) -> dict[tuple[str, int], Bucket]:
        """Everything that is known, per group and bucket."""
        by = self._query.by
        match self._metric.source:
            case "phase":
                work = self._sums(schema.phase_points, by, _WORK, self._metric.phases)
                cover = self._sums(schema.state_points, by, _COVER)
                keys = cover.keys() | work.keys()
                seconds = "worker_s" if by == "worker" else "num_cover_s"  # a flip shares a second between two lines
                return {
                    key: Bucket(
                        length_s=self._length_s(key[1]),
                        cover_s=cover.get(key, {}).get(seconds) or 0.0,
                        work=work.get(key, {}),
                        cover=cover.get(key, {}),
                    )
                    for key in keys
                }
            case "state":
                return self._state_buckets(by)
            case "traffic":
                found = self._sums(schema.traffic_points, by, None)
                return {key: Bucket(length_s=self._length_s(key[1]), traffic=sums) for key, sums in found.items()}
            case "latency":
                counts = self._latencies(by)
                return {key: Bucket(length_s=self._length_s(key[1]), latencies=each) for key, each in counts.items()}

    def _state_buckets(self, by: str) -> dict[tuple[str, int], Bucket]:
        cover = self._sums(schema.state_points, by, None)
        fleet: _Table = {}
        keys = set(cover)
        if self._metric.needs_fleet:
            fleet = cover if by == "fleet" else self._sums(schema.state_points, "fleet", None)
            keys = {(group, t) for group in {group for group, _ in cover} for _, t in fleet}
        return {
            (group, t): Bucket(
                length_s=self._length_s(t),
                cover=cover.get((group, t), {}),
                fleet_cover=fleet.get((_FLEET_LABEL, t), {}),
            )
            for group, t in keys
        }

    def note(self) -> str:
        """What a reader of the chart should know."""
        if self._metric.source in ("traffic", "latency") and self._metric.kind[:7] != "worker_":
            return "by arrival: the last seconds fill in as requests end"
        if self._metric.source == "phase" and self._metric.info.name.endswith(("_wall", "_in_phase")):
            epochs = schema.worker_epochs.c
            found = select(epochs.basis).where(epochs.fleet_id == self._query.fleet_id).distinct()
            return f"peak: {', '.join(sorted(self._connection.execute(found).scalars())) or 'unknown'}"
        return ""

    # --- SQL --------------------------------------------------------------------------------------------------------

    def _length_s(self, t: int) -> float:
        """Seconds of this bucket that the points read for it stand for."""
        return float(min(t + self._step_s, self._end_s) - t)

    def _ranges(self) -> list[tuple[int, int, int]]:
        """(stored step, since, until): the base step as far as it is rolled up, then finer ones, last the seconds."""
        since = floor(self._query.since_unix_s / self._step_s) * self._step_s
        until, found = ceil(self._query.until_unix_s), []
        for step_s in reversed(schema.STEPS[: schema.STEPS.index(base_step(self._step_s)) + 1]):
            end = until if step_s == 1 else min(until, self._marks.get(step_s, since))
            if since < end:
                found.append((step_s, since, end))
                since = end
        return found

    def _line_names(self, by: str) -> dict[int, tuple[str, bool]]:
        """Group and `simulated` of every line that the query is about."""
        lines = schema.lines.c
        wanted = select(lines.line_id, lines.name, lines.simulated)
        rows = self._connection.execute(wanted.where(lines.fleet_id == self._query.fleet_id, lines.scope == by))
        return {line_id: (name or _FLEET_LABEL, simulated) for line_id, name, simulated in rows}

    def _rows(self, table: Table, by: str, columns: list[Any], *where: ColumnElement[bool]) -> Any:
        """Rows of the query's lines and ranges, each range by its own index; None when there is no such line."""
        names = self._line_names(by)
        if not names:
            return None
        if len(names) <= _MANY_LINES:  # else reading by time and leaving out the other lines is cheaper
            mine: ColumnElement[bool] = table.c.line_id.in_(names)
        else:
            lines = schema.lines.c
            ids = select(lines.line_id).where(lines.fleet_id == self._query.fleet_id, lines.scope == by)
            mine = table.c.line_id.in_(ids)
        parts = [
            select(*columns).where(mine, table.c.step_s == step_s, table.c.t >= since, table.c.t < until, *where)
            for step_s, since, until in self._ranges()
        ]
        return union_all(*parts) if len(parts) > 1 else parts[0]

    def _sums(self, table: Table, by: str, names: Iterable[str] | None, phases: tuple[Phase, ...] = ()) -> _Table:
        """Columns of every group and bucket, aggregated as their names say."""
        values = [column.name for column in table.columns if not column.primary_key] if names is None else list(names)
        where = [table.c.phase.in_([phase.value for phase in phases])] if phases else []
        read = [table.c.line_id, table.c.t, *(table.c[name] for name in values)]
        rows = self._rows(table, by, read, *where)
        if rows is None:
            return {}
        points = rows.subquery("points")
        bucket = (points.c.t - points.c.t % self._step_s).label("bucket")
        wanted = (
            select(
                schema.lines.c.name,
                bucket,
                _any_simulated,
                *(aggregate(points.c, table, name).label(f"v_{name}") for name in values),
            )
            .join_from(points, schema.lines, schema.lines.c.line_id == points.c.line_id)
            .group_by(schema.lines.c.name, bucket)
        )
        found: _Table = {}
        for name, t, simulated, *sums in self._connection.execute(wanted):
            self.simulated |= bool(simulated)
            found[name or _FLEET_LABEL, int(t)] = dict(zip(values, sums, strict=True))
        return found

    def _latencies(self, by: str) -> dict[tuple[str, int], dict[int, int]]:
        table, names = schema.latency_points, self._line_names(by)
        rows = self._rows(table, by, [table.c.line_id, table.c.t, table.c.buckets], table.c.kind == self._metric.kind)
        found: dict[tuple[str, int], dict[int, int]] = {}
        for line_id, t, buckets in () if rows is None else self._connection.execute(rows):
            name, simulated = names[line_id]
            self.simulated |= simulated
            key = (name, t - t % self._step_s)
            found[key] = merge(found.get(key, {}), decode_counts(buckets))
        return found


_MANY_LINES: Final = 200
_FLEET_LABEL: Final = "fleet"
_any_simulated = func.max(cast(schema.lines.c.simulated, Integer)).label("any_simulated")
_COVER: Final = (
    "num_cover_s",
    "worker_s",
    "device_s",
    "flops_peak",
    "bytes_peak",
    "no_flops_peak_s",
    "no_bytes_peak_s",
)
_WORK: Final = tuple(column.name for column in schema.phase_points.columns if not column.primary_key)
