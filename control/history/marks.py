"""Marks: how far something has come, by name. Written in the transaction of what they tell of."""

from __future__ import annotations

from sqlalchemy import Connection, select

from control.history import schema
from control.history.points import upsert


def read_marks(connection: Connection, prefix: str) -> dict[int, int]:
    """Marks of one kind, per step."""
    marks = schema.marks.c
    rows = connection.execute(select(marks.name, marks.t).where(marks.name.startswith(prefix)))
    return {int(name.removeprefix(prefix)): t for name, t in rows}


def write_mark(connection: Connection, name: str, t: int) -> None:
    statement = upsert(connection, schema.marks)
    statement = statement.on_conflict_do_update(index_elements=["name"], set_={"t": statement.excluded.t})
    connection.execute(statement, {"name": name, "t": t})
