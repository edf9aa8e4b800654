"""A foreign fleet whose workers are listed, and changed, by what steers it: a router, Ray Serve, Dynamo's connector.

As `AttachedFleet`, with the controller's list as the registry. Decided here: what an order needs to be allowed, that
each order is followed by a look (so that what was accepted and does not show is failed), and what is known of workers
without a metrics page. How a controller is asked is `steering`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import msgspec

from control.errors import ControlError
from control.facts import PoolFacts
from control.fleets.attached.attachment import Plan
from control.fleets.attached.engine_page import Counters, EnginePage, filled
from control.fleets.attached.fleet import AttachedFleet
from control.fleets.attached.ledger import Ledger
from control.fleets.attached.missing import missing_of
from control.fleets.attached.roster_watch import RosterWatch
from control.fleets.attached.scraper import SILENT_LOOKS
from control.fleets.attached.steering.roster import Member, Roster, Steering, targets_of
from control.fleets.attached.targets import RosterTargets, Target
from control.fleets.attached.types import Looks
from control.fleets.base import FleetStep, Observation, StepOutcome, WorkerLife
from control.types.fleet import Capability, Missing
from control.types.workers import Role, WorkerState
from engine.readings import MeterReading

#: Any of these, allowed, lets an order through.
NEEDS: Final = {
    "scale": {Capability.RESIZE},
    "flip": {Capability.FLIP, Capability.RESIZE},
    "drain": {Capability.DRAIN, Capability.RESIZE},
    "undrain": {Capability.DRAIN, Capability.RESIZE, Capability.FLIP},
}


class SteeredFleet(AttachedFleet):
    """`plan.source` is a RosterTargets, which this keeps up."""

    def __init__(self, plan: Plan, steering: Steering, now: Callable[[], float] = time.time) -> None:
        super().__init__(plan, now)
        assert isinstance(plan.source, RosterTargets)
        self.max_pool = plan.attachment.max_workers
        self.limit_s = plan.attachment.limit_s
        self._source = plan.source
        self._steering = steering
        self._roster = Roster()
        self._members: dict[str, Member] = {}
        self._ledgers: dict[str, Ledger] = {}  # of workers without a page
        self._listed_unix_s: float | None = None  # when the controller answered last
        self._watch = RosterWatch(steering, plan.source, plan.attachment.every_s, self._take)
        self._on_change: Callable[[], None] = lambda: None

    async def start(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        await self._watch.start()
        await super().start(on_change)

    def pools(self) -> Mapping[Role, PoolFacts]:
        """As the controller says, less those that it still lists as ready and whose own page has fallen silent."""
        silent = Counter(each.role for each in self._members.values() if self._is_silent(each))
        return {
            role: replace(pool, num_ready=pool.num_ready - silent[role], num_other=pool.num_other + silent[role])
            for role, pool in self._roster.pools.items()
        }

    def _is_silent(self, member: Member) -> bool:
        scraper = self.scrapers.get(member.worker_id)
        has_fallen = scraper is not None and scraper.page is not None and not scraper.is_alive
        return has_fallen and member.state is WorkerState.READY

    def looks(self) -> Looks:
        """As the controller lists them."""
        paged = super().looks()
        is_known = self._watch.num_failed < SILENT_LOOKS
        newest = max(paged.newest_unix_s or 0.0, self._listed_unix_s or 0.0) or None
        return Looks(
            num_workers=paged.num_workers + len(self._ledgers),
            num_answering=paged.num_answering + (len(self._ledgers) if is_known else 0),
            newest_unix_s=newest,
        )

    async def observe(self, now_unix_s: float) -> Observation:
        """As the pages say; role and state as the controller says."""
        seen = await super().observe(now_unix_s)
        readings = [_as_listed(each, self._members.get(each.worker_id)) for each in seen.readings]
        bare = [self._bare(name, ledger, now_unix_s) for name, ledger in self._ledgers.items()]
        version = self._roster.version
        return replace(
            seen,
            readings=(*readings, *(each for each in bare if each is not None)),
            lives=(
                *(replace(each, version=each.version or version) for each in seen.lives),
                *(WorkerLife(worker_id=name, version=version) for name in self._ledgers),
            ),
            is_listed=self._source.listed is not None,
        )

    def missing(self) -> tuple[Missing, ...]:
        told = {name: each.page for name, each in self._ledgers.items() if each.page and each.page.has_anything}
        return missing_of(self.plan, self._pages() | told, self._ledgers.keys() - told.keys())

    async def apply(self, step: FleetStep) -> StepOutcome:
        """Ask, then look at once: whoever accepts an order and shows another state has not obeyed."""
        if not self.capabilities & NEEDS.get(step.verb, set()):
            why = self.refusals.get(Capability.RESIZE.value, f"{step.verb} is not known here")
            return StepOutcome(accepted=False, detail=why, retry_helps=False)
        before = self._roster.pools.get(step.role)
        try:
            outcome = await self._steering.apply(step)
        except ControlError as error:
            return StepOutcome(accepted=False, detail=error.detail)
        await self._watch.look()
        pool = self._roster.pools.get(step.role)
        if outcome.accepted and step.verb == "scale" and pool and pool.target not in (None, step.size):
            detail = f"it was accepted, and the size it is set to is {pool.target}: not obeyed"
            if before is not None and pool.target != before.target:
                who = pool.rival or f"{pool.set_by or 'somebody else'} has set it to {pool.target}"
                detail = f"{who}: we stop"
            return StepOutcome(accepted=False, detail=detail, retry_helps=False)
        return outcome

    async def close(self) -> None:
        await self._watch.close()
        await super().close()

    def roles_now(self) -> dict[str, Role]:
        return {name: each.role for name, each in self._members.items()}

    def _take(self, roster: Roster) -> None:
        """A newer list."""
        self._roster = roster
        before = self._members
        self._members = {each.worker_id: each for each in self._roster.members}
        self._source.listed = targets_of(self._members.values())
        at_unix_s = self._listed_unix_s = self._now()
        bare = {name: each for name, each in self._members.items() if not each.metrics_url}
        self._ledgers = {name: self._ledger(each) for name, each in bare.items()}
        for name, each in bare.items():
            self._add(self._ledgers[name], each, at_unix_s)
        if {(m.worker_id, m.role, m.state) for m in before.values()} != {
            (m.worker_id, m.role, m.state) for m in self._members.values()
        }:
            self._on_change()

    def _filled(self, worker_id: str, page: EnginePage) -> EnginePage:
        member = self._members.get(worker_id)
        return page if member is None else filled(page, member.told)

    def _add(self, ledger: Ledger, member: Member, at_unix_s: float) -> None:
        """What is told of it. Once something was, nothing is not news of it."""
        if member.told.counters != Counters() or ledger.page is None or ledger.page.counters == Counters():
            ledger.add(member.told, member.role, at_unix_s if member.told_unix_s is None else member.told_unix_s)

    def _ledger(self, member: Member) -> Ledger:
        known = self._ledgers.get(member.worker_id)
        if known is not None:
            return known
        where = self.plan.attachment.controller.partition("=")[2]
        target = Target(worker_id=member.worker_id, url=where, role=member.role)
        return Ledger(self.plan.identity(target), self._cursors.get(member.worker_id))

    def _bare(self, name: str, ledger: Ledger, now_unix_s: float) -> MeterReading | None:
        member = self._members[name]
        is_known = self._watch.num_failed < SILENT_LOOKS
        state = member.state if is_known else WorkerState.FAILED
        reason = member.reason if is_known else self._source.problem
        return ledger.reading(now_unix_s, is_alive=is_known, state=state, reason=reason)


def _as_listed(reading: MeterReading, member: Member | None) -> MeterReading:
    """A page does not know whether its router sends anything here."""
    if member is None or not reading.alive:
        return reading
    if (reading.role, reading.state, reading.reason) == (member.role, member.state, member.reason):
        return reading
    return msgspec.structs.replace(reading, role=member.role, state=member.state, reason=member.reason)
