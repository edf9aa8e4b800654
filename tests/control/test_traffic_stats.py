"""Live traffic numbers: what is good, what counts, and what stays unknown."""

from __future__ import annotations

from typing import Any

import pytest

from control.gateway.link import Beat
from control.traffic_stats import DEFAULT_OUTPUT_TOKENS, TrafficStats, is_good, length_class
from control.types.requests import Slo
from engine.histogram import of_values
from tests.control.records import NOW, record

SLO = Slo(ttft_base_s=1.0, ttft_per_token_s=0.001, tpot_s=0.1, max_gap_s=0.5)


def beat(at: float = NOW, **values: Any) -> Beat:
    base: dict[str, Any] = {
        "at_unix_s": at,
        "num_in_flight": 0,
        "num_waiting_first_token": 0,
        "oldest_waiting_s": None,
        "num_arrived": 0,
        "num_rejected": 0,
        "num_failed": 0,
        "num_completed": 0,
        "num_cancelled": 0,
        "num_records_dropped": 0,
        "by_rule": {},
        "cpu_s": 0.0,
        "table_version": 1,
    }
    return Beat(**base | values)


@pytest.mark.parametrize(
    ("changes", "good"),
    [
        ({}, True),
        ({"ttft_s": 1.1}, True),  # 1.0 s + 100 tokens x 1 ms
        ({"ttft_s": 1.11}, False),
        ({"ttft_s": 1.11, "prompt_tokens": 300}, True),
        ({"ttft_s": 1.11, "prompt_tokens": 300, "cached_tokens": 250}, False),  # cached tokens earn no time
        ({"tpot_s": 0.11}, False),
        ({"max_gap_s": 0.6}, False),
        ({"tpot_s": None, "max_gap_s": None}, True),  # a single token has no gap
        ({"ttft_s": None}, False),
        ({"status": 429}, False),
        ({"status": 503, "finish_reason": "error"}, False),
        ({"status": 504}, False),
        ({"finish_reason": "error"}, False),
        ({"status": 499, "finish_reason": "cancelled"}, None),
        ({"status": 400}, None),
    ],
)
def test_a_request_is_good_when_every_bound_holds(changes: dict[str, Any], good: bool | None) -> None:
    assert is_good(record(**changes), SLO) is good


def test_nothing_reported_is_unknown_and_not_zero() -> None:
    status = TrafficStats(SLO).status(NOW)
    assert (status.offered_rps, status.goodput_rps, status.attainment, status.error_rps) == (None, None, None, None)
    assert (status.ttft_p99_s, status.oldest_waiting_s, status.num_gateways) == (None, None, 0)


def test_a_gateway_without_traffic_says_zero() -> None:
    stats = TrafficStats(SLO)
    stats.beat("g", beat(NOW - 2))
    stats.beat("g", beat(NOW - 1))
    status = stats.status(NOW)
    assert (status.offered_rps, status.goodput_rps, status.error_rps, status.attainment) == (0.0, 0.0, 0.0, None)


def test_offered_is_what_gateways_counted_and_goodput_its_good_share() -> None:
    stats = TrafficStats(SLO)
    for gateway, rps in (("a", 2), ("b", 3)):
        for age in (20, 10, 0):
            stats.beat(gateway, beat(NOW - age, num_arrived=100 + rps * (20 - age), num_in_flight=rps))
    for good in (True, True, True, False):
        stats.add(record(ttft_s=0.5 if good else 9.0))
    status = stats.status(NOW)
    assert (status.offered_rps, status.attainment, status.goodput_rps) == (5.0, 0.75, 3.75)
    assert (status.num_in_flight, status.num_gateways) == (5, 2)


def test_rejections_and_errors_are_bad_and_cancels_do_not_count() -> None:
    stats = TrafficStats(SLO)
    for changes in (
        {},
        {"status": 429},
        {"status": 502},
        {"status": 499, "finish_reason": "cancelled"},
        {"status": 400},
    ):
        stats.add(record(**changes))
    status = stats.status(NOW)
    assert status.attainment == pytest.approx(1 / 3)
    assert (status.error_rps, status.rejected_rps) == (1 / 60, 1 / 60)
    assert status.offered_rps == pytest.approx(4 / 60)


def test_a_request_past_its_bound_is_bad_before_it_ends() -> None:
    stats = TrafficStats(SLO)
    stats.add(record())
    stats.beat("g", beat(NOW, num_in_flight=1, oldest_waiting_s=1.05))
    assert stats.status(NOW).attainment == 1.0  # within 1.0 s + 100 tokens x 1 ms
    stats.beat("g", beat(NOW + 1, num_in_flight=1, oldest_waiting_s=2.05))
    status = stats.status(NOW + 2)
    assert status.attainment == 0.5
    assert status.oldest_waiting_s == pytest.approx(3.05)  # it has gone on waiting since the beat


def test_a_silent_gateway_is_left_out() -> None:
    stats = TrafficStats(SLO)
    stats.beat("g", beat(NOW - 6, num_in_flight=3))
    assert (stats.status(NOW).num_gateways, stats.status(NOW).num_in_flight) == (0, 0)
    stats.beat("g", beat(NOW, num_in_flight=3))
    assert stats.status(NOW).num_in_flight == 3
    stats.drop_gateway("g")
    assert stats.status(NOW).num_gateways == 0


def test_a_restarted_gateway_counts_from_zero_again() -> None:
    stats = TrafficStats(SLO)
    stats.beat("g", beat(NOW - 10, num_arrived=1000))
    stats.beat("g", beat(NOW - 5, num_arrived=0))
    stats.beat("g", beat(NOW, num_arrived=10))
    assert stats.status(NOW).offered_rps == 2.0


def test_only_arrivals_in_the_window_count() -> None:
    stats = TrafficStats(SLO)
    stats.add(record(arrival_unix_s=NOW - 61, ttft_s=50.0))
    stats.add(record(arrival_unix_s=NOW - 59))
    assert stats.status(NOW).attainment == 1.0
    assert stats.status(NOW).by_rule == {"remote": 1}


def test_percentiles_come_from_merged_histograms() -> None:
    stats = TrafficStats(SLO)
    stats.add(record(ttft_s=0.1, itl_buckets=of_values([0.01] * 99)))
    stats.add(record(ttft_s=0.3, itl_buckets=of_values([0.5])))
    status = stats.status(NOW)
    assert status.itl_p50_s == pytest.approx(0.01, rel=0.01)
    assert status.itl_p99_s == pytest.approx(0.01, rel=0.01)
    assert status.ttft_p99_s == pytest.approx(0.3, rel=0.01)


def test_token_rates_count_when_requests_end() -> None:
    stats = TrafficStats(SLO)
    stats.add(record(arrival_unix_s=NOW - 70, e2e_s=20.0, prompt_tokens=600, output_tokens=60))
    stats.add(record(arrival_unix_s=NOW - 5, e2e_s=2.0, prompt_tokens=0, output_tokens=60))
    status = stats.status(NOW)
    assert (status.output_tokens_per_s, status.prompt_tokens_per_s) == (2.0, 10.0)


def test_expected_output_is_the_median_of_requests_that_ended_well() -> None:
    stats = TrafficStats(SLO)
    assert stats.expected_output_tokens() == DEFAULT_OUTPUT_TOKENS
    for tokens, finish in ((10, "stop"), (30, "length"), (50, "stop"), (1, "error")):
        stats.add(record(output_tokens=tokens, finish_reason=finish))
    assert stats.expected_output_tokens() == 30


def test_attainment_per_length_shows_what_shedding_long_prompts_hides() -> None:
    stats = TrafficStats(SLO)
    for _ in range(9):
        stats.add(record(prompt_tokens=100))
    stats.add(record(prompt_tokens=9000, status=429))
    status = stats.status(NOW)
    assert status.attainment == 0.9
    assert status.attainment_by_length == {"8192 and over": 0.0, "under 512": 1.0}


@pytest.mark.parametrize(
    ("tokens", "name"), [(0, "under 512"), (511, "under 512"), (512, "512-2047"), (8192, "8192 and over")]
)
def test_length_classes(tokens: int, name: str) -> None:
    assert length_class(tokens) == name


def test_a_gateway_that_counts_its_overdue_requests_is_believed() -> None:
    stats = TrafficStats(SLO)
    stats.beat("g", beat(NOW, num_in_flight=9, oldest_waiting_s=0.1, num_overdue=3))
    stats.add(record(arrival_unix_s=NOW - 5))
    status = stats.status(NOW)
    assert status.num_overdue == 3
    assert status.attainment == 1 / 4
