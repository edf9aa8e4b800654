from __future__ import annotations

import pytest

from control.errors import SettingsError
from control.faults.scenario import ALL_CHECKS, FIELDS, Scenario, named, parse_scenario, shipped
from control.faults.stages import Stage
from control.faults.streams import plan_streams


def test_a_scenario_has_defaults_for_all_but_its_help() -> None:
    found = parse_scenario("quiet", 'help = "nothing happens"')
    assert (found.name, found.events, found.checks) == ("quiet", (), ALL_CHECKS)
    assert found.fleet.num_workers == 4


def test_an_event_is_read_with_its_stage_and_time() -> None:
    (event,) = parse_scenario("one", 'help = ""\n[[events]]\ndo = "kill"\nstage = "handoff"\nat_s = 0.5').events
    assert (event.do, event.stage, event.at_s) == ("kill", Stage.HANDOFF, 0.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "scenario bad: help: Field required"),
        ('help = ""\ncolour = 1', "scenario bad: unknown key colour"),
        ('help = ""\n[traffic]\nspeed = 1', "scenario bad: unknown key traffic.speed"),
        ('help = ""\n[traffic]\nstreams = 0', "traffic.streams: Input should be greater than or equal to 1"),
        ('help = ""\n[traffic]\nprompt_tokens = [9, 3]', "prompt_tokens is [9, 3], must be [low, high]"),
        ('help = ""\n[fleet]\nworkers = "many"', "fleet.workers: Input should be 'any', 'real' or 'paced'"),
        ('help = ""\n[[events]]\ndo = "explode"', "events.0.do: Input should be 'kill'"),
        ('help = ""\n[[events]]\ndo = "stop"', "events.0: stop needs for_s"),
        ('help = ""\n[[events]]\ndo = "kill"\nfor_s = 2.0', "kill takes no for_s (got 2.0); it takes stage, at_least"),
        ('help = ""\n[[events]]\ndo = "kill"\nstage = "asleep"', "events.0.stage: Input should be 'queued'"),
        ('help = ""\nchecks = ["all_well"]', "checks.0: Input should be 'no_errors'"),
        ("help = ", "scenario bad: Invalid value"),
    ],
)
def test_a_bad_scenario_names_field_value_and_bound(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as raised:
        parse_scenario("bad", text)
    assert said in str(raised.value)


def test_an_unknown_name_names_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"no fault scenario 'x': there are .*kill-decode"):
        named("x")


def test_every_scenario_that_ships_says_what_it_does_and_they_cover_every_event_and_stage() -> None:
    known = shipped().values()
    assert all(each.help for each in known)
    events = [event for each in known for event in each.events]
    assert {event.do for event in events} == set(FIELDS)
    assert {event.stage for event in events if event.do == "kill"} == set(Stage)


@pytest.mark.parametrize(("do", "is_safe"), [("kill", True), ("resize", True), ("kill_gateway", False)])
def test_what_may_cost_others_a_request_is_unsafe(do: str, is_safe: bool) -> None:
    assert parse_scenario("s", f'help = ""\n[[events]]\ndo = "{do}"').is_safe is is_safe


def test_streams_are_the_same_for_the_same_salt_and_others_for_another() -> None:
    traffic = Scenario(name="s", help="").traffic
    assert plan_streams(traffic, "a") == plan_streams(traffic, "a")
    assert plan_streams(traffic, "a")[0].prompt != plan_streams(traffic, "b")[0].prompt
    lengths = {len(each.prompt) for each in plan_streams(traffic)}
    assert min(lengths) >= 20
    assert max(lengths) <= 60
