"""Requests of lost workers on their way to others: in which order, and how many at a time beside new traffic.

Decided here, purely: the order, and what a worker may be given. The line below only keeps who waits and who is under
way. Not here: which worker a request gets (`control.routing`), and waiting for room when there is none at all
(`control.gateway.line`). A dead worker's requests all join within one callback; the first look comes after it, and
after a look at who else is dying: what kills two workers at once is seen at the one before the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

#: So little to compute, and nobody gains by making it wait behind long ones.
SHORT_TOKENS: Final = 256
#: What a worker may be given without a look at its queue: enough for a few steps, so that it never waits for us.
LEAST_TOKENS: Final = 4096


@dataclass(frozen=True, slots=True)
class Need:
    """What it takes to go on with a request now, at the worker that routing would choose."""

    worker_id: str | None  # where its KV would be computed; None: nowhere, there is no room
    uncached_tokens: int  # to compute there
    known_tokens: int  # prompt and all that was sent
    priority: int  # lower is sooner
    since_s: float  # its last token, or its arrival: from then on its client waits
    queued_tokens: int = 0  # waiting at that worker, ours and new ones


def recovery_turn(need: Need) -> tuple[bool, int, float]:
    """Lower is sooner: what is soon done, because most of its KV survives or it is short; then priority, then who waits
    longest."""
    is_soon_done = need.uncached_tokens <= max(SHORT_TOKENS, need.known_tokens // 2)
    return not is_soon_done, need.priority, need.since_s


def may_go(need: Need, under_way_tokens: int, share: float) -> bool:
    """Whether its worker may get it beside the `under_way_tokens` of others of its kind: within the share of the queue,
    counting itself. One at a time always may."""
    ours = under_way_tokens + need.uncached_tokens
    queue = max(need.queued_tokens, under_way_tokens) + need.uncached_tokens
    return under_way_tokens == 0 or ours <= max(LEAST_TOKENS, share * queue)


class Recovering(Protocol):
    """A request that has lost its worker."""

    def need(self) -> Need: ...
    def recover(self) -> None:
        """Go on now: submit, which tells `sent`, or wait for room."""


class Recovery:
    """One gateway's line. Whoever shows a token, ends or leaves its attempt makes way for the next."""

    def __init__(self, share: float, leave_dying: Callable[[], None] = lambda: None) -> None:
        self._share = share
        self._leave_dying = leave_dying
        self._waiting: dict[Recovering, None] = {}
        self._under_way: dict[Recovering, tuple[str, int]] = {}
        self._held: dict[Recovering, asyncio.TimerHandle] = {}
        self._is_due = False

    @property
    def num_waiting(self) -> int:
        return len(self._waiting) + len(self._held)

    def join(self, request: Recovering, hold_s: float = 0.0) -> None:
        """Wait for a turn; from `hold_s` on."""
        if hold_s > 0.0:
            self._held[request] = asyncio.get_running_loop().call_later(hold_s, self.join, request)
            return
        self._held.pop(request, None)
        self._waiting[request] = None
        self._look_soon()

    def admits(self, need: Need) -> bool:
        """Without a worker it may go too: to the line of those that wait for room."""
        under_way = sum(tokens for worker_id, tokens in self._under_way.values() if worker_id == need.worker_id)
        return need.worker_id is None or may_go(need, under_way, self._share)

    def sent(self, request: Recovering, worker_id: str, tokens: int) -> None:
        self._under_way[request] = (worker_id, tokens)

    def leave(self, request: Any) -> None:
        """It has shown a token, or wants nothing more of this line."""
        self._waiting.pop(request, None)
        if (timer := self._held.pop(request, None)) is not None:
            timer.cancel()
        if self._under_way.pop(request, None) is not None and self._waiting:
            self._look_soon()

    def _look_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        """Send all that may go, in order; a short one may pass a long one for which there is no room in the share."""
        self._is_due = False
        self._leave_dying()
        turns = {each: recovery_turn(each.need()) for each in self._waiting}
        for request in sorted(turns, key=turns.__getitem__):
            if request in self._waiting and self.admits(request.need()):
                del self._waiting[request]
                request.recover()
