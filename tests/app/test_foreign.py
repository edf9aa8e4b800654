"""What the console says of a fleet that somebody else runs: unknown is a state with a remedy, and only what is allowed
is offered."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC

import pytest
from streamlit.testing.v1 import AppTest

from app import figures, foreign, wall
from app.source import Hub, Look
from app.views.pools import pool_table
from control.client import AttachedInfo, Attachment, EngineSurvey, Survey
from control.fleets.attached.choices import choices
from control.fleets.attached.types import Finding, Looks, Permission
from control.types.fleet import Capability, FleetSnapshot, Missing
from control.types.workers import Role, WorkEstimates
from tests.app.builders import Clock, points, result
from tests.app.fake_plane import FakePlane
from tests.app.test_pages import button, opened, text

OFF = Missing(
    quantity="exported_flops", state="off", series="vllm:flops", remedy="start it with --mfu", worker_ids=("d0",)
)
WORK = Missing(quantity="work", state="absent", series="its shape", remedy="name the model", worker_ids=("p0", "d0"))
BUSY = Missing(quantity="busy", state="absent", series="step times", remedy="", worker_ids=("p0", "d0"))


def theirs(*missing: Missing, **changes: object) -> FleetSnapshot:
    """An observed fleet whose requests nobody of us sees and whose work is not known."""
    own = FakePlane(lambda: 1_000_000.0).snapshot()
    unseen = replace(own.traffic, goodput_rps=None, ttft_p99_s=None, itl_p99_s=None)
    values = {
        "is_attached": True,
        "capabilities": (Capability.OBSERVE,),
        "missing": missing,
        "traffic": unseen,
        "prefill": None,
        "decode": None,
        "kind": "vllm",
    }
    return replace(own, **{**values, **changes})  # type: ignore[arg-type]


def test_a_figure_that_is_not_known_says_why_and_what_shows_it_and_is_not_measured() -> None:
    read = dict.fromkeys((*figures.COURSES, *figures.ENGINE_COURSES))
    goodput, ttft, _, prefill, decode = figures.figures(theirs(WORK, BUSY), read)
    assert (goodput.value, goodput.tag) == ("n/a", "not seen")
    assert "ours cannot stand in front of it" in goodput.tag_note
    assert (ttft.value, ttft.tag) == ("n/a", "no data")
    assert (prefill.value, prefill.tag, prefill.note) == ("n/a", "not exported", "name the model")
    assert decode.tag_note == "FLOPs and bytes (both utilization lines): not exported: name the model."


def test_a_first_token_in_the_engines_words_is_said_to_be_their_parts_where_one_prefills_and_another_decodes() -> None:
    own = result({"fleet": points(0, [0.05, 1.4, None])})
    read = dict.fromkeys((*figures.COURSES, *figures.ENGINE_COURSES)) | {"worker_ttft_p99_s": own}
    split = theirs()
    _, ttft, *_ = figures.figures(split, read)
    assert (ttft.value, ttft.note) == ("1.40 s", "the engines' parts of it")
    assert "A client waits for both." in ttft.tag_note
    mixed = replace(split, workers=tuple(replace(each, role=Role.MIXED) for each in split.workers))
    _, ttft, *_ = figures.figures(mixed, read)
    assert (ttft.note, ttft.tag_note) == ("as the engines say it", figures.BY_ENGINES)


def test_what_a_controller_lets_be_allowed_is_what_it_can_and_where_it_only_lists_also_what_the_engines_can() -> None:
    told = choices()
    steers, kinds = ({each.name: each for each in found} for found in (told.controllers, told.kinds))
    assert foreign.grantable(kinds["vllm"], steers["kubernetes"]) == (
        "Through Kubernetes can be allowed: route, resize, flip, drain."
    )
    assert foreign.grantable(kinds["llm-d"], steers["kubernetes"]) == "Through Kubernetes can be allowed: resize."
    assert foreign.grantable(kinds["vllm"], steers["smg"]) == (
        "Through SMG (sglang model gateway) can be allowed: resize, flip, drain. "
        "This router sends the requests, so our gateway cannot."
    )


def test_what_our_gateways_would_see_is_not_shown_of_a_fleet_whose_requests_do_not_pass_them() -> None:
    refusals = {"route": "no operator has allowed it: `phaseline allow local route`"}
    snapshot = theirs(refusals=refusals)
    assert "At the gateways" not in [each.title for each in figures.loads(snapshot)]
    assert "`phaseline serve local`" in foreign.unseen_words(snapshot)
    shown = wall.view(Look(snapshot=snapshot, answered_unix_s=1.0, error="", reading=1), (), (), 1.0, UTC, "")
    assert shown["figures"] == [{"label": "Requests", "value": "not seen", "note": "they do not pass our gateway"}]
    routed = replace(snapshot, capabilities=(Capability.OBSERVE, Capability.ROUTE))
    assert "At the gateways" in [each.title for each in figures.loads(routed)]


def test_a_fleet_of_our_own_without_workers_measures_nothing() -> None:
    empty = FakePlane(lambda: 1_000_000.0, scene="empty").snapshot()
    read = dict.fromkeys(figures.COURSES)
    assert {each.tag for each in figures.figures(empty, read) if each.value == "n/a"} == {"no data"}


def test_only_the_workers_that_are_asked_about_count() -> None:
    snapshot = theirs(replace(OFF, quantity="kv_usage"))
    assert foreign.unknown(snapshot, "kv", ["p0"]) is None
    assert foreign.unknown(snapshot, "kv", ["d0"]) == foreign.Unknown("KV usage", "off", "start it with --mfu")


def test_an_engine_without_an_account_of_its_own_says_what_turns_it_on() -> None:
    snapshot = theirs(OFF)
    worker = replace(snapshot.workers[0], worker_id="d0")
    assert foreign.no_estimate(worker, snapshot) == [
        ("Its own estimate of its work", "n/a: Its own FLOPs estimate: off: start it with --mfu")
    ]
    told = WorkEstimates(since_unix_s=1.0, exported_flops=9e9)
    assert foreign.no_estimate(replace(worker, estimates=told), snapshot) == []


def test_what_nothing_helps_against_comes_last_and_the_whole_fleet_is_named_as_such() -> None:
    rows = foreign.missing_rows((BUSY, WORK, OFF), num_workers=2)
    assert [row[2].text for row in rows] == ["d0", "all 2", "all 2"]
    assert [row[4].text for row in rows] == ["start it with --mfu", "name the model", "–"]


def test_a_first_look_says_each_gap_once() -> None:
    off = Finding(quantity="kv_usage", state="absent", series="vllm:kv")
    found = tuple(EngineSurvey(worker_id=name, url="", role="decode", missing=(off,)) for name in ("d0", "d1"))
    survey = Survey(name="x", kind="vllm", engines=found)
    assert [each.worker_ids for each in foreign.lacking(survey)] == [("d0", "d1")]


@pytest.mark.parametrize(
    ("looks", "problem", "said"),
    [
        (Looks(), "it is starting", ("attention", "It is starting")),
        (Looks(), "", ("attention", "No worker is known of it")),
        (Looks(num_workers=3, num_answering=2), "", ("attention", "2 of 3 workers answer")),
        (Looks(num_workers=3, num_answering=3), "", ("ok", "All 3 workers answer")),
    ],
)
def test_how_the_looking_goes(looks: Looks, problem: str, said: tuple[str, str]) -> None:
    info = AttachedInfo(
        attachment=Attachment(name="x", kind="vllm"), who="ann", at_unix_s=1.0, problem=problem, looks=looks
    )
    assert foreign.looked(info) == said


def test_what_it_may_is_said_in_words() -> None:
    info = AttachedInfo(attachment=Attachment(name="x", kind="vllm"), who="ann", at_unix_s=1.0, can=tuple(Capability))
    allowed = (Permission(capability=Capability.FLIP, who="ann", at_unix_s=2.0),)
    assert foreign.may(info) == "observed only"
    assert foreign.may(replace(info, allowed=allowed)) == "may: flip"
    assert "nothing else" in foreign.may(replace(info, can=(Capability.OBSERVE,)))


def test_options_join_the_address_that_was_given() -> None:
    assert foreign.controller_of("smg", " http://r:1 ", {}) == "smg=http://r:1"
    told = foreign.controller_of("dynamo", "http://f:8000?namespace=n", {"etcd": "http://e:2379", "more": " "})
    assert told == "dynamo=http://f:8000?namespace=n&etcd=http://e:2379"


# --- the page that acts ------------------------------------------------------------


class SizedPlane(FakePlane):
    """Its pools have sizes: 1 prefill, 2 decode; somebody else sets the decode pool where `rival` says so."""

    rival = ""
    capabilities: tuple[Capability, ...] = (Capability.OBSERVE, Capability.RESIZE)

    def snapshot(self) -> FleetSnapshot:
        own = super().snapshot()
        pools = tuple(
            replace(each, most_workers=16, rival=self.rival if each.role is Role.DECODE else "")
            for each in own.pools
            if each.num_desired
        )
        refusals = {
            "flip": "theirs (ray-serve) cannot flip",
            "resize": "nobody has allowed resize: `phaseline allow local resize`",
        }
        return replace(own, is_attached=True, pools=pools, capabilities=self.capabilities, refusals=refusals)


def page_of(*, rival: str = "", can: tuple[Capability, ...] = (Capability.OBSERVE, Capability.RESIZE)) -> AppTest:
    clock = Clock()
    plane = SizedPlane(clock)
    plane.rival, plane.capabilities = rival, can
    return opened(Hub(base_url="http://127.0.0.1:1", connect=plane.connect, now=clock), "pools")


def test_pools_with_sizes_are_resized_by_size_beyond_the_workers_that_are_there() -> None:
    app = page_of()
    assert [(each.label, each.value, each.max) for each in app.number_input] == [
        ("Prefill workers", 1, 16),
        ("Decode workers", 3, 16),
    ]
    app.number_input[1].set_value(7).run()
    assert not button(app, "Preview resize").disabled
    assert "theirs (ray-serve) cannot flip" in text(app)
    assert not app.exception


def test_pools_that_nobody_has_listed_are_not_known_in_place_of_zero() -> None:
    own = FakePlane(Clock()).snapshot()
    unlisted = replace(
        own, pools=tuple(replace(each, num_desired=None, num_ready=0, num_other=0) for each in own.pools)
    )
    assert pool_table(unlisted).count(">n/a<") >= 2 * len(own.pools)
    assert figures.role_legend(unlisted) == []
    assert (foreign.is_listed(own), foreign.is_listed(unlisted)) == (True, False)


class UnseenPlane(FakePlane):
    """Observed only: no request of it passes our gateway."""

    def snapshot(self) -> FleetSnapshot:
        return replace(super().snapshot(), is_attached=True, capabilities=(Capability.OBSERVE,))


def test_requests_that_are_not_seen_are_no_list_of_none() -> None:
    clock = Clock()
    plane = UnseenPlane(clock)
    plane.num_requests = 0
    app = opened(Hub(base_url="http://127.0.0.1:1", connect=plane.connect, now=clock), "requests")
    assert "No request of this fleet is seen" in text(app)
    assert "0 listed" not in text(app)
    assert not app.exception


def test_a_pool_that_somebody_else_sets_is_told_and_cannot_be_pressed() -> None:
    app = page_of(rival="its deployment is autoscaled")
    assert [each.disabled for each in app.number_input] == [False, True]


def test_an_observed_fleet_offers_nothing_and_says_what_allows_it() -> None:
    app = page_of(can=(Capability.OBSERVE,))
    assert "This fleet is observed only" in text(app)
    assert "phaseline allow local resize" in text(app)
    assert "or its switch on the page Fleets" in text(app)
    assert not app.number_input


def test_a_change_by_the_fleets_owner_is_told_and_moves_no_control() -> None:
    clock = Clock()
    plane = SizedPlane(clock)
    hub = Hub(base_url="http://127.0.0.1:1", connect=plane.connect, now=clock)
    app = opened(hub, "pools")
    roles = {**plane.desired.roles, "w9": Role.DECODE}
    plane.desired = replace(plane.desired, roles=roles)  # as observed: the version stays
    hub.refresh()
    app.run()
    assert "from 1 prefill, 3 decode to 1 prefill, 4 decode. Its owner leads." in text(app)
    assert app.number_input[1].value == 3
    button(app, "Look again").click().run()
    assert app.number_input[1].value == 4
    assert not app.exception
