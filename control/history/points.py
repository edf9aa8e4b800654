"""Writing points: additive rows per line and second, so that late work lands in the second it belongs to.

Decided here: how a row meets one that is there already (the names of the columns say it, see `control.points`), and
which points a request record makes. Not decided here: coarser steps (`control.history.rollup`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from math import floor
from typing import Any, Final

import msgspec
from sqlalchemy import Column, Connection, Table, and_, case, select, tuple_
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.elements import ColumnElement

from control.history import schema
from control.points import ONCE_A_SECOND, Ingested, Line, Row, add_row
from control.sampling import KINDS, dropped_class, latency_of
from control.traffic_stats import is_cancelled, is_error, is_offered, is_rejected
from control.types import RequestRecord, TrafficStatus
from engine.histogram import bucket_of, merge

LineIds = dict[tuple[str, Line], int]
#: (line id, second) pairs that a write touched, per table.
Touched = dict[str, set[tuple[int, int]]]


_INSERTS: Final[Mapping[str, Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def upsert(connection: Connection, table: Table) -> Any:
    """INSERT of this database's dialect, which has `on_conflict_do_update`."""
    return _INSERTS[connection.dialect.name](table)


def encode_counts(counts: Mapping[int, int]) -> bytes:
    return msgspec.msgpack.encode(counts)


def decode_counts(blob: bytes) -> dict[int, int]:
    return msgspec.msgpack.decode(blob, type=dict[int, int])


def line_ids(connection: Connection, fleet_id: str, lines: Iterable[Line], known: LineIds) -> LineIds:
    """Ids of these lines; new lines are added. The caller keeps the result once the transaction is through."""
    found = {(fleet_id, line): known[fleet_id, line] for line in lines if (fleet_id, line) in known}
    for line in lines:
        if (fleet_id, line) not in found:
            found[fleet_id, line] = _line_id(connection, fleet_id, line)
    return found


def _line_id(connection: Connection, fleet_id: str, line: Line) -> int:
    values = {
        "fleet_id": fleet_id,
        "scope": line.scope,
        "name": line.name,
        "epoch": line.epoch,
        "role": line.role,
        "model_id": line.model_id,
        "simulated": line.simulated,
    }
    connection.execute(upsert(connection, schema.lines).on_conflict_do_nothing(), values)
    where = and_(*(schema.lines.c[name] == value for name, value in values.items()))
    return int(connection.execute(select(schema.lines.c.line_id).where(where)).scalar_one())


def _merged(table: Table, new: Mapping[str, Any], column: Column[Any]) -> ColumnElement[Any]:
    """How one column of two rows with one key becomes one."""
    old: ColumnElement[Any] = table.c[column.name]
    fresh: ColumnElement[Any] = new[column.name]
    if column.name.startswith("min_"):
        return case((old.is_(None) | (fresh < old), fresh), else_=old)
    if column.name.startswith("max_"):
        return case((old.is_(None) | (fresh > old), fresh), else_=old)
    if column.name in ONCE_A_SECOND:
        return case((fresh > old, fresh), else_=old)
    return old + fresh


@cache
def _add_statement(dialect: str, table: Table) -> tuple[Any, Mapping[str, Any]]:
    """The statement that adds a row, and the row of nothing that gives it its columns."""
    values = [column for column in table.columns if not column.primary_key]
    empty: dict[str, Any] = {column.name: 0.0 if not column.nullable else None for column in values}
    statement = _INSERTS[dialect](table)
    statement = statement.on_conflict_do_update(
        index_elements=list(table.primary_key.columns),
        set_={column.name: _merged(table, statement.excluded, column) for column in values},
    )
    return statement, empty


def add_points(connection: Connection, table: Table, rows: list[dict[str, Any]], step_s: int = 1) -> None:
    """Add rows (keys and some of the values) of one step to what is there."""
    if rows:
        statement, empty = _add_statement(connection.dialect.name, table)
        connection.execute(statement, [{**empty, **row, "step_s": step_s} for row in rows])


def add_latencies(
    connection: Connection, rows: Mapping[tuple[int, str, int], Mapping[int, int]], step_s: int = 1
) -> None:
    """Add histograms of one step to those that are there."""
    if not rows:
        return
    table = schema.latency_points
    keys = tuple_(table.c.line_id, table.c.kind, table.c.t)
    there: dict[tuple[int, str, int], dict[int, int]] = {}
    wanted = list(rows)
    for start in range(0, len(wanted), 200):
        found = connection.execute(
            select(table.c.line_id, table.c.kind, table.c.t, table.c.buckets).where(
                table.c.step_s == step_s, keys.in_(wanted[start : start + 200])
            )
        )
        there |= {(line_id, kind, t): decode_counts(buckets) for line_id, kind, t, buckets in found}
    put_latencies(connection, step_s, {key: merge(counts, there.get(key, {})) for key, counts in rows.items()})


def put_latencies(connection: Connection, step_s: int, rows: Mapping[tuple[int, str, int], Mapping[int, int]]) -> None:
    """Set histograms of one step."""
    if not rows:
        return
    statement = upsert(connection, schema.latency_points)
    statement = statement.on_conflict_do_update(
        index_elements=list(schema.latency_points.primary_key.columns),
        set_={"count": statement.excluded["count"], "buckets": statement.excluded.buckets},
    )
    connection.execute(
        statement,
        [
            {
                "line_id": line_id,
                "step_s": step_s,
                "kind": kind,
                "t": t,
                "count": sum(counts.values()),
                "buckets": encode_counts(counts),
            }
            for (line_id, kind, t), counts in rows.items()
        ],
    )


class PointBatch:
    """All points of one tick, by line, before they are written."""

    def __init__(self) -> None:
        self.phases: dict[tuple[Line, str, int], Row] = {}
        self.states: dict[tuple[Line, int], Row] = {}
        self.traffic: dict[tuple[Line, int], Row] = {}
        self.latencies: dict[tuple[Line, str, int], dict[int, int]] = {}

    def add_ingested(self, ingested: Ingested) -> None:
        self.phases |= {(line, phase.value, t): row for (line, phase, t), row in ingested.phases.items()}
        self.states |= ingested.states
        self.latencies |= {key: dict(counts) for key, counts in ingested.latencies.items()}

    def add_record(self, record: RequestRecord) -> None:
        """One request, at the second of its arrival: on the fleet's line and on its rule's."""
        t, row = floor(record.arrival_unix_s), _traffic_row(record)
        lines = [Line("fleet", "", record.model_id, record.simulated)]
        if record.rule:
            lines.append(Line("rule", record.rule, record.model_id, record.simulated))
        for line in lines:
            add_row(self.traffic.setdefault((line, t), {}), row)
            for kind, counts in _latencies(record).items():
                key = (line, kind, t)
                self.latencies[key] = merge(self.latencies.get(key, {}), counts)

    def add_gauges(self, traffic: TrafficStatus, line: Line, t: int) -> None:
        """What gateways hold now. Without a gateway there is no sample."""
        if not traffic.num_gateways:
            return
        held = float(traffic.num_in_flight)
        row: Row = {"num_samples": 1.0, "sum_in_flight": held, "min_in_flight": held, "max_in_flight": held}
        if traffic.oldest_waiting_s is not None:
            waited = traffic.oldest_waiting_s
            row["num_waiting_samples"] = 1.0
            row["sum_oldest_waiting_s"] = row["min_oldest_waiting_s"] = row["max_oldest_waiting_s"] = waited
        add_row(self.traffic.setdefault((line, t), {}), row)

    def fleet_lines(self) -> list[Line]:
        return [line for line, _ in [*self.states, *self.traffic] if line.scope == "fleet"]

    def lines(self) -> set[Line]:
        two = {line for line, _ in [*self.states, *self.traffic]}
        return two | {line for line, _, _ in [*self.phases, *self.latencies]}

    def write(self, connection: Connection, fleet_id: str, ids: LineIds, pruned: Mapping[int, int]) -> Touched:
        """Write all at step 1; returns which seconds of which lines changed, per table.

        What falls before the seconds that are still kept cannot be rolled up from them: it is added to coarser steps.
        """
        touched: Touched = {}
        for table, rows in self._rows(fleet_id, ids).items():
            kept = [row for row in rows if row["t"] >= pruned.get(1, 0)]
            add_points(connection, table, kept)
            touched[table.name] = {(row["line_id"], row["t"]) for row in kept}
            for step_s, old in _at_coarser_steps([row for row in rows if row["t"] < pruned.get(1, 0)], pruned).items():
                add_points(connection, table, old, step_s)
        latencies: list[dict[str, Any]] = [
            {"line_id": ids[fleet_id, line], "kind": kind, "t": t, "counts": counts}
            for (line, kind, t), counts in self.latencies.items()
        ]
        kept = [row for row in latencies if row["t"] >= pruned.get(1, 0)]
        add_latencies(connection, _histograms(kept))
        touched[schema.latency_points.name] = {(row["line_id"], row["t"]) for row in kept}
        for step_s, old in _at_coarser_steps([row for row in latencies if row["t"] < pruned.get(1, 0)], pruned).items():
            add_latencies(connection, _histograms(old), step_s)
        return touched

    def _rows(self, fleet_id: str, ids: LineIds) -> dict[Table, list[dict[str, Any]]]:
        found: dict[Table, list[dict[str, Any]]] = {
            schema.phase_points: [
                {"line_id": ids[fleet_id, line], "phase": phase, "t": t, **row}
                for (line, phase, t), row in self.phases.items()
            ]
        }
        for table, points in ((schema.state_points, self.states), (schema.traffic_points, self.traffic)):
            found[table] = [{"line_id": ids[fleet_id, line], "t": t, **row} for (line, t), row in points.items()]
        return found


def _at_coarser_steps(rows: list[dict[str, Any]], pruned: Mapping[int, int]) -> dict[int, list[dict[str, Any]]]:
    """Rows of seconds that are gone, as rows of each coarser step that is still kept."""
    found: dict[int, list[dict[str, Any]]] = {}
    for step_s in schema.STEPS[1:]:
        moved = [{**row, "t": row["t"] // step_s * step_s} for row in rows]
        found[step_s] = [row for row in moved if row["t"] >= pruned.get(step_s, 0)]
    return {step_s: kept for step_s, kept in found.items() if kept}


def _histograms(rows: list[dict[str, Any]]) -> dict[tuple[int, str, int], dict[int, int]]:
    """Histograms by key, those of one bucket merged."""
    found: dict[tuple[int, str, int], dict[int, int]] = {}
    for row in rows:
        key = (row["line_id"], row["kind"], row["t"])
        found[key] = merge(found.get(key, {}), row["counts"])
    return found


def _traffic_row(record: RequestRecord) -> Row:
    return {
        "offered": float(is_offered(record)),
        "decided": float(is_offered(record) and record.good is not None),
        "good": float(is_offered(record) and bool(record.good)),
        "errors": float(is_error(record)),
        "rejected": float(is_rejected(record)),
        "cancelled": float(is_cancelled(record)),
        "prompt_tokens": float(record.prompt_tokens),
        "cached_tokens": float(record.cached_tokens),
        "output_tokens": float(record.output_tokens),
        f"dropped_{dropped_class(record)}" if record.kept == "dropped" else f"kept_{record.kept}": 1.0,
    }


def _latencies(record: RequestRecord) -> dict[str, dict[int, int]]:
    """Histograms of one request, as its client saw it."""
    single: dict[str, float | None] = {kind: latency_of(record, kind) for kind in KINDS}
    single["tpot"] = record.tpot_s
    found = {kind: {bucket_of(value): 1} for kind, value in single.items() if value is not None}
    if record.itl_buckets:
        found["itl"] = {int(bucket): count for bucket, count in record.itl_buckets.items()}
    return found
