"""Pages of one engine add up as a meter's counters do: through flips, restarts and looks that came to nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec.structs import replace as replace_cursor

from control.accounting import Accountant
from control.fleets.attached.engine_page import Counters, EnginePage
from control.fleets.attached.ledger import EngineIdentity, Ledger
from control.fleets.base import Observation
from control.types.workers import Phase, Role, WorkerState
from engine.histogram import quantile
from engine.readings import DeviceInfo, MeterReading, WorkEstimates
from tests.control.attached.pages_of import TINY, page_of

DEVICE = DeviceInfo(name="h100", kind="cuda", peak_flops=1e12, peak_bytes_per_s=1e12, peak_source="datasheet")


def ledger(**changes: object) -> Ledger:
    fields = {"worker_id": "p0", "address": "http://p0", "device": DEVICE, "work": TINY, **changes}
    return Ledger(EngineIdentity(**fields))  # type: ignore[arg-type]


def served(decoded: float, started: float | None = 1.0) -> EnginePage:
    return EnginePage(started_unix_s=started, counters=Counters(decode_tokens=decoded, steps=decoded, num_prompts=1))


def read(of: Ledger) -> MeterReading:
    found = of.reading(1000.0, is_alive=True, state=WorkerState.READY, reason="")
    assert found is not None
    return found


def estimates(of: Ledger) -> WorkEstimates:
    found = read(of).estimates
    assert found is not None
    return found


def test_a_reading_is_the_same_object_until_something_is_new():
    one = ledger()
    one.add(served(1.0), Role.DECODE, 100.0)
    first = read(one)
    assert read(one) is first
    dead = one.reading(1000.0, is_alive=False, state=WorkerState.FAILED, reason="503")
    assert dead is not None and not dead.alive  # noqa: PT018
    assert read(one).alive
    one.add(served(2.0), Role.DECODE, 102.0)
    assert read(one).counters["decode/decode"].tokens == 1.0
    assert "busy_s" in read(one).unknown


def test_what_was_done_before_the_first_look_is_not_counted():
    one = ledger()
    assert one.reading(1.0, is_alive=False, state=WorkerState.FAILED, reason="") is None
    one.add(page_of("prefill-1"), Role.PREFILL, 100.0)
    assert read(one).counters == {}
    one.add(page_of("prefill-2"), Role.PREFILL, 105.0)
    counters = read(one).counters
    assert counters.keys() == {"prefill/prefill"}
    assert (counters["prefill/prefill"].tokens, counters["prefill/prefill"].steps) == (7000, 10)
    assert (read(one).started_unix_s, read(one).at_unix_s) == (100.0, 105.0)


def test_a_flip_keeps_what_was_done_in_each_role():
    one = ledger()
    one.add(served(0), Role.MIXED, 10.0)
    one.add(served(50), Role.DECODE, 12.0)
    one.add(served(80), Role.DECODE, 14.0)
    counters = read(one).counters
    assert (counters["mixed/decode"].tokens, counters["decode/decode"].tokens) == (50, 30)
    assert (read(one).role, read(one).role_since_unix_s) == (Role.DECODE, 12.0)


def test_a_restart_begins_another_epoch_from_zero_and_counts_what_it_has_done():
    one = ledger()
    one.add(served(1000, started=1.0), Role.DECODE, 10.0)
    one.add(served(1020, started=1.0), Role.DECODE, 12.0)
    first = read(one)
    one.add(served(7, started=13.0), Role.DECODE, 15.0)
    second = read(one)
    assert first.counters["decode/decode"].tokens == 20
    assert second.epoch > first.epoch
    assert second.counters["decode/decode"].tokens == 7
    assert second.started_unix_s == 13.0


def test_a_counter_that_fell_without_a_start_time_is_a_restart_too():
    one = ledger()
    one.add(served(1000, started=None), Role.DECODE, 10.0)
    one.add(served(5, started=None), Role.DECODE, 12.0)
    assert read(one).counters["decode/decode"].tokens == 5
    assert all(each.tokens >= 0 for each in read(one).counters.values())


def test_a_counter_that_leaps_is_no_work_and_what_follows_counts_from_there():
    one = ledger()
    one.add(served(1.0), Role.DECODE, 100.0)
    one.add(served(1e18), Role.DECODE, 102.0)
    assert one.leap == "decode_tokens grew by 1e+18 in 2.0 s, which no engine can: left out"
    assert (read(one).counters, one.epoch) == ({}, 100)
    one.add(served(1e18 + 256.0), Role.DECODE, 104.0)
    assert (one.leap, read(one).counters["decode/decode"].tokens) == ("", 256.0)


def test_a_look_that_comes_late_changes_nothing():
    one = ledger()
    one.add(served(10), Role.DECODE, 10.0)
    one.add(served(30), Role.DECODE, 12.0)
    one.add(served(20), Role.DECODE, 11.0)
    assert read(one).counters["decode/decode"].tokens == 20


def test_where_the_work_is_unknown_there_is_no_peak_to_divide_it_by():
    one = ledger(work=None)
    one.add(page_of("decode-1"), Role.DECODE, 10.0)
    one.add(page_of("decode-2"), Role.DECODE, 12.0)
    assert read(one).counters["decode/decode"].tokens == 160
    assert (read(one).device.peak_flops, read(one).device.peak_bytes_per_s) == (None, None)


def test_without_a_shape_the_engines_own_estimate_is_taken_for_a_role_that_is_one_phase():
    one, mixed = ledger(work=None), ledger(work=None)
    for name, at in (("prefill-1", 10.0), ("prefill-2", 12.0)):
        one.add(page_of(name), Role.PREFILL, at)
        mixed.add(page_of(name), Role.MIXED, at)
    assert read(one).counters["prefill/prefill"].flops == one.exported_flops == 37588508672 - 28316311552
    assert read(one).device.peak_flops == 1e12
    assert read(mixed).device.peak_flops is None  # both phases in one number


def test_the_engines_own_estimate_stands_beside_what_its_tokens_make():
    """Ten prompts of 700 tokens: the engine counts each token as if it saw all 700, and its weights once per token."""
    one = ledger()
    one.add(page_of("prefill-1"), Role.PREFILL, 10.0)
    one.add(page_of("prefill-2"), Role.PREFILL, 12.0)
    found, ours = estimates(one), read(one).counters["prefill/prefill"]
    assert (found.exported_flops, found.exported_bytes) == (37588508672 - 28316311552, one.exported_bytes)
    assert (found.derived_flops, found.derived_bytes) == (ours.flops, ours.bytes)
    assert found.exported_flops / ours.flops == pytest.approx(9.27 / 6.77, rel=0.01)
    assert found.exported_bytes / ours.bytes > 500


def test_an_estimate_that_turns_out_to_be_off_is_unknown_and_not_the_zero_of_an_idle_engine():
    idle = EnginePage(started_unix_s=1.0, counters=Counters(decode_tokens=0, steps=0, num_prompts=0, exported_flops=0))
    one = ledger()
    one.add(idle, Role.DECODE, 10.0)
    one.add(replace(idle), Role.DECODE, 11.0)
    assert estimates(one).exported_flops == 0
    one.add(served(50), Role.DECODE, 12.0)
    assert estimates(one).exported_flops is None


def test_where_nothing_is_exported_or_no_shape_is_known_that_side_is_unknown():
    off, shapeless = ledger(), ledger(work=None)
    for name, at in (("decode-1", 10.0), ("decode-2", 12.0)):
        off.add(page_of(name), Role.DECODE, at)
    for name, at in (("prefill-1", 10.0), ("prefill-2", 12.0)):
        shapeless.add(page_of(name), Role.PREFILL, at)
    assert estimates(off).exported_flops is estimates(off).exported_bytes is None
    assert estimates(off).derived_flops
    assert estimates(shapeless).exported_flops
    assert estimates(shapeless).derived_flops is estimates(shapeless).derived_bytes is None


def test_estimates_of_one_life_go_on_in_the_next_plane_and_end_with_it():
    one = ledger()
    one.add(page_of("prefill-1"), Role.PREFILL, 10.0)
    one.add(page_of("prefill-2"), Role.PREFILL, 12.0)
    accountant = Accountant("theirs")
    accountant.ingest(Observation(at_unix_s=12.0, readings=(read(one),)))
    again = Ledger(one.identity, accountant.snapshot()["p0"])
    assert read(again).estimates == read(one).estimates
    again.add(served(5, started=4e9), Role.PREFILL, 21.0)
    assert estimates(again).exported_flops is None


def test_latencies_lie_between_the_bounds_that_the_engine_counts_in():
    one = ledger()
    empty = replace(page_of("prefill-1"), latencies={"ttft": ((0.1, 0.0), (0.5, 0.0), (float("inf"), 0.0))})
    one.add(empty, Role.PREFILL, 10.0)
    one.add(replace(empty, latencies={"ttft": ((0.1, 0.0), (0.5, 100.0), (float("inf"), 101.0))}), Role.PREFILL, 12.0)
    counts = read(one).histograms["ttft"]
    assert sum(counts.values()) == 101
    assert 0.28 < (quantile(counts, 0.5) or 0) < 0.32  # the middle of 0.1..0.5, as Prometheus has it
    assert 0.49 < (quantile(counts, 1.0) or 0) < 0.51  # above the last bound nothing is known: the bound


def test_the_plane_counts_an_attached_engine_as_it_counts_its_own():
    one, accountant = ledger(), Accountant("theirs")
    one.add(page_of("prefill-1"), Role.PREFILL, 100.0)
    accountant.ingest(Observation(at_unix_s=100.0, readings=(read(one),)))
    one.add(page_of("prefill-2"), Role.PREFILL, 102.0)
    ingested = accountant.ingest(Observation(at_unix_s=102.0, readings=(read(one),)))
    rows = {second: row for (line, phase, second), row in ingested.phases.items() if line.scope == "fleet"}
    assert sum(row["tokens"] for row in rows.values()) == 7000
    assert rows.keys() == {100, 101}
    prefill = accountant.utilization(103.0, 5).fleet[Phase.PREFILL]
    assert prefill.wall_compute is not None
    assert prefill.in_phase_compute is prefill.busy is None  # the engine does not say for how long it ran
    gauges = next(row for (line, _), row in ingested.states.items() if line.scope == "fleet" and "num_load" in row)
    assert "sum_num_running" in gauges
    assert "sum_queued_prefill_tokens" not in gauges  # nor how many tokens wait


def test_the_next_plane_goes_on_where_the_last_one_was() -> None:
    one, accountant = ledger(), Accountant("theirs")
    one.add(served(10), Role.DECODE, 100.0)
    one.add(served(30), Role.DECODE, 102.0)
    accountant.ingest(Observation(at_unix_s=102.0, readings=(read(one),)))
    cursor = accountant.snapshot()["p0"]

    after, next_accountant = Ledger(one.identity, cursor), Accountant("theirs")
    next_accountant.restore({"p0": cursor})
    assert read(after).counters == read(one).counters
    after.add(served(90), Role.DECODE, 112.0)
    assert read(after).epoch == read(one).epoch
    ingested = next_accountant.ingest(Observation(at_unix_s=112.0, readings=(read(after),)))
    rows = [row for (line, _, _), row in ingested.phases.items() if line.scope == "fleet"]
    assert sum(row["tokens"] for row in rows) == 60  # what was done while no plane looked, spread over that time
    assert len(rows) == 10
    assert [each.kind for each in ingested.events] == []


def test_a_cursor_of_something_else_begins_another_life() -> None:
    one, accountant = ledger(), Accountant("theirs")
    one.add(served(10), Role.DECODE, 100.0)
    accountant.ingest(Observation(at_unix_s=100.0, readings=(read(one),)))
    cursor = replace_cursor(accountant.snapshot()["p0"], resume=b"what is this")
    after = Ledger(one.identity, cursor)
    after.add(served(50), Role.DECODE, 112.0)
    assert read(after).epoch > read(one).epoch
    assert read(after).counters == {}
