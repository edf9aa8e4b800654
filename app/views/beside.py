"""The same hours of another day, laid beside a window: which day, its points moved onto the window, the difference.

Only whole days: what repeats in traffic repeats by the day and by the week. Any other window is Explore's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from app import frames, url, words
from app.lines import LineSpec
from app.source import Hub
from control.types.series import SeriesPoint, SeriesResult

DAY_S = 86_400
ROUND_S = 60  # a live window moves each second; what is laid beside it is read once a minute
KEPT_S = 120.0
LEAST_STEP_S = 10
NAME = "beside"


@dataclass(frozen=True, slots=True)
class Other:
    """Another day: its words, and by how much it is earlier. No shift: nothing is compared."""

    words: str
    shift_s: int

    @property
    def when(self) -> str:
        return self.words.lower()


NOTHING = Other("Nothing", 0)
COMPARED: dict[str, Other] = {
    "none": NOTHING,
    "1d": Other("Yesterday", DAY_S),
    "7d": Other("A week ago", 7 * DAY_S),
}


def control() -> Other:
    """Which other day; in the address."""
    options = {name: other.words for name, other in COMPARED.items()}
    return COMPARED[
        url.segmented("Same hours of", options, name=NAME, default="none", help="Drawn in grey beside the lines.")
    ]


def earlier(hub: Hub, line: LineSpec, other: Other, since_unix_s: float, until_unix_s: float) -> SeriesResult:
    """The line's series over the same hours of the other day, as it was recorded. May raise."""
    begin, end = since_unix_s - other.shift_s, until_unix_s - other.shift_s
    begin, end = math.floor(begin / ROUND_S) * ROUND_S, math.ceil(end / ROUND_S) * ROUND_S
    step_s = max(LEAST_STEP_S, frames.step_for(until_unix_s - since_unix_s))
    key = ("beside", line.metric, line.by, begin, end, step_s)
    return hub.cached(key, KEPT_S, lambda plane: plane.series(line.metric, begin, end, step_s, line.by))


def moved(
    found: SeriesResult, label: str | None, other: Other, since_unix_s: float, until_unix_s: float
) -> tuple[SeriesPoint, ...]:
    """Its points on the time axis of [since, until]; one beyond would stretch it."""
    points = (replace(each, t_unix_s=each.t_unix_s + other.shift_s) for each in frames.points_of(found, label))
    return tuple(each for each in points if since_unix_s <= each.t_unix_s <= until_unix_s)


def difference(name: str, now: Sequence[SeriesPoint], then: SeriesResult, label: str | None, other: Other) -> str:
    """In words, over the time that both days know."""
    means = frames.means_together(now, frames.points_of(then, label), other.shift_s, then.step_s)
    return words.difference(name, *means, other.when, then.unit)
