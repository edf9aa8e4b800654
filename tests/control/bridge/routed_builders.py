"""A plane over engines of others that it may route, and what a person does there: commands, and looking at roles."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

from gateway_builders import until

from control.adoption import adopt
from control.fleets.attached.attachment import plan_of
from control.fleets.attached.routed import fleet_of
from control.fleets.attached.types import Attachment, Permission
from control.history.store import History
from control.lease import Lease, this_process
from control.plane import Plane
from control.settings import Settings
from control.types.api import Principal
from control.types.commands import Action, Command, CommandRequest
from control.types.fleet import Capability
from control.types.workers import Role, WorkerState

OPERATOR = Principal(name="ann", role="operator")
LIMIT_S = 120.0  # of a busy machine
ALL = (Capability.ROUTE, Capability.FLIP, Capability.DRAIN, Capability.RESIZE)


def allowed(*capabilities: Capability) -> tuple[Permission, ...]:
    return tuple(Permission(capability=each, who="ann", at_unix_s=1.0) for each in capabilities)


@contextlib.asynccontextmanager
async def plane_of(folder: Path, told: Attachment, may: tuple[Permission, ...], fence: int = 1) -> AsyncIterator[Plane]:
    history = History.open(f"sqlite:///{folder}/history.db")
    now = time.time()
    lease = Lease(holder=this_process(""), fence=fence, taken_unix_s=now, expires_unix_s=now + 3600)
    settings = Settings(run_dir=folder, fleet_id="local", tick_s=0.1)
    plane = await adopt(fleet_of(plan_of(told, may), folder), history, settings, lease)
    run = asyncio.create_task(plane.run())
    try:
        yield plane
    finally:
        await plane.close()
        await asyncio.gather(run, return_exceptions=True)
        history.close()


def roles_of(plane: Plane) -> dict[str, tuple[Role, WorkerState]]:
    return {name: (each.role, each.state) for name, each in plane._observer.facts().workers.items()}


async def done(plane: Plane, action: Action) -> Command:
    """Carried out, as a person would: with the word that the preview asks for."""
    word = (await plane.preview(CommandRequest(action=action))).needs_confirmation
    command = await plane.submit(CommandRequest(action=action, why="a test", confirmation=word), OPERATOR)
    await until(lambda: command.command_id not in plane.desk.unfinished, LIMIT_S)
    return await plane.command(command.command_id)
