"""What a person should know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

AlertName = Literal["slo_burn_fast", "slo_burn_slow", "worker_dead", "pool_empty", "history_away", "plane_takeover"]
AlertSeverity = Literal["page", "ticket"]
AlertState = Literal["pending", "firing", "resolved"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something that a person should know, from when it was first seen to its end; one id all its life, over planes."""

    alert_id: str
    fleet_id: str
    name: AlertName
    subject: str  # the worker, the pool or the takeover; "" for the whole fleet
    severity: AlertSeverity
    state: AlertState
    text: str
    since_unix_s: float  # pending since
    seen_unix_s: float  # what it tells of held last
    fired_unix_s: float | None = None
    resolved_unix_s: float | None = None
    simulated: bool = False
    told: tuple[AlertState, ...] = ()  # which of its states the webhook's receiver has taken
    not_told: str = ""  # why the last one could not be told
