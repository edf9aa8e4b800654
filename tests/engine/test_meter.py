"""The meter page: what the writer counts is what a reader sees, through wraps, restarts, death and concurrent reads."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from engine.errors import MeterError
from engine.histogram import bucket_of
from engine.meter import Clock, Meter, MeterReader, scan
from engine.readings import DeviceInfo
from engine.types import Load, Phase, PhaseTiming, Role, WorkerState

DEVICE = DeviceInfo(name="test-device", kind="paced", peak_flops=1e6, peak_bytes_per_s=1e5)


class SimClock:
    """Simulated time: 100 s on the monotonic clock is 1,000,100 s of Unix time."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def clock(self) -> Clock:
        return Clock(monotonic=lambda: self.now_s, unix=lambda: self.now_s + 1_000_000)


def make_meter(
    path: Path | None = None, *, sim: SimClock | None = None, epoch: int = 1, ring_records: int = 4096
) -> Meter:
    return Meter.create(
        path,
        worker_id="w0",
        epoch=epoch,
        model_id="tiny",
        address="127.0.0.1:1",
        simulated=True,
        device=DEVICE,
        host_id="h0",
        max_context=2048,
        clock=sim.clock() if sim else None,
        ring_records=ring_records,
    )


def count_step(
    meter: Meter, start_s: float, *, role: Role = Role.DECODE, phase: Phase = Phase.DECODE, tokens: int = 1
) -> None:
    timing = PhaseTiming(phase, start_s, start_s + 0.5, 0.25)
    meter.record(
        role, timing, tokens=tokens, context_tokens=tokens * 10, batch=tokens, flops=2.0 * tokens, bytes=3.0 * tokens
    )


def test_a_reader_sees_counters_steps_load_and_state() -> None:
    sim = SimClock()
    meter = make_meter(sim=sim)
    meter.set_state(Role.PREFILL, WorkerState.READY, 7, "placed", sim.now_s + 1_000_000)
    meter.set_load(
        Load(queued_prefill_tokens=11, num_waiting=2, kv_blocks_total=8, kv_blocks_held=4, oldest_wait_s=1.5)
    )
    count_step(meter, 100.0, role=Role.PREFILL, phase=Phase.PREFILL, tokens=5)
    count_step(meter, 100.5, role=Role.PREFILL, phase=Phase.PREFILL, tokens=6)

    reading = MeterReader(meter).read(0)

    assert (reading.role, reading.state, reading.fence, reading.reason) == (
        Role.PREFILL,
        WorkerState.READY,
        7,
        "placed",
    )
    assert reading.load.kv_usage == 0.5
    assert reading.load.oldest_wait_s == 1.5
    counters = reading.counters["prefill/prefill"]
    assert (counters.busy_s, counters.cpu_s, counters.tokens, counters.steps) == (1.0, 0.5, 11, 2)
    assert (counters.flops, counters.bytes) == (22.0, 33.0)
    assert [step.start_unix_s for step in reading.steps] == [1_000_100.0, 1_000_100.5]
    assert reading.steps[0].context_tokens == 50
    assert reading.num_steps_lost == 0
    assert reading.device == DEVICE


def test_the_cursor_returns_only_what_is_new() -> None:
    meter = make_meter()
    reader = MeterReader(meter)
    count_step(meter, 1.0)
    first = reader.read(0)
    count_step(meter, 2.0)
    count_step(meter, 3.0)
    second = reader.read(first.next_cursor)
    assert (len(first.steps), len(second.steps), len(reader.read(second.next_cursor).steps)) == (1, 2, 0)


def test_overwritten_records_are_counted_as_lost_and_stay_in_the_counters() -> None:
    meter = make_meter(ring_records=4)
    for index in range(11):
        count_step(meter, float(index))
    reading = MeterReader(meter).read(0)
    assert reading.num_steps_lost == 7
    assert len(reading.steps) == 4
    starts = [step.start_unix_s for step in reading.steps]
    assert starts == sorted(starts)
    assert reading.counters["decode/decode"].steps == 11


def test_a_cursor_of_an_earlier_epoch_starts_over() -> None:
    old = make_meter(epoch=1)
    for index in range(3):
        count_step(old, float(index))
    cursor = MeterReader(old).read(0).next_cursor
    new = make_meter(epoch=2)
    for index in range(5):
        count_step(new, float(index))
    assert len(MeterReader(new).read(cursor).steps) == 5


def test_a_flip_between_two_reads_misattributes_nothing() -> None:
    meter = make_meter()
    count_step(meter, 1.0, role=Role.DECODE, phase=Phase.DECODE, tokens=3)
    count_step(meter, 2.0, role=Role.PREFILL, phase=Phase.PREFILL, tokens=100)
    count_step(meter, 3.0, role=Role.DECODE, phase=Phase.PREFILL, tokens=7)
    counters = MeterReader(meter).read(0).counters
    assert {key: value.tokens for key, value in counters.items()} == {
        "decode/decode": 3,
        "prefill/prefill": 100,
        "decode/prefill": 7,
    }


def test_simulated_time_reads_no_other_clock() -> None:
    sim = SimClock()
    meter = make_meter(sim=sim)
    meter.heartbeat(100.0)
    meter.step_begin(100.0)
    sim.now_s = 104.0
    reading = MeterReader(meter).read(0)
    assert (reading.at_unix_s, reading.heartbeat_age_s, reading.step_running_s) == (1_000_104.0, 4.0, 4.0)
    meter.step_end()
    assert MeterReader(meter).read(0).step_running_s is None


def test_role_since_moves_only_when_role_or_state_changes() -> None:
    meter = make_meter()
    meter.set_state(Role.DECODE, WorkerState.READY, 1, "", 10.0)
    meter.set_state(Role.DECODE, WorkerState.READY, 2, "same", 20.0)
    assert MeterReader(meter).read(0).role_since_unix_s == 10.0
    meter.set_state(Role.DECODE, WorkerState.DRAINING, 3, "drain", 30.0)
    assert MeterReader(meter).read(0).role_since_unix_s == 30.0


def test_latencies_are_counted_per_kind() -> None:
    meter = make_meter()
    meter.observe_latency("itl", 0.02, 3)
    meter.observe_latency("itl", 0.02)
    meter.observe_latency("ttft", 1.0)
    assert MeterReader(meter).read(0).histograms == {"itl": {bucket_of(0.02): 4}, "ttft": {bucket_of(1.0): 1}}


def test_a_file_page_outlives_its_writer_and_then_says_not_alive(tmp_path: Path) -> None:
    path = tmp_path / "w0.meter"
    meter = make_meter(path)
    count_step(meter, 1.0)
    reader = MeterReader(path)
    assert reader.read(0).alive
    meter.close()
    reading = reader.read(0)
    assert not reading.alive
    assert reading.counters["decode/decode"].steps == 1


def test_a_reader_follows_the_page_of_a_new_epoch(tmp_path: Path) -> None:
    path = tmp_path / "w0.meter"
    make_meter(path, epoch=1).close()
    reader = MeterReader(path)
    assert reader.read(0).epoch == 1
    make_meter(path, epoch=2)
    assert reader.read(0).epoch == 2


def test_the_last_steps_of_a_replaced_page_are_read_before_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "w0.meter"
    old = make_meter(path, epoch=1)
    reader = MeterReader(path)
    count_step(old, 1.0)
    cursor = reader.read(0).next_cursor
    count_step(old, 2.0)
    old.close()
    make_meter(path, epoch=2)
    last = reader.read(cursor)
    assert (last.epoch, len(last.steps), last.alive) == (1, 1, False)
    assert reader.read(last.next_cursor).epoch == 2


def test_scan_lists_pages_and_not_half_made_ones(tmp_path: Path) -> None:
    make_meter(tmp_path / "b.meter")
    make_meter(tmp_path / "a.meter")
    (tmp_path / ".c.meter.1.new").write_bytes(b"")
    (tmp_path / "a.kv").write_bytes(b"")
    assert [path.name for path in scan(tmp_path)] == ["a.meter", "b.meter"]
    assert scan(tmp_path / "absent") == []


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 500_000])
def test_a_file_that_is_no_meter_page_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w0.meter"
    path.write_bytes(content)
    with pytest.raises(MeterError, match=r"w0\.meter"):
        MeterReader(path)


def test_an_unwritable_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(MeterError, match="cannot be made"):
        make_meter(tmp_path / "absent" / "w0.meter")


def test_readers_never_see_a_torn_change(tmp_path: Path) -> None:
    """Every write keeps flops == 2 x tokens and the ring's sum == the counters: so must every reading."""
    path = tmp_path / "w0.meter"
    meter = make_meter(path)
    done = threading.Event()

    def write() -> None:
        for index in range(20_000):
            count_step(meter, float(index), tokens=index % 7)
        done.set()

    thread = threading.Thread(target=write)
    reader = MeterReader(path)
    thread.start()
    cursor, tokens_in_ring, num_lost = 0, 0, 0
    while True:
        last = done.is_set()
        reading = reader.read(cursor)
        cursor = reading.next_cursor
        tokens_in_ring += sum(step.tokens for step in reading.steps)
        num_lost += reading.num_steps_lost
        for counters in reading.counters.values():
            assert counters.flops == 2.0 * counters.tokens
            if not num_lost:
                assert counters.tokens == tokens_in_ring
        if last:
            break
    thread.join()
    assert reading.counters["decode/decode"].steps == 20_000
