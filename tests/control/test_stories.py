"""Events and moves in words: names, counts, bytes and stalls, and nothing that was not measured."""

from __future__ import annotations

from typing import Any

import pytest

from control.stories import event_words, move_words, size_words, time_words
from control.types.events import FleetEvent
from control.types.requests import RequestMove
from control.types.workers import LossCause


def event(kind: str, **changes: Any) -> FleetEvent:
    values: dict[str, Any] = {"fleet_id": "f", "kind": kind, "at_unix_s": 1.0, "worker_id": "decode-1"}
    return FleetEvent(**{**values, **changes})


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (event("died", reason="process 7 was killed"), "decode-1 died: process 7 was killed"),
        (event("restarted", away_s=3.21), "decode-1 was back after 3.21 s"),
        (
            event(
                "failover",
                num_requests=14,
                to_workers={"w2": 6, "w3": 8},
                notice_s=0.04,
                stall_s=0.24,
                cause=LossCause.DIED,
            ),
            "14 requests continued on w3 (8) and w2 (6) after decode-1 died: noticed after 40 ms, worst stall 240 ms",
        ),
        (
            event("migration", num_requests=1, to_workers={"w2": 1}, num_bytes=12_900_000, stall_s=0.058),
            "1 request moved from decode-1 to w2 while decoding: 12.3 MiB, worst stall 58 ms",
        ),
        (
            event("recompute", num_requests=2, num_failed=1),
            "2 requests left decode-1 and were computed anew: 1 failed all the same",
        ),
    ],
)
def test_an_event_is_one_line(told: FleetEvent, words: str) -> None:
    assert event_words(told) == words


def test_many_targets_are_counted_after_the_first_four() -> None:
    told = event("failover", num_requests=6, to_workers={f"w{i}": 1 for i in range(6)})
    assert "on w0 (1), w1 (1), w2 (1), w3 (1) and 2 more after" in event_words(told)


def move(kind: str, **changes: Any) -> RequestMove:
    values: dict[str, Any] = {"kind": kind, "from_worker": "decode-1", "to_worker": "decode-3", "at_s": 1.0}
    return RequestMove(**{**values, **changes})


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (
            move("failover", notice_s=0.04, stall_s=0.24, cause=LossCause.DIED),
            "continued on decode-3 after decode-1 died (noticed after 40 ms, stall 240 ms)",
        ),
        (
            move("migration", num_bytes=12_900_000, stall_s=0.058, reason="decode-1 drains"),
            "moved from decode-1 to decode-3 while it decoded (12.3 MiB, stall 58 ms): decode-1 drains",
        ),
        (move("failover"), "continued on decode-3 after decode-1 was lost (before its first token)"),
        (
            move("failover", to_worker="", cause=LossCause.HUNG),
            "ended when decode-1 hung (it ended before its next token)",
        ),
    ],
)
def test_a_move_is_told_as_it_is_on_its_request(made: RequestMove, words: str) -> None:
    assert move_words(made) == words


def test_times_and_sizes_have_three_digits_and_a_unit() -> None:
    assert [time_words(each) for each in (0.0123, 3.21, 723.0, 12_000.0)] == [
        "12.3 ms", "3.21 s", "12 min 3 s", "3 h 20 min",
    ]  # fmt: skip
    assert [size_words(each) for each in (512, 2048, 1_288_490_189)] == ["512 B", "2 KiB", "1.2 GiB"]
