"""A gateway in this process, worker processes without Ray, and what a plane does for them: roles, stand-ins, restarts.

The decisions are the product's own (`effective_roles`, `reconcile`); only the loop that carries them out is made here,
so that a benchmark can look into the gateway while it fails workers. Nothing is recorded: there is no command to lose.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import uvicorn

from _workers import Spares, Worker
from control.facts import FleetFacts, WorkerFacts
from control.fleets.worker_link import WorkerLink
from control.gateway.admission import Admission
from control.gateway.app import Gateway, GatewayLimits, running
from control.gateway.fleet import Fleet
from control.gateway.gatekeeper import AdmissionRules
from control.gateway.main import Server
from control.gateway.pulse import Pulse, pulse_of_step
from control.gateway.records import Origin, RecordLog
from control.processes import stands_still
from control.reconcile import Ordered, holds, reconcile
from control.stand_ins import effective_roles
from control.types.commands import Desired
from control.types.requests import Slo
from control.types.routing import RoutingPolicy, RoutingTable, WorkerRoute
from control.types.workers import Role, WorkerState
from engine.errors import EngineError
from engine.meter_reader import MeterReader
from engine.readings import MeterReading
from engine.text import Text
from engine.wire import Hello

TOKEN = "bench"
TICK_S = 1.0
LIMIT_S = 120.0


class SmallFleet:
    """`place` gives roles and waits for them; from then on whoever dies is started again and gets its role back."""

    def __init__(self, workers: Sequence[Worker], gateway: Gateway, model_id: str, shm_dir: Path) -> None:
        self.workers = {each.worker_id: each for each in workers}
        self.gateway = gateway
        self.desired = Desired(version=0, roles=dict.fromkeys(self.workers, Role.UNASSIGNED))
        self.holds_back: set[str] = set()  # stay dead until they are taken out
        self._model_id = model_id
        self._shm_dir = shm_dir
        self._wake = asyncio.Event()
        self._ordered: dict[str, Ordered] = {}
        self._table = 0
        self._links = {
            w: WorkerLink(w, TOKEN, on_change=self._wake.set, on_lost=lambda *_: self._wake.set()) for w in self.workers
        }

    async def place(self, policy: RoutingPolicy, **roles: Role) -> None:
        self.desired = Desired(version=self.desired.version + 1, roles=roles, policy=policy)
        self._wake.set()
        await self.until_whole()

    async def until_whole(self) -> None:
        """All workers are as desired, and the gateway uses them."""
        deadline_s = time.monotonic() + LIMIT_S
        while missing := self._missing():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the fleet was not whole within {LIMIT_S:g} s: {'; '.join(missing)}")
            await asyncio.sleep(0.02)

    def _missing(self) -> list[str]:
        """Workers that are not as desired, or that the gateway does not use, in words."""
        links, seen = self.gateway.fleet.links, self.facts().workers
        found = []
        for worker_id, role in self.desired.roles.items():
            facts, link = seen.get(worker_id), links.get(worker_id)
            if not holds(self.desired, facts, worker_id):
                state = "nowhere" if facts is None else f"{facts.role}, {facts.state}, alive: {facts.alive}"
                found.append(f"{worker_id} shall be {role} and is {state}")
            elif link is None or not link.is_ready or link.role is not role:
                state = "away" if link is None else f"{link.role}, {link.state}, late: {link.is_late}"
                found.append(f"{worker_id} is {role}, and to the gateway it is {state}")
        return found

    async def run(self) -> None:
        """Each tick, and at once when a worker's connection says something: restart, order, tell the gateway."""
        while True:
            await asyncio.gather(*(self._revive(each) for each in self.workers.values()))
            facts = self.facts()
            away = [w for w, link in self._links.items() if link.route and link.route.state is WorkerState.FAILED]
            wanted = effective_roles(self.desired, facts, away)
            decided = reconcile(wanted.desired, facts, self._ordered, 1, time.time(), reasons=wanted.reasons)
            self._ordered = dict(decided.ordered)
            for step in decided.steps:
                await self._links[step.worker_id].order(step)
            self._tell()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._wake.wait()
            self._wake.clear()

    async def look_when_told(self) -> None:
        """As the plane does when a beat tells it that the gateway has lost a worker."""
        news = self.gateway.fleet.mover.departures.has_news
        while True:
            await news.wait()
            news.clear()
            self._wake.set()

    async def _revive(self, worker: Worker) -> None:
        if worker.worker_id in self.holds_back:
            return
        if worker.is_stopped or not worker.is_alive:
            await asyncio.to_thread(worker.end)
            await asyncio.to_thread(worker.start)
        self._links[worker.worker_id].aim(worker.address, worker.config.epoch)

    def drain(self, worker_id: str) -> None:
        """Close it; `place` opens it again."""
        self.desired = replace(self.desired, drained=frozenset({worker_id}))
        self._wake.set()

    def release(self, worker_id: str) -> None:
        """Let it be started again."""
        self.holds_back.discard(worker_id)
        self._wake.set()

    def _tell(self) -> None:
        """A new table when a worker listens elsewhere or the policy is another one."""
        rows = tuple(
            WorkerRoute(worker_id=w, epoch=each.config.epoch, address=each.address, role=Role.UNASSIGNED,
                        state=WorkerState.UNASSIGNED)
            for w, each in self.workers.items()
        )  # fmt: skip
        before = self.gateway.fleet.table
        if before is not None and before.workers == rows and before.policy == self.desired.policy:
            return
        self._table += 1
        table = RoutingTable(version=self._table, fleet_id="bench", model_id=self._model_id, fence=1,
                             num_devices=len(rows), policy=self.desired.policy, workers=rows)  # fmt: skip
        self.gateway.fleet.take_table(table)

    def facts(self) -> FleetFacts:
        found = {w: self.reading(w) for w in self.workers}
        return FleetFacts(workers={w: self._facts_of(w, each) for w, each in found.items() if each is not None})

    def _facts_of(self, worker_id: str, reading: MeterReading) -> WorkerFacts:
        is_stuck = stands_still(reading.pid) or pulse_of_step(reading.load.step_overdue) is Pulse.GONE
        is_current = reading.epoch == self.workers[worker_id].config.epoch
        return WorkerFacts(worker_id=worker_id, epoch=reading.epoch, role=reading.role, state=reading.state,
                           alive=reading.alive and is_current, is_stuck=is_stuck)  # fmt: skip

    def reading(self, worker_id: str) -> MeterReading | None:
        try:
            reader = MeterReader(self._shm_dir / f"{worker_id}.meter")
            try:
                return reader.read()
            finally:
                reader.close()
        except EngineError:
            return None

    def blocks_held(self) -> int:
        """KV blocks that anything holds, over all workers."""
        loads = [each.load for w in self.workers if (each := self.reading(w)) is not None]
        return sum(each.kv_blocks_held + each.kv_blocks_reserved for each in loads)


@contextlib.asynccontextmanager
async def small_fleet(
    workers: Sequence[Worker], spares: Spares, text: Text, model_id: str, shm_dir: Path
) -> AsyncIterator[tuple[SmallFleet, str]]:
    """The fleet and the gateway's URL; everything is ended afterwards."""
    links = Fleet(Hello("bench", "gateway", TOKEN))
    gateway = Gateway(
        fleet=links,
        admission=Admission(links, AdmissionRules(max_in_flight=1024, predicts=False)),  # all of a burst come in
        records=RecordLog(),
        origin=Origin(gateway_id="bench", fleet_id="bench", slo=Slo()),
        limits=GatewayLimits(default_max_tokens=16, max_body_bytes=10**6, first_token_timeout_s=120.0,
                             token_gap_timeout_s=120.0),
    )  # fmt: skip
    gateway.text = text
    listener = socket.socket()
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as uvloop does it: or each answer waits 40 ms
    listener.bind(("127.0.0.1", 0))
    server = Server(uvicorn.Config(gateway, http="httptools", ws="none", lifespan="off", log_config=None))
    fleet = SmallFleet(workers, gateway, model_id, shm_dir)
    try:
        await asyncio.gather(*(asyncio.to_thread(each.start) for each in workers))
        async with running(gateway):
            tasks = [
                asyncio.create_task(each)
                for each in (server.serve(sockets=[listener]), fleet.run(), fleet.look_when_told())
            ]
            tasks[1].add_done_callback(_end_loudly)
            try:
                yield fleet, f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                server.should_exit = server.force_exit = True
                for each in tasks[1:]:
                    each.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        for each in (*workers, spares):
            each.end()


def _end_loudly(task: asyncio.Task[None]) -> None:
    """Nobody repairs the fleet any more."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logging.getLogger(__name__).error("the loop that keeps the fleet has ended", exc_info=error)
