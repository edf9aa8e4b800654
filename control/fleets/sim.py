"""SimFleet: a whole fleet in one object, on simulated time. The fake of `Fleet` that ships with the product.

Decided here: time. `observe(now)` runs the events up to `now` and returns what the meters then say; nothing else reads
or moves a clock, so the same calls give the same fleet, bit for bit. The cores, the scheduler, routing and meters are
the real ones; step times come from the cost model, arrivals from `control.fleets.sim_traffic`. All is marked simulated.

Time is run in a thread, so that the event loop goes on; `_turn` gives the fleet to one call at a time. What is not
`async` reads or sets what the plane's tick owns, and is called between observations, as the plane does.

It brings its own arrivals, so it is `SelfDriving`: `take_records`, `beats` and `set_table` stand for its gateway's
connection to the plane. Arrivals begin when there is a table and a worker that can decode.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from control.fleets.base import FleetStep, Observation, StepOutcome, WorkerLife
from control.fleets.hosts import paced_kv_bytes, setting
from control.fleets.sim_gateway import SimGateway
from control.fleets.sim_traffic import Arrival, Arrivals, SimTraffic
from control.fleets.sim_worker import SimMachine, SimWorker
from control.gateway.link import Beat
from control.settings import Settings, worker_ids
from control.types.fleet import Capability
from control.types.requests import RequestRecord, Slo
from control.types.routing import RoutingTable, WorkerRoute
from engine.core import Outbox
from engine.device_catalogue import cost_model, model_spec, paced_device
from engine.wire import Order

#: Most simulated seconds of one `observe`: after a long pause the fleet catches up over several ticks.
MAX_ADVANCE_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SimConfig:
    """What is simulated. The default is 48 H100s with a 70B model in 8 bits, under the article's traffic."""

    machine: SimMachine
    num_workers: int = 48
    traffic: SimTraffic = field(default_factory=SimTraffic)
    slo: Slo = field(default_factory=Slo)
    fleet_id: str = "sim"
    moves_per_worker: int = 8  # requests that leave one worker at the same time; 0: a drain waits for them


def sim_config(settings: Settings, traffic: SimTraffic | None = None) -> SimConfig:
    """The fleet that the settings describe: the paced device and model, and a rate in proportion to the fleet.

    Raises SettingsError when they are unknown or the model does not fit on the device.
    """
    kv_bytes = paced_kv_bytes(settings)
    cost = cost_model(settings.paced_device, settings.paced_model)
    machine = SimMachine(
        device=paced_device(settings.paced_device, dtype=model_spec(settings.paced_model).dtype),
        cost=cost,
        num_blocks=int(kv_bytes // (settings.block_tokens * cost.work.kv_token_bytes)),
        block_tokens=settings.block_tokens,
        max_batch=setting(settings, "paced", "max_batch"),
        prefill_chunk_tokens=setting(settings, "paced", "prefill_chunk_tokens"),
        max_queue=setting(settings, "paced", "max_queue_per_worker"),
        lease_s=settings.lease_s,
    )
    return SimConfig(
        machine=machine,
        num_workers=settings.num_workers,
        traffic=traffic or SimTraffic(mean_rps=SimTraffic().mean_rps * settings.num_workers / 48),
        slo=settings.effective_slo if settings.slo is not None else Slo(),
        fleet_id=settings.fleet_id,
        moves_per_worker=settings.migrations_per_worker if settings.live_migration else 0,
    )


class SimFleet:
    """Implements `control.fleets.base.Fleet` and `control.self_driving.SelfDriving`; see `create`."""

    kind = "sim"
    simulated = True
    capabilities = frozenset(
        {Capability.OBSERVE, Capability.ROUTE, Capability.RESIZE, Capability.FLIP, Capability.DRAIN}
    )

    def __init__(self, config: SimConfig) -> None:
        self.config = config
        self.fleet_id = self.config.fleet_id
        self.model_id = self.config.machine.cost.model.model_id
        self._now_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._num_events = 0
        self._workers: dict[str, SimWorker] = {}
        self._gateway: SimGateway | None = None
        self._arrivals: Arrivals | None = None
        self._table: RoutingTable | None = None
        self._on_change: Callable[[], None] = lambda: None
        self._has_changed = False
        self._restarts: dict[str, int] = {}
        self._ended: list[SimWorker] = []  # whose last page nobody has read yet
        self._turn = asyncio.Lock()

    # --- Fleet ---------------------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Nothing to load."""

    async def start(self, on_change: Callable[[], None]) -> None:
        """Nothing runs yet: the workers come up at the first observation, which says when that is."""
        self._on_change = on_change

    async def observe(self, now_unix_s: float) -> Observation:
        """Run to `now_unix_s` (at most MAX_ADVANCE_S further), then read every meter. Time never goes back."""
        async with self._turn:
            observation = await asyncio.to_thread(self._observe, now_unix_s)
        self._tell_changes()
        return observation

    async def apply(self, step: FleetStep) -> StepOutcome:
        """Give one order, at the time of the last observation."""
        async with self._turn:
            outcome = self._apply(step)
        self._tell_changes()
        return outcome

    def _observe(self, now_unix_s: float) -> Observation:
        if self._gateway is None:
            self._begin(now_unix_s)
        self._run_until(min(now_unix_s, self._now_s + MAX_ADVANCE_S))
        return Observation(
            at_unix_s=self._now_s,
            readings=tuple(worker.read() for worker in [*self._take_ended(), *self._workers.values()]),
            lives=tuple(
                WorkerLife(worker_id=worker_id, num_restarts=self._restarts.get(worker_id, 0))
                for worker_id in self._workers
            ),
        )

    def _apply(self, step: FleetStep) -> StepOutcome:
        worker = self._workers.get(step.worker_id)
        if worker is None:
            known = "no worker is up before the first observation" if not self._workers else "there is no such worker"
            return StepOutcome(accepted=False, detail=f"{step.worker_id}: {known}", retry_helps=not self._workers)
        if worker.stands:
            return StepOutcome(accepted=False, detail=f"{step.worker_id} does not answer", retry_helps=True)
        order = Order(f"sim-{step.fence}-{step.worker_id}", step.fence, step.verb, step.role, step.reason)
        result = worker.core.order(order, self._now_s)
        worker.kick()
        detail = result.error if not result.ok else f"{result.role} {result.state}"
        return StepOutcome(accepted=result.ok, detail=detail, retry_helps=False)

    def _take_ended(self) -> list[SimWorker]:
        ended, self._ended = self._ended, []
        return ended

    def routes(self) -> tuple[WorkerRoute, ...]:
        """Addresses are no sockets: only the simulated gateway reaches these workers."""
        return tuple(
            WorkerRoute(
                worker_id=worker.worker_id,
                epoch=worker.epoch,
                address=f"sim:{worker.worker_id}",
                role=worker.core.role,
                state=worker.core.state,
                simulated=True,
            )
            for worker in self._workers.values()
        )

    async def close(self) -> None:
        """Nothing to let go of."""

    async def stop(self) -> None:
        """The simulated fleet is gone; it would begin again at the next observation."""
        async with self._turn:
            self._events.clear()
            self._workers.clear()
            self._ended.clear()
            self._gateway = self._arrivals = None

    # --- what a test or a replay does to it, between observations ----------------------------------------------------

    def submit(self, arrival: Arrival) -> str:
        """A request beside the fleet's own arrivals, now; its id. The fleet has been observed and has a table."""
        assert self._gateway is not None
        return self._gateway.arrive(arrival)

    def cancel(self, request_id: str) -> bool:
        """Its client hangs up. False when it has ended."""
        return self._gateway is not None and self._gateway.cancel(request_id)

    def kill(self, worker_id: str) -> None:
        """The worker's process ends at once; another one comes in its place, under a new epoch and without a role."""
        assert self._gateway is not None
        old = self._workers[worker_id]
        old.end()
        self._ended.append(old)
        self._workers[worker_id] = self._worker(worker_id, old.epoch + 1, old.machine)
        self._restarts[worker_id] = self._restarts.get(worker_id, 0) + 1
        self._gateway.lost(old)
        self._on_status(self._workers[worker_id])

    def stop_worker(self, worker_id: str) -> None:
        """Its process stands still (SIGSTOP): it ends no step and takes no order until `go_on`."""
        self._workers[worker_id].stands = True

    def go_on(self, worker_id: str) -> None:
        self._workers[worker_id].go_on()

    # --- SelfDriving ---------------------------------------------------------------------------------------------

    def set_table(self, table: RoutingTable) -> None:
        """Route by this table from now on."""
        self._table = table
        if self._gateway is not None:
            self._gateway.table = table
            self._gateway.wake()

    def take_records(self) -> list[tuple[str, int, list[RequestRecord]]]:
        """(gateway_id, number of the first record, records) since the last call."""
        if self._gateway is None:
            return []
        first, records = self._gateway.take_records()
        return [(self._gateway.gateway_id, first, records)] if records else []

    def beats(self) -> dict[str, Beat]:
        return {} if self._gateway is None else {self._gateway.gateway_id: self._gateway.beat()}

    # --- time ----------------------------------------------------------------------------------------------------

    def _clock(self) -> float:
        return self._now_s

    def _at(self, at_s: float, call: Callable[[], None]) -> None:
        """Call at a simulated time; of equal times the first asked for is the first called."""
        self._num_events += 1
        heapq.heappush(self._events, (at_s, self._num_events, call))

    def _begin(self, now_unix_s: float) -> None:
        """Bring the workers up. A new gateway id each time, so that its records start again from number 1, and a new
        epoch, so that nobody takes the new meters for those of an earlier process."""
        self._now_s = now_unix_s
        machine, epoch = self.config.machine, int(now_unix_s * 1000)
        for index, worker_id in enumerate(worker_ids(self.config.num_workers)):
            self._workers[worker_id] = self._worker(worker_id, epoch, machine.at_slot(index))
        gateway_id = f"sim-gateway-{int(now_unix_s)}"
        self._gateway = SimGateway(gateway_id, self._workers, self.config.slo, self._clock, self._at,
                                   self.config.moves_per_worker)  # fmt: skip
        self._gateway.table = self._table

    def _worker(self, worker_id: str, epoch: int, machine: SimMachine) -> SimWorker:
        return SimWorker(worker_id, epoch, machine, self._clock, self._at, self._deliver, self._on_status)

    def _run_until(self, until_s: float) -> None:
        assert self._gateway is not None
        if self._arrivals is None and self._gateway.is_ready:
            self._begin_arrivals()
        events = self._events
        while events and events[0][0] <= until_s:
            at_s, _, call = heapq.heappop(events)
            self._now_s = max(self._now_s, at_s)
            call()
        self._now_s = max(self._now_s, until_s)

    def _begin_arrivals(self) -> None:
        machine = self.config.machine
        most = min(machine.cost.model.max_context, machine.num_blocks * machine.block_tokens)
        self._arrivals = Arrivals(
            self.config.traffic, self._now_s, vocab_size=machine.cost.model.vocab_size, max_tokens=most
        )
        self._next_arrival()

    def _next_arrival(self) -> None:
        arrival = None if self._arrivals is None else self._arrivals.next()
        if arrival is not None:
            self._at(arrival.at_unix_s, lambda: self._arrive(arrival))

    def _arrive(self, arrival: Arrival) -> None:
        assert self._gateway is not None
        self._gateway.arrive(arrival)
        self._next_arrival()

    def _deliver(self, worker: SimWorker, outbox: Outbox) -> None:
        if self._gateway is not None:
            self._gateway.take(worker, outbox)

    def _on_status(self, worker: SimWorker) -> None:
        """A worker's role or state changed: those who wait for room try again, what decodes on a worker that leaves
        decode is moved, and the plane ticks at once."""
        gateway = self._gateway
        if gateway is not None:
            self._at(self._now_s, lambda: gateway.on_status(worker))
        self._has_changed = True

    def _tell_changes(self) -> None:
        """On the event loop, as who listens expects."""
        if self._has_changed:
            self._has_changed = False
            self._on_change()


def create(settings: Settings) -> SimFleet:
    """The fleet that the plane's process runs when `fleet_kind` is sim. Raises SettingsError."""
    return SimFleet(sim_config(settings))
