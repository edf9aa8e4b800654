"""A plane in memory with the signature of `control.client.PhaselineClient`: deterministic, driven by its clock.

It decides nothing: scenes, courses and commands are just enough to see what the console makes of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any, Unpack

from control.differences import differences
from control.errors import CommandRefused, ControlError, NotAllowed, NotFound, PlaneUnreachable, StaleVersion
from control.fleets.attached.choices import choices
from control.fleets.attached.types import (
    AttachChoices,
    AttachedInfo,
    Attachment,
    EngineSurvey,
    Finding,
    Looks,
    Permission,
    Survey,
)
from control.heatmap import BIN_BUCKETS, bound_of, cells_of, column_step
from control.sampling import latency_of
from control.types.alerts import Alert
from control.types.api import Principal, Session
from control.types.bottleneck import Bottleneck, Resource
from control.types.commands import (
    Action,
    Command,
    CommandRequest,
    CommandState,
    CommandStep,
    Desired,
    PlannedStep,
    Preview,
    Verb,
)
from control.types.events import EventKind, FleetEvent
from control.types.fleet import Blended, Capability, Ceilings, FleetSnapshot, Missing, PoolStatus, TrafficStatus
from control.types.latencies import Explanation, Heatmap
from control.types.requests import RecordCounts, RequestFilters, RequestMove, RequestRecord, Slo
from control.types.roofline import Roof, Roofline, RooflinePoint
from control.types.routing import RoutingPolicy, WhatIfRouting
from control.types.series import MetricInfo, Series, SeriesPoint, SeriesResult
from control.types.workers import LossCause, Phase, PhaseUtilization, Role, RoleInterval, WorkerState, WorkerStatus
from engine.histogram import bucket_of

STEP_S = 0.7  # how long each step of a command takes
PEOPLE = {"operator-token": "operator", "viewer-token": "viewer"}
CEILINGS = Ceilings(
    compute=0.6, bandwidth=0.8, provenance="assumed", target_in_phase=(0.75, 1.0), target_wall=(0.5, 0.85)
)
FRACTIONS = ("compute", "bandwidth", "busy", "usage", "attainment", "active")
GROUPS = ("fleet", "role", "worker")


def metric_names() -> list[str]:
    phases = [
        f"{p}_{r}_{b}" for p in ("prefill", "decode") for r in ("compute", "bandwidth") for b in ("wall", "in_phase")
    ]
    rest = (
        "blended_busy num_workers goodput_rps offered_rps ttft_p50_s ttft_p99_s itl_p50_s itl_p99_s kv_usage "
        "oldest_waiting_s attainment compute_wall bandwidth_wall gpm_tensor_active gpm_dram_active "
        "queued_prefill_tokens num_running in_flight decode_tokens_per_s route_rps decode_bytes_per_s "
        "worker_ttft_p99_s worker_itl_p99_s"
    )
    return [*phases, *rest.split()]


def passes(record: RequestRecord, filters: RequestFilters) -> bool:
    """As the history understands the filters."""
    wanted = {name: value for name, value in filters.items() if value is not None and name != "metric"}
    told: dict[str, object] = {
        "rule": record.rule,
        "api_key_id": record.api_key_id,
        "good": record.good,
        "failed": record.status not in (200, 499),
        "moved": bool(record.moves),
        "batch": record.priority > 0,
    }
    workers = (record.prefill_worker, record.decode_worker)
    return all(value in workers if name == "worker_id" else told[name] == value for name, value in wanted.items())


def unit_of(metric: str) -> str:
    if any(part in metric for part in FRACTIONS) and not metric.endswith("_s"):
        return "fraction"
    for ending, unit in (("_bytes_per_s", "bytes/s"), ("_tokens_per_s", "tokens/s"), ("_rps", "rps"), ("_s", "s")):
        if metric.endswith(ending):
            return unit
    return "tokens" if "tokens" in metric else "count"


class FakePlane:
    """State of one fleet. `scene`: ok | empty | starting | broken | silent (answers nothing)."""

    def __init__(
        self,
        now: Callable[[], float],
        *,
        scene: str = "ok",
        num_workers: int = 4,
        prefill: int = 1,
        simulated: bool = False,
    ) -> None:
        self.now = now
        self.scene = scene
        self.simulated = simulated or num_workers > 4
        self.started = now() - 5400.0
        roles = {f"w{i}": Role.PREFILL if i < prefill else Role.DECODE for i in range(num_workers)}
        policy = RoutingPolicy(min_fleet_devices=2, min_remote_prefill_tokens=16, max_local_output_tokens=8)
        self.desired = Desired(version=7, roles={} if scene == "empty" else roles, policy=policy)
        self.past: list[tuple[float, Desired]] = [(self.started, self.desired)]
        self.commands_: list[Command] = []
        self.events_: list[FleetEvent] = []
        self.alerts_: list[Alert] = []
        self.num_requests = 120
        self.attached: list[str] = []  # names of other fleets
        self.told: dict[str, Attachment] = {}  # how they were attached
        self.allowed: dict[str, list[Capability]] = {}  # what may be done to them
        self.missing: tuple[Missing, ...] = ()  # what their engines do not say
        self.has_gpm = False  # its devices answer NVML's GPM
        self.kind = ""  # of its own fleet; "" for the usual one

    # --- one principal's view ------------------------------------------------------------

    def connect(self, token: str) -> FakeClient:
        return FakeClient(self, token)

    # --- series ------------------------------------------------------------

    def desired_at(self, at_s: float) -> Desired:
        return next((desired for since, desired in reversed(self.past) if since <= at_s), self.past[0][1])

    def value(self, metric: str, label: str, at_s: float) -> float | None:
        """A smooth, deterministic course; a gap of 20 s every ten minutes shows what a gap looks like."""
        if at_s < self.started or (340.0 < at_s % 600.0 < 352.0 and "prefill" in metric):
            return None
        wave = math.sin(at_s / 97.0) * 0.5 + math.sin(at_s / 13.0) * 0.3 + math.sin(at_s * 1.7) * 0.2
        desired = self.desired_at(at_s)
        num_prefill = max(1, desired.pool_size(Role.PREFILL))
        share = num_prefill / max(1, len(desired.roles))
        if metric == "num_workers":
            return float(desired.pool_size(Role(label)) if label else len(desired.roles))
        if metric.startswith("prefill_compute"):
            level = min(0.95, 0.17 / share)
            return _bounded(level + 0.07 * wave if metric.endswith("wall") else 0.88 + 0.05 * wave)
        if metric.startswith("decode_bandwidth"):
            level = min(0.9, 0.5 * 0.75 / max(0.05, 1 - share))
            return _bounded(level + 0.05 * wave if metric.endswith("wall") else 0.72 + 0.04 * wave)
        if metric.startswith("gpm_"):
            return _bounded(0.4 + 0.19 * wave) if self.has_gpm else None
        if metric == "blended_busy":
            return _bounded(0.96 + 0.03 * wave)
        if unit_of(metric) == "fraction":
            return _bounded(0.4 + 0.2 * wave)
        scale = {
            "s": 0.4 if "ttft" in metric else 0.03,
            "rps": 3.2,
            "tokens/s": 240.0,
            "bytes/s": 2.1e9,
            "tokens": 400.0,
        }
        return scale.get(unit_of(metric), 6.0) * (1.0 + 0.3 * wave)

    def labels(self, metric: str, by: str) -> list[str]:
        if by == "role":
            if metric == "num_workers":
                return [role for role in ("prefill", "decode", "mixed") if self.desired.pool_size(Role(role))]
            return ["prefill", "decode"]
        if by == "worker":
            return list(self.desired.roles)
        return ["remote", "short_local", "cached_local"] if by == "rule" else [""]

    # --- commands ------------------------------------------------------------

    def advance(self) -> None:
        """Move running commands on, as far as the clock has come."""
        for index, command in enumerate(self.commands_):
            if command.state not in (CommandState.ACCEPTED, CommandState.RUNNING):
                continue
            done = int((self.now() - command.created_unix_s) / STEP_S)
            planned = [step for step in command.steps if step.state != "done"]
            total = len(command.steps)
            steps = tuple(
                replace(step, state="done" if i < done else "running" if i == done else "planned")
                for i, step in enumerate(command.steps)
            )
            ended = done >= total or not planned
            self.commands_[index] = replace(
                command,
                steps=steps,
                state=CommandState.DONE if ended else CommandState.RUNNING,
                updated_unix_s=min(self.now(), command.created_unix_s + STEP_S * total),
                result="done: the pools are as desired" if ended else "",
                can_undo=ended and command.action.verb != Verb.UNDO,
            )

    def after(self, action: Action) -> Desired:
        roles, policy = dict(self.desired.roles), self.desired.policy
        weights, drained = dict(self.desired.weights), self.desired.drained
        if action.verb == Verb.RESIZE:
            sizes = [
                (Role.PREFILL, action.prefill or 0),
                (Role.DECODE, action.decode or 0),
                (Role.MIXED, action.mixed or 0),
            ]
            wanted = [role for role, size in sizes for _ in range(size)]
            if len(wanted) > len(roles):
                raise CommandRefused(f"the fleet has {len(roles)} workers", field="decode", value=action.decode)
            wanted += [Role.UNASSIGNED] * (len(roles) - len(wanted))
            roles = dict(zip(roles, wanted, strict=True))
        elif action.verb == Verb.FLIP:
            roles[str(action.worker_id)] = action.role or Role.MIXED
        elif action.verb == Verb.DRAIN:
            drained = drained | {str(action.worker_id)}
        elif action.verb == Verb.UNDRAIN:
            drained = drained - {str(action.worker_id)}
        elif action.verb == Verb.SET_ROUTING:
            policy = replace(policy, **(action.policy or {}))
            weights.update(action.weights or {})
        elif action.verb == Verb.UNDO:
            target = next(each for each in self.commands_ if each.command_id == action.command_id)
            before = target.desired_before
            assert before is not None
            return replace(before, version=self.desired.version + 1)
        version = self.desired.version + 1
        return Desired(version=version, roles=roles, drained=drained, weights=weights, policy=policy)

    def planned(self, after: Desired) -> tuple[PlannedStep, ...]:
        flips = [
            PlannedStep(
                verb="flip",
                worker_id=each,
                role=role,
                from_role=self.desired.roles[each],
                text=f"flip {each} {self.desired.roles[each]} → {role} (2 running sequences finish first)",
            )
            for each, role in after.roles.items()
            if role != self.desired.roles[each]
        ]
        routed = PlannedStep(
            verb="route", worker_id=None, role=None, from_role=None, text="push the routing table to 1 gateway"
        )
        return (*flips, routed)

    def submit_as(self, who: str, request: CommandRequest) -> Command:
        if request.base_version is not None and request.base_version != self.desired.version:
            raise StaleVersion(
                f"the desired state is at version {self.desired.version}, the form at {request.base_version}"
            )
        after, now = self.after(request.action), self.now()
        steps = tuple(
            CommandStep(at_unix_s=now + STEP_S * index, text=step.text, worker_id=step.worker_id, state="planned")
            for index, step in enumerate(self.planned(after))
        )
        command = Command(
            command_id=len(self.commands_) + 1,
            fleet_id="local",
            action=request.action,
            state=CommandState.ACCEPTED,
            who=who,
            why=request.why,
            idempotency_key=request.idempotency_key,
            base_version=self.desired.version,
            version_after=after.version,
            created_unix_s=now,
            updated_unix_s=now,
            steps=steps,
            desired_before=self.desired,
            desired_after=after,
            undo_of=request.action.command_id if request.action.verb == Verb.UNDO else None,
        )
        if command.undo_of is not None:
            self.commands_ = [
                replace(each, undone_by=command.command_id, can_undo=False)
                if each.command_id == command.undo_of
                else each
                for each in self.commands_
            ]
        self.commands_.append(command)
        self.desired = after
        self.past.append((now, after))
        return command

    # --- what is ------------------------------------------------------------

    def phase(self, name: str) -> PhaseUtilization:
        now = self.now()
        read = {
            f"{b}_{r}": self.value(f"{name}_{r}_{b}", "", now)
            for b in ("wall", "in_phase")
            for r in ("compute", "bandwidth")
        }
        return PhaseUtilization(
            wall_compute=read["wall_compute"],
            wall_bandwidth=read["wall_bandwidth"],
            in_phase_compute=read["in_phase_compute"],
            in_phase_bandwidth=read["in_phase_bandwidth"],
            busy=0.48,
            tokens_per_s=240.0,
            basis="datasheet" if self.simulated else "calibrated",
            provenance="simulated" if self.simulated else "derived",
        )

    def worker(self, index: int, worker_id: str, role: Role) -> WorkerStatus:
        starting = self.scene == "starting" and index > 0
        failed = self.scene == "broken" and index == 1
        state = WorkerState.STARTING if starting else WorkerState.FAILED if failed else WorkerState.READY
        held = 300 + 37 * index % 400
        return WorkerStatus(
            worker_id=worker_id,
            epoch=2 if failed else 1,
            fleet_id="local",
            model_id="smollm2-135m-instruct",
            simulated=self.simulated,
            role=role,
            desired_role=role,
            state=state,
            reason="loading weights" if starting else "process exited with code 137" if failed else "",
            role_since_unix_s=self.started,
            started_unix_s=self.started,
            num_restarts=1 if failed else 0,
            last_restart_reason="killed by signal 9" if failed else "",
            pid=4000 + index,
            hostname="node-1",
            device="h100-sxm-80gb" if self.simulated else "cpu",
            address=f"127.0.0.1:{18600 + index}",
            version="0.1.0",
            weight=self.desired.weights.get(worker_id, 1.0),
            drained=worker_id in self.desired.drained,
            alive=not failed,
            heartbeat_age_s=0.3,
            step_running_s=0.04,
            kv_usage=None if starting else held / 1024,
            kv_blocks_total=1024,
            kv_blocks_held=held,
            kv_blocks_reserved=60,
            queued_prefill_tokens=180 if role == Role.PREFILL else 0,
            num_waiting=index % 2,
            num_running=0 if role == Role.PREFILL else 3,
            num_leased=0,
            prefill=None if starting else self.phase("prefill") if role != Role.DECODE else None,
            decode=None if starting else self.phase("decode") if role != Role.PREFILL else None,
            measured_tensor_active=0.61 if self.has_gpm else None,
            measured_dram_active=0.35 if self.has_gpm else None,
            gpu_utilization=1.0 if self.has_gpm else None,
            power_w=612.0 if self.has_gpm else None,
            memory_used_bytes=71 * 2**30 if self.has_gpm else None,
        )

    def roofline(self, since_unix_s: float | None, until_unix_s: float) -> Roofline:
        """Prefill near its roof, decode on the slope, at a batch that grows with the worker's number."""
        roof = Roof(name="h100-sxm-80gb", peak_flops=989e12, peak_bytes_per_s=3.35e12, achievable_flops=593e12,
                    achievable_bytes_per_s=2.68e12, basis="datasheet", achievable_provenance="assumed")  # fmt: skip
        points, starts = (
            [],
            [until_unix_s - 60.0] if since_unix_s is None else [since_unix_s + 60.0 * i for i in range(9)],
        )
        workers = [] if self.scene in ("empty", "starting") else list(self.desired.roles.items())
        for number, (worker_id, role) in enumerate(workers):
            for step, start in enumerate(starts):
                batch = 4.0 + 5.0 * number + 3.0 * step
                is_prefill = role == Role.PREFILL
                x = 700.0 + 90.0 * number if is_prefill else 0.95 * batch
                y = 540e12 - 9e12 * number if is_prefill else 0.9 * x * 2.68e12
                phase = Phase.PREFILL if is_prefill else Phase.DECODE
                points.append(
                    RooflinePoint(worker_id=worker_id, role=role, phase=phase, roof=roof.name, t_unix_s=start,
                                  length_s=60.0, intensity=x, flops_per_s=y, tokens_per_step=batch)
                )  # fmt: skip
        return Roofline(fleet_id="local", since_unix_s=since_unix_s or until_unix_s - 60.0, until_unix_s=until_unix_s,
                        roofs=(roof,), points=tuple(points), simulated=self.simulated)  # fmt: skip

    def pool(self, role: Role, workers: tuple[WorkerStatus, ...]) -> PoolStatus:
        own = [each for each in workers if each.role == role]
        ready = sum(1 for each in own if each.state == WorkerState.READY)
        return PoolStatus(
            role=role,
            num_desired=self.desired.pool_size(role),
            num_ready=ready,
            num_other=len(own) - ready,
            prefill=self.phase("prefill") if own and role != Role.DECODE else None,
            decode=self.phase("decode") if own and role != Role.PREFILL else None,
            load=(0.42 if role == Role.PREFILL else 0.61) if own else None,
            load_unit="s" if role == Role.PREFILL else "fraction",
            headroom_rps=1.8 if own else None,
            batch=None if role == Role.PREFILL or not own else 3.0,
            largest_batch=None if role == Role.PREFILL or not own else 14.2,
        )

    def snapshot(self) -> FleetSnapshot:
        self.advance()
        now, empty = self.now(), self.scene in ("empty", "starting")
        workers = tuple(self.worker(i, each, role) for i, (each, role) in enumerate(self.desired.roles.items()))
        health = {"ok": "ok", "empty": "starting", "starting": "starting", "broken": "broken"}[self.scene]
        text = {
            "ok": "both pools are ready; decode has room for 1.80 req/s more",
            "empty": "no worker has started yet",
            "starting": f"1 of {len(workers)} workers is ready, the others load weights",
            "broken": "worker w1 has failed: process exited with code 137; the decode pool is one short",
        }[self.scene]
        return FleetSnapshot(
            fleet_id="local",
            model_id="llama-3.1-70b-fp8" if self.simulated else "smollm2-135m-instruct",
            kind=self.kind or ("sim" if self.simulated else "ray"),
            simulated=self.simulated,
            capabilities=tuple(Capability),
            at_unix_s=now,
            started_unix_s=self.started,
            tick=int(now - self.started),
            stale_s=0.2,
            health=health,
            health_text=text,
            desired=self.desired,
            workers=workers,
            pools=tuple(self.pool(role, workers) for role in (Role.PREFILL, Role.DECODE, Role.MIXED))
            if workers
            else (),
            prefill=None if empty else self.phase("prefill"),
            decode=None if empty else self.phase("decode"),
            ceilings=None if empty else CEILINGS,
            blended=None if empty else Blended(value=0.97, source="steps"),
            traffic=self.traffic(empty),
            notices=() if self.simulated else ("Routing thresholds of the local profile: not production values.",),
            alerts=tuple(each for each in self.alerts_ if each.resolved_unix_s is None),
            bottleneck=self.bottleneck(now),
            active_command_ids=tuple(
                each.command_id
                for each in self.commands_
                if each.state in (CommandState.ACCEPTED, CommandState.RUNNING)
            ),
        )

    def bottleneck(self, now: float) -> Bottleneck:
        """Prefill limits where a worker has failed; else nothing does."""
        limited = self.scene == "broken"
        gains = {Resource.PREFILL: 0.18, Resource.DECODE_BANDWIDTH: 0.06} if limited else {}
        return Bottleneck(
            kind="prefill" if limited else "none",
            resources=(Resource.PREFILL,) if limited else (),
            text="Prefill is the bottleneck: 21% of requests are refused for want of it, 98% busy"
            if limited
            else "No bottleneck: 98% of requests are good",
            at_unix_s=now,
            since_unix_s=now - 40.0,
            window_s=60.0,
            gains={each.value: gains.get(each, 0.0) for each in Resource},
            simulated=self.simulated,
        )

    def traffic(self, empty: bool) -> TrafficStatus:
        now = self.now()
        read = {name: None if empty else self.value(name, "", now) for name in metric_names()}
        return TrafficStatus(
            window_s=60.0,
            num_gateways=0 if empty else 1,
            offered_rps=read["offered_rps"],
            goodput_rps=read["goodput_rps"],
            attainment=None if empty else 0.982,
            error_rps=None if empty else 0.0,
            rejected_rps=None if empty else 0.0,
            num_in_flight=0 if empty else 7,
            oldest_waiting_s=None if empty else 0.21,
            ttft_p50_s=read["ttft_p50_s"],
            ttft_p99_s=read["ttft_p99_s"],
            itl_p50_s=read["itl_p50_s"],
            itl_p99_s=read["itl_p99_s"],
            tpot_p50_s=read["itl_p50_s"],
            e2e_p50_s=None if empty else 3.4,
            prompt_tokens_per_s=None if empty else 900.0,
            output_tokens_per_s=read["decode_tokens_per_s"],
            by_rule={} if empty else {"remote": 160, "short_local": 14},
            slo_text="Good: TTFT ≤ 3 s + 20 ms per uncached token, TPOT ≤ 500 ms, gap ≤ 2 s.",
        )

    def record(self, index: int) -> RequestRecord:
        late, failed = index % 17 == 3, index % 41 == 7
        ttft = 0.3 + 0.02 * (index % 9) + (3.4 if late else 0.0)
        return RequestRecord(
            request_id=f"req-{9000 - index:05d}",
            fleet_id="local",
            model_id="smollm2-135m-instruct",
            gateway_id="gw-1",
            api_key_id="demo",
            simulated=self.simulated,
            arrival_unix_s=self.now() - 4.0 * index,
            attempt=1,
            priority=0,
            stream=True,
            endpoint="chat",
            rule="remote" if index % 6 else "short_local",
            reason="412 uncached tokens, least queued prefill worker",
            prefill_worker="w0",
            decode_worker=f"w{1 + index % 3}",
            prompt_tokens=412 + 13 * (index % 20),
            cached_tokens=64,
            output_tokens=90,
            max_tokens=128,
            status=503 if failed else 200,
            finish_reason="error" if failed else "stop",
            error="decode worker w2 went away" if failed else "",
            queue_s=0.04 + (3.3 if late else 0.0),
            prefill_s=0.22,
            handoff_s=0.012,
            ttft_s=None if failed else ttft,
            tpot_s=0.031,
            max_gap_s=0.12,
            e2e_s=None if failed else ttft + 2.8,
            good=not late and not failed,
            broken=("ttft",) if late else (),
            kept="slow" if late else "failed" if failed else "share",
            moves=(self.move(index),) if index % 10 == 4 else (),
        )

    def move(self, index: int) -> RequestMove:
        """w1 died under some requests, others left w3."""
        if index % 20 == 4:
            reason = "connection lost"
            return RequestMove(kind="failover", from_worker="w1", to_worker="w2", at_s=0.9, notice_s=0.04, stall_s=0.24,
                               reason=reason, cause=LossCause.DIED)  # fmt: skip
        return RequestMove(kind="migration", from_worker="w3", to_worker="w2", at_s=1.4, stall_s=0.058,
                           num_bytes=12_900_000, reason="w3 drains")  # fmt: skip

    def die(self, worker_id: str, ago_s: float, away_s: float | None = 3.2) -> None:
        """A worker died; `away_s` None: it is away still."""
        at = self.now() - ago_s

        def tell(kind: EventKind, after_s: float, **more: Any) -> None:
            values = {"fleet_id": "local", "worker_id": worker_id, "kind": kind, "at_unix_s": at + after_s} | more
            self.events_.append(FleetEvent(**values))

        tell("died", 0.0, epoch=1, reason="killed by signal 9")
        tell(
            "failover",
            0.05,
            num_requests=14,
            to_workers={"w2": 8, "w3": 6},
            notice_s=0.04,
            stall_s=0.24,
            cause=LossCause.DIED,
        )
        if away_s is not None:
            tell("restarted", away_s, epoch=2, away_s=away_s, reason="killed by signal 9")


def _bounded(value: float) -> float:
    return min(1.0, max(0.0, value))


class FakeClient:
    """One principal's connection to a FakePlane."""

    def __init__(self, plane: FakePlane, token: str) -> None:
        self.plane, self.token = plane, token

    def _answer(self) -> FakePlane:
        if self.plane.scene == "silent":
            raise PlaneUnreachable("the plane at http://127.0.0.1:18600 does not answer: connection refused")
        if self.token not in PEOPLE:
            raise NotAllowed("unknown token")
        return self.plane

    def close(self) -> None:
        """Nothing is open."""

    def login(self, one_time_code: str) -> Session:
        if one_time_code != "good-code":
            raise NotAllowed("the code is unknown, used or too old")
        who = Principal(name="operator", role="operator")
        return Session(token="operator-token", principal=who, expires_unix_s=self.plane.now() + 3600)

    def whoami(self) -> Principal:
        self._answer()
        role = PEOPLE[self.token]
        return Principal(name=role, role=role)  # type: ignore[arg-type]

    def snapshot(self, fleet_id: str | None = None) -> FleetSnapshot:
        return self._answer().snapshot()

    def preview(self, request: CommandRequest) -> Preview:
        plane = self._answer()
        self._operator()
        after = plane.after(request.action)
        sizes = {role: desired.pool_size(Role(role)) for desired in (after,) for role in ("prefill", "decode", "mixed")}
        before = {role: plane.desired.pool_size(Role(role)) for role in sizes}
        lone = "decode" if before["decode"] >= 2 * max(1, sizes["decode"]) else ""
        return Preview(
            base_version=plane.desired.version,
            steps=plane.planned(after),
            pools_before=before,
            pools_after=sizes,
            warnings=("decode loses half of its workers",) if lone else (),
            needs_confirmation=lone,
            refused="" if sizes["decode"] or sizes["mixed"] else "decode has work: it cannot be resized to nothing",
            expected_s=2.4,
            effect="prefill queue halves; decode KV rises to 74%",
            effect_provenance="assumed",
        )

    def submit(self, request: CommandRequest) -> Command:
        self._operator()
        return self._answer().submit_as(PEOPLE[self.token], request)

    def _operator(self) -> None:
        if PEOPLE.get(self.token) != "operator":
            raise NotAllowed("a viewer may look, not act")

    def command(self, command_id: int) -> Command:
        return next(each for each in self.commands() if each.command_id == command_id)

    def export(self, metrics: Sequence[str], since_unix_s: float, *more: Any, format: str = "csv") -> bytes:
        return f"{format} of {', '.join(metrics)}".encode()

    def fleets(self) -> list[str]:
        return ["local", *self.plane.attached]

    def attached(self) -> list[AttachedInfo]:
        return [self._attached(each) for each in self._answer().attached]

    def _attached(self, name: str) -> AttachedInfo:
        given = self.plane.allowed.get(name, [])
        return AttachedInfo(
            attachment=self.plane.told.get(name) or Attachment(name=name, kind="vllm", targets=("decode=h:1",)),
            who="ann",
            at_unix_s=1.0,
            can=(Capability.OBSERVE, Capability.RESIZE, Capability.FLIP),
            allowed=tuple(Permission(capability=each, who="ann", at_unix_s=2.0) for each in given),
            looks=Looks(num_workers=2, num_answering=1, newest_unix_s=self.plane.now()),
            missing=self.plane.missing,
        )

    def allow(self, name: str, capability: Capability) -> AttachedInfo:
        self._operator()
        self.plane.allowed.setdefault(name, []).append(capability)
        return self._attached(name)

    def forbid(self, name: str, capability: Capability) -> AttachedInfo:
        self._operator()
        self.plane.allowed[name].remove(capability)
        return self._attached(name)

    def attach_choices(self) -> AttachChoices:
        self._answer()
        return choices()

    def survey(self, attachment: Attachment) -> Survey:
        self._operator()
        off = Finding(quantity="exported_flops", state="off", series="vllm:flops", remedy="start it with --mfu")
        engine = EngineSurvey(worker_id="d0", url="http://h:1", role="decode", version="0.32.0", missing=(off,))
        return Survey(name=attachment.name, kind=attachment.kind, engines=(engine,), notes=("no device",))

    def attach(self, attachment: Attachment) -> AttachedInfo:
        self._operator()
        if not (attachment.targets or attachment.controller):
            raise CommandRefused("give targets, or a file of targets", field="targets", bound="one of the two")
        self.plane.attached.append(attachment.name)
        self.plane.told[attachment.name] = attachment
        return self._attached(attachment.name)

    def detach(self, name: str) -> None:
        self._operator()
        self.plane.attached.remove(name)

    def commands(
        self,
        limit: int = 50,
        before_id: int | None = None,
        *,
        since_unix_s: float | None = None,
        until_unix_s: float | None = None,
    ) -> list[Command]:
        plane = self._answer()
        plane.advance()
        newest = [each for each in reversed(plane.commands_) if before_id is None or each.command_id < before_id]
        newest = [each for each in newest if since_unix_s is None or each.created_unix_s >= since_unix_s]
        return [each for each in newest if until_unix_s is None or each.created_unix_s < until_unix_s][:limit]

    def what_if_routing(
        self, policy: dict[str, float | int], *, window_s: float = 3600.0, fleet_id: str | None = None
    ) -> WhatIfRouting:
        now = self._answer().now()
        return WhatIfRouting(
            before={"remote": 800, "short_local": 90},
            after={"remote": 600, "short_local": 90, "control_arm": 200},
            num_requests=890,
            num_changed=200,
            since_unix_s=now - window_s,
            until_unix_s=now,
        )

    def metrics(self) -> list[MetricInfo]:
        self._answer()
        return [
            MetricInfo(
                name=name,
                unit=unit_of(name),
                help=name.replace("_", " ").capitalize(),
                provenance="derived",
                groups=("fleet", "rule") if name == "route_rps" else ("role",) if name == "num_workers" else GROUPS,
            )
            for name in metric_names()
        ]

    def series(
        self,
        metric: str,
        since_unix_s: float,
        until_unix_s: float | None = None,
        step_s: int | None = None,
        by: str = "fleet",
        fleet_id: str | None = None,
    ) -> SeriesResult:
        plane = self._answer()
        if metric not in metric_names():
            raise NotFound(f"no metric {metric}")
        until, step = until_unix_s or plane.now(), step_s or 10
        first, last = int(since_unix_s // step) * step, int(until // step) * step
        found = []
        for number, label in enumerate(plane.labels(metric, by)):
            points = []
            for at in range(first, last, step):
                value = None if plane.scene in ("empty", "starting") else plane.value(metric, label, at + 31.0 * number)
                spread = 0.0 if value is None or step == 1 else 0.06 * value
                low, high = (None, None) if value is None else (value - spread, value + spread)
                points.append(SeriesPoint(t_unix_s=float(at), value=value, min=low, max=high, count=step))
            known = [each.value for each in points if each.value is not None]
            whole = max(known, default=None) if metric.endswith(("_p50_s", "_p99_s")) else None
            found.append(Series(label=label, points=tuple(points), whole=whole))
        return SeriesResult(
            fleet_id="local",
            metric=metric,
            unit=unit_of(metric),
            provenance="simulated" if plane.simulated else "derived",
            step_s=step,
            since_unix_s=since_unix_s,
            until_unix_s=until,
            by=by,
            series=tuple(found),
        )

    def many_series(
        self,
        metrics: Sequence[str],
        since_unix_s: float,
        until_unix_s: float | None = None,
        step_s: int | None = None,
        by: str = "fleet",
        fleet_id: str | None = None,
    ) -> list[SeriesResult]:
        return [self.series(each, since_unix_s, until_unix_s, step_s, by) for each in metrics]

    def roofline(
        self, since_unix_s: float | None = None, until_unix_s: float | None = None, fleet_id: str | None = None
    ) -> Roofline:
        plane = self._answer()
        return plane.roofline(since_unix_s, until_unix_s or plane.now())

    def requests(
        self,
        limit: int = 100,
        since_unix_s: float | None = None,
        order: str = "recent",
        *,
        until_unix_s: float | None = None,
        above_s: float | None = None,
        up_to_s: float | None = None,
        **filters: Unpack[RequestFilters],
    ) -> list[RequestRecord]:
        plane, metric = self._answer(), filters.get("metric", "e2e")
        if plane.scene in ("empty", "starting"):
            return []
        since, until = since_unix_s or 0.0, until_unix_s or plane.now() + 1.0
        low, high = -1.0 if above_s is None else above_s, math.inf if up_to_s is None else up_to_s
        found = [plane.record(index) for index in range(plane.num_requests)]
        found = [each for each in found if since <= each.arrival_unix_s < until and passes(each, filters)]
        if above_s is not None or up_to_s is not None:
            found = [each for each in found if low < (latency_of(each, metric) or -1.0) <= high]
        if order == "slowest":
            found.sort(key=lambda each: latency_of(each, metric) or 0.0, reverse=True)
        return found[:limit]

    def heatmap(
        self, since_unix_s: float, until_unix_s: float | None = None, **filters: Unpack[RequestFilters]
    ) -> Heatmap:
        plane, metric = self._answer(), filters.get("metric", "e2e")
        until = until_unix_s or plane.now()
        step_s = column_step(until - since_unix_s)
        start = int(since_unix_s // step_s) * step_s
        end = start + math.ceil((until - start) / step_s) * step_s
        found = self.requests(100_000, start, until_unix_s=end, **filters)
        counts: dict[tuple[int, int], float] = {}
        for each in found:
            value_s = latency_of(each, metric)
            if value_s is not None:
                key = (int((each.arrival_unix_s - start) // step_s), bucket_of(value_s) // BIN_BUCKETS)
                counts[key] = counts.get(key, 0.0) + 1.0
        bound_s, bound_text = bound_of(metric, Slo())
        cells = cells_of(counts, bound_s)
        is_estimated = any(filters.get(name) is not None for name in ("good", "worker_id", "moved", "failed", "batch"))
        return Heatmap(
            fleet_id="local",
            metric=metric,
            since_unix_s=start,
            until_unix_s=end,
            step_s=step_s,
            edges_s=cells.edges_s,
            columns=cells.columns,
            bins=cells.bins,
            counts=cells.counts,
            is_estimated=is_estimated,
            bound_s=bound_s,
            bound_text=bound_text,
            simulated=plane.simulated,
            requests=RecordCounts(num_requests=len(found), kept={"share": len(found)} if found else {}, dropped={}),
            note="every request is counted",
        )

    def explanation(
        self,
        since_unix_s: float,
        until_unix_s: float | None = None,
        *,
        from_unix_s: float | None = None,
        to_unix_s: float | None = None,
        above_s: float | None = None,
        up_to_s: float | None = None,
        **filters: Unpack[RequestFilters],
    ) -> Explanation:
        among = self.requests(100_000, since_unix_s, until_unix_s=until_unix_s, **filters)
        if above_s is None and from_unix_s is None:
            asked = [each for each in among if each.good is False]
        else:
            start = from_unix_s or since_unix_s
            cell = self.requests(*(100_000, start), until_unix_s=to_unix_s, above_s=above_s, up_to_s=up_to_s, **filters)
            ids = {each.request_id for each in cell}
            asked = [each for each in among if each.request_id in ids]
        mine = {each.request_id for each in asked}
        rest = [each for each in among if each.request_id not in mine]
        return Explanation(
            fleet_id="local",
            asked="not good: past a bound of the SLO, refused or failed" if above_s is None else "this cell",
            since_unix_s=since_unix_s,
            until_unix_s=until_unix_s or self.plane.now(),
            num_requests=len(asked),
            num_rest=len(rest),
            num_records=len(asked),
            num_rest_records=len(rest),
            differences=differences(asked, rest),
            note="by all records that are kept, each weighted by the share that is kept",
        )

    def events(self) -> Iterator[dict[str, Any]]:
        self._answer()
        return iter(())

    def alerts(
        self, since_unix_s: float | None = None, *, limit: int = 100, fleet_id: str | None = None
    ) -> list[Alert]:
        plane = self._answer()
        since = plane.now() if since_unix_s is None else since_unix_s
        return [each for each in plane.alerts_ if each.resolved_unix_s is None or each.resolved_unix_s >= since]

    def fleet_events(
        self,
        since_unix_s: float,
        until_unix_s: float | None = None,
        *,
        kinds: Collection[EventKind] = (),
        worker_id: str | None = None,
        limit: int = 1_000,
    ) -> list[FleetEvent]:
        plane = self._answer()
        until = plane.now() if until_unix_s is None else until_unix_s
        found = [each for each in plane.events_ if since_unix_s <= each.at_unix_s <= until]
        found = [each for each in found if worker_id in (None, each.worker_id) and (not kinds or each.kind in kinds)]
        return sorted(found, key=lambda each: each.at_unix_s, reverse=True)[:limit]

    def request(self, request_id: str) -> RequestRecord:
        for record in self.requests(limit=500):
            if record.request_id == request_id:
                return record
        raise NotFound(f"no request {request_id}")

    def roles(
        self, since_unix_s: float, until_unix_s: float | None = None, fleet_id: str | None = None
    ) -> list[RoleInterval]:
        plane = self._answer()
        found = []
        for worker_id in plane.desired.roles:
            for index, (start, desired) in enumerate(plane.past):
                end = plane.past[index + 1][0] if index + 1 < len(plane.past) else None
                found.append(
                    RoleInterval(
                        worker_id=worker_id,
                        epoch=1,
                        role=desired.roles[worker_id],
                        state=WorkerState.READY,
                        start_unix_s=start,
                        end_unix_s=end,
                        reason="first placement" if index == 0 else f"command {index}",
                    )
                )
        return found


__all__ = ["ControlError", "FakeClient", "FakePlane"]
