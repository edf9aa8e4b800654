"""The wall display in each state of the plane: what it says, that nothing can be pressed, and its two lines' points."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app import format, wall
from app.source import Hub, Look
from control.types.api import Principal
from control.types.bottleneck import Bottleneck
from tests.app.builders import NOW, plane_and_hub, points, result


def script(hub):  # type: ignore[no-untyped-def]  # its source runs alone, with no import of this file
    from app.console import run
    from app.fleets import Fleets

    run(Fleets(own=hub))


def opened(hub: Hub, role: str = "viewer") -> AppTest:
    """A screen of somebody who may only look, at `?view=wall`."""
    app = AppTest.from_function(script, kwargs={"hub": hub}, default_timeout=30)
    app.query_params["view"] = "wall"
    if role:
        app.session_state["visit"] = hub.visits.open(f"{role}-token", Principal(name=role, role=role), hub.now())  # type: ignore[arg-type]
    return app.run()


def said(app: AppTest) -> dict[str, Any]:
    """What the screen shows first."""
    (screen,) = app.get("bidi_component")
    shown: dict[str, Any] = json.loads(screen.proto.json)["first"]  # type: ignore[attr-defined]
    return shown


def test_a_viewer_sees_health_figures_pools_and_both_lines_and_nothing_to_press() -> None:
    _, hub, _ = plane_and_hub()
    app = opened(hub)
    shown = said(app)
    assert not app.exception
    assert (shown["word"], shown["stale"], shown["empty"]) == ("Fine", False, False)
    assert [each["name"] for each in shown["lines"]] == ["Prefill compute", "Decode bandwidth"]
    assert [each["label"] for each in shown["figures"]] == ["Goodput", "TTFT p99", "ITL p99"]
    assert [(each["role"], each["value"]) for each in shown["pools"]] == [("prefill", "1 / 1"), ("decode", "3 / 3")]
    assert [*app.button, *app.toggle, *app.selectbox, *app.text_input, *app.number_input] == []
    assert not app.sidebar.get("html")


def test_a_silent_plane_leaves_the_last_values_and_says_how_old_they_are() -> None:
    plane, hub, clock = plane_and_hub()
    hub.admit("viewer-token")
    hub.refresh()
    plane.scene = "silent"
    clock.at += 12
    hub.refresh()
    shown = said(opened(hub))
    assert (shown["word"], shown["stale"]) == ("Unknown", True)
    assert "has not answered for 12" in shown["text"]
    assert shown["lines"][0]["value"] != "n/a"
    plane.scene = "ok"
    hub.refresh()
    assert said(opened(hub))["word"] == "Fine"


@pytest.mark.parametrize(("scene", "word", "says"), [("empty", "Starting", "no worker"), ("silent", "No data", "does")])
def test_without_workers_or_without_a_plane_it_says_so(scene: str, word: str, says: str) -> None:
    _, hub, _ = plane_and_hub(scene)
    shown = said(opened(hub))
    assert shown["word"] == word
    assert says in shown["text"].lower()
    assert shown.get("empty", True)


def test_simulated_workers_are_marked() -> None:
    _, hub, _ = plane_and_hub(num_workers=48, prefill=8)
    shown = said(opened(hub))
    assert shown["simulated"]
    assert {each["tag"] for each in shown["lines"]} == {"simulated"}


def test_nobody_sees_it_without_a_login() -> None:
    _, hub, _ = plane_and_hub()
    app = opened(hub, role="")
    assert not app.get("bidi_component")
    assert any("You are not logged in" in each.proto.body for each in app.get("html"))  # type: ignore[attr-defined]


def test_what_limits_the_fleet_is_said_once() -> None:
    plane, _, clock = plane_and_hub()
    snapshot = replace(plane.snapshot(), bottleneck=None)
    look = Look(snapshot=snapshot, answered_unix_s=clock(), error="", reading=1)
    assert wall.view(look, (), (), clock(), format.zone("UTC"), "")["limit"] == ""
    same = replace(
        look, snapshot=replace(snapshot, health_text="decode KV limits", bottleneck=verdict("decode KV limits"))
    )
    other = replace(look, snapshot=replace(snapshot, bottleneck=verdict("nothing limits: 1.80 req/s more would fit")))
    assert wall.view(same, (), (), clock(), format.zone("UTC"), "")["limit"] == ""
    assert wall.view(other, (), (), clock(), format.zone("UTC"), "")["limit"].startswith("Nothing limits")


def verdict(text: str) -> Bottleneck:
    return Bottleneck(kind="none", resources=(), text=text, at_unix_s=NOW, since_unix_s=NOW, window_s=60.0)


def test_points_are_permille_with_gaps_and_without_the_youngest_second() -> None:
    read = result({"": points(95, [0.25, None, 0.5, 0.75])}, since=0.0, until=99.0)
    found = wall.points([read, None], 99.2, last_s=5)
    assert (found["since"], found["until"], found["top"]) == (94, 99, 0.75)
    assert found["lines"] == [[None, 250, None, 500, None], [None] * 5]
