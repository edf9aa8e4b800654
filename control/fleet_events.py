"""What happened, from what was observed: a worker's life from its readings, moves from the records of requests. Pure.

Decided here: when a worker has died, how long it was away, and which moves are one event: those of one second and kind
that left one worker. Not here: where events are kept (`control.history.events`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import floor
from typing import Final

from control.fleets.base import WorkerLife
from control.points import WorkerCursor
from control.traffic_stats import is_error
from control.types.events import FleetEvent, LifeKind
from control.types.requests import RequestMove, RequestRecord
from control.types.workers import WorkerState
from engine.readings import MeterReading

#: How the next life tells of an end in order (`control.fleets.host_life`).
IN_ORDER: Final = "stopped in order"
#: What an event is known by: a second one of the same key adds to the first.
MoveKey = tuple[str, int, str, str]


def life_events(
    fleet_id: str, reading: MeterReading, before: WorkerCursor | None, known_until: float, life: WorkerLife | None
) -> list[FleetEvent]:
    """What this reading says that the last one did not. `known_until`: the last sign of life that it shows."""
    is_new = before is None or before.epoch != reading.epoch
    is_ended = not reading.alive and (is_new or (before is not None and before.open))
    found: list[FleetEvent] = []

    def note(kind: LifeKind, epoch: int, at_unix_s: float, reason: str, away_s: float | None = None) -> None:
        found.append(
            FleetEvent(
                fleet_id=fleet_id,
                kind=kind,
                at_unix_s=at_unix_s,
                worker_id=reading.worker_id,
                model_id=reading.model_id,
                simulated=reading.simulated,
                epoch=epoch,
                reason=reason,
                away_s=away_s,
            )
        )

    if before is None:
        note("started", reading.epoch, reading.started_unix_s, "")
    elif is_new:
        why = life.last_restart_reason if life else ""
        if why:  # told again, now that its reason is known; without one nobody knows how it ended
            note(_end_kind(before.state, why), before.epoch, before.known_until_unix_s, why)
        away_s = max(0.0, reading.started_unix_s - before.known_until_unix_s)
        note("restarted", reading.epoch, reading.started_unix_s, why, away_s)
    if is_ended:
        problem = life.problem if life else ""
        why = problem or reading.reason or f"its process {reading.pid} has ended"
        note(_end_kind(reading.state, why), reading.epoch, known_until, why)
    return found


def _end_kind(state: WorkerState, why: str) -> LifeKind:
    return "stopped" if state == WorkerState.STOPPED or why.endswith(IN_ORDER) else "died"


def move_events(records: Iterable[RequestRecord]) -> list[FleetEvent]:
    """The moves of these requests, per second, kind and worker that was left."""
    found: dict[MoveKey, FleetEvent] = {}
    for record in records:
        for move in record.moves:
            event = _moved(record, move)
            key = move_key(event)
            found[key] = added(found[key], event) if key in found else event
    return list(found.values())


def move_key(event: FleetEvent) -> MoveKey:
    return event.fleet_id, floor(event.at_unix_s), event.kind, event.worker_id


def _moved(record: RequestRecord, move: RequestMove) -> FleetEvent:
    """One move as an event of its own. A request that ended badly counts against the last move it made."""
    return FleetEvent(
        fleet_id=record.fleet_id,
        kind=move.kind,
        at_unix_s=record.arrival_unix_s + move.at_s,
        worker_id=move.from_worker,
        model_id=record.model_id,
        simulated=record.simulated,
        reason=move.reason,
        num_requests=1,
        num_failed=int(move is record.moves[-1] and is_error(record)),
        to_workers={move.to_worker: 1} if move.to_worker else {},
        num_bytes=move.num_bytes,
        notice_s=move.notice_s,
        stall_s=move.stall_s,
        cause=move.cause,
    )


def added(one: FleetEvent, other: FleetEvent) -> FleetEvent:
    """Two events of one key as one: counts add up, times keep the worst, the first reason stays."""
    to_workers = dict(one.to_workers)
    for worker_id, count in other.to_workers.items():
        to_workers[worker_id] = to_workers.get(worker_id, 0) + count
    return replace(
        one,
        at_unix_s=min(one.at_unix_s, other.at_unix_s),
        reason=one.reason or other.reason,
        num_requests=one.num_requests + other.num_requests,
        num_failed=one.num_failed + other.num_failed,
        to_workers=to_workers,
        num_bytes=one.num_bytes + other.num_bytes,
        notice_s=_longest(one.notice_s, other.notice_s),
        stall_s=_longest(one.stall_s, other.stall_s),
        cause=one.cause or other.cause,
    )


def _longest(one: float | None, other: float | None) -> float | None:
    return max((each for each in (one, other) if each is not None), default=None)
