"""A request in two phases on two cores: reservations, leases, copies, and what is left of them when one goes early."""

from __future__ import annotations

import msgspec
import pytest
from core_builders import LAYOUT, TOKENS, Bench, expected_tokens, hand_over, split

from engine.types import FinishReason, Role, WorkKind
from engine.wire import Pull, Rejected, Reserved

# --- handoff ----------------------------------------------------------------------------------------------------------


def test_a_split_request_equals_a_local_one_and_sends_each_position_once():
    source, target, reserved = split(num_tokens=10, max_tokens=5)
    assert reserved == Reserved("r1", 1, 0)
    done = source.prefilled()
    assert done.first_token == TOKENS.token(7, 10)
    assert (done.lease.num_tokens, len(done.lease.blocks)) == (10, 3)
    plan = hand_over(source, target)
    assert (plan.source_blocks, plan.first_block_to_copy) == (done.lease.blocks, 0)
    assert len(plan.own_blocks) == 3
    target.run()
    assert target.events()[0].position == 11
    assert [done.first_token, *target.tokens()] == expected_tokens(7, 10, 5)
    assert not source.core.has_work
    assert not target.core.has_work


def test_blocks_stay_with_the_holder_until_they_are_acknowledged():
    source, _, _ = split(num_tokens=10)
    lease_id = source.prefilled().lease.lease_id
    assert source.pool.num_held == 3
    assert source.core.load(0.0).num_leased == 1
    assert source.core.lease(lease_id).blocks == source.prefilled().lease.blocks
    assert source.core.ack(lease_id, source.now_s)
    assert (source.pool.num_held, source.pool.num_cached) == (0, 2)
    assert not source.core.ack(lease_id, source.now_s)


def test_an_overdue_lease_is_freed_and_its_late_acknowledgement_refused():
    source, target, _ = split(prefill=Bench(Role.PREFILL, lease_s=30.0))
    assert source.core.next_timer_s() == source.now_s + 30.0
    source.now_s += 30.0
    source.core.expire(source.now_s)
    assert source.pool.num_held == 0
    hand_over(source, target)
    assert target.pool.num_held == 0
    assert target.core.next_step(target.now_s) is None


def test_a_prompt_that_ends_with_its_first_token_leaves_no_lease():
    source, _, _ = split(max_tokens=1)
    assert source.prefilled().finish is FinishReason.LENGTH
    assert source.prefilled().lease is None
    assert source.pool.num_held == 0


def test_a_cached_prefix_is_not_copied():
    target = Bench(Role.DECODE)
    target.submit("before", 9, first=50, max_tokens=1)
    target.run()
    source, target, reserved = split(num_tokens=14, first=50, decode=target)
    assert reserved.num_cached == 8
    plan = hand_over(source, target)
    assert plan.first_block_to_copy == 2
    assert plan.source_blocks == source.prefilled().lease.blocks[2:]
    assert len(plan.own_blocks) == 2
    target.run()
    assert target.tokens() == expected_tokens(7, 15, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "bfloat16"}, "layout.dtype differs: 'seeded' here, 'bfloat16' there"),
        ({"block_tokens": 8}, "layout.block_tokens differs: 4 here, 8 there"),
        ({"model_id": "other"}, "layout.model_id differs: 'tiny' here, 'other' there"),
        ({"weights_digest": "x"}, "layout.weights_digest"),
    ],
)
def test_an_unequal_layout_is_refused_by_name(change, words):
    source, target, _ = split()
    done = source.prefilled()
    lease = msgspec.structs.replace(done.lease, layout=msgspec.structs.replace(LAYOUT, **change))
    answer = target.core.begin_pull("g1", Pull("r1", 1, lease, done.first_token), target.now_s)
    assert answer.code == "layout"
    assert words in answer.detail
    assert not target.core.has_work


def test_a_failed_copy_frees_the_reservation_and_says_so():
    source, target, _ = split()
    done = source.prefilled()
    target.core.begin_pull("g1", Pull("r1", 1, done.lease, done.first_token), target.now_s)
    (answer,) = target.core.pull_done("r1", 1, False, target.now_s, "the holder is gone")
    assert (answer.code, answer.detail) == ("handoff", "the holder is gone")
    assert target.pool.num_held == 0
    assert target.pool.num_cached == 0


def test_a_reservation_that_nobody_pulls_frees_itself():
    target = Bench(Role.DECODE, lease_s=30.0)
    target.submit("r1", 10, WorkKind.DECODE)
    assert target.core.next_timer_s() == target.now_s + 30.0
    target.now_s += 30.0
    assert target.step() is None
    assert target.rejected().code == "handoff"
    assert target.pool.num_held == 0


def test_a_pull_of_another_peer_or_of_nothing_is_unknown():
    source, target, _ = split()
    pull = Pull("r1", 1, source.prefilled().lease, 5)
    assert target.core.begin_pull("g2", pull, target.now_s).code == "unknown"
    assert target.core.begin_pull("g1", msgspec.structs.replace(pull, attempt=2), target.now_s).code == "unknown"
    assert not isinstance(target.core.begin_pull("g1", pull, target.now_s), Rejected)
    assert target.core.begin_pull("g1", pull, target.now_s).code == "unknown"


# --- leaving early ----------------------------------------------------------------------------------------------------


def test_a_cancelled_request_frees_its_blocks_at_once_between_steps():
    bench = Bench()
    bench.submit("r1", 10, max_tokens=50)
    bench.step()
    assert bench.core.cancel("g1", "r1", 1, bench.now_s)
    assert bench.pool.num_held == 0
    assert bench.events()[-1].finish is FinishReason.CANCELLED
    assert bench.step() is None


@pytest.mark.parametrize("steps_before", [0, 1, 2])
def test_a_cancel_during_a_step_waits_for_its_end_and_no_longer(steps_before):
    bench = Bench()
    bench.submit("r1", 10, max_tokens=50)
    bench.submit("r2", 6, max_tokens=3)
    for _ in range(steps_before):
        bench.step()
    plan = bench.begin()
    held = bench.pool.num_held
    bench.core.cancel("g1", "r1", 1, bench.now_s)
    assert bench.pool.num_held == held
    bench.finish(plan)
    assert len(bench.tokens("r1")) == steps_before
    assert bench.events("r1")[-1].finish is FinishReason.CANCELLED
    bench.run()
    assert bench.tokens("r2") == expected_tokens(7, 6, 3)
    assert bench.pool.num_held == 0


def test_only_its_peer_may_cancel_a_request():
    bench = Bench()
    bench.submit("r1")
    assert not bench.core.cancel("g2", "r1", 1, bench.now_s)
    assert not bench.core.cancel("g1", "r1", 2, bench.now_s)
    assert bench.core.has_work


def test_a_cancel_after_prefilled_gives_the_lease_up():
    source, _, _ = split()
    assert source.core.cancel("g1", "r1", 1, source.now_s)
    assert source.pool.num_held == 0


def test_a_cancel_while_blocks_are_being_copied_waits_for_the_copy():
    source, target, _ = split()
    done = source.prefilled()
    target.core.begin_pull("g1", Pull("r1", 1, done.lease, done.first_token), target.now_s)
    target.core.cancel("g1", "r1", 1, target.now_s)
    assert target.pool.num_held == 3
    assert target.core.pull_done("r1", 1, True, target.now_s) == []
    assert target.pool.num_held == 0
    assert target.events()[-1].finish is FinishReason.CANCELLED


def test_a_lost_peer_takes_its_requests_along_but_not_its_leases():
    bench = Bench(Role.MIXED)
    bench.submit("leased", 8, WorkKind.PREFILL)
    bench.submit("local", 8, max_tokens=50)
    bench.submit("other", 8, max_tokens=4, peer="g2")
    bench.step()
    bench.step()
    plan = bench.begin()
    assert bench.core.drop_peer("g1", bench.now_s) == 1
    bench.told.clear()
    bench.finish(plan)
    assert "g1" not in bench.told
    assert bench.core.load(0.0).num_leased == 1
    bench.run()
    assert bench.pool.num_held == 2
    assert not bench.core.drop_peer("g1", bench.now_s)
