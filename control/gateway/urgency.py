"""How urgent a request is: its priority, its class, and its deadline, from the header or the body.

Decided here: what values are taken and which class they mean. Not here: who goes first (`control.gateway.turns`), and
what becomes of a request whose deadline cannot be met (`control.gateway.forecast`).
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Any, Final

from control.gateway.errors import bad_value

MAX_PRIORITY: Final = 100
MAX_DEADLINE_S: Final = 86_400.0
#: OpenAI's tiers, as priorities.
TIERS: Final = {"auto": 0, "default": 0, "scale": 0, "priority": 0, "flex": 10}
_WORDS: Final = {"interactive": 0, "batch": 10}


class Urgency(IntEnum):
    """Lower goes first. Somebody waits for an interactive answer; a batch takes what room is left."""

    INTERACTIVE = 0
    BATCH = 1


def urgency_of(priority: int) -> Urgency:
    return Urgency.BATCH if priority > 0 else Urgency.INTERACTIVE


def priority_of(in_body: int | None, in_header: int | None, tier: str | None) -> int:
    """The most explicit word counts: the body's priority, then the header's, then the tier."""
    for priority in (in_body, in_header):
        if priority is not None:
            return priority
    return TIERS[tier or "default"]


def parse_priority(name: str, value: Any) -> int:
    """Raises GatewayError (400) that names the field."""
    if type(value) is str and value in _WORDS:
        return _WORDS[value]
    if type(value) is not int or not -MAX_PRIORITY <= value <= MAX_PRIORITY:
        bound = f"{' or '.join(_WORDS)}, or a whole number in -{MAX_PRIORITY}..{MAX_PRIORITY}"
        raise bad_value(name, bound, value)
    return value


def parse_deadline(name: str, value: Any) -> float:
    """Raises GatewayError (400) that names the field."""
    if type(value) not in (int, float) or not math.isfinite(value) or not 0 < value <= MAX_DEADLINE_S:
        raise bad_value(name, f"seconds above 0 and up to {MAX_DEADLINE_S:g}", value)
    return float(value)
