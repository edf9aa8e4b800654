"""Places kept for those who were told to come back: a client that obeys its Retry-After gets in. Time is passed in.

A refused request is promised a place from the moment that it was told. Who comes back with the same request, under the
same key, within the window is let in without a forecast, with the place in the line of its first arrival. So that the
promise can be kept, it counts as standing ahead of those who come later, as far as those who were promised lately did
come back: when nobody retries, nothing is held free for them.

Decided here: what is kept, for how long, and how much it weighs. Not here: when a place is promised (`admission`).
The same request: no header or ticket is needed, so any client that honours Retry-After obeys, the official ones too.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import takewhile
from typing import Final

from control.gateway.forecast import NOTHING, Need
from control.gateway.rates import Mean
from control.gateway.turns import Turn

MAX_PROMISES: Final = 4096
#: How long after the time that was told a place is kept: Retry-After is whole seconds, and clients add jitter.
GRACE_S: Final = 3.0
GRACE_SHARE: Final = 0.25
#: Clocks differ, and sleeps may end early.
EARLY_S: Final = 0.05
#: Below it nobody comes back, and nothing is held free.
NEGLIGIBLE_RATE: Final = 0.01


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Promise:
    identity: str
    turn: Turn  # of the first arrival
    need: Need
    due_s: float
    until_s: float


class PromiseBook:
    """All promises that are neither kept nor lapsed; at most MAX_PROMISES."""

    def __init__(self) -> None:
        self.num_made = 0
        self.num_kept = 0
        self.num_lapsed = 0
        self._by_identity: dict[str, deque[Promise]] = {}
        self._by_turn: list[Promise] = []
        self._by_due: list[Promise] = []
        self._by_end: list[tuple[float, int, Promise]] = []  # heap; kept ones are skipped
        self._total = NOTHING
        self._came_back = Mean(total=0.5, weight=1.0)

    def __len__(self) -> int:
        return len(self._by_turn)

    @property
    def show_rate(self) -> float:
        """Share of those promised lately that came back; a half before anything is known."""
        return self._came_back.value or 0.0

    def find(self, identity: str, now_s: float) -> Promise | None:
        """The oldest open promise of such a request, due or not."""
        self._lapse(now_s)
        waiting = self._by_identity.get(identity)
        return waiting[0] if waiting else None

    def make(self, promise: Promise, now_s: float) -> bool:
        """Keep a place. False when all places are taken."""
        self._lapse(now_s)
        if len(self) >= MAX_PROMISES:
            return False
        self.num_made += 1
        self._by_identity.setdefault(promise.identity, deque()).append(promise)
        insort(self._by_turn, promise, key=_turn)
        insort(self._by_due, promise, key=_due)
        heappush(self._by_end, (promise.until_s, self.num_made, promise))
        self._total = self._total.plus(promise.need)
        return True

    def keep(self, promise: Promise) -> None:
        """It came back in time."""
        self.num_kept += 1
        self._came_back = self._came_back.after(1.0)
        self._close(promise)

    def ahead_of(self, turn: Turn) -> Need:
        """What all those promised, of no worse turn, will take: by the share of them that come."""
        at = bisect_right(self._by_turn, turn, key=_turn)
        if self.show_rate < NEGLIGIBLE_RATE or not at:
            return NOTHING
        if at <= len(self) // 2:
            return NOTHING.plus(_sum(self._by_turn[:at]), self.show_rate)
        return NOTHING.plus(self._total.plus(_sum(self._by_turn[at:]), -1.0), self.show_rate)

    def ahead_soon(self, turn: Turn, due_before_s: float) -> Need:
        """The same of those only that may come until then."""
        if self.show_rate < NEGLIGIBLE_RATE:
            return NOTHING
        soon = takewhile(lambda each: each.due_s <= due_before_s, self._by_due)
        return NOTHING.plus(_sum(each for each in soon if each.turn <= turn), self.show_rate)

    def _lapse(self, now_s: float) -> None:
        while self._by_end and self._by_end[0][0] < now_s:
            promise = heappop(self._by_end)[2]
            if promise in self._by_identity.get(promise.identity, ()):
                self.num_lapsed += 1
                self._came_back = self._came_back.after(0.0)
                self._close(promise)

    def _close(self, promise: Promise) -> None:
        waiting = self._by_identity[promise.identity]
        waiting.remove(promise)
        if not waiting:
            del self._by_identity[promise.identity]
        _remove(self._by_turn, promise, bisect_left(self._by_turn, promise.turn, key=_turn))
        _remove(self._by_due, promise, bisect_left(self._by_due, promise.due_s, key=_due))
        self._total = self._total.plus(promise.need, -1.0) if self._by_turn else NOTHING


def window(now_s: float, retry_after_s: float) -> tuple[float, float]:
    """From when and until when who was told `retry_after_s` may come: the whole second above it, and some grace."""
    return now_s + retry_after_s - EARLY_S, now_s + retry_after_s * (1 + GRACE_SHARE) + 1.0 + GRACE_S


def _turn(promise: Promise) -> Turn:
    return promise.turn


def _due(promise: Promise) -> float:
    return promise.due_s


def _remove(ordered: list[Promise], promise: Promise, at: int) -> None:
    while ordered[at] is not promise:
        at += 1
    del ordered[at]


def _sum(promises: Iterable[Promise]) -> Need:
    prefill_tokens = kv_tokens = num_slots = 0.0
    for each in promises:
        need = each.need
        prefill_tokens += need.prefill_tokens
        kv_tokens += need.kv_tokens
        num_slots += need.num_slots
    return Need(prefill_tokens=prefill_tokens, kv_tokens=kv_tokens, num_slots=num_slots)
