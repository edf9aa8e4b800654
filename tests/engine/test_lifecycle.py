from __future__ import annotations

import pytest

from engine.lifecycle import EVENTS, SERVES, TRANSITIONS, IllegalTransition, markdown_table, transition
from engine.types import Role, WorkerState, WorkKind


def test_every_state_has_a_row_and_every_event_a_meaning():
    assert set(TRANSITIONS) == set(WorkerState)
    assert {event for moves in TRANSITIONS.values() for event in moves} == set(EVENTS)


def test_a_move_outside_the_table_names_state_and_event():
    with pytest.raises(IllegalTransition, match=r"stopped takes no 'open'"):
        transition(WorkerState.STOPPED, "open")


@pytest.mark.parametrize("state", list(WorkerState))
def test_any_worker_can_be_stopped(state):
    assert transition(state, "stop") is WorkerState.STOPPED


def test_the_docs_table_has_one_row_per_state():
    rows = markdown_table().splitlines()
    assert [row.split(" | ")[0].strip("| ") for row in rows[2 : 2 + len(WorkerState)]] == list(WorkerState)
    assert "| ready | – | ready | draining | drained |" in markdown_table()


def test_a_decode_worker_serves_whole_requests_and_a_prefill_worker_does_not():
    assert WorkKind.LOCAL in SERVES[Role.DECODE]
    assert SERVES[Role.PREFILL] == {WorkKind.PREFILL}
    assert SERVES[Role.MIXED] == set(WorkKind)
