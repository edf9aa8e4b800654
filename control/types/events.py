"""What happened to workers, to the requests that left them, and to the plane."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from control.types.requests import MoveKind
from control.types.workers import LossCause

LifeKind = Literal["started", "died", "stopped", "restarted"]
PlaneKind = Literal["plane", "history", "bottleneck", "permission"]
EventKind = LifeKind | MoveKind | PlaneKind


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetEvent:
    """What happened to a worker, to the requests that it served, to the plane, or to what it may do to a foreign fleet.

    Of moves there is one event per second, kind and worker that was left; they are known when their requests end, so
    the youngest still fill in.
    """

    fleet_id: str
    kind: EventKind
    at_unix_s: float  # moves: the earliest of that second
    worker_id: str  # whose life it is; moves: the worker that was left; "" for the plane's own
    model_id: str = ""
    simulated: bool = False
    epoch: int = 0  # which life of the worker; 0 for moves; plane: its fence; permission: its millisecond
    reason: str = ""
    away_s: float | None = None  # restarted: since the last sign of its former life; history: until it could be written
    num_requests: int = 0  # moves: how many requests went on elsewhere
    num_failed: int = 0  # of these: ended with an error all the same
    to_workers: dict[str, int] = field(default_factory=dict)  # where they went on, and how many of them
    num_bytes: int = 0  # KV that was copied
    notice_s: float | None = None  # the longest: last sign of life to noticing
    stall_s: float | None = None  # the longest: last token before to the first one after
    cause: LossCause | None = None  # failover: how the worker was lost, the first that is known
    resources: tuple[str, ...] = ()  # bottleneck: what limits from then on; "none" and "unknown" are told as well
