"""Spreading an amount over the interval it happened in: exact shares per slot of time. Pure.

A 2 s prefill chunk is half in each of its seconds, never 0% and then 200%. Slots are whole seconds; what is spread over
a very long interval (the plane was away) gets coarser slots: an hour of absence is not 3,600 rows a worker.
"""

from __future__ import annotations

from math import floor

#: Slots of an interval: (longest interval, slot), in seconds. Slots divide each other, and every rollup's step.
_GRAINS = ((600.0, 1), (6_000.0, 10), (86_400.0, 60))
_COARSEST_S = 600


def slot_seconds(length_s: float) -> int:
    """Width of the slots for an interval of this length."""
    return next((grain for bound, grain in _GRAINS if length_s <= bound), _COARSEST_S)


def shares(start_s: float, end_s: float, slot_s: int = 1) -> list[tuple[int, float]]:
    """(slot start, fraction) for [start, end); the fractions add up to 1. An instant is all in its slot."""
    first = floor(start_s / slot_s) * slot_s
    if end_s <= first + slot_s:
        return [(first, 1.0)]
    length_s = end_s - start_s
    found: list[tuple[int, float]] = []
    slot = first
    while slot < end_s:
        inside_s = min(end_s, slot + slot_s) - max(start_s, slot)
        found.append((slot, inside_s / length_s))
        slot += slot_s
    return found


def cover(start_s: float, end_s: float) -> list[tuple[int, float]]:
    """(slot start, seconds inside it) for the interval [start, end); nothing when it is empty."""
    if end_s <= start_s:
        return []
    length_s = end_s - start_s
    return [(slot, fraction * length_s) for slot, fraction in shares(start_s, end_s, slot_seconds(length_s))]
