"""What a scenario demands, judged on what was gathered. Pure: evidence in, one result per check out.

`unknown` is neither ok nor failed: other people's traffic hides what this run left behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from control.faults.events import EventDone
from control.traffic.client import Outcome
from control.traffic.report import fingerprint
from control.types.commands import Command, CommandState, Desired
from engine.types import Load

#: Too many requests: nothing was accepted, so nothing was lost.
REFUSED: Final = 429
#: At most so many examples in one line of evidence.
NUM_EXAMPLES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that was seen of one run. `held` is what workers hold at its end, by worker."""

    outcomes: Mapping[int, Outcome]
    expected: Mapping[int, Outcome]  # of the undisturbed run
    cancelled: frozenset[int]
    events: tuple[EventDone, ...]
    held: Mapping[str, Load]
    num_foreign: int  # requests of others in flight at the end
    orphans: tuple[str, ...]
    commands: tuple[Command, ...]  # that we sent, as they are now
    repeated: tuple[Command, ...]  # answers to sending each again under its key
    num_records: Mapping[int, int]  # by stream
    stories: Mapping[int, str]  # by stream that left a worker: from where, how and why
    desired_before: Desired
    desired_after: Desired
    not_converged: str  # what is not as desired; "" when all is
    num_only_counted: int = 0  # requests of this time, ours among them, of which no record is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    name: str
    state: Literal["ok", "failed", "unknown"]
    evidence: str


def judge(names: Sequence[str], seen: Evidence) -> tuple[CheckResult, ...]:
    """The checks asked for, and always whether every event happened as it was meant to."""
    return (_events(seen), *(_CHECKS[name](seen) for name in names))


def _result(name: str, problems: Sequence[str], otherwise: str) -> CheckResult:
    if not problems:
        return CheckResult(name=name, state="ok", evidence=otherwise)
    more = f" and {len(problems) - NUM_EXAMPLES} more" if len(problems) > NUM_EXAMPLES else ""
    return CheckResult(name=name, state="failed", evidence="; ".join(problems[:NUM_EXAMPLES]) + more)


def _events(seen: Evidence) -> CheckResult:
    problems = [f"{each.do}: {each.problem}" for each in seen.events if each.problem]
    return _result("events", problems, f"{len(seen.events)} happened as they were meant to")


def _no_errors(seen: Evidence) -> CheckResult:
    refused = [each for each in seen.outcomes.values() if each.status == REFUSED]
    wanted = [each for index, each in seen.outcomes.items() if index not in seen.cancelled and each.status != REFUSED]
    stories = seen.stories
    problems = [
        f"stream {each.index}: {each.status} {each.error} [{stories.get(each.index, 'never left a worker')}]"
        for each in wanted
        if each.error
    ]
    missing = [f"stream {index} was never sent" for index in seen.expected if index not in seen.outcomes]
    told = f", {len(refused)} refused with 429 before they were accepted" if refused else ""
    return _result("no_errors", problems + missing, f"{len(wanted)} streams, 0 errors{told}")


def _same_output(seen: Evidence) -> CheckResult:
    problems = []
    for index, ours in sorted(seen.outcomes.items()):
        theirs = seen.expected.get(index)
        if ours.status == REFUSED:
            continue
        if theirs is None:
            problems.append(f"stream {index} has no undisturbed run")
        elif index in seen.cancelled:
            if not theirs.text.startswith(ours.text):
                problems.append(f"stream {index}, hung up on: {first_difference(ours.text, theirs.text)}")
        elif not ours.error and fingerprint(ours) != fingerprint(theirs):
            problems.append(f"stream {index}: {first_difference(ours.text, theirs.text)}")
    return _result("same_output", problems, f"{len(seen.outcomes)} outputs equal the undisturbed run")


def first_difference(ours: str, theirs: str) -> str:
    """Where two texts part, in words."""
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    return f"differs at character {at} of {len(theirs)}: {ours[at : at + 20]!r}, undisturbed {theirs[at : at + 20]!r}"


def _no_leaked_block(seen: Evidence) -> CheckResult:
    problems = [
        f"{worker_id} holds {load.kv_blocks_held} blocks, reserves {load.kv_blocks_reserved}, "
        f"leases {load.num_leased}, runs {load.num_running}"
        for worker_id, load in sorted(seen.held.items())
        if load.kv_blocks_held or load.kv_blocks_reserved or load.num_leased or load.num_running or load.num_waiting
    ]
    if problems and seen.num_foreign:
        told = f"{seen.num_foreign} requests of others run: what is held may be theirs"
        return CheckResult(name="no_leaked_block", state="unknown", evidence=told)
    return _result("no_leaked_block", problems, f"0 blocks held, reserved or leased on {len(seen.held)} workers")


def _no_orphan(seen: Evidence) -> CheckResult:
    return _result("no_orphan", [f"process {each}" for each in seen.orphans], "0 processes outside the recorded trees")


def _one_effect(seen: Evidence) -> CheckResult:
    """Each command has one id under its key, ended once, and did each of its steps once."""
    problems = []
    for first, again in zip(seen.commands, seen.repeated, strict=True):
        if again.command_id != first.command_id:
            problems.append(f"command {first.command_id} had a second effect as command {again.command_id}")
        done = Counter(step.worker_id for step in first.steps if step.state == "done" and step.worker_id)
        problems += [
            f"command {first.command_id} moved {worker_id} {count} times"
            for worker_id, count in done.items()
            if count > 1
        ]
    problems += [
        f"command {each.command_id} {each.action.verb} is {each.state}: {each.result}"
        for each in seen.commands
        if each.state not in (CommandState.DONE, CommandState.SUPERSEDED)
    ]
    return _result("one_effect", problems, f"{len(seen.commands)} commands, each carried out once")


def _one_record(seen: Evidence) -> CheckResult:
    """A client that hung up before it had any answer may not have been heard of at all."""
    missing = [
        index
        for index, ours in sorted(seen.outcomes.items())
        if not seen.num_records.get(index, 0) and not (index in seen.cancelled and not ours.status)
    ]
    problems = [f"stream {index} has {num} records" for index, num in sorted(seen.num_records.items()) if num > 1]
    if missing and not problems and seen.num_only_counted:
        told = (
            f"{len(missing)} streams have no record, but {seen.num_only_counted} requests of this time are only counted"
        )
        return CheckResult(name="one_record", state="unknown", evidence=told)
    problems += [f"stream {index} has 0 records" for index in missing]
    return _result("one_record", problems, f"{len(seen.outcomes)} requests, one record each")


def _converged(seen: Evidence) -> CheckResult:
    problems = [seen.not_converged] if seen.not_converged else []
    before, after = seen.desired_before, seen.desired_after
    problems += [
        f"{name} was not restored: {getattr(before, name)} became {getattr(after, name)}"
        for name in ("roles", "drained", "weights", "policy")
        if getattr(before, name) != getattr(after, name)
    ]
    return _result("converged", problems, "every worker is as desired, and what is desired was restored")


_CHECKS: Final[Mapping[str, Callable[[Evidence], CheckResult]]] = {
    "no_errors": _no_errors,
    "same_output": _same_output,
    "no_leaked_block": _no_leaked_block,
    "no_orphan": _no_orphan,
    "one_effect": _one_effect,
    "one_record": _one_record,
    "converged": _converged,
}
