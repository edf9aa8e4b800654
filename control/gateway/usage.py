"""What one gateway takes of a fleet that others share, told to the plane, and by it to the others. Pure.

Decided here: what is told, how it is summed, and its bounds. Device-seconds are told once, those since the last time: a
plane or gateway that starts anew owes nobody a history, and a message that is lost costs a second of fairness.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from control.gateway.forecast import NOTHING, Need

#: API keys in one message; those that used most.
MAX_TOLD_KEYS: Final = 512


class Usage(msgspec.Struct, frozen=True):
    used_s: dict[str, float] = {}  # device-seconds by API-key id, since the last time
    waiting: Need = NOTHING  # what its line will take
    batch: Need = NOTHING  # what its batch requests hold


def most_used(used_s: Mapping[str, float], most: int = MAX_TOLD_KEYS) -> dict[str, float]:
    return dict(sorted(used_s.items(), key=lambda each: -each[1])[:most])


def add_used(to: Mapping[str, float], used_s: Mapping[str, float]) -> dict[str, float]:
    """Both together, within the bound on keys."""
    total = dict(to)
    for key, device_s in used_s.items():
        total[key] = total.get(key, 0.0) + device_s
    return most_used(total) if len(total) > MAX_TOLD_KEYS else total


def sum_of(needs: Iterable[Need]) -> Need:
    total = NOTHING
    for each in needs:
        total = total.plus(each)
    return total
