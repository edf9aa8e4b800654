"""Copies between simulated workers, on simulated time: each has one link in and one out, shared by its copies."""

from __future__ import annotations

from collections.abc import Callable

from engine.shared_link import SharedLink


class SimLink:
    """`engine.shared_link.SharedLink` on the fleet's clock."""

    def __init__(
        self, bytes_per_s: float, clock: Callable[[], float], at: Callable[[float, Callable[[], None]], None]
    ) -> None:
        self._link = SharedLink(bytes_per_s)
        self._clock = clock
        self._at = at
        self._waiting: dict[int, Callable[[], None]] = {}

    def carry(self, num_bytes: float, done: Callable[[], None]) -> None:
        """Call `done` when so much is carried, beside whatever else the link carries meanwhile."""
        self._waiting[self._link.begin(num_bytes, self._clock())] = done
        self._look_later()

    def _look_later(self) -> None:
        next_s = self._link.next_end_s
        if next_s is not None:
            self._at(next_s, self._look)

    def _look(self) -> None:
        ended = self._link.take_ended(self._clock())
        for ticket in ended:
            self._waiting.pop(ticket)()
        if ended:
            self._look_later()


def after_both(done: Callable[[], None]) -> Callable[[], None]:
    """What calls `done` the second time it is called itself."""
    num_left = 2

    def one_end() -> None:
        nonlocal num_left
        num_left -= 1
        if not num_left:
            done()

    return one_end
