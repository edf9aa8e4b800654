"""The shared reader: one snapshot a tick for everybody, live series read at their young end, staleness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from app.live import merged
from app.source import IDLE_S, MAX_CLIENTS, RECHECK_S, Hub
from control.types.api import Principal
from control.types.commands import Action, CommandRequest, Verb
from control.types.series import SeriesResult
from tests.app.builders import NOW, plane_and_hub, points, result
from tests.app.fake_client import FakeClient
from tests.app.fake_plane import FakePlane


class CountingClient(FakeClient):
    def __init__(self, plane: FakePlane, token: str, calls: Counter[str], since: list[float]) -> None:
        super().__init__(plane, token)
        self.calls, self.since = calls, since

    def snapshot(self, fleet_id: str | None = None):  # type: ignore[no-untyped-def]
        self.calls["snapshot"] += 1
        return super().snapshot(fleet_id)

    def many_series(self, metrics: Sequence[str], *rest: object, **more: object) -> list[SeriesResult]:
        self.calls["many"] += 1
        return super().many_series(metrics, *rest, **more)  # type: ignore[arg-type]

    def series(self, metric: str, since_unix_s: float, *rest: object, **more: object) -> SeriesResult:
        self.calls[metric] += 1
        self.since.append(since_unix_s)
        return super().series(metric, since_unix_s, *rest, **more)  # type: ignore[arg-type]


@pytest.fixture
def counted() -> tuple[Hub, Counter[str], list[float]]:
    plane, hub, _ = plane_and_hub()
    calls: Counter[str] = Counter()
    since: list[float] = []
    hub.connect = lambda token: CountingClient(plane, token, calls, since)
    hub.admit("viewer-token")
    return hub, calls, since


def test_many_looks_in_one_tick_are_one_question(counted: tuple[Hub, Counter[str], list[float]]) -> None:
    hub, calls, _ = counted
    hub.refresh()
    for _ in range(10):
        assert hub.look().snapshot is not None
        assert hub.live("goodput_rps", "fleet", 900, 10).result is not None
    assert calls == {"snapshot": 1, "goodput_rps": 1}


def test_a_live_series_is_read_again_only_at_its_young_end(counted: tuple[Hub, Counter[str], list[float]]) -> None:
    hub, _, since = counted
    clock = hub.now
    hub.live("goodput_rps", "fleet", 900, 1)
    clock.at += 1  # type: ignore[attr-defined]
    hub.live("goodput_rps", "fleet", 900, 1)
    hub.refresh()
    assert since[0] == NOW - 900
    assert since[1] > NOW - 20
    found = hub.live("goodput_rps", "fleet", 900, 1).result
    assert found is not None
    times = [point.t_unix_s for point in found.series[0].points]
    assert times == sorted(set(times))
    assert len(times) >= 900


def test_what_differs_in_its_metric_alone_is_one_question(counted: tuple[Hub, Counter[str], list[float]]) -> None:
    hub, calls, _ = counted
    asked = [("goodput_rps", "fleet", 1), ("ttft_p99_s", "fleet", 1), ("num_workers", "role", 1)]
    for metric, by, step_s in asked:
        hub.live(metric, by, 900, step_s)
    hub.now.at += 1  # type: ignore[attr-defined]
    hub.refresh()
    assert calls["many"] == 2
    for metric, by, step_s in asked:
        found = hub.live(metric, by, 900, step_s)
        assert found.result is not None
        assert (found.result.metric, found.result.until_unix_s) == (metric, hub.now())


def test_one_metric_that_is_refused_takes_no_other_with_it(counted: tuple[Hub, Counter[str], list[float]]) -> None:
    hub, _, _ = counted
    for metric in ("goodput_rps", "no_such_metric", "nor_this", "ttft_p99_s"):
        hub.live(metric, "fleet", 900, 1)
    hub.now.at += 1  # type: ignore[attr-defined]
    hub.refresh()
    assert hub.live("no_such_metric", "fleet", 900, 1).error == "no metric no_such_metric"
    for metric in ("goodput_rps", "ttft_p99_s"):
        found = hub.live(metric, "fleet", 900, 1).result
        assert found is not None
        assert found.until_unix_s == hub.now()


def test_a_series_that_nobody_asks_for_is_forgotten(counted: tuple[Hub, Counter[str], list[float]]) -> None:
    hub, calls, _ = counted
    hub.live("goodput_rps", "fleet", 900, 10)
    hub.now.at += 60  # type: ignore[attr-defined]
    hub.refresh()
    hub.refresh()
    assert calls["goodput_rps"] == 1


def test_a_silent_plane_keeps_the_last_state_and_becomes_stale() -> None:
    plane, hub, clock = plane_and_hub()
    hub.admit("viewer-token")
    hub.refresh()
    plane.scene = "silent"
    clock.at += 12
    hub.refresh()
    look = hub.look()
    assert look.snapshot is not None
    assert look.is_stale(clock())
    assert look.age_s(clock()) == 12
    plane.scene = "ok"
    hub.refresh()
    assert not hub.look().is_stale(clock())


def test_a_token_that_is_no_longer_honoured_stops_being_used_for_reading() -> None:
    _, hub, _ = plane_and_hub()
    hub.admit("viewer-token")
    hub.admit("revoked-token")
    hub.refresh()
    hub.refresh()
    assert hub.look().snapshot is not None


def test_a_submitted_command_is_known_before_the_next_reading() -> None:
    plane, hub, _ = plane_and_hub()
    hub.admit("operator-token")
    hub.refresh()
    command = plane.submit_as("alex", CommandRequest(action=Action(verb=Verb.DRAIN, worker_id="w1")))
    hub.learn(command)
    assert hub.commands()[0].command_id == command.command_id


def test_a_range_of_the_past_is_shared_until_its_time_is_over() -> None:
    _, hub, clock = plane_and_hub()
    hub.admit("viewer-token")
    asked = []
    for _ in range(3):
        hub.cached("key", 60.0, lambda client: asked.append(client))
    clock.at += 61
    hub.cached("key", 60.0, lambda client: asked.append(client))
    assert len(asked) == 2


def test_merging_replaces_the_overlap_and_drops_what_left_the_window() -> None:
    old = result({"a": points(0, [1.0, 1.0, 1.0]), "gone": points(0, [7.0])})
    fresh = result({"a": points(2, [2.0, 2.0]), "new": points(3, [9.0])})
    found = merged(old, fresh, since_unix_s=1.0)
    assert {each.label: [point.value for point in each.points] for each in found.series} == {
        "a": [1.0, 2.0, 2.0],
        "new": [9.0],
    }


def test_events_of_a_silent_plane_are_those_that_were_read_last() -> None:
    plane, hub, clock = plane_and_hub()
    hub.admit("operator-token")
    hub.refresh()
    plane.die("w1", ago_s=10.0)
    read = hub.events(clock.at - 60, clock.at)
    assert [each.kind for each in read] == ["restarted", "failover", "died"]
    plane.scene = "silent"
    clock.at += 5
    hub.refresh()
    assert hub.events(clock.at - 60, clock.at) == read
    assert hub.events(clock.at - 60, clock.at, "w9") == []


def test_connections_of_those_who_left_are_closed_and_of_those_who_act_kept() -> None:
    plane, hub, clock = plane_and_hub()
    closed: list[str] = []

    class Closing(FakeClient):
        def close(self) -> None:
            closed.append(self.token)

    hub.connect = lambda token: Closing(plane, token)
    for number in range(MAX_CLIENTS + 10):
        hub.client(f"token-{number}")
    assert closed == []
    clock.at += IDLE_S + 1
    hub.client("token-0")
    hub.client("token-new")
    assert closed == [f"token-{number}" for number in range(1, 12)]


def test_whether_a_token_still_holds_is_asked_once_for_all_tabs() -> None:
    plane, hub, clock = plane_and_hub()
    asked: list[str] = []

    class Asking(FakeClient):
        def whoami(self) -> Principal:
            asked.append(self.token)
            return super().whoami()

    hub.connect = lambda token: Asking(plane, token)
    visits = [hub.visits.open("viewer-token", Principal(name="viewer", role="viewer"), clock()) for _ in range(3)]
    assert [hub.honours(each) for each in visits] == [True] * 3
    assert asked == ["viewer-token"]
    clock.at += RECHECK_S
    plane.scene = "silent"
    assert hub.honours(visits[0])
    assert not hub.honours("made-up")
