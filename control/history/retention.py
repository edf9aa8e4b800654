"""Forgetting: how long what is kept, deleted in small batches so that no writer waits long."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor
from typing import Final

from sqlalchemy import Connection, delete, func, select

from control.history import schema
from control.history.rollup import read_marks, write_mark

#: One batch deletes at most this share of what is kept of one step, and at most this many request records.
_SLICES: Final = 200
#: But at least so many seconds: a batch a minute keeps up with the time that goes by.
_LEAST_SLICE_S: Final = 300
MAX_RECORDS_A_BATCH: Final = 2_000
_TABLES: Final = (schema.phase_points, schema.state_points, schema.traffic_points, schema.latency_points)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Seconds that things are kept. Commands, desired states and worker epochs are kept for ever."""

    raw_s: float = 86_400.0  # points of 1 s
    rollup_s: float = 30 * 86_400.0  # points of 10 s and more
    requests_s: float = 7 * 86_400.0
    max_records: int = 2_000_000  # request records, whatever their age


def prune_step(connection: Connection, step_s: int, keep_s: float, now_unix_s: float) -> bool:
    """Delete the oldest slice of one step's points; True when there is more to delete."""
    cutoff = floor((now_unix_s - keep_s) / schema.STEPS[-1]) * schema.STEPS[-1]
    oldest = [
        connection.execute(select(func.min(table.c.t)).where(table.c.step_s == step_s)).scalar() for table in _TABLES
    ]
    start = min((t for t in oldest if t is not None), default=cutoff)
    if start >= cutoff:
        return False
    whole_s = next((each for each in schema.STEPS if each > step_s), step_s)  # never a part of a coarser bucket
    end = min(cutoff, ceil((start + max(step_s, _LEAST_SLICE_S, int(keep_s / _SLICES))) / whole_s) * whole_s)
    for table in _TABLES:
        connection.execute(delete(table).where(table.c.step_s == step_s, table.c.t < end))
    if end > read_marks(connection, "pruned-").get(step_s, 0):
        write_mark(connection, f"pruned-{step_s}", end)
    return end < cutoff


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
