"""Routing settings over time, as step lines in lanes: which lanes there are, where they step and what is written there.

From commands alone: each carries the desired state before and after it, so a step is exact to the command. Between two
that do not follow each other (the second starts from another version than the first left) there is a gap. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa

from app import format, frames
from control.types.commands import Command, Desired

#: Lane -> its words and its unit. `remote_share` and the version are always drawn, the others where they change.
LANES: dict[str, tuple[str, str]] = {
    "remote_share": ("Remote share", "fraction"),
    "min_remote_prefill_tokens": ("Shortest remote prefill", "tokens"),
    "max_local_output_tokens": ("Longest local output", "tokens"),
    "local_cache_ratio": ("Local cache ratio", "fraction"),
    "min_fleet_devices": ("Smallest fleet that splits", "count"),
    "weights": ("Workers with another weight than 1", "count"),
    "version": ("Desired version", "count"),
}
ALWAYS = ("remote_share", "version")
LABEL_WIDTH = 0.11  # of the window: closer labels would cover each other
FIRST_WIDTH = 0.3  # the first one carries the lane's name
EDGE = 0.86
LINE_BOTTOM, LINE_HEIGHT, LABEL_AT = 0.08, 0.42, 0.96  # parts of a lane
STEPS_SCHEMA = pa.schema([("t", pa.float64()), ("value", pa.float64()), ("line", pa.string())])
LABELS_SCHEMA = pa.schema([("t", pa.float64()), ("value", pa.float64()), ("label", pa.string()), ("late", pa.bool_())])


Step = tuple[float, float | None]
State = tuple[float, Desired | None]  # since when it was wanted; None: not known


@dataclass(frozen=True, slots=True)
class Lane:
    """One setting: (since when, value) in order; the first at the window's begin. None: not known from then on."""

    name: str
    steps: tuple[Step, ...]

    @property
    def words(self) -> str:
        return LANES[self.name][0]

    def text(self, value: float) -> str:
        return f"v{value:.0f}" if self.name == "version" else format.quantity(value, LANES[self.name][1])


def lanes(commands: Iterable[Command], before: Desired | None, since_unix_s: float) -> tuple[Lane, ...]:
    """Of a chart that begins at `since`. `before`: what was wanted before the first command; None: not known,
    so the lanes begin with that command."""
    states = _states(commands, before, since_unix_s)
    steps = {name: _steps(name, states) for name in LANES} if states else {}
    changed = {name for name, own in steps.items() if sum(value is not None for _, value in own) > 1}
    return tuple(Lane(name, own) for name, own in steps.items() if name in changed or name in ALWAYS)


def _states(commands: Iterable[Command], before: Desired | None, since_unix_s: float) -> list[State]:
    """What was wanted, oldest first; None from a command to the next one that does not start from what it left."""
    states: list[State] = [] if before is None else [(since_unix_s, before)]
    for each in sorted(commands, key=lambda command: command.version_after):
        if each.desired_after is None:
            continue
        if states and (last := states[-1][1]) is not None and each.base_version != last.version:
            states.append((states[-1][0], None))
        if each.created_unix_s <= since_unix_s:
            states = [(since_unix_s, each.desired_after)]
        else:
            states.append((each.created_unix_s, each.desired_after))
    return states


def _steps(name: str, states: Sequence[State]) -> tuple[Step, ...]:
    """Where the setting is given another value, and where it is not known."""
    steps: list[Step] = []
    last: object = None
    for at, desired in states:
        setting = None if desired is None else desired.weights if name == "weights" else _value(name, desired)
        if setting != last or setting is None:
            steps.append((at, None if desired is None else _value(name, desired)))
        last = setting
    return tuple(steps)


def _value(name: str, desired: Desired) -> float:
    match name:
        case "version":
            return float(desired.version)
        case "weights":
            return float(sum(weight != 1.0 for weight in desired.weights.values()))
        case _:
            return float(getattr(desired.policy, name))


def datasets(found: Sequence[Lane], since_unix_s: float, until_unix_s: float) -> dict[str, bytes]:
    """`live`, `labels` and `span` of `charts.routing_steps`; the first lane is on top."""
    rows, labels = [], []
    for index, lane in enumerate(found):
        base = len(found) - 1 - index
        drawn = [
            (at, None if value is None else base + LINE_BOTTOM + LINE_HEIGHT * _height(lane, value))
            for at, value in lane.steps
        ]
        drawn.append((until_unix_s, drawn[-1][1]))
        rows += [{"t": frames.ms(at), "value": y, "line": lane.name} for at, y in drawn]
        labels += [
            {"t": frames.ms(at), "value": base + LABEL_AT, "label": text, "late": late}
            for at, text, late in _labels(lane, since_unix_s, until_unix_s)
        ]
    return {
        "live": frames.arrow(pa.Table.from_pylist(rows, STEPS_SCHEMA)),
        "labels": frames.arrow(pa.Table.from_pylist(labels, LABELS_SCHEMA)),
        "span": frames.span(since_unix_s, until_unix_s, float(max(1, len(found)))),
    }


def _height(lane: Lane, value: float) -> float:
    """0..1 within its lane: a share as it is, anything else between its least and its largest value."""
    if lane.name == "remote_share":
        return value
    values = [each for _, each in lane.steps if each is not None]
    low, high = min(values), max(values)
    return (value - low) / (high - low) if high > low else 0.5


def _labels(lane: Lane, since_unix_s: float, until_unix_s: float) -> Iterable[tuple[float, str, bool]]:
    """(when, text, stands to the left) of those that have room; the first one names the lane."""
    window_s = until_unix_s - since_unix_s
    known = [(at, value) for at, value in lane.steps if value is not None]
    begin, value = known[0]
    yield begin, f"{lane.words}: {lane.text(value)}", False
    free = begin + FIRST_WIDTH * window_s
    for at, value in known[1:]:
        late = at > since_unix_s + EDGE * window_s
        start = at - LABEL_WIDTH * window_s if late else at
        if start >= free:
            yield at, lane.text(value), late
            free = start + LABEL_WIDTH * window_s
