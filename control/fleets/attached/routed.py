"""An attached fleet whose requests come through our gateway: its engines' roles are what we say, not what they are.

Decided here: where a worker's role and state come from (the bridge's word), which order needs which permission, the
roles to begin with (the registry's; a role that changes there later is told and not followed), and that an engine which
leaves the registry is of the fleet until its work has ended. Observation, counters and their epochs are
`AttachedFleet`'s; a registry that a controller keeps is `listing`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from control.fleets.attached.attachment import Plan
from control.fleets.attached.bridge_file import listed_path
from control.fleets.attached.bridged import BridgedWorkers
from control.fleets.attached.fleet import AttachedFleet
from control.fleets.attached.listing import Listing, held_back
from control.fleets.attached.permission import acting, not_allowed
from control.fleets.attached.steered import SteeredFleet
from control.fleets.attached.steering.controllers import open_steering, patience_s
from control.fleets.attached.steering.memory import Memory
from control.fleets.attached.targets import RosterTargets, Target
from control.fleets.base import FleetStep, Observation, StepOutcome
from control.fleets.fleet_token import fleet_token
from control.types.fleet import Capability
from control.types.routing import WorkerRoute
from control.types.workers import Role, WorkerState
from engine.readings import MeterReading

#: Any one of these allows the order; what is not here needs only that requests may be routed.
NEEDS: Final[Mapping[str, tuple[Capability, ...]]] = {
    "flip": (Capability.FLIP, Capability.RESIZE),
    "drain": (Capability.DRAIN,),
}


class RoutedFleet(AttachedFleet):
    """`bridged`: the way to the bridge, which may not run yet. `listing`: where a controller lists the engines."""

    def __init__(
        self,
        plan: Plan,
        bridged: BridgedWorkers,
        listing: Listing | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(plan, now)
        self.limit_s = plan.attachment.limit_s
        self.sized_by = plan.controller.kind if plan.controller is not None else ""
        self._bridged = bridged
        self._listing = listing
        self._roles: dict[str, Role] = {}  # as last heard
        self._first_roles: dict[str, Role] = {}  # as the registry had them when the engine came
        self._leaving: dict[str, Target] = {}

    @property
    def leaving(self) -> frozenset[str]:
        return frozenset(self._leaving)

    def registered_roles(self) -> dict[str, Role]:
        """As the registry has them: what to begin with."""
        return {each.worker_id: each.role for each in self._wanted().values()}

    async def start(self, on_change: Callable[[], None]) -> None:
        self._bridged.start(on_change)
        if self._listing is not None:
            await self._listing.start(on_change)
        await super().start(on_change)

    async def observe(self, now_unix_s: float) -> Observation:
        """The engines' pages, with the roles and states that the bridge tells."""
        seen = await super().observe(now_unix_s)
        problems = [*seen.problems, *filter(None, [self._bridged.problem]), *self._unfollowed()]
        return replace(seen, readings=tuple(self._as_bridged(each) for each in seen.readings), problems=tuple(problems))

    async def apply(self, step: FleetStep) -> StepOutcome:
        needed = NEEDS.get(step.verb, ())
        if step.worker_id in self._leaving:
            needed = ()  # whoever keeps the registry has said so
        if needed and not self.capabilities.intersection(needed):
            detail = not_allowed(self.plan.attachment, needed[0], self.plan.allowed).detail
            return StepOutcome(accepted=False, detail=detail, retry_helps=False)
        return await self._bridged.order(step)

    def routes(self) -> tuple[WorkerRoute, ...]:
        """As the bridge says; of weight 0 where a worker shall have nothing new by the word of its controller."""
        routes = self._bridged.routes()
        held = held_back(routes, self._unready)
        return tuple(replace(each, weight=0.0) if each.worker_id in held else each for each in routes)

    async def close(self) -> None:
        if self._listing is not None:
            await self._listing.close()
        await self._bridged.close()
        await super().close()

    async def _follow_registry(self) -> None:
        """What an engine does is counted in the role that it has here."""
        self._bridged.follow()
        await super()._follow_registry()
        for name, scraper in self.scrapers.items():
            role = self._bridged.role(name) or self._roles.get(name)
            if role is not None:
                self._roles[name] = role
                scraper.set_role(role)

    @property
    def _unready(self) -> Mapping[str, str]:
        return self._listing.unready if self._listing is not None else {}

    def _wanted(self) -> dict[str, Target]:
        """With those that have left the registry and work yet."""
        listed = super()._wanted()
        targets = {name: each.target for name, each in self.scrapers.items()}
        self._leaving = {
            name: target for name, target in targets.items() if name not in listed and self._bridged.has_work(name)
        }
        return {**listed, **self._leaving}

    def _unfollowed(self) -> list[str]:
        """Roles that were changed in the registry, and not by a command."""
        listed = super()._wanted()
        for name in self._first_roles.keys() - listed.keys():
            del self._first_roles[name]
        told = []
        for name, target in listed.items():
            first = self._first_roles.setdefault(name, target.role)
            if target.role not in (first, self._roles.get(name, first)):
                told.append(
                    f"the targets say {name} is {target.role} now; a routed fleet's roles are given by commands: "
                    f"`phaseline --fleet {self.fleet_id} flip {name} {target.role}`"
                )
        return told

    def _as_bridged(self, reading: MeterReading) -> MeterReading:
        route = self._bridged.route(reading.worker_id)
        if route is None:
            reason = self._bridged.reason(reading.worker_id) or "the bridge has not said anything of it yet"
            state = WorkerState.FAILED if reading.state is WorkerState.FAILED else WorkerState.STARTING
            return msgspec.structs.replace(reading, state=state, reason=reading.reason or reason)
        return msgspec.structs.replace(
            reading,
            role=reading.role if route.state is WorkerState.FAILED else route.role,
            state=route.state,
            fence=self._bridged.fence(reading.worker_id),
            reason=reading.reason
            or self._bridged.reason(reading.worker_id)
            or self._unready.get(reading.worker_id, ""),
        )


def fleet_of(plan: Plan, run_dir: Path, memory: Memory | None = None) -> AttachedFleet:
    """Routed, where an operator has allowed that; else steered, where it has a controller. Raises SettingsError."""
    told = plan.attachment
    if Capability.ROUTE in acting(told, plan.allowed):
        bridged = BridgedWorkers(run_dir, told.name, fleet_token(run_dir), simulated=told.simulated)
        return RoutedFleet(plan, bridged, _listing_of(plan, run_dir, memory))
    if plan.controller is not None:
        return SteeredFleet(plan, open_steering(plan.controller, memory))
    return AttachedFleet(plan)


def _listing_of(plan: Plan, run_dir: Path, memory: Memory | None) -> Listing | None:
    if plan.controller is None:
        return None
    assert isinstance(plan.source, RosterTargets)
    return Listing(
        open_steering(plan.controller, memory),
        plan.source,
        listed_path(run_dir, plan.attachment),
        every_s=plan.attachment.every_s,
        patience_s=patience_s(plan.controller),
    )
