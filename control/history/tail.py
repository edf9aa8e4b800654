"""The newest ticks, which are not sorted by line yet: kept in memory by who wrote them, read by others from the table.

A reader looks up in its own snapshot of the database which ticks there are, so what it finds here fits to the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection, delete, func, select

from control.history import schema
from control.history.chunks import Frames, pack_tick, unpack_tick

#: More than this many are read from the table each time: after an outage, until they are folded.
MAX_REMEMBERED: Final = 180
_TICK_LOCK: Final = 0x7469636B


class Tail:
    """Any thread may read while one writes."""

    def __init__(self) -> None:
        self._frames: dict[int, Frames] = {}

    def add(self, connection: Connection, frames: Frames) -> int:
        """Write one tick; `remember` it under the id that this returns, once it is durable.

        Ids become durable in their order, as a shelf that is folded up to one never looks at those before it again:
        of several planes on a PostgreSQL only one writes ticks at a time (SQLite has one writer anyway).
        """
        if connection.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_TICK_LOCK)))
        result = connection.execute(schema.ticks.insert().values(data=pack_tick(frames)))
        return int(result.inserted_primary_key[0])  # type: ignore[index]

    def remember(self, tick_id: int, frames: Frames) -> None:
        self._frames[tick_id] = frames
        while len(self._frames) > MAX_REMEMBERED:
            del self._frames[min(self._frames)]

    def read(self, connection: Connection, after: int, limit: int | None = None) -> list[tuple[int, Frames]]:
        """Ticks newer than `after`, oldest first."""
        c = schema.ticks.c
        ids = connection.execute(select(c.tick_id).where(c.tick_id > after).order_by(c.tick_id).limit(limit)).scalars()
        here = {tick_id: self._frames.get(tick_id) for tick_id in ids}
        missing = [tick_id for tick_id, frames in here.items() if frames is None]
        there = _read(connection, missing)
        return [(tick_id, there[tick_id] if frames is None else frames) for tick_id, frames in here.items()]

    def newest(self, connection: Connection) -> int:
        """Id of the newest tick; 0 when all are folded."""
        return connection.execute(select(func.max(schema.ticks.c.tick_id))).scalar() or 0

    def drop(self, connection: Connection, until: int) -> None:
        """Ticks up to this one are folded, of every shelf."""
        connection.execute(delete(schema.ticks).where(schema.ticks.c.tick_id <= until))

    def forget(self, until: int) -> None:
        """Dropped durably."""
        for tick_id in [each for each in self._frames if each <= until]:
            del self._frames[tick_id]


def _read(connection: Connection, tick_ids: Sequence[int]) -> dict[int, Frames]:
    c = schema.ticks.c
    if not tick_ids:
        return {}
    between = select(c.tick_id, c.data).where(c.tick_id.between(tick_ids[0], tick_ids[-1]))
    wanted = set(tick_ids)
    return {tick_id: unpack_tick(data) for tick_id, data in connection.execute(between) if tick_id in wanted}
