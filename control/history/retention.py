"""Forgetting: how long what is kept, and how much, deleted in small batches so that no writer waits long."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import Final

from sqlalchemy import Connection, delete, func, select, text

from control.history import schema
from control.history.marks import read_marks, write_mark

#: One batch deletes one shelf's oldest chunk of one step, and at most this many request records.
MAX_RECORDS_A_BATCH: Final = 1_000
#: Seconds are kept at least so long, however little room there is.
LEAST_RAW_S: Final = 3_600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Seconds that things are kept. Commands, desired states and worker epochs are kept for ever.

    `max_bytes`: when the database has grown beyond it, the oldest seconds go before their time, down to LEAST_RAW_S;
    then the oldest points of 10 s. None: no bound.
    """

    raw_s: float = 86_400.0  # points of 1 s
    rollup_s: float = 30 * 86_400.0  # points of 10 s and more
    requests_s: float = 7 * 86_400.0
    max_records: int = 2_000_000  # request records, whatever their age
    max_bytes: float | None = None

    def seconds_of(self, step_s: int) -> float:
        return self.raw_s if step_s == 1 else self.rollup_s


def prune_points(connection: Connection, step_s: int, keep: Retention, now_unix_s: float) -> bool:
    """Delete one shelf's oldest chunk of one step; True when there is more. What is not rolled up yet stays."""
    c, length_s = schema.chunks.c, schema.CHUNK_S[step_s]
    oldest = connection.execute(select(func.min(c.t)).where(c.step_s == step_s)).scalar()
    if oldest is None:
        return False
    cutoff = _cutoff(connection, step_s, keep, now_unix_s)
    if oldest + length_s > cutoff:
        return False
    shelf_id = connection.execute(select(func.min(c.shelf_id)).where(c.step_s == step_s, c.t == oldest)).scalar()
    connection.execute(delete(schema.chunks).where(c.shelf_id == shelf_id, c.step_s == step_s, c.t == oldest))
    end = oldest + length_s
    if end > read_marks(connection, "pruned-").get(step_s, 0):
        write_mark(connection, f"pruned-{step_s}", end)
    following = connection.execute(select(func.min(c.t)).where(c.step_s == step_s)).scalar()
    return following is not None and following + length_s <= cutoff


def _cutoff(connection: Connection, step_s: int, keep: Retention, now_unix_s: float) -> int:
    """Chunks that end by then may go."""
    cutoff = floor(now_unix_s - keep.seconds_of(step_s))
    if keep.max_bytes is not None and step_s in (1, 10) and used_bytes(connection) > keep.max_bytes:
        least_s = LEAST_RAW_S if step_s == 1 else keep.raw_s
        cutoff = max(cutoff, floor(now_unix_s - least_s))
    waiting = connection.execute(select(func.min(schema.parts.c.t))).scalar() if step_s == 1 else None
    return cutoff if waiting is None else min(cutoff, waiting)


def used_bytes(connection: Connection) -> int:
    """What points and their indexes take; in SQLite all that the file holds, free pages not counted."""
    if connection.dialect.name == "postgresql":
        sizes = "SELECT sum(pg_total_relation_size(name::regclass)) FROM unnest(ARRAY['chunks','parts','ticks']) name"
        return int(connection.execute(text(sizes)).scalar() or 0)
    pages, free, size = (
        int(connection.execute(text(f"PRAGMA {name}")).scalar() or 0)
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


def prune_records(connection: Connection, keep_s: float, max_records: int, now_unix_s: float) -> bool:
    """Delete the oldest request records, those past their time first, then those that are too many; True when there may
    be more to delete. What they were counted as stays, and so do their numbers.

    Records are numbered as they are written, so the newest `max_records` numbers are at most so many records.
    """
    c = schema.request_records.c
    newest = connection.execute(select(func.max(c.record_id))).scalar() or 0
    left = MAX_RECORDS_A_BATCH
    for is_over in (c.arrival_unix_s < now_unix_s - keep_s, c.record_id <= newest - max_records):
        old = select(c.record_id).where(is_over).limit(left)
        left -= connection.execute(delete(schema.request_records).where(c.record_id.in_(old))).rowcount
    return left <= 0


def prune_events(connection: Connection, keep_s: float, now_unix_s: float) -> None:
    """Events older than anything that is kept: rare, so all of them at once."""
    connection.execute(delete(schema.fleet_events).where(schema.fleet_events.c.t < now_unix_s - keep_s))


def prune_intervals(connection: Connection, keep_s: float, now_unix_s: float) -> None:
    """Role intervals that ended before anything that is kept."""
    c = schema.role_intervals.c
    connection.execute(delete(schema.role_intervals).where(c.end_unix_s < now_unix_s - keep_s))
