"""A core alone: one request from submission to its end, what is refused, what is counted."""

from __future__ import annotations

import math

import msgspec
import pytest
from core_builders import DECODE_S, MODEL, PREFILL_S, TOKENS, Bench, expected_tokens, memory_meter, split, submit

from engine.histogram import quantile
from engine.meter_reader import MeterReader
from engine.types import FinishReason, Role, WorkerState, WorkKind
from engine.wire import Pull, Rejected, Reserved
from engine.work import ModelWork, decode_flops, prefill_flops

# --- one request ------------------------------------------------------------------------------------------------------


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


# --- what is refused --------------------------------------------------------------------------------------------------


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


# --- what is counted --------------------------------------------------------------------------------------------------


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
