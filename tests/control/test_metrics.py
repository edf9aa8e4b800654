"""The catalogue: every name is there, formulas are ratios of sums, and what is not known is a gap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.buckets import NO_HISTOGRAMS, Buckets, Columns, Histograms
from control.metrics import METRICS, METRICS_BY_NAME
from engine.histogram import NUM_BUCKETS, of_values, quantile

Row = Mapping[str, float]

PROMISED = """
prefill_compute_wall prefill_compute_in_phase prefill_bandwidth_wall prefill_bandwidth_in_phase
decode_compute_wall decode_compute_in_phase decode_bandwidth_wall decode_bandwidth_in_phase prefill_busy
decode_busy blended_busy prefill_tokens_per_s decode_tokens_per_s prefill_flops_per_s decode_bytes_per_s
kv_usage queued_prefill_tokens num_running num_waiting num_workers in_flight oldest_waiting_s offered_rps
goodput_rps attainment error_rps rejected_rps route_rps ttft_p50_s ttft_p99_s itl_p50_s itl_p99_s tpot_p50_s
tpot_p99_s e2e_p50_s e2e_p99_s handoff_p50_s handoff_p99_s queue_p99_s gpm_tensor_active gpm_dram_active
gpu_utilization power_w worker_ttft_p50_s worker_ttft_p99_s worker_itl_p50_s worker_itl_p99_s
"""

COVER = {"num_cover_s": 10.0, "worker_s": 20.0, "flops_peak": 10_000.0, "bytes_peak": 1_000.0}


@dataclass(frozen=True)
class Value:
    value: float | None
    min: float | None = None
    max: float | None = None


def columns(row: Row) -> Columns:
    return lambda name: np.array([row.get(name, np.nan)])


def histograms(*cells: Mapping[int, int]) -> Histograms:
    rows = [(cell, bucket, counts[bucket]) for cell, counts in enumerate(cells) for bucket in sorted(counts)]
    table = np.array(rows, np.int64).reshape(-1, 3)
    return Histograms(table[:, 0], table[:, 1], table[:, 2])


def value(
    name: str,
    *,
    length_s: float = 10.0,
    cover_s: float = 10.0,
    work: Row | None = None,
    cover: Row | None = None,
    fleet_cover: Row | None = None,
    traffic: Row | None = None,
    latencies: Histograms = NO_HISTOGRAMS,
) -> Value:
    """Of one bucket of one group."""
    buckets = Buckets(
        length_s=np.array([length_s]),
        cover_s=np.array([cover_s]),
        work=columns(work or {}),
        cover=columns(cover or {}),
        fleet_cover=columns(fleet_cover or {}),
        traffic=columns(traffic or {}),
        latencies=latencies,
    )
    found = METRICS_BY_NAME[name].formula(buckets)
    numbers = [float(np.ravel(each)[0]) for each in (found.value, found.min, found.max)]
    return Value(*(None if np.isnan(each) else each for each in numbers))


@pytest.mark.parametrize("name", PROMISED.split())
def test_every_promised_metric_is_in_the_catalogue(name: str) -> None:
    info = METRICS[name]
    assert info.name == name
    assert info.unit
    assert info.help
    assert set(info.groups) <= {"fleet", "role", "worker", "rule"}


def test_wall_utilization_is_work_over_peak_times_all_known_time() -> None:
    work = {"num_s": 10.0, "flops": 4_000.0, "min_compute_wall": 0.1, "max_compute_wall": 0.9}
    assert value("prefill_compute_wall", work=work, cover=COVER) == Value(0.4, 0.1, 0.9)


def test_seconds_without_work_are_the_low_end_of_the_band() -> None:
    work = {"num_s": 4.0, "flops": 4_000.0, "min_compute_wall": 0.9, "max_compute_wall": 1.0}
    assert value("prefill_compute_wall", work=work, cover=COVER) == Value(0.4, 0.0, 1.0)


def test_a_known_bucket_without_work_is_zero_and_an_unknown_one_a_gap() -> None:
    assert value("prefill_compute_wall", cover=COVER) == Value(0.0, 0.0, 0.0)
    assert value("prefill_compute_wall", cover_s=0.0) == Value(None)
    assert value("decode_tokens_per_s", cover_s=0.0) == Value(None)


def test_a_part_without_a_known_peak_makes_the_whole_unknown() -> None:
    assert value("prefill_compute_wall", cover=COVER | {"no_flops_peak_s": 1.0}) == Value(None)
    assert value("decode_compute_in_phase", work={"flops": 1.0, "flops_room": 2.0, "flops_unknown_s": 1.0}) == Value(
        None
    )


def test_in_phase_is_a_gap_while_the_phase_does_not_run() -> None:
    assert value("decode_bandwidth_in_phase", cover=COVER) == Value(None)
    work = {"bytes": 30.0, "bytes_room": 60.0, "min_bandwidth_in_phase": 0.4, "max_bandwidth_in_phase": 0.7}
    assert value("decode_bandwidth_in_phase", work=work, cover=COVER) == Value(0.5, 0.4, 0.7)


def test_wall_is_in_phase_times_busy_on_a_device_of_ones_own() -> None:
    work = {"num_s": 10.0, "flops": 3_000.0, "busy_s": 5.0, "flops_room": 5_000.0}
    cover = COVER | {"worker_s": 10.0}
    wall, in_phase = value("prefill_compute_wall", work=work, cover=cover), value("prefill_compute_in_phase", work=work)
    busy = value("prefill_busy", work=work, cover=cover)
    assert wall.value == pytest.approx((in_phase.value or 0) * (busy.value or 0))


def test_rates_are_per_known_second() -> None:
    assert value("decode_tokens_per_s", cover_s=4.0, work={"tokens": 20.0}).value == 5.0
    assert value("offered_rps", length_s=5.0, traffic={"offered": 20.0}).value == 4.0


def test_an_amount_is_zero_where_it_is_known_that_nothing_ran_and_a_gap_elsewhere() -> None:
    assert value("decode_tokens", cover_s=4.0, work={"num_s": 2.0, "tokens": 20.0}).value == 20.0
    assert value("decode_flops", cover_s=4.0).value == 0.0
    assert value("decode_flops", work={"num_s": 1.0, "flops": 3.0}).value == 3.0
    assert value("decode_flops", cover_s=0.0) == Value(None)


def test_a_role_that_nobody_has_counts_zero_workers() -> None:
    fleet = {"num_load": 10.0}
    assert value("num_workers", fleet_cover=fleet) == Value(0.0, 0.0, 0.0)
    own = {"num_load": 5.0, "sum_num_workers": 10.0, "min_num_workers": 2.0, "max_num_workers": 2.0}
    assert value("num_workers", fleet_cover=fleet, cover=own) == Value(1.0, 0.0, 2.0)
    assert value("num_workers") == Value(None)


def test_gauges_are_means_of_their_samples() -> None:
    cover = {"num_kv": 4.0, "sum_kv_usage": 2.0, "min_kv_usage": 0.1, "max_kv_usage": 0.9}
    assert value("kv_usage", cover=cover) == Value(0.5, 0.1, 0.9)
    assert value("gpm_tensor_active", cover=cover) == Value(None)


def test_attainment_of_nothing_is_unknown() -> None:
    assert value("attainment", traffic={"offered": 2.0, "decided": 0.0}) == Value(None)
    assert value("attainment", traffic={"decided": 4.0, "good": 3.0}) == Value(0.75)


def test_percentiles_come_from_the_histogram() -> None:
    found = value("ttft_p99_s", latencies=histograms(of_values([0.1] * 98 + [5.0] * 2))).value
    assert found == pytest.approx(5.0, rel=0.01)
    assert value("ttft_p99_s") == Value(None)


@given(
    cells=st.lists(st.dictionaries(st.integers(0, NUM_BUCKETS - 1), st.integers(1, 10**6)), max_size=8),
    q=st.floats(0.0, 1.0),
)
def test_quantiles_of_many_cells_at_once_are_those_of_each(cells: list[dict[int, int]], q: float) -> None:
    found = [None if np.isnan(each) else float(each) for each in histograms(*cells).quantile(q)]
    assert found + [None] * (len(cells) - len(found)) == [quantile(each, q) for each in cells]


def test_a_formula_answers_each_cell_by_itself() -> None:
    work = {"flops": np.array([4_000.0, np.nan, 1.0]), "num_s": np.array([10.0, np.nan, 1.0])}
    work |= {"min_compute_wall": np.array([0.1, np.nan, 0.5]), "max_compute_wall": np.array([0.9, np.nan, 0.5])}
    cover = {"flops_peak": np.array([10_000.0, 10_000.0, np.nan]), "num_cover_s": np.array([10.0, 10.0, np.nan])}
    nothing = np.full(3, np.nan)
    found = METRICS_BY_NAME["prefill_compute_wall"].formula(
        Buckets(
            length_s=np.full(3, 10.0),
            work=lambda name: work.get(name, nothing),
            cover=lambda name: cover.get(name, nothing),
        )
    )
    np.testing.assert_array_equal(found.value, [0.4, 0.0, np.nan])
    np.testing.assert_array_equal(found.min, [0.1, 0.0, np.nan])
    np.testing.assert_array_equal(found.max, [0.9, 0.0, np.nan])
