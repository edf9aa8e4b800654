"""What limited over time: a verdict holds until the next, and what the plane could not tell is not drawn."""

from __future__ import annotations

from app import frames, limited
from control.types.events import FleetEvent
from tests.app.builders import NOW, points, rows


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


def test_while_no_plane_looked_no_verdict_is_drawn() -> None:
    found = limited.intervals([verdict(0, "gateway"), verdict(60, "none")], NOW, NOW + 100)
    seen = [*points(int(NOW), [1.0] * 20), *points(int(NOW) + 50, [1.0] * 50)]
    away = frames.gaps([seen], 1, NOW, NOW + 100, 15.0)
    assert away == [(NOW + 20, NOW + 50)]
    left = limited.without(found, away)
    assert [(each.start_unix_s - NOW, each.end_unix_s - NOW, each.words) for each in left] == [
        (0, 20, "Gateway"),
        (50, 60, "Gateway"),
        (60, 100, "Nothing"),
    ]
    assert frames.gaps([], 1, NOW, NOW + 100, 15.0) == [(NOW, NOW + 100)]
