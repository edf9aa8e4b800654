"""What a command would change, and its life as a table. Pure: values in, a plan out.

Decided here: the life of a command, and the plan of one action: the desired state after it, its steps and warnings.
A preview and the recorded command are the same `Planned`, so a preview shows what the tick will do. Not decided here:
what a verb means (`control.verbs`), what must stay servable (`control.guards`), how workers get there
(`control.reconcile`), when a command has ended (`control.progress`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from control.changes import Changes, changes_between, role_of
from control.facts import POOLS, FleetFacts, Refusal, natural
from control.guards import needs_confirmation, overfull_after, safety_refusal, serving_warnings
from control.pools import planned_pools
from control.types.commands import Action, Command, CommandState, Desired, PlannedStep
from control.types.workers import Role
from control.verbs import RefusedPlan, desired_after

#: (state, event) -> state. A pair that is missing is a bug of ours, never input.
LIFECYCLE: Mapping[tuple[CommandState, str], CommandState] = {
    (CommandState.ACCEPTED, "start"): CommandState.RUNNING,
    (CommandState.ACCEPTED, "finish"): CommandState.DONE,
    (CommandState.ACCEPTED, "fail"): CommandState.FAILED,
    (CommandState.ACCEPTED, "supersede"): CommandState.SUPERSEDED,
    (CommandState.RUNNING, "start"): CommandState.RUNNING,
    (CommandState.RUNNING, "finish"): CommandState.DONE,
    (CommandState.RUNNING, "fail"): CommandState.FAILED,
    (CommandState.RUNNING, "supersede"): CommandState.SUPERSEDED,
}
ENDED = frozenset({CommandState.DONE, CommandState.FAILED, CommandState.SUPERSEDED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One action, planned. `desired_after` has the version that recording it will give."""

    desired_after: Desired
    steps: tuple[PlannedStep, ...] = ()
    warnings: tuple[str, ...] = ()
    needs_confirmation: str = ""
    refused: Refusal | None = None
    expected_s: float | None = None
    effect: str = ""


def advance(state: CommandState, event: str) -> CommandState:
    """The state after `event`. Raises KeyError on a move that the table does not hold."""
    return LIFECYCLE[(state, event)]


def plan_action(
    action: Action,
    desired: Desired,
    fleet: FleetFacts,
    undo: Command | None = None,
    later: Sequence[Command] = (),
) -> Planned:
    """Plan one action. `undo` is the command that an UNDO names, `later` the commands recorded after it."""
    try:
        after = desired_after(action, desired, fleet, undo, later)
    except RefusedPlan as refused:
        return Planned(desired_after=desired, refused=refused.refusal)
    changes = changes_between(desired, after)
    if changes:
        after = replace(after, version=desired.version + 1)
    overfull, overfull_why = overfull_after(desired, after, fleet)
    warnings = _warnings(desired, after, fleet, changes)
    typed = "" if action.command_id is not None else needs_confirmation(desired, after) or overfull
    return Planned(
        desired_after=after,
        steps=planned_steps(changes, desired, after, fleet),
        warnings=(overfull_why, *warnings) if overfull_why else warnings,
        needs_confirmation=typed,
        refused=safety_refusal(desired, after, fleet),
        expected_s=_expected_s(changes, fleet),
        effect=_effect(desired, after, changes),
    )


def planned_steps(changes: Changes, before: Desired, after: Desired, fleet: FleetFacts) -> tuple[PlannedStep, ...]:
    """The orders that lead from `before` to `after`, workers first, in id order; routing last."""
    steps = []
    for worker_id in sorted(changes.roles, key=natural):
        was, role = role_of(before, worker_id), after.roles[worker_id]
        verb = "place" if was == Role.UNASSIGNED else "drain" if role == Role.UNASSIGNED else "flip"
        text = f"{verb} {worker_id} {_name(was)} -> {_name(role)}{_finishing(worker_id, role, fleet)}"
        steps.append(PlannedStep(verb=verb, worker_id=worker_id, role=role, from_role=was, text=text))
    for worker_id in sorted(changes.drained, key=natural):
        verb = "drain" if worker_id in after.drained else "undrain"
        text = f"{verb} {worker_id}" + (_finishing(worker_id, Role.UNASSIGNED, fleet) if verb == "drain" else "")
        role = after.roles[worker_id]
        steps.append(PlannedStep(verb=verb, worker_id=worker_id, role=role, from_role=role, text=text))
    steps += planned_pools(changes.pools, before, after)
    words = changes.routing_words(before, after)
    steps += [
        PlannedStep(verb="route", worker_id=None, role=None, from_role=None, text=f"route: {each}") for each in words
    ]
    return tuple(steps)


def _name(role: Role) -> str:
    return "spare" if role == Role.UNASSIGNED else role.value


def _finishing(worker_id: str, role: Role, fleet: FleetFacts) -> str:
    """What must end on this worker before it holds the new role."""
    facts = fleet.workers.get(worker_id)
    if facts is None or not facts.usable:
        return " (when it is back)"
    parts = []
    if facts.num_running and role not in (Role.DECODE, Role.MIXED):
        parts.append(f"{facts.num_running} running sequence{'s' if facts.num_running != 1 else ''}")
    if facts.num_waiting and role not in (Role.PREFILL, Role.MIXED):
        parts.append(f"{facts.num_waiting} waiting")
    if facts.num_leased and role not in (Role.PREFILL, Role.MIXED):
        parts.append(f"{facts.num_leased} in handoff")
    return f" ({' and '.join(parts)} finish first)" if parts else ""


def _expected_s(changes: Changes, fleet: FleetFacts) -> float | None:
    """The longest drain among the workers that move: every running answer at its expected full length.

    How long somebody else's system takes to start or change a worker is not known.
    """
    if fleet.yields:
        return None
    longest = 0.0
    for facts in (fleet.workers[w] for w in changes.workers if w in fleet.workers):
        if facts.num_running:
            if fleet.tpot_s is None:
                return None
            longest = max(longest, fleet.tpot_s * fleet.expected_output_tokens)
        if facts.queued_prefill_tokens:
            if not fleet.prefill_tokens_per_s:
                return None
            longest = max(longest, facts.queued_prefill_tokens / fleet.prefill_tokens_per_s)
    return longest


def _effect(before: Desired, after: Desired, changes: Changes) -> str:
    """What changes in capacity, by count of workers alone."""
    parts = []
    for role in POOLS:
        was, now = before.pool_size(role), after.pool_size(role)
        if was != now:
            parts.append(f"{role} {was} -> {now} workers" + (f" (x{now / was:.2g})" if was else ""))
    return ", ".join(parts) or "; ".join(changes.routing_words(before, after))


def _warnings(before: Desired, after: Desired, fleet: FleetFacts, changes: Changes) -> tuple[str, ...]:
    if not changes:
        return ("nothing changes: this is the desired state already",)
    spares = sorted((w for w in changes.roles if after.roles[w] == Role.UNASSIGNED), key=natural)
    found = [f"{', '.join(spares)} will be spare: drained, serving nothing"] if spares else []
    for worker_id in sorted(changes.workers, key=natural):
        if worker_id in changes.roles and worker_id in after.drained:
            found.append(f"{worker_id} stays drained in its new role")
        if not fleet.usable(worker_id):
            found.append(f"{worker_id} is not there now: {fleet.gone.get(worker_id) or 'it has failed'}")
    if changes.roles and fleet.sized_by:
        found.append(
            f"only roles at our gateway change: {fleet.sized_by} keeps the number of workers, and one that comes anew "
            "begins in the role that it is listed with"
        )
    return (*found, *serving_warnings(before, after))
