"""What one tick adds, as frames of rows by line and second; late work is a row of the second it belongs to.

Decided here: which points a request record makes, and which shelf a new line is put on. Not decided here: how a row
meets one that is there already (`control.history.frames`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import floor
from typing import Any, Final

from sqlalchemy import Connection, Table, and_, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from control.history import schema
from control.history.chunks import STATE, TRAFFIC, Frames, Kind, latency_kind, phase_kind
from control.history.frames import of_counts, of_rows
from control.points import Ingested, Line, Row, add_row
from control.sampling import KINDS, dropped_class, latency_of
from control.traffic_stats import is_cancelled, is_error, is_offered, is_rejected
from control.types.fleet import TrafficStatus
from control.types.requests import RequestRecord
from engine.histogram import bucket_of, merge

LineIds = dict[tuple[str, Line], int]
_INSERTS: Final[Mapping[str, Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}


def upsert(connection: Connection, table: Table) -> Any:
    """INSERT of this database's dialect, which has `on_conflict_do_update`."""
    return _INSERTS[connection.dialect.name](table)


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
    where = and_(*(schema.lines.c[name] == value for name, value in values.items()))
    found = connection.execute(select(schema.lines.c.line_id).where(where)).scalar()
    if found is None:
        values["shelf_id"] = _shelf_with_room(connection, fleet_id, line.scope)
        found = connection.execute(schema.lines.insert(), values).inserted_primary_key[0]  # type: ignore[index]
    return int(found)


def _shelf_with_room(connection: Connection, fleet_id: str, scope: str) -> int:
    """The newest shelf of this scope, so that lines that live together lie together; a fresh one when it is full."""
    c = schema.shelves.c
    newest = connection.execute(
        select(c.shelf_id, c.num_lines)
        .where(c.fleet_id == fleet_id, c.scope == scope)
        .order_by(c.shelf_id.desc())
        .limit(1)
    ).first()
    if newest is not None and newest.num_lines < schema.SHELF_LINES:
        one_more = update(schema.shelves).where(c.shelf_id == newest.shelf_id).values(num_lines=c.num_lines + 1)
        connection.execute(one_more)
        return int(newest.shelf_id)
    folded = connection.execute(select(func.max(schema.ticks.c.tick_id))).scalar() or 0
    values = {"fleet_id": fleet_id, "scope": scope, "num_lines": 1, "folded": folded}
    return int(connection.execute(schema.shelves.insert(), values).inserted_primary_key[0])  # type: ignore[index]


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

    def frames(self, fleet_id: str, ids: LineIds) -> Frames:
        """All rows, by kind."""
        rows: dict[Kind, list[tuple[int, int, Row]]] = {}
        for (line, phase, t), row in self.phases.items():
            rows.setdefault(phase_kind(phase), []).append((ids[fleet_id, line], t, row))
        for kind, points in ((STATE, self.states), (TRAFFIC, self.traffic)):
            if points:
                rows[kind] = [(ids[fleet_id, line], t, row) for (line, t), row in points.items()]
        counts: dict[Kind, list[tuple[int, int, Mapping[int, int]]]] = {}
        for (line, name, t), each in self.latencies.items():
            counts.setdefault(latency_kind(name), []).append((ids[fleet_id, line], t, each))
        found = {kind: of_rows(each) for kind, each in rows.items()}
        return found | {kind: of_counts(each) for kind, each in counts.items()}


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
