from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.changes import changes_between
from control.commands import ENDED, LIFECYCLE, Planned, advance, plan_action
from control.facts import FleetFacts, PoolFacts
from control.types.commands import Action, CommandState, Desired, Verb
from control.types.workers import Role, WorkerState
from tests.control.builders import command, desired, drain, facts, flip, resize, set_routing, worker

D, P = Role.DECODE, Role.PREFILL
BUSY = {"w0": 1, "w1": 3, "w2": 1, "w3": 2}


def plan(action: Action, state: Desired, running: dict[str, int] | None = None, **changes: Any) -> Planned:
    return plan_action(action, state, facts(state, running, **changes))


def test_resize_flips_the_worker_with_least_running_work() -> None:
    planned = plan(resize(prefill=2, decode=2), desired(1, 3), BUSY)
    assert planned.refused is None
    assert [(s.verb, s.worker_id, s.role, s.from_role) for s in planned.steps] == [
        ("flip", "w2", Role.PREFILL, Role.DECODE)
    ]
    assert planned.steps[0].text == "flip w2 decode -> prefill (1 running sequence finish first)"
    assert planned.desired_after.version == 2


def test_a_resize_of_one_pool_keeps_the_others_and_is_refused_when_the_sum_is_over_the_fleet() -> None:
    refused = plan(resize(prefill=2), desired(1, 3)).refused
    assert refused is not None
    assert (refused.field, refused.value, refused.bound) == ("prefill", 2, "sum <= 4")
    assert refused.detail == "prefill 2 + decode 3 (kept) + mixed 0 (kept) = 5 workers, but the fleet has 4"


def test_workers_left_over_become_spares_and_the_plan_says_so() -> None:
    planned = plan(resize(decode=2), desired(1, 3))
    assert planned.desired_after.roles["w1"] == Role.UNASSIGNED
    assert planned.steps[0].text == "drain w1 decode -> spare"
    assert "w1 will be spare: drained, serving nothing" in planned.warnings


def test_growing_takes_leavers_before_spares() -> None:
    planned = plan(resize(prefill=2, decode=1), desired(1, 2, spare=1))
    assert {s.worker_id: s.role for s in planned.steps} == {"w1": Role.PREFILL}
    assert plan(resize(decode=3), desired(1, 2, spare=1)).steps[0].text == "place w3 spare -> decode"


def test_dead_workers_move_only_when_no_live_one_is_left() -> None:
    state = desired(1, 3)
    fleet = facts(state, BUSY)
    dead = FleetFacts(workers={**fleet.workers, "w2": worker("w2", alive=False)})
    planned = plan_action(resize(prefill=2, decode=2), state, dead)
    assert [s.worker_id for s in planned.steps] == ["w3"]


@pytest.mark.parametrize(
    ("action", "field", "value"),
    [
        (flip("w9", Role.DECODE), "worker_id", "w9"),
        (drain("w9"), "worker_id", "w9"),
        (Action(verb=Verb.FLIP, worker_id="w1"), "role", None),
        (flip("w1", Role.UNASSIGNED), "role", Role.UNASSIGNED),
        (Action(verb=Verb.RESIZE), "prefill", None),
        (Action(verb=Verb.RESIZE, prefill=1, worker_id="w1"), "worker_id", "w1"),
        (Action(verb=Verb.SET_ROUTING), "policy", None),
        (set_routing(remote_shares=1.0), "policy.remote_shares", 1.0),
        (set_routing(remote_share=1.5), "policy.remote_share", 1.5),
        (set_routing(min_fleet_devices=-1), "policy.min_fleet_devices", -1),
        (Action(verb=Verb.SET_ROUTING, weights={"w9": 1.0}), "weights.w9", "w9"),
        (Action(verb=Verb.UNDO, command_id=99), "command_id", 99),
    ],
)
def test_bad_input_is_refused_with_field_and_value(action: Action, field: str, value: object) -> None:
    planned = plan(action, desired())
    assert planned.refused is not None
    assert (planned.refused.field, planned.refused.value) == (field, value)
    assert planned.desired_after == desired()


def test_nan_is_no_remote_share() -> None:
    refused = plan(set_routing(remote_share=float("nan")), desired()).refused
    assert refused is not None
    assert refused.field == "policy.remote_share"


def test_a_fleet_that_cannot_flip_refuses_a_flip() -> None:
    refused = plan(flip("w1", Role.PREFILL), desired(), can=frozenset({"route"})).refused
    assert refused is not None
    assert refused.detail == "this fleet cannot flip"


def test_the_last_worker_that_can_decode_stays() -> None:
    refused = plan(resize(prefill=4, decode=0), desired(1, 3)).refused
    assert refused is not None
    assert "no worker would be left that can decode" in refused.detail


def test_zero_weights_on_all_decode_workers_are_refused() -> None:
    action = Action(verb=Verb.SET_ROUTING, weights={"w1": 0.0, "w2": 0.0, "w3": 0.0})
    assert plan(action, desired(1, 3)).refused is not None
    partly = Action(verb=Verb.SET_ROUTING, weights={"w1": 0.0, "w2": 0.0})
    assert plan(partly, desired(1, 3)).refused is None


def test_a_pool_that_has_work_is_not_resized_to_nothing() -> None:
    refused = plan(resize(prefill=0, decode=4), desired(1, 3), {"w0": 2}).refused
    assert refused is not None
    assert (refused.field, refused.detail) == (
        "prefill",
        "the prefill pool holds 2 requests and would be left with no worker",
    )


def test_an_idle_prefill_pool_may_go_with_a_warning() -> None:
    planned = plan(resize(prefill=0, decode=4), desired(1, 3))
    assert planned.refused is None
    assert planned.needs_confirmation == "prefill"
    assert "no prefill worker is left: decode workers prefill locally, so nothing is split" in planned.warnings


def test_a_busy_pool_may_widen_to_mixed() -> None:
    planned = plan(resize(prefill=0, decode=0, mixed=4), desired(1, 3), BUSY)
    assert planned.refused is None
    assert planned.needs_confirmation == ""


def test_a_busy_mixed_fleet_may_split() -> None:
    planned = plan(resize(prefill=1, decode=3, mixed=0), desired(0, 0, mixed=4), BUSY)
    assert planned.refused is None
    assert planned.needs_confirmation == "mixed"


def test_draining_the_last_worker_of_a_role_with_work_is_refused() -> None:
    assert plan(drain("w0"), desired(1, 3), {"w0": 1}).refused is not None
    assert plan(drain("w0"), desired(1, 3)).refused is None


@pytest.mark.parametrize(
    ("action", "word"),
    [
        (resize(prefill=2, decode=2), ""),
        (resize(prefill=3, decode=1), "decode"),
        (drain("w0"), "prefill"),
        (drain("w1"), ""),
        (flip("w0", Role.MIXED), ""),
    ],
)
def test_losing_half_a_pool_or_more_needs_its_name_typed(action: Action, word: str) -> None:
    assert plan(action, desired(1, 3)).needs_confirmation == word


def test_expected_time_is_the_longest_drain_or_unknown() -> None:
    assert plan(resize(prefill=2, decode=2), desired(1, 3)).expected_s == 0.0
    assert plan(resize(prefill=2, decode=2), desired(1, 3), BUSY).expected_s is None
    known = plan(resize(prefill=2, decode=2), desired(1, 3), BUSY, tpot_s=0.05, expected_output_tokens=100)
    assert known.expected_s == pytest.approx(5.0)


def test_how_long_a_change_by_somebody_elses_system_takes_is_not_known() -> None:
    theirs = FleetFacts(pools={Role.DECODE: PoolFacts(target=2, num_ready=2)}, max_pool=16, yields=True)
    planned = plan_action(resize(decode=4), Desired(version=1, roles={}, pools={"decode": 2}), theirs)
    assert (planned.expected_s, len(planned.steps)) == (None, 1)


def test_a_command_that_changes_nothing_says_so_and_keeps_the_version() -> None:
    planned = plan(resize(prefill=1, decode=3), desired(1, 3))
    assert planned.desired_after.version == 1
    assert planned.warnings == ("nothing changes: this is the desired state already",)


# --- undo ---------------------------------------------------------------------------------------------------------


def test_undo_restores_exactly_what_the_command_changed() -> None:
    first = desired(1, 3, weights={"w2": 0.5})
    after = plan(resize(prefill=2, decode=2), first).desired_after
    done = command(first, after)
    routed = plan(set_routing(remote_share=0.5), after).desired_after
    undone = plan_action(Action(verb=Verb.UNDO, command_id=1), routed, facts(routed), done)
    assert undone.refused is None
    assert undone.desired_after.roles == first.roles
    assert undone.desired_after.policy.remote_share == 0.5
    assert undone.desired_after.weights == {"w2": 0.5}
    assert undone.desired_after.version == 4
    assert undone.needs_confirmation == ""


def test_undo_is_refused_when_a_later_command_changed_the_same_thing() -> None:
    first = desired(1, 3)
    after = plan(resize(prefill=2, decode=2), first).desired_after
    moved = next(iter(changes_between(first, after).roles))
    again = plan(flip(moved, Role.MIXED), after).desired_after
    later = command(after, again, flip(moved, Role.MIXED), command_id=2, who="bob")
    undone = plan_action(Action(verb=Verb.UNDO, command_id=1), again, facts(again), command(first, after), [later])
    assert undone.refused is not None
    assert undone.refused.detail == f"command 2 by bob has changed the role of {moved} since"


def test_undo_twice_is_refused() -> None:
    first = desired(1, 3)
    after = plan(resize(prefill=2, decode=2), first).desired_after
    gone = command(first, after, undone_by=7)
    refused = plan_action(Action(verb=Verb.UNDO, command_id=1), after, facts(after), gone).refused
    assert refused is not None
    assert "undone by command 7 already" in refused.detail


# --- the table and what always holds ------------------------------------------------------------------------------


def test_no_command_leaves_its_end() -> None:
    assert not [pair for pair in LIFECYCLE if pair[0] in ENDED]
    with pytest.raises(KeyError):
        advance(CommandState.DONE, "start")


roles = st.sampled_from([Role.PREFILL, Role.DECODE, Role.MIXED, Role.UNASSIGNED])
states = st.dictionaries(st.sampled_from([f"w{i}" for i in range(6)]), roles, min_size=2)
actions = st.one_of(
    st.builds(resize, prefill=st.integers(0, 6), decode=st.integers(0, 6), mixed=st.integers(0, 3)),
    st.builds(flip, st.sampled_from([f"w{i}" for i in range(6)]), roles),
    st.builds(drain, st.sampled_from([f"w{i}" for i in range(6)])),
    st.builds(set_routing, remote_share=st.floats(allow_nan=True)),
)


@given(states, actions, st.dictionaries(st.sampled_from([f"w{i}" for i in range(6)]), st.integers(0, 4)))
def test_what_is_accepted_never_strands_work_and_undoes_exactly(
    placed: dict[str, Role], action: Action, running: dict[str, int]
) -> None:
    state = Desired(version=3, roles=placed)
    fleet = facts(state, running)
    planned = plan_action(action, state, fleet)
    if planned.refused is not None:
        return
    after = planned.desired_after
    assert after.roles.keys() == state.roles.keys()
    able_before = [w for w, r in state.roles.items() if r in (Role.DECODE, Role.MIXED)]
    able_after = [w for w, r in after.roles.items() if r in (Role.DECODE, Role.MIXED) and w not in after.drained]
    assert able_after or not able_before
    assert {s.worker_id for s in planned.steps if s.worker_id} == changes_between(state, after).workers
    if changes_between(state, after):
        assert after.version == 4
        undone = plan_action(Action(verb=Verb.UNDO, command_id=1), after, FleetFacts(), command(state, after, action))
        assert changes_between(undone.desired_after, state) == changes_between(state, state)


def test_a_failed_worker_does_not_count_as_able_to_decode() -> None:
    state = desired(1, 2)
    fleet = facts(state)
    broken = FleetFacts(workers={**fleet.workers, "w2": worker("w2", state=WorkerState.FAILED)})
    assert plan_action(drain("w1"), state, broken).refused is not None


@pytest.mark.parametrize(
    ("share", "word"), [({P: 0.5}, ""), ({P: 0.9}, "prefill"), ({D: 0.9}, ""), ({}, ""), ({P: 0.75}, "")]
)
def test_taking_more_of_a_pool_than_its_load_leaves_room_for_needs_its_name(
    share: dict[Role, float], word: str
) -> None:
    """4 -> 3 prefill workers: a share of 0.75 just fits, 0.9 would need 120%. The pool that grows is not judged."""
    planned = plan(resize(prefill=3, decode=5), desired(4, 4), pool_share=share)
    assert planned.needs_confirmation == word
    assert any("SLO would break" in each for each in planned.warnings) == bool(word)
    if word:
        assert "90% busy on 4 workers: 3 workers would need 120%" in planned.warnings[0]


def test_draining_a_worker_whose_kv_has_no_room_elsewhere_needs_the_pools_name() -> None:
    planned = plan(drain("w1"), desired(1, 4), pool_share={D: 0.8})
    assert planned.needs_confirmation == "decode"
    assert plan(drain("w1"), desired(1, 4), pool_share={D: 0.7}).needs_confirmation == ""
