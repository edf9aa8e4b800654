"""Follows one worker host through its restarts: who is it now, why did it end, and does it need another start.

Decided here: when to ask a host again, that a host is started anew when all its workers have failed for a while, or one
of them hangs in a step, and that one of other code or settings than ours is renewed once it is drained. Not here: how a
host is asked or started (`Host`, which the Ray fleet implements).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from control.errors import FleetError
from control.fleets.base import WorkerLife
from control.fleets.host_process import HostDescription
from control.fleets.hosts import HostSpec
from control.fleets.worker_link import WorkerLink
from control.gateway.pulse import Pulse, pulse_of_step
from control.processes import stands_still
from engine.readings import MeterReading
from engine.types import WorkerState

FIRST_RETRY_S = 0.25
MAX_RETRY_S = 5.0
RESTART_FAILED_AFTER_S = 20.0
START_LIMIT_S = 60.0
#: A host that was told to end, and shows the same hung step after so long, is told again.
END_LIMIT_S = 20.0
log = logging.getLogger(__name__)


class Host(Protocol):
    """One host process as its orchestrator offers it."""

    async def describe(self) -> HostDescription:
        """Who the process is; waits while it is being started. Raises FleetError when there is none and none comes."""

    async def restart(self) -> None:
        """End the process; the orchestrator starts it again."""

    async def renew(self) -> None:
        """End the process for good and create another one, of the present settings and code."""

    async def recreate(self) -> None:
        """Adopt or create it, after `describe` has raised."""


class HostWatch:
    """Keeps the links of one host aimed at its present process."""

    def __init__(
        self,
        spec: HostSpec,
        host: Host,
        links: Mapping[str, WorkerLink],
        on_change: Callable[[], None],
        *,
        step_overdue_s: float = math.inf,
        stopped_limit_s: float = math.inf,
    ) -> None:
        self.spec = spec
        self._host = host
        self._links = links
        self._on_change = on_change
        self._described: HostDescription | None = None
        self._gone = ""
        self._waiting_since_s: float | None = None
        self._look = asyncio.Event()
        self._failed_since_s: float | None = None
        self._must_restart = asyncio.Event()
        self._must_renew = False
        self._was_renewed = False
        self._step_overdue_s = step_overdue_s
        self._stopped_limit_s = stopped_limit_s
        self._stopped_since_s: float | None = None
        self._ended: tuple[int, float, str] | None = None  # a hung process: its epoch, when it was told to end, and why
        self._why: tuple[int, str] | None = None  # why the process of this epoch was started, where it was our doing

    @property
    def is_outdated(self) -> bool:
        """The process runs with other settings, or other code, than the present ones."""
        return self._described is not None and self._described.digest != self.spec.digest

    def ask_again(self, _worker_id: str = "", _reason: str = "") -> None:
        """A connection to this host was lost."""
        self._look.set()

    def saw(self, readings: Iterable[MeterReading], now_s: float) -> None:
        """Note what the meters say; a host that serves nothing for a while, or hangs, is started again."""
        self._note_delay(now_s)
        living = [each for each in readings if each.alive]
        self._note_hang(living, now_s)
        self._note_stop(living, now_s)
        self._note_empty(living)
        states = [each.state for each in living]
        if not states or any(state != WorkerState.FAILED for state in states):
            self._failed_since_s = None
        elif self._failed_since_s is None:
            self._failed_since_s = now_s
        elif now_s - self._failed_since_s >= RESTART_FAILED_AFTER_S:
            self._failed_since_s = None
            self._restart()

    def _restart(self) -> None:
        self._must_restart.set()
        self._look.set()

    def _note_hang(self, living: Iterable[MeterReading], now_s: float) -> None:
        """A step that does not end leaves a process that answers and serves nobody."""
        newest = 0 if self._described is None else self._described.epoch
        for each in living:
            if each.epoch < newest or each.step_running_s is None or self._is_told(each, now_s):
                continue
            if pulse_of_step(each.load.step_overdue) is Pulse.GONE or each.step_running_s >= self._step_overdue_s:
                self._end(each, f"step overdue: {each.step_running_s:.0f} s", now_s)

    def _note_stop(self, living: Iterable[MeterReading], now_s: float) -> None:
        """A stopped process holds its slot, also when it is idle and no step shows it."""
        newest = 0 if self._described is None else self._described.epoch
        stopped = next((each for each in living if each.epoch >= newest and stands_still(each.pid)), None)
        if stopped is None:
            self._stopped_since_s = None
            return
        if self._stopped_since_s is None:
            self._stopped_since_s = now_s
        stopped_s = now_s - self._stopped_since_s
        if stopped_s >= self._stopped_limit_s and not self._is_told(stopped, now_s):
            self._end(stopped, f"its process was stopped for {stopped_s:.0f} s", now_s)

    def _note_empty(self, living: Sequence[MeterReading]) -> None:
        """All its workers are drained and hold nothing, so nobody notices. Tried once: the next plane may try again."""
        described = self._described
        if described is None or not self.is_outdated or self._was_renewed:
            return
        empty = [each for each in living if each.epoch == described.epoch and _is_empty(each)]
        if len(empty) == len(self.spec.worker_ids):
            log.info("%s is drained and runs other code or settings: it is renewed", self.spec.name)
            self._was_renewed = self._must_renew = True
            self._restart()

    def _is_told(self, reading: MeterReading, now_s: float) -> bool:
        """This life was told to end just now."""
        told = self._ended
        return told is not None and told[0] == reading.epoch and now_s - told[1] < END_LIMIT_S

    def _end(self, reading: MeterReading, why: str, now_s: float) -> None:
        log.error("worker %s, process %d: %s; it is started anew", reading.worker_id, reading.pid, why)
        self._ended = (reading.epoch, now_s, why)
        self._restart()

    def _note_delay(self, now_s: float) -> None:
        """A process that Ray has no place for stays away without a word: say so after a while."""
        if self._described is not None:
            return
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        elif now_s - self._waiting_since_s > START_LIMIT_S and not self._gone:
            self._gone = (
                f"Ray has not started its process within {START_LIMIT_S:.0f} s: does the cluster have a free slot?"
            )

    def life(self, worker_id: str) -> WorkerLife:
        described = self._described
        if described is None:
            return WorkerLife(worker_id=worker_id, problem=self._gone, is_outdated=self.is_outdated)
        link = self._links[worker_id]
        lost = link.route is not None and not link.is_connected  # a worker that loads does not listen yet
        return WorkerLife(
            worker_id=worker_id,
            num_restarts=max(0, described.num_starts - 1),
            last_restart_reason=self._why[1]
            if self._why and self._why[0] == described.epoch
            else described.last_reason,
            problem=described.problem or self._gone or (link.problem if lost else ""),
            is_stopped=self._stopped_since_s is not None,
            is_outdated=self.is_outdated,
        )

    async def run(self) -> None:
        """Until cancelled. Whatever breaks is said, and tried again: a host without a watch would be lost for good."""
        retry_s = FIRST_RETRY_S
        while True:
            try:
                retry_s = await self._follow(retry_s)
            except Exception as error:
                log.exception("the watch over %s broke", self.spec.name)
                self._gone = f"the watch over its host broke: {type(error).__name__}: {error}"
                await asyncio.sleep(retry_s)
            retry_s = min(retry_s * 2, MAX_RETRY_S)

    async def _follow(self, retry_s: float) -> float:
        """Ask once, or start it anew, and rest. Returns the next retry's base."""
        self._look.clear()
        if self._must_restart.is_set():
            self._must_restart.clear()
            renews, self._must_renew = self._must_renew, False
            await (self._host.renew() if renews else self._host.restart())
        try:
            described = await self._describe()
        except FleetError as error:
            self._gone = str(error)
            self._on_change()
            await asyncio.sleep(retry_s)
            with contextlib.suppress(FleetError):
                await self._host.recreate()
            return retry_s
        if described is None:
            return FIRST_RETRY_S
        self._note(described)
        return await self._rest(retry_s)

    async def _describe(self) -> HostDescription | None:
        """None when it must be started anew meanwhile: a process that hangs may answer nobody."""
        asking = asyncio.ensure_future(self._host.describe())
        restart = asyncio.ensure_future(self._must_restart.wait())
        try:
            await asyncio.wait((asking, restart), return_when=asyncio.FIRST_COMPLETED)
            return await asking if asking.done() else None
        finally:
            asking.cancel()
            restart.cancel()

    async def _rest(self, retry_s: float) -> float:
        """Wait for a reason to ask again: for one, that not all links are connected. Returns the next retry's base."""
        if self._described is not None and self._described.problem:
            await asyncio.sleep(RESTART_FAILED_AFTER_S)
            self._must_restart.set()
            return FIRST_RETRY_S
        connected = all(self._links[each].is_connected for each in self.spec.worker_ids)
        try:
            async with asyncio.timeout(None if connected else retry_s):
                await self._look.wait()
        except TimeoutError:
            return retry_s
        return FIRST_RETRY_S / 2

    def _note(self, described: HostDescription) -> None:
        changed = described != self._described or self._gone
        if self._ended is not None and self._ended[0] != described.epoch:
            self._why, self._ended = (described.epoch, self._ended[2]), None
        self._described, self._gone = described, ""
        for worker_id, address in described.addresses.items():
            self._links[worker_id].aim(address, described.epoch)
        if changed:
            self._on_change()


def _is_empty(reading: MeterReading) -> bool:
    load = reading.load
    return reading.state == WorkerState.DRAINED and not (load.num_running or load.num_waiting or load.num_leased)
