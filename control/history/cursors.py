"""How far each thing is counted: the workers' meters, and the frames of spools. Kept with what was counted."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from sqlalchemy import Connection, select

from control.history import schema
from control.history.points import upsert
from control.points import Mark, WorkerCursor
from control.spool import Place


def load_cursors(connection: Connection, fleet_id: str) -> dict[str, WorkerCursor]:
    c = schema.cursors.c
    rows = connection.execute(select(c.worker_id, c.cursor).where(c.fleet_id == fleet_id)).all()
    return {worker_id: msgspec.msgpack.decode(blob, type=WorkerCursor) for worker_id, blob in rows}


def marks(connection: Connection, fleet_id: str) -> dict[str, Mark]:
    return {worker_id: cursor.mark for worker_id, cursor in load_cursors(connection, fleet_id).items()}


def put_cursors(connection: Connection, fleet_id: str, cursors: Mapping[str, WorkerCursor]) -> None:
    if not cursors:
        return
    statement = upsert(connection, schema.cursors)
    statement = statement.on_conflict_do_update(
        index_elements=["fleet_id", "worker_id"], set_={"cursor": statement.excluded.cursor}
    )
    connection.execute(
        statement,
        [
            {"fleet_id": fleet_id, "worker_id": name, "cursor": msgspec.msgpack.encode(cursor)}
            for name, cursor in cursors.items()
        ],
    )


def replayed(connection: Connection, owner: str) -> int:
    """Number of the last frame of a spool that is written; 0 when none is."""
    c = schema.spools.c
    return connection.execute(select(c.number).where(c.owner == owner)).scalar() or 0


def put_replayed(connection: Connection, place: Place) -> None:
    statement = upsert(connection, schema.spools)
    statement = statement.on_conflict_do_update(index_elements=["owner"], set_={"number": statement.excluded.number})
    connection.execute(statement, {"owner": place.owner, "number": place.number})
