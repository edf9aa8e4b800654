"""Alerts in the database: the newest of their states, what is open for the next plane, and the counts it burns by."""

from __future__ import annotations

from dataclasses import replace

from control.alerts.burn import STEP_S, GoodCounts
from control.history.store import History
from control.points import Ingested
from control.types.alerts import Alert
from tests.control.metered import T0
from tests.control.records import record

PENDING = Alert(
    alert_id="a1", fleet_id="f", name="worker_dead", subject="w1", severity="ticket", state="pending",
    text="w1 is dead", since_unix_s=T0, seen_unix_s=T0,
)  # fmt: skip
FIRING = replace(PENDING, state="firing", fired_unix_s=T0 + 15)
ENDED = replace(FIRING, state="resolved", resolved_unix_s=T0 + 60, told=("firing",))


def test_a_late_write_does_not_move_an_alert_back(history: History) -> None:
    history.put_alerts("f", [FIRING], [])
    history.put_alerts("f", [PENDING], [])  # it waited in a spool
    assert history.open_alerts("f", T0) == [FIRING]
    assert history.open_alerts("other", T0) == []


def test_only_what_pends_can_be_forgotten(history: History) -> None:
    history.put_alerts("f", [FIRING, replace(PENDING, alert_id="a2")], [])
    history.put_alerts("f", [], ["a1", "a2"])
    assert history.open_alerts("f", T0) == [FIRING]


def test_an_end_that_was_not_told_is_open_for_the_next_plane_while_it_is_news(history: History) -> None:
    history.put_alerts("f", [ENDED], [])
    assert history.open_alerts("f", T0) == [ENDED]
    assert history.open_alerts("f", T0 + 100) == []
    history.put_alerts("f", [replace(ENDED, told=("firing", "resolved"))], [])
    assert history.open_alerts("f", T0) == []


def test_what_has_ended_is_found_newest_first_until_it_is_pruned(history: History) -> None:
    later = replace(ENDED, alert_id="a2", resolved_unix_s=T0 + 70)
    history.put_alerts("f", [ENDED, later, replace(FIRING, alert_id="a3")], [])
    assert [each.alert_id for each in history.ended_alerts("f", T0, 10)] == ["a2", "a1"]
    assert [each.alert_id for each in history.ended_alerts("f", T0, 1)] == ["a2"]
    history.prune(T0 + 40 * 86_400)
    assert history.ended_alerts("f", T0, 10) == []
    assert [each.alert_id for each in history.open_alerts("f", T0)] == ["a3"]


def test_the_next_plane_burns_by_what_the_last_one_has_written(history: History) -> None:
    arrivals = [(1.0, True), (2.0, False), (15.0, True), (3_600.0, False)]
    rows = [
        ("gw", seq, record(fleet_id="f", arrival_unix_s=T0 + at_s, ttft_s=0.1 if good else 90.0, good=good))
        for seq, (at_s, good) in enumerate(arrivals, 1)
    ]
    cancelled = record(fleet_id="f", arrival_unix_s=T0 + 3.0, status=499, finish_reason="cancelled", good=None)
    history.write_tick(Ingested(fleet_id="f", at_unix_s=T0 + 3_601), {}, [*rows, ("gw", 5, cancelled)], None)
    counts = history.good_counts("f", T0, T0 + 3_700, STEP_S)
    assert counts == [(int(T0), 1, 2), (int(T0) + 10, 1, 1), (int(T0) + 3_600, 0, 1)]
    windows = GoodCounts(counts).windows(T0 + 3_700)
    assert [(each.good, each.decided) for each in windows.values()] == [(0, 1), (0, 1), (0, 1), (2, 4)]
