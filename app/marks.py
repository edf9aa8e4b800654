"""Commands and events as marks on a time axis: which of them are one mark, its label and the row it takes. Pure.

What they look like is `app.layers`'; what is told of each in full is `control.stories`'.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import get_args

import pyarrow as pa

from app import frames, words
from control.stories import event_words, loss_words
from control.types.commands import Command
from control.types.events import EventKind, FleetEvent
from control.types.requests import MoveKind

#: Events of one kind are one mark when they are closer than this part of the window: their rules would touch.
NEAR = 0.008
#: Workers of one fleet come back one after the other: so much further apart they are still one mark.
BACK_REACH = 4.0
#: A label's width and where it would stick out of the chart, as parts of the window.
LABEL_WIDTH = 0.12
EDGE = 0.86
MAX_WORDS = 6
MOVE_KINDS: tuple[MoveKind, ...] = get_args(MoveKind)
RARE_KINDS: tuple[EventKind, ...] = (
    "died", "stopped", "restarted", "plane", "history", "permission",
)  # a first start is not shown  # fmt: skip
LOOKS: dict[str, str] = {
    "died": "died",
    "restarted": "back",
    "failover": "continued",
    "migration": "moved",
    "recompute": "moved",
    "plane": "plane",
    "history": "history",
    "permission": "permission",
}
SCHEMA = pa.schema(
    [
        ("t", pa.float64()),
        ("kind", pa.string()),
        ("label", pa.string()),
        ("words", pa.string()),
        ("late", pa.bool_()),
        ("near", pa.float64()),
        ("level", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Mark:
    """One rule: when, what kind, and the events behind it."""

    at_unix_s: float
    kind: str  # "" is a command
    label: str
    events: tuple[FleetEvent, ...] = ()


def marks(
    commands: Iterable[Command], events: Iterable[FleetEvent], since_unix_s: float, until_unix_s: float
) -> dict[str, bytes]:
    """The datasets `commands` and `events` of a chart over [since, until]; their labels share the rows."""
    window_s = until_unix_s - since_unix_s
    asked = [
        Mark(each.created_unix_s, "", words.label(each))
        for each in commands
        if since_unix_s <= each.created_unix_s <= until_unix_s
    ]
    inside = [each for each in events if since_unix_s <= each.at_unix_s <= until_unix_s]
    found = sorted([*asked, *event_marks(inside, NEAR * window_s)], key=lambda each: each.at_unix_s)
    edge = since_unix_s + EDGE * window_s
    levels = label_levels([each.at_unix_s for each in found], LABEL_WIDTH * window_s, edge)
    rows = [
        {
            "t": frames.ms(each.at_unix_s),
            "kind": each.kind,
            "label": each.label,
            "words": _told(each.events),
            "late": each.at_unix_s > edge,
            "near": 6.0 * window_s,  # ms: 0.6% of the window is at the rule
            "level": level,
        }
        for each, level in zip(found, levels, strict=True)
    ]
    return {
        "commands": frames.arrow(pa.Table.from_pylist([row for row in rows if not row["kind"]], SCHEMA)),
        "events": frames.arrow(pa.Table.from_pylist([row for row in rows if row["kind"]], SCHEMA)),
    }


def event_marks(events: Iterable[FleetEvent], near_s: float) -> list[Mark]:
    """One mark for what is of one kind and close together; a death carries those whom it made go elsewhere."""
    found: list[Mark] = []
    newest: dict[str, int] = {}  # the mark of each kind that may still grow
    for event in sorted(events, key=lambda each: each.at_unix_s):
        kind = LOOKS.get(event.kind)
        if kind is None:
            continue
        index = newest.get(kind)
        if kind == "continued":
            index = _its_death(found, newest, event, max(near_s, 2.0), index)
        reach_s = max(near_s * (BACK_REACH if kind == "back" else 1.0), 2.0)
        if index is not None and event.at_unix_s - found[index].events[-1].at_unix_s <= reach_s:
            mark = found[index]
            found[index] = replace(mark, events=(*mark.events, event))
        else:
            newest[kind] = len(found)
            found.append(Mark(event.at_unix_s, kind, "", (event,)))
    return [replace(mark, label=_label(mark)) for mark in found]


def _its_death(
    found: Sequence[Mark], newest: dict[str, int], event: FleetEvent, near_s: float, otherwise: int | None
) -> int | None:
    """The mark of the death that these requests left, where there is one."""
    index = newest.get("died")
    if index is None or event.at_unix_s - found[index].at_unix_s > near_s:
        return otherwise
    return index if any(each.worker_id == event.worker_id for each in found[index].events) else otherwise


def _label(mark: Mark) -> str:
    """ "w1 died, 14 continued", "12 moved from w3", "6 workers back"."""
    dead = sorted({each.worker_id for each in mark.events if each.kind == "died"})
    went = sum(each.num_requests for each in mark.events)
    whose = sorted({each.worker_id for each in mark.events})
    who = whose[0] if len(whose) == 1 else f"{len(whose)} workers"
    match mark.kind:
        case "died":
            name = dead[0] if len(dead) == 1 else f"{len(dead)} workers"
            return f"{name} died, {went} continued" if went else f"{name} died"
        case "back":
            return f"{who} back"
        case "plane":
            return "plane took over"
        case "history":
            return "history away"
        case "permission":
            return mark.events[-1].reason
        case "continued":
            cause = next((each.cause for each in mark.events if each.cause), None)
            return f"{went} continued, {loss_words(who, cause)}"
        case _:
            return f"{went} moved from {who}"


def _told(events: Sequence[FleetEvent]) -> str:
    told = [event_words(each) for each in events[:MAX_WORDS]]
    return "; ".join([*told, *([f"and {len(events) - MAX_WORDS} more"] if len(events) > MAX_WORDS else [])])


def label_levels(times: Sequence[float], width: float, edge: float) -> list[int]:
    """Rows for labels `width` wide that start at their time (end at it beyond `edge`), so that none covers another."""
    ends: list[float] = []  # where each row is free again
    levels = []
    for at in times:
        start = at - width if at > edge else at
        level = next((index for index, end in enumerate(ends) if end <= start), len(ends))
        ends[level : level + 1] = [start + width]
        levels.append(level)
    return levels
