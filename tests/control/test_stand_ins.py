"""When nobody is left who can serve a request to its end, prefill workers stand in, and go back afterwards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from control.facts import FleetFacts
from control.reconcile import reconcile
from control.stand_ins import effective_roles
from control.types.commands import Desired
from control.types.workers import Role, WorkerState
from tests.control.builders import NOW, desired, facts

WANTED = desired(prefill=2, decode=2)  # w0 w1 prefill, w2 w3 decode
UNASSIGNED = {"role": Role.UNASSIGNED, "state": WorkerState.UNASSIGNED}


def seen(wanted: Desired = WANTED, **changes: dict[str, Any]) -> FleetFacts:
    """All as wanted, but for these workers."""
    whole = facts(wanted)
    return replace(whole, workers={w: replace(each, **changes.get(w, {})) for w, each in whole.workers.items()})


DEAD = {"alive": False}


def test_with_one_decode_worker_left_nothing_changes() -> None:
    assert effective_roles(WANTED, seen(w2=DEAD)).desired == WANTED


@pytest.mark.parametrize(
    "loss", [DEAD, {"state": WorkerState.FAILED}, {"state": WorkerState.STOPPED}, {"is_stuck": True}]
)
def test_when_the_last_one_dies_fails_or_hangs_the_prefill_workers_serve_both_phases(loss: dict[str, Any]) -> None:
    effective = effective_roles(WANTED, seen(w2=DEAD, w3=loss))
    assert effective.desired.roles == {"w0": Role.MIXED, "w1": Role.MIXED, "w2": Role.DECODE, "w3": Role.DECODE}
    assert effective.notice == "w0, w1 serve both phases for now: no decode worker is there (w2, w3)."
    assert WANTED.roles["w0"] == Role.PREFILL  # what the operator wants stays


def test_a_connection_that_has_just_ended_counts_before_any_reading_shows_it() -> None:
    assert effective_roles(WANTED, seen(w2=DEAD), away=["w3"]).desired.roles["w0"] == Role.MIXED


def test_the_order_says_why() -> None:
    fleet = seen(w2=DEAD, w3=DEAD)
    effective = effective_roles(WANTED, fleet)
    decided = reconcile(effective.desired, fleet, {}, 5, NOW, reasons=effective.reasons)
    assert [(step.verb, step.worker_id, step.role) for step in decided.steps] == [
        ("flip", "w0", Role.MIXED),
        ("flip", "w1", Role.MIXED),
    ]
    assert {step.reason for step in decided.steps} == {"stands in: no decode worker is there (w2, w3)"}


def test_they_stand_in_until_one_is_ready_again_and_then_go_back() -> None:
    standing = {"w0": {"role": Role.MIXED}, "w1": {"role": Role.MIXED}}
    for coming in ({"state": WorkerState.STARTING}, UNASSIGNED):
        effective = effective_roles(WANTED, seen(w2=coming, w3=coming, **standing))
        assert effective.desired.roles["w0"] == Role.MIXED
    fleet = seen(w2=UNASSIGNED, **standing)  # w3 is ready
    effective = effective_roles(WANTED, fleet)
    assert effective.desired == WANTED
    steps = reconcile(effective.desired, fleet, {}, 5, NOW).steps
    assert [(step.verb, step.worker_id, step.role) for step in steps][:2] == [
        ("flip", "w0", Role.PREFILL),
        ("flip", "w1", Role.PREFILL),
    ]


def test_a_fleet_that_starts_has_no_stand_ins() -> None:
    for coming in ({"state": WorkerState.STARTING}, UNASSIGNED):
        assert effective_roles(WANTED, seen(w2=coming, w3=coming)).desired == WANTED
    nobody_yet = FleetFacts(workers={w: each for w, each in seen().workers.items() if w in ("w0", "w1")})
    assert effective_roles(WANTED, nobody_yet).desired == WANTED


def test_who_is_drained_or_dead_does_not_stand_in() -> None:
    wanted = desired(prefill=2, decode=1, drained=frozenset({"w0"}))
    assert effective_roles(wanted, seen(wanted, w2=DEAD)).desired.roles["w0"] == Role.PREFILL
    assert effective_roles(WANTED, seen(w0=DEAD, w2=DEAD, w3=DEAD)).desired.roles["w0"] == Role.PREFILL


def test_a_mixed_worker_that_lives_is_enough_and_a_pool_that_was_never_wanted_is_not_missed() -> None:
    wanted = desired(prefill=1, mixed=1, decode=1)
    assert effective_roles(wanted, seen(wanted, w2=DEAD)).desired == wanted
    assert effective_roles(wanted, seen(wanted, w1=DEAD, w2=DEAD)).desired.roles["w0"] == Role.MIXED
    only_prefill = desired(prefill=2, decode=0)
    assert effective_roles(only_prefill, seen(only_prefill)).desired == only_prefill
