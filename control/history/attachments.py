"""Fleets that were attached: what the operators said, and who it was. What it means is not known here."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, delete, select, update

from control.history import schema
from control.history.points import upsert

_table = schema.attached_fleets


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachmentRow:
    """One attached fleet. `told` and `allowed`: JSON. `memory`: what its adapter must know in the next plane."""

    name: str
    told: str
    who: str
    at_unix_s: float
    allowed: str = "[]"
    memory: str = ""


def put(connection: Connection, row: AttachmentRow) -> bool:
    """False when a fleet of that name is attached already: it stays as it is."""
    statement = upsert(connection, _table).on_conflict_do_nothing()
    return connection.execute(statement, asdict(row)).rowcount > 0


def allow(connection: Connection, name: str, allowed: str) -> bool:
    """What may be done to it from now on. False when there is none of that name."""
    return connection.execute(update(_table).where(_table.c.name == name).values(allowed=allowed)).rowcount > 0


def remember(connection: Connection, name: str, memory: str) -> bool:
    """What its adapter must know in the next plane. False when there is none of that name."""
    return connection.execute(update(_table).where(_table.c.name == name).values(memory=memory)).rowcount > 0


def remove(connection: Connection, name: str) -> bool:
    """False when there is none of that name."""
    return connection.execute(delete(_table).where(_table.c.name == name)).rowcount > 0


def find_all(connection: Connection) -> list[AttachmentRow]:
    """In the order in which they were attached."""
    rows = connection.execute(select(_table).order_by(_table.c.at_unix_s, _table.c.name))
    return [AttachmentRow(**row._mapping) for row in rows]
