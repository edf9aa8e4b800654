"""Desired beside observed: which orders to give now, and why. Pure.

Decided here: the orders per worker, and none while an equal wish is under way. Level-triggered: it always compares the
whole of desired with what is seen, so a crash at any point is repaired by the next tick. Not decided here: who should
have which role (`control.verbs`), and when a command has ended (`control.progress`).

A worker takes two independent wishes, its role and whether it is closed (`engine.duty`); it never goes back to
"unassigned", so a spare is a worker that is drained in the role it last had.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from control.changes import changes_between, role_of
from control.facts import FleetFacts, WorkerFacts, natural
from control.fleets.base import FleetStep
from control.pools import sizes_seen
from control.types.commands import Command, Desired
from control.types.workers import Role, WorkerState

#: A wish that shows no effect is ordered again after this long; orders are idempotent.
REPEAT_S = 5.0
SILENT = frozenset({WorkerState.STARTING, WorkerState.FAILED, WorkerState.STOPPED})
CLOSED = frozenset({WorkerState.DRAINING, WorkerState.DRAINED})
#: Orders under which a worker stops serving what it serves.
LEAVES = frozenset({"flip", "drain"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered:
    """What one life of a worker was last told to become, and when."""

    epoch: int
    role: Role
    closed: bool
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled:
    """What to order now (in order, per worker), and what to remember until the next look."""

    steps: tuple[FleetStep, ...] = ()
    ordered: Mapping[str, Ordered] = field(default_factory=dict)


def reconcile(
    desired: Desired,
    fleet: FleetFacts,
    ordered: Mapping[str, Ordered],
    fence: int,
    now_s: float,
    busy: Collection[str] = (),
    max_moves: int | None = None,
    reasons: Mapping[str, str] = MappingProxyType({}),
) -> Reconciled:
    """Orders that lead from what is seen to what is desired. Workers that are away get theirs when they are back.

    `busy`: workers that are being given orders now; they are looked at again when those have ended. `max_moves`: at
    most so many workers leave what they serve (flip, drain) at a time; the others wait for their turn, in id order.
    `reasons`: why, by worker, where that is more than being desired.
    """
    steps: list[FleetStep] = []
    under_way: dict[str, Ordered] = {}
    moving = sum(1 for w, facts in fleet.workers.items() if _is_moving(desired, facts, ordered.get(w)))
    for worker_id in sorted(fleet.workers, key=natural):
        facts = fleet.workers[worker_id]
        if worker_id in busy:
            if worker_id in ordered:
                under_way[worker_id] = ordered[worker_id]
            continue
        if not facts.alive or facts.state in SILENT:
            continue
        is_held = holds(desired, facts, worker_id)
        if is_held and not _obeys_older(facts, fence):
            continue
        role = role_of(desired, worker_id)
        wish = Ordered(epoch=facts.epoch, role=role, closed=is_closed(desired, worker_id), at_s=now_s)
        before = ordered.get(worker_id)
        if before is not None and _under_way(before, wish, facts):
            under_way[worker_id] = before
            continue
        verbs = fencing_verbs(wish.closed) if is_held else wanted_verbs(facts, role, wish.closed)
        if not is_held and LEAVES.intersection(verbs) and not _is_moving(desired, facts, before):
            if max_moves is not None and moving >= max_moves:
                continue
            moving += 1
        under_way[worker_id] = wish
        wanted = f"desired version {desired.version}: {worker_id} is {words_of(desired, worker_id)}"
        reason = reasons.get(worker_id, wanted)
        steps += [FleetStep(verb=verb, worker_id=worker_id, role=role, fence=fence, reason=reason) for verb in verbs]
    return Reconciled(steps=tuple(steps), ordered=under_way)


def as_observed(desired: Desired, fleet: FleetFacts, unfinished: Iterable[Command] = ()) -> Desired:
    """Of a fleet that somebody else runs: what it is, and what commands that have not ended want of it. So nothing is
    held against its owner: once a command has ended, whatever they change is what is desired. The version stays.

    An engine that has never answered is wanted in the role in which it is listed."""
    seen = replace(
        desired,
        roles={**fleet.listed, **{worker_id: facts.role for worker_id, facts in fleet.workers.items()}},
        drained=frozenset(worker_id for worker_id, facts in fleet.workers.items() if facts.state in CLOSED),
        pools=sizes_seen(fleet),
    )
    for command in sorted(unfinished, key=lambda each: each.command_id):
        if command.desired_before is not None and command.desired_after is not None:
            changes = changes_between(command.desired_before, command.desired_after)
            seen = changes.restored(seen, command.desired_after)
    return seen


def wanted_verbs(facts: WorkerFacts, role: Role, closed: bool) -> tuple[str, ...]:
    """The orders that make both wishes hold. A flip to the role it has takes back a flip that still drains."""
    verbs = []
    if role != Role.UNASSIGNED:
        if facts.role == Role.UNASSIGNED:
            verbs.append("place")
        elif facts.role != role or facts.state == WorkerState.DRAINING:
            verbs.append("flip")
    if closed and facts.state != WorkerState.DRAINED:
        verbs.append("drain")
    if not closed and facts.state in CLOSED:
        verbs.append("undrain")
    return tuple(verbs)


def fencing_verbs(closed: bool) -> tuple[str, ...]:
    """An order that changes nothing: from now on the worker refuses those of every earlier plane."""
    return ("drain",) if closed else ("undrain",)


def holds(desired: Desired, facts: WorkerFacts | None, worker_id: str) -> bool:
    """This worker is seen as desired."""
    if facts is None or not facts.usable or facts.state == WorkerState.STARTING:
        return False
    role = role_of(desired, worker_id)
    if role == Role.UNASSIGNED:
        return facts.role == Role.UNASSIGNED or facts.state == WorkerState.DRAINED
    wanted = WorkerState.DRAINED if is_closed(desired, worker_id) else WorkerState.READY
    return facts.role == role and facts.state == wanted


def is_closed(desired: Desired, worker_id: str) -> bool:
    """It shall admit nothing: drained, or a spare."""
    return worker_id in desired.drained or role_of(desired, worker_id) == Role.UNASSIGNED


def words_of(desired: Desired, worker_id: str) -> str:
    """ "prefill, ready", "decode, drained", "spare"."""
    role = role_of(desired, worker_id)
    if role == Role.UNASSIGNED:
        return "spare"
    return f"{role}, drained" if worker_id in desired.drained else f"{role}, ready"


def _is_moving(desired: Desired, facts: WorkerFacts, ordered: Ordered | None) -> bool:
    """It was told to leave what it serves and has not arrived. One that is dead or starts anew serves nothing."""
    if ordered is None or not facts.usable or ordered.epoch != facts.epoch or holds(desired, facts, facts.worker_id):
        return False
    if facts.role == Role.UNASSIGNED:
        return False
    closing = ordered.closed and facts.state == WorkerState.READY
    return facts.state == WorkerState.DRAINING or facts.role != ordered.role or closing


def _obeys_older(facts: WorkerFacts, fence: int) -> bool:
    """It has a role and has not heard of this plane: it would still take an order of an earlier one."""
    return facts.role != Role.UNASSIGNED and facts.fence is not None and facts.fence < fence


def _under_way(before: Ordered, wish: Ordered, facts: WorkerFacts) -> bool:
    """The same wish was ordered of this life of the worker, and it drains for it, or has had no time to answer yet."""
    if (before.epoch, before.role, before.closed) != (wish.epoch, wish.role, wish.closed):
        return False
    return facts.state == WorkerState.DRAINING or wish.at_s - before.at_s < REPEAT_S
