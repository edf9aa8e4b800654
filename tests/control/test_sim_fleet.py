from __future__ import annotations

import asyncio
import threading
from collections import Counter
from dataclasses import replace

import pytest

from control.accounting import Accountant
from control.fleets.base import FleetStep
from control.fleets.sim import MAX_ADVANCE_S, SimConfig, SimFleet, sim_config
from control.fleets.sim_traffic import Arrivals, SimTraffic
from control.self_driving import SelfDriving
from control.settings import Settings
from control.types.routing import RouteRule, RoutingPolicy, RoutingTable
from control.types.workers import Role, WorkerState

START_S = 1_800_000_000.0
TRAFFIC = SimTraffic(mean_rps=6.0, swing=0.0, prompt_median_tokens=1020, prompt_p99_tokens=4142)


def small_fleet(num_workers: int = 6, traffic: SimTraffic = TRAFFIC) -> SimFleet:
    settings = Settings(fleet_kind="sim", fleet_id="sim", num_workers=num_workers)
    return SimFleet(sim_config(settings, traffic))


class Plane:
    """What the plane does with a fleet, by hand: place, push tables, observe, collect records."""

    def __init__(self, fleet: SimFleet, num_prefill: int = 2) -> None:
        self.fleet = fleet
        self.num_prefill = num_prefill
        self.now_s = START_S
        self.fence = 1
        self.policy = RoutingPolicy(min_fleet_devices=2)
        self.weights: dict[str, float] = {}
        self.records = []
        self.observation = None
        self.num_changes = 0

    async def start(self) -> Plane:
        await self.fleet.start(self._changed)
        await self.look(0.0)
        for index, row in enumerate(self.fleet.routes()):
            role = Role.PREFILL if index < self.num_prefill else Role.DECODE
            assert (await self.order("place", row.worker_id, role)).accepted
        self.push()
        return self

    def _changed(self) -> None:
        self.num_changes += 1

    async def order(self, verb: str, worker_id: str, role: Role):
        return await self.fleet.apply(FleetStep(verb=verb, worker_id=worker_id, role=role, fence=self.fence))

    def push(self) -> None:
        rows = tuple(replace(row, weight=self.weights.get(row.worker_id, 1.0)) for row in self.fleet.routes())
        self.fleet.set_table(
            RoutingTable(
                version=1,
                fleet_id="sim",
                model_id=self.fleet.model_id,
                fence=self.fence,
                num_devices=len(rows),
                policy=self.policy,
                workers=rows,
                expected_output_tokens=200,
            )
        )

    async def look(self, seconds: float):
        self.now_s += seconds
        self.observation = await self.fleet.observe(self.now_s)
        for gateway_id, first_seq, records in self.fleet.take_records():
            assert gateway_id in self.fleet.beats()
            assert first_seq == len(self.records) + 1
            self.records += records
        return self.observation

    async def run(self, seconds: int) -> None:
        for _ in range(seconds):
            await self.look(1.0)

    @property
    def beat(self):
        (beat,) = self.fleet.beats().values()
        return beat

    def reading(self, worker_id: str):
        return next(each for each in self.observation.readings if each.worker_id == worker_id)


async def test_a_fleet_that_began_again_leaves_a_gap_where_it_was_not() -> None:
    """A restarted plane has the cursors of the former fleet: its new workers are new lives, not a long silence."""
    first, second = Accountant("sim"), Accountant("sim")
    plane = await Plane(small_fleet()).start()
    for _ in range(5):
        first.ingest(await plane.look(1.0))
    second.restore(first.snapshot())
    plane = Plane(small_fleet())
    plane.now_s = START_S + 60
    await plane.start()
    found = second.ingest(await plane.look(2.0))
    assert {second for _, second in found.states} == {int(START_S) + each for each in (60, 61, 62)}


async def test_it_is_self_driving_and_marked_simulated():
    plane = await Plane(small_fleet()).start()
    await plane.run(15)
    assert isinstance(plane.fleet, SelfDriving)
    assert plane.fleet.simulated
    assert all(reading.simulated for reading in plane.observation.readings)
    assert all(row.simulated for row in plane.fleet.routes())
    assert plane.records
    assert all(record.simulated for record in plane.records)


async def test_the_same_calls_give_the_same_fleet():
    first, second = await Plane(small_fleet()).start(), await Plane(small_fleet()).start()
    await first.run(8)
    await second.run(8)
    assert first.records == second.records
    assert [each.counters for each in first.observation.readings] == [
        each.counters for each in second.observation.readings
    ]


async def test_how_often_it_is_observed_changes_nothing_that_happens():
    seldom, often = await Plane(small_fleet()).start(), await Plane(small_fleet()).start()
    await seldom.look(0.5)
    await seldom.look(9.5)
    for _ in range(20):
        await often.look(0.5)
    assert seldom.records == often.records
    steps = sum(len(each.steps) for each in seldom.observation.readings)
    assert steps > 0
    assert [each.counters for each in seldom.observation.readings] == [
        each.counters for each in often.observation.readings
    ]


async def test_every_request_is_in_flight_or_on_record():
    plane = await Plane(small_fleet()).start()
    await plane.run(20)
    beat = plane.beat
    assert beat.num_arrived == pytest.approx(120, abs=40)
    assert beat.num_arrived == beat.num_in_flight + len(plane.records)
    assert beat.num_completed == len(plane.records)
    assert len({record.request_id for record in plane.records}) == len(plane.records)


async def test_a_record_tells_the_life_of_its_request():
    plane = await Plane(small_fleet()).start()
    await plane.run(20)
    record = next(each for each in plane.records if each.rule == RouteRule.REMOTE)
    assert (record.status, record.finish_reason) == (200, "length")
    assert record.output_tokens == record.max_tokens
    assert record.prefill_worker in {"w0", "w1"}
    assert record.decode_worker in {"w2", "w3", "w4", "w5"}
    assert 0 < record.prefill_s <= record.ttft_s < record.e2e_s
    assert record.handoff_s > 0
    assert sum(record.itl_buckets.values()) == record.output_tokens - 1
    assert record.e2e_s == pytest.approx(record.ttft_s + record.tpot_s * (record.output_tokens - 1))


async def test_the_two_phases_run_where_their_pool_is():
    plane = await Plane(small_fleet()).start()
    await plane.run(15)
    assert set(plane.reading("w0").counters) == {"prefill/prefill"}
    assert "decode/decode" in plane.reading("w3").counters
    assert plane.reading("w3").state is WorkerState.READY


async def test_without_a_role_nothing_arrives():
    fleet = small_fleet()
    await fleet.start(lambda: None)
    await fleet.observe(START_S)
    await fleet.observe(START_S + 30)
    (beat,) = fleet.beats().values()
    assert beat.num_arrived == 0


async def test_remote_share_decides_where_the_next_requests_go():
    plane = await Plane(small_fleet()).start()
    await plane.run(6)
    plane.policy = RoutingPolicy(min_fleet_devices=2, remote_share=0.0)
    plane.push()
    changed_s = plane.now_s
    await plane.run(20)
    before = Counter(each.rule for each in plane.records if each.arrival_unix_s <= changed_s)
    after = Counter(each.rule for each in plane.records if each.arrival_unix_s > changed_s)
    assert before[RouteRule.REMOTE] > 0
    assert after[RouteRule.REMOTE] == 0
    assert after[RouteRule.CONTROL_ARM] > 0


async def test_a_weight_of_zero_gets_nothing_new():
    plane = await Plane(small_fleet()).start()
    plane.weights = {"w2": 0.0}
    plane.push()
    await plane.run(15)
    assert "w2" not in {record.decode_worker for record in plane.records}


async def test_a_resize_under_load_loses_nothing():
    plane = await Plane(small_fleet()).start()
    await plane.run(5)
    plane.fence = 2
    for worker_id, role in (("w2", Role.PREFILL), ("w0", Role.DECODE)):
        assert (await plane.order("flip", worker_id, role)).accepted
    await plane.run(40)
    assert plane.reading("w2").role is Role.PREFILL
    assert plane.reading("w0").role is Role.DECODE
    assert {record.status for record in plane.records} == {200}
    assert all(record.output_tokens == record.max_tokens for record in plane.records)
    assert plane.beat.num_arrived == plane.beat.num_in_flight + len(plane.records)
    assert plane.num_changes > 6


async def test_draining_a_worker_empties_it_while_the_others_serve():
    plane = await Plane(small_fleet()).start()
    await plane.run(5)
    plane.fence = 2
    await plane.order("drain", "w3", Role.DECODE)
    await plane.run(40)
    reading = plane.reading("w3")
    assert (reading.state, reading.load.kv_blocks_held) == (WorkerState.DRAINED, 0)
    assert {record.status for record in plane.records} == {200}


@pytest.mark.parametrize(("verb", "role"), [("drain", Role.DECODE), ("flip", Role.PREFILL)])
async def test_what_decodes_on_a_worker_that_leaves_decode_is_moved_as_it_is_in_a_real_fleet(verb: str, role: Role):
    plane = await Plane(small_fleet()).start()
    await plane.run(20)
    num_running = plane.reading("w3").load.num_running
    plane.fence = 2
    await plane.order(verb, "w3", role)
    await plane.run(1)
    state = WorkerState.DRAINED if verb == "drain" else WorkerState.READY
    assert (plane.reading("w3").state, plane.reading("w3").role) == (state, role)
    await plane.run(60)
    moves = [move for record in plane.records for move in record.moves]
    assert num_running > 2
    assert len(moves) >= num_running - 1  # one may have ended before its turn
    assert {(move.kind, move.from_worker, move.to_worker == "w3") for move in moves} == {("migration", "w3", False)}
    assert all(move.num_bytes > 0 and 0 < move.stall_s < 0.5 for move in moves)
    assert {record.status for record in plane.records} == {200}
    assert all(record.output_tokens == record.max_tokens for record in plane.records)


async def test_without_live_migration_a_simulated_drain_waits_for_the_longest_answer():
    fleet = small_fleet()
    plane = await Plane(SimFleet(replace(fleet.config, moves_per_worker=0))).start()
    await plane.run(20)
    plane.fence = 2
    await plane.order("drain", "w3", Role.DECODE)
    await plane.run(1)
    assert plane.reading("w3").state is WorkerState.DRAINING
    await plane.run(60)
    assert plane.reading("w3").state is WorkerState.DRAINED
    assert [record for record in plane.records if record.moves] == []


async def test_a_worker_that_dies_in_the_middle_of_moves_costs_no_request():
    for victim in ("w3", "w4"):  # the source, a target
        plane = await Plane(small_fleet()).start()
        await plane.run(20)
        plane.fence = 2
        await plane.order("drain", "w3", Role.DECODE)
        await plane.look(0.004)
        plane.fleet.kill(victim)
        await plane.run(60)
        assert {record.status for record in plane.records} == {200}
        assert all(record.output_tokens == record.max_tokens for record in plane.records)
        readings = [each for each in plane.observation.readings if each.role is Role.DECODE]
        assert all(each.load.kv_blocks_reserved >= 0 for each in readings)


async def test_overload_is_refused_after_a_wait_and_counted():
    plane = await Plane(small_fleet(2, SimTraffic(mean_rps=40.0, swing=0.0)), num_prefill=1).start()
    await plane.run(25)
    statuses = Counter(record.status for record in plane.records)
    assert statuses[429] > 0
    assert plane.beat.num_rejected == statuses[429]
    refused = next(record for record in plane.records if record.status == 429)
    assert (refused.good, refused.rule) == (False, RouteRule.NO_CAPACITY)
    assert refused.e2e_s == pytest.approx(10.0, abs=0.001)
    assert plane.beat.num_arrived == plane.beat.num_in_flight + len(plane.records)


async def test_an_older_fence_and_an_unknown_worker_are_refused():
    plane = await Plane(small_fleet()).start()
    plane.fence = 5
    assert (await plane.order("flip", "w0", Role.DECODE)).accepted
    plane.fence = 4
    outcome = await plane.order("flip", "w0", Role.PREFILL)
    assert not outcome.accepted
    assert "fence 4 is older" in outcome.detail
    assert "no such worker" in (await plane.order("flip", "w99", Role.PREFILL)).detail


async def test_an_order_before_the_first_observation_may_be_tried_again():
    outcome = await small_fleet().apply(FleetStep(verb="place", worker_id="w0", role=Role.DECODE, fence=1))
    assert (outcome.accepted, outcome.retry_helps) == (False, True)


async def test_a_long_pause_is_caught_up_in_bounded_parts():
    plane = await Plane(small_fleet(2), num_prefill=1).start()
    observation = await plane.look(MAX_ADVANCE_S + 5)
    assert observation.at_unix_s == START_S + MAX_ADVANCE_S
    assert (await plane.look(1.0)).at_unix_s == plane.now_s


async def test_time_never_goes_back():
    plane = await Plane(small_fleet(2), num_prefill=1).start()
    await plane.look(5.0)
    assert (await plane.fleet.observe(START_S)).at_unix_s == START_S + 5.0


async def test_the_event_loop_goes_on_while_it_computes_and_an_order_waits_for_its_turn(monkeypatch):
    plane = await Plane(small_fleet(2), num_prefill=1).start()
    loop_went_on, run_until = threading.Event(), plane.fleet._run_until

    def wait_for_the_loop(until_s: float) -> None:
        assert loop_went_on.wait(10)
        run_until(until_s)

    monkeypatch.setattr(plane.fleet, "_run_until", wait_for_the_loop)
    looking = asyncio.create_task(plane.fleet.observe(plane.now_s + 1.0))
    await asyncio.sleep(0)
    ordering = asyncio.create_task(plane.order("flip", "w1", Role.PREFILL))
    await asyncio.sleep(0)
    assert not ordering.done()
    loop_went_on.set()
    seen = {each.worker_id: each.role for each in (await looking).readings}
    assert seen == {"w0": Role.PREFILL, "w1": Role.DECODE}
    assert (await ordering).accepted


async def test_changes_are_told_on_the_event_loop():
    fleet, told = small_fleet(2), []
    await fleet.start(lambda: told.append(threading.get_ident()))
    await fleet.observe(START_S)
    await fleet.apply(FleetStep(verb="place", worker_id="w0", role=Role.PREFILL, fence=1))
    await fleet.apply(FleetStep(verb="place", worker_id="w1", role=Role.DECODE, fence=1))
    assert told
    assert set(told) == {threading.get_ident()}


def test_the_default_fleet_is_48_h100s_with_a_70b():
    settings = Settings(fleet_kind="sim", num_workers=48)
    config = sim_config(settings)
    assert isinstance(config, SimConfig)
    assert config.machine.device.name == "h100-sxm-80gb"
    assert config.machine.device.peak_flops == 1.979e15
    assert config.traffic.mean_rps == 36.0
    assert config.machine.num_blocks * config.machine.block_tokens == pytest.approx(33_000, rel=0.02)


# --- traffic ---------------------------------------------------------------------------------------------------------


def draw(traffic: SimTraffic, count: int):
    arrivals = Arrivals(traffic, START_S, vocab_size=128_256, max_tokens=100_000)
    return [arrivals.next() for _ in range(count)]


def test_lengths_have_the_articles_median_and_tail():
    arrivals = draw(SimTraffic(), 20_000)
    prompts = sorted(each.prompt_tokens for each in arrivals)
    outputs = sorted(each.output_tokens for each in arrivals)
    assert prompts[10_000] == pytest.approx(1020, rel=0.03)
    assert prompts[19_800] == pytest.approx(4142, rel=0.08)
    assert outputs[10_000] == pytest.approx(200, rel=0.03)


def test_the_rate_follows_the_day():
    traffic = SimTraffic(mean_rps=10.0, swing=0.5, day_s=1000.0, peak_at_s=START_S % 1000.0)
    assert traffic.rate_rps(START_S) == 15.0
    assert traffic.rate_rps(START_S + 500.0) == 5.0
    arrivals = [each for each in draw(traffic, 12_000) if each.at_unix_s < START_S + 1000.0]
    assert len(arrivals) == pytest.approx(10_000, rel=0.05)
    busy = sum(1 for each in arrivals if not 250 <= each.at_unix_s - START_S < 750)
    assert busy / len(arrivals) == pytest.approx(0.5 + 0.5 / 3.14159, abs=0.02)


def test_prompt_and_output_fit_where_they_are_sent():
    arrivals = Arrivals(SimTraffic(), START_S, vocab_size=500, max_tokens=800)
    for _ in range(500):
        arrival = arrivals.next()
        assert arrival.prompt_tokens + arrival.output_tokens <= 800
        assert arrival.first_token + arrival.prompt_tokens <= 500


def test_no_traffic_means_no_arrivals():
    assert draw(SimTraffic(mean_rps=0.0), 1) == [None]


@pytest.mark.parametrize(
    ("field", "value"),
    [("mean_rps", -1), ("mean_rps", float("nan")), ("swing", 1.5), ("day_s", 0), ("prompt_median_tokens", 0)],
)
def test_a_traffic_value_out_of_bounds_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        SimTraffic(**{field: value})
