"""The plane's end of a bridge (`control.bridge`): orders to the engines of an attached fleet, and the roles they have.

Decided here: what is known while no bridge runs. The bridge gives roles and drains; the plane says which.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from control.fleets.attached.bridge_file import BridgeFile, bridge_path, read_bridge
from control.fleets.base import FleetStep, StepOutcome
from control.fleets.worker_link import WorkerLink
from control.types.routing import WorkerRoute
from control.types.workers import Role, WorkerState


class BridgedWorkers:
    """Links to the workers of one fleet's bridge, as its file says where they are."""

    def __init__(self, run_dir: Path, fleet_id: str, token: str, *, simulated: bool = False) -> None:
        self.problem = _away(fleet_id)
        self._path = bridge_path(run_dir, fleet_id)
        self._fleet_id = fleet_id
        self._token = token
        self._simulated = simulated
        self._links: dict[str, WorkerLink] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._fences: dict[str, int] = {}
        self._reasons: dict[str, str] = {}
        self._stamp = 0, 0
        self._file: BridgeFile | None = None
        self._on_change: Callable[[], None] = lambda: None

    def start(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self.follow()

    def follow(self) -> None:
        """Look where the bridge is now."""
        try:
            found = self._path.stat()
            stamp = found.st_ino, found.st_mtime_ns  # two writes may have one time, and never one inode
        except OSError:
            stamp = 0, 0
        if stamp != self._stamp:
            self._stamp, self._file = stamp, read_bridge(self._path)
        bridge = self._file
        self.problem = "" if bridge and bridge.is_alive else _away(self._fleet_id)
        if self.problem or bridge is None:
            return
        for worker_id in self._links.keys() - {each.worker_id for each in bridge.workers}:
            self._forget(worker_id)
        for each in bridge.workers:
            self._reasons[each.worker_id] = each.problem
            if each.worker_id not in self._links:
                self._links[each.worker_id] = WorkerLink(
                    each.worker_id,
                    self._token,
                    on_change=self._on_change,
                    on_lost=lambda _worker_id, _reason: None,
                    simulated=self._simulated,
                )
            if each.epoch:
                self._links[each.worker_id].aim(each.address, each.epoch)

    def _forget(self, worker_id: str) -> None:
        """The bridge has it no more."""
        closing = asyncio.get_running_loop().create_task(self._links.pop(worker_id).close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)
        self._fences.pop(worker_id, None)
        self._reasons.pop(worker_id, None)
        self._on_change()

    def has_work(self, worker_id: str) -> bool:
        """It serves, or drains: not all that was sent there has ended for certain."""
        route = self.route(worker_id)
        return route is not None and route.state in (WorkerState.READY, WorkerState.DRAINING)

    def route(self, worker_id: str) -> WorkerRoute | None:
        """Role and state by the bridge's word; None: it has said nothing yet, or none runs."""
        link = self._links.get(worker_id)
        return None if link is None or self.problem else link.route

    def fence(self, worker_id: str) -> int:
        """Of the newest order that was taken."""
        return self._fences.get(worker_id, 0)

    def reason(self, worker_id: str) -> str:
        """Why the bridge does not reach this engine; "" when it does."""
        return self.problem or self._reasons.get(worker_id, "")

    def routes(self) -> tuple[WorkerRoute, ...]:
        found = (link.route for link in self._links.values())
        return tuple(each for each in found if each is not None)

    def role(self, worker_id: str) -> Role | None:
        route = self.route(worker_id)
        if route is None or route.role is Role.UNASSIGNED or route.state is WorkerState.FAILED:
            return None
        return route.role

    async def order(self, step: FleetStep) -> StepOutcome:
        link = self._links.get(step.worker_id)
        if self.problem or link is None:
            detail = self.problem or f"the bridge does not know {step.worker_id}"
            return StepOutcome(accepted=False, detail=detail)
        outcome = await link.order(step)
        if outcome.accepted:
            self._fences[step.worker_id] = step.fence
        return outcome

    async def close(self) -> None:
        await asyncio.gather(*(link.close() for link in self._links.values()), *self._closing)
        self._links = {}


def _away(fleet_id: str) -> str:
    return f"no bridge runs: `phaseline serve {fleet_id}` starts it"
