"""What limited the fleet over time, as intervals of a time axis, from the plane's recorded verdicts. Pure.

Decided here: that a verdict holds until the next one, and that nothing is drawn before the first known one, nor where
the plane could not tell, or where none looked. What limits is the plane's (`control.bottleneck`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from app import frames, limits
from control.types.events import FleetEvent

NOTHING, UNKNOWN = "none", "unknown"
NAMES: dict[str, str] = {**{each.value: name for each, name in limits.NAMES.items()}, NOTHING: "Nothing"}
LABEL_WIDTH = 0.08  # of the window: a shorter interval carries no words
SCHEMA = pa.schema(
    [
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("words", pa.string()),
        ("label", pa.string()),
        ("none", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True)
class Limited:
    """One verdict over [start, end)."""

    start_unix_s: float
    end_unix_s: float
    resources: tuple[str, ...]

    @property
    def words(self) -> str:
        return " and ".join(NAMES.get(each, each) for each in self.resources)


def intervals(events: Iterable[FleetEvent], since_unix_s: float, until_unix_s: float) -> list[Limited]:
    """Oldest first, within [since, until)."""
    told = sorted((each for each in events if each.kind == "bottleneck"), key=lambda each: each.at_unix_s)
    found = []
    for index, each in enumerate(told):
        end = told[index + 1].at_unix_s if index + 1 < len(told) else until_unix_s
        start, end = max(each.at_unix_s, since_unix_s), min(end, until_unix_s)
        if start < end and each.resources and UNKNOWN not in each.resources:
            found.append(Limited(start, end, each.resources))
    return found


def without(found: Iterable[Limited], away: Sequence[tuple[float, float]]) -> list[Limited]:
    """Cut at the times in which no plane looked: nobody could tell then. `away` is in time order."""
    left = list(found)
    for start, end in away:
        left = [
            replace(each, start_unix_s=max(each.start_unix_s, low), end_unix_s=min(each.end_unix_s, high))
            for each in left
            for low, high in ((each.start_unix_s, start), (end, each.end_unix_s))
            if max(each.start_unix_s, low) < min(each.end_unix_s, high)
        ]
    return left


def dataset(found: Sequence[Limited], since_unix_s: float, until_unix_s: float) -> bytes:
    """The dataset `live` of `charts.limited`."""
    least_s = LABEL_WIDTH * (until_unix_s - since_unix_s)
    columns = {
        "start": [frames.ms(each.start_unix_s) for each in found],
        "end": [frames.ms(each.end_unix_s) for each in found],
        "words": [each.words for each in found],
        "label": [each.words if each.end_unix_s - each.start_unix_s >= least_s else "" for each in found],
        "none": [NOTHING in each.resources for each in found],
    }
    return frames.arrow(pa.table(columns, schema=SCHEMA))
