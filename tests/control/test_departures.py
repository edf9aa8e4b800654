"""Departures as several gateways count them: sums over those that saw the same one, the newest counts."""

from __future__ import annotations

from typing import Any

from control.departures import departures_since, sum_departures, total_of
from control.types.commands import Departure
from tests.control.builders import NOW


def departure(worker_id: str = "w1", **changes: Any) -> Departure:
    values: dict[str, Any] = {"kind": "leaves", "since_unix_s": NOW, "num_sequences": 5, "num_moved": 2, "num_left": 3}
    return Departure(**{"worker_id": worker_id, **values, **changes})


def test_what_two_gateways_saw_is_added_up() -> None:
    told = [
        departure(stall_s=0.1, num_bytes=10, to_workers={"w2": 2}, is_over=True),
        departure(since_unix_s=NOW + 0.2, stall_s=0.3, num_bytes=5, to_workers={"w2": 1, "w3": 1}),
    ]
    (both,) = sum_departures(told)
    assert (both.num_sequences, both.num_moved, both.num_left, both.num_bytes) == (10, 4, 6, 15)
    assert (both.stall_s, both.to_workers, both.is_over) == (0.3, {"w2": 3, "w3": 1}, False)
    assert both.since_unix_s == NOW


def test_an_earlier_departure_of_the_same_worker_is_another_one() -> None:
    (newest,) = sum_departures([departure(since_unix_s=NOW - 60), departure(num_sequences=1)])
    assert newest.num_sequences == 1


def test_a_death_and_a_leave_of_one_worker_stay_apart() -> None:
    assert [each.kind for each in sum_departures([departure(), departure(kind="lost")])] == ["leaves", "lost"]


def test_a_command_owns_what_left_its_workers_since_it_was_given() -> None:
    told = [departure(), departure("w2", since_unix_s=NOW - 5), departure("w3", kind="lost"), departure("w9")]
    assert list(departures_since(told, ("w1", "w2", "w3"), NOW)) == ["w1"]


def test_the_total_of_nothing_is_nothing() -> None:
    assert total_of([]) is None
    total = total_of([departure(), departure("w2", since_unix_s=NOW + 100)])
    assert total is not None
    assert total.num_sequences == 10
