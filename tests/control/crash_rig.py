"""A plane on a real history and a simulated fleet under traffic, which is killed at a chosen point and started anew.

The fleet outlives the plane, as real workers do. A killed plane writes and orders nothing more: every later point that
it reaches kills it again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from control.adoption import adopt
from control.commands import ENDED
from control.fleets.base import FleetStep, Observation, StepOutcome
from control.fleets.sim import SimFleet, sim_config
from control.fleets.sim_traffic import SimTraffic
from control.history.store import History
from control.plane import Plane
from control.settings import Settings
from control.types import Action, Command, CommandRequest, Principal, RequestRecord, Role, RoutingPolicy, Verb

ALICE = Principal(name="alice", role="operator")
START_S = 1_800_000_000.0
NUM_WORKERS = 4
RESIZE = CommandRequest(
    action=Action(verb=Verb.RESIZE, prefill=2, decode=2), idempotency_key="the-resize", confirmation="decode"
)
MOST_TICKS = 400


class PlaneKilled(BaseException):
    """The plane ends here, whatever it was doing: nothing of it may catch this."""


@dataclass(slots=True)
class Points:
    """Every point in the order in which it was reached; with `kill_at` the plane dies at that one (from 0)."""

    kill_at: int | None = None
    reached: list[str] = field(default_factory=list)
    is_dead: bool = False

    def reach(self, point: str) -> None:
        if self.is_dead:
            raise PlaneKilled(point)
        self.reached.append(point)
        if self.kill_at == len(self.reached) - 1:
            self.is_dead = True
            raise PlaneKilled(point)


class WatchedFleet(SimFleet):
    """Counts what orders change, whoever gives them."""

    def __init__(self, settings: Settings, traffic: SimTraffic) -> None:
        super().__init__(sim_config(settings, traffic))
        self.role_orders: Counter[tuple[str, Role]] = Counter()
        self.refusals: list[StepOutcome] = []
        self.records: list[RequestRecord] = []
        self.on_apply: Callable[[str], None] = lambda point: None

    async def apply(self, step: FleetStep) -> StepOutcome:
        self.on_apply(f"order-{step.verb}:before")
        wanted = self._wanted(step.worker_id)
        outcome = await super().apply(step)
        if not outcome.accepted:
            self.refusals.append(outcome)
        if self._wanted(step.worker_id) != wanted:
            self.role_orders[step.worker_id, step.role] += 1
        self.on_apply(f"order-{step.verb}:after")
        return outcome

    async def observe(self, now_unix_s: float) -> Observation:
        self.on_apply("observe:before")
        return await super().observe(now_unix_s)

    def take_records(self) -> list[tuple[str, int, list[RequestRecord]]]:
        taken = super().take_records()
        self.records += [record for _, _, records in taken for record in records]
        return taken

    def _wanted(self, worker_id: str) -> Role:
        worker = self._workers.get(worker_id)
        return Role.UNASSIGNED if worker is None else worker.core._duty.wanted

    @property
    def fences(self) -> set[int]:
        return {worker.core.fence for worker in self._workers.values()}


@dataclass(slots=True)
class CrashRig:
    """One fleet and one database; planes come and go. Time moves only here."""

    run_dir: Path
    url: str
    now_s: float = START_S
    fleet: WatchedFleet = None  # type: ignore[assignment]
    plane: Plane = None  # type: ignore[assignment]
    points: Points = field(default_factory=Points)
    history: History = None  # type: ignore[assignment]

    @property
    def settings(self) -> Settings:
        # Splitting pays at once, so that flips happen under both kinds of work.
        policy = RoutingPolicy(min_fleet_devices=2)
        return Settings(
            run_dir=self.run_dir, fleet_kind="sim", num_workers=NUM_WORKERS, num_prefill=1, num_mixed=0, routing=policy
        )

    async def start(self, kill_at: int | None = None) -> None:
        """A new plane on what the last one left. Raises PlaneKilled."""
        if self.fleet is None:
            traffic = SimTraffic(mean_rps=4.0, swing=0.0, prompt_median_tokens=800, prompt_p99_tokens=3000)
            self.fleet = WatchedFleet(self.settings, traffic)
        points = self.points = Points(kill_at)
        self.fleet.on_apply = points.reach
        self.history = History.open(self.url, reach=points.reach)
        self.plane = await adopt(self.fleet, self.history, self.settings, "test", lambda: self.now_s)
        await self.fleet.start(self.plane.wake)

    async def tick(self) -> None:
        """Raises PlaneKilled, also when the plane died beside the tick."""
        self.now_s += 0.25
        await self.plane.tick()
        await self.plane.settled()
        if self.points.is_dead:
            raise PlaneKilled

    async def resize(self) -> Command:
        """What a client sends, and sends again when it got no answer."""
        return await self.plane.submit(RESIZE, ALICE)

    async def until(self, is_so: Callable[[], bool], what: str) -> int:
        """Ticks it took."""
        for number in range(MOST_TICKS):
            if is_so():
                return number
            await self.tick()
        raise AssertionError(f"not after {MOST_TICKS} ticks: {what}")

    async def bury(self) -> None:
        """Let go of what a killed process would lose by itself: tasks, threads, connections."""
        self.points.is_dead = True
        if self.plane is not None:
            await self.plane._orders.close()
            recorder = self.plane.recorder
            for pool in (recorder._writer, recorder._readers, recorder._desk_reader):
                pool.shutdown(wait=True)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, PlaneKilled):
                    await task
        if self.history is not None:
            self.history.close()
        self.plane = self.history = None  # type: ignore[assignment]

    def is_settled(self) -> bool:
        """Each worker is what is desired, and no command is under way."""
        roles = {row.worker_id: row.role for row in self.fleet.routes() if row.state == "ready"}
        return roles == dict(self.plane.desired.roles) and not self.plane.desk.unfinished

    def commands(self) -> list[Command]:
        """Of clients, oldest first, as the database has them."""
        return [each for each in reversed(self.history.commands("local", 99)) if each.who == ALICE.name]

    def ended(self, command: Command) -> bool:
        return self.history.command(command.command_id).state in ENDED  # type: ignore[union-attr]
