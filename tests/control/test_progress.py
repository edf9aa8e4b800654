from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from control.facts import FleetFacts
from control.fleets.base import StepOutcome
from control.progress import Progress, TablesSeen, departed, departed_in_all, progress_of, superseded_by
from control.types.commands import Action, Command, CommandState, CommandStep, Departure, Desired, Verb
from control.types.workers import Role, WorkerState
from tests.control.builders import NOW, command, desired, drain, facts, flip, policy, resize, worker

BEFORE = desired(1, 3)
AFTER = replace(BEFORE, version=2, roles={**BEFORE.roles, "w1": Role.PREFILL})
NONE = TablesSeen(num_gateways=0, num_current=0)


def look(
    each: Command,
    fleet: FleetFacts,
    outcomes: dict[str, StepOutcome] | None = None,
    tables: TablesSeen = NONE,
    after_s: float = 1.0,
) -> Progress:
    return progress_of(each, fleet, outcomes or {}, tables, 60.0, NOW + after_s)


def test_a_command_is_done_when_it_is_seen() -> None:
    seen = look(command(BEFORE, AFTER), facts(AFTER))
    assert (seen.event, seen.result) == ("finish", "done in 1.0 s")
    assert [(s.worker_id, s.state, s.text) for s in seen.steps] == [("w1", "done", "w1 is prefill, ready")]


def test_a_drain_is_journalled_once() -> None:
    draining = worker("w1", Role.DECODE, state=WorkerState.DRAINING, num_running=2)
    fleet = FleetFacts(workers={**facts(BEFORE).workers, "w1": draining})
    first = look(command(BEFORE, AFTER), fleet)
    assert (first.event, [s.text for s in first.steps]) == ("start", ["w1 is draining before it is prefill, ready"])
    running = command(BEFORE, AFTER, state=CommandState.RUNNING, steps=first.steps)
    again = look(running, fleet)
    assert (again.event, again.steps) == ("", ())


def test_a_command_that_takes_too_long_fails_and_says_what_is_left() -> None:
    draining = worker("w1", Role.DECODE, state=WorkerState.DRAINING, num_running=2)
    seen = look(command(BEFORE, AFTER), FleetFacts(workers={"w1": draining}), after_s=61.0)
    assert seen.event == "fail"
    assert seen.result.startswith("not reached within 60 s: w1 is draining before it is prefill, ready. Desired stays")


def test_the_time_that_no_plane_was_there_does_not_count_against_a_command() -> None:
    draining = FleetFacts(workers={"w1": worker("w1", Role.DECODE, state=WorkerState.DRAINING, num_running=2)})
    each = command(BEFORE, AFTER, state=CommandState.RUNNING)
    back = NOW + 3600.0
    for after_s, event in ((1.0, ""), (61.0, "fail")):
        assert progress_of(each, draining, {}, NONE, 60.0, back + after_s, since_unix_s=back).event == event


def test_a_refusal_for_good_fails_the_command_and_another_one_waits() -> None:
    for retry_helps, event in ((False, "fail"), (True, "start")):
        refused = {"w1": StepOutcome(accepted=False, detail="no such role", retry_helps=retry_helps)}
        seen = look(command(BEFORE, AFTER), facts(BEFORE), refused)
        assert seen.event == event
        assert seen.steps[0].text == "w1 refused to become prefill, ready: no such role"


def test_a_worker_that_is_gone_is_waited_for() -> None:
    seen = look(command(BEFORE, AFTER), FleetFacts(gone={"w1": "killed"}))
    assert seen.event == "start"
    assert seen.steps[0].text == "w1 is gone: killed; waiting for it to come back"


@pytest.mark.parametrize(
    ("tables", "event"),
    [
        (TablesSeen(num_gateways=2, num_current=1), "start"),
        (TablesSeen(num_gateways=2, num_current=2), "finish"),
        (NONE, "finish"),
    ],
)
def test_routing_is_done_when_every_connected_gateway_has_the_table(tables: TablesSeen, event: str) -> None:
    after = replace(BEFORE, version=2, policy=policy(remote_share=0.5))
    seen = look(command(BEFORE, after), facts(BEFORE), tables=tables)
    assert seen.event == event
    if tables is NONE:
        assert "no gateway is connected" in seen.result


def test_a_command_that_changes_nothing_is_done_at_once() -> None:
    seen = look(command(BEFORE, BEFORE), facts(BEFORE))
    assert (seen.event, seen.result) == ("finish", "nothing to change")


def newer(before: Desired, after: Desired, action: Action) -> Command:
    return command(before, after, action, command_id=2)


def test_a_newer_command_on_the_same_worker_takes_over() -> None:
    drained = replace(AFTER, version=3, drained=frozenset({"w1"}))
    assert "command 2" in superseded_by(newer(AFTER, drained, drain("w1")), command(BEFORE, AFTER))
    other = replace(AFTER, version=3, drained=frozenset({"w2"}))
    assert superseded_by(newer(AFTER, other, drain("w2")), command(BEFORE, AFTER)) == ""


def test_a_newer_resize_of_the_same_pool_takes_over_and_a_flip_of_another_worker_does_not() -> None:
    more = replace(AFTER, version=3, roles={**AFTER.roles, "w2": Role.PREFILL})
    assert superseded_by(newer(AFTER, more, resize(prefill=3)), command(BEFORE, AFTER))
    assert superseded_by(newer(AFTER, more, flip("w2", Role.PREFILL)), command(BEFORE, AFTER)) == ""


def test_a_newer_routing_value_takes_over_only_that_value() -> None:
    half = replace(BEFORE, version=2, policy=policy(remote_share=0.5))
    older = command(BEFORE, half, Action(verb=Verb.SET_ROUTING, policy={"remote_share": 0.5}))
    none = replace(half, version=3, policy=policy(remote_share=0.0))
    assert superseded_by(newer(half, none, Action(verb=Verb.SET_ROUTING, policy={"remote_share": 0.0})), older)
    size = replace(half, version=3, policy=policy(remote_share=0.5, min_fleet_devices=3))
    assert not superseded_by(newer(half, size, Action(verb=Verb.SET_ROUTING, policy={"min_fleet_devices": 3})), older)


# --- what leaves a worker --------------------------------------------------------------------------------------------


def departure(worker_id: str = "w1", **changes: Any) -> Departure:
    """11 sequences, all moved."""
    values: dict[str, Any] = {"kind": "leaves", "since_unix_s": NOW + 0.1, "num_sequences": 11, "num_moved": 11}
    values |= {"num_bytes": 3 * 2**20, "stall_s": 0.061, "is_over": True}
    return Departure(**{"worker_id": worker_id, **values, **changes})


REACHED = CommandStep(at_unix_s=NOW + 1, text="w1 is prefill, ready", worker_id="w1")


def test_what_left_a_worker_is_one_line_when_it_has_arrived() -> None:
    each = command(BEFORE, AFTER, state=CommandState.RUNNING)
    assert departed(each, [departure()], NOW + 1) == ()
    there = replace(each, steps=(REACHED,))
    assert departed(there, [departure(is_over=False)], NOW + 1) == ()
    (line,) = departed(there, [departure()], NOW + 2)
    assert line.text == "w1: 11 of 11 sequences moved, 3 MiB, worst stall 61 ms"
    assert departed(replace(there, steps=(REACHED, line)), [departure()], NOW + 3) == ()


def test_a_line_about_sequences_does_not_make_the_worker_a_new_story() -> None:
    line = CommandStep(at_unix_s=NOW, text="w1: 11 of 11 sequences moved", worker_id="w1", state="moved")
    again = look(command(BEFORE, AFTER, state=CommandState.RUNNING, steps=(REACHED, line)), facts(AFTER))
    assert again.steps == ()


def test_what_left_before_the_command_or_by_a_death_is_not_its_doing() -> None:
    there = command(BEFORE, AFTER, steps=(REACHED,))
    other = [departure(since_unix_s=NOW - 5), departure(kind="lost"), departure("w9")]
    assert departed(there, other, NOW + 2) == ()
    assert departed_in_all(there, other) == ""


def test_the_sum_of_a_command_is_told_when_all_of_it_is_known() -> None:
    after = replace(AFTER, roles={**AFTER.roles, "w2": Role.PREFILL})
    each = command(BEFORE, after, state=CommandState.DONE)
    both = [departure(), departure("w2", num_sequences=4, num_moved=2, num_recomputed=1, stall_s=0.09)]
    assert departed_in_all(each, [both[0], replace(both[1], is_over=False)]) == ""
    assert departed_in_all(each, both) == (
        "13 of 15 sequences moved, 6 MiB, worst stall 90 ms, 1 computed anew elsewhere, 1 ended there"
    )
