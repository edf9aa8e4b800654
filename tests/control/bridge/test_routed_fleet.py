"""A plane over an attached fleet that it may route: commands give roles, and what is not allowed is refused."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bridge_builders import FLEET
from fake_servers import FakeServer
from gateway_builders import until

from control.adoption import adopt
from control.bridge.bridge import Bridge
from control.errors import CommandRefused
from control.fleets.attached.attachment import plan_of
from control.fleets.attached.bridge_file import bridge_path
from control.fleets.attached.routed import RoutedFleet, fleet_of
from control.fleets.attached.types import Attachment, Permission
from control.fleets.fleet_token import fleet_token
from control.history.store import History
from control.lease import Lease, this_process
from control.plane import Plane
from control.settings import Settings
from control.types import Action, Capability, Command, CommandRequest, CommandState, Principal, Role, Verb, WorkerState

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


@contextlib.asynccontextmanager
async def site(folder: Path, *, with_bridge: bool = True) -> AsyncIterator[tuple[Attachment, dict[str, FakeServer]]]:
    """A vLLM pair, attached, with a bridge before it."""
    kept: dict[str, list[int]] = {}
    servers = {name: FakeServer(name=name, kept=kept) for name in ("p", "d")}
    for each in servers.values():
        await each.start()
    targets = (f"prefill:p={servers['p'].url}", f"decode:d={servers['d'].url}")
    told = Attachment(name=FLEET, kind="vllm", targets=targets, every_s=0.5, simulated=True)
    bridge = Bridge(
        told, plan_of(told).source, token=fleet_token(folder), path=bridge_path(folder, FLEET), encode=lambda _: []
    )
    run = asyncio.create_task(bridge.run()) if with_bridge else None
    try:
        yield told, servers
    finally:
        if run is not None:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
        for each in servers.values():
            await each.die()


def roles_of(plane: Plane) -> dict[str, tuple[Role, WorkerState]]:
    return {name: (each.role, each.state) for name, each in plane._facts().workers.items()}


async def done(plane: Plane, action: Action) -> Command:
    """Carried out, as a person would: with the word that the preview asks for."""
    word = (await plane.preview(CommandRequest(action=action))).needs_confirmation
    command = await plane.submit(CommandRequest(action=action, why="a test", confirmation=word), OPERATOR)
    await until(lambda: command.command_id not in plane.desk.unfinished, LIMIT_S)
    return await plane.command(command.command_id)


READY = {"p": (Role.PREFILL, WorkerState.READY), "d": (Role.DECODE, WorkerState.READY)}


async def test_a_flip_is_a_command_and_its_undo_brings_the_role_back(tmp_path: Path) -> None:
    async with site(tmp_path) as (told, _), plane_of(tmp_path, told, allowed(*ALL)) as plane:
        await until(lambda: roles_of(plane) == READY, LIMIT_S)
        table = plane.gateways.tables.current
        assert table is not None
        assert {each.worker_id: each.state for each in table.workers} == {"p": "ready", "d": "ready"}
        flipped = await done(plane, Action(verb=Verb.FLIP, worker_id="p", role=Role.MIXED))
        assert flipped.state is CommandState.DONE, flipped.result
        assert roles_of(plane)["p"] == (Role.MIXED, WorkerState.READY)
        undone = await done(plane, Action(verb=Verb.UNDO, command_id=flipped.command_id))
        assert undone.state is CommandState.DONE, undone.result
        assert roles_of(plane) == READY


async def test_roles_outlive_the_plane_that_gave_them(tmp_path: Path) -> None:
    async with site(tmp_path) as (told, _):
        async with plane_of(tmp_path, told, allowed(*ALL)) as plane:
            await until(lambda: roles_of(plane) == READY, LIMIT_S)
            assert (await done(plane, Action(verb=Verb.FLIP, worker_id="p", role=Role.MIXED))).state == "done"
        async with plane_of(tmp_path, told, allowed(*ALL), fence=2) as plane:
            await until(lambda: roles_of(plane).get("p") == (Role.MIXED, WorkerState.READY), LIMIT_S)
            assert plane.desired.roles == {"p": Role.MIXED, "d": Role.DECODE}


async def test_a_role_that_does_not_prove_itself_leaves_the_command_failed_in_words(tmp_path: Path) -> None:
    async with site(tmp_path) as (told, servers), plane_of(tmp_path, told, allowed(*ALL)) as plane:
        await until(lambda: roles_of(plane) == READY, LIMIT_S)
        for name in ("p", "d"):
            servers[name].loses_kv = True
        assert (await done(plane, Action(verb=Verb.FLIP, worker_id="p", role=Role.MIXED))).state == "done"
        action = Action(verb=Verb.FLIP, worker_id="p", role=Role.PREFILL)
        word = (await plane.preview(CommandRequest(action=action))).needs_confirmation
        command = await plane.submit(CommandRequest(action=action, confirmation=word), OPERATOR)
        unfinished = plane.desk.unfinished

        def is_told() -> bool:
            known = unfinished.get(command.command_id)
            return known is not None and any("canary" in step.text for step in known.steps)

        await until(is_told, LIMIT_S)
        assert roles_of(plane)["p"] == (Role.MIXED, WorkerState.READY)


async def test_without_the_permission_to_flip_it_only_routes(tmp_path: Path) -> None:
    async with site(tmp_path) as (told, _), plane_of(tmp_path, told, allowed(Capability.ROUTE)) as plane:
        await until(lambda: roles_of(plane) == READY, LIMIT_S)
        with pytest.raises(CommandRefused, match="phaseline allow prod flip"):
            await plane.submit(CommandRequest(action=Action(verb=Verb.FLIP, worker_id="p", role=Role.MIXED)), OPERATOR)
        weights = await done(plane, Action(verb=Verb.SET_ROUTING, weights={"d": 0.5}))
        assert weights.state is CommandState.DONE


async def test_while_no_bridge_runs_nothing_is_ready_and_it_says_how_to_start_one(tmp_path: Path) -> None:
    async with (
        site(tmp_path, with_bridge=False) as (told, _),
        plane_of(tmp_path, told, allowed(*ALL)) as plane,
    ):
        starting = {name: (role, WorkerState.STARTING) for name, (role, _) in READY.items()}
        await until(lambda: roles_of(plane) == starting, LIMIT_S)
        assert b"phaseline serve prod" in plane.snapshot_json()


def test_without_permission_to_route_it_is_observed_only(tmp_path: Path) -> None:
    told = Attachment(name=FLEET, kind="vllm", targets=("prefill:p=http://127.0.0.1:1",))
    assert not isinstance(fleet_of(plan_of(told), tmp_path), RoutedFleet)


async def test_a_plain_openai_server_is_attached_and_routed_as_mixed(tmp_path: Path) -> None:
    server = FakeServer(kind="openai", name="m")
    await server.start()
    told = Attachment(name=FLEET, kind="openai", targets=(f"mixed:m={server.url}",), every_s=0.5, simulated=True)
    bridge = Bridge(
        told, plan_of(told).source, token=fleet_token(tmp_path), path=bridge_path(tmp_path, FLEET), encode=lambda _: []
    )
    run = asyncio.create_task(bridge.run())
    async with plane_of(tmp_path, told, allowed(Capability.ROUTE)) as plane:
        await until(lambda: roles_of(plane) == {"m": (Role.MIXED, WorkerState.READY)}, LIMIT_S)
        assert plane.fleet.model_id == "tiny"
    run.cancel()
    await asyncio.gather(run, return_exceptions=True)
    await server.die()


def test_a_plain_server_has_no_other_role_than_mixed() -> None:
    with pytest.raises(CommandRefused, match="serves both phases"):
        plan_of(Attachment(name=FLEET, kind="openai", targets=("prefill:m=http://127.0.0.1:1",)))
