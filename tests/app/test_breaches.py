"""Where the error budget burned, on a time axis: from recorded alerts, once they have fired."""

from __future__ import annotations

from dataclasses import replace

from app import breaches
from control.types.alerts import Alert
from tests.app.builders import NOW, rows

BURN = Alert(
    alert_id="a1", fleet_id="local", name="slo_burn_fast", subject="", severity="page", state="resolved",
    text="The error budget burns 20 times as fast", since_unix_s=NOW, seen_unix_s=NOW + 30, fired_unix_s=NOW,
    resolved_unix_s=NOW + 60,
)  # fmt: skip


def test_a_breach_is_drawn_while_its_alert_was_seen_clipped_to_the_window() -> None:
    drawn = rows(breaches.dataset([BURN], NOW + 10, NOW + 20))
    assert drawn == [{"start": (NOW + 10) * 1000.0, "end": (NOW + 20) * 1000.0, "words": BURN.text, "late": False}]
    assert rows(breaches.dataset([BURN], NOW + 40, NOW + 50)) == []


def test_alerts_that_overlap_are_one_breach_and_what_never_fired_or_is_no_slo_is_none() -> None:
    slow = replace(BURN, name="slo_burn_slow", since_unix_s=NOW + 20, seen_unix_s=NOW + 90, text="slow")
    pended = replace(BURN, since_unix_s=NOW + 200, seen_unix_s=NOW + 210, state="pending", fired_unix_s=None)
    dead = replace(BURN, name="worker_dead", since_unix_s=NOW + 200, seen_unix_s=NOW + 210)
    assert breaches.breaches([dead, pended, slow, BURN]) == [breaches.Breach(NOW, NOW + 90, BURN.text)]


def test_what_burns_again_later_is_a_breach_of_its_own() -> None:
    again = replace(BURN, since_unix_s=NOW + 100, seen_unix_s=NOW + 120)
    assert [each.start_unix_s - NOW for each in breaches.breaches([again, BURN])] == [0.0, 100.0]


def test_a_breach_that_begins_at_the_right_edge_is_named_to_its_left() -> None:
    assert rows(breaches.dataset([BURN], NOW - 99, NOW + 1))[0]["late"] is True
