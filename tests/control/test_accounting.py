"""Accounting: sums equal the counters, seconds get their share, gaps stay unknown, a shared host counts once."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from control.accounting import Accountant, peaks_of
from control.fleets.base import Observation, WorkerLife
from control.points import Ingested, Row, add_row
from control.types.workers import Phase, Role, WorkerState
from engine.readings import DeviceInfo, DeviceReading
from engine.types import Load
from tests.control.metered import CPU, GPU, T0, FakeWorker, observe


def per_second(
    batches: Iterable[Ingested], scope: str, name: str, column: str, phase: Phase = Phase.DECODE
) -> dict[int, float]:
    """Sums per second after T0 of one column of one group, over all batches."""
    found: dict[int, float] = {}
    for batch in batches:
        for (line, each, second), row in batch.phases.items():
            if (line.scope, line.name, each) == (scope, name, phase) and row.get(column):
                key = second - int(T0)
                found[key] = found.get(key, 0.0) + row[column]
    return found


def covered(batches: Iterable[Ingested], scope: str, name: str, column: str) -> dict[int, float]:
    rows: dict[int, Row] = {}
    for batch in batches:
        for (line, second), row in batch.states.items():
            if (line.scope, line.name) == (scope, name):
                add_row(rows.setdefault(second - int(T0), {}), row)
    return {second: row[column] for second, row in sorted(rows.items()) if column in row}


# --- work ------------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.floats(0, 3), st.floats(0.001, 4), st.sampled_from(list(Phase)), st.booleans()),
        min_size=1,
        max_size=40,
    )
)
def test_sums_over_all_seconds_equal_the_counters(steps: list[tuple[float, float, Phase, bool]]) -> None:
    worker, accountant, batches, now = FakeWorker(ring_records=8), Accountant("f"), [], 0.0
    for idle_s, length_s, phase, read in steps:
        worker.step(now + idle_s, now + idle_s + length_s, phase=phase, flops=7 * length_s, bytes=length_s, tokens=3)
        now += idle_s + length_s
        if read:
            batches.append(observe(accountant, now, worker))
    batches.append(observe(accountant, now, worker))
    counters = worker.reader.read(0).counters
    for phase in Phase:
        totals = counters.get(f"decode/{phase}")
        for column in ("busy_s", "cpu_s", "flops", "bytes", "tokens", "steps"):
            for scope, name in (("fleet", ""), ("role", "decode"), ("worker", "w0")):
                counted = sum(per_second(batches, scope, name, column, phase).values())
                assert counted == (getattr(totals, column) if totals else 0.0)


def test_a_missed_read_loses_nothing() -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    worker.step(0.0, 1.0, flops=100)
    worker.read(1.0)  # an answer that never arrived: the cursor moved on, the accountant did not see it
    worker.step(1.0, 2.0, flops=50)
    batch = observe(accountant, 2.0, worker)
    assert sum(per_second([batch], "fleet", "", "flops").values()) == pytest.approx(150)


def test_reading_the_same_steps_again_counts_them_once() -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    worker.step(0.0, 1.0, flops=100)
    first = observe(accountant, 1.0, worker)
    worker.cursor = 0
    again = observe(accountant, 2.0, worker)
    assert per_second([first, again], "fleet", "", "flops") == {0: 100.0}


def test_lost_ring_records_are_spread_from_the_counters_and_marked() -> None:
    worker, accountant = FakeWorker(ring_records=2), Accountant("f")
    observe(accountant, 0.0, worker)
    for index in range(4):
        worker.step(float(index), index + 1.0, flops=10)
    batch = observe(accountant, 4.0, worker)
    assert per_second([batch], "fleet", "", "flops") == {0: 10, 1: 10, 2: 10, 3: 10}
    assert sum(per_second([batch], "fleet", "", "fallback_s").values()) == pytest.approx(2.0)


def test_a_restored_accountant_goes_on_where_the_saved_one_was() -> None:
    worker, before = FakeWorker(), Accountant("f")
    worker.step(0.0, 1.0, flops=100)
    worker.meter.observe_latency("itl", 0.02, 5)
    first = observe(before, 1.0, worker)
    after = Accountant("f")
    after.restore(before.snapshot())
    worker.step(1.0, 2.0, flops=10)
    worker.meter.observe_latency("itl", 0.02, 2)
    worker.cursor = 0
    second = observe(after, 2.0, worker)
    assert per_second([first, second], "worker", "w0", "flops") == {0: 100.0, 1: 10.0}
    assert covered([first, second], "fleet", "", "device_s") == {0: 1.0, 1: 1.0}
    counts = [
        sum(each.values())
        for batch in (first, second)
        for (line, _, _), each in batch.latencies.items()
        if line.scope == "fleet"
    ]
    assert counts == [5, 2]


def test_a_new_epoch_starts_from_zero_and_never_counts_backwards() -> None:
    accountant, old = Accountant("f"), FakeWorker(epoch=1)
    old.step(0.0, 1.0, flops=100)
    first = observe(accountant, 1.0, old)
    new = FakeWorker(epoch=2, at_s=2.0)
    new.step(2.0, 3.0, flops=30)
    second = observe(accountant, 3.0, new)
    late = observe(accountant, 3.5, old)
    assert per_second([first, second, late], "worker", "w0", "flops") == {0: 100.0, 2: 30.0}
    assert covered([first, second], "fleet", "", "device_s") == {0: 1.0, 2: 1.0}  # second 1 is a gap
    assert not late.phases


def test_a_flip_between_reads_keeps_each_step_with_its_role() -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    worker.step(0.0, 1.0, role=Role.DECODE, flops=10)
    worker.now_s = 1.0
    worker.place(Role.PREFILL)
    worker.step(1.0, 2.0, role=Role.PREFILL, phase=Phase.PREFILL, flops=20)
    first = FakeWorker("w1")
    batch = observe(accountant, 2.0, worker, first)
    assert per_second([batch], "role", "decode", "flops") == {0: 10.0}
    assert per_second([batch], "role", "prefill", "flops", Phase.PREFILL) == {1: 20.0}


def test_a_flip_after_the_first_read_splits_the_cover() -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    first = observe(accountant, 1.0, worker)
    worker.now_s = 1.5
    worker.place(Role.PREFILL)
    second = observe(accountant, 2.0, worker)
    assert covered([first, second], "role", "decode", "worker_s") == {0: 1.0, 1: 0.5}
    assert covered([first, second], "role", "prefill", "worker_s") == {1: 0.5}
    assert covered([first, second], "fleet", "", "worker_s") == {0: 1.0, 1: 1.0}


def test_every_role_between_two_reads_has_its_interval_and_its_time() -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    first = observe(accountant, 1.0, worker)
    for now_s, role in ((1.25, Role.PREFILL), (1.5, Role.MIXED), (1.75, Role.DECODE)):
        worker.now_s = now_s
        worker.place(role)
    second = observe(accountant, 2.0, worker)
    assert [(each.role, each.start_unix_s - T0, each.end_unix_s) for each in second.roles] == [
        (Role.DECODE, 0.0, T0 + 1.25),
        (Role.PREFILL, 1.25, T0 + 1.5),
        (Role.MIXED, 1.5, T0 + 1.75),
        (Role.DECODE, 1.75, None),
    ]
    assert covered([first, second], "role", "decode", "worker_s") == {0: 1.0, 1: 0.5}
    for role in ("prefill", "mixed"):
        assert covered([second], "role", role, "worker_s") == {1: 0.25}


def test_a_clock_that_is_set_forward_leaves_a_gap() -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    first = observe(accountant, 1.0, worker)
    worker.step(1.0, 2.0, flops=50)
    worker.set_by_s = 3600.0
    second = observe(accountant, 2.0, worker)
    assert covered([first, second], "fleet", "", "device_s") == {0: 1.0, 3601: 1.0}
    assert per_second([second], "fleet", "", "flops") == {3601: 50.0}


def test_a_clock_that_is_set_back_has_seconds_twice() -> None:
    worker, accountant, batches = FakeWorker(), Accountant("f"), []
    for second in range(6):
        worker.set_by_s = 0.0 if second < 3 else -3.0
        worker.step(float(second), second + 1.0, flops=50)
        batches.append(observe(accountant, second + 1.0, worker))
    assert covered(batches, "fleet", "", "device_s") == dict.fromkeys(range(3), 2.0)
    assert covered(batches, "fleet", "", "num_cover_s") == dict.fromkeys(range(3), 1.0)
    assert per_second(batches, "fleet", "", "flops") == dict.fromkeys(range(3), 100.0)
    marks = [next(iter(batch.counted_from.values())) for batch in batches[1:]]
    assert marks == sorted(marks)


def test_a_long_absence_is_in_slots_that_say_how_wide_they_are() -> None:
    worker, accountant = FakeWorker(ring_records=2), Accountant("f")
    observe(accountant, 0.0, worker)
    for index in range(1_200):
        worker.step(float(index), index + 1.0, flops=10)
    batch = observe(accountant, 1_200.0, worker)
    assert per_second([batch], "fleet", "", "num_s") == covered([batch], "fleet", "", "num_cover_s")
    assert sum(per_second([batch], "fleet", "", "num_s").values()) == 1_200
    flops = list(per_second([batch], "fleet", "", "flops").values())
    assert sum(flops) == 12_000.0
    assert flops == pytest.approx([100.0] * 120, abs=0.001)


def test_the_very_same_reading_again_adds_nothing() -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    worker.step(0.0, 1.0, flops=10)
    seen = Observation(at_unix_s=T0 + 1.0, readings=(worker.read(1.0),))
    accountant.ingest(seen)
    known = accountant.snapshot()
    again = accountant.ingest(seen)
    assert (again.phases, again.latencies, again.roles, again.counted_from) == ({}, {}, (), {})
    assert accountant.snapshot() == known


def test_an_idle_worker_that_never_says_how_long_steps_take_is_not_idle_for_sure() -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    told = replace(worker.read(2.0), unknown=("busy_s",))
    accountant.ingest(Observation(at_unix_s=T0 + 2.0, readings=(told,)))
    seen = accountant.utilization(T0 + 2.0)
    assert {each[Phase.DECODE].busy for each in (seen.fleet, seen.roles[Role.DECODE], seen.workers["w0"])} == {None}
    assert seen.workers["w0"][Phase.DECODE].wall_compute == 0.0


# --- cover, shared devices, death ------------------------------------------------------------------------------------


def test_a_shared_host_counts_once_in_every_line() -> None:
    accountant = Accountant("f")
    workers = [FakeWorker(f"w{index}", device=CPU) for index in range(4)]
    workers[0].place(Role.PREFILL)
    batch = observe(accountant, 2.0, *workers)
    assert covered([batch], "fleet", "", "flops_peak") == {0: 1000.0, 1: 1000.0}
    assert covered([batch], "role", "decode", "flops_peak") == {0: 1000.0, 1: 1000.0}
    assert covered([batch], "worker", "w3", "flops_peak") == {0: 1000.0, 1: 1000.0}
    assert covered([batch], "fleet", "", "worker_s") == {0: 4.0, 1: 4.0}


def test_separate_devices_add_up() -> None:
    batch = observe(Accountant("f"), 1.0, FakeWorker("w0"), FakeWorker("w1"))
    assert covered([batch], "fleet", "", "flops_peak") == {0: 2000.0}


def test_cpu_in_phase_room_is_thread_time_against_one_thread() -> None:
    worker = FakeWorker(device=CPU)
    worker.step(0.0, 1.0, flops=200, bytes=20, cpu_s=0.5)
    batch = observe(Accountant("f"), 1.0, worker)
    assert per_second([batch], "fleet", "", "flops_room") == {0: 250.0}
    assert per_second([batch], "fleet", "", "bytes_room") == {0: 40.0}


def test_an_unknown_peak_is_unknown_and_not_zero() -> None:
    worker, accountant = FakeWorker(device=DeviceInfo(name="?", kind="cuda")), Accountant("f")
    worker.step(0.0, 1.0, flops=10)
    observe(accountant, 1.0, worker)
    found = accountant.utilization(T0 + 1.5, window_s=1).fleet[Phase.DECODE]
    assert (found.wall_compute, found.in_phase_compute, found.busy, found.basis) == (None, None, 1.0, "unknown")


def test_a_dead_worker_is_covered_until_its_last_sign_of_life() -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    first = observe(accountant, 1.0, worker)
    worker.meter.close()
    worker.now_s = 9.0
    reading = worker.reader.read(worker.cursor)
    second = accountant.ingest(Observation(at_unix_s=T0 + 9, readings=(reading,)))
    third = accountant.ingest(Observation(at_unix_s=T0 + 10, readings=(reading,)))
    assert covered([first, second, third], "fleet", "", "worker_s") == {0: 1.0}
    assert [(each.state, each.end_unix_s) for each in second.roles] == [(WorkerState.READY, T0 + 1.0)]
    assert third.roles == ()


# --- gauges, latencies, roles ----------------------------------------------------------------------------------------


def test_gauges_of_a_group_add_up_and_kv_usage_is_blocks_over_blocks() -> None:
    workers = FakeWorker("w0"), FakeWorker("w1")
    workers[0].meter.set_load(Load(num_running=3, kv_blocks_total=10, kv_blocks_held=10, oldest_wait_s=2.0))
    workers[1].meter.set_load(Load(num_running=1, kv_blocks_total=30, kv_blocks_held=0))
    batch = observe(Accountant("f"), 1.0, *workers)
    for column, value in {
        "sum_num_running": 4,
        "sum_kv_usage": 0.25,
        "max_oldest_wait_s": 2.0,
        "sum_num_workers": 2,
    }.items():
        assert covered([batch], "fleet", "", column) == {1: value}
    assert covered([batch], "worker", "w0", "sum_kv_usage") == {1: 1.0}


def test_a_worker_without_blocks_has_no_kv_usage() -> None:
    batch = observe(Accountant("f"), 1.0, FakeWorker())
    assert covered([batch], "fleet", "", "sum_kv_usage") == {}


def test_device_readings_join_their_workers_by_uuid() -> None:
    device = DeviceInfo(name="gpu", kind="cuda", uuid="GPU-1", peak_flops=1.0, peak_bytes_per_s=1.0)
    reading = DeviceReading(uuid="GPU-1", at_unix_s=T0, tensor_active=0.9, gpu_utilization=1.0, power_w=300.0)
    batch = observe(Accountant("f"), 1.0, FakeWorker(device=device), FakeWorker("w1"), devices=(reading,))
    assert covered([batch], "fleet", "", "sum_tensor_active") == {1: 0.9}
    assert covered([batch], "fleet", "", "sum_dram_active") == {}
    assert covered([batch], "fleet", "", "sum_gpu_utilization") == {1: 1.0}
    assert covered([batch], "worker", "w1", "num_gpu_utilization") == {}  # no device: unknown, not 0
    assert covered([batch], "worker", "w0", "sum_power_w") == {1: 300.0}
    assert covered([batch], "worker", "w1", "sum_power_w") == {}


def test_role_intervals_open_and_close() -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    first = observe(accountant, 1.0, worker)
    same = observe(accountant, 2.0, worker)
    worker.now_s = 2.5
    worker.place(Role.PREFILL)
    second = observe(accountant, 3.0, worker)
    assert [(each.role, each.start_unix_s, each.end_unix_s) for each in first.roles] == [(Role.DECODE, T0, None)]
    assert same.roles == ()
    assert [(each.role, each.start_unix_s, each.end_unix_s) for each in second.roles] == [
        (Role.DECODE, T0, T0 + 2.5),
        (Role.PREFILL, T0 + 2.5, None),
    ]


def test_a_worker_that_left_the_fleet_ends_where_it_was_known() -> None:
    here, leaves, accountant = FakeWorker(), FakeWorker("w1"), Accountant("f")
    lives = tuple(WorkerLife(worker_id=name) for name in ("w0", "w1"))
    observe(accountant, 1.0, here, leaves, lives=lives)
    assert observe(accountant, 2.0, here, lives=lives).roles == ()  # late, or restarting: its slot is there
    smaller = observe(accountant, 3.0, here, lives=lives[:1])
    assert [(each.worker_id, each.start_unix_s, each.end_unix_s) for each in smaller.roles] == [("w1", T0, T0 + 1.0)]
    assert observe(accountant, 4.0, here, lives=lives[:1]).roles == ()


# --- live utilization ------------------------------------------------------------------------------------------------


def test_live_utilization_is_work_over_peak_in_the_window() -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    worker.step(0.0, 1.0, flops=600, bytes=30, tokens=8)
    worker.step(1.0, 1.5, phase=Phase.PREFILL, flops=400, tokens=100)
    observe(accountant, 2.25, worker)
    view = accountant.utilization(T0 + 2.3, window_s=2)
    decode, prefill = view.fleet[Phase.DECODE], view.workers["w0"][Phase.PREFILL]
    assert (decode.wall_compute, decode.in_phase_compute) == (0.3, 0.6)
    assert (decode.wall_bandwidth, decode.in_phase_bandwidth) == (0.15, 0.3)
    assert (decode.busy, decode.tokens_per_s, decode.basis, decode.provenance) == (0.5, 4.0, "datasheet", "derived")
    assert (prefill.wall_compute, prefill.in_phase_compute, prefill.tokens_per_s) == (0.2, 0.8, 50.0)
    assert view.roles[Role.DECODE][Phase.DECODE] == decode


def test_an_idle_worker_reads_zero_and_an_absent_one_is_absent() -> None:
    accountant = Accountant("f")
    assert accountant.utilization(T0 + 5).fleet == {}
    observe(accountant, 5.0, FakeWorker())
    idle = accountant.utilization(T0 + 5.5).workers["w0"][Phase.DECODE]
    assert (idle.wall_bandwidth, idle.busy, idle.in_phase_bandwidth) == (0.0, 0.0, None)
    assert accountant.utilization(T0 + 60).workers == {}


def test_the_window_ends_before_a_step_that_is_still_running() -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    worker.step(0.0, 3.0, flops=3000)
    worker.meter.step_begin(3.0)
    observe(accountant, 4.9, worker)
    view = accountant.utilization(T0 + 4.9, window_s=2)
    assert view.end_unix_s == T0 + 3
    assert view.fleet[Phase.DECODE].wall_compute == 1.0


def test_the_parts_of_workers_on_one_host_add_up_to_the_fleet() -> None:
    accountant = Accountant("f")
    workers = [FakeWorker(f"w{index}", device=CPU) for index in range(2)]
    for worker in workers:
        worker.step(0.0, 1.0, flops=300)
    observe(accountant, 1.2, *workers)
    view = accountant.utilization(T0 + 1.2, window_s=1)
    assert view.fleet[Phase.DECODE].wall_compute == 0.6
    assert view.workers["w0"][Phase.DECODE].wall_compute == 0.3
    assert view.fleet[Phase.DECODE].basis == "calibrated"


@pytest.mark.parametrize(
    ("device", "basis"), [(GPU, "datasheet"), (CPU, "calibrated"), (DeviceInfo(name="?", kind="cuda"), "unknown")]
)
def test_the_basis_says_which_peak(device: DeviceInfo, basis: str) -> None:
    assert peaks_of(device).basis == basis
