"""Standing by until the lease is ours, and keeping it: the database asked in a thread of its own, beside every write.

Decided here: when to look and when to renew. Not decided here: who may take it (`control.lease`), what a plane does
without it (`control.plane_main`). While the database cannot be reached nothing is lost by that alone: the active plane
goes on under its fence, and whoever stands by waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from control.errors import HistoryError, StaleFence
from control.history.store import History
from control.lease import RENEWALS, Holder, Lease, Standing, Verdict, is_released, is_same_machine, judge

T = TypeVar("T")
_log = logging.getLogger("phaseline.lease")
#: A standby looks at the row at least so often.
LOOK_EVERY_S = 0.25
#: A holder that has released its lease or died is followed at once; between two looks that failed we wait.
LEAST_WAIT_S = 0.02


class LeaseKeeper:
    """The lease of one fleet, for one process. `problem` says why the database does not answer; "" when it does."""

    def __init__(self, history: History, fleet_id: str, me: Holder, lease_s: float) -> None:
        self.me = me
        self.problem = ""
        self.before: Lease | None = None  # who had it when we took it, or has it now
        self.lease: Lease | None = None  # ours
        self._history = history
        self._fleet_id = fleet_id
        self._lease_s = lease_s
        self._reachable_since_s: float | None = None
        self._told = ""
        self._thread = ThreadPoolExecutor(1, "plane-lease")

    async def take(self, on_waiting: Callable[[], None] = lambda: None) -> Lease:
        """Stand by until the lease is ours. `on_waiting` is called after each look that did not bring it."""
        while True:
            lease, verdict = await self._look()
            if lease is not None:
                self.lease = lease
                _log.info("active under fence %d: %s", lease.fence, verdict.reason)
                return lease
            on_waiting()
            self._tell(self.problem or verdict.reason)
            await self._pause(min(LOOK_EVERY_S, max(LEAST_WAIT_S, verdict.wait_s)))

    @property
    def followed(self) -> str:
        """The plane whose lease we took although it had not released it; "" when none."""
        before = self.before
        if before is None or is_released(before) or before.holder.holder_id == self.me.holder_id:
            return ""
        return before.holder.words

    async def keep(self, newest_fence: Callable[[], int] = lambda: 0) -> StaleFence:
        """Renew until another plane has taken over; returns how that was learned.

        `newest_fence`: of the workers' orders. While the database is away they tell that another plane is active.
        """
        assert self.lease is not None
        fence = self.lease.fence
        while True:
            await asyncio.sleep(self._lease_s / RENEWALS)
            try:
                await self._ask(self._history.renew_lease, self._fleet_id, fence, self._lease_s)
            except StaleFence as stale:
                return stale
            except HistoryError as error:
                self._tell(f"the lease cannot be renewed, this plane goes on as it is: {error.detail}")
                if newest_fence() > fence:
                    return StaleFence(f"workers obey a plane of fence {newest_fence()}; this one has {fence}")
            else:
                self._tell("the lease is renewed")

    async def release(self) -> None:
        """At an orderly end. A database that is away only makes the next plane wait for the end of the lease."""
        if self.lease is not None:
            with contextlib.suppress(HistoryError):
                await self._ask(self._history.release_lease, self._fleet_id, self.lease.fence)

    async def close(self) -> None:
        """Wait for the question that is out: it uses the history, which is closed next."""
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)

    # --- parts ------------------------------------------------------------------------------------------------------

    async def _look(self) -> tuple[Lease | None, Verdict]:
        """Read the row, and try to take it where the rule lets us: reading alone delays nobody's writes."""
        try:
            self.before, now = await self._ask(self._history.lease, self._fleet_id)
            is_dead = self.before is not None and _has_ended(self.before.holder, self.me)
            standing = Standing(
                reachable_s=self._reachable_s(), dead_fence=self.before.fence if self.before and is_dead else None
            )
            verdict = judge(self.before, self.me, standing, self._lease_s, now)
            if not verdict.may_take:
                return None, verdict
            return await self._ask(self._history.take_lease, self._fleet_id, self.me, self._lease_s, standing)
        except HistoryError:
            return None, Verdict(may_take=False, reason=self.problem)

    async def _pause(self, longest_s: float) -> None:
        """Until it is time to look again, or until the process that is active ends: the kernel tells at once."""
        if self.problem:
            await asyncio.sleep(LOOK_EVERY_S)
            return
        former = self.before.holder if self.before else None
        with _ended(former, self.me) as ended, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(longest_s):
                await ended.wait()

    def _reachable_s(self) -> float:
        return 0.0 if self._reachable_since_s is None else time.monotonic() - self._reachable_since_s

    async def _ask(self, call: Callable[..., T], *args: Any) -> T:
        begun_s = time.monotonic()
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._thread, lambda: call(*args))
        except HistoryError as error:
            self.problem, self._reachable_since_s = error.detail, None
            raise
        self.problem = ""
        if self._reachable_since_s is None:
            self._reachable_since_s = begun_s
        return answer

    def _tell(self, text: str) -> None:
        """Into the log, once."""
        kind = text.partition(":")[0]
        if kind != self._told:
            self._told = kind
            _log.info("%s", text)


def _has_ended(holder: Holder, me: Holder) -> bool:
    return is_same_machine(holder, me) and not holder.process.is_alive


@contextlib.contextmanager
def _ended(holder: Holder | None, me: Holder) -> Iterator[asyncio.Event]:
    """An event that is set when that process ends; never where we cannot see it."""
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    if holder is None or not is_same_machine(holder, me):
        yield ended
        return
    try:
        handle = os.pidfd_open(holder.pid)
    except OSError:  # it has ended already, and was collected
        yield ended
        return
    loop.add_reader(handle, ended.set)
    try:
        yield ended
    finally:
        loop.remove_reader(handle)
        os.close(handle)
