"""A controller's list as a registry: who stays, who gets nothing new, and what outlives a controller that is away."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from control.errors import FleetError
from control.fleets.attached.listing import Listing, Registered, following, held_back
from control.fleets.attached.steering.roster import Member, Roster
from control.fleets.attached.targets import FileTargets, RosterTargets, Target
from control.fleets.base import FleetStep, StepOutcome
from control.types.routing import WorkerRoute
from control.types.workers import Role, WorkerState

READY, DRAINING, STARTING = WorkerState.READY, WorkerState.DRAINING, WorkerState.STARTING


def target(name: str) -> Target:
    return Target(worker_id=name, url=f"http://{name}:8000/metrics", role=Role.MIXED)


def member(name: str, state: WorkerState = READY, **fields: str) -> Member:
    plain = {"metrics_url": f"http://{name}:8000/metrics", **fields}
    return Member(worker_id=name, role=Role.MIXED, state=state, **plain)  # type: ignore[arg-type]


def route(name: str, role: Role, state: WorkerState = READY) -> WorkerRoute:
    return WorkerRoute(worker_id=name, epoch=1, address="", role=role, state=state)


class FakeSteering:
    """Lists `members`; None: it cannot be reached."""

    def __init__(self, *members: Member) -> None:
        self.members: tuple[Member, ...] | None = members

    async def look(self) -> Roster:
        if self.members is None:
            raise FleetError("the API server cannot be reached")
        return Roster(members=self.members)

    async def apply(self, step: FleetStep) -> StepOutcome:
        raise AssertionError("a list is not asked to change anything")

    async def close(self) -> None:
        """Nothing is open."""


def listing_of(steering: FakeSteering, path: Path, patience_s: float = 0.0) -> tuple[Listing, RosterTargets]:
    source = RosterTargets()
    return Listing(steering, source, path, every_s=60.0, patience_s=patience_s, now=lambda: 0.0), source


def names(targets: Iterable[Target]) -> list[str]:
    return [each.worker_id for each in targets]


@pytest.mark.parametrize(
    ("listed", "now_s", "patience_s", "stay"),
    [
        ("ac", 10.0, 0.0, "ac"),
        ("ac", 10.0, 5.0, "abc"),
        ("ab", 10.0, 5.0, "ab"),
        ("", 1e6, 0.0, "ab"),
    ],
)
def test_an_engine_that_is_not_listed_stays_for_the_patience_and_an_empty_list_says_nothing(
    listed: str, now_s: float, patience_s: float, stay: str
):
    known = Registered(targets=(target("a"), target("b")))
    assert names(following(known, [target(each) for each in listed], now_s, patience_s).targets) == list(stay)


def test_the_patience_begins_anew_when_an_engine_was_listed_again():
    known = Registered(targets=(target("a"), target("b")))
    for now_s in (0.0, 4.0):
        known = following(known, [target("a")], now_s, 5.0)
    known = following(known, [target("a"), target("b")], 4.5, 5.0)
    known = following(known, [target("a")], 8.0, 5.0)
    assert names(known.targets) == ["a", "b"]
    assert names(following(known, [target("a")], 13.0, 5.0).targets) == ["a"]


@pytest.mark.parametrize(
    ("routes", "unready", "held"),
    [
        ({"p": Role.PREFILL, "d": Role.DECODE, "e": Role.DECODE}, {"e"}, {"e"}),
        ({"p": Role.PREFILL, "d": Role.DECODE, "e": Role.DECODE}, {"d", "e"}, set()),
        ({"p": Role.PREFILL, "d": Role.DECODE}, {"p"}, set()),
        ({"m": Role.MIXED, "n": Role.MIXED}, set(), set()),
    ],
)
def test_who_is_not_ready_gets_nothing_new_unless_nobody_else_serves_in_its_role(
    routes: dict[str, Role], unready: set[str], held: set[str]
):
    assert held_back([route(name, role) for name, role in routes.items()], unready) == held


def test_a_worker_that_drains_does_not_stand_in_for_one_that_is_not_ready():
    routes = [route("d", Role.DECODE), route("e", Role.DECODE, DRAINING)]
    assert held_back(routes, {"d"}) == frozenset()


async def test_a_pod_that_is_being_deleted_has_left_and_one_that_is_not_ready_says_why(tmp_path: Path):
    steering = FakeSteering(member("a"), member("b", DRAINING), member("c", STARTING, reason="ImagePullBackOff"))
    listing, source = listing_of(steering, tmp_path / "listed.json")
    await listing.start(lambda: None)
    assert names(source.targets()) == ["a", "c"]
    assert listing.unready == {"c": "it is not ready, by the word of what lists it: ImagePullBackOff"}
    await listing.close()


async def test_a_controller_that_cannot_be_reached_leaves_the_last_list_also_to_whoever_starts_then(tmp_path: Path):
    path = tmp_path / "prod" / "listed.json"
    steering = FakeSteering(member("a"), replace(member("b"), serve_url="http://b:9000"))
    listing, source = listing_of(steering, path)
    await listing.start(lambda: None)
    listed = source.targets()
    await listing.close()
    steering.members = None
    later, source = listing_of(steering, path)
    assert source.targets() == listed
    await later.start(lambda: None)
    assert (source.targets(), source.problem) == (listed, "the API server cannot be reached")
    assert FileTargets(path, may_come=True).targets() == listed
    await later.close()


async def test_a_list_of_nobody_is_told_and_not_followed(tmp_path: Path):
    steering = FakeSteering(member("a"))
    listing, source = listing_of(steering, tmp_path / "listed.json")
    await listing.start(lambda: None)
    steering.members = (member("a", DRAINING),)
    await listing.look()
    assert (names(source.targets()), source.problem) == (["a"], "it lists no engine that is to stay: those before stay")
    await listing.close()


async def test_a_change_of_the_list_wakes_the_plane_and_an_equal_list_does_not(tmp_path: Path):
    woken: list[str] = []
    steering = FakeSteering(member("a"))
    listing, _ = listing_of(steering, tmp_path / "listed.json")
    await listing.start(lambda: woken.append("woken"))
    await listing.look()
    assert len(woken) == 1
    steering.members = (member("a", STARTING),)
    await listing.look()
    assert len(woken) == 2
    await listing.close()


async def test_a_folder_that_cannot_be_written_is_told_and_the_list_holds(tmp_path: Path):
    (tmp_path / "prod").write_text("no folder")
    listing, source = listing_of(FakeSteering(member("a")), tmp_path / "prod" / "listed.json")
    await listing.start(lambda: None)
    assert names(source.targets()) == ["a"]
    assert "cannot be kept in" in source.problem
    await listing.close()


def test_a_file_that_may_come_later_has_no_targets_until_it_does(tmp_path: Path):
    path = tmp_path / "listed.json"
    source = FileTargets(path, may_come=True)
    assert source.targets() == ()
    path.write_text('[{"targets": ["a:1"], "labels": {"role": "mixed", "serve_url": "http://a:2"}}]')
    (found,) = source.targets()
    assert (found.worker_id, found.url, found.serve_url, source.problem) == (
        "a:1",
        "http://a:1/metrics",
        "http://a:2",
        "",
    )
