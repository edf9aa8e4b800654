"""How far a command has come, by observation alone. Pure.

Decided here: which of a command's goals hold, what to write into its journal, and whether it is done or failed. A
command is done when what it changed is *seen*, not when orders were accepted. When it fails, desired stays as it was
recorded and the plane goes on trying: `result` says what was left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from control.changes import Changes, changes_between
from control.departures import departures_since, total_of
from control.facts import FleetFacts, WorkerFacts, natural
from control.first_desired import INITIAL_WHO
from control.fleets.base import StepOutcome
from control.pools import pool_key, pool_line
from control.reconcile import holds, words_of
from control.stories import departure_words
from control.types.commands import Command, CommandState, CommandStep, Departure, Desired, Verb
from control.types.workers import Role, WorkerState


@dataclass(frozen=True, slots=True, kw_only=True)
class TablesSeen:
    """How many gateways are connected, and how many of them hold the newest routing table."""

    num_gateways: int
    num_current: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What to record next: new journal lines, and the state that the command is in after them."""

    command_id: int
    steps: tuple[CommandStep, ...]
    event: str  # "" | start | finish | fail, for `control.commands.LIFECYCLE`
    result: str = ""


def progress_of(
    command: Command,
    fleet: FleetFacts,
    outcomes: Mapping[str, StepOutcome],
    tables: TablesSeen,
    limit_s: float,
    now_unix_s: float,
    since_unix_s: float = 0.0,
) -> Progress:
    """One look at one unfinished command. `outcomes`: the newest refusal or acceptance per worker since it began.

    `since_unix_s`: when this plane started. The limit counts from then, as nobody worked on the command before.
    """
    before, after = command.desired_before, command.desired_after
    if before is None or after is None:
        return Progress(command_id=command.command_id, steps=(), event="finish", result="nothing to change")
    changes = changes_between(before, after)
    lines = [_worker_line(w, after, fleet, outcomes.get(w), now_unix_s) for w in sorted(changes.workers, key=natural)]
    lines += [
        pool_line(Role(name), after, fleet, outcomes.get(pool_key(name)), now_unix_s)
        for name in sorted(changes.pools & after.pools.keys())
    ]
    if changes.routes:
        lines.append(_routing_line(tables, now_unix_s))
    new = tuple(line for line in lines if _last(command, line.worker_id) != (line.state, line.text))
    is_late = now_unix_s - max(command.created_unix_s, since_unix_s) > limit_s
    passed_s = limit_s if is_late else None
    stays = stays_words(command, changes, fleet)
    event, result = _ending(command, changes, lines, passed_s, now_unix_s, stays)
    if not event and command.state == CommandState.ACCEPTED:
        event = "start"
    return Progress(command_id=command.command_id, steps=new, event=event, result=result)


def departed(command: Command, departures: Iterable[Departure], now_unix_s: float) -> tuple[CommandStep, ...]:
    """A line about the sequences of each worker that is where the command wants it and that they all have left."""
    told = {step.worker_id for step in command.steps if step.state == "moved"}
    return tuple(
        CommandStep(
            at_unix_s=now_unix_s,
            text=f"{each.worker_id}: {departure_words(each)}",
            worker_id=each.worker_id,
            state="moved",
        )
        for each in departures_of(command, departures)
        if each.is_over and each.worker_id not in told and (_last(command, each.worker_id) or ("",))[0] == "done"
    )


def departed_in_all(command: Command, departures: Iterable[Departure]) -> str:
    """What left the workers of a command that has ended; "" when nothing did, or not all is known yet."""
    own = departures_of(command, departures)
    total = total_of(own)
    return departure_words(total) if total is not None and total.is_over else ""


def departures_of(command: Command, departures: Iterable[Departure]) -> tuple[Departure, ...]:
    """What this command has set going."""
    before, after = command.desired_before, command.desired_after
    if before is None or after is None:
        return ()
    found = departures_since(departures, changes_between(before, after).workers, command.created_unix_s)
    return tuple(found[worker_id] for worker_id in sorted(found, key=natural))


def superseded_by(newer: Command, older: Command) -> str:
    """Why `newer` takes over from an unfinished `older`; "" when both go on."""
    if not (newer.desired_before and newer.desired_after and older.desired_before and older.desired_after):
        return ""
    mine = changes_between(newer.desired_before, newer.desired_after)
    theirs = changes_between(older.desired_before, older.desired_after)
    same = Changes(
        roles=mine.roles & theirs.workers | mine.workers & theirs.roles,
        drained=mine.drained & theirs.drained,
        weights=mine.weights & theirs.weights,
        policy=mine.policy & theirs.policy,
    )
    if same:
        return f"by command {newer.command_id}, which changes {same.words()}"
    pools = _pools(mine, newer) & _pools(theirs, older)
    if newer.action.verb == older.action.verb == Verb.RESIZE and pools:
        return f"by command {newer.command_id}, which resizes {' and '.join(sorted(pools))} too"
    return ""


def _pools(changes: Changes, command: Command) -> set[str]:
    states = [each for each in (command.desired_before, command.desired_after) if each]
    return {each.roles[w].value for each in states for w in changes.roles if w in each.roles}


def _worker_line(
    worker_id: str, after: Desired, fleet: FleetFacts, outcome: StepOutcome | None, now_unix_s: float
) -> CommandStep:
    """Where one worker is on its way, as the journal's line about it."""
    facts = fleet.workers.get(worker_id)
    goal = words_of(after, worker_id)
    if holds(after, facts, worker_id):
        return CommandStep(at_unix_s=now_unix_s, text=f"{worker_id} is {goal}", worker_id=worker_id, state="done")
    if outcome is not None and not outcome.accepted:
        text = f"{worker_id} refused to become {goal}: {outcome.detail}"
        return CommandStep(
            at_unix_s=now_unix_s,
            text=text,
            worker_id=worker_id,
            state="running" if outcome.retry_helps else "failed",
        )
    return CommandStep(
        at_unix_s=now_unix_s, text=_underway_text(worker_id, facts, fleet, goal), worker_id=worker_id, state="running"
    )


def _underway_text(worker_id: str, facts: WorkerFacts | None, fleet: FleetFacts, goal: str) -> str:
    """No counts in it: a line is journalled once per change of state, not once per finished sequence."""
    if facts is None or not facts.alive:
        return (
            f"{worker_id} is gone: {fleet.gone.get(worker_id) or 'its process has ended'}; waiting for it to come back"
        )
    if facts.state == WorkerState.DRAINING:
        return f"{worker_id} is draining before it is {goal}"
    if facts.state in (WorkerState.STARTING, WorkerState.FAILED, WorkerState.STOPPED):
        return f"{worker_id} is {facts.state}" + (f": {facts.problem}" if facts.problem else "")
    return f"{worker_id} is on its way to {goal}"


def _routing_line(tables: TablesSeen, now_unix_s: float) -> CommandStep:
    if tables.num_gateways == 0:
        text = "no gateway is connected: the routing table waits for the next one"
        return CommandStep(at_unix_s=now_unix_s, text=text, state="done")
    if tables.num_current == tables.num_gateways:
        text = f"every connected gateway ({tables.num_gateways}) has the new routing table"
        return CommandStep(at_unix_s=now_unix_s, text=text, state="done")
    text = (
        f"the new routing table is on its way to {tables.num_gateways} gateway{'s' if tables.num_gateways > 1 else ''}"
    )
    return CommandStep(at_unix_s=now_unix_s, text=text, state="running")


def _ending(
    command: Command,
    changes: Changes,
    lines: list[CommandStep],
    passed_limit_s: float | None,
    now_unix_s: float,
    stays: str,
) -> tuple[str, str]:
    """(event, result): finished, failed, or neither yet. `passed_limit_s`: the limit, once it has passed. `stays`: what
    becomes of what is left undone."""
    if all(line.state == "done" for line in lines):
        took = max(0.0, now_unix_s - command.created_unix_s)
        routing = next((line.text for line in lines if line.worker_id is None), "")
        return "finish", (
            f"done in {took:.1f} s" + (f"; {routing}" if routing else "")
        ) if changes else "nothing to change"
    left = "; ".join(line.text for line in lines if line.state != "done")
    if all(line.state in ("done", "failed") for line in lines):
        return "fail", f"{left}. {stays}"
    if passed_limit_s is not None:
        return "fail", f"not reached within {passed_limit_s:g} s: {left}. {stays}"
    return "", ""


def stays_words(command: Command, changes: Changes, fleet: FleetFacts) -> str:
    """What becomes of a command's wish once it has failed."""
    if fleet.takes_back and changes.roles and command.who != INITIAL_WHO:
        return "It is taken back: the former roles are ordered again"
    if fleet.yields:
        return "Nothing more is ordered; undo restores the former state"
    return f"Desired stays at version {command.version_after} and the plane goes on; undo restores the former state"


def _last(command: Command, worker_id: str | None) -> tuple[str, str] | None:
    """(state, text) of the newest journal line about this worker."""
    for step in reversed(command.steps):
        if step.worker_id == worker_id and step.state not in ("planned", "moved"):
            return step.state, step.text
    return None
