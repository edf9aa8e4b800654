"""Stops a real worker's process in the middle of a step, under a RayFleet in this process; prints what became of it.

A process of its own, because Ray reads its environment once: `python -m tests.integration.hung_worker_scenario`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from dataclasses import asdict
from typing import Any

from control.fleets.base import FleetStep
from control.fleets.fleet_token import fleet_token
from control.settings import load_settings
from control.types.workers import Role, WorkerState
from engine.connection import connect
from engine.types import SamplingParams, WorkKind
from engine.wire import Hello, Submit
from tests.integration.ray_fleet_scenario import Scene


async def keep_busy(address: str, token: str) -> None:
    """Work for many steps; nobody reads the answers."""
    connection = await connect(address, Hello("test", "gateway", token))
    sampling = SamplingParams(max_tokens=100, ignore_eos=True)
    for number in range(32):
        connection.send(Submit(f"r{number}", 1, WorkKind.LOCAL, [number + 1] * 8, 8, sampling))


async def stop_in_a_step(scene: Scene, token: str) -> int:
    """The process that was stopped, with a step running."""
    while True:
        (reading,) = (await scene.look()).readings
        await keep_busy(reading.address, token)
        os.kill(reading.pid, signal.SIGSTOP)
        (stopped,) = (await scene.look()).readings
        if stopped.step_running_s is not None:
            return reading.pid
        os.kill(reading.pid, signal.SIGCONT)


async def scenario() -> dict[str, Any]:
    told: dict[str, Any] = {}
    scene = Scene()
    token = fleet_token(load_settings().run_dir)
    await scene.start()
    ready = (WorkerState.UNASSIGNED, WorkerState.READY)
    await scene.until(lambda seen: [each.state in ready for each in seen.readings] == [True])
    await scene.until(lambda _seen: [each.worker_id for each in scene.fleet.routes()] == ["w0"])
    placed = await scene.fleet.apply(FleetStep(verb="place", worker_id="w0", role=Role.MIXED, fence=1))
    assert placed.accepted, placed.detail
    await scene.until(lambda _seen: [each.state for each in scene.fleet.routes()] == [WorkerState.READY])
    stopped = await stop_in_a_step(scene, token)
    seen = await scene.until(lambda seen: seen.lives[0].num_restarts > 0 and not seen.lives[0].problem)
    told["life"] = asdict(seen.lives[0])
    seen = await scene.until(lambda seen: [each.state for each in seen.readings] == [WorkerState.UNASSIGNED])
    told["is_another"] = seen.readings[0].pid != stopped
    try:
        os.kill(stopped, 0)
    except ProcessLookupError:
        told["has_ended"] = True
    await scene.fleet.stop()
    return told


if __name__ == "__main__":
    print(json.dumps(asyncio.run(scenario())))
