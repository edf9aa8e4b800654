"""Runs RayFleet in a process of its own, as the plane does, against a head that is up; prints what it saw as JSON.

A process of its own, because Ray reads its environment once: `python -m tests.integration.ray_fleet_scenario`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from control.errors import FleetError
from control.fleets import ray_fleet
from control.fleets.base import FleetStep, Observation
from control.settings import load_settings
from control.types.workers import Role, WorkerState

LIMIT_S = 60.0


class Scene:
    """A fleet, and a way to wait for what should come of it."""

    def __init__(self) -> None:
        self.fleet = ray_fleet.create(load_settings())
        self.changed = asyncio.Event()

    async def start(self) -> None:
        """As the plane does: again, until the node with the workers' slots has joined."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                try:
                    return await self.fleet.start(self.changed.set)
                except FleetError:
                    await asyncio.sleep(0.5)

    async def look(self) -> Observation:
        return await self.fleet.observe(time.time())

    async def until(self, condition: Callable[[Observation], bool]) -> Observation:
        async with asyncio.timeout(LIMIT_S):
            while not condition(seen := await self.look()):
                self.changed.clear()
                try:
                    async with asyncio.timeout(0.2):
                        await self.changed.wait()
                except TimeoutError:
                    continue
        return seen

    async def all_in(self, *states: WorkerState) -> Observation:
        def there(seen: Observation) -> bool:
            routes = self.fleet.routes()
            return len(routes) == 4 == len(seen.readings) and all(each.state in states for each in routes)

        return await self.until(there)

    def routes(self) -> list[dict[str, Any]]:
        return [asdict(each) for each in self.fleet.routes()]


def step(worker_id: str, verb: str, role: Role, fence: int) -> FleetStep:
    return FleetStep(verb=verb, worker_id=worker_id, role=role, fence=fence)


async def scenario() -> dict[str, Any]:
    told: dict[str, Any] = {}
    scene = Scene()
    await scene.start()
    told["before"] = [each.state for each in (await scene.all_in(WorkerState.UNASSIGNED)).readings]
    for index in range(4):
        await scene.fleet.apply(step(f"w{index}", "place", Role.DECODE if index else Role.PREFILL, 1))
    seen = await scene.all_in(WorkerState.READY)
    told["placed"] = scene.routes()
    told["devices_are_named"] = [each.device.name for each in seen.readings]
    told["old_fence"] = asdict(await scene.fleet.apply(step("w1", "flip", Role.PREFILL, 0)))
    told["stranger"] = asdict(await scene.fleet.apply(step("w9", "flip", Role.PREFILL, 2)))
    told["flip"] = asdict(await scene.fleet.apply(step("w1", "flip", Role.PREFILL, 2)))
    await scene.until(lambda _seen: scene.fleet.routes()[1].role == Role.PREFILL)
    told["flipped"] = scene.routes()
    os.kill(seen.readings[3].pid, signal.SIGKILL)
    await scene.until(lambda _seen: all(each.state == WorkerState.FAILED for each in scene.fleet.routes()[2:]))
    told["lost"] = scene.routes()
    await scene.all_in(WorkerState.READY, WorkerState.UNASSIGNED)
    seen = await scene.until(
        lambda seen: seen.lives[3].num_restarts > 0 and not any(each.problem for each in seen.lives)
    )
    told["restarted"] = scene.routes()
    told["lives"] = [asdict(each) for each in seen.lives]
    await scene.fleet.close()

    again = Scene()
    await again.start()
    await again.all_in(WorkerState.READY, WorkerState.UNASSIGNED)
    told["adopted"] = again.routes()
    await again.fleet.stop()
    return told


if __name__ == "__main__":
    print(json.dumps(asyncio.run(scenario())))
