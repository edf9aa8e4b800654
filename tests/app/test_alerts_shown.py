"""Alerts on Overview: what fires in a row at the top, what pends and what has ended in the list, a quiet day silent."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC

from app import alerts
from app.source import Hub
from control.types.alerts import Alert
from tests.app.builders import plane_and_hub
from tests.app.fake_plane import FakePlane

T0 = 1_000_000.0
DEAD = Alert(
    alert_id="a1", fleet_id="local", name="worker_dead", subject="w1", severity="ticket", state="firing",
    text="w1 (decode) is dead: <killed>", since_unix_s=T0, seen_unix_s=T0, fired_unix_s=T0, told=("firing",),
)  # fmt: skip


def plane_and_console() -> tuple[FakePlane, Hub]:
    plane, hub, _ = plane_and_hub("ok")
    hub.admit("operator-token")
    hub.refresh()
    return plane, hub


def test_what_fires_is_told_at_the_top_and_what_pends_only_in_the_list() -> None:
    plane, hub = plane_and_console()
    assert (alerts.firing(hub, UTC), alerts.listed(hub, UTC)) == ("", "")
    plane.alerts_ = [DEAD, replace(DEAD, alert_id="a2", state="pending", text="w2 is dead", fired_unix_s=None)]
    hub.refresh()
    top, below = alerts.firing(hub, UTC), alerts.listed(hub, UTC)
    assert "Worker dead since" in top
    assert "w1 (decode) is dead: &lt;killed&gt;" in top
    assert "w2" not in top
    assert "w2 is dead" in below
    assert below.index("firing") < below.index("pending")


def test_what_has_ended_stays_in_the_list_for_a_day_and_says_whether_it_was_told() -> None:
    plane, hub = plane_and_console()
    now = plane.now()
    ended = replace(DEAD, state="resolved", since_unix_s=now - 100, resolved_unix_s=now - 50, not_told="no answer")
    plane.alerts_ = [ended, replace(ended, alert_id="old", text="long ago", resolved_unix_s=now - 100_000)]
    hub.refresh()
    assert alerts.firing(hub, UTC) == ""
    assert "resolved" in alerts.listed(hub, UTC)
    assert "no answer" in alerts.listed(hub, UTC)
    assert "long ago" not in alerts.listed(hub, UTC)


def test_open_alerts_are_shown_while_the_history_cannot_be_read() -> None:
    plane, hub = plane_and_console()
    plane.alerts_ = [DEAD]
    hub.refresh()
    plane.scene = "silent"
    assert "w1 (decode)" in alerts.listed(hub, UTC)
