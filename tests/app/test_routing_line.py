"""What routing was set to: only what commands recorded, a gap where they do not follow each other."""

from __future__ import annotations

from app import routing_line
from app.source import Hub
from control.types import Action, Command, CommandRequest, Verb
from tests.app.builders import NOW, Clock, plane_and_hub, rows
from tests.app.fake_plane import FakePlane

SINCE, UNTIL = NOW - 100.0, NOW + 100.0


def set_routing(plane: FakePlane, clock: Clock, at_s: float, **action: object) -> None:
    clock.at = NOW + at_s
    wanted = Action(verb=Verb.SET_ROUTING, **action)  # type: ignore[arg-type]
    plane.submit_as("alex", CommandRequest(action=wanted))


def recorded(hub: Hub) -> list[Command]:
    return hub.connect("viewer-token").commands()


def share(commands: list[Command], version: int) -> list[tuple[float, float | None]]:
    points = routing_line.remote_share(routing_line.held(commands, version), SINCE, UNTIL)
    return [(point.t_unix_s - NOW, point.value) for point in points]


def test_the_share_steps_at_each_command_and_is_a_gap_before_the_first() -> None:
    plane, hub, clock = plane_and_hub()
    assert share(recorded(hub), plane.desired.version) == []
    set_routing(plane, clock, 0.0, policy={"remote_share": 0.5})
    set_routing(plane, clock, 40.0, policy={"remote_share": 0.2})
    assert share(recorded(hub), plane.desired.version) == [(0.0, 0.5), (40.0, 0.2), (100.0, 0.2)]


def test_a_command_before_the_window_holds_from_its_start() -> None:
    plane, hub, clock = plane_and_hub()
    set_routing(plane, clock, -500.0, policy={"remote_share": 0.5})
    assert share(recorded(hub), plane.desired.version) == [(-100.0, 0.5), (100.0, 0.5)]


def test_what_is_not_on_record_is_a_gap() -> None:
    plane, hub, clock = plane_and_hub()
    for at_s, value in ((0.0, 0.5), (20.0, 0.3), (40.0, 0.2)):
        set_routing(plane, clock, at_s, policy={"remote_share": value})
    newest, _, oldest = recorded(hub)
    version = plane.desired.version
    assert share([newest, oldest], version) == [(0.0, 0.5), (0.0, None), (40.0, 0.2), (100.0, 0.2)]
    assert share([newest], version + 1) == [(40.0, 0.2), (40.0, None)]


def test_a_change_of_weights_is_marked_with_the_version_it_made() -> None:
    plane, hub, clock = plane_and_hub()
    set_routing(plane, clock, 0.0, policy={"remote_share": 0.5})
    set_routing(plane, clock, 10.0, weights={"w1": 0.5})
    states = routing_line.held(recorded(hub), plane.desired.version)
    marked = rows(routing_line.weight_changes(states, SINCE, UNTIL))
    assert marked == [{"t": (NOW + 10.0) * 1000.0, "label": f"weights, version {plane.desired.version}"}]
