"""What a screen shows of a fleet at one instant: desired beside observed, how full beside how hard. Pure.

Decided here: how readings, lives and desired state become one list of workers, what a pool's load is.
Not decided here: headroom (`control.headroom`), ceilings (`control.ceilings`), health in words (`control.health`),
utilization (`control.accounting`), traffic (`control.traffic_stats`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from control.accounting import UtilizationView
from control.ceilings import ceilings_of
from control.changes import role_of
from control.facts import POOLS, FleetFacts, PoolFacts, WorkerFacts, natural
from control.fleets.base import ACTING, Observation, WorkerLife
from control.gateway.pulse import Pulse, pulse_of_step
from control.headroom import BatchLimit, headroom_rps
from control.health import Health, health_of
from control.overdue import overdue_step_s
from control.types.alerts import Alert
from control.types.bottleneck import Bottleneck
from control.types.commands import Departure, Desired
from control.types.fleet import Blended, Capability, FleetSnapshot, PlaneStatus, PoolStatus, TrafficStatus
from control.types.workers import Phase, PhaseUtilization, Role, WorkerState, WorkerStatus, WorkEstimates
from engine.readings import DeviceReading, MeterReading
from engine.types import Load

#: A worker that one observation misses is shown as it was for this long: a node may be late once.
KEEP_S = 5.0
NO_BATCHES: Final[Mapping[Role, BatchLimit]] = {}
NO_POOLS: Final[Mapping[Role, PoolFacts]] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetIdentity:
    """What does not change while a plane runs."""

    fleet_id: str
    model_id: str
    kind: str
    simulated: bool
    capabilities: tuple[Capability, ...]
    started_unix_s: float
    version: str = ""
    plane: PlaneStatus | None = None
    is_attached: bool = False
    refusals: Mapping[str, str] = field(default_factory=dict)


def build_snapshot(
    identity: FleetIdentity,
    *,
    desired: Desired,
    observation: Observation | None,
    readings: Mapping[str, MeterReading],
    utilization: UtilizationView | None,
    traffic: TrafficStatus,
    now_unix_s: float,
    tick: int,
    notices: tuple[str, ...] = (),
    active_command_ids: tuple[int, ...] = (),
    departures: tuple[Departure, ...] = (),
    alerts: tuple[Alert, ...] = (),
    bottleneck: Bottleneck | None = None,
    batches: Mapping[Role, BatchLimit] = NO_BATCHES,
    sized: Mapping[Role, PoolFacts] = NO_POOLS,
    max_pool: int = 0,
) -> FleetSnapshot:
    """The whole screen. `readings` are the newest per worker (`newest_readings`)."""
    lives = {each.worker_id: each for each in observation.lives} if observation else {}
    devices = {each.uuid: each for each in observation.devices if each.uuid} if observation else {}
    ids = sorted(desired.roles.keys() | readings.keys() | lives.keys(), key=natural)
    at = observation.at_unix_s if observation else now_unix_s
    workers = tuple(
        worker_status(identity, w, desired, readings.get(w), lives.get(w), devices, utilization, at) for w in ids
    )
    is_known = not identity.is_attached or (observation is not None and observation.is_listed)
    pools = (pool_status(role, workers, utilization, traffic, batches.get(role), is_known=is_known) for role in POOLS)
    health = STARTING
    if observation is not None:
        is_theirs = _is_observed_only(identity)
        health = health_of(workers, traffic, observation, departures, bottleneck, is_observed_only=is_theirs)
    return FleetSnapshot(
        fleet_id=identity.fleet_id,
        model_id=identity.model_id,
        kind=identity.kind,
        simulated=identity.simulated or any(each.simulated for each in workers),
        capabilities=identity.capabilities,
        at_unix_s=at,
        started_unix_s=identity.started_unix_s,
        plane=identity.plane,
        tick=tick,
        stale_s=max(0.0, now_unix_s - at),
        health=health.level,
        health_text=health.text,
        desired=desired,
        workers=workers,
        pools=tuple(_as_sized(each, desired, sized.get(each.role), max_pool) for each in pools),
        prefill=utilization.fleet.get(Phase.PREFILL) if utilization else None,
        decode=utilization.fleet.get(Phase.DECODE) if utilization else None,
        traffic=traffic,
        notices=notices,
        active_command_ids=active_command_ids,
        departures=departures,
        alerts=alerts,
        bottleneck=bottleneck,
        ceilings=ceilings_of(each for each in readings.values() if each.alive),
        blended=blended_of(utilization, devices.values()),
        is_attached=identity.is_attached,
        refusals=dict(identity.refusals),
        missing=observation.missing if observation else (),
    )


def _is_observed_only(identity: FleetIdentity) -> bool:
    """No request passes a gateway of ours, or nothing is ours to change."""
    can = set(identity.capabilities)
    return not ACTING & can or (identity.is_attached and Capability.ROUTE not in can)


def blended_of(utilization: UtilizationView | None, devices: Iterable[DeviceReading]) -> Blended | None:
    """The devices' own utilization.gpu where there is one, else the time in which the workers' steps ran."""
    told = [each.gpu_utilization for each in devices if each.gpu_utilization is not None]
    if told:
        return Blended(value=sum(told) / len(told), source="device")
    phases = utilization.fleet.values() if utilization else ()
    busy = [each.busy for each in phases if each.busy is not None]
    return Blended(value=min(1.0, sum(busy)), source="steps") if busy else None


STARTING = Health(level="starting", text="Waiting for the first look at the fleet")


def newest_readings(
    observation: Observation, before: Mapping[str, MeterReading], now_unix_s: float
) -> dict[str, MeterReading]:
    """The newest reading per worker. One that is missing now is kept for KEEP_S, unless its slot is known empty."""
    empty = {each.worker_id for each in observation.lives if each.problem}
    kept = {w: r for w, r in before.items() if now_unix_s - r.at_unix_s < KEEP_S and w not in empty}
    return kept | {reading.worker_id: reading for reading in observation.readings}


def fleet_facts(
    readings: Mapping[str, MeterReading],
    lives: tuple[WorkerLife, ...],
    *,
    can: frozenset[str],
    tpot_s: float | None,
    expected_output_tokens: int,
    utilization: UtilizationView | None,
    refusals: Mapping[str, str] = MappingProxyType({}),
    takes_back: bool = False,
    sized_by: str = "",
) -> FleetFacts:
    """The same readings as planning and reconcile want them."""
    stopped = {each.worker_id for each in lives if each.is_stopped}
    workers = {
        w: WorkerFacts(
            worker_id=w,
            epoch=reading.epoch,
            role=reading.role,
            state=reading.state,
            alive=reading.alive,
            num_running=reading.load.num_running,
            num_waiting=reading.load.num_waiting,
            num_leased=reading.load.num_leased,
            queued_prefill_tokens=reading.load.queued_prefill_tokens,
            problem=reading.reason,
            fence=reading.fence,
            is_stuck=w in stopped or pulse_of_step(reading.load.step_overdue) is Pulse.GONE,
        )
        for w, reading in readings.items()
    }
    return FleetFacts(
        workers=workers,
        gone={each.worker_id: each.problem for each in lives if each.problem and each.worker_id not in workers},
        listed={each.worker_id: each.listed_role for each in lives if each.listed_role is not None},
        can=can,
        refusals=refusals,
        takes_back=takes_back,
        sized_by=sized_by,
        tpot_s=tpot_s,
        expected_output_tokens=expected_output_tokens,
        prefill_tokens_per_s=_worker_rate(utilization),
        pool_share=pool_shares(readings, utilization),
    )


def pool_shares(readings: Mapping[str, MeterReading], utilization: UtilizationView | None) -> dict[Role, float]:
    """How much of each pool is in use, 0..1: of prefill the share of time, else of KV blocks. Unknown is left out."""
    shares: dict[Role, float] = {}
    prefill = utilization.roles.get(Role.PREFILL, {}).get(Phase.PREFILL) if utilization else None
    if prefill is not None and prefill.busy is not None:
        shares[Role.PREFILL] = prefill.busy
    for role in (Role.DECODE, Role.MIXED):
        loads = [each.load for each in readings.values() if each.role == role and each.alive]
        total = sum(each.kv_blocks_total for each in loads)
        if total:
            shares[role] = min(1.0, sum(each.kv_blocks_held + each.kv_blocks_reserved for each in loads) / total)
    return shares


def worker_status(
    identity: FleetIdentity,
    worker_id: str,
    desired: Desired,
    reading: MeterReading | None,
    life: WorkerLife | None,
    devices: Mapping[str, DeviceReading],
    utilization: UtilizationView | None,
    at_unix_s: float,
) -> WorkerStatus:
    """One row, as of `at_unix_s`. A slot without a reading says why: it failed, or it has not been seen yet."""
    load = reading.load if reading else Load()
    device = devices.get(reading.device.uuid) if reading and reading.device.uuid else None
    phases = utilization.workers.get(worker_id, {}) if utilization else {}
    state, reason = _state(reading, life)
    unknown = reading.unknown if reading else ()
    return WorkerStatus(
        worker_id=worker_id,
        epoch=reading.epoch if reading else 0,
        fleet_id=identity.fleet_id,
        model_id=reading.model_id if reading else identity.model_id,
        simulated=reading.simulated if reading else identity.simulated,
        role=reading.role if reading else Role.UNASSIGNED,
        desired_role=role_of(desired, worker_id),
        state=state,
        reason=reason,
        role_since_unix_s=reading.role_since_unix_s if reading else at_unix_s,
        started_unix_s=reading.started_unix_s if reading else at_unix_s,
        num_restarts=life.num_restarts if life else 0,
        last_restart_reason=life.last_restart_reason if life else "",
        pid=reading.pid if reading else 0,
        hostname=reading.hostname if reading else "",
        device=reading.device.name if reading else "",
        address=reading.address if reading else "",
        version=_version_of(identity, life) if reading else "",
        weight=desired.weights.get(worker_id, 1.0),
        drained=worker_id in desired.drained,
        alive=reading.alive if reading else False,
        heartbeat_age_s=(reading.heartbeat_age_s + max(0.0, at_unix_s - reading.at_unix_s)) if reading else 0.0,
        step_running_s=reading.step_running_s if reading else None,
        kv_usage=load.kv_usage if load.kv_blocks_total else None,
        kv_blocks_total=load.kv_blocks_total,
        kv_blocks_held=load.kv_blocks_held,
        kv_blocks_reserved=load.kv_blocks_reserved,
        queued_prefill_tokens=None if "queued_prefill_tokens" in unknown else load.queued_prefill_tokens,
        num_waiting=load.num_waiting if reading and "num_waiting" not in unknown else None,
        num_running=load.num_running if reading and "num_running" not in unknown else None,
        num_leased=load.num_leased,
        prefill=phases.get(Phase.PREFILL),
        decode=phases.get(Phase.DECODE),
        measured_tensor_active=device.tensor_active if device else None,
        measured_dram_active=device.dram_active if device else None,
        gpu_utilization=device.gpu_utilization if device else None,
        memory_used_bytes=device.memory_used_bytes if device else None,
        power_w=device.power_w if device else None,
        device_note=device.note if device else "",
        nvlink_bytes_per_s=device.nvlink_bytes_per_s if device else None,
        estimates=_estimates(reading),
        step_overdue=reading is not None and overdue_step_s(reading) is not None,
        is_outdated=life is not None and life.is_outdated,
    )


def _version_of(identity: FleetIdentity, life: WorkerLife | None) -> str:
    """A foreign engine's is its own."""
    if not identity.is_attached:
        return identity.version
    return life.version if life else ""


def _estimates(reading: MeterReading | None) -> WorkEstimates | None:
    """None where nothing is exported: then there is nothing to compare."""
    told = reading.estimates if reading else None
    if reading is None or told is None or told.exported_flops is told.exported_bytes is None:
        return None
    return WorkEstimates(
        since_unix_s=reading.started_unix_s,
        exported_flops=told.exported_flops,
        derived_flops=told.derived_flops,
        exported_bytes=told.exported_bytes,
        derived_bytes=told.derived_bytes,
    )


def pool_status(
    role: Role,
    workers: tuple[WorkerStatus, ...],
    utilization: UtilizationView | None,
    traffic: TrafficStatus,
    batch: BatchLimit | None = None,
    *,
    is_known: bool = True,
) -> PoolStatus:
    """One pool, by the role that its workers are seen in; what is desired of it stands beside that.

    `is_known` False: nobody has said yet who the fleet's workers are.
    """
    members = [each for each in workers if each.role == role and not _is_spare(each)]
    wanted = [each for each in workers if each.desired_role == role]
    ready = [each for each in members if each.state == WorkerState.READY and each.alive]
    phases = utilization.roles.get(role, {}) if utilization else {}
    prefill, decode = phases.get(Phase.PREFILL), phases.get(Phase.DECODE)
    load = prefill_load_s(members, prefill) if role == Role.PREFILL else kv_load(members)
    return PoolStatus(
        role=role,
        num_desired=len(wanted) if is_known else None,
        num_ready=len(ready),
        num_other=len({each.worker_id for each in (*members, *wanted)} - {each.worker_id for each in ready}),
        prefill=prefill,
        decode=decode,
        load=load,
        load_unit="s" if role == Role.PREFILL else "fraction",
        headroom_rps=headroom_rps(role, load, prefill, traffic, batch) if ready else None,
        batch=batch.batch if batch else None,
        largest_batch=batch.largest if batch else None,
    )


def _as_sized(pool: PoolStatus, desired: Desired, facts: PoolFacts | None, most: int) -> PoolStatus:
    """A pool that has a size and no fixed workers: what is desired of it is that size."""
    if facts is None:
        return pool
    wanted = desired.pool_size(pool.role)
    return replace(pool, num_desired=wanted, num_other=facts.num_other, most_workers=most, rival=facts.rival)


def prefill_load_s(members: list[WorkerStatus], prefill: PhaseUtilization | None) -> float | None:
    """Seconds of queued uncached tokens: queued / (tokens per second of prefill, while prefill runs).

    That rate is tokens_per_s / busy of the pool. Nothing queued is 0 s; something queued at an unknown rate,
    or an unknown number, is None.
    """
    known = [each.queued_prefill_tokens for each in members if each.queued_prefill_tokens is not None]
    if not members or len(known) < len(members):
        return None
    queued = sum(known)
    if queued == 0:
        return 0.0
    rate = _busy_rate(prefill)
    return queued / rate if rate else None


def kv_load(members: list[WorkerStatus]) -> float | None:
    """(held + reserved) / total blocks of the pool."""
    total = sum(each.kv_blocks_total for each in members)
    if not total:
        return None
    return min(1.0, sum(each.kv_blocks_held + each.kv_blocks_reserved for each in members) / total)


def _is_spare(worker: WorkerStatus) -> bool:
    """A spare keeps the role it last had, drained."""
    return worker.desired_role == Role.UNASSIGNED and worker.state == WorkerState.DRAINED


def _busy_rate(phase: PhaseUtilization | None) -> float | None:
    if phase is None or not phase.tokens_per_s or not phase.busy:
        return None
    return phase.tokens_per_s / phase.busy


def _worker_rate(utilization: UtilizationView | None) -> float | None:
    """Prompt tokens per second that one worker computes while it prefills; None when none did."""
    seen = [each.get(Phase.PREFILL) for each in utilization.workers.values()] if utilization else []
    busy = sum(each.busy or 0.0 for each in seen if each)
    tokens_per_s = sum(each.tokens_per_s or 0.0 for each in seen if each)
    return tokens_per_s / busy if tokens_per_s and busy else None


def _state(reading: MeterReading | None, life: WorkerLife | None) -> tuple[WorkerState, str]:
    problem = life.problem if life else ""
    if reading is None:
        return (WorkerState.FAILED, problem) if problem else (WorkerState.STARTING, "not seen yet")
    if not reading.alive and reading.state not in (WorkerState.FAILED, WorkerState.STOPPED):
        return WorkerState.FAILED, problem or reading.reason or f"its process {reading.pid} has ended"
    overdue_s = overdue_step_s(reading)
    overdue = f"step running for {overdue_s:.0f} s" if overdue_s is not None else ""
    return reading.state, "; ".join(each for each in (reading.reason, overdue) if each)
