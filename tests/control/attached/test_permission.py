"""What may be done to an attached fleet: what it declares, and of that what an operator has allowed."""

from __future__ import annotations

import pytest

from control.errors import CommandRefused
from control.facts import FleetFacts, WorkerFacts
from control.fleets.attached.permission import acting, can_of, check_grantable, not_allowed
from control.fleets.attached.types import Attachment, Permission
from control.reconcile import as_observed
from control.types.commands import Action, Command, CommandState, Desired, Verb
from control.types.fleet import Capability
from control.types.workers import Role, WorkerState
from control.verbs import RefusedPlan, desired_after

THEIRS = Attachment(name="theirs", kind="vllm", targets=("decode=h:1",))


def granted(capability: Capability) -> Permission:
    return Permission(capability=capability, who="ann", at_unix_s=1.0)


def test_nothing_but_observing_without_permission():
    assert acting(THEIRS, ()) == {Capability.OBSERVE}


def test_a_permission_for_what_it_cannot_do_gives_nothing():
    assert Capability.MIGRATE not in can_of(THEIRS)
    assert acting(THEIRS, (granted(Capability.MIGRATE),)) == {Capability.OBSERVE}


def test_roles_are_given_at_our_gateway_so_without_its_permission_no_other_says_anything():
    flip = (granted(Capability.FLIP),)
    assert acting(THEIRS, flip) == {Capability.OBSERVE}
    assert "`phaseline allow theirs route`" in not_allowed(THEIRS, Capability.FLIP, flip).detail
    both = (*flip, granted(Capability.ROUTE))
    assert acting(THEIRS, both) == {Capability.OBSERVE, Capability.ROUTE, Capability.FLIP}
    assert "`phaseline allow theirs drain`" in not_allowed(THEIRS, Capability.DRAIN, both).detail


@pytest.mark.parametrize(
    ("controller", "who"),
    [
        ("sglang-router=http://h:1", "this router"),
        ("smg=http://h:1", "this router"),
        ("production-stack=http://h:1?file=/f.yaml", "its router"),
    ],
)
def test_a_controller_that_sends_the_requests_itself_keeps_doing_so(controller: str, who: str):
    told = Attachment(name="theirs", kind="vllm", controller=controller)
    with pytest.raises(CommandRefused, match=f"cannot route: {who} sends its requests"):
        check_grantable(told, Capability.ROUTE)


def test_engines_that_prometheus_lists_are_ours_to_route():
    told = Attachment(name="theirs", kind="vllm", controller="prometheus=http://h:9090?query=up")
    assert can_of(told) == can_of(THEIRS)


def test_what_a_fleet_cannot_do_is_not_allowed_and_the_refusal_says_what_could_be():
    with pytest.raises(CommandRefused, match=r"theirs \(vllm\) cannot migrate") as caught:
        check_grantable(THEIRS, Capability.MIGRATE)
    assert caught.value.field == "capability"
    with pytest.raises(CommandRefused, match="needs no permission"):
        check_grantable(THEIRS, Capability.OBSERVE)


def test_a_command_that_was_not_allowed_is_refused_with_the_reason():
    why = not_allowed(THEIRS, Capability.MIGRATE).detail
    fleet = FleetFacts(can=frozenset({"observe"}), refusals={"flip": why})
    with pytest.raises(RefusedPlan, match="cannot migrate"):
        desired_after(Action(verb=Verb.FLIP, worker_id="w0", role=Role.PREFILL), Desired(version=0, roles={}), fleet)


def test_an_undo_needs_the_permission_of_what_it_takes_back():
    done = command(Desired(version=1, roles={"w0": Role.DECODE}), Desired(version=2, roles={"w0": Role.PREFILL}))
    fleet = FleetFacts(can=frozenset({"observe"}))
    with pytest.raises(RefusedPlan, match="this fleet cannot flip"):
        desired_after(Action(verb=Verb.UNDO, command_id=1), Desired(version=2, roles={}), fleet, undo=done)


def test_of_their_fleet_only_a_command_under_way_is_desired_and_then_what_they_make_of_it():
    seen = FleetFacts(workers={name: ready(name, Role.DECODE) for name in ("w0", "w1")})
    before = Desired(version=1, roles={"w0": Role.DECODE, "w1": Role.DECODE})
    under_way = command(before, Desired(version=2, roles={"w0": Role.PREFILL, "w1": Role.DECODE}))
    assert as_observed(before, seen, [under_way]).roles == {"w0": Role.PREFILL, "w1": Role.DECODE}
    assert as_observed(before, seen).roles == {"w0": Role.DECODE, "w1": Role.DECODE}


def ready(worker_id: str, role: Role) -> WorkerFacts:
    return WorkerFacts(worker_id=worker_id, epoch=1, role=role, state=WorkerState.READY)


def command(before: Desired, after: Desired) -> Command:
    return Command(
        command_id=1,
        fleet_id="theirs",
        action=Action(verb=Verb.FLIP, worker_id="w0", role=Role.PREFILL),
        state=CommandState.RUNNING,
        who="ann",
        why="",
        idempotency_key="",
        base_version=before.version,
        version_after=after.version,
        created_unix_s=1.0,
        updated_unix_s=1.0,
        desired_before=before,
        desired_after=after,
    )
