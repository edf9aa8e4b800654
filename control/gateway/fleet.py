"""The fleet as one gateway sees it: the newest routing table, and a link to each worker in it.

Decided here: which table is taken (only a newer one), which links it opens and retires, what `route` gets to see, and
who is told when room appears. Not here: where a table comes from (`control.gateway.plane_link`).
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from control.gateway.batch_room import BatchRoom
from control.gateway.fair_share import FairShare
from control.gateway.forecast import NOTHING
from control.gateway.mover import MoveLimits, Mover
from control.gateway.prefix_index import PrefixIndex
from control.gateway.recovery import Recovery
from control.gateway.standing import Standing
from control.gateway.turns import Turn
from control.gateway.workers import WorkerLink
from control.routing import FleetView, WorkerView
from control.types.routing import RoutingTable, WorkerRoute
from engine.types import Role
from engine.wire import Hello

log = logging.getLogger(__name__)
_POOLS: Final = (Role.PREFILL, Role.DECODE, Role.MIXED)


class Waiter(Protocol):
    """A request that found no room."""

    standing: Standing

    @property
    def turn(self) -> Turn:
        """Lower is sooner."""
        ...

    def on_room(self) -> bool:
        """Try again. True when it found a place, so that the next one may try too."""
        ...


def _turn(waiter: Waiter) -> Turn:
    return waiter.turn


@dataclass(frozen=True, slots=True, kw_only=True)
class LineRules:
    """Who waits at the gateway rather than on a worker, from the settings."""

    max_backlog_s: float | None = 0.3  # prompts for so long may be queued on one worker; None: all wait on workers
    batch_share: float = 0.5
    key_weights: Mapping[str, float] = field(default_factory=dict)


class Fleet:
    """Links by worker id, and a view of them that is rebuilt only when something changed."""

    def __init__(
        self,
        hello: Hello,
        moving: MoveLimits | None = None,
        recovery_share: float = 0.5,
        rules: LineRules | None = None,
    ) -> None:
        self.table: RoutingTable | None = None
        self.links: dict[str, WorkerLink] = {}
        self.waiters: list[Waiter] = []  # in the order of their turns
        self.rules = rules or LineRules()
        self.shares = FairShare(self.rules.key_weights)
        self.batch = BatchRoom(self.rules.batch_share)
        self.waiting_elsewhere = NOTHING  # in the lines of the other gateways, by the plane's word
        self.mover = Mover(moving or MoveLimits(), self.view, lambda worker_id: self.links[worker_id])
        self.recovery = Recovery(recovery_share, self._leave_dying)
        self._hello = hello
        self._prefixes = PrefixIndex()
        self._tasks: dict[WorkerLink, asyncio.Task[None]] = {}
        self._view: FleetView | None = None
        self._is_waking = False
        self._is_kept = False

    # --- the table -----------------------------------------------------------------------------------------------

    def take_table(self, table: RoutingTable, *, is_kept: bool = False) -> bool:
        """Use this table, if it is newer than the one in use. One kept on disk gives way to any from the plane."""
        if self.table is not None and table.version <= self.table.version and not self._is_kept:
            return False
        self.table = table
        self._is_kept = is_kept
        rows = {row.worker_id: row for row in table.workers}
        lost_s = {worker_id: link.lost_s for worker_id, link in self.links.items()}
        for worker_id, link in list(self.links.items()):
            if worker_id not in rows or rows[worker_id].address != link.row.address:
                self._retire(link)
        for worker_id, row in rows.items():
            if worker_id in self.links:
                self.links[worker_id].set_row(row)
            else:
                self._add(row, lost_s.get(worker_id))
        self._on_change()
        log.info("routing table %d: %d workers", table.version, len(rows))
        return True

    def _add(self, row: WorkerRoute, lost_s: float | None) -> None:
        taken = {link.slot for link in self._tasks}
        slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        link = WorkerLink(
            row,
            slot,
            self._prefixes,
            self._on_change,
            self._on_status,
            max_backlog_s=self.rules.max_backlog_s,
        )
        link.lost_s = lost_s  # a restarted process has another address: still the same worker on its way back
        self.mover.departures.stays(row.worker_id)  # but what will leave it is another departure
        self.links[row.worker_id] = link
        task = asyncio.get_running_loop().create_task(link.keep_connected(self._hello))
        self._tasks[link] = task
        task.add_done_callback(lambda done: self._ended(link, done))

    def _retire(self, link: WorkerLink) -> None:
        """Nothing new goes there; the connection stays until its requests have ended."""
        del self.links[link.worker_id]
        link.is_retired = True
        if not link.is_connected:
            self._tasks[link].cancel()
        elif not link.legs:
            link.close("the worker left the table")

    def _ended(self, link: WorkerLink, task: asyncio.Task[None]) -> None:
        self._tasks.pop(link, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the link to worker %s broke: %r", link.worker_id, error)

    async def close(self) -> None:
        tasks = list(self._tasks.values())
        for link, task in list(self._tasks.items()):
            link.is_retired = True
            link.close("the gateway stops")
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- the view ------------------------------------------------------------------------------------------------

    @property
    def num_serving(self) -> int:
        """Workers that can serve a request from start to end."""
        return len(self.decoding())

    @property
    def simulated(self) -> bool:
        return any(link.simulated for link in self.links.values())

    def view(self) -> FleetView:
        if self._view is None:
            self._view = self._build_view()
        return self._view

    def _build_view(self) -> FleetView:
        pools: dict[Role, list[WorkerView]] = {role: [] for role in _POOLS}
        max_context = block_tokens = 0
        for link in self.links.values():
            if not link.is_connected:
                continue
            max_context = min(max_context or link.max_context, link.max_context)
            block_tokens = link.block_tokens
            if link.is_ready and link.role in pools:
                pools[link.role].append(link.view())
        table = self.table
        return FleetView(
            table.num_devices if table else 0,
            max_context,
            block_tokens,
            table.expected_output_tokens if table else 0,
            tuple(pools[Role.PREFILL]),
            tuple(pools[Role.DECODE]),
            tuple(pools[Role.MIXED]),
            self._prefixes.holders,
            self.rules.max_backlog_s is not None,
        )

    def decoding(self) -> list[WorkerView]:
        """The workers that can take a request that decodes."""
        view = self.view()
        return [worker for worker in (*view.decode, *view.mixed) if worker.weight > 0]

    def prefilling(self) -> list[WorkerView]:
        """Those that most prompts go to: the prefill pool where requests are split, else those that decode."""
        view, table = self.view(), self.table
        splits = table is not None and view.num_devices >= table.policy.min_fleet_devices and view.decode
        pool = [worker for worker in view.prefill if worker.weight > 0] if splits else []
        return pool or self.decoding()

    def step_s(self) -> float | None:
        """Between two tokens of a stream, lately."""
        known = [link.step_s for link in self.links.values() if link.step_s is not None]
        return sum(known) / len(known) if known else None

    # --- waiting for room ----------------------------------------------------------------------------------------

    def _on_change(self) -> None:
        self._view = None
        if self.waiters and not self._is_waking:
            self._is_waking = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _on_status(self, link: WorkerLink) -> None:
        self.mover.go_on(link)

    def may_recover(self, *, is_new: bool) -> bool:
        """Whether waiting can help: one that has begun hopes for any worker, a new one for those seen lately."""
        now_s = time.monotonic()
        return any(link.row.weight > 0 and (not is_new or link.was_there(now_s)) for link in self.links.values())

    def wait_for_room(self, waiter: Waiter) -> None:
        insort(self.waiters, waiter, key=_turn)

    def is_next(self, waiter: Waiter) -> bool:
        """Nobody who waits has a better turn."""
        return not self.waiters or waiter.turn < self.waiters[0].turn

    def reorder(self) -> None:
        """Turns of those who wait have changed."""
        self.waiters.sort(key=_turn)

    def stop_waiting(self, waiter: Waiter) -> None:
        if waiter in self.waiters:
            self.waiters.remove(waiter)

    def _wake(self) -> None:
        """Nobody overtakes: the head of the line tries, and the next one only if it succeeded."""
        try:
            while self.waiters:
                first = self.waiters[0]
                if not first.on_room():
                    return
                self.stop_waiting(first)
        finally:
            self._is_waking = False

    def leave_dead(self, now_s: float, token_gap_s: float) -> None:
        """Cut off workers that have not been heard of for too long; requests of those and of hung ones go elsewhere."""
        for link in list(self._tasks):  # retired ones too
            link.feel_pulse(now_s)
            link.leave_if_hung(now_s, token_gap_s)

    def _leave_dying(self) -> None:
        """Before requests of one lost worker go to others: those that were killed or stopped with it take nothing."""
        for link in list(self._tasks):
            link.leave_if_dying()

    def look_at_moves(self) -> None:
        """Moves that wait for room may begin, moves that stand still end."""
        self.mover.look(list(self._tasks))
