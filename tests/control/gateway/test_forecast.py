"""How late a request would be, from what was measured, and which bound that breaks."""

from __future__ import annotations

from typing import Any

import pytest

from control.gateway.batch_room import BatchRoom
from control.gateway.forecast import (
    Capacity,
    Forecast,
    Limits,
    Need,
    Store,
    filled_s,
    forecast,
    kv_store,
    lateness,
    prefill_capacity,
)
from control.gateway.rates import Mean, Rate
from control.routing import WorkerView
from control.types.bottleneck import Resource


def capacity(**changes: Any) -> Capacity:
    """Two prefill workers of 500 tokens/s each, idle; 1000 of 4000 KV tokens in use, each for 4 s."""
    fields: dict[str, Any] = {"queues_s": (0.0, 0.0), "tokens_per_s": 500.0, "slots": None}
    return Capacity(**{**fields, "kv": Store(room=3000, used=1000, held_s=4.0), **changes})


def worker(**changes: Any) -> WorkerView:
    fields = {"queued_prefill_tokens": 0, "kv_used_tokens": 0, "kv_total_tokens": 1000}
    return WorkerView("w", 0, 1.0, **{**fields, **changes})


def test_an_idle_fleet_takes_the_time_of_one_workers_prefill():
    predicted = forecast(Need(prefill_tokens=250, kv_tokens=300), Need(), capacity())
    assert predicted == Forecast(queue_s=0.0, prefill_s=0.5, cause="the prefill queue")


def test_queued_tokens_and_those_ahead_in_line_are_computed_by_all_workers():
    ahead = Need(prefill_tokens=1500, kv_tokens=100)
    predicted = forecast(Need(prefill_tokens=250), ahead, capacity(queues_s=(0.8, 0.2)))
    assert predicted is not None
    assert (predicted.queue_s, predicted.ttft_s) == (2.0, 2.5)  # 3 s of prompts level 0.8 and 0.2 s up to 2


def test_with_nobody_ahead_it_goes_to_the_shortest_queue():
    predicted = forecast(Need(prefill_tokens=250), Need(), capacity(queues_s=(0.8, 0.2)))
    assert predicted is not None
    assert predicted.queue_s == 0.2


@pytest.mark.parametrize(
    ("queues_s", "ahead_s", "level_s"),
    [((1.0,), 2.0, 3.0), ((0.0, 4.0), 3.0, 3.0), ((0.0, 4.0), 6.0, 5.0), ((1.0, 1.0, 4.0), 3.0, 2.5)],
)
def test_queues_are_filled_from_the_shortest_on(queues_s: tuple[float, ...], ahead_s: float, level_s: float):
    assert filled_s(queues_s, ahead_s) == level_s


def test_kv_comes_free_at_what_is_in_use_over_how_long_it_is_held():
    predicted = forecast(Need(kv_tokens=500), Need(kv_tokens=3000), capacity())
    assert predicted is not None
    assert (predicted.queue_s, predicted.cause) == (2.0, "KV room")  # 500 short, 250 come free in a second
    assert predicted.lacks is Resource.KV_ROOM


def test_decode_slots_count_as_kv_does():
    slots = Store(room=0, used=8, held_s=4.0)
    predicted = forecast(Need(num_slots=1), Need(num_slots=3), capacity(slots=slots))
    assert predicted is not None
    assert (predicted.queue_s, predicted.cause) == (2.0, "decode slots")
    assert predicted.lacks is Resource.DECODE_BANDWIDTH


def test_who_need_not_wait_lacks_nothing():
    predicted = forecast(Need(prefill_tokens=250), Need(), capacity(queues_s=(0.0,)))
    assert predicted is not None
    assert predicted.lacks is None


@pytest.mark.parametrize("unknown", [{"tokens_per_s": None}])
def test_what_was_never_measured_is_not_predicted(unknown: dict[str, Any]):
    assert forecast(Need(prefill_tokens=1), Need(), capacity(**unknown)) is None


def test_room_counts_only_where_the_whole_request_fits():
    workers = [worker(kv_used_tokens=900), worker(kv_used_tokens=400)]
    assert kv_store(workers, 200, None) == Store(room=600, used=1300, held_s=None)


def test_a_worker_without_a_measurement_is_taken_as_the_others():
    workers = [worker(queued_prefill_tokens=10, prefill_tokens_per_s=100.0), worker(queued_prefill_tokens=20)]
    assert prefill_capacity(workers) == ((0.1, 0.2), 100.0)
    assert prefill_capacity([worker()]) == ((), None)


def limits(**changes: Any) -> Limits:
    fields: dict[str, Any] = {"ttft_s": 2.0, "queue_s": 2.0, "at_share": 1.0, "deadline_left_s": None, "answer_s": 0.0}
    return Limits(**{**fields, **changes})


SOON = Forecast(queue_s=1.0, prefill_s=0.5, cause="KV room")


def test_a_request_within_its_bounds_may_wait():
    assert lateness(SOON, limits()) is None
    assert lateness(SOON, limits(deadline_left_s=3.0, answer_s=1.5)) is None


def test_the_reason_names_what_is_predicted_and_the_bound_it_breaks():
    late = lateness(SOON, limits(ttft_s=1.25))
    assert late is not None
    assert late.excess_s == 0.25
    assert late.reason == (
        "predicted time to first token 1.50 s (1.00 s for KV room) is over its bound of 1.25 s, "
        "2.00 s of it for waiting (SLO)"
    )


def test_a_long_prompt_may_not_use_its_larger_bound_to_wait_in_line():
    late = lateness(SOON, limits(ttft_s=5.0, queue_s=0.75))
    assert late is not None
    assert late.excess_s == 0.25


def test_a_prompt_that_is_late_on_an_idle_fleet_too_is_not_refused_for_its_length():
    slow = Forecast(queue_s=0.5, prefill_s=9.0, cause="KV room")
    assert lateness(slow, limits()) is None
    assert lateness(slow, limits(queue_s=0.4)) is not None


def test_the_share_of_the_bound_is_the_operators():
    assert lateness(SOON, limits(at_share=0.7)) is not None
    assert lateness(SOON, limits(ttft_s=1.0, queue_s=0.6, at_share=2.0)) is None


def test_what_it_has_waited_already_counts():
    assert lateness(SOON, limits(), waited_s=0.4) is None
    assert lateness(SOON, limits(), waited_s=0.6) is not None


def test_a_deadline_is_for_the_whole_answer():
    late = lateness(SOON, limits(deadline_left_s=3.0, answer_s=2.0))
    assert late is not None
    assert late.excess_s == 0.5
    assert "over the 3.00 s left (deadline_s)" in late.reason


def test_a_deadline_that_an_idle_fleet_would_break_too_is_not_the_queues_fault():
    assert lateness(SOON, limits(deadline_left_s=2.0, answer_s=1.8)) is None


def test_a_rate_is_over_busy_time_and_forgets():
    rate = Rate().after(100, 1.0).after(300, 1.0)
    assert rate.per_s == pytest.approx(200, rel=0.05)
    assert Rate(1000, 1.0).after(20_000, 200.0).per_s == pytest.approx(100, rel=0.01)
    assert Rate().per_s is None


def test_a_rate_is_not_known_from_one_slow_step():
    starved = Rate().after(60, 0.5)
    assert starved.per_s is None
    assert starved.after(6000, 1.0).per_s == pytest.approx(6060 / 1.5, rel=0.05)


def test_a_mean_has_weights():
    assert Mean().after(1.0, 100).after(3.0, 100).value == pytest.approx(2.0, rel=0.02)
    assert Mean().value is None


def test_batch_requests_may_hold_their_share_of_kv_and_slots_but_one_may_always_run():
    workers = [worker(num_free_slots=4, num_taken_slots=0), worker(num_free_slots=2, num_taken_slots=2)]
    batch, small = BatchRoom(share=0.5), Need(kv_tokens=100, num_slots=1)
    assert batch.problem(Need(kv_tokens=1500, num_slots=1), workers) == ""
    for _ in range(4):
        assert batch.problem(small, workers) == ""
        batch.take(small)
    assert "a decode slot" in batch.problem(small, workers)
    batch.give_back(small)
    assert "800 KV tokens, 700 are left" in batch.problem(Need(kv_tokens=800, num_slots=1), workers)


def test_what_batch_requests_hold_through_other_gateways_counts():
    batch = BatchRoom(share=0.5, elsewhere=Need(kv_tokens=950, num_slots=2))
    assert "50 are left" in batch.problem(Need(kv_tokens=100, num_slots=1), [worker(), worker()])
