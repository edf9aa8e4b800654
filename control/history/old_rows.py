"""Points of a history that an earlier version wrote, a row per line and second, as shelves and chunks. Used once.

Seconds that were rolled up into 600 s go into chunks with all their coarser points as they are; younger ones become
parts, which are rolled up like any others. Read one shelf and one chunk at a time, so a large history fits in memory.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from sqlalchemy import Connection, text

from control.history import schema
from control.history.chunks import STATE, TRAFFIC, Kind, latency_kind, phase_kind, put_chunk, put_parts
from control.history.frames import Frame, of_counts, of_rows
from control.types.workers import Phase

_KEYS: Final = frozenset(("line_id", "step_s", "phase", "t"))
_ROWS: Final[tuple[tuple[Kind, str, str], ...]] = (
    *((phase_kind(phase), "phase_points", f"AND phase = '{phase}'") for phase in Phase),
    (STATE, "state_points", ""),
    (TRAFFIC, "traffic_points", ""),
)


def move_points(connection: Connection) -> None:
    """Read the four old tables, write the new ones. All in the transaction of the migration."""
    rolled = connection.execute(text("SELECT t FROM marks WHERE name = 'rolled-600'")).scalar() or 0
    for shelf_id, line_ids in _make_shelves(connection):
        for kind, table, where in _ROWS:
            _move(connection, shelf_id, kind, rolled, f"{table} WHERE line_id IN ({line_ids}) {where}")
        names = connection.execute(text(f"SELECT DISTINCT kind FROM latency_points WHERE line_id IN ({line_ids})"))
        for name in names.scalars().all():
            of_name = f"latency_points WHERE line_id IN ({line_ids}) AND kind = '{name}'"
            _move(connection, shelf_id, latency_kind(name), rolled, of_name)


def _make_shelves(connection: Connection) -> list[tuple[int, str]]:
    """Put every line on a shelf; returns each shelf with its lines, as SQL."""
    rows = connection.execute(
        text("SELECT fleet_id, scope, line_id FROM lines ORDER BY fleet_id, scope, line_id")
    ).all()
    groups: dict[tuple[str, str], list[int]] = {}
    for fleet_id, scope, line_id in rows:
        groups.setdefault((fleet_id, scope), []).append(line_id)
    found = []
    for (fleet_id, scope), ids in groups.items():
        for start in range(0, len(ids), schema.SHELF_LINES):
            few = ids[start : start + schema.SHELF_LINES]
            values = {"fleet_id": fleet_id, "scope": scope, "num_lines": len(few), "folded": 0}
            result = connection.execute(schema.shelves.insert(), values)
            shelf_id, line_ids = int(result.inserted_primary_key[0]), ", ".join(map(str, few))  # type: ignore[index]
            connection.execute(text(f"UPDATE lines SET shelf_id = {shelf_id} WHERE line_id IN ({line_ids})"))
            found.append((shelf_id, line_ids))
    return found


def _move(connection: Connection, shelf_id: int, kind: Kind, rolled: int, rows: str) -> None:
    for step_s in schema.STEPS:
        length_s = schema.CHUNK_S[step_s]
        starts = connection.execute(text(f"SELECT DISTINCT t - t % {length_s} FROM {rows} AND step_s = {step_s}"))
        for start in sorted(starts.scalars().all()):
            wanted = text(f"SELECT * FROM {rows} AND step_s = {step_s} AND t >= {start} AND t < {start + length_s}")
            frame = _frame(list(connection.execute(wanted).mappings()))
            if step_s == 1 and start >= rolled:
                put_parts(connection, shelf_id, 0, [(kind, start, frame)])
            else:
                put_chunk(connection, shelf_id, kind, step_s, start, frame)


def _frame(rows: list[Any]) -> Frame:
    if rows and "buckets" in rows[0]:
        decode = msgspec.msgpack.Decoder(dict[int, int]).decode
        return of_counts((row["line_id"], row["t"], decode(row["buckets"])) for row in rows)
    values = [{name: each for name, each in row.items() if name not in _KEYS and each is not None} for row in rows]
    return of_rows([(row["line_id"], row["t"], each) for row, each in zip(rows, values, strict=True)])
