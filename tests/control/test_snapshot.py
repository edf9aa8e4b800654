from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from control.accounting import UtilizationView
from control.fleets.base import Observation, WorkerLife
from control.notices import LOCAL_PROFILE, notices_of
from control.reconcile import as_observed
from control.snapshot import FleetIdentity, blended_of, build_snapshot, fleet_facts, newest_readings
from control.types.bottleneck import Bottleneck, BottleneckKind, Resource
from control.types.commands import Departure, Desired
from control.types.fleet import Capability, FleetSnapshot, PoolStatus
from control.types.routing import RoutingPolicy
from control.types.workers import LossCause, Phase, Role, WorkerState
from engine.readings import DeviceInfo, DeviceReading, MeterReading, PhaseCounters
from engine.types import Load
from tests.control.builders import NOW, desired, phase, reading, traffic

IDENTITY = FleetIdentity(
    fleet_id="test",
    model_id="tiny",
    kind="fake",
    simulated=True,
    capabilities=(Capability.FLIP,),
    started_unix_s=NOW - 10,
)
SERVING = traffic(offered_rps=4.0, attainment=1.0, by_rule={"remote": 3, "short_local": 1})


def readings_of(state: Desired, **changes: dict[str, Any]) -> dict[str, MeterReading]:
    return {w: reading(w, role, **changes.get(w, {})) for w, role in state.roles.items()}


def snapshot(
    state: Desired | None = None,
    readings: dict[str, MeterReading] | None = None,
    lives: tuple[WorkerLife, ...] = (),
    identity: FleetIdentity = IDENTITY,
    **changes: Any,
) -> FleetSnapshot:
    state = state or desired(1, 3)
    readings = readings_of(state) if readings is None else readings
    observation = Observation(at_unix_s=NOW, readings=tuple(readings.values()), lives=lives)
    values: dict[str, Any] = {
        "desired": state,
        "observation": observation,
        "readings": readings,
        "utilization": None,
        "traffic": SERVING,
        "now_unix_s": NOW + 0.5,
        "tick": 3,
    }
    return build_snapshot(identity, **{**values, **changes})


def pool(snap: FleetSnapshot, role: Role) -> PoolStatus:
    return next(each for each in snap.pools if each.role == role)


def test_a_fleet_that_is_as_desired_is_ok() -> None:
    snap = snapshot()
    assert (snap.health, snap.health_text) == ("ok", "All 4 workers are ready, 100% of requests are good")
    assert [(p.role, p.num_desired, p.num_ready, p.num_other) for p in snap.pools] == [
        (Role.PREFILL, 1, 1, 0),
        (Role.DECODE, 3, 3, 0),
        (Role.MIXED, 0, 0, 0),
    ]
    assert snap.stale_s == 0.5


def test_before_the_first_look_everything_is_starting_and_nothing_is_zero() -> None:
    snap = snapshot(readings={}, observation=None)
    assert snap.health == "starting"
    assert {w.state for w in snap.workers} == {WorkerState.STARTING}
    assert all(w.kv_usage is None and w.prefill is None for w in snap.workers)
    assert all(p.load is None for p in snap.pools)


THEIRS = replace(IDENTITY, is_attached=True, capabilities=(Capability.OBSERVE,))
NOTHING = desired(0, 0)


def test_an_engine_of_others_that_never_answered_is_wanted_in_the_role_it_is_listed_in() -> None:
    lives = (WorkerLife(worker_id="p0", problem="connection refused", listed_role=Role.PREFILL),)
    facts = fleet_facts({}, lives, can=frozenset(), tpot_s=None, expected_output_tokens=1, utilization=None)
    snap = snapshot(as_observed(NOTHING, facts), {}, lives, THEIRS)
    assert [(p.role, p.num_desired, p.num_ready, p.num_other) for p in snap.pools] == [
        (Role.PREFILL, 1, 0, 1),
        (Role.DECODE, 0, 0, 0),
        (Role.MIXED, 0, 0, 0),
    ]
    assert (snap.workers[0].desired_role, snap.workers[0].reason) == (Role.PREFILL, "connection refused")


def test_what_is_desired_of_a_fleet_whose_workers_nobody_has_listed_is_unknown_and_why_is_said() -> None:
    seen = Observation(at_unix_s=NOW, readings=(), problems=("http://router:30000 refuses",), is_listed=False)
    snap = snapshot(NOTHING, {}, identity=THEIRS, observation=seen)
    assert [p.num_desired for p in snap.pools] == [None] * 3
    assert (snap.health, snap.health_text) == (
        "starting",
        "Its workers are not known yet: http://router:30000 refuses",
    )
    assert [p.num_desired for p in snapshot(NOTHING, {}, identity=THEIRS, observation=None).pools] == [None] * 3
    assert [p.num_desired for p in snapshot(NOTHING, {}, identity=THEIRS).pools] == [0] * 3  # listed, and empty


def test_a_slot_without_a_worker_says_why() -> None:
    state = desired(1, 3)
    readings = readings_of(state)
    del readings["w3"]
    snap = snapshot(state, readings, (WorkerLife(worker_id="w3", problem="out of memory", num_restarts=2),))
    gone = snap.workers[3]
    assert (gone.state, gone.reason, gone.num_restarts) == (WorkerState.FAILED, "out of memory", 2)
    assert (snap.health, snap.health_text) == ("attention", "w3 is failed: out of memory")


def test_a_process_that_ended_reads_as_failed() -> None:
    state = desired(1, 3)
    snap = snapshot(state, readings_of(state, w2={"alive": False}))
    assert snap.workers[2].state == WorkerState.FAILED
    assert snap.workers[2].reason == "its process 100 has ended"


def died(worker_id: str, **changes: Any) -> Departure:
    values: dict[str, Any] = {
        "kind": "lost",
        "cause": LossCause.DIED,
        "since_unix_s": NOW - 12,
        "num_sequences": 14,
        "num_continued": 14,
    }
    return Departure(**{"worker_id": worker_id, **values, "stall_s": 0.24, **changes})


def test_health_says_what_became_of_a_dead_workers_requests() -> None:
    state = desired(1, 3)
    dead = {"alive": False, "heartbeat_age_s": 12.3}
    snap = snapshot(state, readings_of(state, w2=dead), departures=(died("w2"),))
    assert snap.health == "attention"
    assert snap.health_text == (
        "w2 died 12 s ago: 14 requests continued elsewhere, worst stall 240 ms; it is being started anew"
    )
    both = snapshot(state, readings_of(state, w2=dead, w3=dead), departures=(died("w2"), died("w3", stall_s=0.4)))
    assert both.health_text == (
        "w2 (and 1 more) died 12 s ago: 28 requests continued elsewhere, worst stall 400 ms; "
        "they are being started anew"
    )


def limited(kind: BottleneckKind, *resources: Resource) -> Bottleneck:
    text = "KV room is the bottleneck: 96% of KV blocks in use" if resources else "No bottleneck"
    return Bottleneck(kind=kind, resources=resources, text=text, at_unix_s=NOW, since_unix_s=NOW, window_s=60.0)


def test_a_bottleneck_does_not_hide_a_loss_of_the_last_minute() -> None:
    lost = (died("w1", cause=LossCause.HUNG),)
    snap = snapshot(desired(1, 1), departures=lost, bottleneck=limited("kv_room", Resource.KV_ROOM))
    assert snap.health_text == (
        "KV room is the bottleneck: 96% of KV blocks in use. "
        "w1 hung 12 s ago: 14 requests continued elsewhere, worst stall 240 ms"
    )


def test_health_remembers_a_death_for_a_minute() -> None:
    state = desired(1, 3)
    back = snapshot(state, readings_of(state), departures=(died("w2"),))
    assert (back.health, "w2 died 12 s ago: 14 requests" in back.health_text) == ("ok", True)
    later = snapshot(state, readings_of(state), departures=(died("w2", since_unix_s=NOW - 61),))
    assert "died" not in later.health_text


def test_one_worker_that_starts_is_counted() -> None:
    state = desired(1, 3)
    snap = snapshot(state, readings_of(state, w1={"state": WorkerState.STARTING}))
    assert snap.health_text == "1 of 4 workers is starting"


def test_a_step_far_beyond_the_usual_shows_in_health_and_on_its_worker() -> None:
    state = desired(1, 3)

    def after(running_s: float, usual_s: float) -> FleetSnapshot:
        counters = {"decode/decode": PhaseCounters(busy_s=10 * usual_s, steps=10)}
        return snapshot(state, readings_of(state, w1={"step_running_s": running_s, "counters": counters}))

    stuck = after(14.2, 0.05)
    assert (stuck.health, stuck.health_text) == ("attention", "w1: step running for 14 s")
    assert (stuck.workers[1].state, stuck.workers[1].reason) == (WorkerState.READY, "step running for 14 s")
    assert after(9.0, 0.05).health == "ok"
    assert after(14.2, 2.0).health == "ok"
    assert after(41.0, 2.0).health_text == "w1: step running for 41 s"


def test_no_worker_that_can_decode_is_broken() -> None:
    state = desired(1, 1)
    snap = snapshot(state, readings_of(state, w1={"state": WorkerState.FAILED, "reason": "bad weights"}))
    assert (snap.health, snap.health_text) == ("broken", "No worker can decode: w1: bad weights")


def test_health_says_what_limits_in_the_verdicts_own_words() -> None:
    found = limited("kv_room", Resource.KV_ROOM)
    assert (snapshot(bottleneck=found).health, snapshot(bottleneck=found).health_text) == ("attention", found.text)
    assert snapshot(bottleneck=limited("none")).health_text == "All 4 workers are ready, 100% of requests are good"


def test_kv_that_is_held_and_promised_is_a_decode_pools_load() -> None:
    state = desired(1, 1)
    full = Load(kv_blocks_total=100, kv_blocks_held=90, kv_blocks_reserved=6)
    assert pool(snapshot(state, readings_of(state, w1={"load": full})), Role.DECODE).load == pytest.approx(0.96)


def test_prefill_load_is_queued_tokens_over_the_rate_while_it_runs() -> None:
    state = desired(1, 3)
    view = UtilizationView(
        start_unix_s=0,
        end_unix_s=5,
        roles={Role.PREFILL: {Phase.PREFILL: phase(tokens_per_s=500.0, busy=0.5)}},
    )
    queued = readings_of(state, w0={"load": Load(queued_prefill_tokens=3000)})
    prefill = pool(snapshot(state, queued, utilization=view), Role.PREFILL)
    assert (prefill.load, prefill.load_unit) == (pytest.approx(3.0), "s")
    assert prefill.headroom_rps == pytest.approx(3.0 * (0.85 - 0.5) / 0.5)


def test_queued_tokens_at_an_unknown_rate_are_an_unknown_load() -> None:
    state = desired(1, 3)
    queued = readings_of(state, w0={"load": Load(queued_prefill_tokens=3000)})
    assert pool(snapshot(state, queued), Role.PREFILL).load is None


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (traffic(offered_rps=4.0, attainment=1.0), 4.0 * (0.9 - 0.3) / 0.3),
        (traffic(offered_rps=4.0, attainment=0.5), 0.0),
        (traffic(offered_rps=None), None),
        (traffic(offered_rps=0.0), None),
    ],
)
def test_decode_headroom_is_linear_in_kv_zero_when_the_slo_is_broken_and_none_without_traffic(
    seen: Any, expected: float | None
) -> None:
    state = desired(1, 1)
    readings = readings_of(state, w1={"load": Load(kv_blocks_total=100, kv_blocks_held=20, kv_blocks_reserved=10)})
    headroom = pool(snapshot(state, readings, traffic=seen), Role.DECODE).headroom_rps
    assert headroom == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("seen", "level", "text"),
    [
        (traffic(), "ok", "No traffic. All 4 workers are ready"),
        (traffic(num_gateways=0), "attention", "No gateway is connected: no traffic can be seen"),
        (traffic(offered_rps=2.0, attainment=0.5), "attention", "50% of requests are good; the aim is 95%"),
        (traffic(offered_rps=2.0, error_rps=0.25), "attention", "0.25 requests per second end with an error"),
    ],
)
def test_health_says_what_the_traffic_says(seen: Any, level: str, text: str) -> None:
    snap = snapshot(traffic=seen)
    assert (snap.health, snap.health_text) == (level, text)


def test_a_spare_belongs_to_no_pool() -> None:
    state = desired(1, 2, spare=1)
    readings = readings_of(state) | {"w3": reading("w3", Role.DECODE, state=WorkerState.DRAINED)}
    snap = snapshot(state, readings)
    assert pool(snap, Role.DECODE).num_ready == 2
    assert pool(snap, Role.DECODE).num_other == 0


def test_a_reading_that_is_missing_once_is_kept_for_a_moment() -> None:
    before = {"w0": reading("w0", at_unix_s=NOW), "w1": reading("w1", at_unix_s=NOW)}
    lives = (WorkerLife(worker_id="w1", problem="killed"),)
    late = Observation(at_unix_s=NOW + 1, readings=(), lives=lives)
    assert newest_readings(late, before, NOW + 1).keys() == {"w0"}
    assert newest_readings(late, before, NOW + 10) == {}


def test_facts_name_the_slots_that_are_empty() -> None:
    fleet = fleet_facts(
        {"w0": reading("w0")},
        (WorkerLife(worker_id="w0"), WorkerLife(worker_id="w1", problem="killed")),
        can=frozenset({"flip"}),
        tpot_s=None,
        expected_output_tokens=10,
        utilization=None,
    )
    assert fleet.gone == {"w1": "killed"}
    assert fleet.workers["w0"].role == Role.DECODE


def test_the_rate_of_one_worker_does_not_grow_with_the_fleet() -> None:
    """Of 4 workers two prefill half of the time, 300 tokens a second each: 600 tokens per second of prefill."""
    busy = {Phase.PREFILL: phase(busy=0.5, tokens_per_s=300.0)}
    idle = {Phase.PREFILL: phase(busy=0.0, tokens_per_s=0.0)}
    view = UtilizationView(
        start_unix_s=0,
        end_unix_s=5,
        fleet={Phase.PREFILL: phase(busy=0.25, tokens_per_s=600.0)},
        workers={"w0": busy, "w1": busy, "w2": idle, "w3": idle},
    )
    values: dict[str, Any] = {"can": frozenset[str](), "tpot_s": None, "expected_output_tokens": 128}
    assert fleet_facts({}, (), utilization=view, **values).prefill_tokens_per_s == 600.0
    nothing = UtilizationView(start_unix_s=0, end_unix_s=5, workers={"w2": idle})
    assert fleet_facts({}, (), utilization=nothing, **values).prefill_tokens_per_s is None


def test_notices_say_what_numbers_need_to_be_read_right() -> None:
    local = RoutingPolicy(min_fleet_devices=2)
    unknown = reading("w1", simulated=False, device=DeviceInfo(name="strange", kind="cuda"))
    found = notices_of(
        {"w0": reading("w0"), "w1": unknown},
        local,
        local,
        sample_share=0.25,
        history_problem="disk full",
        num_writes_waiting=3,
    )
    assert found[0].startswith("The history cannot be written: disk full")
    assert LOCAL_PROFILE in found
    assert any(each.startswith("25% of the last minute's requests are sample traffic") for each in found)
    assert any("Simulated workers (paced-h100)" in each for each in found)
    assert any("No peak is known for strange" in each for each in found)
    assert notices_of({}, RoutingPolicy(), None) == ()


def test_banners_say_what_waits_on_disk_and_why_it_cannot() -> None:
    policy = RoutingPolicy()
    away = notices_of({}, policy, None, history_problem="refused", num_writes_spooled=60, spooled_bytes=1_500_000)
    assert away[0].endswith("0 writes wait in memory, 60 in the spool (1.5 MB).")
    assert "The history is back: 60 writes" in notices_of({}, policy, None, num_writes_spooled=60)[0]
    assert "in memory only" in notices_of({}, policy, None, spool_problem="No space left on device")[0]


def test_a_fleet_that_is_only_observed_needs_no_gateway_of_ours() -> None:
    theirs = replace(IDENTITY, capabilities=(Capability.OBSERVE,))
    nobody = replace(SERVING, num_gateways=0)
    assert snapshot(traffic=nobody).health == "attention"
    seen = snapshot(traffic=nobody, identity=theirs)
    assert (seen.health, seen.health_text) == ("ok", "All 4 engines answer")
    assert snapshot(desired(0, 0), identity=theirs).health == "starting"


def test_the_blended_number_is_the_devices_own_where_there_is_one() -> None:
    told = [DeviceReading(uuid="a", at_unix_s=1.0, gpu_utilization=1.0), DeviceReading(uuid="b", at_unix_s=1.0)]
    found = blended_of(None, told)
    assert found is not None
    assert (found.value, found.source) == (1.0, "device")
    assert blended_of(None, []) is None
