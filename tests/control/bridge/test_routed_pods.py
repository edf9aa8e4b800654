"""A plane and a bridge over engines that a fake Kubernetes API server lists: pods come, go, and flip by our word."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from bridge_builders import FLEET
from fake_servers import FakeServer
from gateway_builders import until
from routed_builders import ALL, LIMIT_S, allowed, done, plane_of, roles_of

from control.bridge.bridge import Bridge
from control.bridge.serve import source_of
from control.fleets.attached.bridge_file import bridge_path
from control.fleets.attached.types import Attachment
from control.fleets.fleet_token import fleet_token
from control.plane import Plane
from control.settings import Settings
from control.types.commands import Action, CommandRequest, CommandState, Verb
from control.types.workers import Role, WorkerState
from tests.control.attached.fake_kubernetes import FakeKubernetes, serving, write_kubeconfig
from tests.control.attached.fake_pods import add_engine, go_away, set_ready, terminate

MIXED = Role.MIXED, WorkerState.READY
PREFILL = Role.PREFILL, WorkerState.READY


@dataclass(slots=True)
class Pods:
    """A namespace whose pods are fake vLLM servers that hand KV to each other."""

    cluster: FakeKubernetes
    attachment: Attachment
    bridge: Bridge
    servers: dict[str, FakeServer] = field(default_factory=dict)
    kept: dict[str, list[int]] = field(default_factory=dict)

    async def come(self, name: str) -> FakeServer:
        self.servers[name] = FakeServer(name=name, kept=self.kept)
        await self.servers[name].start()
        add_engine(self.cluster, name, self.servers[name].url)
        return self.servers[name]


@contextlib.asynccontextmanager
async def pods(folder: Path, *names: str) -> AsyncIterator[Pods]:
    """Pods without a role, a bridge before them, and an attachment that begins them as mixed."""
    with serving(FakeKubernetes()) as cluster:
        config = write_kubeconfig(folder / "config", cluster.url)
        controller = f"kubernetes={config}?namespace=serving&selector=app=vllm&unlabelled=mixed"
        told = Attachment(name=FLEET, kind="vllm", controller=controller, every_s=0.5, simulated=True)
        source = source_of(Settings(run_dir=folder), told)
        bridge = Bridge(told, source, token=fleet_token(folder), path=bridge_path(folder, FLEET), encode=lambda _: [])
        here = Pods(cluster, told, bridge)
        for name in names:
            await here.come(name)
        run = asyncio.create_task(bridge.run())
        try:
            yield here
        finally:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
            for each in here.servers.values():
                await each.die()


def weights(plane: Plane) -> dict[str, float]:
    table = plane.gateways.tables.current
    return {} if table is None else {each.worker_id: each.weight for each in table.workers}


async def test_pods_that_say_no_role_begin_mixed_and_flip_by_our_word_with_nothing_asked_of_the_cluster(tmp_path: Path):
    async with pods(tmp_path, "v0", "v1", "v2") as here, plane_of(tmp_path, here.attachment, allowed(*ALL)) as plane:
        await until(lambda: roles_of(plane) == dict.fromkeys(("v0", "v1", "v2"), MIXED), LIMIT_S)
        flip = Action(verb=Verb.FLIP, worker_id="v0", role=Role.PREFILL)
        preview = await plane.preview(CommandRequest(action=flip))
        assert any("kubernetes keeps the number of workers" in each for each in preview.warnings)
        assert (await done(plane, flip)).state is CommandState.DONE
        resized = await done(plane, Action(verb=Verb.RESIZE, prefill=2, mixed=1))
        assert resized.state is CommandState.DONE, resized.result
        assert sorted(role for role, _ in roles_of(plane).values()) == [Role.MIXED, Role.PREFILL, Role.PREFILL]
        assert not [each for each in here.cluster.calls if not each.startswith("GET")]


async def test_a_pod_that_comes_begins_as_listed_and_one_that_is_deleted_is_drained_while_it_is_listed_yet(
    tmp_path: Path,
):
    async with pods(tmp_path, "v0", "v1") as here, plane_of(tmp_path, here.attachment, allowed(*ALL)) as plane:
        await until(lambda: roles_of(plane) == {"v0": MIXED, "v1": MIXED}, LIMIT_S)
        assert (await done(plane, Action(verb=Verb.FLIP, worker_id="v1", role=Role.PREFILL))).state == "done"
        await here.come("v2")
        await until(lambda: roles_of(plane) == {"v0": MIXED, "v1": PREFILL, "v2": MIXED}, LIMIT_S)
        terminate(here.cluster, "v1")
        await until(lambda: plane.desired.roles == {"v0": Role.MIXED, "v2": Role.MIXED}, LIMIT_S)
        await until(lambda: weights(plane).keys() == {"v0", "v2"}, LIMIT_S)
        here.cluster.remove("pods", "v1")
        await here.servers["v1"].die()
        await here.come("v1")  # a StatefulSet's pod has its old name
        await until(lambda: roles_of(plane).get("v1") == MIXED, LIMIT_S)


async def test_a_pod_with_a_new_address_is_the_same_worker_with_the_role_that_it_was_given(tmp_path: Path):
    async with pods(tmp_path, "v0", "v1") as here, plane_of(tmp_path, here.attachment, allowed(*ALL)) as plane:
        await until(lambda: roles_of(plane) == {"v0": MIXED, "v1": MIXED}, LIMIT_S)
        assert (await done(plane, Action(verb=Verb.FLIP, worker_id="v0", role=Role.PREFILL))).state == "done"
        await here.servers["v0"].die()
        moved = await here.come("v0")
        await until(lambda: moved.url in {each.http.url for each in here.bridge.workers.values()}, LIMIT_S)
        await until(lambda: roles_of(plane).get("v0") == PREFILL, LIMIT_S)


async def test_a_pod_that_is_not_ready_gets_nothing_new_and_keeps_its_role(tmp_path: Path):
    async with pods(tmp_path, "v0", "v1") as here, plane_of(tmp_path, here.attachment, allowed(*ALL)) as plane:
        await until(lambda: weights(plane) == {"v0": 1.0, "v1": 1.0}, LIMIT_S)
        set_ready(here.cluster, "v1", False)
        await until(lambda: weights(plane) == {"v0": 1.0, "v1": 0.0}, LIMIT_S)
        assert roles_of(plane) == {"v0": MIXED, "v1": MIXED}
        await until(lambda: b"not ready, by the word of what lists it" in plane.snapshot_json(), LIMIT_S)
        set_ready(here.cluster, "v1", True)
        await until(lambda: weights(plane) == {"v0": 1.0, "v1": 1.0}, LIMIT_S)


async def test_while_the_api_server_is_away_the_last_list_serves_also_under_a_new_plane(tmp_path: Path):
    async with pods(tmp_path, "v0", "v1") as here:
        async with plane_of(tmp_path, here.attachment, allowed(*ALL)) as plane:
            await until(lambda: roles_of(plane) == {"v0": MIXED, "v1": MIXED}, LIMIT_S)
            assert (await done(plane, Action(verb=Verb.FLIP, worker_id="v0", role=Role.PREFILL))).state == "done"
        go_away(here.cluster)
        async with plane_of(tmp_path, here.attachment, allowed(*ALL), fence=2) as plane:
            await until(lambda: roles_of(plane) == {"v0": PREFILL, "v1": MIXED}, LIMIT_S)
            assert plane.desired.roles == {"v0": Role.PREFILL, "v1": Role.MIXED}
            await until(lambda: b"refuses the credentials" in plane.snapshot_json(), LIMIT_S)
            assert weights(plane) == {"v0": 1.0, "v1": 1.0}
