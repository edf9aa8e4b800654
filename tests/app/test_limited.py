"""What limited over time: a verdict holds until the next, and what the plane could not tell is not drawn."""

from __future__ import annotations

from app import limited
from control.types import FleetEvent
from tests.app.builders import NOW, rows


def verdict(at_s: float, *resources: str) -> FleetEvent:
    return FleetEvent(
        fleet_id="local", kind="bottleneck", at_unix_s=NOW + at_s, worker_id="", reason="told", resources=resources
    )


def test_a_verdict_holds_until_the_next_one_from_before_the_window_to_its_end() -> None:
    told = [verdict(60, "prefill", "kv_room"), verdict(-500, "none")]
    found = limited.intervals(told, NOW, NOW + 100)
    assert [(each.start_unix_s - NOW, each.end_unix_s - NOW, each.words) for each in found] == [
        (0, 60, "Nothing"),
        (60, 100, "Prefill worker and KV room"),
    ]


def test_before_the_first_known_verdict_and_while_it_is_unknown_nothing_is_drawn() -> None:
    told = [verdict(10, "gateway"), verdict(20, "unknown"), verdict(50, "none")]
    found = limited.intervals(told, NOW, NOW + 100)
    assert [(each.start_unix_s - NOW, each.end_unix_s - NOW) for each in found] == [(10, 20), (50, 100)]
    assert limited.intervals([], NOW, NOW + 100) == []


def test_a_short_interval_carries_its_words_on_hover_only() -> None:
    found = limited.intervals([verdict(0, "gateway"), verdict(5, "none")], NOW, NOW + 100)
    drawn = rows(limited.dataset(found, NOW, NOW + 100))
    assert [(each["words"], each["label"], each["none"]) for each in drawn] == [
        ("Gateway", "", False),
        ("Nothing", "Nothing", True),
    ]
