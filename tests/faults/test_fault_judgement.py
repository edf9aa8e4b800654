from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from control.faults.checks import Evidence, first_difference, judge
from control.faults.events import EventDone
from control.faults.scenario import ALL_CHECKS
from control.faults.stages import Stage, worker_at
from control.traffic.client import Outcome
from control.types.commands import Command, CommandState, CommandStep
from control.types.workers import Role, WorkerState
from engine.types import Load
from tests.control.builders import command, desired, reading


def outcome(index: int = 0, **changes: Any) -> Outcome:
    values: dict[str, Any] = {"index": index, "status": 200, "text": "abcdef", "finish": "length", "output_tokens": 6}
    return Outcome(**{**values, **changes})


def evidence(**changes: Any) -> Evidence:
    """Two streams that ended as they should, on two idle workers."""
    values: dict[str, Any] = {
        "outcomes": {0: outcome(0), 1: outcome(1)},
        "expected": {0: outcome(0), 1: outcome(1)},
        "cancelled": frozenset(),
        "events": (EventDone(do="kill", at_s=0.5, target="w1"),),
        "held": {"w0": Load(kv_blocks_total=8), "w1": Load(kv_blocks_total=8)},
        "num_foreign": 0,
        "orphans": (),
        "commands": (),
        "repeated": (),
        "num_records": {0: 1, 1: 1},
        "stories": {},
        "desired_before": desired(),
        "desired_after": desired(),
        "not_converged": "",
    }
    return Evidence(**{**values, **changes})


def done(number: int = 1, **changes: Any) -> Command:
    steps = (CommandStep(at_unix_s=1.0, text="flip", worker_id="w1"),)
    values = {"command_id": number, "state": CommandState.DONE, "steps": steps, **changes}
    return command(desired(), desired(2, 2), **values)


def states(seen: Evidence) -> dict[str, str]:
    return {each.name: each.state for each in judge(ALL_CHECKS, seen)}


def test_a_run_that_lost_nothing_holds_every_check() -> None:
    assert states(evidence()) == dict.fromkeys(("events", *ALL_CHECKS), "ok")


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        ("events", {"events": (EventDone(do="kill", at_s=1.0, problem="no worker"),)}),
        ("no_errors", {"outcomes": {0: outcome(0), 1: outcome(1, status=500, error="lost")}}),
        ("same_output", {"outcomes": {0: outcome(0), 1: outcome(1, text="abcdeg")}}),
        ("same_output", {"outcomes": {0: outcome(0), 1: outcome(1, text="abcde", output_tokens=5)}}),
        ("same_output", {"expected": {0: outcome(0)}}),
        ("no_leaked_block", {"held": {"w0": Load(kv_blocks_held=1)}}),
        ("no_leaked_block", {"held": {"w0": Load(num_leased=1)}}),
        ("no_orphan", {"orphans": ("77 python",)}),
        ("one_effect", {"commands": (done(1),), "repeated": (done(2),)}),
        ("one_effect", {"commands": (done(1, steps=done().steps * 2),), "repeated": (done(1),)}),
        ("one_effect", {"commands": (done(1, state=CommandState.FAILED),), "repeated": (done(1),)}),
        ("one_record", {"num_records": {0: 1, 1: 2}}),
        ("one_record", {"num_records": {0: 1}}),
        ("converged", {"not_converged": "w1 is decode starting"}),
        ("converged", {"desired_after": desired(2, 2)}),
    ],
)
def test_each_loss_fails_its_own_check_and_no_other(check: str, changes: dict[str, Any]) -> None:
    found = states(evidence(**changes))
    assert [name for name, state in found.items() if state == "failed"] == [check]


def test_a_stream_that_was_hung_up_on_must_be_a_beginning_of_the_undisturbed_one() -> None:
    cut = {0: outcome(0), 1: outcome(1, text="abc", error="", output_tokens=0)}
    assert states(evidence(outcomes=cut, cancelled=frozenset({1})))["same_output"] == "ok"
    wrong = {0: outcome(0), 1: outcome(1, text="abx")}
    assert states(evidence(outcomes=wrong, cancelled=frozenset({1})))["same_output"] == "failed"


def test_what_workers_hold_is_not_judged_while_others_have_requests_there() -> None:
    seen = evidence(held={"w0": Load(kv_blocks_held=1)}, num_foreign=3)
    assert states(seen)["no_leaked_block"] == "unknown"


def test_evidence_shows_a_few_examples_and_counts_the_rest() -> None:
    lost = {index: outcome(index, error="lost", status=500) for index in range(9)}
    result = judge(("no_errors",), evidence(outcomes=lost, expected={}))[1]
    assert result.evidence.endswith("stream 2: 500 lost [never left a worker] and 6 more")


def test_the_first_difference_is_told_with_what_stands_there() -> None:
    assert first_difference("abx", "abcd") == "differs at character 2 of 4: 'x', undisturbed 'cd'"
    assert first_difference("ab", "abcd") == "differs at character 2 of 4: '', undisturbed 'cd'"


def at(worker_id: str, role: Role, state: WorkerState = WorkerState.READY, **load: int):
    changes = {"step_running_s": load.pop("step", None)}
    return reading(worker_id, role, state=state, load=Load(**load), **changes)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        (Stage.QUEUED, "w0"),
        (Stage.PREFILL, "w0"),
        (Stage.HANDOFF, "w0"),
        (Stage.DECODE, "w2"),
        (Stage.MIGRATING_SOURCE, "w3"),
        (Stage.MIGRATING_TARGET, "w2"),
    ],
)
def test_a_stage_means_the_worker_that_is_furthest_in_it(stage: Stage, expected: str) -> None:
    readings = [
        at("w0", Role.PREFILL, num_waiting=3, num_leased=1, step=1),
        at("w1", Role.DECODE, num_running=2, kv_blocks_reserved=2),
        at("w2", Role.DECODE, num_running=5, kv_blocks_reserved=4),
        at("w3", Role.DECODE, WorkerState.DRAINING, num_running=1, num_leased=2, kv_blocks_reserved=9),
    ]
    found = worker_at(stage, readings)
    assert found is not None
    assert found.worker_id == expected


def test_nobody_is_in_a_stage_of_which_there_is_less_than_asked() -> None:
    readings = [at("w1", Role.DECODE, num_running=2), at("w2", Role.DECODE, num_running=9)]
    assert worker_at(Stage.DECODE, readings, at_least=10) is None
    dead = [reading("w1", Role.DECODE, alive=False, load=Load(num_running=2))]
    assert worker_at(Stage.DECODE, dead) is None


def test_nobody_receives_when_nobody_leaves() -> None:
    assert worker_at(Stage.MIGRATING_TARGET, [at("w1", Role.DECODE, kv_blocks_reserved=4)]) is None


def test_a_stream_whose_record_may_have_been_only_counted_is_unknown_and_two_records_are_not() -> None:
    counts = evidence().num_records
    first = min(counts)
    seen = evidence(num_records={index: num for index, num in counts.items() if index != first})
    assert states(seen)["one_record"] == "failed"
    assert states(replace(seen, num_only_counted=9))["one_record"] == "unknown"
    assert states(evidence(num_records={**counts, first: 2}, num_only_counted=9))["one_record"] == "failed"
