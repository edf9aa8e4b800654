"""Who goes next from the line of requests that wait for room. Pure: a key, compared field by field; lower is sooner.

Decided here: the order of the reasons. Those that have begun go before all new ones, since a client sees them stand
still; an interactive request goes before any batch; among equals the API key that has had less of the fleet for its
weight (`control.gateway.fair_share`); within one key by its own priorities, then by arrival. Nobody overtakes: who is
first and finds no room keeps those behind waiting, so a large request is not starved by small ones.
"""

from __future__ import annotations

from typing import NamedTuple

from control.gateway.urgency import Urgency, urgency_of


class Turn(NamedTuple):
    is_new: bool
    urgency: Urgency
    start_tag: float  # virtual time of its API key, in weighted device-seconds
    priority: int
    arrival_s: float


def turn_of(*, has_begun: bool, priority: int, start_tag: float, arrival_s: float) -> Turn:
    """The place of one request in the line."""
    return Turn(not has_begun, urgency_of(priority), start_tag, priority, arrival_s)
