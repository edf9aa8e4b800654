"""Which roles a worker held between two looks: from what its meter says of each change, however many there were. Pure.

A change has two times. As the clock said then: that is where the role interval begins, whatever the clock is set to
later. And on the clock of this reading: that is how the time between the two looks is divided among the roles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from control.points import WorkerCursor
from control.types.workers import Role, RoleInterval, WorkerState
from engine.readings import MeterReading, RoleChange

_ALWAYS: Final = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A role and state from `since_unix_s` on, which is `start_s` on the clock of the reading."""

    role: Role
    state: WorkerState
    since_unix_s: float
    start_s: float
    reason: str = ""


def held_roles(reading: MeterReading, before: WorkerCursor | None) -> list[Held]:
    """From the one at the last look, `before` of the same life, to the one now; oldest first, at least one.

    Without a look before, the first known one counts from the beginning.
    """
    found = [_held(change, reading) for change in _new_changes(reading, before)]
    now = Held(
        role=reading.role,
        state=reading.state,
        since_unix_s=reading.role_since_unix_s,
        start_s=reading.role_since_unix_s,
        reason=reading.reason,
    )
    if before is not None:
        is_same = (before.role, before.state, before.role_since_unix_s) == (now.role, now.state, now.since_unix_s)
        found = [_of_cursor(before), *(found or ([] if is_same else [now]))]
    elif not found:
        found = [now]
    return [replace(found[0], start_s=_ALWAYS), *found[1:]]


def _new_changes(reading: MeterReading, before: WorkerCursor | None) -> tuple[RoleChange, ...]:
    if before is not None and before.anchor_s is None:  # of a plane that did not count changes
        return tuple(each for each in reading.changes if each.since_unix_s > before.role_since_unix_s)
    num_new = reading.num_changes - (before.num_changes if before else 0)
    return reading.changes[-num_new:] if num_new > 0 else ()


def _held(change: RoleChange, reading: MeterReading) -> Held:
    assert reading.anchor_s is not None, "who tells its changes tells its clock"
    return Held(
        role=change.role,
        state=change.state,
        since_unix_s=change.since_unix_s,
        start_s=change.since_mono_s + reading.anchor_s,
        reason=change.reason,
    )


def _of_cursor(before: WorkerCursor) -> Held:
    return Held(role=before.role, state=before.state, since_unix_s=before.role_since_unix_s, start_s=_ALWAYS)


def divided(held: list[Held], start_s: float, end_s: float) -> list[tuple[Role, float, float]]:
    """[start, end) divided among the roles."""
    bounds = [min(end_s, max(start_s, each.start_s)) for each in held[1:]]
    return [
        (each.role, begin, end)
        for each, begin, end in zip(held, [start_s, *bounds], [*bounds, end_s], strict=True)
        if begin < end
    ]


def intervals(worker_id: str, epoch: int, held: list[Held], end_unix_s: float | None) -> list[RoleInterval]:
    """One of each; the last one ends at `end_unix_s`, None: not yet. Of two that began together the later counts."""
    found = []
    for each, after in zip(held, [*held[1:], None], strict=True):
        until = end_unix_s if after is None else after.since_unix_s
        if after is None or after.since_unix_s != each.since_unix_s:
            found.append(
                RoleInterval(
                    worker_id=worker_id,
                    epoch=epoch,
                    role=each.role,
                    state=each.state,
                    start_unix_s=each.since_unix_s,
                    end_unix_s=None if until is None else max(until, each.since_unix_s),
                    reason=each.reason,
                )
            )
    return found
