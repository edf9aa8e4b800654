"""Orders to a core: places, flips, drains, stops, and which of two orders holds."""

from __future__ import annotations

import pytest
from core_builders import Bench, expected_tokens, memory_meter, split

from engine.meter_reader import MeterReader
from engine.types import FinishReason, Role, WorkerState, WorkKind


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
