"""A link that is only modelled: copies that use it at the same time get equal parts of its rate.

Decided here: when each copy would have ended. Each worker has one link in and one out, as each device (or group) has
its own; a copy is over when both of its ends have carried it. Not here: what a copy costs beside that, and real bytes.

The arithmetic is the fluid one: with n copies under way each goes forward at rate / n. `SharedLink` is pure, time comes
in (SimFleet uses it as it is); `PacedLink` waits on the running loop.
"""

from __future__ import annotations

import asyncio
import heapq
import time


class SharedLink:
    """Copies by ticket. `_served` is how many bytes a copy that was always there would have been given."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._served = 0.0
        self._now_s = 0.0
        self._num_begun = 0
        self._ends: list[tuple[float, int]] = []  # heap of (served when it ends, ticket)
        self._ended: list[int] = []

    def begin(self, num_bytes: float, now_s: float) -> int:
        """A copy joins those under way; its ticket."""
        self._advance(now_s)
        self._num_begun += 1
        heapq.heappush(self._ends, (self._served + num_bytes, self._num_begun))
        return self._num_begun

    def drop(self, ticket: int, now_s: float) -> None:
        """Given up: the others are faster from now on."""
        self._advance(now_s)
        self._ends = [each for each in self._ends if each[1] != ticket]
        heapq.heapify(self._ends)

    def take_ended(self, now_s: float) -> list[int]:
        """Tickets of the copies that have ended since the last call, in that order."""
        self._advance(now_s)
        ended, self._ended = self._ended, []
        return ended

    @property
    def next_end_s(self) -> float | None:
        """When the next one ends if none joins; None when nothing is under way."""
        if not self._ends:
            return None
        return self._now_s + (self._ends[0][0] - self._served) * len(self._ends) / self._bytes_per_s

    def _advance(self, now_s: float) -> None:
        """Bring everything to `now_s`; a time before the last one changes nothing."""
        while (next_s := self.next_end_s) is not None and next_s <= now_s:
            self._served, ticket = heapq.heappop(self._ends)
            self._now_s = next_s
            self._ended.append(ticket)
        if now_s > self._now_s:
            if self._ends:
                self._served += (now_s - self._now_s) * self._bytes_per_s / len(self._ends)
            self._now_s = now_s


class PacedLink:
    """A shared link on the wall clock."""

    def __init__(self, bytes_per_s: float) -> None:
        self._link = SharedLink(bytes_per_s)
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def carry(self, num_bytes: float) -> None:
        """Return when the link would have carried so much, beside whatever else it carries meanwhile."""
        ticket = self._link.begin(num_bytes, time.monotonic())
        self._waiting[ticket] = asyncio.get_running_loop().create_future()
        self._look()
        try:
            await self._waiting[ticket]
        except asyncio.CancelledError:
            self._link.drop(ticket, time.monotonic())
            raise
        finally:
            self._waiting.pop(ticket, None)

    def _look(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now_s = time.monotonic()
        for ticket in self._link.take_ended(now_s):
            future = self._waiting.get(ticket)
            if future is not None and not future.done():
                future.set_result(None)
        next_s = self._link.next_end_s
        if next_s is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, next_s - now_s), self._look)
