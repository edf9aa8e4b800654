"""From readings, records and beats to a verdict that is told and kept."""

from __future__ import annotations

from typing import Any

import pytest

from control.accounting import UtilizationView
from control.bottleneck import HOLD_S
from control.bottleneck_watch import BottleneckWatch
from control.evidence import growth_of, look_at, pools_of
from control.gateway.forecast import Need
from control.gateway.link import Beat
from control.gateway.usage import Usage
from control.traffic_stats import TrafficStats
from control.types.bottleneck import Bottleneck
from control.types.requests import Slo
from control.types.workers import Phase, Role, WorkerState
from engine.readings import DeviceInfo, MeterReading
from engine.types import Load
from tests.control.builders import NOW, phase, reading, record


def workers(**load: int) -> list[MeterReading]:
    full = Load(kv_blocks_total=100, kv_blocks_held=60, kv_blocks_reserved=20, num_running=7)
    return [
        reading("w0", Role.PREFILL, load=Load(kv_blocks_total=100, queued_prefill_tokens=1000, **load)),
        reading("w1", Role.DECODE, load=full),
        reading("w2", Role.DECODE, state=WorkerState.DRAINED),
    ]


VIEW = UtilizationView(
    start_unix_s=0,
    end_unix_s=5,
    roles={
        Role.PREFILL: {Phase.PREFILL: phase(busy=0.5, tokens_per_s=2000.0, in_phase_compute=0.45)},
        Role.DECODE: {Phase.DECODE: phase(busy=1.0, in_phase_bandwidth=0.6)},
    },
)


def beat(at_unix_s: float, **changes: Any) -> Beat:
    counts = ("num_in_flight", "num_waiting_first_token", "num_arrived", "num_rejected", "num_failed")
    values: dict[str, Any] = dict.fromkeys((*counts, "num_completed", "num_cancelled", "num_records_dropped"), 0)
    values |= {"oldest_waiting_s": None, "by_rule": {}, "cpu_s": 0.0, "table_version": 1}
    return Beat(at_unix_s=at_unix_s, **{**values, **changes})


def test_a_look_counts_what_waits_on_workers_and_in_the_gateways_lines() -> None:
    """4,000 tokens a second while it prefills: 1,000 wait there and 3,000 in the line."""
    look = look_at(workers(), VIEW, 3000.0, NOW)
    assert (look.queue_s, look.prefill_busy, look.kv_used, look.batch) == (1.0, 0.5, 0.8, 7.0)


def test_utilization_is_told_as_a_share_of_what_is_achievable() -> None:
    look = look_at(workers(), VIEW, 0.0, NOW)
    assert (look.compute, look.bandwidth) == (pytest.approx(0.45 / 0.6), pytest.approx(0.6 / 0.8))
    cpu = DeviceInfo(name="cpu", kind="cpu", thread_flops=1e11, thread_bytes_per_s=1e10)
    measured = [reading("w0", Role.MIXED, device=cpu, load=Load(kv_blocks_total=100))]
    view = UtilizationView(start_unix_s=0, end_unix_s=5, roles={Role.MIXED: VIEW.roles[Role.DECODE]})
    assert look_at(measured, view, 0.0, NOW).bandwidth == 0.6, "a calibrated device's share is of its ceiling"


def test_where_nothing_is_split_the_same_workers_do_both() -> None:
    mixed = [reading("w0", Role.MIXED), reading("w1", Role.DECODE)]
    assert pools_of(mixed) == (mixed, mixed)


def test_a_queue_of_unknown_rate_is_an_unknown_queue() -> None:
    assert look_at(workers(), None, 0.0, NOW).queue_s is None
    assert look_at([reading("w0", Role.PREFILL)], None, 0.0, NOW).queue_s == 0.0


def test_what_an_engine_does_not_say_is_unknown_evidence() -> None:
    silent = [reading("w0", Role.MIXED, unknown=("queued_prefill_tokens", "num_running", "kv_blocks_held"))]
    look = look_at(silent, None, 0.0, NOW)
    assert (look.queue_s, look.kv_used, look.batch) == (None, None, None)


def test_growth_is_the_slope_of_the_queue() -> None:
    looks = [look_at(workers(), VIEW, 400.0 * at, NOW + at) for at in range(5)]
    assert growth_of(looks) == pytest.approx(0.1)
    assert growth_of(looks[:2]) is None


def test_gateways_are_as_hard_at_work_as_the_busiest_one_and_late_when_they_mostly_are() -> None:
    stats = TrafficStats(Slo())
    for at, late_s in ((0, 0.0), (1, 9.0), (2, 0.3), (3, 0.3)):
        stats.beat("a", beat(NOW + at, cpu_s=0.8 * at, loop_late_s=late_s))
        stats.beat("b", beat(NOW + at, cpu_s=0.1 * at))
    seen = stats.gateways(NOW + 3)
    assert (seen.num, seen.cpu, seen.loop_late_s) == (2, pytest.approx(0.8), pytest.approx(0.3))
    stats.beat("a", beat(NOW + 4, usage=Usage({}, Need(prefill_tokens=500), Need())))
    assert stats.line_tokens(NOW + 4) == 500


def test_a_gateway_is_pressed_by_what_it_uses_and_what_it_waits_for_lately() -> None:
    """Calm for 30 s; then one is given a twentieth of a core and never rests, while the other uses half of its own."""
    stats = TrafficStats(Slo())
    for at in range(51):
        pressed_s = max(0, at - 30)
        stats.beat("a", beat(NOW + at, cpu_s=0.05 * pressed_s, cpu_wait_s=0.94 * pressed_s))
        stats.beat("b", beat(NOW + at, cpu_s=0.5 * at))
    seen = stats.gateways(NOW + 50)
    assert (seen.num, seen.cpu, seen.cpu_wait) == (2, pytest.approx(0.05), pytest.approx(0.94))
    assert seen.wanted == pytest.approx(0.99)
    stats.drop_gateway("a")
    alone = stats.gateways(NOW + 50)
    assert (alone.num, alone.cpu, alone.cpu_wait, alone.wanted) == (1, pytest.approx(0.5), None, pytest.approx(0.5))


def test_a_verdict_is_told_after_its_hold_and_is_an_event_once() -> None:
    stats, watch = TrafficStats(Slo()), BottleneckWatch("f")
    told: list[Bottleneck] = []
    events = []
    for at in range(12):
        stats.beat("g", beat(NOW + at))
        for number in range(5):
            refused = number < 2 and at > 3
            changes = {"status": 429, "waited_for": "prefill"} if refused else {}
            stats.add(record(arrival_unix_s=NOW + at, line_s=0.0, decode_s=0.3, **changes))
        told.append(watch.look(workers(), VIEW, stats, NOW + at))
        events += watch.take()
    assert (told[0].kind, told[4].kind, told[-1].kind) == ("unknown", "none", "prefill")
    assert [each.resources for each in events] == [("unknown",), ("none",), ("prefill",)]
    assert events[-1].at_unix_s >= NOW + 4
    assert events[-1].reason.startswith("Prefill is the bottleneck")
    assert told[-1].at_unix_s - told[-1].since_unix_s >= HOLD_S
