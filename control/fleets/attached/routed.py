"""An attached fleet whose requests come through our gateway: its engines' roles are what we say, not what they are.

Decided here: where a worker's role and state come from (the bridge's word), which order needs which permission, and the
roles to begin with (the registry's). Observation, counters and their epochs are `AttachedFleet`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from control.fleets.attached.attachment import Plan
from control.fleets.attached.bridged import BridgedWorkers
from control.fleets.attached.fleet import AttachedFleet
from control.fleets.attached.permission import acting, not_allowed
from control.fleets.attached.steered import SteeredFleet
from control.fleets.attached.steering.controllers import open_steering
from control.fleets.attached.steering.memory import Memory
from control.fleets.base import FleetStep, Observation, StepOutcome
from control.fleets.fleet_token import fleet_token
from control.types import Capability, Role, WorkerRoute, WorkerState
from engine.readings import MeterReading

#: Any one of these allows the order; what is not here needs only that requests may be routed.
NEEDS: Final[Mapping[str, tuple[Capability, ...]]] = {
    "flip": (Capability.FLIP, Capability.RESIZE),
    "drain": (Capability.DRAIN,),
}


class RoutedFleet(AttachedFleet):
    """`bridged`: the way to the bridge, which may not run yet."""

    def __init__(self, plan: Plan, bridged: BridgedWorkers, now: Callable[[], float] = time.time) -> None:
        super().__init__(plan, now)
        self._bridged = bridged
        self._roles: dict[str, Role] = {}  # as last heard

    def registered_roles(self) -> dict[str, Role]:
        """As the registry has them: what to begin with."""
        return {each.worker_id: each.role for each in self.plan.source.targets()}

    async def start(self, on_change: Callable[[], None]) -> None:
        self._bridged.start(on_change)
        await super().start(on_change)

    async def observe(self, now_unix_s: float) -> Observation:
        """The engines' pages, with the roles and states that the bridge tells."""
        seen = await super().observe(now_unix_s)
        problem = (self._bridged.problem,) if self._bridged.problem else ()
        return replace(
            seen, readings=tuple(self._as_bridged(each) for each in seen.readings), problems=(*seen.problems, *problem)
        )

    async def apply(self, step: FleetStep) -> StepOutcome:
        needed = NEEDS.get(step.verb, ())
        if needed and not self.capabilities.intersection(needed):
            detail = not_allowed(self.plan.attachment, needed[0]).detail
            return StepOutcome(accepted=False, detail=detail, retry_helps=False)
        return await self._bridged.order(step)

    def routes(self) -> tuple[WorkerRoute, ...]:
        return self._bridged.routes()

    async def close(self) -> None:
        await self._bridged.close()
        await super().close()

    async def _follow_registry(self) -> None:
        """What an engine does is counted in the role that it has here."""
        await super()._follow_registry()
        self._bridged.follow()
        for name, scraper in self.scrapers.items():
            role = self._bridged.role(name) or self._roles.get(name)
            if role is not None:
                self._roles[name] = role
                scraper.set_role(role)

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
            reason=reading.reason or self._bridged.reason(reading.worker_id),
        )


def fleet_of(plan: Plan, run_dir: Path, memory: Memory | None = None) -> AttachedFleet:
    """Steered, where it has a controller; routed, where an operator has allowed that. Raises SettingsError."""
    told = plan.attachment
    if plan.controller is not None:
        return SteeredFleet(plan, open_steering(plan.controller, memory))
    if Capability.ROUTE not in acting(told, plan.allowed):
        return AttachedFleet(plan)
    return RoutedFleet(plan, BridgedWorkers(run_dir, told.name, fleet_token(run_dir), simulated=told.simulated))
