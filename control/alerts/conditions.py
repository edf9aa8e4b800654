"""What of a fleet deserves an alert, besides its SLO. Pure: a snapshot and a few facts of the plane come in.

Decided here: the rules, each with how long it must hold and how long it stays. A fleet that has not been looked at yet
says nothing: unknown is no alert.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from control.alerts.burn import RULES
from control.alerts.life import Condition
from control.types.alerts import AlertName
from control.types.fleet import FleetSnapshot, PoolStatus
from control.types.workers import Role, WorkerState, WorkerStatus

#: Longer than the start of another process takes: a worker that comes back at once is no alert.
WORKER_FOR_S: Final = 15.0
POOL_FOR_S: Final = 30.0
HISTORY_FOR_S: Final = 15.0
#: More dead workers than this are one alert.
MAX_NAMED: Final = 16
#: A takeover is over in a moment; its alert stays long enough to be seen.
TAKEOVER_SHOWN_S: Final = 300.0
CLEAR_S: Final[dict[AlertName, float]] = {
    "worker_dead": 15.0,
    "pool_empty": 15.0,
    "history_away": 15.0,
    "plane_takeover": 0.0,
    **{rule.name: 60.0 for rule in RULES},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaneFacts:
    """What the plane knows of itself. `followed`: the plane that it took over from, which had not released; "" none."""

    history_problem: str = ""
    num_writes_waiting: int = 0
    followed: str = ""
    fence: int = 0
    since_unix_s: float = 0.0


def conditions(snapshot: FleetSnapshot, plane: PlaneFacts, now_unix_s: float) -> list[Condition]:
    """Everything that holds now."""
    found = [*_of_plane(plane, now_unix_s)]
    if snapshot.health == "starting":
        return found
    found += _dead_workers([each for each in snapshot.workers if _is_dead(each)])
    return found + [_empty_pool(each) for each in snapshot.pools if each.num_desired and not each.num_ready]


def _of_plane(plane: PlaneFacts, now_unix_s: float) -> Iterator[Condition]:
    if plane.history_problem:
        yield Condition(
            name="history_away",
            severity="page",
            text=f"The history cannot be written: {plane.history_problem}; {plane.num_writes_waiting} writes wait",
            for_s=HISTORY_FOR_S,
        )
    if plane.followed and now_unix_s - plane.since_unix_s < TAKEOVER_SHOWN_S:
        yield Condition(
            name="plane_takeover",
            severity="ticket",
            text=f"A plane took over under fence {plane.fence}: {plane.followed} had not released its lease",
            for_s=0.0,
            subject=f"fence {plane.fence}",
        )


def _is_dead(worker: WorkerStatus) -> bool:
    """Wanted, and neither alive nor about to be."""
    is_wanted = worker.desired_role != Role.UNASSIGNED and not worker.drained
    return is_wanted and (worker.state == WorkerState.FAILED or (worker.epoch > 0 and not worker.alive))


def _dead_workers(dead: list[WorkerStatus]) -> list[Condition]:
    """One alert each; of very many at once one for all, as they have one cause and one reader."""
    if len(dead) <= MAX_NAMED:
        return [_dead_worker(each) for each in dead]
    names = ", ".join(each.worker_id for each in dead[:MAX_NAMED])
    text = f"{len(dead)} workers are dead: {names} and {len(dead) - MAX_NAMED} more"
    return [Condition(name="worker_dead", severity="page", text=text, for_s=WORKER_FOR_S, subject="many")]


def _dead_worker(worker: WorkerStatus) -> Condition:
    return Condition(
        name="worker_dead",
        severity="ticket",
        text=f"{worker.worker_id} ({worker.desired_role}) is dead: {worker.reason or 'its process has ended'}",
        for_s=WORKER_FOR_S,
        subject=worker.worker_id,
    )


def _empty_pool(pool: PoolStatus) -> Condition:
    return Condition(
        name="pool_empty",
        severity="page",
        text=f"The {pool.role} pool has no worker that takes requests; {pool.num_desired} are desired",
        for_s=POOL_FOR_S,
        subject=pool.role.value,
    )
