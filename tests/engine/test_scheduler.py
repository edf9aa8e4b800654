from __future__ import annotations

import pytest
from core_builders import LAYOUT, Bench, expected_tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.blocks import BlockPool
from engine.scheduler import Scheduler
from engine.types import FinishReason, Role, WorkKind
from engine.wire import Lease, Pull, Rejected


def lengths(plan):
    return [len(chunk.token_ids) for chunk in plan.prefill]


def test_a_long_prompt_is_cut_into_chunks_and_samples_once():
    bench = Bench(prefill_chunk_tokens=16)
    bench.submit("r1", 40, max_tokens=1)
    plans = [bench.step(), bench.step(), bench.step()]
    assert [lengths(plan) for plan in plans] == [[16], [16], [8]]
    assert [plan.prefill[0].start for plan in plans] == [0, 16, 32]
    assert [plan.prefill[0].sample is not None for plan in plans] == [False, False, True]
    assert bench.step() is None


def test_short_prompts_share_a_chunk():
    bench = Bench(prefill_chunk_tokens=16)
    for name in ("r1", "r2", "r3"):
        bench.submit(name, 6)
    assert lengths(bench.step()) == [6, 6, 4]


def test_a_long_prompt_does_not_stall_decoding():
    bench = Bench(prefill_chunk_tokens=16)
    bench.submit("r1", 4, max_tokens=10)
    bench.step()
    bench.submit("r2", 64)
    for _ in range(4):
        plan = bench.step()
        assert lengths(plan) == [16]
        assert [item.position for item in plan.decode] == [3 + len(bench.tokens("r1")) - 1]


def test_priority_comes_before_arrival():
    bench = Bench(prefill_chunk_tokens=8)
    for name, priority in (("late", 5), ("a", 0), ("b", 0)):
        bench.submit(name, 8, priority=priority, max_tokens=1)
    for _ in range(3):
        bench.step()
    assert [event.req_id for event in bench.told["g1"].events] == ["a", "b", "late"]


def test_a_waiting_prompt_holds_no_blocks():
    bench = Bench(prefill_chunk_tokens=8)
    bench.submit("r1", 8, kind=WorkKind.PREFILL)
    bench.submit("r2", 8, kind=WorkKind.PREFILL)
    bench.begin()
    assert bench.pool.num_held == 2
    assert bench.core.load(bench.now_s).num_waiting == 1


def test_reserve_admits_only_what_fits_with_all_it_may_generate():
    bench = Bench(num_blocks=8)
    bench.submit("r1", 8, max_tokens=9)  # 16 tokens of KV: 4 blocks
    bench.submit("r2", 8, max_tokens=9)
    bench.submit("r3", 4, max_tokens=2)  # would fit beside r1 alone, but nobody overtakes
    bench.step()
    assert set(bench.scheduler.prefilling) | set(bench.scheduler.running) == {1, 2}
    assert bench.core.load(bench.now_s).kv_blocks_room == 0
    bench.run()
    for name, start, count in (("r1", 8, 9), ("r2", 8, 9), ("r3", 4, 2)):
        assert bench.tokens(name) == expected_tokens(7, start, count)
    assert bench.scheduler.num_preempted == 0


def test_a_running_sequence_never_stops_under_reserve():
    bench = Bench(num_blocks=8, max_batch=8)
    for index in range(12):
        bench.submit(f"r{index}", 5, max_tokens=11)
    bench.run()
    for index in range(12):
        assert bench.tokens(f"r{index}") == expected_tokens(7, 5, 11)
    assert bench.scheduler.reserved_blocks == 0
    assert bench.pool.num_held == 0


def test_preempt_gives_up_the_newest_of_the_lowest_priority_and_computes_it_again():
    bench = Bench(num_blocks=6, admission="preempt")
    bench.submit("old", 8, max_tokens=12)
    bench.submit("low", 8, max_tokens=12, priority=1)
    bench.submit("new", 4, max_tokens=12)
    bench.run()
    assert bench.scheduler.num_preempted > 0
    for name, start in (("old", 8), ("low", 8), ("new", 4)):
        assert bench.tokens(name) == expected_tokens(7, start, 12)
        assert bench.events(name)[-1].finish is FinishReason.LENGTH
    finished = [event.req_id for event in bench.told["g1"].events if event.finish]
    assert finished[-1] == "low"
    assert bench.pool.num_held == 0


def test_a_prefix_that_is_cached_is_not_computed_again():
    bench = Bench()
    bench.submit("r1", 13, first=100, max_tokens=1)
    bench.run()
    bench.submit("r2", 14, first=100, max_tokens=1)
    plan = bench.step()
    assert (plan.prefill[0].start, lengths(plan)) == (12, [2])
    assert bench.events("r2")[-1].times.num_cached == 12


def test_generated_tokens_are_cached_too():
    bench = Bench()
    bench.submit("r1", 6, first=100, max_tokens=8)
    bench.run()
    prompt = [100 + index for index in range(6)] + bench.tokens("r1")  # 14 tokens, KV of 13
    bench.submit("r2", prompt=[*prompt, 5, 6], max_tokens=1)
    assert bench.step().prefill[0].start == 12


def test_the_batch_is_bounded_and_the_rest_waits_its_turn():
    bench = Bench(max_batch=2, prefill_chunk_tokens=64)
    for index in range(4):
        bench.submit(f"r{index}", 4, max_tokens=6)
    largest = 0
    while (plan := bench.step()) is not None:
        largest = max(largest, len(plan.decode))
    assert largest == 2
    for index in range(4):
        assert bench.tokens(f"r{index}") == expected_tokens(7, 4, 6)


def test_queued_tokens_count_what_is_left_to_compute():
    bench = Bench(prefill_chunk_tokens=16)
    bench.submit("r1", 40)
    bench.submit("r2", 10)
    assert bench.core.load(bench.now_s).queued_prefill_tokens == 50
    bench.step()
    assert bench.core.load(bench.now_s).queued_prefill_tokens == 34
    bench.core.cancel("g1", "r1", 1, bench.now_s)
    assert bench.core.load(bench.now_s).queued_prefill_tokens == 10
    bench.run()
    assert bench.core.load(bench.now_s).queued_prefill_tokens == 0


def test_an_unknown_admission_is_named():
    with pytest.raises(ValueError, match="admission is 'hope', must be one of reserve, preempt"):
        Scheduler(BlockPool(1, 1), max_batch=1, prefill_chunk_tokens=1, admission="hope")


requests = st.tuples(
    st.integers(1, 30),  # prompt tokens
    st.integers(1, 20),  # max_tokens
    st.integers(0, 2),  # priority
    st.integers(0, 3),  # which prompt family: equal ones share prefixes
    st.integers(0, 6),  # steps before it comes
    st.booleans(),  # cancelled on the way
)


@settings(max_examples=60, deadline=None)
@given(st.lists(requests, min_size=1, max_size=10), st.sampled_from(["reserve", "preempt"]), st.integers(13, 30))
def test_whatever_comes_every_request_ends_with_its_tokens_and_all_blocks_return(wanted, admission, num_blocks):
    bench = Bench(Role.MIXED, num_blocks=num_blocks, admission=admission, max_batch=3, prefill_chunk_tokens=8)
    for index, (num_tokens, max_tokens, priority, family, gap, _) in enumerate(wanted):
        answer = bench.submit(
            f"r{index}", num_tokens, first=1 + family, max_tokens=max_tokens, priority=priority, seed=index
        )
        assert answer == []
        for _ in range(gap):
            check_step(bench)
        if wanted[index][5]:
            bench.core.cancel("g1", f"r{index}", 1, bench.now_s)
    for _ in range(2000):
        if check_step(bench) is None:
            break
    for index, (num_tokens, max_tokens, _, _, _, cancelled) in enumerate(wanted):
        got = bench.tokens(f"r{index}")
        expected = expected_tokens(index, num_tokens, max_tokens)
        assert got == (expected[: len(got)] if cancelled else expected)
        assert [event.finish is not None for event in bench.events(f"r{index}")].count(True) == 1
    assert (bench.pool.num_held, bench.scheduler.reserved_blocks, bench.scheduler.queued_tokens) == (0, 0, 0)
    assert not bench.core.has_work


def check_step(bench):
    """One step; no two sequences write one block, and no written block is in the prefix index."""
    plan = bench.begin()
    if plan is None:
        return None
    written: list[int] = []
    for chunk in plan.prefill:
        first, last = chunk.start // 4, (chunk.start + len(chunk.token_ids) - 1) // 4
        written += chunk.block_table[first : last + 1]
    written += [item.block_table[item.position // 4] for item in plan.decode]
    assert len(set(written)) == len(written)
    assert all(bench.pool.is_writable(block) for block in written)
    assert bench.pool.num_available >= bench.scheduler.reserved_blocks
    bench.finish(plan)
    return plan


def reserve_and_pull(bench, name, num_tokens, max_tokens):
    """A sequence whose KV comes from elsewhere; the refusal's code when there is no place for it."""
    (answer,) = bench.submit(name, num_tokens, kind=WorkKind.DECODE, max_tokens=max_tokens)
    if isinstance(answer, Rejected):
        return answer.code
    blocks = list(range(-(-num_tokens // 4)))
    lease = Lease("lease", "w9", 1, "127.0.0.1:1", LAYOUT, num_tokens, blocks, "", "h", 30.0)
    bench.core.begin_pull("g1", Pull(name, 1, lease, 5), bench.now_s)
    bench.core.pull_done(name, 1, True, bench.now_s)
    return ""


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(0, 6), st.lists(st.integers(2, 9), min_size=1, max_size=8), st.integers(1, 12))
def test_reservations_that_come_without_end_keep_no_queued_request_waiting(max_batch, max_queue, lengths_, num_local):
    """Whoever waits is served after those that came before it, and after one round of the batch at most."""
    bench = Bench(Role.DECODE, max_batch=max_batch, max_queue=max_queue, num_blocks=256)
    for index in range(max_batch + max_queue):
        reserve_and_pull(bench, f"before-{index}", 4, lengths_[index % len(lengths_)])
    local = [f"local-{index}" for index in range(min(num_local, max_queue))]
    assert [bench.submit(name, 6, max_tokens=3) for name in local] == [[] for _ in local]
    rounds = (max_batch + max_queue) // max_batch + 2 + -(-len(local) // max_batch)
    for step in range(rounds * (max(*lengths_, 3) + 2)):  # a local one has 3 tokens of its own
        while reserve_and_pull(bench, f"after-{step}-{bench.core._num_seqs}", 4, 9) == "":
            pass
        bench.step()
    assert [bench.tokens(name) for name in local] == [expected_tokens(7, 6, 3) for _ in local]


def test_a_reservation_finds_no_place_where_queued_requests_have_taken_it():
    bench = Bench(Role.DECODE, max_batch=1, max_queue=2, num_blocks=64)
    bench.submit("r1", 8, max_tokens=4)
    bench.submit("r2", 8, max_tokens=4)
    assert [reserve_and_pull(bench, name, 4, 4) for name in ("d1", "d2")] == ["", "queue_full"]


def test_a_batch_that_decodes_is_not_interrupted_by_who_came_before():
    bench = Bench(Role.DECODE, max_batch=2, max_queue=8, num_blocks=64)
    bench.submit("long", 60, max_tokens=3)
    for name in ("d1", "d2", "d3"):
        reserve_and_pull(bench, name, 4, 9)
    batches = []
    while (plan := bench.step()) is not None:
        batches.append(tuple(item.seq_id for item in plan.decode))
    assert list(dict.fromkeys(batches)) == [(2, 3), (1, 4), (4,)]  # `long` (1) is next in line, before d3 (4)
