"""The history as the plane sees it: one object, synchronous methods, one transaction each, one kind of error.

Decided here: what is one transaction: a command with the desired state that it makes, an attached fleet with the event
that tells of it. What a tick found out is written by `control.history.ticks`, what becomes of it is in
`control.history.upkeep`. One thread writes; any number of threads read beside it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Final

from sqlalchemy import Connection, Engine

from control.history import alerts, attachments, cursors, events, journal, leases, requests, workers
from control.history.attachments import AttachmentRow
from control.history.database import open_engine
from control.history.differences import ExplainQuery, read_explanation
from control.history.events import EventQuery
from control.history.heatmaps import read_heatmap
from control.history.postgresql import WRITE_LIMIT_S, lift_limits
from control.history.requests import RequestFilter, RequestQuery
from control.history.retention import Retention, used_bytes
from control.history.series import SeriesQuery, read_good_counts, read_series
from control.history.tail import Tail
from control.history.ticks import TickWriter
from control.history.totals import Totals, read_totals
from control.history.transactions import Transactions
from control.history.upkeep import UPKEEP_S, Upkeep
from control.lease import MAX_LOCK_WAIT_S, Holder, Lease, Standing, Verdict
from control.points import Ingested, WorkerCursor
from control.spool import Frame
from control.types.alerts import Alert
from control.types.commands import Command, CommandState, CommandStep, Desired
from control.types.events import FleetEvent
from control.types.fleet import TrafficStatus
from control.types.latencies import Explanation, Heatmap
from control.types.requests import RequestRecord, Slo
from control.types.series import SeriesResult
from control.types.workers import RoleInterval
from control.write_points import Reach, pass_by

FOREVER: Final = 1e11

__all__ = ["EventQuery", "ExplainQuery", "History", "RequestFilter", "RequestQuery", "Retention", "SeriesQuery"]


class History:
    """SQLite or PostgreSQL. Every method raises HistoryError, one line, when the database does not do its part."""

    def __init__(self, engine: Engine, retention: Retention, reach: Reach = pass_by) -> None:
        self._transactions = Transactions(engine, reach)
        self._tail = Tail()
        self._ticks = TickWriter(self._transactions, self._tail)
        self._upkeep = Upkeep(self._transactions, self._tail, retention)

    @classmethod
    def open(cls, url: str, *, retention: Retention | None = None, reach: Reach = pass_by) -> History:
        """Open or make the database and bring it to the newest schema. `reach`: for tests. Raises HistoryError."""
        return cls(open_engine(url), retention or Retention(), reach)

    def close(self) -> None:
        self._transactions.engine.dispose()

    # --- the lease --------------------------------------------------------------------------------------------------

    def lease(self, fleet_id: str) -> tuple[Lease | None, float]:
        """Who has the fleet, None when nobody ever had; and the time by the database's clock."""
        with self._transactions.reading() as connection:
            return leases.find(connection, fleet_id), leases.clock(connection)

    def take_lease(self, fleet_id: str, me: Holder, lease_s: float, standing: Standing) -> tuple[Lease | None, Verdict]:
        """Take over under a new fence, larger than any before, if the rule lets us; and what it said."""
        begun_s = time.monotonic()
        with self._transactions.writing("take_lease", is_fenced=False) as connection:
            if time.monotonic() - begun_s > MAX_LOCK_WAIT_S:  # so may the holder's renewal have waited
                standing = replace(standing, reachable_s=0.0)
            return leases.take(connection, fleet_id, me, lease_s, standing)

    def hold(self, fleet_id: str, fence: int) -> None:
        """From now on everything is written under this fence, or refused with StaleFence."""
        self._transactions.hold(fleet_id, fence)

    def renew_lease(self, fleet_id: str, fence: int, lease_s: float) -> None:
        """Raises StaleFence when another plane has taken over."""
        with self._transactions.writing("renew_lease", is_fenced=False) as connection:
            leases.renew(connection, fleet_id, fence, lease_s)

    def release_lease(self, fleet_id: str, fence: int) -> None:
        """A standby may take over at once."""
        with self._transactions.writing("release_lease", is_fenced=False) as connection:
            leases.release(connection, fleet_id, fence)

    # --- attached fleets --------------------------------------------------------------------------------------------

    def attachments(self) -> list[AttachmentRow]:
        """Of all attached fleets."""
        with self._transactions.reading() as connection:
            return attachments.find_all(connection)

    def put_attachment(self, row: AttachmentRow, told: FleetEvent) -> bool:
        """False when a fleet of that name is attached already. `told` is on record with it, here and below."""
        with self._transactions.writing("put_attachment") as connection:
            return attachments.put(connection, row) and _also_told(connection, told)

    def allow_attached(self, name: str, allowed: str, told: FleetEvent) -> bool:
        """False when none of that name is attached."""
        with self._transactions.writing("allow_attached") as connection:
            return attachments.allow(connection, name, allowed) and _also_told(connection, told)

    def remember_attached(self, name: str, memory: str) -> bool:
        """False when none of that name is attached."""
        with self._transactions.writing("remember_attached") as connection:
            return attachments.remember(connection, name, memory)

    def remove_attachment(self, name: str, told: FleetEvent) -> bool:
        """False when none of that name is attached."""
        with self._transactions.writing("remove_attachment") as connection:
            return attachments.remove(connection, name) and _also_told(connection, told)

    # --- desired state, commands ------------------------------------------------------------------------------------

    def load_desired(self, fleet_id: str) -> Desired | None:
        """The newest desired state; None for a fleet that has none yet."""
        with self._transactions.reading() as connection:
            return journal.load_desired(connection, fleet_id)

    def desired_at(self, fleet_id: str, version: int) -> Desired | None:
        """One version of the desired state; every version is kept."""
        with self._transactions.reading() as connection:
            return journal.desired_at(connection, fleet_id, version)

    def record_command(self, draft: Command) -> Command:
        """Record a command and its desired state, durably. Raises StaleVersion when somebody was first.

        Returns it with its number; a key that this principal used before returns the command of that time.
        """
        with self._transactions.writing("record_command") as connection:
            return journal.record_command(connection, draft)

    def update_command(self, command_id: int, state: CommandState, step: CommandStep | None, result: str) -> None:
        """A new state, one more journal line, the result ("" leaves it). Raises NotFound."""
        with self._transactions.writing("update_command", WRITE_LIMIT_S) as connection:
            journal.update_command(connection, command_id, state, step, result)

    def find_by_idempotency(self, key: str, who: str) -> Command | None:
        with self._transactions.reading() as connection:
            return journal.find_by_idempotency(connection, key, who)

    def command(self, command_id: int) -> Command | None:
        with self._transactions.reading() as connection:
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
        with self._transactions.reading() as connection:
            return journal.commands(connection, fleet_id, limit, before_id, states, since_unix_s, until_unix_s)

    def unfinished_commands(self, fleet_id: str) -> list[Command]:
        """Oldest first."""
        with self._transactions.reading() as connection:
            return journal.unfinished_commands(connection, fleet_id)

    # --- what a tick found out --------------------------------------------------------------------------------------

    def write_tick(
        self,
        ingested: Ingested,
        cursors: Mapping[str, WorkerCursor],
        records: Sequence[tuple[str, int, RequestRecord]] = (),
        traffic: TrafficStatus | None = None,
    ) -> None:
        """One transaction, which may be tried again; see `TickWriter.write`."""
        self._ticks.write(ingested, cursors, records, traffic)

    def replay(self, frame: Frame) -> None:
        """Write what waited in a spool: once, as the frame's number is kept in the same transaction.

        Points that another plane has counted meanwhile, from the workers' own counters, are left out. A command that
        ended or went on meanwhile stays as it is. Raises ValueError on a frame that cannot be read.
        """
        self._ticks.replay(frame)

    def put_alerts(self, fleet_id: str, changed: Sequence[Alert], forgotten: Sequence[str]) -> None:
        """New states of alerts; `forgotten`: ids of those that pended in vain."""
        with self._transactions.writing("put_alerts", WRITE_LIMIT_S) as connection:
            alerts.put_alerts(connection, fleet_id, changed, forgotten)

    def load_cursors(self, fleet_id: str) -> dict[str, WorkerCursor]:
        """How far each worker's meter has been counted: for `Accountant.restore`."""
        with self._transactions.reading() as connection:
            return cursors.load_cursors(connection, fleet_id)

    def last_seq(self, gateway_id: str) -> int:
        """Newest record of a gateway that is durable; 0 when there is none."""
        with self._transactions.reading() as connection:
            return requests.last_seq(connection, gateway_id)

    # --- reading ----------------------------------------------------------------------------------------------------

    def series(self, query: SeriesQuery) -> SeriesResult:
        """One metric over a range. Raises NotFound or CommandRefused on a bad query."""
        with self._transactions.reading() as connection:
            return read_series(connection, query, self._tail)

    def many_series(self, queries: Sequence[SeriesQuery]) -> list[SeriesResult]:
        """Several at once, in their order. Raises like `series`."""
        with self._transactions.reading() as connection:
            return [read_series(connection, query, self._tail) for query in queries]

    def totals(self, fleet_id: str, since_unix_s: float = 0.0, until_unix_s: float = FOREVER) -> Totals:
        """Everything that a fleet's lines did in [since, until), added up, by scope, name and phase."""
        with self._transactions.reading() as connection:
            return read_totals(connection, self._tail, fleet_id, since_unix_s, until_unix_s)

    def requests(self, query: RequestQuery) -> list[RequestRecord]:
        with self._transactions.reading() as connection:
            return requests.find_requests(connection, query)

    def heatmap(self, query: RequestFilter, slo: Slo) -> Heatmap:
        """Requests by arrival and latency. Raises CommandRefused on a range that is none."""
        with self._transactions.reading() as connection:
            return read_heatmap(connection, self._tail, query, slo)

    def explanation(self, query: ExplainQuery) -> Explanation:
        """What is different about some requests. Raises CommandRefused on a range that is none."""
        with self._transactions.reading() as connection:
            return read_explanation(connection, query)

    def request(self, request_id: str) -> RequestRecord | None:
        with self._transactions.reading() as connection:
            return requests.find_request(connection, request_id)

    def events(self, query: EventQuery) -> list[FleetEvent]:
        """Newest first."""
        with self._transactions.reading() as connection:
            return events.find_events(connection, query)

    def open_alerts(self, fleet_id: str, ended_since_unix_s: float) -> list[Alert]:
        """What pends and fires; and what has ended since then and nobody was told of."""
        with self._transactions.reading() as connection:
            return alerts.open_alerts(connection, fleet_id, ended_since_unix_s)

    def ended_alerts(self, fleet_id: str, since_unix_s: float, limit: int) -> list[Alert]:
        """Newest first."""
        with self._transactions.reading() as connection:
            return alerts.find_ended(connection, fleet_id, since_unix_s, limit)

    def good_counts(
        self, fleet_id: str, since_unix_s: float, until_unix_s: float, step_s: int
    ) -> list[tuple[int, int, int]]:
        """Per step of arrival that has any: (its begin, good requests, requests that count)."""
        with self._transactions.reading() as connection:
            return read_good_counts(connection, self._tail, fleet_id, since_unix_s, until_unix_s, step_s)

    def role_intervals(self, fleet_id: str, since_unix_s: float, until_unix_s: float) -> list[RoleInterval]:
        """Intervals that overlap [since, until), by worker and start."""
        with self._transactions.reading() as connection:
            return workers.find_intervals(connection, fleet_id, since_unix_s, until_unix_s)

    @contextlib.contextmanager
    def filling(self) -> Iterator[Connection]:
        """A transaction without a limit, for what is generated and not measured: it may stand still while numbers are
        made."""
        with self._transactions.writing("fill", inf) as connection:
            lift_limits(connection)
            yield connection

    def used_bytes(self) -> int:
        """What points and their indexes take."""
        with self._transactions.reading() as connection:
            return used_bytes(connection)

    # --- upkeep -----------------------------------------------------------------------------------------------------

    def upkeep(self, now_unix_s: float, limit_s: float = UPKEEP_S) -> int:
        """Bring what ticks wrote to where it is kept, and delete what is too old: call it after each tick.

        Returns how many pieces of work there were: 0 when nothing waits.
        """
        return self._upkeep.work(now_unix_s, limit_s)

    def settle(self, now_unix_s: float) -> None:
        """All of `upkeep` at once, also what would wait for more: before a history is measured or looked at."""
        self._upkeep.settle(now_unix_s)

    def prune(self, now_unix_s: float, retention: Retention | None = None) -> bool:
        """Delete one batch of each kind that is too old; True when there is more."""
        return self._upkeep.prune(now_unix_s, retention)


def _also_told(connection: Connection, event: FleetEvent) -> bool:
    events.put_lives(connection, [event])
    return True
