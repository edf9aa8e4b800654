"""Routing settings as steps: exact to the command, and nothing is drawn of what is not known."""

from __future__ import annotations

from dataclasses import replace

from app import routing_steps
from app.happened import read
from control.types.commands import Action, CommandRequest, Desired, Verb
from tests.app.builders import NOW, plane_and_hub, rows
from tests.app.fake_plane import FakePlane


def routed(plane: FakePlane, ago_s: float, **action: object) -> None:
    """A routing command of `ago_s` ago."""
    plane.submit_as("alex", CommandRequest(action=Action(verb=Verb.SET_ROUTING, **action)))  # type: ignore[arg-type]
    plane.commands_[-1] = replace(plane.commands_[-1], created_unix_s=NOW - ago_s)


def lanes_of(plane: FakePlane, before: Desired | None, since: float) -> dict[str, tuple[tuple[float, float], ...]]:
    found = routing_steps.lanes(plane.commands_, before, since)
    return {each.name: each.steps for each in found}


def test_a_setting_steps_at_its_command_and_one_that_never_changed_has_no_lane() -> None:
    plane, _, _ = plane_and_hub()
    before = plane.desired
    routed(plane, 60.0, policy={"remote_share": 0.5})
    found = lanes_of(plane, before, NOW - 100)
    assert found["remote_share"] == ((NOW - 100, 1.0), (NOW - 60, 0.5))
    assert found["version"] == ((NOW - 100, 7.0), (NOW - 60, 8.0))
    assert set(found) == {"remote_share", "version"}


def test_a_chart_that_begins_after_a_command_begins_with_what_it_left() -> None:
    plane, _, _ = plane_and_hub()
    before = plane.desired
    routed(plane, 60.0, policy={"remote_share": 0.5})
    assert lanes_of(plane, before, NOW - 30)["remote_share"] == ((NOW - 30, 0.5),)


def test_another_weight_is_a_step_even_where_as_many_workers_have_one() -> None:
    plane, _, _ = plane_and_hub()
    before = plane.desired
    routed(plane, 60.0, weights={"w1": 0.5})
    routed(plane, 40.0, weights={"w1": 0.2})
    assert lanes_of(plane, before, NOW - 100)["weights"] == ((NOW - 100, 0.0), (NOW - 60, 1.0), (NOW - 40, 1.0))


def test_what_was_wanted_before_anything_is_known_is_not_drawn() -> None:
    plane, _, _ = plane_and_hub()
    assert routing_steps.lanes(plane.commands_, None, NOW - 100) == ()
    routed(plane, 60.0, policy={"remote_share": 0.5})
    assert lanes_of(plane, None, NOW - 100)["remote_share"] == ((NOW - 60, 0.5),)


def test_what_is_not_on_record_between_two_commands_is_a_gap() -> None:
    plane, _, _ = plane_and_hub()
    for ago_s, share in ((60.0, 0.5), (40.0, 0.3), (20.0, 0.2)):
        routed(plane, ago_s, policy={"remote_share": share})
    del plane.commands_[-2]
    lanes = routing_steps.lanes(plane.commands_[-2:], None, NOW - 100)
    assert lanes[0].steps == ((NOW - 60, 0.5), (NOW - 60, None), (NOW - 20, 0.2))
    drawn = rows(routing_steps.datasets(lanes, NOW - 100, NOW)["live"])
    assert [each["value"] is None for each in drawn if each["line"] == "remote_share"] == [False, True, False, False]


def test_a_window_without_commands_has_what_the_last_one_before_it_left() -> None:
    plane, hub, _ = plane_and_hub()
    routed(plane, 500.0, policy={"remote_share": 0.5})
    routed(plane, 50.0, policy={"remote_share": 0.9})
    hub.admit("operator-token")
    hub.refresh()
    quiet = read(hub, NOW - 300, NOW - 200)
    assert quiet.commands == ()
    assert {each.name: each.steps for each in quiet.lanes(NOW - 300)}["remote_share"] == ((NOW - 300, 0.5),)


def test_labels_that_would_cover_each_other_are_left_out_and_the_lines_reach_the_end() -> None:
    lane = routing_steps.Lane("remote_share", ((0.0, 1.0), (50.0, 0.5), (51.0, 0.4), (99.0, 0.2)))
    drawn = routing_steps.datasets((lane,), 0.0, 100.0)
    labels = rows(drawn["labels"])
    assert [each["label"] for each in labels] == ["Remote share: 100%", "50.0%", "20.0%"]
    assert [each["late"] for each in labels] == [False, False, True]
    assert rows(drawn["live"])[-1]["t"] == 100_000.0
