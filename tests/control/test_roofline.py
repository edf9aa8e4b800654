"""Roofline and ceilings: points are ratios of sums, prefill lies right of the ridge and decode left of it."""

from __future__ import annotations

import pytest

from control.accounting import Accountant
from control.ceilings import TARGET_IN_PHASE, ceilings_of, roof_of
from control.roofline import WINDOW_S, RecentWork, live_roofline, range_queries, range_roofline
from control.types.series import Series, SeriesPoint, SeriesResult
from control.types.workers import Phase
from engine.device_catalogue import paced_device
from engine.readings import DeviceInfo
from tests.control.metered import CPU, GPU, T0, FakeWorker, observe


def test_a_datasheet_peak_has_an_assumed_ceiling_and_a_measured_one_wins() -> None:
    assumed = roof_of(paced_device("h100-sxm-80gb", dtype="bfloat16"))
    assert (assumed.peak_flops, assumed.achievable_provenance) == (989e12, "assumed")
    assert assumed.achievable_flops == pytest.approx(0.6 * 989e12)
    known = roof_of(DeviceInfo(name="g", kind="cuda", peak_flops=10.0, peak_bytes_per_s=4.0,
                               ceiling_flops=7.0, ceiling_bytes_per_s=3.0))  # fmt: skip
    assert (known.achievable_flops, known.achievable_bytes_per_s) == (7.0, 3.0)
    assert known.achievable_provenance == "measured"


def test_an_unknown_device_has_no_roof_and_no_targets() -> None:
    worker = FakeWorker(device=DeviceInfo(name="?", kind="cuda"))
    observe(Accountant("f"), 1.0, worker)
    assert roof_of(DeviceInfo(name="?", kind="cuda")).achievable_flops is None
    assert ceilings_of([worker.read(2.0)]) is None


def test_targets_are_fractions_of_what_a_calibrated_cpu_reaches() -> None:
    found = ceilings_of([FakeWorker(device=CPU).read(1.0)])
    assert found is not None
    assert (found.compute, found.bandwidth, found.provenance) == (1.0, 1.0, "measured")
    assert found.target_in_phase == TARGET_IN_PHASE


def test_a_point_is_a_ratio_of_sums_over_the_last_minute() -> None:
    worker, accountant, recent = FakeWorker(device=GPU), Accountant("f"), RecentWork()
    worker.step(1.0, 2.0, phase=Phase.DECODE, flops=10, bytes=10, tokens=2)
    worker.step(2.0, 2.5, phase=Phase.DECODE, flops=50, bytes=10, tokens=4)
    worker.step(3.0, 4.0, phase=Phase.PREFILL, flops=900, bytes=3, tokens=100)
    recent.add(observe(accountant, 5.0, worker))
    reading = worker.read(5.0)
    found = live_roofline("f", recent, {reading.worker_id: reading}, T0 + 6.0)
    prefill, decode = sorted(found.points, key=lambda each: -each.intensity)
    assert (decode.phase, decode.intensity, decode.flops_per_s) == (Phase.DECODE, 3.0, pytest.approx(40.0))
    assert decode.tokens_per_step == pytest.approx(3.0)
    assert (prefill.phase, prefill.intensity, prefill.flops_per_s) == (Phase.PREFILL, 300.0, pytest.approx(900.0))
    later = live_roofline("f", recent, {reading.worker_id: reading}, T0 + 6.0 + WINDOW_S + 10)
    assert later.points == ()


def test_what_is_older_than_the_window_is_forgotten() -> None:
    worker, accountant, recent = FakeWorker(device=GPU), Accountant("f"), RecentWork()
    worker.step(1.0, 2.0, flops=10, bytes=10)
    recent.add(observe(accountant, 3.0, worker))
    recent.add(observe(accountant, 300.0, worker))
    assert recent.totals(T0 + 10.0) == {}


def test_a_range_has_a_point_per_bucket_and_gaps_have_none() -> None:
    reading = FakeWorker(device=GPU).read(1.0)
    queries = range_queries("f", 0.0, 600.0)
    assert {query.step_s for query in queries.values()} == {10}

    def answer(value: float) -> SeriesResult:
        points = (SeriesPoint(t_unix_s=0.0, value=value), SeriesPoint(t_unix_s=10.0, value=None))
        line = Series(label=reading.worker_id, points=points)
        return SeriesResult(fleet_id="f", metric="m", unit="", provenance="derived", step_s=10, since_unix_s=0.0,
                            until_unix_s=20.0, by="worker", series=(line,))  # fmt: skip

    found = range_roofline("f", {key: answer(0.5) for key in queries}, {reading.worker_id: reading}, 0.0, 20.0)
    assert len(found.points) == len(Phase)
    peak = roof_of(reading.device).peak_flops
    assert peak is not None
    assert {(each.t_unix_s, each.flops_per_s) for each in found.points} == {(0.0, 0.5 * peak)}
