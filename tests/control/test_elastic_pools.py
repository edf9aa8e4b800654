"""Pools that have a size and no fixed workers: planned, ordered once, reached, and left to others who set it too."""

from __future__ import annotations

from dataclasses import replace

import pytest

from control.changes import changes_between
from control.commands import plan_action
from control.facts import FleetFacts, PoolFacts
from control.fleets.base import StepOutcome
from control.pools import pool_line, scale_steps
from control.reconcile import as_observed
from control.types.commands import Action, Desired, Verb
from control.types.workers import Role

BEFORE = Desired(version=3, roles={}, pools={"prefill": 1, "decode": 2})
OBEYED = StepOutcome(accepted=True)


def fleet(prefill: PoolFacts | None = None, decode: PoolFacts | None = None) -> FleetFacts:
    pools = {
        Role.PREFILL: prefill or PoolFacts(target=1, num_ready=1),
        Role.DECODE: decode or PoolFacts(target=2, num_ready=2),
    }
    return FleetFacts(pools=pools, max_pool=8, yields=True, can=frozenset({"resize"}))


def test_a_resize_is_planned_as_one_order_for_each_pool_and_undone_by_the_former_sizes():
    planned = plan_action(Action(verb=Verb.RESIZE, prefill=3), BEFORE, fleet())
    assert planned.refused is None
    assert [each.text for each in planned.steps] == ["scale prefill 1 -> 3 workers"]
    assert planned.desired_after.pools == {"prefill": 3, "decode": 2}
    assert planned.desired_after.version == 4
    changes = changes_between(BEFORE, planned.desired_after)
    assert changes.restored(planned.desired_after, BEFORE).pools == BEFORE.pools
    assert changes.words() == "the size of the prefill pool"


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (Action(verb=Verb.RESIZE, decode=0), "decode 0 is out of bounds"),
        (Action(verb=Verb.RESIZE, decode=9), "decode 9 is out of bounds"),
        (Action(verb=Verb.RESIZE, mixed=1), "has no mixed pool"),
    ],
)
def test_a_size_out_of_bounds_is_refused(action: Action, words: str):
    refused = plan_action(action, BEFORE, fleet()).refused
    assert refused is not None
    assert words in refused.detail


def test_a_pool_that_another_controller_sizes_is_not_ours():
    theirs = fleet(decode=PoolFacts(target=2, num_ready=2, rival="its deployment is autoscaled"))
    refused = plan_action(Action(verb=Verb.RESIZE, decode=3), BEFORE, theirs).refused
    assert refused is not None
    assert "not ours to resize: its deployment is autoscaled" in refused.detail


def test_losing_half_of_a_pool_needs_its_name():
    assert plan_action(Action(verb=Verb.RESIZE, decode=1), BEFORE, fleet()).needs_confirmation == "decode"


def test_a_size_is_ordered_once_and_again_only_where_it_was_refused_for_now():
    desired = replace(BEFORE, pools={"prefill": 1, "decode": 3})
    (step,) = scale_steps(desired, fleet(), {}, (), fence=7)
    assert (step.worker_id, step.size, step.fence) == ("decode pool", 3, 7)
    assert scale_steps(desired, fleet(), {"decode pool": OBEYED}, (), 7) == []
    assert scale_steps(desired, fleet(), {}, ("decode pool",), 7) == []
    assert len(scale_steps(desired, fleet(), {"decode pool": StepOutcome(accepted=False)}, (), 7)) == 1
    final = StepOutcome(accepted=False, retry_helps=False)
    assert scale_steps(desired, fleet(), {"decode pool": final}, (), 7) == []


@pytest.mark.parametrize(
    ("pool", "outcome", "state", "words"),
    [
        (PoolFacts(target=3, num_ready=3), OBEYED, "done", "has 3 workers"),
        (PoolFacts(target=3, num_ready=2, num_other=1), OBEYED, "running", "on its way to 3"),
        (PoolFacts(target=3, num_ready=3, num_other=1), OBEYED, "running", "on its way to 3"),
        (PoolFacts(target=2, num_ready=2), None, "running", "on its way to 3"),
        (PoolFacts(target=2, num_ready=2), OBEYED, "failed", "somebody else has set it to 2: we stop"),
        (PoolFacts(target=1, num_ready=2, rival="planner"), OBEYED, "failed", "but planner: we stop"),
        (PoolFacts(target=2, num_ready=2), StepOutcome(accepted=False), "running", "was not resized"),
        (PoolFacts(target=2, num_ready=2), StepOutcome(accepted=False, retry_helps=False), "failed", "was not"),
    ],
)
def test_a_size_is_reached_when_its_workers_are_seen(
    pool: PoolFacts, outcome: StepOutcome | None, state: str, words: str
):
    line = pool_line(Role.DECODE, replace(BEFORE, pools={"decode": 3}), fleet(decode=pool), outcome, 1.0)
    assert line.state == state
    assert words in line.text


def test_without_a_command_whatever_their_owner_sets_is_what_is_desired():
    assert as_observed(BEFORE, fleet(decode=PoolFacts(target=5, num_ready=4))).pools == {"prefill": 1, "decode": 5}
    unsaid = fleet(decode=PoolFacts(target=None, num_ready=4))
    assert as_observed(BEFORE, unsaid).pools["decode"] == 4
