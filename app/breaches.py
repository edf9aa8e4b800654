"""Where the SLO's error budget burned, as intervals of a time axis, from the plane's recorded alerts. Pure.

Decided here: that an alert is drawn from when it was seen first to when it was seen last, once it has fired, and that
those which overlap are one interval. What is worth an alert is the plane's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from app import frames, marks
from control.types.alerts import Alert, AlertName

NAMES: tuple[AlertName, ...] = ("slo_burn_fast", "slo_burn_slow")
SCHEMA = pa.schema([("start", pa.float64()), ("end", pa.float64()), ("words", pa.string()), ("late", pa.bool_())])


@dataclass(frozen=True, slots=True)
class Breach:
    """The budget burned too fast over [start, end); `text` is the plane's."""

    start_unix_s: float
    end_unix_s: float
    text: str


def breaches(alerts: Iterable[Alert]) -> list[Breach]:
    """Oldest first. One that only pended is none; an overlap keeps the words of the one that began first."""
    burned = [each for each in alerts if each.name in NAMES and each.fired_unix_s is not None]
    found: list[Breach] = []
    for each in sorted(burned, key=lambda alert: alert.since_unix_s):
        last = found[-1] if found else None
        if last is not None and each.since_unix_s <= last.end_unix_s:
            found[-1] = Breach(last.start_unix_s, max(last.end_unix_s, each.seen_unix_s), last.text)
        else:
            found.append(Breach(each.since_unix_s, each.seen_unix_s, each.text))
    return found


def dataset(alerts: Iterable[Alert], since_unix_s: float, until_unix_s: float) -> bytes:
    """The dataset `breaches` of a chart over [since, until], clipped to it."""
    edge = since_unix_s + marks.EDGE * (until_unix_s - since_unix_s)
    inside = [each for each in breaches(alerts) if each.start_unix_s < until_unix_s and each.end_unix_s > since_unix_s]
    columns = {
        "start": [frames.ms(max(each.start_unix_s, since_unix_s)) for each in inside],
        "end": [frames.ms(min(each.end_unix_s, until_unix_s)) for each in inside],
        "words": [each.text for each in inside],
        "late": [each.start_unix_s > edge for each in inside],
    }
    return frames.arrow(pa.table(columns, schema=SCHEMA))
