"""Who serves both phases while nobody is left who can serve a request to its end. Pure.

Decided here: when every worker that shall decode is lost, the prefill workers that are left are ordered mixed, and go
back when one of the others is ready. Desired state does not change: it says what the operator wants, this only what is
ordered until it can be had. The other way round nothing is needed: decode workers prefill locally when no prefill
worker takes requests (`control.routing`, rule empty_pool).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from control.facts import FleetFacts, natural
from control.types.commands import Desired
from control.types.workers import Role, WorkerState
from engine.lifecycle import SERVES
from engine.types import WorkKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Effective:
    """What to order now. `reasons`: by worker, where that is not what is desired; `notice`: the same, for people."""

    desired: Desired
    reasons: Mapping[str, str] = field(default_factory=dict)
    notice: str = ""


def effective_roles(
    desired: Desired, fleet: FleetFacts, away: Collection[str] = (), leaving: frozenset[str] = frozenset()
) -> Effective:
    """Desired state with stand-ins. `away`: workers whose connection has just ended, whatever else is seen of them.
    `leaving`: those that are of the fleet no more, and are drained."""
    found = _with_stand_ins(replace(desired, drained=desired.drained | leaving), fleet, away)
    reasons = dict.fromkeys(leaving & desired.roles.keys(), "it is of this fleet no more")
    return replace(found, reasons={**found.reasons, **reasons})


def _with_stand_ins(desired: Desired, fleet: FleetFacts, away: Collection[str]) -> Effective:
    finishers = [w for w in _serving(desired) if WorkKind.LOCAL in SERVES[desired.roles[w]]]
    lost = [w for w in finishers if _is_lost(w, fleet, away)]
    if not finishers or not all(w in lost or _is_coming(w, fleet) for w in finishers):
        return Effective(desired=desired)
    stand_ins = [
        w for w in _serving(desired) if w not in finishers and _can_stand_in(w, fleet, away, is_standing=not lost)
    ]
    if not stand_ins:
        return Effective(desired=desired)
    why = f"no {_pools(desired, finishers)} worker is there ({', '.join(finishers)})"
    return Effective(
        desired=replace(desired, roles={**desired.roles, **dict.fromkeys(stand_ins, Role.MIXED)}),
        reasons=dict.fromkeys(stand_ins, f"stands in: {why}"),
        notice=f"{', '.join(stand_ins)} serve both phases for now: {why}.",
    )


def _serving(desired: Desired) -> list[str]:
    """Workers that shall admit requests, in order of their names."""
    wanted = [w for w, role in desired.roles.items() if role != Role.UNASSIGNED and w not in desired.drained]
    return sorted(wanted, key=natural)


def _is_lost(worker_id: str, fleet: FleetFacts, away: Collection[str]) -> bool:
    facts = fleet.workers.get(worker_id)
    return worker_id in away or not fleet.usable(worker_id) or (facts is not None and facts.is_stuck)


def _is_coming(worker_id: str, fleet: FleetFacts) -> bool:
    """Its process starts, or does not serve in any role yet."""
    facts = fleet.workers.get(worker_id)
    begins = (WorkerState.STARTING, WorkerState.UNASSIGNED)
    return facts is None or facts.state in begins or facts.role == Role.UNASSIGNED


def _can_stand_in(worker_id: str, fleet: FleetFacts, away: Collection[str], *, is_standing: bool) -> bool:
    """It serves now. `is_standing`: only if it does so already, as nobody is known to be lost (a fleet that starts)."""
    facts = fleet.workers.get(worker_id)
    if facts is None or _is_lost(worker_id, fleet, away) or facts.state != WorkerState.READY:
        return False
    return facts.role == Role.MIXED if is_standing else facts.role in (Role.PREFILL, Role.MIXED)


def _pools(desired: Desired, worker_ids: list[str]) -> str:
    """ "decode", "decode or mixed"."""
    return " or ".join(sorted({desired.roles[w].value for w in worker_ids}))
