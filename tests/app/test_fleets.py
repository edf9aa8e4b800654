"""Several fleets behind one console: which one a tab shows, and that each is read only while somebody looks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from streamlit.testing.v1 import AppTest

from app.fleets import IDLE_S, Fleets
from control.types.fleet import Capability, FleetSnapshot
from tests.app.builders import Clock, plane_and_hub
from tests.app.fake_client import FakeClient
from tests.app.fake_plane import FakePlane
from tests.app.test_pages import button, log_in, opened, script, text


class OtherFleet(FakeClient):
    """The same plane, asked for another of its fleets."""

    def __init__(self, plane: FakePlane, token: str, name: str) -> None:
        super().__init__(plane, token)
        self._name = name

    def snapshot(self, fleet_id: str | None = None) -> FleetSnapshot:
        return replace(super().snapshot(), fleet_id=self._name, model_id="their-model")


def fleets(*attached: str) -> tuple[Fleets, FakePlane, Clock]:
    plane, hub, clock = plane_and_hub()
    plane.attached = list(attached)
    hub.admit("viewer-token")
    return Fleets(own=hub, connect=lambda token, name: OtherFleet(plane, token, name)), plane, clock


def test_without_others_there_is_nothing_to_choose() -> None:
    alone, _, _ = fleets()
    assert alone.names() == ("local",)
    assert alone.hub("theirs") is alone.own
    alone.stop()


def test_a_fleet_has_a_hub_of_its_own_with_the_same_visits() -> None:
    some, _, _ = fleets("theirs", "others")
    assert some.names() == ("local", "others", "theirs")
    hub = some.hub("theirs")
    assert hub is not some.own
    assert hub is some.hub("theirs")
    assert hub.visits is some.own.visits
    snapshot = hub.look().snapshot
    assert snapshot is not None
    assert snapshot.fleet_id == "theirs"
    assert some.streams("theirs").hub is hub
    assert some.hub("nobody's") is some.hub("") is some.hub("local") is some.own
    some.stop()


def test_a_fleet_that_nobody_looks_at_is_read_no_more() -> None:
    some, _, clock = fleets("theirs", "others")
    first = some.hub("theirs")
    clock.at += IDLE_S + 1
    some.hub("others")
    assert some.hub("theirs") is not first
    some.stop()


def test_a_plane_without_workers_of_its_own_shows_the_first_of_the_others() -> None:
    some, plane, _ = fleets("theirs")
    plane.kind = "none"
    some.own.refresh()
    assert some.shown("") == "theirs"
    assert some.shown("local") == "local"
    some.stop()


def test_the_sidebar_switches_between_fleets_and_the_address_says_so() -> None:
    some, _, _ = fleets("theirs")
    app = tab(some)
    assert "local · " in text(app)
    app.selectbox[0].select("theirs").run()
    assert app.query_params["fleet"] == "theirs"
    assert "theirs · their-model" in text(app)
    assert not app.exception
    some.stop()


def test_a_link_names_the_fleet() -> None:
    some, _, _ = fleets("theirs")
    app = AppTest.from_function(script, kwargs={"hub": some, "path": "overview"}, default_timeout=30)
    log_in(app, some.own, "viewer")
    app.query_params["fleet"] = "theirs"
    app.run()
    assert "theirs · their-model" in text(app)
    some.stop()


def test_a_link_to_a_fleet_that_is_not_there_shows_no_other_in_its_place() -> None:
    some, _, _ = fleets("theirs")
    app = AppTest.from_function(script, kwargs={"hub": some, "path": "pools"}, default_timeout=30)
    log_in(app, some.own, "operator")
    app.query_params["fleet"] = "gone"
    app.run()
    assert "There is no fleet named gone here" in text(app)
    assert "There are: local, theirs" in text(app)
    assert not app.number_input
    app.selectbox[0].select("theirs").run()
    assert "theirs · their-model" in text(app)
    assert not app.exception
    some.stop()


def test_a_fleet_does_not_vanish_with_a_plane_that_is_silent() -> None:
    some, plane, clock = fleets("theirs")
    assert some.names() == ("local", "theirs")
    clock.at += 60.0
    plane.scene = "silent"
    assert some.names() == ("local", "theirs")
    assert not some.lost("theirs")
    assert some.lost("gone")
    some.stop()


def test_an_operator_looks_at_a_fleet_first_then_attaches_it_and_lets_it_go() -> None:
    some, plane, _ = fleets()
    app = opened(some, "fleets")
    assert "No fleet is attached" in text(app)
    button(app, "Attach").click().run()
    assert "give targets, or a file of targets" in text(app)
    app.text_input("attach_name").set_value("theirs")
    app.text_area("attach_targets").set_value("decode=h:1\n\n prefill=h:2 ").run()
    button(app, "Look first").click().run()
    assert "1 of 1 workers answer. Nothing was attached or changed." in text(app)
    assert "vllm:flops" in text(app)
    assert "start it with --mfu" in text(app)
    assert plane.attached == []
    button(app, "Attach").click().run()
    assert plane.attached == ["theirs"]
    assert plane.told["theirs"].targets == ("decode=h:1", "prefill=h:2")
    assert "theirs is attached" in text(app)
    button(app, "Detach").click().run()
    assert plane.attached == ["theirs"], "it is asked first"
    assert "Nothing of theirs changes" in text(app)
    button(app, "Detach theirs").click().run()
    assert plane.attached == []
    assert not app.exception
    some.stop()


def test_a_fleet_is_attached_by_its_controller_with_the_options_that_the_plane_names() -> None:
    some, plane, _ = fleets()
    app = opened(some, "fleets")
    kinds = app.selectbox("attach_kind")
    assert {"Ray Serve", "NVIDIA Dynamo", "vLLM"} <= set(kinds.options)
    kinds.select("ray-serve").run()
    app.text_input("attach_name").set_value("app")
    app.text_input("attach_address").set_value(" http://head:8265/pd ")
    app.text_input("attach_token").set_value("env:RAY_TOKEN")
    app.text_input("attach_option_ray-serve_prefill").set_value("P:m").run()
    button(app, "Attach").click().run()
    told = plane.told["app"]
    assert told.controller == "ray-serve=http://head:8265/pd?prefill=P:m"
    assert (told.controller_token, told.targets, told.max_workers, told.peak_flops) == ("env:RAY_TOKEN", (), 16, None)
    assert "Ray Serve at http://head:8265/pd" in text(app)
    assert not app.exception
    some.stop()


def test_an_operator_allows_one_thing_and_takes_it_back() -> None:
    some, plane, _ = fleets("theirs")
    app = opened(some, "fleets")
    assert [(each.label, each.value) for each in switches(app)] == [("Resize", False), ("Flip", False)]
    switches(app)[0].set_value(True).run()
    assert plane.allowed == {"theirs": [Capability.RESIZE]}
    assert "theirs may now be changed so: resize." in text(app)
    assert [each.value for each in switches(app)] == [True, False]
    switches(app)[0].set_value(False).run()
    assert plane.allowed == {"theirs": []}
    assert not app.exception
    some.stop()


def test_a_viewer_sees_the_fleets_and_cannot_change_them() -> None:
    some, plane, _ = fleets("theirs")
    app = opened(some, "fleets", role="viewer")
    assert "by ann at" in text(app)
    assert {each.label: each.disabled for each in app.button if each.label != "Log out"} == {
        "Detach": True,
        "Look first": True,
        "Attach": True,
    }
    assert all(each.disabled for each in switches(app))
    assert plane.attached == ["theirs"]
    some.stop()


def tab(some: Fleets) -> Any:
    return opened(some, "overview")


def switches(app: AppTest) -> list[Any]:
    """Of what may be done to a fleet."""
    return [each for each in app.toggle if each.key.startswith("allow-")]
