"""One request's place in the line of those that wait for room: why there was none, and how long it has waited."""

from __future__ import annotations

import time
from typing import Final

from control.gateway import errors
from control.gateway.errors import GatewayError
from control.gateway.fleet import Fleet, Waiter

#: How long a request waits for room before it is told to come back.
MAX_WAIT_S: Final = 10.0
#: One whose client has tokens already cannot come back: it waits for its fleet to be rebuilt.
BEGUN_WAIT_S: Final = 60.0


class Place:
    """Over all the waits of one request: each time it finds no room it joins again, and keeps the place it has.

    It does not keep the request, which keeps it: so both are gone, with the prompt, as soon as the request has ended.
    """

    def __init__(self, fleet: Fleet) -> None:
        self.why: GatewayError = errors.overloaded("no worker was asked yet", 1.0)
        self.max_wait_s = MAX_WAIT_S
        self._fleet = fleet
        self._since_s: float | None = None
        self._waited_s = 0.0

    def join(self, waiter: Waiter, *, is_new: bool) -> bool:
        """False when no worker could serve it however long it waited."""
        if self._since_s is None:
            if not self._fleet.may_recover(is_new=is_new):
                return False
            self._since_s = time.monotonic()
            self._fleet.wait_for_room(waiter)
        return True

    def leave(self, waiter: Waiter) -> None:
        if self._since_s is not None:
            self._waited_s += time.monotonic() - self._since_s
            self._since_s = None
            self._fleet.stop_waiting(waiter)

    def waited_s(self, now_s: float) -> float:
        """In the line, in all."""
        return self._waited_s + (0.0 if self._since_s is None else now_s - self._since_s)

    def is_over(self, now_s: float, *, has_begun: bool) -> bool:
        """It waits, and has done so for as long as it may."""
        limit_s = BEGUN_WAIT_S if has_begun else self.max_wait_s
        return self._since_s is not None and self.waited_s(now_s) >= limit_s
