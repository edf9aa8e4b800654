"""Who is in a fleet by the word of what steers it, and what can be asked of that. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from control.facts import PoolFacts
from control.fleets.attached.engine_page import EnginePage
from control.fleets.attached.targets import Target
from control.fleets.base import FleetStep, StepOutcome
from control.types.workers import Role, WorkerState


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One worker. `metrics_url`: of its own page; "" when it has none. `serve_url`: where it takes requests, if not
    there. `told`: what its controller says of its work, as of `told_unix_s` if not of this look."""

    worker_id: str
    role: Role
    state: WorkerState = WorkerState.READY
    reason: str = ""
    metrics_url: str = ""
    told: EnginePage = field(default_factory=EnginePage)
    has_own_id: bool = False  # its page says `worker_id`, so that another worker at its address is noticed
    told_unix_s: float | None = None
    serve_url: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Roster:
    """All workers at one look. `pools`: of a fleet whose pools have sizes and no fixed workers; else empty.

    `problem`: what is not known of them beside, and why.
    """

    members: tuple[Member, ...] = ()
    pools: Mapping[Role, PoolFacts] = field(default_factory=dict)
    version: str = ""
    problem: str = ""
    notes: tuple[str, ...] = ()  # what cannot be done, and why: for whoever attaches it


class Steering(Protocol):
    """What steers one fleet. Roles here are prefill, decode and mixed only."""

    async def look(self) -> Roster:
        """Raises FleetError when it does not answer, or says what cannot be understood."""

    async def apply(self, step: FleetStep) -> StepOutcome:
        """Ask for one change, and look whether it was obeyed where that shows at once. Raises FleetError."""

    async def close(self) -> None: ...


@runtime_checkable
class Permitted(Protocol):
    """What steers a fleet and says itself what it lets us do."""

    async def needs(self) -> tuple[str, ...]:
        """What is not permitted and would be needed; asking changes nothing. Raises FleetError."""


@runtime_checkable
class Watching(Protocol):
    """What steers a fleet and tells by itself when something there has changed."""

    async def changed(self) -> None:
        """Returns when a look would see something new."""


def targets_of(members: Iterable[Member]) -> tuple[Target, ...]:
    """Those that have a page of their own."""
    return tuple(
        Target(
            worker_id=each.worker_id,
            url=each.metrics_url,
            role=each.role,
            page_of=each.worker_id if each.has_own_id else "",
            serve_url=each.serve_url,
        )
        for each in members
        if each.metrics_url
    )
