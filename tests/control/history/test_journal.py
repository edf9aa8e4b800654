"""Commands, desired states and fences: durable, once, in order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from control.errors import NotFound, StaleVersion
from control.history.store import History
from control.types.commands import Action, Command, CommandState, CommandStep, Desired, Verb
from control.types.routing import RoutingPolicy
from control.types.workers import Role

DESIRED = Desired(
    version=1,
    roles={"w0": Role.PREFILL, "w1": Role.DECODE},
    drained=frozenset({"w1"}),
    weights={"w0": 0.5},
    policy=RoutingPolicy(min_fleet_devices=2),
)


def draft(base_version: int = 0, **changes: Any) -> Command:
    command = Command(
        command_id=0,
        fleet_id="f",
        action=Action(verb=Verb.RESIZE, prefill=1, decode=1),
        state=CommandState.ACCEPTED,
        who="ann",
        why="more prefill",
        idempotency_key="",
        base_version=base_version,
        version_after=base_version + 1,
        created_unix_s=100.0,
        updated_unix_s=100.0,
        steps=(CommandStep(at_unix_s=100.0, text="flip w0", worker_id="w0", state="planned"),),
        desired_before=replace(DESIRED, version=base_version),
        desired_after=replace(DESIRED, version=base_version + 1),
    )
    return replace(command, **changes)


def test_a_new_fleet_has_no_desired_state(history: History) -> None:
    assert history.load_desired("f") is None
    assert history.commands("f", 10) == []


def test_a_command_and_its_desired_state_come_back_as_they_were_written(history: History) -> None:
    recorded = history.record_command(draft())
    assert recorded == replace(draft(), command_id=recorded.command_id)
    assert history.command(recorded.command_id) == recorded
    assert history.load_desired("f") == DESIRED
    assert history.load_desired("g") is None


def test_every_version_of_the_desired_state_is_kept(history: History) -> None:
    history.record_command(draft(0))
    history.record_command(draft(1, desired_after=replace(DESIRED, version=2, weights={})))
    assert history.desired_at("f", 1) == DESIRED
    assert history.desired_at("f", 2) == history.load_desired("f") == replace(DESIRED, version=2, weights={})
    assert history.desired_at("f", 3) is None


def test_of_two_commands_on_one_version_the_second_is_stale(history: History) -> None:
    history.record_command(draft(0))
    with pytest.raises(StaleVersion, match="version 1, this command was based on 0"):
        history.record_command(draft(0, who="bob"))
    assert len(history.commands("f", 10)) == 1


def test_a_command_that_changes_nothing_makes_no_version(history: History) -> None:
    history.record_command(draft(0))
    history.record_command(draft(1, version_after=1))
    assert history.load_desired("f") == DESIRED
    assert len(history.commands("f", 10)) == 2


def test_a_repeated_key_of_one_principal_is_the_same_command(history: History) -> None:
    first = history.record_command(draft(0, idempotency_key="k"))
    assert history.record_command(draft(1, idempotency_key="k", why="again")) == first
    assert history.find_by_idempotency("k", "ann") == first
    assert history.find_by_idempotency("k", "bob") is None
    other = history.record_command(draft(1, idempotency_key="k", who="bob"))
    assert other.command_id != first.command_id


def test_commands_without_a_key_are_commands_of_their_own(history: History) -> None:
    first, second = history.record_command(draft(0)), history.record_command(draft(1))
    assert first.command_id < second.command_id
    assert history.find_by_idempotency("", "ann") is None


def test_the_journal_grows_and_an_empty_result_leaves_the_result(history: History) -> None:
    command_id = history.record_command(draft()).command_id
    step = CommandStep(at_unix_s=101.5, text="w0 ready as prefill", worker_id="w0")
    history.update_command(command_id, CommandState.RUNNING, step, "half way")
    history.update_command(command_id, CommandState.DONE, None, "")
    found = history.command(command_id)
    assert found is not None
    assert (found.state, found.result, found.updated_unix_s) == (CommandState.DONE, "half way", 101.5)
    assert found.steps == (*draft().steps, step)


def test_an_unknown_command_is_not_found(history: History) -> None:
    assert history.command(7) is None
    with pytest.raises(NotFound, match="no command 7"):
        history.update_command(7, CommandState.DONE, None, "")


def test_commands_are_paged_newest_first_and_filtered(history: History) -> None:
    ids = [history.record_command(draft(version)).command_id for version in range(4)]
    history.update_command(ids[1], CommandState.FAILED, None, "no")
    assert [each.command_id for each in history.commands("f", 2)] == [ids[3], ids[2]]
    assert [each.command_id for each in history.commands("f", 9, before_id=ids[2])] == [ids[1], ids[0]]
    assert [each.command_id for each in history.commands("f", 9, None, (CommandState.FAILED,))] == [ids[1]]
    assert [each.command_id for each in history.unfinished_commands("f")] == [ids[0], ids[2], ids[3]]
    assert history.commands("other", 9) == []
    at = [each.created_unix_s for each in reversed(history.commands("f", 9))]
    assert [each.created_unix_s for each in history.commands("f", 9, None, (), at[0], at[0])] == []
    assert len(history.commands("f", 9, None, (), at[0], at[-1] + 1)) == 4
    assert history.commands("f", 9, None, (), at[-1] + 1, None) == []


def test_an_undo_marks_what_it_undid(history: History) -> None:
    first = history.record_command(draft(0))
    undo = history.record_command(draft(1, undo_of=first.command_id))
    found = history.command(first.command_id)
    assert found is not None
    assert found.undone_by == undo.command_id
    assert undo.undo_of == first.command_id
