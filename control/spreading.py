"""Spreading an amount over the interval it happened in: exact parts per slot of time. Pure.

A 2 s prefill chunk is half in each of its seconds, never 0% and then 200%. Slots are whole seconds; what is spread over
a very long interval (the plane was away) gets wider slots inside: an hour of absence is not 3,600 rows a worker. A wide
slot is known from end to end, and whatever one reading says of a time in it is in that slot.

Parts are whole quanta (`engine.quanta`) and add up to the amount exactly: what is due by the end of each slot is
rounded down, and a slot gets what is newly due. So no part is negative, and each is less than one quantum off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import Final

from engine.quanta import SECONDS, on_grid

#: Slots of an interval: (longest interval, widest slot), in seconds. Slots divide each other, and every rollup's step.
_GRAINS: Final = ((600.0, 1), (6_000.0, 10), (86_400.0, 60))
_WIDTHS: Final = (600, 60, 10, 1)


def on_time_grid(unix_s: float) -> float:
    """A time as the meters tell it; those of other sources lie between."""
    return on_grid(unix_s, SECONDS)


@dataclass(frozen=True, slots=True)
class Slots:
    """The slots of the time [start, end) that one reading makes known; outside of it they are seconds."""

    start_s: float
    end_s: float

    @property
    def widest(self) -> int:
        return next((width for bound, width in _GRAINS if self.end_s - self.start_s <= bound), _WIDTHS[0])

    def touched(self, start_s: float, end_s: float) -> list[tuple[int, int]]:
        """(start, width) of the slots that this interval touches, in order. An instant touches one."""
        widest = self.widest
        found = [self._slot(floor(start_s), widest)]
        while sum(found[-1]) < end_s:
            found.append(self._slot(sum(found[-1]), widest))
        return found

    def _slot(self, second: int, widest: int) -> tuple[int, int]:
        """The slot with this second: the widest that is known from end to end."""
        for width in _WIDTHS:
            at = second - second % width
            if width == 1 or (width <= widest and self.start_s <= at and at + width <= self.end_s):
                return at, width
        raise AssertionError("the last width is one second")

    def parts(
        self, start_s: float, end_s: float, amounts: Sequence[float], quanta: Sequence[float]
    ) -> list[tuple[int, int, list[float]]]:
        """(slot start, width, its part of each amount). Amounts are multiples of their quanta."""
        second = floor(start_s)
        if end_s <= second + 1 and self.end_s - self.start_s <= _GRAINS[0][0]:  # most steps
            return [(second, 1, list(amounts))]
        touched = self.touched(start_s, end_s)
        found: list[tuple[int, int, list[float]]] = []
        given = [0.0] * len(amounts)
        for at, width in touched[:-1]:
            elapsed = (at + width - start_s) / (end_s - start_s)
            due = [on_grid(amount * elapsed, quantum) for amount, quantum in zip(amounts, quanta, strict=True)]
            found.append((at, width, [now - before for now, before in zip(due, given, strict=True)]))
            given = due
        rest = [amount - before for amount, before in zip(amounts, given, strict=True)]
        return [*found, (*touched[-1], rest)]

    def cover(self, start_s: float, end_s: float) -> list[tuple[int, int, float]]:
        """(slot start, width, seconds inside it); nothing when the interval is empty."""
        touched = self.touched(start_s, end_s) if start_s < end_s else []
        return [(at, width, min(end_s, at + width) - max(start_s, at)) for at, width in touched]
