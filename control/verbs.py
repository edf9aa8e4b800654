"""The verbs: what each does to the desired state. Pure: (action, desired, fleet facts) in, desired after it out.

Decided here: which fields a verb takes, who moves in a resize, what an undo restores, and refusals of input. Not
decided here: whether the fleet stays able to serve (`control.guards`), and steps and warnings (`control.commands`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pydantic import TypeAdapter, ValidationError

from control.changes import POLICY_NAMES, Changes, changes_between
from control.facts import POOLS, FleetFacts, Refusal, natural
from control.pools import resized
from control.types.commands import Action, Command, Desired, Verb
from control.types.routing import RoutingPolicy
from control.types.workers import Role

_policy = TypeAdapter(RoutingPolicy)


class RefusedPlan(Exception):
    """Carries a refusal out of a verb."""

    def __init__(self, detail: str, **where: object) -> None:
        super().__init__(detail)
        self.refusal = Refusal(detail=detail, **where)  # type: ignore[arg-type]


def desired_after(
    action: Action, desired: Desired, fleet: FleetFacts, undo: Command | None = None, later: Sequence[Command] = ()
) -> Desired:
    """The desired state after `action`, its version unchanged. Raises RefusedPlan on what is not to be done."""
    _check_fields(action)
    _check_capability(action, fleet)
    if action.verb == Verb.UNDO:
        if undo is not None:
            _check_capability(undo.action, fleet)
        return _undo(action, desired, undo, later)
    return VERBS[action.verb](action, desired, fleet)


# --- the verbs: (action, desired, fleet) -> desired after ---------------------------------------------------------


def _resize(action: Action, desired: Desired, fleet: FleetFacts) -> Desired:
    """Choose who moves: leavers by least work, spares last; whoever is left over becomes an unassigned spare."""
    if fleet.pools:
        found = resized(action, desired, fleet)
        if isinstance(found, Refusal):
            raise RefusedPlan(found.detail, field=found.field, value=found.value, bound=found.bound)
        return found
    target = _target_sizes(action, desired)
    members = {role: _by_work([w for w, r in desired.roles.items() if r == role], fleet) for role in POOLS}
    leavers = [w for role in POOLS for w in members[role][: max(0, len(members[role]) - target[role])]]
    spares = [w for w, r in desired.roles.items() if r == Role.UNASSIGNED]
    movers = _by_work(leavers, fleet) + _by_work(spares, fleet)
    roles = dict(desired.roles)
    for role in POOLS:
        for _ in range(target[role] - len(members[role])):
            roles[movers.pop(0)] = role
    roles.update(dict.fromkeys(movers, Role.UNASSIGNED))
    return replace(desired, roles=roles)


def _flip(action: Action, desired: Desired, fleet: FleetFacts) -> Desired:
    worker_id = _known_worker(action.worker_id, desired)
    if action.role not in POOLS:
        raise RefusedPlan(
            "a worker flips to prefill, decode or mixed",
            field="role",
            value=action.role,
            bound="prefill, decode, mixed",
        )
    return replace(desired, roles={**desired.roles, worker_id: action.role})


def _drain(action: Action, desired: Desired, fleet: FleetFacts) -> Desired:
    return replace(desired, drained=desired.drained | {_known_worker(action.worker_id, desired)})


def _undrain(action: Action, desired: Desired, fleet: FleetFacts) -> Desired:
    return replace(desired, drained=desired.drained - {_known_worker(action.worker_id, desired)})


def _set_routing(action: Action, desired: Desired, fleet: FleetFacts) -> Desired:
    weights = dict(desired.weights)
    for worker_id, weight in (action.weights or {}).items():
        _known_worker(worker_id, desired, f"weights.{worker_id}")
        if weight == 1.0:
            weights.pop(worker_id, None)
        else:
            weights[worker_id] = weight
    return replace(desired, policy=changed_policy(desired.policy, action.policy or {}), weights=weights)


VERBS = {
    Verb.RESIZE: _resize,
    Verb.FLIP: _flip,
    Verb.DRAIN: _drain,
    Verb.UNDRAIN: _undrain,
    Verb.SET_ROUTING: _set_routing,
}


def _undo(action: Action, desired: Desired, target: Command | None, later: Sequence[Command]) -> Desired:
    """Restore the former values of exactly what `target` changed, as long as nothing has changed them since."""
    if target is None:
        raise RefusedPlan(f"no command {action.command_id}", field="command_id", value=action.command_id, status=404)
    number = target.command_id
    before, after = target.desired_before, target.desired_after
    if before is None or after is None or not (changes := changes_between(before, after)):
        raise RefusedPlan(
            f"command {number} changed nothing, so there is nothing to undo", field="command_id", value=number
        )
    if target.undone_by is not None:
        raise RefusedPlan(
            f"command {number} was undone by command {target.undone_by} already", field="command_id", value=number
        )
    moved = changes.differing(desired, after)
    if moved:
        raise RefusedPlan(
            f"{_culprit(moved, later)} has changed {moved.words()} since", field="command_id", value=number
        )
    return changes.restored(desired, before)


def _culprit(moved: Changes, later: Sequence[Command]) -> str:
    for each in later:
        before, after = each.desired_before, each.desired_after
        if before and after and changes_between(before, after).touches(moved):
            return f"command {each.command_id} by {each.who}"
    return "a later command"


def changed_policy(policy: RoutingPolicy, changes: Mapping[str, float | int]) -> RoutingPolicy:
    """`policy` with some fields changed, each within its bounds. Raises RefusedPlan naming the key, value and bound."""
    unknown = sorted(set(changes) - set(POLICY_NAMES))
    if unknown:
        raise RefusedPlan(
            f"no routing setting is named {unknown[0]}",
            field=f"policy.{unknown[0]}",
            value=changes[unknown[0]],
            bound=", ".join(POLICY_NAMES),
        )
    try:
        return _policy.validate_python({**dataclasses.asdict(policy), **changes})
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise RefusedPlan(
            f"{name}: {first['msg'].lower()}", field=f"policy.{name}", value=changes.get(name), bound=first["msg"]
        ) from error


def _check_fields(action: Action) -> None:
    """Refuse a field that the verb does not take, and a verb without the fields that it needs."""
    takes = FIELDS[action.verb]
    for name in (each.name for each in dataclasses.fields(Action) if each.name != "verb"):
        if getattr(action, name) is not None and name not in takes:
            bound = ", ".join(takes)
            raise RefusedPlan(f"{action.verb} takes no {name}", field=name, value=getattr(action, name), bound=bound)
    for name in NEEDS.get(action.verb, ()):
        if getattr(action, name) is None:
            raise RefusedPlan(f"{action.verb} needs {name}", field=name, bound=", ".join(takes))
    if all(getattr(action, name) in (None, {}) for name in takes):
        raise RefusedPlan(f"{action.verb} needs one of {', '.join(takes)}", field=takes[0], bound=", ".join(takes))


FIELDS: Mapping[Verb, tuple[str, ...]] = {
    Verb.RESIZE: ("prefill", "decode", "mixed"),
    Verb.FLIP: ("worker_id", "role"),
    Verb.DRAIN: ("worker_id",),
    Verb.UNDRAIN: ("worker_id",),
    Verb.SET_ROUTING: ("policy", "weights"),
    Verb.UNDO: ("command_id",),
}
NEEDS: Mapping[Verb, tuple[str, ...]] = {
    Verb.FLIP: ("worker_id", "role"),
    Verb.DRAIN: ("worker_id",),
    Verb.UNDRAIN: ("worker_id",),
    Verb.UNDO: ("command_id",),
}
CAPABILITY: Mapping[Verb, str] = {
    Verb.RESIZE: "resize",
    Verb.FLIP: "flip",
    Verb.DRAIN: "drain",
    Verb.UNDRAIN: "drain",
    Verb.SET_ROUTING: "route",
}


def _check_capability(action: Action, fleet: FleetFacts) -> None:
    needed = CAPABILITY.get(action.verb)
    if needed is not None and needed not in fleet.can:
        raise RefusedPlan(
            fleet.refusals.get(needed, f"this fleet cannot {needed}"),
            field="verb",
            value=action.verb,
            bound=", ".join(sorted(fleet.can)),
        )


def _target_sizes(action: Action, desired: Desired) -> dict[Role, int]:
    """Sizes asked for; a pool that is not named keeps its size. Raises RefusedPlan when the sum is over the fleet."""
    asked = {Role.PREFILL: action.prefill, Role.DECODE: action.decode, Role.MIXED: action.mixed}
    target = {role: desired.pool_size(role) if size is None else size for role, size in asked.items()}
    total, num_workers = sum(target.values()), len(desired.roles)
    if total > num_workers:
        parts = " + ".join(f"{role} {target[role]}{'' if asked[role] is not None else ' (kept)'}" for role in POOLS)
        name = next(role.value for role in POOLS if asked[role] is not None)
        raise RefusedPlan(
            f"{parts} = {total} workers, but the fleet has {num_workers}",
            field=name,
            value=asked[Role(name)],
            bound=f"sum <= {num_workers}",
        )
    return target


def _known_worker(worker_id: str | None, desired: Desired, where: str = "worker_id") -> str:
    if worker_id is None or worker_id not in desired.roles:
        known = sorted(desired.roles, key=natural)
        bound = ", ".join(known[:8]) + (f" .. {known[-1]}" if len(known) > 8 else "")
        raise RefusedPlan(f"no worker is named {worker_id}", field=where, value=worker_id, bound=bound, status=404)
    return worker_id


def _by_work(worker_ids: list[str], fleet: FleetFacts) -> list[str]:
    """Those that move first: usable before dead, then least work, then by id."""

    def cost(worker_id: str) -> tuple[bool, int, int, tuple[str, int, str]]:
        facts = fleet.workers.get(worker_id)
        queued = facts.queued_prefill_tokens if facts else 0
        return not fleet.usable(worker_id), fleet.work(worker_id), queued, natural(worker_id)

    return sorted(worker_ids, key=cost)
