"""The history as the plane sees it: one object, synchronous methods, one transaction each, one kind of error.

Decided here: what is one transaction. Everything a tick found out (points, rollups, request records, role intervals,
events, and the cursors that make it count once) is written together or not at all; so is a command with the desired
state that it makes. One thread writes; any number of threads read beside it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor, inf
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Engine, case, or_, select
from sqlalchemy.exc import SQLAlchemyError

from control.fleet_events import move_events
from control.history import alerts, attachments, cursors, events, journal, leases, requests, schema
from control.history.attachments import AttachmentRow
from control.history.chunks import Frames
from control.history.database import history_error, open_engine, reading, writing
from control.history.deferred import AlertWrite, TickWrite, decode
from control.history.differences import ExplainQuery, read_explanation
from control.history.events import EventQuery
from control.history.heatmaps import read_heatmap
from control.history.marks import read_marks
from control.history.points import LineIds, PointBatch, line_ids, upsert
from control.history.postgresql import ANSWER_LIMIT_S, WRITE_LIMIT_S, lift_limits
from control.history.requests import RequestFilter, RequestQuery
from control.history.retention import Retention, prune_events, prune_intervals, prune_points, prune_records, used_bytes
from control.history.series import SeriesQuery, read_good_counts, read_series
from control.history.tail import Tail
from control.history.totals import Totals, read_totals
from control.history.upkeep import FOLD_TICKS, block_to_roll, fold, roll_block, shelf_to_fold
from control.lease import MAX_LOCK_WAIT_S, Holder, Lease, Standing, Verdict
from control.points import MAX_KNOWN_LINES, Ingested, WorkerCursor, WorkerEpoch, is_new
from control.spool import Frame
from control.types import (
    Alert,
    Command,
    CommandState,
    CommandStep,
    Desired,
    Explanation,
    FleetEvent,
    Heatmap,
    RequestRecord,
    Role,
    RoleInterval,
    SeriesResult,
    Slo,
    TrafficStatus,
    WorkerState,
)
from control.write_points import Reach, pass_by

#: A call of `upkeep` begins no more work after this.
UPKEEP_S: Final = 0.05
FORGET_EVERY_S: Final = 10.0
FOREVER: Final = 1e11

__all__ = ["EventQuery", "ExplainQuery", "History", "RequestFilter", "RequestQuery", "Retention", "SeriesQuery"]


@dataclass(frozen=True, slots=True)
class _Put:
    """What a tick's transaction made: to be remembered once it is durable."""

    ids: LineIds
    tick_id: int = 0
    frames: Frames = field(default_factory=dict)


class History:
    """SQLite or PostgreSQL. Every method raises HistoryError, one line, when the database does not do its part."""

    def __init__(self, engine: Engine, retention: Retention, reach: Reach = pass_by) -> None:
        self._engine = engine
        self._retention = retention
        self._reach = reach
        self._held: tuple[str, int] | None = None  # the fleet and fence under which everything is written
        self._line_ids: LineIds = {}
        self._saved: dict[tuple[str, str], WorkerCursor] = {}  # cursors as the database has them
        self._tail = Tail()
        self._forget_unix_s: float | None = None  # not before then
        self._is_unsure = False  # the last tick failed, and its commit may have been done all the same

    @classmethod
    def open(cls, url: str, *, retention: Retention | None = None, reach: Reach = pass_by) -> History:
        """Open or make the database and bring it to the newest schema. `reach`: for tests. Raises HistoryError."""
        return cls(open_engine(url), retention or Retention(), reach)

    def close(self) -> None:
        self._engine.dispose()

    @contextlib.contextmanager
    def _writing(self, name: str, limit_s: float = ANSWER_LIMIT_S, *, is_fenced: bool = True) -> Iterator[Connection]:
        """The one way to write: a transaction, whose moments are write points of that name.

        `limit_s`: for one statement. Raises StaleFence, and writes nothing, when the fence that we hold is not the
        newest. The lease's own statements look at the fence themselves.
        """
        self._reach(f"{name}:before")
        try:
            with writing(self._engine, limit_s) as connection:
                if is_fenced and self._held is not None:
                    leases.check_fence(connection, *self._held)
                yield connection
                self._reach(f"{name}:uncommitted")
        except SQLAlchemyError as error:
            raise history_error(error) from error
        self._reach(f"{name}:after")

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with reading(self._engine) as connection:
                yield connection
        except SQLAlchemyError as error:
            raise history_error(error) from error

    # --- the lease --------------------------------------------------------------------------------------------------

    def lease(self, fleet_id: str) -> tuple[Lease | None, float]:
        """Who has the fleet, None when nobody ever had; and the time by the database's clock."""
        with self._reading() as connection:
            return leases.find(connection, fleet_id), leases.clock(connection)

    def take_lease(self, fleet_id: str, me: Holder, lease_s: float, standing: Standing) -> tuple[Lease | None, Verdict]:
        """Take over under a new fence, larger than any before, if the rule lets us; and what it said."""
        begun_s = time.monotonic()
        with self._writing("take_lease", is_fenced=False) as connection:
            if time.monotonic() - begun_s > MAX_LOCK_WAIT_S:  # so may the holder's renewal have waited
                standing = replace(standing, reachable_s=0.0)
            return leases.take(connection, fleet_id, me, lease_s, standing)

    def hold(self, fleet_id: str, fence: int) -> None:
        """From now on everything is written under this fence, or refused with StaleFence."""
        self._held = (fleet_id, fence)

    def renew_lease(self, fleet_id: str, fence: int, lease_s: float) -> None:
        """Raises StaleFence when another plane has taken over."""
        with self._writing("renew_lease", is_fenced=False) as connection:
            leases.renew(connection, fleet_id, fence, lease_s)

    def release_lease(self, fleet_id: str, fence: int) -> None:
        """A standby may take over at once."""
        with self._writing("release_lease", is_fenced=False) as connection:
            leases.release(connection, fleet_id, fence)

    # --- attached fleets --------------------------------------------------------------------------------------------

    def attachments(self) -> list[AttachmentRow]:
        """Of all attached fleets."""
        with self._reading() as connection:
            return attachments.find_all(connection)

    def put_attachment(self, row: AttachmentRow, told: FleetEvent) -> bool:
        """False when a fleet of that name is attached already. `told` is on record with it, here and below."""
        with self._writing("put_attachment") as connection:
            return attachments.put(connection, row) and _also_told(connection, told)

    def allow_attached(self, name: str, allowed: str, told: FleetEvent) -> bool:
        """False when none of that name is attached."""
        with self._writing("allow_attached") as connection:
            return attachments.allow(connection, name, allowed) and _also_told(connection, told)

    def remember_attached(self, name: str, memory: str) -> bool:
        """False when none of that name is attached."""
        with self._writing("remember_attached") as connection:
            return attachments.remember(connection, name, memory)

    def remove_attachment(self, name: str, told: FleetEvent) -> bool:
        """False when none of that name is attached."""
        with self._writing("remove_attachment") as connection:
            return attachments.remove(connection, name) and _also_told(connection, told)

    # --- desired state, commands ------------------------------------------------------------------------------------

    def load_desired(self, fleet_id: str) -> Desired | None:
        """The newest desired state; None for a fleet that has none yet."""
        with self._reading() as connection:
            return journal.load_desired(connection, fleet_id)

    def desired_at(self, fleet_id: str, version: int) -> Desired | None:
        """One version of the desired state; every version is kept."""
        with self._reading() as connection:
            return journal.desired_at(connection, fleet_id, version)

    def record_command(self, draft: Command) -> Command:
        """Record a command and its desired state, durably. Raises StaleVersion when somebody was first.

        Returns it with its number; a key that this principal used before returns the command of that time.
        """
        with self._writing("record_command") as connection:
            return journal.record_command(connection, draft)

    def update_command(self, command_id: int, state: CommandState, step: CommandStep | None, result: str) -> None:
        """A new state, one more journal line, the result ("" leaves it). Raises NotFound."""
        with self._writing("update_command", WRITE_LIMIT_S) as connection:
            journal.update_command(connection, command_id, state, step, result)

    def find_by_idempotency(self, key: str, who: str) -> Command | None:
        with self._reading() as connection:
            return journal.find_by_idempotency(connection, key, who)

    def command(self, command_id: int) -> Command | None:
        with self._reading() as connection:
            return journal.command(connection, command_id)

    def commands(
        self,
        fleet_id: str,
        limit: int,
        before_id: int | None = None,
        states: tuple[CommandState, ...] = (),
        since_unix_s: float | None = None,
        until_unix_s: float | None = None,
    ) -> list[Command]:
        """Newest first, recorded in [since, until)."""
        with self._reading() as connection:
            return journal.commands(connection, fleet_id, limit, before_id, states, since_unix_s, until_unix_s)

    def unfinished_commands(self, fleet_id: str) -> list[Command]:
        """Oldest first."""
        with self._reading() as connection:
            return journal.unfinished_commands(connection, fleet_id)

    # --- what a tick found out --------------------------------------------------------------------------------------

    def write_tick(
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
        with self._writing("write_tick", WRITE_LIMIT_S) as connection:
            put = self._put_tick(connection, TickWrite(ingested, changed, records, traffic), may_be_counted=was_unsure)
        self._is_unsure = False
        self._remember(put)
        self._saved |= {(fleet_id, name): cursor for name, cursor in changed.items()}

    def replay(self, frame: Frame) -> None:
        """Write what waited in a spool: once, as the frame's number is kept in the same transaction.

        Points that another plane has counted meanwhile, from the workers' own counters, are left out. A command that
        ended or went on meanwhile stays as it is. Raises ValueError on a frame that cannot be read.
        """
        place, write = frame.place, decode(frame.payload)
        with self._writing("replay", WRITE_LIMIT_S) as connection:
            if place.number <= cursors.replayed(connection, place.owner):
                return
            put = _Put({})
            if isinstance(write, TickWrite):
                put = self._put_tick(connection, write, may_be_counted=True)
            elif isinstance(write, AlertWrite):
                alerts.put_alerts(connection, write.fleet_id, write.alerts, write.forgotten)
            else:
                journal.update_command(
                    connection, write.command_id, write.state, write.step, write.result, is_late=True
                )
            cursors.put_replayed(connection, place)
        self._remember(put)

    def put_alerts(self, fleet_id: str, changed: Sequence[Alert], forgotten: Sequence[str]) -> None:
        """New states of alerts; `forgotten`: ids of those that pended in vain."""
        with self._writing("put_alerts", WRITE_LIMIT_S) as connection:
            alerts.put_alerts(connection, fleet_id, changed, forgotten)

    def _remember(self, put: _Put) -> None:
        """Look these up no more. Now and then all other lines are forgotten: most are of lives that have ended."""
        if len(self._line_ids) > MAX_KNOWN_LINES:
            self._line_ids = {}
        self._line_ids |= put.ids
        if put.tick_id:
            self._tail.remember(put.tick_id, put.frames)

    def _put_tick(self, connection: Connection, write: TickWrite, *, may_be_counted: bool) -> _Put:
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
        _put_epochs(connection, fleet_id, ingested.epochs)
        events.add_moves(connection, move_events(fresh))
        if counts:
            events.put_lives(connection, ingested.events)
            _put_intervals(connection, fleet_id, ingested.roles)
            cursors.put_cursors(connection, fleet_id, write.cursors)
        return _Put(ids, tick_id, frames)

    def load_cursors(self, fleet_id: str) -> dict[str, WorkerCursor]:
        """How far each worker's meter has been counted: for `Accountant.restore`."""
        with self._reading() as connection:
            return cursors.load_cursors(connection, fleet_id)

    def last_seq(self, gateway_id: str) -> int:
        """Newest record of a gateway that is durable; 0 when there is none."""
        with self._reading() as connection:
            return requests.last_seq(connection, gateway_id)

    # --- reading ----------------------------------------------------------------------------------------------------

    def series(self, query: SeriesQuery) -> SeriesResult:
        """One metric over a range. Raises NotFound or CommandRefused on a bad query."""
        with self._reading() as connection:
            return read_series(connection, query, self._tail)

    def many_series(self, queries: Sequence[SeriesQuery]) -> list[SeriesResult]:
        """Several at once, in their order. Raises like `series`."""
        with self._reading() as connection:
            return [read_series(connection, query, self._tail) for query in queries]

    def totals(self, fleet_id: str, since_unix_s: float = 0.0, until_unix_s: float = FOREVER) -> Totals:
        """Everything that a fleet's lines did in [since, until), added up, by scope, name and phase."""
        with self._reading() as connection:
            return read_totals(connection, self._tail, fleet_id, since_unix_s, until_unix_s)

    def requests(self, query: RequestQuery) -> list[RequestRecord]:
        with self._reading() as connection:
            return requests.find_requests(connection, query)

    def heatmap(self, query: RequestFilter, slo: Slo) -> Heatmap:
        """Requests by arrival and latency. Raises CommandRefused on a range that is none."""
        with self._reading() as connection:
            return read_heatmap(connection, self._tail, query, slo)

    def explanation(self, query: ExplainQuery) -> Explanation:
        """What is different about some requests. Raises CommandRefused on a range that is none."""
        with self._reading() as connection:
            return read_explanation(connection, query)

    def request(self, request_id: str) -> RequestRecord | None:
        with self._reading() as connection:
            return requests.find_request(connection, request_id)

    def events(self, query: EventQuery) -> list[FleetEvent]:
        """Newest first."""
        with self._reading() as connection:
            return events.find_events(connection, query)

    def open_alerts(self, fleet_id: str, ended_since_unix_s: float) -> list[Alert]:
        """What pends and fires; and what has ended since then and nobody was told of."""
        with self._reading() as connection:
            return alerts.open_alerts(connection, fleet_id, ended_since_unix_s)

    def ended_alerts(self, fleet_id: str, since_unix_s: float, limit: int) -> list[Alert]:
        """Newest first."""
        with self._reading() as connection:
            return alerts.find_ended(connection, fleet_id, since_unix_s, limit)

    def good_counts(
        self, fleet_id: str, since_unix_s: float, until_unix_s: float, step_s: int
    ) -> list[tuple[int, int, int]]:
        """Per step of arrival that has any: (its begin, good requests, requests that count)."""
        with self._reading() as connection:
            return read_good_counts(connection, self._tail, fleet_id, since_unix_s, until_unix_s, step_s)

    def role_intervals(self, fleet_id: str, since_unix_s: float, until_unix_s: float) -> list[RoleInterval]:
        """Intervals that overlap [since, until), by worker and start."""
        c = schema.role_intervals.c
        wanted = (
            select(schema.role_intervals)
            .where(c.fleet_id == fleet_id, c.start_unix_s < until_unix_s)
            .where(or_(c.end_unix_s.is_(None), c.end_unix_s > since_unix_s))
            .order_by(c.worker_id, c.start_unix_s)
        )
        with self._reading() as connection:
            rows = connection.execute(wanted).mappings().all()
        return [
            RoleInterval(
                worker_id=row["worker_id"],
                epoch=row["epoch"],
                role=Role(row["role"]),
                state=WorkerState(row["state"]),
                start_unix_s=row["start_unix_s"],
                end_unix_s=row["end_unix_s"],
                reason=row["reason"],
            )
            for row in rows
        ]

    @contextlib.contextmanager
    def filling(self) -> Iterator[Connection]:
        """A transaction without a limit, for what is generated and not measured: it may stand still while numbers are
        made."""
        with self._writing("fill", inf) as connection:
            lift_limits(connection)
            yield connection

    def used_bytes(self) -> int:
        """What points and their indexes take."""
        with self._reading() as connection:
            return used_bytes(connection)

    # --- upkeep -----------------------------------------------------------------------------------------------------

    def upkeep(self, now_unix_s: float, limit_s: float = UPKEEP_S) -> int:
        """Bring what ticks wrote to where it is kept, and delete what is too old: call it after each tick.

        Each piece of work is a transaction of its own; another one is begun only within `limit_s`, so that nobody
        waits for the writer for long. Returns how many there were: 0 when nothing waits.
        """
        begun_s, num_pieces = time.monotonic(), 0
        while self._fold() or self._roll(now_unix_s) or self._forget(now_unix_s):
            num_pieces += 1
            if time.monotonic() - begun_s > limit_s:
                break
        return num_pieces

    def settle(self, now_unix_s: float) -> None:
        """All of `upkeep` at once, also what would wait for more: before a history is measured or looked at."""
        while self._fold(num_ticks=1) or self._roll(now_unix_s) or self._forget(now_unix_s):
            pass

    def _fold(self, num_ticks: int = FOLD_TICKS) -> bool:
        """Fold one shelf that is due."""
        with self._reading() as connection:
            due = shelf_to_fold(connection, self._tail.newest(connection), num_ticks)
        if due is None:
            return False
        with self._writing("fold", WRITE_LIMIT_S) as connection:
            everywhere = fold(connection, self._tail, *due, read_marks(connection, "pruned-"))
        self._tail.forget(everywhere)
        return True

    def _roll(self, now_unix_s: float) -> bool:
        """Roll up one block that is due."""
        with self._reading() as connection:
            due = block_to_roll(connection, floor(now_unix_s))
        if due is None:
            return False
        with self._writing("roll", WRITE_LIMIT_S) as connection:
            roll_block(connection, *due, read_marks(connection, "pruned-"))
        return True

    def _forget(self, now_unix_s: float) -> bool:
        """Now and then delete one batch of what is too old. True when there is more of it."""
        if self._forget_unix_s is None:
            self._forget_unix_s = now_unix_s + FORGET_EVERY_S
        if now_unix_s < self._forget_unix_s:
            return False
        more = self.prune(now_unix_s)
        self._forget_unix_s = 0.0 if more else now_unix_s + FORGET_EVERY_S
        return more

    def prune(self, now_unix_s: float, retention: Retention | None = None) -> bool:
        """Delete one batch of each kind that is too old, each in its own transaction; True when there is more."""
        keep = retention or self._retention
        more = False
        for step_s in schema.STEPS:
            with self._writing("prune", WRITE_LIMIT_S) as connection:
                more |= prune_points(connection, step_s, keep, now_unix_s)
        with self._writing("prune_records", WRITE_LIMIT_S) as connection:
            more |= prune_records(connection, keep.requests_s, keep.max_records, now_unix_s)
        with self._writing("prune_intervals", WRITE_LIMIT_S) as connection:
            prune_intervals(connection, keep.rollup_s, now_unix_s)
            prune_events(connection, keep.rollup_s, now_unix_s)
            alerts.prune_alerts(connection, keep.rollup_s, now_unix_s)
        return more


def _put_intervals(connection: Connection, fleet_id: str, intervals: Sequence[RoleInterval]) -> None:
    """Open and closed intervals; a closing one keeps the reason with which it was opened."""
    if not intervals:
        return
    statement = upsert(connection, schema.role_intervals)
    new, old = statement.excluded, schema.role_intervals.c
    statement = statement.on_conflict_do_update(
        index_elements=list(schema.role_intervals.primary_key.columns),
        set_={
            "end_unix_s": new.end_unix_s,
            "role": new.role,
            "state": new.state,
            "reason": case((new.reason == "", old.reason), else_=new.reason),
        },
    )
    for each in intervals:  # one by one: the same interval may be opened and closed in one tick
        values = {
            "fleet_id": fleet_id,
            "worker_id": each.worker_id,
            "epoch": each.epoch,
            "start_unix_s": each.start_unix_s,
            "end_unix_s": each.end_unix_s,
            "role": each.role.value,
            "state": each.state.value,
            "reason": each.reason,
        }
        connection.execute(statement, values)


def _put_epochs(connection: Connection, fleet_id: str, epochs: Sequence[WorkerEpoch]) -> None:
    if not epochs:
        return
    statement = upsert(connection, schema.worker_epochs)
    statement = statement.on_conflict_do_update(
        index_elements=list(schema.worker_epochs.primary_key.columns),
        set_={"device": statement.excluded.device, "basis": statement.excluded.basis},
    )
    rows: list[dict[str, Any]] = [
        {
            "fleet_id": fleet_id,
            "worker_id": each.worker_id,
            "epoch": each.epoch,
            "model_id": each.model_id,
            "simulated": each.simulated,
            "hostname": each.hostname,
            "started_unix_s": each.started_unix_s,
            "basis": each.basis,
            "device": msgspec.json.encode(each.device),
        }
        for each in epochs
    ]
    connection.execute(statement, rows)


def _also_told(connection: Connection, event: FleetEvent) -> bool:
    events.put_lives(connection, [event])
    return True
