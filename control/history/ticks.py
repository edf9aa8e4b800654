"""What a tick found out, written: points, request records, role intervals, epochs, events, and the cursors with them.

Decided here: that all of it is one transaction, and that nothing counts twice: not when a write whose answer was lost
is tried again, not when it comes out of a spool, not when another plane has counted the same meters meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import floor

from sqlalchemy import Connection

from control.fleet_events import move_events
from control.history import alerts, cursors, events, journal, requests, workers
from control.history.chunks import Frames
from control.history.deferred import AlertWrite, TickWrite, decode
from control.history.points import LineIds, PointBatch, line_ids
from control.history.postgresql import WRITE_LIMIT_S
from control.history.tail import Tail
from control.history.transactions import Transactions
from control.points import MAX_KNOWN_LINES, Ingested, WorkerCursor, is_new
from control.spool import Frame
from control.types.fleet import TrafficStatus
from control.types.requests import RequestRecord


@dataclass(frozen=True, slots=True)
class _Put:
    """What a tick's transaction made: to be remembered once it is durable."""

    ids: LineIds
    tick_id: int = 0
    frames: Frames = field(default_factory=dict)


class TickWriter:
    """Remembers what the database has, so that a tick is few statements; only once it is durable."""

    def __init__(self, transactions: Transactions, tail: Tail) -> None:
        self._transactions = transactions
        self._tail = tail
        self._line_ids: LineIds = {}
        self._saved: dict[tuple[str, str], WorkerCursor] = {}  # cursors as the database has them
        self._is_unsure = False  # the last tick failed, and its commit may have been done all the same

    def write(
        self,
        ingested: Ingested,
        cursors: Mapping[str, WorkerCursor],
        records: Sequence[tuple[str, int, RequestRecord]] = (),
        traffic: TrafficStatus | None = None,
    ) -> None:
        """One transaction: points and rollups, cursors, records (each (gateway, seq) once), intervals, epochs.

        When the answer to its commit is lost it fails although it may be durable: the retry then finds its points
        counted, and adds only what is not there.
        """
        fleet_id = ingested.fleet_id
        changed = {name: each for name, each in cursors.items() if self._saved.get((fleet_id, name)) is not each}
        was_unsure, self._is_unsure = self._is_unsure, True
        with self._transactions.writing("write_tick", WRITE_LIMIT_S) as connection:
            put = self._put(connection, TickWrite(ingested, changed, records, traffic), may_be_counted=was_unsure)
        self._is_unsure = False
        self._remember(put)
        self._saved |= {(fleet_id, name): cursor for name, cursor in changed.items()}

    def replay(self, frame: Frame) -> None:
        """Write what waited in a spool: once, as the frame's number is kept in the same transaction.

        Points that another plane has counted meanwhile, from the workers' own counters, are left out. A command that
        ended or went on meanwhile stays as it is. Raises ValueError on a frame that cannot be read.
        """
        place, write = frame.place, decode(frame.payload)
        with self._transactions.writing("replay", WRITE_LIMIT_S) as connection:
            if place.number <= cursors.replayed(connection, place.owner):
                return
            put = _Put({})
            if isinstance(write, TickWrite):
                put = self._put(connection, write, may_be_counted=True)
            elif isinstance(write, AlertWrite):
                alerts.put_alerts(connection, write.fleet_id, write.alerts, write.forgotten)
            else:
                journal.update_command(
                    connection, write.command_id, write.state, write.step, write.result, is_late=True
                )
            cursors.put_replayed(connection, place)
        self._remember(put)

    def _remember(self, put: _Put) -> None:
        """Look these up no more. Now and then all other lines are forgotten: most are of lives that have ended."""
        if len(self._line_ids) > MAX_KNOWN_LINES:
            self._line_ids = {}
        self._line_ids |= put.ids
        if put.tick_id:
            self._tail.remember(put.tick_id, put.frames)

    def _put(self, connection: Connection, write: TickWrite, *, may_be_counted: bool) -> _Put:
        """Everything of one tick that is not there yet."""
        ingested, fleet_id = write.ingested, write.ingested.fleet_id
        counts = not may_be_counted or is_new(ingested, cursors.marks(connection, fleet_id))
        batch = PointBatch()
        if counts:
            batch.add_ingested(ingested)
        fresh = requests.add_records(connection, write.records)
        for record in fresh:
            batch.add_record(record)
        fleet_lines = batch.fleet_lines()
        if counts and write.traffic is not None and fleet_lines:
            batch.add_gauges(write.traffic, fleet_lines[0], floor(ingested.at_unix_s))
        ids = line_ids(connection, fleet_id, batch.lines(), self._line_ids)
        frames = batch.frames(fleet_id, ids)
        tick_id = self._tail.add(connection, frames) if frames else 0
        workers.put_epochs(connection, fleet_id, ingested.epochs)
        events.add_moves(connection, move_events(fresh))
        if counts:
            events.put_lives(connection, ingested.events)
            workers.put_intervals(connection, fleet_id, ingested.roles)
            cursors.put_cursors(connection, fleet_id, write.cursors)
        return _Put(ids, tick_id, frames)
