"""Guard rails of every command: what must stay servable, and which actions need a typed word. Pure.

A pool's *active* workers are those that are not drained, not of weight 0 where work is handed out, and not known to
be dead. "Has work" counts every request that a worker holds in any stage.
"""

from __future__ import annotations

from control.changes import role_of
from control.facts import POOLS, FleetFacts, Refusal, natural
from control.pools import pool_losing_most
from control.types.commands import Desired
from control.types.workers import Role

SERVES_DECODE = (Role.DECODE, Role.MIXED)


def safety_refusal(before: Desired, after: Desired, fleet: FleetFacts) -> Refusal | None:
    """Why `after` would strand requests; None when it would not. A state that was unable before may stay so."""
    if _can_decode(before, fleet) and not _can_decode(after, fleet):
        return Refusal(
            detail="no worker would be left that can decode: the fleet could not serve",
            field="pools",
            value=pools_of(after),
            bound="at least one decode or mixed worker that is not drained, not gone and of weight above 0",
        )
    for role in POOLS:
        members = active(before, role, fleet)
        work = sum(fleet.work(worker_id) for worker_id in members)
        if members and work and not active(after, role, fleet) and not _taken_over(role, members, after, fleet):
            requests = f"{work} request{'s' if work != 1 else ''}"
            return Refusal(
                detail=f"the {role} pool holds {requests} and would be left with no worker",
                field=role.value,
                value=0,
                bound="at least 1 while it has work",
            )
    return None


def needs_confirmation(before: Desired, after: Desired) -> str:
    """The pool whose name must be typed: the one that loses most of its workers, if it loses half or more.

    Lost is drained or moved to another role; a worker that becomes mixed still serves its old phase.
    """
    worst, share = pool_losing_most(before, after)
    for role in POOLS:
        members = [w for w, r in before.roles.items() if r == role and w not in before.drained]
        lost = [w for w in members if role_of(after, w) not in (role, Role.MIXED) or w in after.drained]
        if members and len(lost) / len(members) > share:
            worst, share = role.value, len(lost) / len(members)
    return worst if share >= 0.5 else ""


def overfull_after(before: Desired, after: Desired, fleet: FleetFacts) -> tuple[str, str]:
    """The pool that what it does now would fill past its limit, as (name, why); ("", "") when there is none.

    Derived and linear: share in use x workers before / workers after. Above 1 the queue, and so TTFT or the wait for
    KV, grows without end: the SLO breaks. A pool that grows, or that goes to nothing, is not judged here.
    """
    for role in POOLS:
        num_before, num_after = len(active(before, role, fleet)), len(active(after, role, fleet))
        share = fleet.pool_share.get(role)
        if share is None or not 0 < num_after < num_before:
            continue
        needed = share * num_before / num_after
        if needed > 1.0:
            used = "busy" if role == Role.PREFILL else "its KV in use"
            was, now = _counted(num_before), _counted(num_after)
            return role.value, (
                f"{role} has {share:.0%} {used} on {was}: {now} would need {needed:.0%} (derived, linear), "
                "so the SLO would break"
            )
    return "", ""


def _counted(num_workers: int) -> str:
    return f"{num_workers} worker{'s' if num_workers != 1 else ''}"


def serving_warnings(before: Desired, after: Desired) -> tuple[str, ...]:
    """What still works, but not as one may expect."""

    def num(desired: Desired, role: Role) -> int:
        return sum(1 for w, r in desired.roles.items() if r == role and w not in desired.drained)

    found = []
    if num(before, Role.PREFILL) and not num(after, Role.PREFILL) and not num(after, Role.MIXED):
        found.append("no prefill worker is left: decode workers prefill locally, so nothing is split")
    if num(after, Role.PREFILL) and not num(after, Role.DECODE) and num(before, Role.DECODE):
        found.append("no decode worker is left: mixed workers decode alone")
    return tuple(found)


def active(desired: Desired, role: Role, fleet: FleetFacts) -> list[str]:
    """Workers of a pool that would take work."""
    found = (w for w, r in desired.roles.items() if r == role and w not in desired.drained and fleet.usable(w))
    return sorted(found, key=natural)


def pools_of(desired: Desired) -> dict[str, int]:
    """Size of each pool, spares as "unassigned" when there are any."""
    sizes = {role.value: desired.pool_size(role) for role in POOLS}
    spares = desired.pool_size(Role.UNASSIGNED)
    return {**sizes, Role.UNASSIGNED.value: spares} if spares else sizes


def _can_decode(desired: Desired, fleet: FleetFacts) -> bool:
    able = (w for role in SERVES_DECODE for w in active(desired, role, fleet))
    return any(desired.weights.get(w, 1.0) > 0 for w in able)


def _taken_over(role: Role, members: list[str], after: Desired, fleet: FleetFacts) -> bool:
    """Nothing is stranded: its workers all widen to mixed, or a mixed pool makes room for both of its phases."""
    if role == Role.MIXED:
        return bool(active(after, Role.PREFILL, fleet)) and bool(active(after, Role.DECODE, fleet))
    return all(role_of(after, w) == Role.MIXED and w not in after.drained for w in members)
