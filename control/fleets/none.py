"""No fleet of our own: for a plane that only looks at attached ones."""

from __future__ import annotations

from collections.abc import Callable

from control.fleets.base import FleetStep, Observation, StepOutcome
from control.settings import Settings
from control.types.fleet import Capability
from control.types.routing import WorkerRoute


class NoFleet:
    """Implements `control.fleets.base.Fleet` with no worker."""

    kind = "none"
    simulated = False
    capabilities = frozenset({Capability.OBSERVE})

    def __init__(self, fleet_id: str) -> None:
        self.fleet_id = fleet_id
        self.model_id = ""

    async def prepare(self) -> None:
        """Nothing to load."""

    async def start(self, on_change: Callable[[], None]) -> None:
        """Nothing to start."""

    async def observe(self, now_unix_s: float) -> Observation:
        return Observation(at_unix_s=now_unix_s, readings=())

    async def apply(self, step: FleetStep) -> StepOutcome:
        return StepOutcome(accepted=False, detail="there is no fleet of our own", retry_helps=False)

    def routes(self) -> tuple[WorkerRoute, ...]:
        return ()

    async def close(self) -> None:
        """Nothing to let go of."""

    async def stop(self) -> None:
        """Nothing to end."""


def create(settings: Settings) -> NoFleet:
    return NoFleet(settings.fleet_id)
