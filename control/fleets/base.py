"""The border between the plane and a serving system: observe, apply, and what it can do.

An adapter translates; it decides nothing. `SimFleet` is the fake of the same signature that ships with the product.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from control.facts import PoolFacts
from control.points import WorkerCursor
from control.types.fleet import Capability, Missing
from control.types.routing import WorkerRoute
from control.types.workers import Role
from engine.readings import DeviceReading, MeterReading

#: What changes workers; a fleet that can nothing of it is observed only.
ACTING = frozenset({Capability.ROUTE, Capability.RESIZE, Capability.FLIP, Capability.DRAIN})


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLife:
    """What only the orchestrator knows about one worker slot."""

    worker_id: str
    num_restarts: int = 0
    last_restart_reason: str = ""
    problem: str = ""  # why there is no worker in this slot; "" when there is one
    is_stopped: bool = False  # its process stands still (SIGSTOP, a debugger)
    is_outdated: bool = False  # its process runs other code, or was started with other settings, than this one
    version: str = ""  # of somebody else's engine, as it says it
    listed_role: Role | None = None  # of somebody else's engine, as its registry says it


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One look at a fleet. A node that did not answer is named in `problems`; its workers are absent, not zero."""

    at_unix_s: float
    readings: tuple[MeterReading, ...]
    devices: tuple[DeviceReading, ...] = ()
    lives: tuple[WorkerLife, ...] = ()
    problems: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()  # what others' engines do not say
    is_listed: bool = True  # who its workers are is known; False: who lists them has not answered yet


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStep:
    """One order for one worker, under a fencing version. Idempotent: it says what must hold, not what to change."""

    verb: str  # place | flip | drain | undrain; scale: of a pool without fixed workers
    worker_id: str
    role: Role
    fence: int
    reason: str = ""
    size: int | None = None  # scale: how many workers


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """accepted False: refused, with the reason, nothing changed. Completion is seen in a later observation."""

    accepted: bool
    detail: str = ""
    retry_helps: bool = True


class Fleet(Protocol):
    """A serving system under control."""

    fleet_id: str
    kind: str
    model_id: str
    simulated: bool
    capabilities: frozenset[Capability]

    async def prepare(self) -> None:
        """What a plane that stands by may do: load and connect, so that `start` is quick. Changes nothing."""

    async def start(self, on_change: Callable[[], None]) -> None:
        """Start or adopt the workers. `on_change` is called whenever a worker's state changes: tick at once."""

    async def observe(self, now_unix_s: float) -> Observation:
        """Read every worker's meter since the last observation. Never raises for one bad node."""

    async def apply(self, step: FleetStep) -> StepOutcome:
        """Give one order. Never raises: a refusal or a dead worker is an outcome."""

    def routes(self) -> tuple[WorkerRoute, ...]:
        """Where each known worker listens, with its latest role and state; weights are 1.0."""

    async def close(self) -> None:
        """Let go of the fleet without stopping it."""

    async def stop(self) -> None:
        """End the fleet's workers (only those this fleet started)."""


@runtime_checkable
class Resumable(Protocol):
    """A fleet that adds up its workers' counters itself, and goes on where the last plane was."""

    def resume(self, cursors: Mapping[str, WorkerCursor]) -> None:
        """Before `start`: what is counted of each worker."""


@runtime_checkable
class Foreign(Protocol):
    """A fleet that somebody else runs: others change it too, and we only as an operator has allowed."""

    @property
    def refusals(self) -> Mapping[str, str]:
        """Why what is not offered is not, by capability."""


@runtime_checkable
class Routed(Protocol):
    """A fleet of others' engines whose roles are ours to give, as every request comes through our gateways."""

    limit_s: float  # in which a command must be seen to hold
    sized_by: str  # what says how many engines there are, and as what a new one begins; "": nothing by itself

    @property
    def leaving(self) -> frozenset[str]:
        """Workers that the registry has no more, and that have work yet: they are drained."""

    def registered_roles(self) -> dict[str, Role]:
        """The roles to begin with, by worker; workers that are not in it are not of this fleet. Those that are leaving
        are, until they have left."""


def is_followed(fleet: Fleet) -> bool:
    """Others change it too: what is desired of it is what it is, but for commands under way."""
    return isinstance(fleet, Foreign) and not isinstance(fleet, Routed)


@runtime_checkable
class Steered(Foreign, Protocol):
    """A foreign fleet that is changed through what steers it. Orders are given only while a command is under way."""

    max_pool: int
    limit_s: float  # in which a command must be seen to hold

    def pools(self) -> Mapping[Role, PoolFacts]:
        """Those that have a size and no fixed workers; of other fleets none."""


def is_observed_only(fleet: Fleet) -> bool:
    """Nothing can be ordered of its workers: what is desired of it is what it is."""
    return not fleet.capabilities & ACTING
