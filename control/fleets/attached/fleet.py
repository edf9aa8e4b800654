"""A fleet of engines that somebody else runs, seen through their metrics pages. What was not allowed is refused.

Implements `control.fleets.base.Fleet`. Each engine is looked at by a scraper of its own, at its own pace; an
observation only collects what is known, so that no target, however slow or hostile, delays a tick.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping

import httpx

from control.fleets.attached.attachment import Plan
from control.fleets.attached.clients import own_client
from control.fleets.attached.dialects import DIALECTS
from control.fleets.attached.engine_page import EnginePage
from control.fleets.attached.gpu_watch import GpuWatch
from control.fleets.attached.ledger import Ledger
from control.fleets.attached.missing import missing_of
from control.fleets.attached.permission import acting, not_allowed
from control.fleets.attached.scraper import Scraper
from control.fleets.attached.targets import Target
from control.fleets.attached.types import Looks
from control.fleets.base import FleetStep, Observation, StepOutcome, WorkerLife
from control.points import WorkerCursor
from control.types.fleet import Capability, Missing
from control.types.routing import WorkerRoute
from control.types.workers import Role


class AttachedFleet:
    """`plan` says what to look at. The registry is asked at each observation, so a watched file is followed."""

    def __init__(self, plan: Plan, now: Callable[[], float] = time.time) -> None:
        self.plan = plan
        self.fleet_id = plan.attachment.name
        self.kind = plan.attachment.kind
        self.capabilities = acting(plan.attachment, plan.allowed)
        self.simulated = plan.attachment.simulated
        self.model_id = ""  # as the engines say it, once they do
        self.scrapers: dict[str, Scraper] = {}
        self._gpus = GpuWatch(plan.exporters, plan.attachment.every_s, now)
        self._now = now
        self._client: httpx.AsyncClient | None = None
        self._cursors: Mapping[str, WorkerCursor] = {}

    async def prepare(self) -> None:
        """Nothing to load."""

    def resume(self, cursors: Mapping[str, WorkerCursor]) -> None:
        """Engines that the last plane looked at go on from there: what they did meanwhile is counted."""
        self._cursors = cursors

    async def start(self, on_change: Callable[[], None]) -> None:
        """Begin to look. What cannot be reached is a problem of its worker, not of the fleet."""
        self._client = own_client()
        self._gpus.start(self._client)
        await self._follow_registry()

    async def observe(self, now_unix_s: float) -> Observation:
        """What the scrapers know. An engine that was never reached is a slot with a problem, not a zero."""
        await self._follow_registry()
        readings = [each.reading(now_unix_s) for each in self.scrapers.values()]
        lives = [
            WorkerLife(
                worker_id=name,
                problem=each.problem if each.page is None else "",
                version=each.version,
                listed_role=each.target.role,
            )
            for name, each in self.scrapers.items()
        ]
        names = {each.page.model_id for each in self.scrapers.values() if each.page is not None}
        self.model_id = ", ".join(sorted(names - {""})) or self.model_id
        problem = self.plan.source.problem
        return Observation(
            at_unix_s=now_unix_s,
            readings=tuple(each for each in readings if each is not None),
            devices=self._gpus.readings(self.roles_now(), self.plan.gpus_said(), now_unix_s),
            lives=tuple(lives),
            problems=(*((problem,) if problem else ()), *self._gpus.problems),
            missing=self.missing(),
        )

    def looks(self) -> Looks:
        """How the looking goes."""
        seen = [each.ledger.seen_unix_s for each in self.scrapers.values() if each.page is not None]
        alive = sum(each.is_alive for each in self.scrapers.values())
        return Looks(num_workers=len(self.scrapers), num_answering=alive, newest_unix_s=max(seen, default=None))

    def missing(self) -> tuple[Missing, ...]:
        """What its engines do not say."""
        return missing_of(self.plan, self._pages())

    def _pages(self) -> dict[str, EnginePage]:
        """The newest of each engine that was ever reached."""
        return {name: each.page for name, each in self.scrapers.items() if each.page is not None}

    @property
    def refusals(self) -> Mapping[str, str]:
        told, may = self.plan.attachment, self.plan.allowed
        return {each.value: not_allowed(told, each, may).detail for each in Capability if each not in self.capabilities}

    async def apply(self, step: FleetStep) -> StepOutcome:
        return StepOutcome(accepted=False, detail=f"fleet {self.fleet_id} is observed only", retry_helps=False)

    def routes(self) -> tuple[WorkerRoute, ...]:
        """None: nobody routes through us to these engines."""
        return ()

    async def close(self) -> None:
        """Stop looking. The engines do not notice."""
        await asyncio.gather(self._gpus.stop(), *(each.stop() for each in self.scrapers.values()))
        self.scrapers = {}
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def stop(self) -> None:
        """These engines are not ours to end."""
        await self.close()

    def roles_now(self) -> dict[str, Role]:
        """By worker, now."""
        return {name: each.target.role for name, each in self.scrapers.items()}

    async def _follow_registry(self) -> None:
        """Begin with engines that are new, end with those that have left, and tell the others their role."""
        if self._client is None:
            return
        wanted = self._wanted()
        gone = [n for n, each in self.scrapers.items() if n not in wanted or wanted[n].url != each.target.url]
        await asyncio.gather(*(self.scrapers.pop(name).stop() for name in gone))
        for name, target in wanted.items():
            if name in self.scrapers:
                self.scrapers[name].set_role(target.role)
            else:
                self.scrapers[name] = self._scraper(target)
                self.scrapers[name].start()

    def _wanted(self) -> dict[str, Target]:
        """Who is looked at."""
        return {each.worker_id: each for each in self.plan.source.targets()}

    def _scraper(self, target: Target) -> Scraper:
        return Scraper(
            target,
            Ledger(self.plan.identity(target), self._cursors.get(target.worker_id)),
            DIALECTS[self.kind],
            every_s=self.plan.attachment.every_s,
            token_file=self.plan.token_file,
            fill=lambda page: self._filled(target.worker_id, page),
            now=self._now,
        )

    def _filled(self, worker_id: str, page: EnginePage) -> EnginePage:
        """With what is known of this engine from elsewhere: here nothing."""
        return page
