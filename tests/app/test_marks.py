"""Commands and events as marks: one rule for what happened together, labels that do not cover each other."""

from __future__ import annotations

from typing import Any

from app import marks
from control.types.commands import Action, CommandRequest, Verb
from control.types.events import EventKind, FleetEvent
from control.types.workers import LossCause
from tests.app.builders import NOW, plane_and_hub, rows


def event(kind: EventKind, at_s: float, worker_id: str = "w1", **more: Any) -> FleetEvent:
    values: dict[str, Any] = {"fleet_id": "f", "kind": kind, "at_unix_s": NOW + at_s, "worker_id": worker_id}
    return FleetEvent(**{**values, **more})


def labels(*events: FleetEvent, near_s: float = 1.0) -> list[tuple[str, str]]:
    return [(each.kind, each.label) for each in marks.event_marks(events, near_s)]


def test_a_death_and_whom_it_made_go_elsewhere_are_one_mark() -> None:
    told = event("died", 0.0), event("failover", 0.1, num_requests=9), event("failover", 1.1, num_requests=5)
    assert labels(*told) == [("died", "w1 died, 14 continued")]


def test_deaths_at_the_same_time_are_counted() -> None:
    assert labels(event("died", 0.0), event("died", 0.2, "w2")) == [("died", "2 workers died")]


def test_requests_that_left_a_worker_which_lives_are_a_mark_of_their_own() -> None:
    assert labels(event("failover", 0.0, num_requests=2, cause=LossCause.HUNG)) == [
        ("continued", "2 continued, w1 hung")
    ]


def test_moves_with_and_without_their_kv_are_one_mark() -> None:
    told = event("migration", 0.0, num_requests=12), event("recompute", 0.5, num_requests=1)
    assert labels(*told) == [("moved", "13 moved from w1")]


def test_what_is_far_apart_is_two_marks_and_a_first_start_is_none() -> None:
    told = event("started", 0.0), event("restarted", 1.0), event("restarted", 60.0)
    assert labels(*told) == [("back", "w1 back")] * 2


def test_a_fleet_that_comes_back_one_after_the_other_is_one_mark() -> None:
    told = [event("restarted", 3.0 * number, f"w{number}") for number in range(6)]
    assert labels(*told) == [("back", "6 workers back")]


def test_only_what_is_inside_the_window_is_marked() -> None:
    plane, hub, _ = plane_and_hub()
    plane.submit_as("alex", CommandRequest(action=Action(verb=Verb.RESIZE, prefill=2, decode=2)))
    commands = hub.connect("viewer-token").commands()
    told = [event("died", -5.0), event("died", -50.0)]
    drawn = marks.marks(commands, told, NOW - 10, NOW + 10)
    assert [row["label"] for row in rows(drawn["commands"])] == ["resize 2:2"]
    assert [(row["label"], row["words"]) for row in rows(drawn["events"])] == [("w1 died", "w1 died")]
    assert rows(marks.marks(commands, told, NOW + 1, NOW + 10)["commands"]) == []


def test_labels_of_commands_and_events_share_the_rows() -> None:
    plane, hub, _ = plane_and_hub()
    plane.submit_as("alex", CommandRequest(action=Action(verb=Verb.RESIZE, prefill=2, decode=2)))
    drawn = marks.marks(hub.connect("viewer-token").commands(), [event("died", 0.5)], NOW - 10, NOW + 90)
    assert [rows(drawn[name])[0]["level"] for name in ("commands", "events")] == [0, 1]


def test_labels_close_together_take_rows_of_their_own() -> None:
    assert marks.label_levels([0.0, 5.0, 12.0, 99.0], width=10.0, edge=90.0) == [0, 1, 0, 0]
    assert marks.label_levels([85.0, 99.0], width=10.0, edge=90.0) == [0, 1]
