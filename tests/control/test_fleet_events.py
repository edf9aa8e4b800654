"""What happened, from readings and records: a life is told once, moves of one second and worker are one event."""

from __future__ import annotations

from typing import Any

from control.fleet_events import added, life_events, move_events
from control.fleets.base import WorkerLife
from control.points import WorkerCursor
from control.types.events import FleetEvent
from control.types.requests import RequestMove
from control.types.workers import Role, WorkerState
from tests.control.builders import NOW, reading
from tests.control.records import record


def cursor(**changes: Any) -> WorkerCursor:
    """w0 in its first life, last heard of at NOW."""
    values: dict[str, Any] = {
        "epoch": 1,
        "num_records": 0,
        "counters": {},
        "histograms": {},
        "known_until_unix_s": NOW,
        "role": Role.DECODE,
        "state": WorkerState.READY,
        "role_since_unix_s": NOW - 50,
        "device_key": "d",
        "open": True,
    }
    return WorkerCursor(**{**values, **changes})


def told(found: list[FleetEvent]) -> list[tuple[str, int, float]]:
    return [(each.kind, each.epoch, each.at_unix_s - NOW) for each in found]


def test_a_worker_that_is_seen_for_the_first_time_has_started() -> None:
    found = life_events("f", reading(), None, NOW, None)
    assert told(found) == [("started", 1, -100.0)]


def test_a_worker_that_goes_on_living_is_no_event() -> None:
    assert life_events("f", reading(), cursor(), NOW + 1, None) == []


def test_a_death_is_told_once_with_its_moment_and_its_reason() -> None:
    life = WorkerLife(worker_id="w0", problem="the connection was closed")
    dead = reading(alive=False)
    found = life_events("f", dead, cursor(), NOW - 0.5, life)
    assert told(found) == [("died", 1, -0.5)]
    assert found[0].reason == "the connection was closed"
    assert life_events("f", dead, cursor(open=False), NOW - 0.5, life) == []


def test_an_end_in_order_is_no_death() -> None:
    found = life_events("f", reading(alive=False, state=WorkerState.STOPPED), cursor(), NOW, None)
    assert [each.kind for each in found] == ["stopped"]


def test_a_new_life_says_how_long_the_worker_was_away_and_why() -> None:
    """The reason is known with the new life: it is told of the death too, in place of what was told before."""
    life = WorkerLife(worker_id="w0", num_restarts=1, last_restart_reason="process 7 was killed")
    again = reading(epoch=2, started_unix_s=NOW + 3)
    found = life_events("f", again, cursor(open=False), NOW + 4, life)
    assert told(found) == [("died", 1, 0.0), ("restarted", 2, 3.0)]
    assert [each.reason for each in found] == ["process 7 was killed"] * 2
    assert found[1].away_s == 3.0


def test_a_death_between_two_looks_is_told_with_the_new_life() -> None:
    life = WorkerLife(worker_id="w0", num_restarts=1, last_restart_reason="process 7 was killed")
    found = life_events("f", reading(epoch=2, started_unix_s=NOW + 0.5), cursor(), NOW + 1, life)
    assert told(found) == [("died", 1, 0.0), ("restarted", 2, 0.5)]


def test_how_it_ended_is_not_guessed_when_nobody_knows() -> None:
    """The whole fleet was down, and its plane too."""
    found = life_events("f", reading(epoch=2, started_unix_s=NOW + 600), cursor(), NOW + 601, None)
    assert told(found) == [("restarted", 2, 600.0)]


def test_an_end_in_order_that_nobody_saw_is_no_death() -> None:
    life = WorkerLife(worker_id="w0", num_restarts=1, last_restart_reason="process 7 stopped in order")
    found = life_events("f", reading(epoch=2, started_unix_s=NOW + 5), cursor(), NOW + 6, life)
    assert [each.kind for each in found] == ["stopped", "restarted"]


def move(**changes: Any) -> RequestMove:
    values: dict[str, Any] = {"kind": "failover", "from_worker": "w1", "to_worker": "w2", "at_s": 1.0, "stall_s": 0.2}
    return RequestMove(**{**values, **changes})


def test_moves_of_one_second_and_worker_are_one_event() -> None:
    found = move_events(
        [
            record(arrival_unix_s=NOW, moves=(move(at_s=1.3, notice_s=0.04),)),
            record(arrival_unix_s=NOW, moves=(move(at_s=1.1, to_worker="w3", stall_s=0.5),)),
            record(arrival_unix_s=NOW, moves=(move(at_s=2.1),)),
            record(arrival_unix_s=NOW, moves=(move(kind="migration", num_bytes=100),)),
        ]
    )
    first = found[0]
    assert len(found) == 3
    assert (first.at_unix_s, first.num_requests, first.to_workers) == (NOW + 1.1, 2, {"w2": 1, "w3": 1})
    assert (first.stall_s, first.notice_s, first.num_bytes) == (0.5, 0.04, 0)
    assert (found[2].kind, found[2].num_bytes) == ("migration", 100)


def test_a_request_that_failed_counts_against_its_last_move_only() -> None:
    failed = record(status=500, finish_reason="error", moves=(move(), move(at_s=3.0, to_worker="", stall_s=None)))
    assert [each.num_failed for each in move_events([failed])] == [0, 1]
    assert move_events([failed])[1].to_workers == {}


def test_two_tellings_of_one_second_add_up() -> None:
    one, other = move_events([record(moves=(move(),))])[0], move_events([record(moves=(move(stall_s=None),))])[0]
    both = added(one, other)
    assert (both.num_requests, both.to_workers, both.stall_s) == (2, {"w2": 2}, 0.2)
