from __future__ import annotations

from dataclasses import replace

import pytest

from control.facts import FleetFacts, WorkerFacts
from control.reconcile import REPEAT_S, holds, reconcile
from control.types.commands import Desired
from control.types.workers import Role, WorkerState
from tests.control.builders import NOW, desired, facts, worker

D, P, U, M = Role.DECODE, Role.PREFILL, Role.UNASSIGNED, Role.MIXED
READY, DRAINING, DRAINED = WorkerState.READY, WorkerState.DRAINING, WorkerState.DRAINED


def one(role: Role, drained: bool = False) -> Desired:
    return Desired(version=7, roles={"w0": role}, drained=frozenset({"w0"} if drained else ()))


def seen(role: Role, state: WorkerState, **changes: object) -> FleetFacts:
    return FleetFacts(workers={"w0": worker("w0", role, state=state, **changes)})


@pytest.mark.parametrize(
    ("wanted", "role", "state", "verbs"),
    [
        (one(D), U, WorkerState.UNASSIGNED, ["place"]),
        (one(D), D, READY, []),
        (one(P), D, READY, ["flip"]),
        (one(D, drained=True), D, READY, ["drain"]),
        (one(D, drained=True), D, DRAINED, []),
        (one(D, drained=True), U, WorkerState.UNASSIGNED, ["place", "drain"]),
        (one(D), D, DRAINED, ["undrain"]),
        (one(D), D, DRAINING, ["flip", "undrain"]),
        (one(P), D, DRAINED, ["flip", "undrain"]),
        (one(U), D, READY, ["drain"]),
        (one(U), D, DRAINED, []),
        (one(U), U, WorkerState.UNASSIGNED, []),
        (one(D), D, WorkerState.STARTING, []),
        (one(P), D, WorkerState.FAILED, []),
    ],
)
def test_orders_lead_from_what_is_seen_to_what_is_desired(
    wanted: Desired, role: Role, state: WorkerState, verbs: list[str]
) -> None:
    decided = reconcile(wanted, seen(role, state), {}, 5, NOW)
    assert [step.verb for step in decided.steps] == verbs
    assert all(step.fence == 5 for step in decided.steps)


def test_a_drain_that_is_under_way_is_not_ordered_again() -> None:
    first = reconcile(one(P), seen(D, READY), {}, 5, NOW)
    later = reconcile(one(P), seen(D, DRAINING), first.ordered, 5, NOW + 100)
    assert not later.steps
    assert later.ordered == first.ordered


def test_an_order_without_effect_is_repeated_after_a_while() -> None:
    first = reconcile(one(P), seen(D, READY), {}, 5, NOW)
    assert not reconcile(one(P), seen(D, READY), first.ordered, 5, NOW + REPEAT_S - 1).steps
    assert reconcile(one(P), seen(D, READY), first.ordered, 5, NOW + REPEAT_S).steps


def test_a_restarted_worker_is_ordered_again_at_once() -> None:
    first = reconcile(one(P), seen(D, READY), {}, 5, NOW)
    again = reconcile(one(P), seen(U, WorkerState.UNASSIGNED, epoch=2), first.ordered, 5, NOW + 0.1)
    assert [step.verb for step in again.steps] == ["place"]


def test_a_flip_that_is_taken_back_is_countermanded_at_once() -> None:
    first = reconcile(one(P), seen(D, READY), {}, 5, NOW)
    back = reconcile(one(D), seen(D, DRAINING), first.ordered, 5, NOW + 0.1)
    assert [step.verb for step in back.steps] == ["flip", "undrain"]


def test_what_is_gone_gets_no_order() -> None:
    assert not reconcile(one(P), seen(D, READY, alive=False), {}, 5, NOW).steps


def test_a_fleet_as_desired_gets_no_orders_and_each_worker_holds() -> None:
    state = desired(1, 2, spare=1)
    fleet = facts(state)
    assert not reconcile(state, fleet, {}, 1, NOW).steps
    assert all(holds(state, each, w) for w, each in fleet.workers.items())


def test_a_worker_that_desired_does_not_know_is_drained() -> None:
    stranger = FleetFacts(workers={"x": worker("x", M)})
    assert [step.verb for step in reconcile(desired(), stranger, {}, 1, NOW).steps] == ["drain"]


def test_a_worker_that_is_not_there_does_not_hold() -> None:
    gone: WorkerFacts = replace(worker("w0", D), alive=False)
    assert not holds(one(D), gone, "w0")
    assert not holds(one(D), None, "w0")


def test_only_so_many_workers_leave_what_they_serve_at_a_time_and_the_rest_follow() -> None:
    """Every round obeys the limit, and in the end all have arrived: 6 moves, 2 at a time, are 3 rounds."""
    wanted, fleet = desired(7, 1), facts(desired(1, 7))
    ordered, rounds = {}, 0
    while True:
        decided = reconcile(wanted, fleet, ordered, 5, NOW + rounds, max_moves=2)
        if not decided.steps:
            break
        ordered, rounds = decided.ordered, rounds + 1
        flipped = [step.worker_id for step in decided.steps]
        assert len(flipped) == 2
        draining = {w: replace(fleet.workers[w], state=DRAINING) for w in flipped}
        busy = FleetFacts(workers={**fleet.workers, **draining})
        assert not reconcile(wanted, busy, ordered, 5, NOW + rounds, max_moves=2).steps
        fleet = FleetFacts(workers={**fleet.workers, **{w: worker(w, P) for w in flipped}})
    assert rounds == 3
    assert all(holds(wanted, each, w) for w, each in fleet.workers.items())


def test_a_drain_just_ordered_counts_as_a_move_and_one_that_is_taken_back_needs_no_turn() -> None:
    closed = desired(1, 3, drained=frozenset({"w1", "w2"}))
    first = reconcile(closed, facts(desired(1, 3)), {}, 5, NOW, max_moves=1)
    assert [step.worker_id for step in first.steps] == ["w1"]
    assert not reconcile(closed, facts(desired(1, 3)), first.ordered, 5, NOW + 1, max_moves=1).steps
    before = facts(desired(1, 3)).workers
    draining = FleetFacts(workers={**before, "w1": replace(before["w1"], state=DRAINING)})
    back = reconcile(desired(1, 3), draining, first.ordered, 5, NOW + 1, max_moves=1)
    assert [(step.worker_id, step.verb) for step in back.steps] == [("w1", "flip"), ("w1", "undrain")]


def test_the_limit_does_not_hold_back_workers_that_serve_nothing_yet() -> None:
    fleet = FleetFacts(workers={w: worker(w, U) for w in ("w0", "w1", "w2", "w3")})
    decided = reconcile(desired(1, 3), fleet, {}, 5, NOW, max_moves=1)
    assert [step.verb for step in decided.steps] == ["place"] * 4
