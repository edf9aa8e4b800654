"""A plane over an attached fleet that it may route: commands give roles, and what is not allowed is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from bridge_builders import FLEET
from fake_servers import FakeServer
from gateway_builders import until
from routed_builders import ALL, LIMIT_S, OPERATOR, allowed, done, plane_of, roles_of

from control.bridge.bridge import Bridge
from control.errors import CommandRefused
from control.fleets.attached.attachment import plan_of
from control.fleets.attached.bridge_file import bridge_path
from control.fleets.attached.routed import RoutedFleet, fleet_of
from control.fleets.attached.types import Attachment
from control.fleets.fleet_token import fleet_token
from control.history.store import History
from control.types.commands import Action, Command, CommandRequest, CommandState, Verb
from control.types.fleet import Capability
from control.types.workers import Role, WorkerState


def write_targets(file: Path, **engines: tuple[str, FakeServer]) -> None:
    """Role and server by name, as Prometheus has them."""
    groups = [
        {"targets": [server.url.removeprefix("http://")], "labels": {"role": role, "worker_id": name}}
        for name, (role, server) in engines.items()
    ]
    scratch = file.with_suffix(".new")
    scratch.write_text(json.dumps(groups))
    scratch.replace(file)


@contextlib.asynccontextmanager
async def site(folder: Path, *, with_bridge: bool = True) -> AsyncIterator[tuple[Attachment, dict[str, FakeServer]]]:
    """A vLLM pair, attached, with a bridge before it."""
    kept: dict[str, list[int]] = {}
    servers = {name: FakeServer(name=name, kept=kept) for name in ("p", "d")}
    for each in servers.values():
        await each.start()
    file = folder / "targets.json"
    write_targets(file, p=("prefill", servers["p"]), d=("decode", servers["d"]))
    told = Attachment(name=FLEET, kind="vllm", targets_file=str(file), every_s=0.5, simulated=True)
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


async def test_a_flip_whose_canary_fails_is_told_and_taken_back(tmp_path: Path) -> None:
    async with site(tmp_path) as (told, servers), plane_of(tmp_path, told, allowed(*ALL)) as plane:
        await until(lambda: roles_of(plane) == READY, LIMIT_S)
        for name in ("p", "d"):
            servers[name].loses_kv = True
        assert (await done(plane, Action(verb=Verb.FLIP, worker_id="p", role=Role.MIXED))).state == "done"
        failed = await done(plane, Action(verb=Verb.FLIP, worker_id="p", role=Role.PREFILL))
        assert failed.state is CommandState.FAILED
        assert "canary" in failed.result
        assert "taken back" in failed.result
        await until(lambda: plane.desired.roles["p"] is Role.MIXED and not plane.desk.unfinished, LIMIT_S)
        assert roles_of(plane)["p"] == (Role.MIXED, WorkerState.READY)
        undo, flip = (await plane.commands(2, None))[:2]
        assert (undo.who, undo.undo_of, undo.state) == ("phaseline", flip.command_id, CommandState.DONE)
        assert (flip.command_id, flip.undone_by) == (failed.command_id, undo.command_id)


async def test_a_failed_flip_that_a_plane_died_before_taking_back_is_taken_back_by_the_next(tmp_path: Path) -> None:
    async with site(tmp_path) as (told, _):
        async with plane_of(tmp_path, told, allowed(*ALL)) as plane:
            await until(lambda: roles_of(plane) == READY, LIMIT_S)
            before = plane.desired
        after = replace(before, version=before.version + 1, roles={**before.roles, "p": Role.MIXED})
        with contextlib.closing(History.open(f"sqlite:///{tmp_path}/history.db")) as history:
            flip = Action(verb=Verb.FLIP, worker_id="p", role=Role.MIXED)
            recorded = history.record_command(
                replace(plain_command(flip), base_version=before.version, version_after=after.version,
                        desired_before=before, desired_after=after)
            )  # fmt: skip
            history.update_command(recorded.command_id, CommandState.FAILED, None, "the canary failed")
        async with plane_of(tmp_path, told, allowed(*ALL), fence=2) as plane:
            await until(lambda: plane.desired.roles["p"] is Role.PREFILL, LIMIT_S)
            await until(lambda: roles_of(plane) == READY, LIMIT_S)
            assert (await plane.command(recorded.command_id)).undone_by is not None


def plain_command(action: Action) -> Command:
    now = time.time()
    return Command(
        command_id=0, fleet_id=FLEET, action=action, state=CommandState.ACCEPTED, who="ann", why="", base_version=0,
        idempotency_key="", version_after=0, created_unix_s=now, updated_unix_s=now,
    )  # fmt: skip


async def test_a_flip_that_a_plane_left_half_way_is_ended_by_the_next(tmp_path: Path) -> None:
    async with site(tmp_path) as (told, _):
        async with plane_of(tmp_path, told, allowed(*ALL)) as plane:
            await until(lambda: roles_of(plane) == READY, LIMIT_S)
            action = Action(verb=Verb.FLIP, worker_id="p", role=Role.MIXED)
            word = (await plane.preview(CommandRequest(action=action))).needs_confirmation
            command = await plane.submit(CommandRequest(action=action, confirmation=word), OPERATOR)
        async with plane_of(tmp_path, told, allowed(*ALL), fence=2) as plane:
            await until(lambda: command.command_id not in plane.desk.unfinished, LIMIT_S)
            assert (await plane.command(command.command_id)).state is CommandState.DONE
            assert roles_of(plane)["p"] == (Role.MIXED, WorkerState.READY)


async def test_a_flip_whose_engine_dies_is_taken_back_and_the_engine_comes_back_as_it_was(tmp_path: Path) -> None:
    async with (
        site(tmp_path) as (told, servers),
        plane_of(tmp_path, replace(told, limit_s=2.0), allowed(*ALL)) as plane,
    ):
        await until(lambda: roles_of(plane) == READY, LIMIT_S)
        await servers["p"].die()
        failed = await done(plane, Action(verb=Verb.FLIP, worker_id="p", role=Role.MIXED))
        assert failed.state is CommandState.FAILED
        assert "taken back" in failed.result
        await until(lambda: plane.desired.roles["p"] is Role.PREFILL, LIMIT_S)
        await servers["p"].start()
        await until(lambda: roles_of(plane) == READY, LIMIT_S)


async def test_an_engine_that_comes_to_the_targets_gets_its_role_and_one_that_goes_is_drained(tmp_path: Path) -> None:
    file = tmp_path / "targets.json"
    async with site(tmp_path) as (told, servers), plane_of(tmp_path, told, allowed(Capability.ROUTE)) as plane:
        await until(lambda: roles_of(plane) == READY, LIMIT_S)
        servers["m"] = FakeServer(name="m")
        await servers["m"].start()
        pair = {"p": ("prefill", servers["p"]), "d": ("decode", servers["d"])}
        write_targets(file, **pair, m=("mixed", servers["m"]))
        await until(lambda: roles_of(plane) == {**READY, "m": (Role.MIXED, WorkerState.READY)}, LIMIT_S)
        assert plane.gateways.tables.current is not None
        assert {each.worker_id for each in plane.gateways.tables.current.workers} == {"p", "d", "m"}
        write_targets(file, **pair)
        await until(lambda: plane.desired.roles.keys() == {"p", "d"}, LIMIT_S)
        await until(lambda: {each.worker_id for each in plane.gateways.tables.current.workers} == {"p", "d"}, LIMIT_S)
        newest = (await plane.commands(2, None))[:2]
        assert [each.why for each in newest] == ["the targets no longer list m", "the targets list m too"]


async def test_a_role_that_changes_in_the_targets_is_told_and_not_followed(tmp_path: Path) -> None:
    async with site(tmp_path) as (told, servers), plane_of(tmp_path, told, allowed(*ALL)) as plane:
        await until(lambda: roles_of(plane) == READY, LIMIT_S)
        write_targets(tmp_path / "targets.json", p=("mixed", servers["p"]), d=("decode", servers["d"]))
        await until(lambda: b"the targets say p is mixed now" in plane.snapshot_json(), LIMIT_S)
        assert roles_of(plane) == READY
        assert (await done(plane, Action(verb=Verb.FLIP, worker_id="p", role=Role.MIXED))).state is CommandState.DONE
        await until(lambda: b"the targets say p is mixed now" not in plane.snapshot_json(), LIMIT_S)


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


async def test_an_engine_that_comes_back_and_fails_its_canary_is_told_while_the_other_stands_in(tmp_path: Path) -> None:
    async with site(tmp_path) as (told, servers), plane_of(tmp_path, told, allowed(*ALL)) as plane:
        await until(lambda: roles_of(plane) == READY, LIMIT_S)
        await servers["d"].die()
        await until(lambda: roles_of(plane)["p"] == (Role.MIXED, WorkerState.READY), LIMIT_S)
        servers["d"].loses_kv = True
        await servers["d"].start()
        await until(lambda: b"the canary as decode failed: KV load failure" in plane.snapshot_json(), LIMIT_S)
        assert roles_of(plane) == {"p": (Role.MIXED, WorkerState.READY), "d": (Role.DECODE, WorkerState.UNASSIGNED)}
