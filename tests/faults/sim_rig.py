"""A plane over a simulated fleet that watches itself: what is demanded after every step, whatever was done before.

No wall clock: time moves only in `tick`. The history is the fake one, so that a plane can be started anew on it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, defaultdict
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from control.adoption import adopt
from control.errors import CommandRefused, StaleVersion
from control.fleets.sim import SimFleet, sim_config
from control.fleets.sim_traffic import Arrival, SimTraffic
from control.fleets.sim_worker import SimWorker
from control.plane import Plane
from control.reconcile import holds
from control.settings import Settings
from control.types.api import Principal
from control.types.commands import Action, Command, CommandRequest
from control.types.requests import RequestRecord
from control.types.routing import RoutingPolicy
from control.types.workers import Role
from engine.core import Outbox
from tests.control.builders import lease
from tests.control.fake_history import FakeHistory

T = TypeVar("T")
ALICE = Principal(name="alice", role="operator")
START_S = 1_800_000_000.0
TICK_S = 0.25
NUM_WORKERS = 4


class WatchedFleet(SimFleet):
    """Keeps every token's position and every record."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(sim_config(settings, SimTraffic(mean_rps=0.0)))
        self.positions: dict[tuple[str, str, int], list[int]] = defaultdict(list)  # by worker life and attempt
        self.records: list[RequestRecord] = []

    def _deliver(self, worker: SimWorker, outbox: Outbox) -> None:
        for event in outbox.events:
            life = f"{worker.worker_id}@{worker.epoch}/{event.req_id}"
            self.positions[life, event.req_id, event.attempt] += range(
                event.position, event.position + len(event.tokens)
            )
        super()._deliver(worker, outbox)

    def take_records(self) -> list[tuple[str, int, list[RequestRecord]]]:
        taken = super().take_records()
        self.records += [record for _, _, records in taken for record in records]
        return taken

    @property
    def workers(self) -> dict[str, SimWorker]:
        return self._workers


class SimRig:
    """Everything that a state machine does, synchronously; `check` raises AssertionError."""

    def __init__(self, run_dir: Path) -> None:
        self.settings = Settings(
            run_dir=run_dir,
            fleet_kind="sim",
            num_workers=NUM_WORKERS,
            num_prefill=1,
            max_queue_per_worker=8,
            lease_s=20.0,
            routing=RoutingPolicy(min_fleet_devices=2, min_remote_prefill_tokens=16, max_local_output_tokens=8),
        )
        self.runner = asyncio.Runner()
        self.now_s = START_S
        self.fleet = WatchedFleet(self.settings)
        self.history = FakeHistory()
        self.submitted: dict[str, int] = {}  # request id -> output tokens asked for
        self.fences: dict[tuple[str, int], int] = {}
        self.num_planes = 0
        self.counters: dict[tuple[str, int, str], tuple[float, ...]] = {}
        self.num_requests = 0
        self.start_plane()
        self.ticks(4)

    def do(self, what: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(what)

    # --- actions -------------------------------------------------------------------------------------------------

    def start_plane(self) -> None:
        """A new plane on what the last one left, as after a crash: the old one is let go of without a word."""

        async def start() -> Plane:
            owned = lease(self.num_planes)
            plane = await adopt(self.fleet, self.history, self.settings, owned, "test", lambda: self.now_s)
            await self.fleet.start(plane.wake)
            return plane

        self.num_planes += 1  # each plane's fence is above the last one's
        self.plane = self.do(start())

    def bury_plane(self) -> None:
        async def bury() -> None:
            await self.plane._orders.close()
            await self.plane.recorder.close()

        self.do(bury())

    def ticks(self, count: int) -> None:
        for _ in range(count):
            self.now_s += TICK_S
            self.do(self._tick())

    async def _tick(self) -> None:
        await self.plane.tick()
        await self.plane.settled()

    def submit(self, prompt_tokens: int, output_tokens: int) -> str:
        self.num_requests += 1
        arrival = Arrival(self.now_s, prompt_tokens, output_tokens, 1000 * self.num_requests, self.num_requests)
        request_id = self.fleet.submit(arrival)
        assert request_id not in self.submitted
        self.submitted[request_id] = output_tokens
        return request_id

    def command(self, action: Action, typed: str = "") -> Command | None:
        """None when it was refused."""
        before, num_before = self.plane.desired, len(self.history.rows)
        try:
            request = CommandRequest(action=action, confirmation=typed)
            command = self.do(self.plane.submit(request, ALICE))
        except (CommandRefused, StaleVersion):
            assert self.plane.desired == before, "a refused command changed what is desired"
            assert len(self.history.rows) == num_before, "a refused command was recorded"
            return None
        assert len(self.history.rows) == num_before + 1
        return command

    def word_for(self, action: Action) -> str:
        try:
            return self.do(self.plane.preview(CommandRequest(action=action))).needs_confirmation
        except (CommandRefused, StaleVersion):
            return ""

    # --- what always holds ---------------------------------------------------------------------------------------

    def check(self) -> None:
        self.check_requests()
        self.check_positions()
        self.check_pools()
        self.check_blocks()
        self.check_desired()
        self.check_fences()
        self.check_counters()

    def check_requests(self) -> None:
        """Each ends at most once, with its whole output or with words; nobody is forgotten."""
        gateway = self.fleet._gateway
        assert gateway is not None
        ended = Counter(each.request_id for each in self.fleet.records)
        ended.update(each.request_id for each in gateway.records)
        assert max(ended.values(), default=1) == 1, ended.most_common(3)
        in_flight = set(gateway._in_flight)
        assert not in_flight & set(ended)
        assert in_flight | set(ended) == set(self.submitted)
        for record in self.fleet.records:
            if record.status == 200:
                assert record.output_tokens == self.submitted[record.request_id], record
            else:
                assert record.error, record

    def check_positions(self) -> None:
        """What one worker sends of one attempt has no gap, no repetition, no way back."""
        for key, positions in self.fleet.positions.items():
            assert positions == list(range(positions[0], positions[0] + len(positions))) if positions else True, key

    def check_pools(self) -> None:
        """What is desired can decode."""
        desired = self.plane.desired
        able = [
            worker_id
            for worker_id, role in desired.roles.items()
            if role in (Role.DECODE, Role.MIXED)
            and worker_id not in desired.drained
            and desired.weights.get(worker_id, 1.0) > 0
        ]
        assert able, desired

    def check_blocks(self) -> None:
        """Every block is held as often as sequences and leases own it."""
        for worker in self.fleet.workers.values():
            work, pool = worker.core._work, worker.core._scheduler.pool
            owners = Counter(block for seq in work.seqs.values() for block in seq.blocks)
            owners.update(block for lease in work.leases._held.values() for block in lease.blocks)
            held = {block: pool.refcount(block) for block in range(pool.num_blocks) if pool.refcount(block)}
            assert held == dict(owners), worker.worker_id
            assert pool.num_held == len(owners)

    def check_desired(self) -> None:
        """It is what the newest command left; a command raises the version by one, or changes nothing."""
        rows = [self.history.rows[number].desired_after for number in sorted(self.history.rows)]
        assert self.plane.desired == rows[-1]
        for before, after in itertools.pairwise(each for each in rows if each is not None):
            assert after == before or after.version == before.version + 1

    def check_fences(self) -> None:
        """A worker's fence never falls within its life, and is never above the newest plane's."""
        for worker in self.fleet.workers.values():
            life = worker.worker_id, worker.epoch
            assert self.fences.get(life, 0) <= worker.core.fence <= self.num_planes
            self.fences[life] = worker.core.fence

    def check_counters(self) -> None:
        """Monotonic within a worker's life, and so never negative."""
        for reading in self.plane._observer.readings.values():
            for key, counters in reading.counters.items():
                life = reading.worker_id, reading.epoch, key
                now = (counters.busy_s, counters.flops, counters.bytes, counters.tokens, counters.steps)
                before = self.counters.get(life, (0.0,) * len(now))
                assert all(a >= b for a, b in zip(now, before, strict=True)), (life, before, now)
                self.counters[life] = now

    # --- the end -------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Let everything go on, and demand that all ends: requests, commands, leases."""
        for worker_id, worker in self.fleet.workers.items():
            if worker.stands:
                self.fleet.go_on(worker_id)
        for _ in range(400):
            self.ticks(1)
            if self.is_quiet():
                break
        self.check()
        gateway = self.fleet._gateway
        assert gateway is not None
        assert not gateway._in_flight, list(gateway._in_flight.values())[:2]
        assert {each.request_id for each in self.fleet.records} == set(self.submitted)
        assert all(not worker.core.has_work for worker in self.fleet.workers.values())
        assert self.is_as_desired(), self.plane.desired
        assert not self.plane.desk.unfinished

    def is_quiet(self) -> bool:
        gateway = self.fleet._gateway
        has_work = any(worker.core.has_work for worker in self.fleet.workers.values())
        is_done = not has_work and not self.plane.desk.unfinished and self.is_as_desired()
        return is_done and gateway is not None and not gateway._in_flight and not gateway.records

    def is_as_desired(self) -> bool:
        seen = self.plane._observer.facts().workers
        return all(holds(self.plane.desired, seen.get(name), name) for name in self.settings.worker_ids)

    def close(self) -> None:
        self.bury_plane()
        self.runner.close()
