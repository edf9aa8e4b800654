"""The life of one worker as a table: which event is legal in which state, and where it leads. No effects.

Decided here: the legal moves, and what a role serves. Not decided here: when a drain is over, which needs to know what
runs (`engine.core`). A pair that is not in the table is an error that names state and event.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final

from engine.types import Role, WorkerState, WorkKind

_STATE = WorkerState

#: (state, event) -> next state. A worker that is draining may be told anything again: the newest order wins.
TRANSITIONS: Final[dict[WorkerState, dict[str, WorkerState]]] = {
    _STATE.STARTING: {
        "loaded": _STATE.UNASSIGNED,
        "fail": _STATE.FAILED,
        "stop": _STATE.STOPPED,
    },
    _STATE.UNASSIGNED: {
        "open": _STATE.READY,
        "close": _STATE.DRAINED,
        "fail": _STATE.FAILED,
        "stop": _STATE.STOPPED,
    },
    _STATE.READY: {
        "open": _STATE.READY,
        "wait": _STATE.DRAINING,
        "close": _STATE.DRAINED,
        "fail": _STATE.FAILED,
        "stop": _STATE.STOPPED,
    },
    _STATE.DRAINING: {
        "open": _STATE.READY,
        "wait": _STATE.DRAINING,
        "close": _STATE.DRAINED,
        "fail": _STATE.FAILED,
        "stop": _STATE.STOPPED,
    },
    _STATE.DRAINED: {
        "open": _STATE.READY,
        "close": _STATE.DRAINED,
        "unassign": _STATE.UNASSIGNED,
        "fail": _STATE.FAILED,
        "stop": _STATE.STOPPED,
    },
    _STATE.FAILED: {
        "fail": _STATE.FAILED,
        "stop": _STATE.STOPPED,
    },
    _STATE.STOPPED: {
        "stop": _STATE.STOPPED,
    },
}

#: What each event means, for the docs.
EVENTS: Final[dict[str, str]] = {
    "loaded": "the model is in memory",
    "open": "the ordered role serves all that runs: placed, flipped or undrained",
    "wait": "a drain or flip waits for work that the ordered role does not serve",
    "close": "drained by order, nothing runs",
    "unassign": "undrained before it ever had a role",
    "fail": "the worker cannot serve; the reason says why",
    "stop": "ordered to end",
}

#: Which kinds of work a worker admits in each role. A decode worker prefills locally when routing says so.
SERVES: Final[dict[Role, frozenset[WorkKind]]] = {
    Role.UNASSIGNED: frozenset(),
    Role.PREFILL: frozenset({WorkKind.PREFILL}),
    Role.DECODE: frozenset({WorkKind.DECODE, WorkKind.LOCAL}),
    Role.MIXED: frozenset(WorkKind),
}


#: What a drained worker serves.
NOTHING: Final[frozenset[WorkKind]] = frozenset()


def leaves_decode(serves: Set[WorkKind]) -> bool:
    """Must what decodes on a worker go, when it shall serve only this?"""
    return WorkKind.DECODE not in serves


def keeps_leases(serves: Set[WorkKind]) -> bool:
    """KV that waits to be fetched is work of a worker that prefills for others."""
    return WorkKind.PREFILL in serves


class IllegalTransition(Exception):
    """An event that the table does not allow in this state: a bug of the caller, never input."""


def transition(state: WorkerState, event: str) -> WorkerState:
    """The state after `event`. Raises IllegalTransition when the table has no such move."""
    following = TRANSITIONS[state].get(event)
    if following is None:
        raise IllegalTransition(f"a worker that is {state} takes no {event!r}; it takes {sorted(TRANSITIONS[state])}")
    return following


def markdown_table() -> str:
    """The table for the docs: one row per state, one column per event, a dash where there is no such move."""
    head = "| state | " + " | ".join(EVENTS) + " |"
    rule = "|---" * (len(EVENTS) + 1) + "|"
    rows = [
        f"| {state} | " + " | ".join(moves.get(event, "–") for event in EVENTS) + " |"
        for state, moves in TRANSITIONS.items()
    ]
    meaning = [f"- `{event}`: {text}" for event, text in EVENTS.items()]
    return "\n".join([head, rule, *rows, "", *meaning])


def role_changes_markdown() -> str:
    """The table for the docs: for each change of role, and for a drain, what becomes of each kind of work."""
    head = "| change | queued | a prompt that has begun | what decodes | KV under a lease |"
    roles = [role for role in SERVES if role is not Role.UNASSIGNED]
    rows = [_change(before, after, SERVES[after]) for before in roles for after in roles if after is not before]
    rows += [_change(before, "drained", NOTHING) for before in roles]
    return "\n".join([head, "|---" * 5 + "|", *rows])


def _change(before: Role, after: str, serves: Set[WorkKind]) -> str:
    leaving = SERVES[before] - serves
    queued = [kind for kind in (WorkKind.PREFILL, WorkKind.LOCAL) if kind in leaving]
    decodes = "moved" if leaves_decode(serves) else "kept"
    return (
        " | ".join(
            [
                f"| {before} -> {after}",
                f"{' and '.join(queued)}: sent elsewhere" if queued else "kept",
                "finished first" if queued else "kept",
                decodes if WorkKind.DECODE in SERVES[before] else "there is none",
                "kept" if keeps_leases(serves) else "waited for",
            ]
        )
        + " |"
    )
