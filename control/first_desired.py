"""The desired state that a plane begins with where no operator has said it: from the settings, or a registry. Pure.

Decided here: the first role of each worker, and what stays when the workers are others than before. Not decided here:
when that is looked at (`control.adoption` at the start, `control.amends` at each tick of a fleet with a registry).
"""

from __future__ import annotations

from dataclasses import replace

from control.settings import Settings
from control.types.commands import Action, Command, CommandState, Desired, Verb
from control.types.routing import RoutingPolicy
from control.types.workers import Role

INITIAL_WHO = "phaseline"


def starting_desired(known: Desired | None, settings: Settings) -> Desired:
    """What to start from: `known` as it is, unless `num_workers` has changed since; new workers are decode workers."""
    if known is None:
        return initial_desired(settings)
    ids = settings.worker_ids
    if set(ids) == known.roles.keys():
        return known
    roles = {worker_id: known.roles.get(worker_id, Role.DECODE) for worker_id in ids}
    if not any(role in (Role.DECODE, Role.MIXED) for role in roles.values()):
        roles = initial_desired(settings).roles
    return replace(
        known,
        version=known.version + 1,
        roles=roles,
        drained=frozenset(known.drained & roles.keys()),
        weights={w: weight for w, weight in known.weights.items() if w in roles},
    )


def routed_desired(known: Desired | None, registered: dict[str, Role]) -> Desired:
    """Of others' engines: the roles that we gave last, the registry's for those that are new; a pair is split."""
    if known is None or not known.roles:
        policy = RoutingPolicy(min_fleet_devices=2)
        return Desired(version=1 if known is None else known.version + 1, roles=registered, policy=policy)
    if registered.keys() == known.roles.keys():
        return known
    return replace(
        known,
        version=known.version + 1,
        roles={worker_id: known.roles.get(worker_id, role) for worker_id, role in registered.items()},
        drained=frozenset(known.drained & registered.keys()),
        weights={w: weight for w, weight in known.weights.items() if w in registered},
    )


def registry_words(before: Desired | None, after: Desired) -> str:
    """ "the targets list a1 too, and no longer b2"; "" where nothing came or went."""
    known = before.roles.keys() if before else frozenset()
    new, gone = sorted(after.roles.keys() - known), sorted(known - after.roles.keys())
    parts = [f"list {', '.join(new)} too"] if new and known else [f"list {', '.join(new)}"] if new else []
    parts += [f"no longer list {', '.join(gone)}"] if gone else []
    return f"the targets {' and '.join(parts)}" if parts else ""


def initial_desired(settings: Settings) -> Desired:
    """First prefill, then mixed, then decode workers, named w0 .. wN-1; one of them can decode."""
    num_prefill = min(settings.num_prefill, settings.num_workers - 1)
    num_mixed = min(settings.num_mixed, settings.num_workers - num_prefill)
    num_decode = settings.num_workers - num_prefill - num_mixed
    roles = [Role.PREFILL] * num_prefill + [Role.MIXED] * num_mixed + [Role.DECODE] * num_decode
    return Desired(version=1, roles=dict(zip(settings.worker_ids, roles, strict=True)), policy=settings.initial_policy)


def starting_command(
    fleet_id: str, before: Desired | None, after: Desired, now_unix_s: float, why: str = "", source: str = "settings"
) -> Command:
    """The record by which desired state begins, or takes over who the workers are now. `source`: who says so."""
    return Command(
        command_id=0,
        fleet_id=fleet_id,
        action=Action(
            verb=Verb.RESIZE,
            prefill=after.pool_size(Role.PREFILL),
            decode=after.pool_size(Role.DECODE),
            mixed=after.pool_size(Role.MIXED),
        ),
        state=CommandState.DONE,
        who=INITIAL_WHO,
        why=why or ("first start" if before is None else f"the setting num_workers is now {len(after.roles)}"),
        idempotency_key="",
        base_version=before.version if before else 0,
        version_after=after.version,
        created_unix_s=now_unix_s,
        updated_unix_s=now_unix_s,
        result=f"taken from the {source}",
        desired_before=None,  # not an operator's: there is nothing to undo
        desired_after=after,
    )
