"""Alerts: burn rates over two windows, what begins, fires and ends, what is kept over planes, what is not an alert."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from control.alerts.burn import Counted, GoodCounts, burn_rate, burning
from control.alerts.conditions import CLEAR_S, PlaneFacts, conditions
from control.alerts.life import Condition, Moved, advance
from control.errors import SettingsError
from control.history.deferred import AlertWrite, decode, encode
from control.monitor import make_webhook
from control.settings import Settings, webhook_secret
from control.types.alerts import Alert
from tests.control.builders import NOW, FakeFleet
from tests.control.records import record
from tests.control.rig import Rig

DEAD = Condition(name="worker_dead", severity="ticket", text="w1 is dead", for_s=15.0, subject="w1")


def look(before: Moved | None, at_s: float, *found: Condition) -> Moved:
    known = before.open if before else {}
    return advance(known, found, CLEAR_S, fleet_id="test", simulated=False, now_unix_s=NOW + at_s)


def counts(*spans: tuple[float, float, int, int]) -> GoodCounts:
    """(from, to) seconds ago: so many good of so many requests in each 10 s."""
    return GoodCounts(
        (int(NOW - ago), good, decided)
        for begin, end, good, decided in spans
        for ago in range(int(end), int(begin), 10)
    )


def test_a_burn_rate_is_the_bad_share_over_the_share_that_may_be_bad() -> None:
    assert burn_rate(Counted(good=95, decided=100), 0.99) == pytest.approx(5.0)
    assert burn_rate(Counted(), 0.99) is None


def test_the_fast_rule_needs_both_its_windows() -> None:
    now_bad = counts((3600, 300, 100, 100), (300, 0, 40, 100)).windows(NOW)
    assert burning(now_bad, 0.99, 20) == []  # 60 over 5 minutes, 5 over the hour
    long_bad = counts((3600, 300, 70, 100), (300, 0, 50, 100)).windows(NOW)
    (fast, slow) = burning(long_bad, 0.99, 20)
    assert (fast.name, fast.severity, slow.name, slow.severity) == ("slo_burn_fast", "page", "slo_burn_slow", "ticket")
    over = counts((3600, 300, 0, 100), (300, 0, 100, 100)).windows(NOW)
    assert [each.name for each in burning(over, 0.99, 20)] == ["slo_burn_slow"]  # the 5 minutes are good again


def test_a_few_requests_say_nothing() -> None:
    assert burning(counts((200, 100, 0, 1)).windows(NOW), 0.99, 20) == []
    assert len(burning(counts((200, 100, 0, 1)).windows(NOW), 0.99, 10)) == 2


def test_what_is_older_than_the_longest_window_is_forgotten() -> None:
    found = counts((30_000, 21_700, 0, 5)).windows(NOW)
    assert [each.decided for each in found.values()] == [0, 0, 0, 0]


def test_an_alert_fires_when_it_lasts_and_ends_when_it_was_not_seen_for_a_while() -> None:
    begun = look(None, 0.0, DEAD)
    assert [each.state for each in begun.changed] == ["pending"]
    fired = look(look(begun, 10.0, DEAD), 15.0, DEAD)
    (alert,) = fired.changed
    assert (alert.state, alert.since_unix_s, alert.fired_unix_s) == ("firing", NOW, NOW + 15.0)
    gone_for_a_moment = look(fired, 20.0)
    assert (gone_for_a_moment.changed, len(gone_for_a_moment.open)) == ((), 1)
    ended = look(gone_for_a_moment, 30.0)
    (end,) = ended.changed
    assert (end.alert_id, end.state, end.resolved_unix_s, ended.open) == (alert.alert_id, "resolved", NOW + 30.0, {})


def test_what_ends_before_it_fires_is_told_to_nobody() -> None:
    begun = look(None, 0.0, DEAD)
    moved = look(begun, 5.0)
    assert (moved.changed, moved.forgotten, moved.open) == ((), (begun.changed[0].alert_id,), {})


def test_two_workers_are_two_alerts_and_a_second_time_is_another_one() -> None:
    both = look(None, 0.0, DEAD, replace(DEAD, subject="w2"))
    again = look(look(both, 5.0), 10.0, DEAD)
    assert len({each.alert_id for each in (*both.changed, *again.changed)}) == 3


async def test_a_dead_worker_an_empty_pool_a_lost_history_and_a_takeover_are_alerts(tmp_path: Path) -> None:
    rig = await Rig(tmp_path, FakeFleet.of(2)).start()
    snapshot = rig.plane.monitor.snapshot
    assert snapshot is not None
    well = PlaneFacts(since_unix_s=NOW)
    assert conditions(snapshot, well, NOW) == []
    rig.fleet.workers["w0"].alive = False
    await rig.ticks()
    snapshot = rig.plane.monitor.snapshot
    assert snapshot is not None
    found = conditions(snapshot, well, NOW)
    assert [(each.name, each.subject, each.severity) for each in found] == [
        ("worker_dead", "w0", "ticket"),
        ("pool_empty", "prefill", "page"),
    ]
    ill = replace(well, history_problem="disk full", num_writes_waiting=3, followed="pid 7 on host", fence=2)
    names = [each.name for each in conditions(replace(snapshot, health="starting"), ill, NOW)]
    assert names == ["history_away", "plane_takeover"]
    assert [each.name for each in conditions(replace(snapshot, workers=(), pools=()), ill, NOW + 300.0)] == [
        "history_away"
    ]


async def test_very_many_dead_workers_are_one_alert(tmp_path: Path) -> None:
    rig = await Rig(tmp_path, FakeFleet.of(20)).start()
    for each in rig.fleet.workers.values():
        each.alive = each.worker_id in ("w0", "w19")
    await rig.ticks()
    snapshot = rig.plane.monitor.snapshot
    assert snapshot is not None
    (found,) = conditions(snapshot, PlaneFacts(), NOW)
    assert (found.name, found.subject, found.severity) == ("worker_dead", "many", "page")
    assert found.text.startswith("18 workers are dead: w1, w2,")


async def test_a_plane_that_starts_goes_on_with_the_alert_of_the_last_one(tmp_path: Path) -> None:
    rig = await Rig(tmp_path).start()
    rig.fleet.workers["w1"].alive = False
    await fire(rig)
    (alert,) = rig.plane.monitor.alerts
    assert (alert.name, alert.subject, alert.state) == ("worker_dead", "w1", "firing")
    await rig.plane.close()
    again = await Rig(tmp_path, fleet=rig.fleet, history=rig.history, now=rig.now).start()
    (same,) = again.plane.monitor.alerts
    assert (same.alert_id, same.state, same.fired_unix_s) == (alert.alert_id, "firing", alert.fired_unix_s)
    assert len(rig.history.alerts) == 1
    rig.fleet.workers["w1"].alive = True
    for _ in range(3):
        again.now += 10.0
        await again.ticks()
    assert again.plane.monitor.alerts == ()
    assert [each.state for each in rig.history.alerts.values()] == ["resolved"]


async def test_a_history_that_is_away_is_told_meanwhile_and_kept_once_it_is_back(tmp_path: Path) -> None:
    rig = await Rig(tmp_path).start()
    rig.history.broken = "disk full"
    await rig.ticks()  # the first write that fails
    await fire(rig)
    (alert,) = rig.plane.monitor.alerts
    assert (alert.name, alert.state) == ("history_away", "firing")
    assert alert.text.startswith("The history cannot be written: disk full")
    assert rig.history.alerts == {}
    rig.history.broken = ""
    await rig.ticks(2)
    assert rig.history.alerts[alert.alert_id].state == "firing"
    await fire(rig)
    assert (rig.plane.monitor.alerts, rig.history.alerts[alert.alert_id].state) == ((), "resolved")


async def fire(rig: Rig) -> None:
    for _ in range(3):
        rig.now += 10.0
        await rig.ticks()


async def test_requests_that_are_late_raise_an_alert_that_snapshot_api_and_page_show(tmp_path: Path) -> None:
    rig = await Rig(tmp_path).start()
    late = [record(arrival_unix_s=rig.now - 5, ttft_s=60.0)] * 30
    rig.plane.gateways.on_records("gw@1", 1, late)
    await rig.ticks(2)
    headers = {"Authorization": f"Bearer {rig.token('viewer')}"}
    transport = httpx.ASGITransport(app=rig.app())
    async with httpx.AsyncClient(transport=transport, base_url="http://plane", headers=headers) as client:
        found = (await client.get("/api/v1/alerts")).json()
        page = (await client.get("/metrics")).text
        rig.history.broken = "disk full"
        without_history = await client.get("/api/v1/alerts")
        ended = await client.get("/api/v1/alerts", params={"since_unix_s": 0})
    assert [(each["name"], each["state"]) for each in found] == [
        ("slo_burn_fast", "firing"),
        ("slo_burn_slow", "firing"),
    ]
    assert "30 of 30 requests were not good" in found[0]["text"]
    assert 'phaseline_alerts{fleet="test",name="slo_burn_fast",state="firing"} 1.0' in page
    assert 'phaseline_slo_burn_rate{fleet="test",window="3600s"} 100.0' in page.replace("99.99999999999991", "100.0")
    assert (without_history.status_code, len(without_history.json()), ended.status_code) == (200, 2, 503)


def test_new_states_of_alerts_wait_in_a_spool_like_anything_else() -> None:
    write = AlertWrite("test", look(None, 0.0, DEAD).changed, ("x",))
    assert decode(encode(write)) == write
    assert isinstance(write.alerts[0], Alert)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"alert_webhook_secret": "env:NO_SUCH_VARIABLE"}, "env:NO_SUCH_VARIABLE is empty"),
        ({"alert_webhook_secret": "file:/no/such/file"}, "/no/such/file cannot be read"),
        ({}, "alert_webhook_url needs it"),
    ],
)
def test_a_secret_that_is_not_there_is_named_by_its_place(values: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        webhook_secret(Settings(alert_webhook_url="http://127.0.0.1/x", **values))


def test_a_key_that_is_not_base64_after_its_prefix_is_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("whsec_not base64!")
    settings = Settings(alert_webhook_url="http://127.0.0.1/x", alert_webhook_secret=f"file:{tmp_path}/key")
    with pytest.raises(SettingsError, match="not base64 after whsec_"):
        make_webhook(settings)
