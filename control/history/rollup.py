"""Coarser steps: 10 s from 1 s, 60 s from 10 s, 600 s from 60 s, 3600 s from 600 s. In the transaction of the points.

Decided here: a bucket is rolled up when it has ended (SETTLE_S ago), and again whenever something late falls into it,
from the step below, whole; so a crash, a late request or a clock that jumps can leave no bucket wrong. `marks` say up
to where each step is rolled up; a reader takes finer points after that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import Connection, Table, case, func, literal, select
from sqlalchemy.sql.base import ReadOnlyColumnCollection
from sqlalchemy.sql.elements import ColumnElement

from control.history import schema
from control.history.points import Touched, decode_counts, put_latencies, upsert
from control.points import PHASE_BANDS
from engine.histogram import merge

SETTLE_S: Final = 5
_MANY_LINES: Final = 200
Columns = ReadOnlyColumnCollection[str, Any]
_TABLES: Final = (schema.phase_points, schema.state_points, schema.traffic_points)


def read_marks(connection: Connection, prefix: str) -> dict[int, int]:
    """Marks of one kind, per step."""
    marks = schema.marks.c
    rows = connection.execute(select(marks.name, marks.t).where(marks.name.startswith(prefix)))
    return {int(name.removeprefix(prefix)): t for name, t in rows}


def write_mark(connection: Connection, name: str, t: int) -> None:
    statement = upsert(connection, schema.marks)
    statement = statement.on_conflict_do_update(index_elements=["name"], set_={"t": statement.excluded.t})
    connection.execute(statement, {"name": name, "t": t})


def roll_up(connection: Connection, touched: Touched, now_s: int) -> None:
    """Bring every coarser step up to date after points at step 1 changed."""
    marks = read_marks(connection, "rolled-")
    for fine_s, step_s in zip(schema.STEPS, schema.STEPS[1:], strict=False):
        until = (now_s - SETTLE_S) // step_s * step_s
        since = marks.get(step_s, _oldest(touched, step_s, until))
        for name, points in touched.items():
            table = schema.metadata.tables[name]
            late: dict[int, set[int]] = {}
            for line_id, t in points:
                if t < since:
                    late.setdefault(t - t % step_s, set()).add(line_id)
            for t, line_ids in late.items():
                _roll(connection, table, fine_s, step_s, t, t + step_s, line_ids)
            if since < until:
                _roll(connection, table, fine_s, step_s, since, until)
        if since < until or step_s not in marks:
            write_mark(connection, f"rolled-{step_s}", max(since, until))


def _oldest(touched: Touched, step_s: int, default: int) -> int:
    """Where rolling up begins, in a history that has no mark yet."""
    oldest = min((t for points in touched.values() for _, t in points), default=default)
    return min(oldest // step_s * step_s, default)


def _roll(
    connection: Connection,
    table: Table,
    fine_s: int,
    step_s: int,
    since: int,
    until: int,
    line_ids: Iterable[int] = (),
) -> None:
    """Roll the buckets of [since, until) up, of all lines or of some."""
    some = sorted(line_ids) if line_ids else []
    where = [table.c.step_s == fine_s, table.c.t >= since, table.c.t < until]
    if 0 < len(some) <= _MANY_LINES:
        where.append(table.c.line_id.in_(some))
    if table is schema.latency_points:
        _roll_latencies(connection, step_s, where)
        return
    keys = [column for column in table.primary_key.columns if column.name not in ("step_s", "t")]
    bucket = table.c.t - table.c.t % step_s
    values = [column.name for column in table.columns if not column.primary_key]
    source = (
        select(*keys, literal(step_s), bucket, *(aggregate(table.c, table, name) for name in values))
        .where(*where)
        .group_by(*keys, bucket)
    )
    names = [*(column.name for column in keys), "step_s", "t", *values]
    statement = upsert(connection, table).from_select(names, source)
    connection.execute(
        statement.on_conflict_do_update(
            index_elements=list(table.primary_key.columns),
            set_={name: statement.excluded[name] for name in values},
        )
    )


def aggregate(columns: Columns, table: Table, name: str) -> ColumnElement[Any]:
    """One column of many rows of `table`: sums add up, extremes stay. At step 1 a band is the value itself."""
    side, _, band = name.partition("_")
    if side not in ("min", "max"):
        return func.sum(columns[name])
    value: ColumnElement[Any] = columns[name]
    if table is schema.phase_points and band in PHASE_BANDS:
        value = func.coalesce(value, _per_second(columns, band))
    return func.min(value) if side == "min" else func.max(value)


def _per_second(points: Columns, band: str) -> ColumnElement[Any]:
    """What a band is made of, in a row of step 1."""
    if band == "compute_in_phase":
        return case((points.flops_room > 0, points.flops / func.nullif(points.flops_room, 0)))
    if band == "bandwidth_in_phase":
        return case((points.bytes_room > 0, points.bytes / func.nullif(points.bytes_room, 0)))
    value: ColumnElement[Any] = points[band]
    return value


def _roll_latencies(connection: Connection, step_s: int, where: list[ColumnElement[bool]]) -> None:
    """SQL cannot merge histograms: read, merge, write."""
    points = schema.latency_points.c
    merged: dict[tuple[int, str, int], dict[int, int]] = {}
    rows = connection.execute(select(points.line_id, points.kind, points.t, points.buckets).where(*where))
    for line_id, kind, t, buckets in rows:
        key = (line_id, kind, t - t % step_s)
        merged[key] = merge(merged.get(key, {}), decode_counts(buckets))
    put_latencies(connection, step_s, merged)
