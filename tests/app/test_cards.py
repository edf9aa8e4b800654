"""Markup from values: what comes from outside is escaped, and code in it is set as code."""

from __future__ import annotations

from dataclasses import replace

from app import cards, figures, lines, words
from control.types.commands import Action, CommandRequest, Verb
from control.types.series import SeriesResult
from control.types.workers import Role
from tests.app.builders import plane_and_hub, points, result


def test_backticks_become_code_and_nothing_becomes_markup() -> None:
    assert cards.with_code("run `phaseline <x>` now") == "run <code>phaseline &lt;x&gt;</code> now"
    assert cards.with_code("one ` alone") == "one ` alone"


def test_notices_share_one_banner() -> None:
    shown = cards.notices(["first", "second"])
    assert shown.count("pl-banner") == 1
    assert shown.count("<span>") == 2


def test_how_a_fleet_began_is_no_resize() -> None:
    plane, hub, _ = plane_and_hub()
    client = hub.client("operator-token")
    resize = client.submit(CommandRequest(action=Action(verb=Verb.RESIZE, prefill=2, decode=2)))
    began = replace(resize, base_version=0, desired_before=None)
    first_of_theirs = replace(resize, base_version=0)  # an attached fleet is followed from version 0 on
    assert words.label(first_of_theirs) == "resize 2:2"
    assert (words.label(resize), words.label(began)) == ("resize 2:2", "start")
    assert words.command(began) == "start: 2 prefill, 2 decode"
    assert plane.desired.pool_size(Role.PREFILL) == 2


def test_a_role_that_did_nothing_of_a_phase_has_no_line() -> None:
    _, hub, _ = plane_and_hub()
    snapshot = hub.client("operator-token").snapshot()
    drawn = lines.utilization("wall", "role", blended=False)

    def read(metric: str, _: str) -> SeriesResult:
        busy = "prefill" if metric.startswith("prefill") else "decode"
        return result({role: points(0, [0.5 if role == busy else 0.0]) for role in ("prefill", "decode")})

    named = lines.named_points(drawn, read)
    shown = {name for name, found in named if found}
    assert shown == {"prefill pool: prefill compute", "decode pool: decode bandwidth"}
    assert [each.label for each in lines.legend(drawn, snapshot, "wall", None, shown)] == sorted(shown, reverse=True)


def test_a_role_that_is_only_in_the_past_of_the_chart_is_in_its_legend() -> None:
    _, hub, _ = plane_and_hub()
    snapshot = hub.client("operator-token").snapshot()
    shown = figures.role_legend(snapshot, ["prefill", "decode", "unassigned"])
    assert [(each.label, each.value) for each in shown] == [
        ("prefill", "1 of 1 ready"),
        ("decode", "3 of 3 ready"),
        ("unassigned", "none now"),
    ]


def test_a_past_window_says_where_its_own_points_come_from() -> None:
    _, hub, _ = plane_and_hub()
    snapshot = hub.client("operator-token").snapshot()
    drawn = lines.utilization("wall", "phase", blended=False)
    past = {line.name: 0.5 for line in drawn}
    tags = [each.tag for each in lines.legend(drawn, snapshot, "wall", past, sources={drawn[0].name: "simulated"})]
    assert tags == ["simulated", lines.mark(snapshot, snapshot.decode)]
