"""Pools of a fleet that somebody else runs and that have a size in place of fixed workers. Pure.

Decided here: which sizes may be asked for, when one is ordered, when it is reached, and when we stop because another
controller sets it too. Not decided here: how a size is asked for (`control.fleets.attached.steering`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Literal

from control.facts import POOLS, FleetFacts, Refusal
from control.fleets.base import FleetStep, StepOutcome
from control.types.commands import Action, CommandStep, Desired, PlannedStep
from control.types.workers import Role


def pool_key(role: str) -> str:
    """What orders and journal lines call it, where others have a worker's name."""
    return f"{role} pool"


def sizes_seen(fleet: FleetFacts) -> dict[str, int]:
    """As the system says that it is set to; where it does not say, as many as there are."""
    return {
        role.value: pool.num_ready + pool.num_other if pool.target is None else pool.target
        for role, pool in fleet.pools.items()
    }


def resized(action: Action, desired: Desired, fleet: FleetFacts) -> Desired | Refusal:
    """The sizes that are asked for, each within its bounds; a pool that is not named keeps its own."""
    asked = {Role.PREFILL: action.prefill, Role.DECODE: action.decode, Role.MIXED: action.mixed}
    sizes = dict(desired.pools)
    for role, size in asked.items():
        if size is None:
            continue
        if role not in fleet.pools:
            known = ", ".join(fleet.pools)
            return Refusal(detail=f"this fleet has no {role} pool", field=role.value, value=size, bound=known)
        if not 1 <= size <= fleet.max_pool:
            bound = f"1..{fleet.max_pool}"
            return Refusal(detail=f"{role} {size} is out of bounds", field=role.value, value=size, bound=bound)
        rival = fleet.pools[role].rival
        if rival and size != sizes.get(role.value):
            return Refusal(detail=f"{role} is not ours to resize: {rival}", field=role.value, value=size)
        sizes[role.value] = size
    return replace(desired, pools=sizes)


def pool_losing_most(before: Desired, after: Desired) -> tuple[str, float]:
    """The pool that would lose the largest share of its workers, and that share."""
    losses = {n: 1 - after.pools.get(n, size) / size for n, size in before.pools.items() if size}
    worst = max(losses, key=lambda name: losses[name], default="")
    return worst, losses.get(worst, 0.0)


def planned_pools(names: Collection[str], before: Desired, after: Desired) -> list[PlannedStep]:
    """One order for each pool."""
    return [
        PlannedStep(
            verb="scale",
            worker_id=pool_key(role),
            role=role,
            from_role=role,
            text=f"scale {role} {before.pools.get(role.value, 0)} -> {after.pools[role.value]} workers",
        )
        for role in POOLS
        if role.value in names and role.value in after.pools
    ]


def scale_steps(
    desired: Desired, fleet: FleetFacts, outcomes: Mapping[str, StepOutcome], busy: Collection[str], fence: int
) -> list[FleetStep]:
    """Each size is asked for once; again only where it was refused for now."""
    seen, found = sizes_seen(fleet), []
    for role in fleet.pools:
        key, size = pool_key(role), desired.pools.get(role.value)
        outcome = outcomes.get(key)
        is_answered = outcome is not None and (outcome.accepted or not outcome.retry_helps)
        if size is None or size == seen[role.value] or key in busy or is_answered:
            continue
        found.append(FleetStep(verb="scale", worker_id=key, role=role, fence=fence, size=size))
    return found


def pool_line(
    role: Role, after: Desired, fleet: FleetFacts, outcome: StepOutcome | None, now_unix_s: float
) -> CommandStep:
    """Where one pool is on its way, as the journal's line about it."""
    size, pool = after.pools[role.value], fleet.pools.get(role)
    state: Literal["running", "done", "failed"] = "running"
    text = f"the {role} pool is on its way to {size} workers"
    if pool is None:
        text = f"the {role} pool is not seen now"
    elif pool.target in (None, size) and (pool.num_ready, pool.num_other) == (size, 0):
        state, text = "done", f"the {role} pool has {size} workers"
    elif outcome is not None and not outcome.accepted:
        state = "running" if outcome.retry_helps else "failed"
        text = f"the {role} pool was not resized to {size}: {outcome.detail}"
    elif outcome is not None and (pool.rival or pool.target not in (None, size)):
        who = pool.rival or f"{pool.set_by or 'somebody else'} has set it to {pool.target}"
        state, text = "failed", f"the {role} pool was set to {size}, but {who}: we stop"
    return CommandStep(at_unix_s=now_unix_s, text=text, worker_id=pool_key(role), state=state)
