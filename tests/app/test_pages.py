"""What each page says in each state of the plane, and what its controls do. No browser: Streamlit's own AppTest."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from app.fleets import Fleets
from app.source import Hub
from control.types.api import Principal
from control.types.commands import Action, CommandRequest, Departure, Verb
from tests.app.builders import plane_and_hub, slo_alert

PAGES = ("overview", "pools", "workers", "fleets", "explore", "roofline", "requests", "audit")


def script(hub, path):  # type: ignore[no-untyped-def]  # its source runs alone, with no import of this file
    from app.console import PAGES, run
    from app.fleets import Fleets

    fleets = hub if isinstance(hub, Fleets) else Fleets(own=hub)
    run(fleets, [*(page for page in PAGES if page.path == path), *(page for page in PAGES if page.path != path)])


def opened(hub: Hub | Fleets, path: str, role: str = "operator") -> AppTest:
    """One tab, logged in, on one page."""
    app = AppTest.from_function(script, kwargs={"hub": hub, "path": path}, default_timeout=30)
    if role:
        log_in(app, hub.own if isinstance(hub, Fleets) else hub, role)
    return app.run()


def log_in(app: AppTest, hub: Hub, role: str) -> None:
    who = Principal(name=role, role=role)  # type: ignore[arg-type]
    app.session_state["visit"] = hub.visits.open(f"{role}-token", who, hub.now())


def text(app: AppTest) -> str:
    """Everything the page says, markup included."""
    kinds = ("html", "markdown", "caption", "error")
    slots = [json.loads(each.proto.json).get("first", "") for each in app.get("bidi_component")]
    return (
        "\n".join(slots)
        + "\n"
        + "\n".join(str(getattr(each, "body", getattr(each, "value", ""))) for kind in kinds for each in app.get(kind))
    )


def button(app: AppTest, label: str) -> Any:
    return next(each for each in app.button if each.label == label)


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("scene", ["ok", "empty", "starting", "broken"])
def test_a_page_draws_in_every_state(path: str, scene: str) -> None:
    _, hub, _ = plane_and_hub(scene)
    app = opened(hub, path)
    assert not app.exception


@pytest.mark.parametrize("path", PAGES)
def test_a_page_of_48_simulated_workers_says_that_they_are_simulated(path: str) -> None:
    _, hub, _ = plane_and_hub(num_workers=48, prefill=8)
    app = opened(hub, path)
    assert not app.exception
    assert "Simulated workers" in text(app)


@pytest.mark.parametrize("path", PAGES)
def test_a_plane_that_never_answered_is_said_to_be_silent(path: str) -> None:
    _, hub, _ = plane_and_hub("silent")
    app = opened(hub, path)
    assert not app.exception
    assert "does not answer" in text(app)


def test_a_silent_plane_keeps_the_last_values_and_disables_actions() -> None:
    plane, hub, clock = plane_and_hub()
    app = opened(hub, "pools")
    plane.scene = "silent"
    clock.at += 12
    hub.refresh()
    app.run()
    assert "The plane has not answered for 12.0 s" in text(app) or "The plane has not answered for 12 s" in text(app)
    assert "2 prefill" not in text(app)
    assert all(each.disabled for each in app.number_input)
    assert "actions wait until it is back" in text(app)


def test_unknown_figures_are_not_zero() -> None:
    _, hub, _ = plane_and_hub("starting")
    app = opened(hub, "overview")
    assert "n/a" in text(app)
    assert "Starting" in text(app)


def test_the_overview_names_where_each_number_comes_from() -> None:
    _, hub, _ = plane_and_hub()
    shown = text(opened(hub, "overview"))
    assert "Fraction of the peak: calibrated" in shown
    assert "measured" in shown
    assert "not production values" in shown


def test_by_role_draws_lines_per_role() -> None:
    _, hub, _ = plane_and_hub()
    assert "prefill pool: prefill compute" in text(opened_with(hub, "overview", lines="role"))


def opened_with(hub: Hub, path: str, **params: str) -> AppTest:
    app = AppTest.from_function(script, kwargs={"hub": hub, "path": path}, default_timeout=30)
    log_in(app, hub, "operator")
    for name, value in params.items():
        app.query_params[name] = value
    return app.run()


# --- login ---------------------------------------------------------------------


def test_nobody_sees_a_page_without_a_login() -> None:
    _, hub, _ = plane_and_hub()
    app = opened(hub, "overview", role="")
    assert "You are not logged in" in text(app)
    assert "Goodput" not in text(app)


def test_logging_out_ends_the_visit_in_every_tab() -> None:
    _, hub, _ = plane_and_hub()
    one, other = opened(hub, "overview"), opened(hub, "pools")
    other.session_state["visit"] = one.session_state["visit"]
    other.run()
    assert "Goodput" in text(one)
    button(one, "Log out").click().run()
    other.run()
    assert all("You are not logged in" in text(each) for each in (one, other))


def test_a_tab_that_was_logged_out_elsewhere_can_change_nothing() -> None:
    plane, hub, _ = plane_and_hub()
    app = resized(opened(hub, "pools"), 2, 2)
    hub.visits.close(app.session_state["visit"])
    button(app, "Apply").click().run()
    assert plane.commands_ == []
    assert "You are not logged in" in text(app)


def test_a_token_that_the_plane_no_longer_honours_ends_the_visit() -> None:
    _, hub, clock = plane_and_hub()
    app = opened(hub, "overview")
    app.session_state["visit"] = hub.visits.open("revoked-token", Principal(name="old", role="viewer"), hub.now())
    clock.at += 60
    app.run()
    assert "You are not logged in" in text(app)


# --- acting ----------------------------------------------------------------------


def resized(app: AppTest, prefill: int, decode: int) -> AppTest:
    sizes = {each.label: each for each in app.number_input}
    sizes["Prefill workers"].set_value(prefill)
    sizes["Decode workers"].set_value(decode)
    app.run()
    return button(app, "Preview resize").click().run()  # type: ignore[no-any-return]


def test_a_resize_is_previewed_and_then_applied_and_then_undone() -> None:
    plane, hub, clock = plane_and_hub()
    app = resized(opened(hub, "pools"), 2, 2)
    assert "flip w1 decode → prefill" in text(app)
    assert plane.desired.pool_size("prefill") == 1  # type: ignore[arg-type]
    app.text_input(key="why").set_value("long prompts")
    button(app, "Apply").click().run()
    assert plane.commands_[0].why == "long prompts"
    assert plane.commands_[0].who == "operator"
    assert plane.desired.pool_size("prefill") == 2  # type: ignore[arg-type]
    assert "accepted" in text(app)
    clock.at += 5
    hub.refresh()
    app.run()
    button(app, "Undo command 1 (resize: 2 prefill, 2 decode)").click().run()
    button(app, "Apply").click().run()
    assert plane.desired.pool_size("prefill") == 1  # type: ignore[arg-type]


def test_a_halved_pool_needs_its_name_typed() -> None:
    plane, hub, _ = plane_and_hub()
    app = resized(opened(hub, "pools"), 3, 1)
    assert button(app, "Apply").disabled
    app.text_input(key="confirmation").set_value("decode").run()
    button(app, "Apply").click().run()
    assert plane.desired.pool_size("decode") == 1  # type: ignore[arg-type]


def test_a_refusal_is_shown_and_nothing_can_be_applied() -> None:
    _, hub, _ = plane_and_hub()
    app = resized(opened(hub, "pools"), 4, 0)
    assert "cannot be resized to nothing" in text(app)
    assert not any(each.label == "Apply" for each in app.button)


def test_a_stale_form_says_what_changed_by_whom_and_is_not_repeated() -> None:
    plane, hub, _ = plane_and_hub()
    app = opened(hub, "pools")
    plane.submit_as("bob", CommandRequest(action=Action(verb=Verb.DRAIN, worker_id="w3"), why="hot"))
    hub.refresh()
    app = resized(app, 2, 2)
    assert "Not applied" in text(app)
    assert "bob: drain w3" in text(app)
    assert len(plane.commands_) == 1
    next(each for each in app.button if each.label == "Look again").click().run()
    assert app.session_state["form"].version == plane.desired.version


def test_a_viewer_looks_and_cannot_act() -> None:
    _, hub, _ = plane_and_hub()
    app = opened(hub, "pools", role="viewer")
    assert all(each.disabled for each in app.number_input)
    assert button(app, "Preview resize").disabled
    assert "changing needs an operator" in text(app)


def test_routing_settings_can_be_tried_on_the_last_hour_before_they_are_applied() -> None:
    plane, hub, _ = plane_and_hub()
    app = opened(hub, "pools")
    share = next(each for each in app.slider if each.label.startswith("Share of eligible"))
    share.set_value(0.5).run()
    button(app, "Try on the last hour").click().run()
    assert "200 of 890 requests" in text(app)
    button(app, "Preview routing").click().run()
    button(app, "Apply").click().run()
    assert plane.desired.policy.remote_share == 0.5


def test_a_weight_is_changed_through_a_command() -> None:
    plane, hub, _ = plane_and_hub()
    app = opened(hub, "pools")
    next(each for each in app.number_input if each.label == "Weight of w2").set_value(0.0).run()
    button(app, "Preview weights").click().run()
    button(app, "Apply").click().run()
    assert plane.desired.weights["w2"] == 0.0


# --- understanding -------------------------------------------------------------------


def test_a_link_restores_a_view_of_explore() -> None:
    _, hub, _ = plane_and_hub()
    app = opened_with(hub, "explore", metric="ttft_p99_s", by="role", step="60", versus="before", range="6h")
    assert app.selectbox(key="metric").value == "ttft_p99_s"
    assert app.selectbox(key="by").value == "role"
    assert "in steps of 1 min" in text(app)
    assert "Dashed: the earlier window" in text(app)


def test_explore_offers_its_buckets_as_csv_and_as_parquet() -> None:
    _, hub, _ = plane_and_hub()
    labels = [each.proto.label for each in opened(hub, "explore").get("download_button")]
    assert [each for each in labels if each.startswith("Download")] == ["Download CSV", "Download Parquet"]


def test_a_link_with_a_window_restores_that_window() -> None:
    _, hub, clock = plane_and_hub()
    since, until = int(clock.at) - 600, int(clock.at) - 300
    app = opened_with(hub, "explore", **{"from": str(since), "to": str(until)})
    assert button(app, "Back to the range")
    assert "in steps of 1 s" in text(app)


def test_one_request_is_shown_as_its_stages() -> None:
    _, hub, _ = plane_and_hub()
    app = opened_with(hub, "requests", request="req-08999")
    assert "Request req-08999" in text(app)
    assert "split: prefill, then decode" in text(app)


def test_a_death_is_told_on_the_overview_with_what_became_of_its_requests() -> None:
    plane, hub, _ = plane_and_hub()
    plane.die("w1", ago_s=40.0)
    shown = text(opened(hub, "overview"))
    assert "14 requests continued on w2 (8) and w3 (6) after w1 died" in shown
    assert "Noticed after 40 ms, worst stall 240 ms" in shown
    assert "w1 was back after 3.2 s" in shown


def test_a_request_that_went_on_elsewhere_tells_its_way() -> None:
    _, hub, _ = plane_and_hub()
    shown = text(opened_with(hub, "requests", request="req-08996", moved="yes"))
    assert "Continued on w2 after w1 died (noticed after 40 ms, stall 240 ms)" in shown
    _, hub, _ = plane_and_hub()
    shown = text(opened_with(hub, "requests", request="req-08986"))
    assert "Moved from w3 to w2 while it decoded (12.3 MiB, stall 58 ms)" in shown


def test_the_list_of_requests_can_be_those_that_went_on_elsewhere() -> None:
    _, hub, _ = plane_and_hub()
    app = opened_with(hub, "requests", moved="yes")
    assert set(app.dataframe[0].value["went_on"]) == {"w2 after w1 died", "w2 from w3"}


def test_a_dead_workers_life_has_its_gap_its_reason_and_whom_it_left() -> None:
    plane, hub, _ = plane_and_hub()
    plane.die("w1", ago_s=40.0, away_s=None)
    shown = text(opened_with(hub, "workers", worker="w1"))
    assert "Killed by signal 9. It is being started anew" in shown
    assert "14 requests continued on w2 (8) and w3 (6) after w1 died" in shown
    assert "died" not in text(opened_with(hub, "workers", worker="w2"))


def test_a_running_command_says_how_many_sequences_have_left() -> None:
    plane, hub, _ = plane_and_hub()
    plane.submit_as("alex", CommandRequest(action=Action(verb=Verb.RESIZE, prefill=2, decode=2)))
    leaving = Departure(worker_id="w1", kind="leaves", since_unix_s=hub.now(), num_sequences=11, num_moved=5,
                        num_left=6, num_bytes=2**30, stall_s=0.061)  # fmt: skip
    plane.commands_[0] = replace(plane.commands_[0], departures=(leaving,))
    hub.refresh()
    assert "w1: 5 of 11 sequences moved, 1 GiB, worst stall 61 ms" in text(opened(hub, "pools"))


def test_the_audit_log_says_who_did_what_and_why() -> None:
    plane, hub, _ = plane_and_hub()
    plane.submit_as("alex", CommandRequest(action=Action(verb=Verb.RESIZE, prefill=2, decode=2), why="batch job"))
    app = opened(hub, "audit")
    assert "batch job" in text(app)
    assert "1 prefill, 3 decode" in text(app)
    assert app.dataframe[0].value["who"].tolist() == ["alex"]


def test_a_page_drawn_while_the_fleet_was_empty_fills_when_workers_come() -> None:
    plane, hub, clock = plane_and_hub("starting")
    full = plane.desired
    plane.desired = replace(full, roles={})
    app = opened(hub, "pools")
    assert "No workers yet" in text(app)
    plane.desired, plane.scene = full, "ok"
    clock.at += 1
    hub.refresh()
    app.run()
    assert [each.label for each in app.number_input][:1] == ["Prefill workers"]


@pytest.mark.parametrize("has_gpm", [False, True])
def test_the_roofline_page_draws_the_measured_source_or_says_that_there_is_none(has_gpm: bool) -> None:
    plane, hub, _ = plane_and_hub("ok")
    plane.has_gpm = has_gpm
    app = opened(hub, "roofline")
    assert not app.exception
    assert ("no measured source" in text(app)) != has_gpm
    assert ("Derived - measured" in text(app)) == has_gpm


def test_overview_shows_the_day_beside_another_one_and_a_link_restores_a_brushed_window() -> None:
    _, hub, clock = plane_and_hub()
    app = opened(hub, "overview")
    assert "the same hours" not in text(app)
    app.query_params["beside"] = "1d"
    app.query_params["from"], app.query_params["to"] = str(clock.at - 3600), str(clock.at - 1800)
    linked = AppTest.from_function(script, kwargs={"hub": hub, "path": "overview"}, default_timeout=30)
    log_in(linked, hub, "operator")
    for name in ("beside", "from", "to"):
        linked.query_params[name] = app.query_params[name]
    linked.run()
    assert not linked.exception
    assert "Grey: yesterday, the same hours. Where both are known:" in text(linked)
    assert "Faint: yesterday, the same hours. Where both are known:" in text(linked)
    assert button(linked, "Back to live")
    button(linked, "Back to live").click().run()
    assert "from" not in linked.query_params
    assert not any(each.label == "Back to live" for each in linked.button)


def test_a_window_of_the_past_lists_its_own_commands_and_missed_slos_and_draws_routing() -> None:
    plane, hub, clock = plane_and_hub()
    fired = clock.at - 2700
    plane.alerts_.append(slo_alert(fired, fired + 600))
    plane.submit_as(
        "kim", CommandRequest(action=Action(verb=Verb.SET_ROUTING, policy={"remote_share": 0.5}), why="canary")
    )
    plane.commands_[-1] = replace(plane.commands_[-1], created_unix_s=clock.at - 2400)
    plane.submit_as("kim", CommandRequest(action=Action(verb=Verb.DRAIN, worker_id="w1"), why="later"))
    shown = text(opened_with(hub, "overview", **{"from": f"{clock.at - 3600:.0f}", "to": f"{clock.at - 1800:.0f}"}))
    assert "Commands and events from" in shown
    assert "canary" in shown
    assert "later" not in shown
    assert "SLO budget burned for 11 min" in shown
    assert "Routing settings" in shown
    assert "on average" in shown


def test_a_window_in_the_address_that_is_none_is_live() -> None:
    _, hub, _ = plane_and_hub()
    for begin, end in (("x", "1"), ("9", "5"), ("1", "1e300"), ("nan", "nan")):
        app = opened_with(hub, "overview", **{"from": begin, "to": end})
        assert not app.exception
        assert not any(each.label == "Back to live" for each in app.button)


def test_explore_says_the_difference_in_words_and_averages_no_percentile() -> None:
    _, hub, _ = plane_and_hub()
    compared = text(opened_with(hub, "explore", metric="decode_bandwidth_wall", range="15m", versus="before"))
    assert "Where both windows are known: Fleet" in compared
    assert "15 min earlier" in compared
    percentile = text(opened_with(hub, "explore", metric="ttft_p99_s", range="15m", versus="before"))
    assert "Of the window, earlier" in percentile
    assert "<th>Mean" not in percentile


def test_a_fleet_without_workers_still_shows_a_window_of_the_past() -> None:
    plane, hub, clock = plane_and_hub("starting")
    plane.desired = replace(plane.desired, roles={})
    assert "No workers yet" in text(opened(hub, "overview"))
    end = clock.at - 600
    shown = text(opened_with(hub, "overview", **{"from": f"{end - 3600:.0f}", "to": f"{end:.0f}"}))
    assert "Wall utilization, mean of" in shown
    assert "has not started a worker" not in shown
