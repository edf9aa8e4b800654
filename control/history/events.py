"""Fleet events: a worker's life told once per epoch, moves added up per second, read back by time.

One row per event, clustered by fleet and second, so a range of any length is one scan.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy import Connection, delete, select

from control.fleet_events import added
from control.history import schema
from control.history.points import upsert
from control.types.events import EventKind, FleetEvent

MAX_EVENTS: Final = 10_000
_event = TypeAdapter(FleetEvent)
_table = schema.fleet_events


@dataclass(frozen=True, slots=True, kw_only=True)
class EventQuery:
    """Events of one fleet in [since, until), newest first. `kinds` empty: all."""

    fleet_id: str
    since_unix_s: float = 0.0
    until_unix_s: float | None = None
    kinds: tuple[EventKind, ...] = ()
    worker_id: str | None = None
    limit: int = 1_000


def put_lives(connection: Connection, events: Sequence[FleetEvent]) -> None:
    """What is known later of the same moment of the same life replaces what was told before."""
    c = _table.c
    for event in events:
        same = (c.fleet_id == event.fleet_id, c.worker_id == event.worker_id, c.epoch == event.epoch)
        connection.execute(delete(_table).where(*same, c.kind == event.kind))
        _put(connection, event)


def add_moves(connection: Connection, events: Sequence[FleetEvent]) -> None:
    """Add to the events of the same second. Each record comes here once."""
    c = _table.c
    for event in events:
        same = (c.fleet_id == event.fleet_id, c.t == floor(event.at_unix_s), c.kind == event.kind)
        blob = connection.execute(select(c.event).where(*same, c.worker_id == event.worker_id)).scalar()
        _put(connection, event if blob is None else added(_event.validate_json(blob), event))


def _put(connection: Connection, event: FleetEvent) -> None:
    values: dict[str, Any] = {
        "fleet_id": event.fleet_id,
        "t": floor(event.at_unix_s),
        "kind": event.kind,
        "worker_id": event.worker_id,
        "epoch": event.epoch,
        "event": _event.dump_json(event),
    }
    statement = upsert(connection, _table)
    statement = statement.on_conflict_do_update(
        index_elements=list(_table.primary_key.columns), set_={"event": statement.excluded.event}
    )
    connection.execute(statement, values)


def find_events(connection: Connection, query: EventQuery) -> list[FleetEvent]:
    c = _table.c
    wanted = select(c.event).where(c.fleet_id == query.fleet_id, c.t >= floor(query.since_unix_s))
    if query.until_unix_s is not None:
        wanted = wanted.where(c.t < query.until_unix_s)
    if query.kinds:
        wanted = wanted.where(c.kind.in_(query.kinds))
    if query.worker_id is not None:
        wanted = wanted.where(c.worker_id == query.worker_id)
    along_the_key = (c.t.desc(), c.kind.desc(), c.worker_id.desc(), c.epoch.desc())  # no sorting
    newest = wanted.order_by(*along_the_key).limit(min(query.limit, MAX_EVENTS))
    return [_event.validate_json(blob) for blob in connection.execute(newest).scalars()]
