"""What one reading adds to a worker's counters, and when it was done: exact, whatever the ring of steps still holds.

Counters are the truth, step records say when. What no record explains was done before the oldest record that is left:
it is spread over that time and marked. A record that lies off the grid (an earlier version's worker, an engine that is
attached) is rounded down, and what that leaves goes to the last one. So the pieces of a reading are never negative and
add up to what the counters grew by, always. Not decided here: which second gets what (`control.spreading`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from control.points import WorkerCursor
from control.spreading import Slots
from control.types.workers import Phase, Role
from engine.meter import cursor_records
from engine.quanta import COUNTS, SECONDS, on_grid, work_quanta
from engine.readings import DeviceInfo, MeterReading, PhaseCounters, StepRecord

#: What is counted, in the order of all amounts here.
COLUMNS: Final = ("busy_s", "cpu_s", "flops", "bytes", "tokens", "steps")
_STEPS: Final = COLUMNS.index("steps")
_NOTHING: Final = PhaseCounters()
_Left = dict[tuple[Role, Phase], list[float]]


@dataclass(slots=True)
class Work:
    """A piece of what was done. `is_fallback`: no step record says when, within [start, end)."""

    role: Role
    phase: Phase
    start_unix_s: float
    end_unix_s: float
    amounts: list[float]
    is_fallback: bool = False


def quanta_of(device: DeviceInfo) -> tuple[float, ...]:
    """Of each column."""
    work = work_quanta(device)
    return (SECONDS, SECONDS, work.flops, work.bytes, COUNTS, COUNTS)


def counted(reading: MeterReading, before: Mapping[str, PhaseCounters]) -> dict[str, PhaseCounters]:
    """The counters on the grid. None is ever less than what was counted of this life before."""
    quanta, found = quanta_of(reading.device), dict(before)
    for key, counters in reading.counters.items():
        earlier = before.get(key, _NOTHING)
        found[key] = PhaseCounters(
            **{
                name: max(getattr(earlier, name), on_grid(getattr(counters, name), quantum))
                for name, quantum in zip(COLUMNS, quanta, strict=True)
            }
        )
    return found


def growth(
    reading: MeterReading, before: WorkerCursor | None, now: Mapping[str, PhaseCounters], between: Slots
) -> list[Work]:
    """What was done between two looks. `before` and `now`: what is counted."""
    steps = _new_steps(reading, before)
    left = _grown(now, before.counters if before else {})
    found, last = _of_steps(steps, left, quanta_of(reading.device))
    oldest_s = min((step.start_unix_s for step in steps), default=between.end_s)
    for key, rest in left.items():
        if not any(rest):
            continue
        if key in last and rest[_STEPS] == 0:
            last[key].amounts = [one + more for one, more in zip(last[key].amounts, rest, strict=True)]
        else:
            until = max(between.start_s, min(between.end_s, oldest_s))
            found.append(Work(*key, between.start_s, until, rest, is_fallback=True))
    return found


def _new_steps(reading: MeterReading, before: WorkerCursor | None) -> list[StepRecord]:
    """Records that the cursor has not counted; a reading may bring older ones again."""
    first = cursor_records(reading.next_cursor) - len(reading.steps)
    seen = before.num_records if before else 0
    return reading.steps[max(0, seen - first) :]


def _grown(now: Mapping[str, PhaseCounters], before: Mapping[str, PhaseCounters]) -> _Left:
    found: _Left = {}
    for key, counters in now.items():
        earlier = before.get(key, _NOTHING)
        if counters != earlier:
            role, _, phase = key.partition("/")
            amounts = [getattr(counters, name) - getattr(earlier, name) for name in COLUMNS]
            found[Role(role), Phase(phase)] = amounts
    return found


def _of_steps(
    steps: Sequence[StepRecord], left: _Left, quanta: Sequence[float]
) -> tuple[list[Work], dict[tuple[Role, Phase], Work]]:
    """A piece for each step, never more than is left, which shrinks by it; and the last of each role and phase."""
    found: list[Work] = []
    last: dict[tuple[Role, Phase], Work] = {}
    for step in steps:
        key = step.role, step.phase
        rest = left.get(key)
        if rest is None:
            continue
        busy_s = step.end_unix_s - step.start_unix_s
        amounts = [busy_s, step.cpu_s, step.flops, step.bytes, step.tokens, 1.0]
        for index, (amount, quantum) in enumerate(zip(amounts, quanta, strict=True)):
            amounts[index] = min(on_grid(amount, quantum), rest[index])
            rest[index] -= amounts[index]
        last[key] = Work(*key, step.start_unix_s, step.end_unix_s, amounts)
        found.append(last[key])
    return found, last
