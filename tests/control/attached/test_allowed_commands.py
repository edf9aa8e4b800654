"""A fleet is attached, allowed, resized and undone through its plane; what was not allowed is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from control.attached_planes import AttachedPlanes
from control.commands import ENDED
from control.errors import CommandRefused, HistoryError
from control.fleets.attached.types import Attachment
from control.history.events import EventQuery
from control.history.store import History
from control.lease import this_process
from control.plane import Plane
from control.settings import Settings
from control.stories import event_words
from control.types.api import Principal
from control.types.commands import Action, Command, CommandRequest, CommandState, Verb
from control.types.fleet import Capability
from tests.control.attached.fake_controllers import FakeRay, FakeRouter, FakeSglangEngine, served
from tests.control.attached.fake_engines import until
from tests.control.attached.fake_kubernetes import FakeKubernetes, serving, write_kubeconfig

ANN = Principal(name="ann", role="operator")


@contextlib.asynccontextmanager
async def hosted(folder: Path) -> AsyncIterator[tuple[AttachedPlanes, dict[str, Plane]]]:
    """The planes of what is attached in this folder's history."""
    url = f"sqlite:///{folder / 'history.db'}"
    history = History.open(url)
    planes: dict[str, Plane] = {}
    settings = Settings(run_dir=folder, tick_s=0.05)
    attached = AttachedPlanes(settings, history, planes, this_process(""), lambda: History.open(url))
    running = asyncio.create_task(attached.run())
    try:
        yield attached, planes
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        history.close()


async def seen(planes: dict[str, Plane], capability: Capability) -> Plane:
    """The fleet's plane, once it lives with this capability and has looked."""

    def is_there() -> bool:
        plane = planes.get("theirs")
        return plane is not None and capability in plane.fleet.capabilities and "decode" in plane.desired.pools

    await until(is_there)
    return planes["theirs"]


async def ended(plane: Plane, action: Action) -> Command:
    return await end_of(plane, await begun(plane, action))


async def begun(plane: Plane, action: Action) -> Command:
    word = (await plane.preview(CommandRequest(action=action))).needs_confirmation
    while True:
        with contextlib.suppress(HistoryError):  # its writer waits for a busy machine: asked again, as a client does
            return await plane.submit(CommandRequest(action=action, confirmation=word), ANN)


async def end_of(plane: Plane, command: Command) -> Command:
    async with asyncio.timeout(60):
        while command.state not in ENDED:
            await asyncio.sleep(0.01)
            command = await plane.command(command.command_id)
    return command


async def test_what_was_allowed_is_done_and_undone_and_outlives_its_plane(tmp_path: Path):
    ray = FakeRay()
    resize = Action(verb=Verb.RESIZE, prefill=3, decode=1)
    async with served(ray):
        async with hosted(tmp_path) as (attached, planes):
            told = Attachment(name="theirs", kind="ray-serve", controller=f"ray-serve={ray.url}/pd", every_s=0.5)
            await attached.attach(told, "ann")
            plane = await seen(planes, Capability.OBSERVE)
            with pytest.raises(CommandRefused, match="no operator has allowed resize of theirs"):
                await ended(plane, resize)
            with pytest.raises(CommandRefused, match="cannot flip"):
                await attached.allow("theirs", Capability.FLIP, "ann")
            info = await attached.allow("theirs", Capability.RESIZE, "ann")
            assert [(each.capability, each.who) for each in info.allowed] == [(Capability.RESIZE, "ann")]
            done = await ended(await seen(planes, Capability.RESIZE), resize)
            assert done.state is CommandState.DONE
            assert ray.targets == {"Prefill:m": 3, "Decode:m": 1, "Ingress": 1}
        async with hosted(tmp_path) as (attached, planes):
            plane = await seen(planes, Capability.RESIZE)
            undone = await ended(plane, Action(verb=Verb.UNDO, command_id=done.command_id))
            assert undone.state is CommandState.DONE
            assert ray.targets == {"Prefill:m": 1, "Decode:m": 2, "Ingress": 1}
            await attached.forbid("theirs", Capability.RESIZE, "ops")
            await until(lambda: planes.get("theirs") not in (None, plane) and planes["theirs"].observed)
            with pytest.raises(CommandRefused, match="no operator has allowed"):
                await ended(planes["theirs"], resize)
            await attached.detach("theirs", "ops")
    history = History.open(f"sqlite:///{tmp_path / 'history.db'}")
    recorded = history.events(EventQuery(fleet_id="theirs", kinds=("permission",)))
    history.close()
    assert [event_words(each) for each in reversed(recorded)] == [
        "ann attached this fleet",
        "ann allowed resize",
        "ops took back resize",
        "ops detached this fleet",
    ]


async def test_a_command_under_way_has_failed_when_its_fleet_is_detached(tmp_path: Path):
    ray = FakeRay(obeys=False)
    async with served(ray), hosted(tmp_path) as (attached, planes):
        told = Attachment(name="theirs", kind="ray-serve", controller=f"ray-serve={ray.url}/pd", every_s=0.5)
        await attached.attach(told, "ann")
        await attached.allow("theirs", Capability.RESIZE, "ann")
        plane = await seen(planes, Capability.RESIZE)
        command = await begun(plane, Action(verb=Verb.RESIZE, prefill=3, decode=1))
        await attached.detach("theirs", "ops")
        await attached.attach(told, "ann")
        found = await (await seen(planes, Capability.OBSERVE)).command(command.command_id)
        assert (found.state, found.result) == (CommandState.FAILED, "ops detached this fleet")


async def test_an_engine_is_routed_by_one_fleet(tmp_path: Path):
    targets = ("prefill=http://127.0.0.1:1", "decode=http://127.0.0.1:2/metrics")
    async with hosted(tmp_path) as (attached, _):
        for name in ("one", "other"):
            await attached.attach(Attachment(name=name, kind="vllm", targets=targets), "ann")
        await attached.allow("one", Capability.ROUTE, "ann")
        with pytest.raises(CommandRefused, match=r"127\.0\.0\.1:1 is an engine of fleet one too, which is routed"):
            await attached.allow("other", Capability.ROUTE, "ann")
        await attached.allow("other", Capability.FLIP, "ann")
        await attached.forbid("one", Capability.ROUTE, "ann")
        await attached.allow("other", Capability.ROUTE, "ann")


async def test_deployments_in_kubernetes_are_resized_undone_and_left_to_whoever_else_sizes_them(tmp_path: Path):
    with serving(FakeKubernetes()) as cluster:
        cluster.add_deployment("prefill", 1)
        cluster.add_deployment("decode", 2)
        config = write_kubeconfig(tmp_path / "config", cluster.url)
        async with hosted(tmp_path) as (attached, planes):
            where = f"kubernetes={config}?namespace=serving"
            await attached.attach(
                Attachment(name="theirs", kind="llm-d", controller=where, every_s=0.5, limit_s=10.0), "ann"
            )
            await attached.allow("theirs", Capability.RESIZE, "ann")
            plane = await seen(planes, Capability.RESIZE)
            done = await ended(plane, Action(verb=Verb.RESIZE, prefill=2, decode=1))
            assert (done.state, sizes(cluster)) == (CommandState.DONE, (2, 1))
            undone = await ended(plane, Action(verb=Verb.UNDO, command_id=done.command_id))
            assert (undone.state, sizes(cluster)) == (CommandState.DONE, (1, 2))
            cluster.obeys = False  # no pod comes
            command = await begun(plane, Action(verb=Verb.RESIZE, decode=3))
            await until(lambda: sizes(cluster) == (1, 3))
            cluster.set_size("deployments", "ms-decode", 5, "argocd-controller")
            failed = await end_of(plane, command)
            assert failed.state is CommandState.FAILED
            assert "argocd-controller has set it to 5: we stop" in failed.steps[-1].text
            assert sizes(cluster) == (1, 5)
            target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "ms-decode"}
            cluster.add("horizontalpodautoscalers", "h", {"spec": {"scaleTargetRef": target, "maxReplicas": 9}})
            await until(lambda: plane.fleet.pools()["decode"].rival != "")  # type: ignore[attr-defined]
            with pytest.raises(CommandRefused, match=r"decode is not ours to resize: HPA h \(1..9\) sets its size"):
                await ended(plane, Action(verb=Verb.RESIZE, decode=4))


def sizes(cluster: FakeKubernetes) -> tuple[int, int]:
    """Of prefill and decode, as they are set."""
    found = (cluster.objects["deployments", name]["spec"]["replicas"] for name in ("ms-prefill", "ms-decode"))
    return next(found), next(found)


async def test_a_worker_that_was_taken_out_of_its_router_is_known_to_the_next_plane_and_comes_back_by_undo(
    tmp_path: Path,
):
    router, engines = FakeRouter(), [FakeSglangEngine() for _ in range(3)]
    async with served(router, *engines):
        for each, role in zip(engines, ("prefill", "decode", "decode"), strict=True):
            router.add(each.url, role)
        leaving = engines[2].url.removeprefix("http://")

        def states(planes: dict[str, Plane]) -> dict[str, str]:
            workers = json.loads(planes["theirs"].snapshot_json())["workers"] if "theirs" in planes else []
            return {each["worker_id"]: each["state"] for each in workers}

        def all_ready(planes: dict[str, Plane]) -> bool:
            return list(states(planes).values()) == ["ready"] * 3

        async with hosted(tmp_path) as (attached, planes):
            address = f"sglang-router={router.url}"
            await attached.attach(Attachment(name="theirs", kind="sglang", controller=address, every_s=0.5), "ann")
            await attached.allow("theirs", Capability.DRAIN, "ann")
            await until(lambda: all_ready(planes) and Capability.DRAIN in planes["theirs"].fleet.capabilities)
            drained = await ended(planes["theirs"], Action(verb=Verb.DRAIN, worker_id=leaving))
            assert (drained.state, len(router.workers)) == (CommandState.DONE, 2)
        async with hosted(tmp_path) as (attached, planes):
            await until(lambda: states(planes).get(leaving) == "drained" and len(states(planes)) == 3)
            undone = await ended(planes["theirs"], Action(verb=Verb.UNDO, command_id=drained.command_id))
            assert (undone.state, len(router.workers)) == (CommandState.DONE, 3)
        async with hosted(tmp_path) as (_, planes):
            await until(lambda: all_ready(planes))


async def test_a_fleet_whose_file_is_away_when_its_plane_begins_is_looked_at_once_it_is_back(tmp_path: Path):
    token = tmp_path / "token"
    token.write_text("secret")
    targets = ("decode=http://127.0.0.1:1",)
    async with hosted(tmp_path) as (attached, _):
        await attached.attach(Attachment(name="theirs", kind="vllm", targets=targets, token_file=str(token)), "ann")
    token.unlink()
    async with hosted(tmp_path) as (attached, planes):
        why = f"token_file {str(token)!r} cannot be used"
        await until(lambda: attached.is_loaded and attached.infos()[0].problem == why)
        token.write_text("secret")
        await until(lambda: "theirs" in planes)
        assert attached.infos()[0].problem == ""
