from __future__ import annotations

import math

import msgspec
import pytest
from core_builders import (
    DECODE_S,
    LAYOUT,
    MODEL,
    PREFILL_S,
    TOKENS,
    Bench,
    expected_tokens,
    hand_over,
    memory_meter,
    submit,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.histogram import quantile
from engine.meter_reader import MeterReader
from engine.types import FinishReason, Role, WorkerState, WorkKind
from engine.wire import Prefilled, Pull, Rejected, Reserved
from engine.work import ModelWork, decode_flops, prefill_flops


def split(num_tokens=10, max_tokens=5, prefill=None, decode=None, **more):
    """Submit one request to both sides, as a gateway does, and compute its prompt."""
    source = prefill or Bench(Role.PREFILL)
    target = decode or Bench(Role.DECODE)
    (reserved,) = target.submit("r1", num_tokens, WorkKind.DECODE, max_tokens=max_tokens, **more)
    assert source.submit("r1", num_tokens, WorkKind.PREFILL, max_tokens=max_tokens, **more) == []
    source.run()
    return source, target, reserved


# --- one request -----------------------------------------------------------------------------------------------------


def test_a_local_request_gets_all_its_tokens_in_order_and_ends_once():
    bench = Bench(Role.DECODE)
    assert bench.submit("r1", 10, max_tokens=5) == []
    bench.run()
    assert bench.tokens() == expected_tokens(7, 10, 5)
    assert [event.finish for event in bench.events()] == [None, None, None, None, FinishReason.LENGTH]
    assert bench.events()[0].position == 10
    assert not bench.core.has_work


def test_a_stop_token_ends_a_request_and_is_its_last_token():
    stop = TOKENS.token(7, 12)
    bench = Bench()
    bench.submit("r1", 10, max_tokens=50, stop_token_ids=(stop,))
    bench.run()
    assert bench.tokens() == expected_tokens(7, 10, 3)
    assert bench.events()[-1].finish is FinishReason.STOP


def test_the_context_bounds_a_request():
    bench = Bench(num_blocks=80)
    bench.submit("r1", MODEL.max_context - 3, max_tokens=100)
    bench.run()
    assert len(bench.tokens()) == 3
    assert bench.events()[-1].finish is FinishReason.LENGTH


def test_one_token_is_enough():
    bench = Bench()
    bench.submit("r1", 10, max_tokens=1)
    assert bench.run() == 1
    assert bench.tokens() == expected_tokens(7, 10, 1)
    assert bench.pool.num_held == 0


def test_a_continuation_goes_on_where_the_sent_tokens_end():
    prompt, sent = list(range(1, 11)), expected_tokens(7, 10, 3)
    bench = Bench()
    bench.submit("r1", prompt=prompt + sent, num_prompt=10, max_tokens=8, attempt=2)
    bench.run()
    assert bench.events()[0].position == 13
    assert bench.tokens() == expected_tokens(7, 13, 5)


def test_stage_times_add_up():
    bench = Bench(prefill_chunk_tokens=16)
    bench.submit("r1", 16, max_tokens=3)
    bench.now_s += 2.0
    bench.run()
    times = bench.events()[-1].times
    assert (times.queue_s, times.prefill_s) == (2.0, 0.5)
    assert times.decode_s == pytest.approx(0.2)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        ({"prompt": []}, "invalid", "prompt is empty"),
        ({"prompt": [5, 1000]}, "invalid", "token 1000, must be 0..999"),
        ({"prompt": [-1]}, "invalid", "token -1, must be 0..999"),
        ({"num_tokens": 5, "num_prompt": 6}, "invalid", "num_prompt is 6, must be 1..5"),
        ({"max_tokens": 0}, "invalid", "max_tokens is 0, must be at least 1"),
        ({"num_tokens": 256}, "too_long", "prompt has 256 tokens, at most 255"),
        ({"num_tokens": 10, "num_prompt": 5, "max_tokens": 5}, "invalid", "5 tokens were sent already"),
        ({"deadline_unix_s": 99.0}, "deadline", "has passed"),
        ({"num_tokens": 100, "max_tokens": 156}, "too_long", "may need 64 KV blocks, this worker has 20"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_with_the_bound(more, code, words):
    bench = Bench(num_blocks=20)
    (answer,) = bench.submit("r1", **more)
    assert isinstance(answer, Rejected)
    assert answer.code == code
    assert words in answer.detail
    assert not bench.core.has_work


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", value) for value in (-0.1, 1e-310, math.nan, math.inf)),
        *(("top_p", value) for value in (0.0, 1.5, math.nan)),
        ("top_k", -1),
        ("max_tokens", 0),
    ],
)
def test_sampling_that_no_token_can_be_drawn_with_never_reaches_a_runner(field, value):
    bench = Bench()
    good = submit("r1", 5)
    wrong = msgspec.structs.replace(good, sampling=msgspec.structs.replace(good.sampling, **{field: value}))
    (answer,) = bench.core.submit("g1", wrong, bench.now_s)
    assert (answer.code, answer.detail.split()[0]) == ("invalid", field)


@pytest.mark.parametrize(
    ("role", "kind"),
    [
        (Role.UNASSIGNED, WorkKind.LOCAL),
        (Role.PREFILL, WorkKind.LOCAL),
        (Role.PREFILL, WorkKind.DECODE),
        (Role.DECODE, WorkKind.PREFILL),
    ],
)
def test_a_role_admits_only_its_kinds(role, kind):
    (answer,) = Bench(role).submit("r1", 5, kind)
    assert answer.code == "role"
    assert role in answer.detail


def test_the_queue_is_bounded():
    bench = Bench(max_queue=2)
    assert bench.submit("a") == bench.submit("b") == []
    (answer,) = bench.submit("c")
    assert answer.code == "queue_full"
    assert answer.retry_after_s > 0


def test_the_same_request_twice_is_refused_and_disturbs_nothing():
    bench = Bench()
    bench.submit("r1")
    (answer,) = bench.submit("r1")
    assert answer.code == "invalid"
    bench.run()
    assert bench.tokens() == expected_tokens(7, 10, 5)


def test_a_reservation_that_does_not_fit_holds_nothing():
    bench = Bench(Role.DECODE, num_blocks=8)
    (first,) = bench.submit("r1", 16, WorkKind.DECODE, max_tokens=5)
    assert isinstance(first, Reserved)
    (second,) = bench.submit("r2", 16, WorkKind.DECODE, max_tokens=5)
    assert (second.code, second.retry_after_s > 0) == ("no_kv", True)
    assert bench.core.load(bench.now_s).kv_blocks_room == 3


def test_a_reservation_does_not_overtake_a_request_that_waits_for_kv():
    bench = Bench(Role.DECODE, num_blocks=8)
    bench.submit("big", 16, max_tokens=5)
    bench.submit("next", 16, max_tokens=5)
    bench.step()
    bench.step()
    (answer,) = bench.submit("small", 8, WorkKind.DECODE, max_tokens=1)
    assert answer.code == "no_kv"


def test_a_request_whose_deadline_passes_in_the_queue_is_refused():
    bench = Bench(max_batch=1, unix_offset_s=1000.0)
    bench.submit("r1", 4, max_tokens=50)
    bench.submit("r2", 4, deadline_unix_s=bench.now_s + 1000.0 + 2.0)
    assert bench.core.next_timer_s() == bench.now_s + 2.0
    bench.run()
    assert bench.rejected("r2").code == "deadline"
    assert len(bench.tokens("r1")) == 50


def test_a_request_whose_deadline_passes_while_it_decodes_ends_and_frees_its_blocks():
    bench = Bench()
    bench.submit("r1", 10, max_tokens=50, deadline_unix_s=bench.now_s + PREFILL_S + 3.5 * DECODE_S)
    bench.run()
    assert bench.rejected("r1").code == "deadline"
    assert bench.rejected("r1").detail == "the deadline passed after 5 tokens here"
    assert bench.pool.num_held == bench.scheduler.reserved_blocks == 0


def test_a_request_whose_deadline_passes_during_a_step_ends_with_that_step():
    bench = Bench()
    bench.submit("r1", 10, max_tokens=50, deadline_unix_s=bench.now_s + 0.25)
    plan = bench.begin()
    bench.core.expire(bench.now_s + 0.3)
    assert bench.pool.num_held > 0, "a step writes its blocks"
    bench.finish(plan)
    assert bench.rejected("r1").code == "deadline"
    assert bench.pool.num_held == 0


def test_a_reservation_whose_deadline_passes_is_given_up():
    bench = Bench(Role.DECODE)
    bench.submit("r1", 8, WorkKind.DECODE, deadline_unix_s=bench.now_s + 1.0)
    assert bench.core.next_timer_s() == bench.now_s + 1.0
    bench.core.expire(bench.now_s + 1.0)
    assert bench.rejected("r1").code == "deadline"
    assert bench.pool.num_held == 0


def test_a_begun_batch_prompt_pauses_for_an_interactive_one_and_then_goes_on():
    bench = Bench(prefill_chunk_tokens=16)
    bench.submit("batch", 40, max_tokens=1, priority=10)
    bench.step()
    bench.submit("user", 16, max_tokens=1)
    bench.step()
    assert [len(bench.tokens(each)) for each in ("batch", "user")] == [0, 1]
    bench.run()
    assert len(bench.tokens("batch")) == 1


def test_the_load_says_how_many_prompt_tokens_were_computed_in_how_much_time():
    bench = Bench(prefill_chunk_tokens=16)
    bench.submit("r1", 40, max_tokens=3)
    bench.run()
    load = bench.core.load(bench.now_s)
    assert (load.prefill_tokens, load.prefill_steps_s) == (40, 3 * PREFILL_S)
    assert (load.num_decoding, load.max_batch) == (0, 8)


# --- handoff ---------------------------------------------------------------------------------------------------------


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


# --- leaving early ---------------------------------------------------------------------------------------------------


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


# --- orders ----------------------------------------------------------------------------------------------------------


def test_a_fresh_worker_waits_for_a_role():
    bench = Bench(Role.UNASSIGNED)
    assert (bench.core.state, bench.core.role) == (WorkerState.UNASSIGNED, Role.UNASSIGNED)
    result = bench.order("place", Role.PREFILL, fence=4)
    assert (result.ok, result.role, result.state) == (True, Role.PREFILL, WorkerState.READY)
    assert bench.core.fence == 4
    assert bench.core.reason == ""


def test_an_older_fence_is_refused_with_the_newest_seen():
    bench = Bench()
    bench.order("drain", fence=7)
    result = bench.order("undrain", fence=6)
    assert not result.ok
    assert result.error == "fence 6 is older than the newest seen here, 7"
    assert bench.core.state is WorkerState.DRAINED


@pytest.mark.parametrize(
    ("verb", "role", "words"),
    [
        ("paint", Role.DECODE, "verb 'paint' is unknown"),
        ("place", Role.UNASSIGNED, "role unassigned cannot be ordered"),
        ("flip", Role.UNASSIGNED, "role unassigned cannot be ordered"),
        ("place", Role.DECODE, "has the role mixed already; flip it to decode"),
    ],
)
def test_an_order_that_makes_no_sense_changes_nothing(verb, role, words):
    bench = Bench(Role.MIXED)
    result = bench.order(verb, role)
    assert not result.ok
    assert words in result.error
    assert (bench.core.role, bench.core.state) == (Role.MIXED, WorkerState.READY)


@pytest.mark.parametrize("verb", ["place", "flip"])
def test_an_order_that_holds_already_is_ok(verb):
    assert Bench(Role.MIXED).order(verb, Role.MIXED).ok


def test_an_idle_flip_is_complete_when_the_order_returns():
    bench = Bench(Role.DECODE)
    result = bench.order("flip", Role.PREFILL)
    assert (result.ok, result.role, result.state) == (True, Role.PREFILL, WorkerState.READY)
    assert bench.submit("r1", 5, WorkKind.PREFILL) == []


def test_a_flip_that_widens_is_at_once_and_disturbs_nothing():
    bench = Bench(Role.DECODE)
    bench.submit("r1", 10, max_tokens=5)
    bench.step()
    assert bench.order("flip", Role.MIXED).state is WorkerState.READY
    bench.run()
    assert bench.tokens() == expected_tokens(7, 10, 5)


def test_a_flip_finishes_what_the_new_role_does_not_serve():
    bench = Bench(Role.DECODE)
    bench.submit("r1", 10, max_tokens=5)
    bench.step()
    result = bench.order("flip", Role.PREFILL)
    assert (result.ok, result.role, result.state) == (True, Role.DECODE, WorkerState.DRAINING)
    assert bench.core.reason == "drains to become prefill"
    assert bench.submit("r2", 5)[0].code == "draining"
    bench.run()
    assert bench.tokens() == expected_tokens(7, 10, 5)
    assert (bench.core.role, bench.core.state) == (Role.PREFILL, WorkerState.READY)


def test_a_flip_away_from_prefill_waits_for_its_leases():
    source, _, _ = split()
    assert source.order("flip", Role.DECODE).state is WorkerState.DRAINING
    source.core.ack(source.prefilled().lease.lease_id, source.now_s)
    assert (source.core.role, source.core.state) == (Role.DECODE, WorkerState.READY)


def test_a_flip_away_from_prefill_ends_when_the_lease_expires():
    source, _, _ = split()
    source.order("flip", Role.DECODE)
    source.now_s += 31.0
    assert source.step() is None
    assert (source.core.role, source.core.state) == (Role.DECODE, WorkerState.READY)


def test_of_flips_back_to_back_the_newest_wins():
    bench = Bench(Role.DECODE)
    bench.submit("r1", 10, max_tokens=5)
    bench.step()
    bench.order("flip", Role.PREFILL, fence=2)
    result = bench.order("flip", Role.DECODE, fence=3)
    assert (result.role, result.state) == (Role.DECODE, WorkerState.READY)
    bench.order("flip", Role.PREFILL, fence=4)
    bench.order("flip", Role.MIXED, fence=5)
    bench.run()
    assert (bench.core.role, bench.core.state) == (Role.MIXED, WorkerState.READY)
    assert bench.tokens() == expected_tokens(7, 10, 5)


def test_a_drain_bounces_what_only_waits_and_finishes_what_runs():
    bench = Bench(Role.DECODE, prefill_chunk_tokens=8)
    bench.submit("r1", 16, max_tokens=5)
    bench.submit("r2", 16, max_tokens=5)
    bench.step()
    assert bench.order("drain").state is WorkerState.DRAINING
    assert bench.rejected("r2").code == "draining"
    bench.run()
    assert bench.tokens("r1") == expected_tokens(7, 16, 5)
    assert bench.core.state is WorkerState.DRAINED
    assert bench.submit("r3")[0].code == "draining"


def test_a_preempted_request_is_never_bounced():
    bench = Bench(Role.DECODE, num_blocks=6, admission="preempt")
    bench.submit("old", 8, max_tokens=12)
    bench.submit("new", 8, max_tokens=12)
    while not bench.scheduler.num_preempted:
        bench.step()
    bench.order("drain")
    bench.run()
    assert bench.tokens("new") == expected_tokens(7, 8, 12)
    assert bench.core.state is WorkerState.DRAINED


def test_an_undrain_opens_again():
    bench = Bench(Role.DECODE)
    assert bench.order("drain").state is WorkerState.DRAINED
    assert bench.order("undrain").state is WorkerState.READY
    assert bench.order("undrain").ok


def test_a_drained_worker_can_be_flipped_and_stays_drained():
    bench = Bench(Role.DECODE)
    bench.order("drain")
    result = bench.order("flip", Role.PREFILL)
    assert (result.role, result.state) == (Role.PREFILL, WorkerState.DRAINED)
    assert bench.order("undrain").state is WorkerState.READY


def test_a_worker_without_a_role_can_be_drained_and_undrained():
    bench = Bench(Role.UNASSIGNED)
    assert bench.order("drain").state is WorkerState.DRAINED
    assert bench.order("undrain").state is WorkerState.UNASSIGNED


def test_stop_ends_every_request_with_an_error_once():
    bench = Bench(Role.MIXED)
    bench.submit("running", 8, max_tokens=50)
    bench.step()
    bench.submit("queued", 8)
    plan = bench.begin()
    bench.submit("late", 8)
    assert bench.order("stop").state is WorkerState.STOPPED
    bench.finish(plan)
    for name in ("running", "queued"):
        last = bench.events(name)[-1]
        assert (last.finish, last.error) == (FinishReason.ERROR, "the worker was stopped")
    assert bench.rejected("late").code == "draining"
    assert not bench.core.has_work
    assert bench.step() is None
    assert not bench.order("undrain").ok


def test_a_failed_worker_ends_every_request_and_forgets_its_step():
    meter = memory_meter()
    bench = Bench(Role.MIXED, meter=meter)
    bench.submit("r1", 8, max_tokens=50)
    plan = bench.begin()
    assert MeterReader(meter).read(0).step_running_s is not None
    bench.core.fail("out of memory", bench.now_s)
    bench.finish(plan)
    assert (bench.events()[-1].finish, bench.events()[-1].error) == (FinishReason.ERROR, "out of memory")
    assert (bench.core.state, bench.core.reason) == (WorkerState.FAILED, "out of memory")
    assert MeterReader(meter).read(0).step_running_s is None
    assert bench.pool.num_held == 0


def test_a_change_is_told_once():
    bench = Bench(Role.UNASSIGNED)
    assert bench.core.status_changed() is None
    bench.order("place", Role.DECODE)
    status = bench.core.status_changed()
    assert (status.role, status.state, status.fence) == (Role.DECODE, WorkerState.READY, 1)
    assert bench.core.status_changed() is None


# --- what is counted -------------------------------------------------------------------------------------------------


def test_the_meter_counts_each_phase_under_the_role_that_was_held_when_the_step_began():
    meter = memory_meter()
    bench = Bench(Role.MIXED, meter=meter)
    bench.submit("r1", 10, max_tokens=3)
    bench.step()
    plan = bench.begin()
    bench.order("flip", Role.DECODE)
    bench.finish(plan)
    bench.step()
    counters = MeterReader(meter).read(0).counters
    assert set(counters) == {"mixed/prefill", "mixed/decode", "decode/decode"}
    prefill, first, second = (counters[key] for key in ("mixed/prefill", "mixed/decode", "decode/decode"))
    assert (prefill.tokens, prefill.steps, prefill.busy_s) == (10, 1, 0.5)
    assert prefill.flops == prefill_flops(MODEL, 10, 10, 1)
    assert first.flops == decode_flops(MODEL, 11, 1)
    assert second.bytes == ModelWork(MODEL).decode_bytes(12, 1)


def test_flops_are_the_same_however_a_prompt_is_chunked():
    meter = memory_meter()
    bench = Bench(Role.PREFILL, meter=meter, prefill_chunk_tokens=7)
    bench.submit("r1", 40, WorkKind.PREFILL)
    bench.run()
    assert MeterReader(meter).read(0).counters["prefill/prefill"].flops == prefill_flops(MODEL, 40, 40, 1)


def test_latencies_are_counted_once_each():
    meter = memory_meter()
    bench = Bench(Role.MIXED, meter=meter)
    bench.submit("r1", 10, max_tokens=4)
    bench.submit("r2", 5, max_tokens=4)
    bench.run()
    histograms = MeterReader(meter).read(0).histograms
    counts = {kind: sum(buckets.values()) for kind, buckets in histograms.items()}
    assert counts == {"queue": 2, "prefill": 2, "ttft": 2, "itl": 6, "tpot": 2, "e2e": 2}
    assert quantile(histograms["itl"], 0.5) == pytest.approx(0.1, rel=0.01)
    assert quantile(histograms["ttft"], 0.5) == pytest.approx(0.5, rel=0.01)
    assert quantile(histograms["e2e"], 0.5) == pytest.approx(0.8, rel=0.01)


def test_a_handoff_is_counted_where_it_arrives():
    meter = memory_meter()
    source, target, _ = split(decode=Bench(Role.DECODE, meter=meter))
    done = source.prefilled()
    target.core.begin_pull("g1", Pull("r1", 1, done.lease, done.first_token), target.now_s)
    target.now_s += 0.25
    target.core.pull_done("r1", 1, True, target.now_s)
    target.run()
    assert quantile(MeterReader(meter).read(0).histograms["handoff"], 0.5) == pytest.approx(0.25, rel=0.01)
    assert target.events()[-1].times.handoff_s == 0.25


def test_the_meter_page_shows_state_and_load():
    meter = memory_meter()
    bench = Bench(Role.DECODE, meter=meter)
    bench.submit("r1", 10, max_tokens=50)
    bench.step()
    bench.order("flip", Role.PREFILL, fence=9)
    reading = MeterReader(meter).read(0)
    assert (reading.role, reading.state, reading.fence) == (Role.DECODE, WorkerState.DRAINING, 9)
    assert reading.reason == "drains to become prefill"
    assert (reading.load.num_running, reading.load.kv_blocks_held) == (1, 3)


# --- whatever happens ------------------------------------------------------------------------------------------------


class Fleet:
    """Two workers and a gateway by hand: every request goes local or split, with faults on the way."""

    def __init__(self, admission: str) -> None:
        self.workers = [Bench(Role.MIXED, num_blocks=24, max_batch=4, admission=admission) for _ in range(2)]
        self.copies: list[tuple[int, str, str]] = []  # target, req_id, lease_id
        self.firsts: dict[str, int] = {}

    def tick(self) -> bool:
        plans = [worker.step() for worker in self.workers]
        for index, worker in enumerate(self.workers):
            box = worker.told.get("g1")
            while box and box.messages:
                self.take(index, box.messages.pop(0))
        return any(plans) or bool(self.copies)

    def take(self, index: int, message) -> None:
        if isinstance(message, Prefilled):
            self.firsts[message.req_id] = message.first_token
            if message.lease is not None:
                target = self.workers[1 - index]
                pull = Pull(message.req_id, 1, message.lease, message.first_token)
                plan = target.core.begin_pull("g1", pull, target.now_s)
                if not isinstance(plan, Rejected):
                    self.copies.append((1 - index, message.req_id, message.lease.lease_id))
                else:
                    self.workers[index].core.release(message.lease.lease_id)

    def copy(self, ok: bool) -> None:
        if self.copies:
            target, req_id, lease_id = self.copies.pop(0)
            good = self.workers[1 - target].core.ack(lease_id, self.workers[1 - target].now_s)
            self.workers[target].core.pull_done(req_id, 1, ok and good, self.workers[target].now_s)


@settings(max_examples=50, deadline=None)
@given(st.data(), st.sampled_from(["reserve", "preempt"]))
def test_whatever_happens_no_block_is_lost_and_no_token_repeats(data, admission):
    fleet = Fleet(admission)
    lengths: dict[str, tuple[int, int]] = {}
    spoiled: set[str] = set()
    choose = st.sampled_from(["local", "split", "tick", "tick", "copy", "fail copy", "cancel", "flip"])
    for index, action in enumerate(data.draw(st.lists(choose, max_size=40))):
        first = fleet.workers[index % 2]
        name = f"r{index}"
        if action in ("local", "split"):
            size, most = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 12))
            lengths[name] = (size, most)
            kind = WorkKind.LOCAL if action == "local" else WorkKind.PREFILL
            if action == "split":
                other = fleet.workers[1 - index % 2]
                answer = other.submit(name, size, WorkKind.DECODE, max_tokens=most, first=1)
                if not isinstance(answer[0], Reserved):
                    spoiled.add(name)
                    continue
            if first.submit(name, size, kind, max_tokens=most, first=1):
                spoiled.add(name)
        elif action == "cancel" and lengths:
            name = data.draw(st.sampled_from(sorted(lengths)))
            spoiled.add(name)
            for worker in fleet.workers:
                worker.core.cancel("g1", name, 1, worker.now_s)
        elif action == "flip":
            role = data.draw(st.sampled_from([Role.PREFILL, Role.DECODE, Role.MIXED]))
            first.order("flip", role)
            spoiled |= set(lengths)  # it may bounce any of them
        elif action in ("copy", "fail copy"):
            if action == "fail copy" and fleet.copies:
                spoiled.add(fleet.copies[0][1])
            fleet.copy(action == "copy")
        else:
            fleet.tick()
    for _ in range(500):
        busy = fleet.tick()
        fleet.copy(True)
        if not busy:
            break
    for worker in fleet.workers:
        worker.now_s += 1000.0
        worker.run()
        assert (worker.pool.num_held, worker.scheduler.reserved_blocks) == (0, 0)
        assert worker.scheduler.queued_tokens == 0
        assert not worker.core.has_work
    for name, (size, most) in lengths.items():
        got: list[int] = [fleet.firsts[name]] if name in fleet.firsts else []
        for worker in fleet.workers:
            got += worker.tokens(name)
        expected = expected_tokens(7, size, most)
        assert got == (expected[: len(got)] if name in spoiled else expected)
