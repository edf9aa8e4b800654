"""Defaults for control's values, and a fleet of seven methods that does what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from control.facts import FleetFacts, WorkerFacts, natural
from control.fleets.base import FleetStep, Observation, StepOutcome, WorkerLife
from control.lease import Holder, Lease
from control.types.commands import Action, Command, CommandState, Desired, Verb
from control.types.fleet import Capability, TrafficStatus
from control.types.requests import RequestRecord
from control.types.routing import RoutingPolicy, WorkerRoute
from control.types.workers import PhaseUtilization, Role, WorkerState, WorkerStatus
from engine.readings import DeviceInfo, MeterReading
from engine.types import Load

NOW = 1_000_000.0


def desired(prefill: int = 1, decode: int = 3, mixed: int = 0, spare: int = 0, **changes: Any) -> Desired:
    """w0 .. in the order prefill, mixed, decode, spare."""
    order = [Role.PREFILL] * prefill + [Role.MIXED] * mixed + [Role.DECODE] * decode + [Role.UNASSIGNED] * spare
    values: dict[str, Any] = {"version": 1, "roles": {f"w{i}": role for i, role in enumerate(order)}}
    return Desired(**{**values, **changes})


def worker(worker_id: str = "w0", role: Role = Role.DECODE, **changes: Any) -> WorkerFacts:
    state = WorkerState.UNASSIGNED if role == Role.UNASSIGNED else WorkerState.READY
    values: dict[str, Any] = {"worker_id": worker_id, "epoch": 1, "role": role, "state": state}
    return WorkerFacts(**{**values, **changes})


def facts(state: Desired, running: dict[str, int] | None = None, **changes: Any) -> FleetFacts:
    """A fleet that is as `state` wants it; `running` sequences per worker."""
    load = running or {}
    workers = {w: worker(w, role, num_running=load.get(w, 0)) for w, role in state.roles.items()}
    closed = {w: replace(each, state=WorkerState.DRAINED) for w, each in workers.items() if w in state.drained}
    return FleetFacts(**{"workers": workers | closed, **changes})


def resize(**sizes: int) -> Action:
    return Action(verb=Verb.RESIZE, **sizes)


def flip(worker_id: str, role: Role) -> Action:
    return Action(verb=Verb.FLIP, worker_id=worker_id, role=role)


def drain(worker_id: str) -> Action:
    return Action(verb=Verb.DRAIN, worker_id=worker_id)


def set_routing(**policy: float) -> Action:
    return Action(verb=Verb.SET_ROUTING, policy=policy)


def command(before: Desired, after: Desired, action: Action | None = None, **changes: Any) -> Command:
    values: dict[str, Any] = {
        "command_id": 1,
        "fleet_id": "test",
        "action": action or resize(prefill=2, decode=2),
        "state": CommandState.ACCEPTED,
        "who": "alice",
        "why": "",
        "idempotency_key": "",
        "base_version": before.version,
        "version_after": after.version,
        "created_unix_s": NOW,
        "updated_unix_s": NOW,
        "desired_before": before,
        "desired_after": after,
    }
    return Command(**{**values, **changes})


def reading(worker_id: str = "w0", role: Role = Role.DECODE, **changes: Any) -> MeterReading:
    values: dict[str, Any] = {
        "worker_id": worker_id,
        "epoch": 1,
        "pid": 100,
        "host_id": "h",
        "hostname": "host",
        "address": f"127.0.0.1:{9000 + natural(worker_id)[1]}",
        "model_id": "tiny",
        "simulated": True,
        "device": DeviceInfo(name="paced-h100", kind="paced", peak_flops=1e15, peak_bytes_per_s=3e12),
        "role": role,
        "state": WorkerState.UNASSIGNED if role == Role.UNASSIGNED else WorkerState.READY,
        "fence": 0,
        "reason": "",
        "max_context": 4096,
        "started_unix_s": NOW - 100,
        "role_since_unix_s": NOW - 50,
        "at_unix_s": NOW,
        "heartbeat_age_s": 0.1,
        "step_running_s": None,
        "alive": True,
        "load": Load(kv_blocks_total=100),
        "counters": {},
        "steps": [],
        "next_cursor": 0,
        "num_steps_lost": 0,
        "histograms": {},
    }
    return MeterReading(**{**values, **changes})


_TRAFFIC_UNKNOWN = (
    *("offered_rps", "goodput_rps", "attainment", "error_rps", "rejected_rps", "oldest_waiting_s"),
    *("ttft_p50_s", "ttft_p99_s", "itl_p50_s", "itl_p99_s", "tpot_p50_s", "e2e_p50_s"),
    *("prompt_tokens_per_s", "output_tokens_per_s"),
)


def worker_status(worker_id: str = "w0", role: Role = Role.DECODE, **changes: Any) -> WorkerStatus:
    """A ready, idle worker in its role."""
    values: dict[str, Any] = {
        "worker_id": worker_id,
        "epoch": 1,
        "fleet_id": "test",
        "model_id": "m",
        "simulated": True,
        "role": role,
        "desired_role": role,
        "state": WorkerState.READY,
        "alive": True,
        "drained": False,
        "weight": 1.0,
        "prefill": None,
        "decode": None,
        "kv_usage": None,
        "step_running_s": None,
    }
    words = ("reason", "last_restart_reason", "hostname", "device", "address", "version")
    numbers = ("role_since_unix_s", "started_unix_s", "heartbeat_age_s")
    counts = ("num_restarts", "pid", "kv_blocks_total", "kv_blocks_held", "kv_blocks_reserved")
    queues = ("queued_prefill_tokens", "num_waiting", "num_running", "num_leased")
    values |= {**dict.fromkeys(words, ""), **dict.fromkeys(numbers, 0.0), **dict.fromkeys((*counts, *queues), 0)}
    return WorkerStatus(**{**values, **changes})


def traffic(**changes: Any) -> TrafficStatus:
    values: dict[str, Any] = {
        "window_s": 60.0,
        "num_gateways": 1,
        "num_in_flight": 0,
        "by_rule": {},
        **dict.fromkeys(_TRAFFIC_UNKNOWN),
    }
    return TrafficStatus(**{**values, **changes})


def phase(**changes: Any) -> PhaseUtilization:
    names = ["wall_compute", "wall_bandwidth", "in_phase_compute", "in_phase_bandwidth", "busy", "tokens_per_s"]
    return PhaseUtilization(**{**dict.fromkeys(names), **changes})


def record(request_id: str = "r1", **changes: Any) -> RequestRecord:
    values: dict[str, Any] = {
        "request_id": request_id,
        "fleet_id": "test",
        "model_id": "tiny",
        "gateway_id": "g1",
        "api_key_id": "",
        "simulated": True,
        "arrival_unix_s": NOW,
        "attempt": 0,
        "priority": 0,
        "stream": True,
        "endpoint": "/v1/completions",
        "rule": "remote",
        "reason": "",
        "prefill_worker": "w0",
        "decode_worker": "w1",
        "prompt_tokens": 1000,
        "cached_tokens": 0,
        "output_tokens": 20,
        "max_tokens": 100,
        "status": 200,
        "finish_reason": "length",
        "error": "",
        "queue_s": 0.0,
        "prefill_s": 0.1,
        "handoff_s": 0.01,
        "ttft_s": 0.12,
        "tpot_s": 0.02,
        "max_gap_s": 0.05,
        "e2e_s": 0.5,
        "good": True,
    }
    return RequestRecord(**{**values, **changes})


@dataclass(slots=True)
class FakeWorker:
    """What one worker of `FakeFleet` is. With `num_running` a flip or drain waits until that is 0."""

    worker_id: str
    role: Role = Role.UNASSIGNED
    state: WorkerState = WorkerState.UNASSIGNED
    epoch: int = 1
    alive: bool = True
    num_running: int = 0
    target: Role | None = None
    closing: bool = False
    refuses: StepOutcome | None = None
    fence: int = 0
    hangs: asyncio.Event | None = None  # no order is answered before it is set

    def settle(self) -> None:
        """Carry out what was ordered as far as the running work allows, as `engine.duty` does."""
        if self.target is None and not self.closing and self.state == WorkerState.UNASSIGNED:
            return
        if self.num_running and (self.closing or self.target not in (None, self.role, Role.MIXED)):
            self.state = WorkerState.DRAINING
            return
        self.role, self.target = self.target or self.role, None
        self.state = WorkerState.DRAINED if self.closing else WorkerState.READY


@dataclass(slots=True)
class FakeFleet:
    """The seven methods of `control.fleets.base.Fleet` over values in memory. `orders` keeps what was asked of it."""

    workers: dict[str, FakeWorker]
    fleet_id: str = "test"
    kind: str = "fake"
    model_id: str = "tiny"
    simulated: bool = True
    capabilities: frozenset[Capability] = frozenset(Capability) - {Capability.MIGRATE}
    orders: list[FleetStep] = field(default_factory=list)
    lives: tuple[WorkerLife, ...] = ()
    start_error: Exception | None = None
    observe_error: Exception | None = None
    on_change: Callable[[], None] = lambda: None
    closed: bool = False

    @classmethod
    def of(cls, num_workers: int = 4) -> FakeFleet:
        return cls({f"w{i}": FakeWorker(f"w{i}") for i in range(num_workers)})

    async def prepare(self) -> None:
        pass

    async def start(self, on_change: Callable[[], None]) -> None:
        if self.start_error is not None:
            raise self.start_error
        self.on_change = on_change

    async def observe(self, now_unix_s: float) -> Observation:
        if self.observe_error is not None:
            raise self.observe_error
        readings = tuple(
            reading(
                w.worker_id,
                w.role,
                state=w.state,
                epoch=w.epoch,
                alive=w.alive,
                fence=w.fence,
                at_unix_s=now_unix_s,
                load=Load(kv_blocks_total=100, num_running=w.num_running),
            )
            for w in self.workers.values()
        )
        return Observation(at_unix_s=now_unix_s, readings=readings, lives=self.lives)

    async def apply(self, step: FleetStep) -> StepOutcome:
        self.orders.append(step)
        each = self.workers[step.worker_id]
        if each.hangs is not None:
            await each.hangs.wait()
        if each.refuses is not None:
            return each.refuses
        each.fence = step.fence
        match step.verb:
            case "place" | "flip":
                each.target = step.role
            case "drain" | "undrain":
                each.closing = step.verb == "drain"
        each.settle()
        return StepOutcome(accepted=True)

    def routes(self) -> tuple[WorkerRoute, ...]:
        return tuple(
            WorkerRoute(worker_id=w.worker_id, epoch=w.epoch, address="127.0.0.1:1", role=w.role, state=w.state)
            for w in self.workers.values()
        )

    async def close(self) -> None:
        self.closed = True

    async def stop(self) -> None:
        self.closed = True

    def finish(self, worker_id: str) -> None:
        """What ran on this worker has ended."""
        self.workers[worker_id].num_running = 0
        self.workers[worker_id].settle()
        self.on_change()


def policy(**changes: Any) -> RoutingPolicy:
    return replace(RoutingPolicy(), **changes)


def holder(holder_id: str = "a", **changes: Any) -> Holder:
    """A process of no machine that we know."""
    values = {"hostname": "host", "machine": "", "pid": 4711, "started_unix_s": NOW, "address": "http://127.0.0.1:8080"}
    return Holder(**{"holder_id": holder_id, **values, **changes})


def lease(fence: int = 1, of: Holder | None = None, **changes: Any) -> Lease:
    """Taken at NOW, for 1.5 s."""
    values = {"holder": of or holder(), "fence": fence, "taken_unix_s": NOW, "expires_unix_s": NOW + 1.5}
    return Lease(**{**values, **changes})
