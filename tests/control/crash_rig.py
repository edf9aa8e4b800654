"""Planes on a real history and one simulated fleet under traffic; one of them is killed, paused or cut off at a point.

The fleet outlives the planes, as real workers do. A killed plane writes and orders nothing more. A paused one goes on
where it stood, after another has taken over. One that is cut off reaches no database any more, and goes on otherwise.
As soon as the first plane is in trouble a second one takes the lease, and the client asks that one, with the same key.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from control.adoption import adopt
from control.commands import ENDED
from control.errors import CommandRefused, HistoryError, NotActive, StaleFence
from control.fleets.base import FleetStep, Observation, StepOutcome
from control.fleets.sim import SimFleet, sim_config
from control.fleets.sim_traffic import SimTraffic
from control.gateway.link import Beat
from control.history.store import History
from control.lease import Lease, Standing
from control.plane import Plane
from control.settings import Settings
from control.types.api import Principal
from control.types.commands import Command, CommandRequest
from control.types.requests import RequestRecord
from control.types.routing import RoutingPolicy, RoutingTable, WorkerRoute
from control.types.workers import Role
from tests.control.builders import holder

ALICE = Principal(name="alice", role="operator")
START_S = 1_800_000_000.0
NUM_WORKERS = 4
MOST_TICKS = 400
#: Expired as soon as it is written: in this rig a plane is active until another one wants the lease.
LEASE_S = 1e-6
#: A paused plane goes on after so many ticks of its successor.
PAUSE_TICKS = 6


class Trouble(StrEnum):
    """What happens to the first plane at the chosen point."""

    KILL = "kill"
    PAUSE = "pause"
    CUT = "cut"  # from the database


class PlaneKilled(BaseException):
    """The plane ends here, whatever it was doing: nothing of it may catch this."""


@dataclass(slots=True)
class Points:
    """Every point in the order in which it was reached; at number `at` (from 0) the trouble begins."""

    at: int | None = None
    trouble: Trouble = Trouble.KILL
    reached: list[str] = field(default_factory=list)
    is_dead: bool = False
    is_cut: bool = False
    is_paused: bool = False
    go_on: threading.Event = field(default_factory=threading.Event)

    @property
    def in_trouble(self) -> bool:
        return self.is_dead or self.is_cut or self.is_paused or self.go_on.is_set()

    def reach(self, point: str) -> None:
        """Of a write, in the thread that writes."""
        self._reach(point)
        if self.is_paused:
            self.go_on.wait(60)
            self.is_paused = False
        if self.is_cut:
            raise HistoryError(f"cut off at {point}")

    async def reach_beside(self, point: str) -> None:
        """Of an order or an observation, on the event loop: they need no database."""
        self._reach(point)
        while self.is_paused and not self.go_on.is_set():  # noqa: ASYNC110 (a thread waits for it too)
            await asyncio.sleep(0.001)
        self.is_paused = self.is_paused and not self.go_on.is_set()

    def _reach(self, point: str) -> None:
        if self.is_dead:
            raise PlaneKilled(point)
        self.reached.append(point)
        if self.at != len(self.reached) - 1:
            return
        self.is_dead = self.trouble is Trouble.KILL
        self.is_paused = self.trouble is Trouble.PAUSE
        self.is_cut = self.trouble is Trouble.CUT
        if self.is_dead:
            raise PlaneKilled(point)


class WatchedFleet(SimFleet):
    """Counts what orders change, whoever gives them. Its gateway listens to the plane that took over last."""

    def __init__(self, settings: Settings, traffic: SimTraffic) -> None:
        super().__init__(sim_config(settings, traffic))
        self.effects: Counter[tuple[str, Role, bool]] = Counter()
        self.refusals: list[StepOutcome] = []
        self.records: list[RequestRecord] = []
        self.linked: FleetView | None = None

    async def apply(self, step: FleetStep) -> StepOutcome:
        wanted = self.wanted(step.worker_id)
        outcome = await super().apply(step)
        if not outcome.accepted:
            self.refusals.append(outcome)
        if self.wanted(step.worker_id) != wanted:
            self.effects[(step.worker_id, *self.wanted(step.worker_id))] += 1
        return outcome

    def take_records(self) -> list[tuple[str, int, list[RequestRecord]]]:
        taken = super().take_records()
        self.records += [record for _, _, records in taken for record in records]
        return taken

    def wanted(self, worker_id: str) -> tuple[Role, bool]:
        """The role that it was told to have, and whether it was told to close."""
        worker = self._workers.get(worker_id)
        return (Role.UNASSIGNED, False) if worker is None else (worker.core._duty.wanted, worker.core._duty._closing)

    @property
    def fences(self) -> set[int]:
        return {worker.core.fence for worker in self._workers.values()}

    @property
    def num_workers(self) -> int:
        return len(self._workers)


class FleetView:
    """The fleet as one plane sees it: what passes between them are points."""

    def __init__(self, fleet: WatchedFleet, points: Points, fence: int) -> None:
        self.fence = fence
        self._fleet = fleet
        self._points = points
        self.fleet_id, self.kind, self.model_id = fleet.fleet_id, fleet.kind, fleet.model_id
        self.simulated, self.capabilities = fleet.simulated, fleet.capabilities

    async def prepare(self) -> None:
        await self._fleet.prepare()

    async def start(self, on_change: Callable[[], None]) -> None:
        linked = self._fleet.linked
        if linked is None or linked.fence < self.fence:  # the gateway takes no table that is older than the one it has
            self._fleet.linked = self
        await self._fleet.start(on_change)

    async def apply(self, step: FleetStep) -> StepOutcome:
        await self._points.reach_beside(f"order-{step.verb}:before")
        outcome = await self._fleet.apply(step)
        await self._points.reach_beside(f"order-{step.verb}:after")
        return outcome

    async def observe(self, now_unix_s: float) -> Observation:
        await self._points.reach_beside("observe:before")
        return await self._fleet.observe(now_unix_s)

    def routes(self) -> tuple[WorkerRoute, ...]:
        return self._fleet.routes()

    def set_table(self, table: RoutingTable) -> None:
        if self._fleet.linked is self:
            self._fleet.set_table(table)

    def take_records(self) -> list[tuple[str, int, list[RequestRecord]]]:
        return self._fleet.take_records() if self._fleet.linked is self else []

    def beats(self) -> dict[str, Beat]:
        return self._fleet.beats() if self._fleet.linked is self else {}

    async def close(self) -> None:
        pass

    async def stop(self) -> None:
        await self._fleet.stop()


@dataclass(slots=True)
class Life:
    """One plane from its start to its end, in turns: the first takes the lease and adopts, each later one ticks."""

    rig: CrashRig
    number: int
    points: Points
    history: History | None = None
    lease: Lease | None = None
    plane: Plane | None = None
    ended: str = ""  # why
    _turn: asyncio.Task[None] | None = None

    @property
    def is_active(self) -> bool:
        return self.plane is not None and not self.ended and not self.points.is_paused

    async def turn(self) -> None:
        """One turn, or what is left of the last one; returns early when the plane is paused in it."""
        if self.ended or self.points.is_paused:
            return
        if self._turn is None:
            self._turn = asyncio.create_task(self._start() if self.plane is None else self._tick())
        await self.until_paused(self._turn)
        if not self._turn.done():
            return
        task, self._turn = self._turn, None
        try:
            task.result()
        except HistoryError:
            if self.plane is None:  # it could not start: its supervisor starts another one
                self.ended = "no database at start"
        except StaleFence:
            self.ended = "stale"
        except PlaneKilled:
            self.ended = "killed"
        if self.points.is_dead:
            self.ended = "killed"  # beside the tick
        if self.ended:
            await self.bury()

    async def until_paused(self, task: asyncio.Task[Any]) -> None:
        while not task.done() and not self.points.is_paused:
            await asyncio.wait({task}, timeout=0.002)

    async def _start(self) -> None:
        """What `control.plane_main` does, with an expired lease in place of waiting for one."""
        rig = self.rig
        self.history = await asyncio.to_thread(lambda: History.open(rig.url, reach=self.points.reach))
        me, standing = holder(f"plane-{self.number}"), Standing(reachable_s=3600.0)
        call = (self.history.take_lease, rig.fleet.fleet_id, me, LEASE_S, standing)
        self.lease, verdict = await asyncio.to_thread(*call)
        if self.lease is None:
            raise HistoryError(verdict.reason)
        self.history.hold(rig.fleet.fleet_id, self.lease.fence)
        view = FleetView(rig.fleet, self.points, self.lease.fence)
        plane = await adopt(view, self.history, rig.settings, self.lease, "test", lambda: rig.now_s)
        await view.start(plane.wake)
        self.plane = plane

    async def _tick(self) -> None:
        assert self.plane is not None
        assert self.history is not None
        assert self.lease is not None
        with contextlib.suppress(HistoryError):
            await asyncio.to_thread(self.history.renew_lease, self.rig.fleet.fleet_id, self.lease.fence, LEASE_S)
        await self.plane.tick()
        await self.plane.settled()
        if self.points.is_cut and self.plane.newest_fence > self.lease.fence:
            raise StaleFence("the workers obey another plane")

    async def bury(self) -> None:
        """Let go of what a dead process would lose by itself: tasks, threads, connections."""
        self.points.is_dead = True
        self.points.go_on.set()
        if self._turn is not None:
            self._turn.cancel()
            await asyncio.gather(self._turn, return_exceptions=True)
        plane, self.plane = self.plane, None
        if plane is not None:
            await plane._orders.close()
            recorder = plane.recorder
            for task in (recorder._flushing, plane.desk._catching_up):
                if task is not None:
                    with contextlib.suppress(BaseException):
                        await asyncio.wait_for(task, 5)
            for pool in (recorder._writer, recorder._readers, recorder._desk_reader):
                pool.shutdown(wait=True)
        if self.history is not None:
            self.history.close()
            self.history = None


@dataclass(slots=True)
class CrashRig:
    """One fleet and one database; planes come and go. Time moves only here."""

    run_dir: Path
    url: str
    at: int | None = None
    trouble: Trouble = Trouble.KILL
    now_s: float = START_S
    lives: list[Life] = field(default_factory=list)
    fleet: WatchedFleet = None  # type: ignore[assignment]
    _num_turns_after: int = 0
    _reader: History | None = None

    def __post_init__(self) -> None:
        traffic = SimTraffic(
            mean_rps=4.0,
            swing=0.0,
            prompt_median_tokens=800,
            prompt_p99_tokens=3000,
            output_median_tokens=40,
            output_p99_tokens=200,
        )
        self.fleet = WatchedFleet(self.settings, traffic)
        self._begin(Points(self.at, self.trouble))

    @property
    def settings(self) -> Settings:
        # Splitting pays at once, so that flips happen under both kinds of work.
        policy = RoutingPolicy(min_fleet_devices=2)
        return Settings(
            run_dir=self.run_dir, fleet_kind="sim", num_workers=NUM_WORKERS, num_prefill=1, num_mixed=0, routing=policy
        )

    @property
    def first(self) -> Life:
        return self.lives[0]

    @property
    def newest(self) -> Life:
        return self.lives[-1]

    def _begin(self, points: Points) -> None:
        self.lives.append(Life(self, len(self.lives), points))

    async def tick(self) -> None:
        """One turn of each plane; a second plane comes as soon as the first is in trouble, a third if that fails."""
        self.now_s += 0.25
        for life in self.lives:
            await life.turn()
        if self.newest.points.in_trouble or self.newest.ended:
            self._begin(Points())
        if self.first.points.is_paused and len(self.lives) > 1:
            self._num_turns_after += 1
            if self._num_turns_after >= PAUSE_TICKS:
                self.first.points.go_on.set()

    async def submit(self, request: CommandRequest) -> Command:
        """As a client does: the same command with the same key, until some plane has taken it."""
        for _ in range(MOST_TICKS):
            for life in reversed(self.lives):
                command = await self._asked(life, request)
                if command is not None:
                    return command
            await self.tick()
        raise AssertionError(f"no plane takes {request.action}")

    async def _asked(self, life: Life, request: CommandRequest) -> Command | None:
        """None: no answer, or one that says to ask again."""
        if not life.is_active or life.plane is None:
            return None
        task = asyncio.create_task(life.plane.submit(request, ALICE))
        await life.until_paused(task)
        if not task.done():
            task.add_done_callback(lambda late: late.cancelled() or late.exception())
            return None
        try:
            return task.result()
        except (HistoryError, StaleFence, NotActive, PlaneKilled):
            return None
        except CommandRefused as refused:
            if "not there now" in refused.detail or "no worker" in refused.detail:  # not observed yet
                return None
            raise

    async def until(self, is_so: Callable[[], bool], what: str) -> int:
        """Ticks it took."""
        for number in range(MOST_TICKS):
            if is_so():
                return number
            await self.tick()
        raise AssertionError(f"not after {MOST_TICKS} ticks: {what}")

    def is_settled(self) -> bool:
        """Each worker is what the newest plane desires, and no command is under way."""
        plane = self.newest.plane
        if plane is None or not self.newest.is_active:
            return False
        rows = {row.worker_id: row for row in self.fleet.routes()}
        roles = {w: row.role for w, row in rows.items() if row.state in ("ready", "drained")}
        closed = {w for w, row in rows.items() if row.state == "drained"}
        return roles == dict(plane.desired.roles) and closed == plane.desired.drained and not plane.desk.unfinished

    def ended(self, command: Command) -> bool:
        plane = self.newest.plane
        if plane is None or command.command_id in plane.desk.unfinished:
            return False
        found = self.read(lambda history: history.command(command.command_id))
        return found is not None and found.state in ENDED

    def commands(self) -> list[Command]:
        """Of clients, oldest first, as the database has them."""
        found = self.read(lambda history: history.commands("local", 99))
        return [each for each in reversed(found) if each.who == ALICE.name]

    def read(self, ask: Callable[[History], Any]) -> Any:
        """Ask the database beside every plane."""
        if self._reader is None:
            self._reader = History.open(self.url)
        return ask(self._reader)

    async def bury(self) -> None:
        for life in self.lives:
            await life.bury()
        if self._reader is not None:
            self._reader.close()
            self._reader = None
