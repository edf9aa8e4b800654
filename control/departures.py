"""Departures of one worker, as several gateways count them, as one; which of them belong to a command. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from control.types.commands import Departure, DepartureKind

#: Gateways see one departure within this time of each other.
SAME_S: Final = 10.0
#: A departure that began so much before its command was recorded is still its own: clocks differ a little.
CLOCKS_S: Final = 0.5


def sum_departures(told: Iterable[Departure]) -> tuple[Departure, ...]:
    """One per worker and kind: the newest, over all gateways that saw it. By worker."""
    groups: dict[tuple[str, DepartureKind], list[Departure]] = {}
    for each in told:
        groups.setdefault((each.worker_id, each.kind), []).append(each)
    return tuple(_sum(groups[key]) for key in sorted(groups))


def _sum(group: list[Departure]) -> Departure:
    newest_s = max(each.since_unix_s for each in group)
    same = [each for each in group if each.since_unix_s >= newest_s - SAME_S]
    to_workers: Counter[str] = Counter()
    for each in same:
        to_workers.update(each.to_workers)
    return replace(
        same[0],
        since_unix_s=min(each.since_unix_s for each in same),
        num_sequences=sum(each.num_sequences for each in same),
        num_moved=sum(each.num_moved for each in same),
        num_recomputed=sum(each.num_recomputed for each in same),
        num_continued=sum(each.num_continued for each in same),
        num_left=sum(each.num_left for each in same),
        num_given_up=sum(each.num_given_up for each in same),
        num_bytes=sum(each.num_bytes for each in same),
        stall_s=max((each.stall_s for each in same if each.stall_s is not None), default=None),
        to_workers=dict(to_workers),
        is_over=all(each.is_over for each in same),
        cause=next((each.cause for each in same if each.cause is not None), None),
    )


def departures_since(
    departures: Iterable[Departure], workers: Iterable[str], created_unix_s: float
) -> Mapping[str, Departure]:
    """What left these workers from then on, by worker: what a command of that moment has set going."""
    wanted = frozenset(workers)
    return {
        each.worker_id: each
        for each in departures
        if each.kind == "leaves" and each.worker_id in wanted and each.since_unix_s >= created_unix_s - CLOCKS_S
    }


def total_of(departures: Iterable[Departure]) -> Departure | None:
    """All of a command's departures as one; None when nothing left."""
    found = [replace(each, worker_id="", since_unix_s=0.0) for each in departures]
    return _sum(found) if found else None
