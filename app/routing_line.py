"""What routing was set to over a window, from the recorded commands alone. Pure.

Decided here: when a setting is known. Before the first known command, and between two that do not follow each other
(the second starts from another version than the first left), it is unknown and the line has a gap.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from app import frames
from control.types import Command, Desired, SeriesPoint

LINE = "remote share"
WEIGHTS_SCHEMA = pa.schema([("t", pa.float64()), ("label", pa.string())])


@dataclass(frozen=True, slots=True)
class Held:
    """One recorded desired state and since when; `until_unix_s` None: no later command is known."""

    desired: Desired
    since_unix_s: float
    until_unix_s: float | None
    weights_changed: bool
    is_followed: bool  # the command after it starts from this version, or there is none


def held(commands: Iterable[Command], version: int) -> list[Held]:
    """The recorded states, oldest first. `version` is the one that is desired now."""
    known = sorted(
        (each for each in commands if each.desired_after is not None and each.version_after != each.base_version),
        key=lambda each: each.version_after,
    )
    found = []
    for index, each in enumerate(known):
        after = each.desired_after
        assert after is not None
        later = known[index + 1] if index + 1 < len(known) else None
        before = each.desired_before
        found.append(
            Held(
                desired=after,
                since_unix_s=each.created_unix_s,
                until_unix_s=None if later is None else later.created_unix_s,
                weights_changed=before is not None and before.weights != after.weights,
                is_followed=(version if later is None else later.base_version) == each.version_after,
            )
        )
    return found


def remote_share(states: Sequence[Held], since_unix_s: float, until_unix_s: float) -> list[SeriesPoint]:
    """The share of eligible requests that is split, as steps over [since, until]; none where nothing is known."""
    points: list[SeriesPoint] = []
    for each in states:
        end = until_unix_s if each.until_unix_s is None else each.until_unix_s
        start = max(each.since_unix_s, since_unix_s)
        if start >= until_unix_s or end <= since_unix_s:
            continue
        points.append(SeriesPoint(t_unix_s=start, value=each.desired.policy.remote_share))
        if not each.is_followed:  # known at its command; what it held until is not
            points.append(SeriesPoint(t_unix_s=start, value=None))
    if points and points[-1].value is not None:
        points.append(SeriesPoint(t_unix_s=until_unix_s, value=points[-1].value))
    return points


def last(points: Sequence[SeriesPoint]) -> float | None:
    return points[-1].value if points else None


def weight_changes(states: Sequence[Held], since_unix_s: float, until_unix_s: float) -> bytes:
    """A row for each change of weights in the window: when, and the version that it made."""
    inside = [each for each in states if each.weights_changed and since_unix_s <= each.since_unix_s <= until_unix_s]
    columns = {
        "t": [frames.ms(each.since_unix_s) for each in inside],
        "label": [f"weights, version {each.desired.version}" for each in inside],
    }
    return frames.arrow(pa.table(columns, schema=WEIGHTS_SCHEMA))
