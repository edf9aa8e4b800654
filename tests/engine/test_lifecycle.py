from __future__ import annotations

import pytest
from core_builders import Bench

from engine.lifecycle import (
    EVENTS,
    SERVES,
    TRANSITIONS,
    IllegalTransition,
    markdown_table,
    role_changes_markdown,
    transition,
)
from engine.types import Role, WorkerState, WorkKind
from engine.wire import Rejected


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


@pytest.mark.parametrize("row", role_changes_markdown().splitlines()[2:])
def test_the_table_of_role_changes_says_what_a_worker_does(row: str):
    """Each kind of work, begun and queued, is on a worker when it is told to change."""
    change, queued, begun, decodes, leases = (each.strip() for each in row.strip("|").split("|"))
    before, after = change.split(" -> ")
    bench = Bench(Role(before), max_batch=4, prefill_chunk_tokens=4)
    kinds = [kind for kind in (WorkKind.PREFILL, WorkKind.LOCAL) if kind in SERVES[bench.core.role]]
    if WorkKind.PREFILL in kinds:
        bench.submit("leased", prompt=[1, 2, 3, 4], kind=WorkKind.PREFILL)
        bench.step()
    if WorkKind.LOCAL in kinds:
        bench.submit("decodes", prompt=[1, 2, 3, 4], max_tokens=40)
        bench.step()
    bench.submit("begun", prompt=list(range(1, 9)), kind=kinds[0], max_tokens=8)
    bench.step()
    for kind in kinds:
        bench.submit(kind.value, prompt=[9, 8, 7], kind=kind, max_tokens=8)
    bench.core.status_changed()
    assert bench.order(
        "drain" if after == "drained" else "flip", Role(after) if after != "drained" else Role(before)
    ).ok
    status = bench.core.status_changed()
    assert status is not None

    bounced = [kind.value for kind in kinds if bench.message(Rejected, kind.value) is not None]
    assert queued == (f"{' and '.join(bounced)}: sent elsewhere" if bounced else "kept")
    assert bench.message(Rejected, "begun") is None
    assert (begun == "kept") == (not bounced)
    if WorkKind.LOCAL in kinds:
        assert decodes == ("moved" if status.leaves_decode else "kept")
        bench.core.cancel("g1", "decodes", 1, bench.now_s)
    while bench.step() is not None:
        pass
    if WorkKind.PREFILL in kinds:
        assert (leases == "waited for") == (bench.core.state is WorkerState.DRAINING)
    bench.now_s += 1000
    bench.core.expire(bench.now_s)
    assert bench.core.state is (WorkerState.DRAINED if after == "drained" else WorkerState.READY)
