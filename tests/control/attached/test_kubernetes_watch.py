"""Pods that are followed as they change: what is seen without a list, and each way back. A fake API server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from control.errors import FleetError
from control.fleets.attached.attachment import plan_of
from control.fleets.attached.steered import SteeredFleet
from control.fleets.attached.steering.calls import Refused
from control.fleets.attached.steering.kube.address import kube_plan
from control.fleets.attached.steering.kube.api import KubeApi
from control.fleets.attached.steering.kube.pods import SeenPod
from control.fleets.attached.steering.kube.steering import KubernetesSteering
from control.fleets.attached.steering.kube.watch import change_of
from control.fleets.attached.types import Attachment
from tests.control.attached.fake_kubernetes import FakeKubernetes, serving, write_kubeconfig

HEARD_S = 60.0


@pytest.fixture
def cluster() -> Iterator[FakeKubernetes]:
    with serving(FakeKubernetes()) as fake:
        fake.add_deployment("prefill", 1)
        fake.add_deployment("decode", 2)
        yield fake


@asynccontextmanager
async def followed(cluster: FakeKubernetes, folder: Path) -> AsyncIterator[KubernetesSteering]:
    """Its pods were listed while somebody waited for a change."""
    config = write_kubeconfig(folder / "config", cluster.url)
    plan = kube_plan(str(config), {"namespace": "serving"}, "llm-d")
    steering = KubernetesSteering(KubeApi(plan.cluster, limit_s=60.0), plan)
    waits = asyncio.create_task(steering.changed())
    await asyncio.sleep(0)
    waits.cancel()
    await steering.look()
    try:
        yield steering
    finally:
        await steering.close()


async def names(steering: KubernetesSteering) -> list[str]:
    return [each.worker_id for each in (await steering.look()).members]


async def heard(steering: KubernetesSteering) -> list[str]:
    """The workers after the next change."""
    async with asyncio.timeout(HEARD_S):
        await steering.changed()
    return await names(steering)


def num_lists(cluster: FakeKubernetes) -> int:
    return sum(1 for each in cluster.calls if "/pods?" in each and "watch=true" not in each)


def num_watches(cluster: FakeKubernetes) -> int:
    return sum(1 for each in cluster.calls if "watch=true" in each)


async def test_a_pod_that_comes_changes_and_goes_is_seen_without_another_list(cluster: FakeKubernetes, tmp_path: Path):
    async with followed(cluster, tmp_path) as steering:
        cluster.add_pod("a", "decode")
        assert await heard(steering) == ["a", "ms-decode-5d9f-0", "ms-decode-5d9f-1", "ms-prefill-5d9f-0"]
        cluster.objects["pods", "a"]["status"]["conditions"] = []
        cluster.touch("pods", "a")
        assert await heard(steering) == ["a", "ms-decode-5d9f-0", "ms-decode-5d9f-1", "ms-prefill-5d9f-0"]
        assert (await steering.look()).members[0].state == "starting"
        cluster.remove("pods", "a")
        assert await heard(steering) == ["ms-decode-5d9f-0", "ms-decode-5d9f-1", "ms-prefill-5d9f-0"]
        assert (num_lists(cluster), num_watches(cluster)) == (1, 1)


async def test_what_changes_nothing_for_us_wakes_nobody_and_a_bookmark_moves_the_version_on(
    cluster: FakeKubernetes, tmp_path: Path
):
    async with followed(cluster, tmp_path) as steering:
        cluster.touch("pods", "ms-decode-5d9f-0")
        cluster.tell("BOOKMARK", "all", {"metadata": {"resourceVersion": "900"}})
        cluster.add_pod("z", "decode")
        assert "z" in await heard(steering)
        assert num_lists(cluster) == 1


async def test_a_version_that_is_too_old_is_listed_again_and_followed_again(cluster: FakeKubernetes, tmp_path: Path):
    async with followed(cluster, tmp_path) as steering:
        cluster.version += 1
        cluster.tell("ERROR", "all", {"kind": "Status", "code": 410, "message": "too old resource version"})
        assert len(await heard(steering)) == 3
        assert num_lists(cluster) == 2


async def test_a_watch_that_ends_at_once_or_breaks_leaves_looks_that_list(cluster: FakeKubernetes, tmp_path: Path):
    cluster.version += 1
    cluster.tell("", "end", {})
    async with followed(cluster, tmp_path) as steering:
        assert len(await heard(steering)) == 3
        for number in range(3):
            cluster.add_pod(f"p{number}", "decode")
            assert f"p{number}" in await names(steering)
        assert (num_lists(cluster), num_watches(cluster)) == (5, 1)


async def test_a_role_without_the_verb_is_listed_and_told_in_a_dry_run(cluster: FakeKubernetes, tmp_path: Path):
    cluster.forbidden = {"watch pods"}
    async with followed(cluster, tmp_path) as steering:
        assert await steering.needs() == (
            'not permitted in namespace serving: {apiGroups: [""], resources: ["pods"], verbs: ["watch"]}'
            ": without it they are listed at each look",
        )
        assert len(await heard(steering)) == 3
        cluster.add_pod("p", "decode")
        assert "p" in await names(steering)
        assert num_watches(cluster) == 1


async def test_a_dry_run_or_a_single_look_begins_no_watch(cluster: FakeKubernetes, tmp_path: Path):
    config = write_kubeconfig(tmp_path / "config", cluster.url)
    plan = kube_plan(str(config), {"namespace": "serving"}, "llm-d")
    steering = KubernetesSteering(KubeApi(plan.cluster, limit_s=60.0), plan)
    await steering.look()
    await steering.close()
    assert num_watches(cluster) == 0


async def test_a_fleet_looks_as_soon_as_a_pod_changes_not_when_a_look_is_due(cluster: FakeKubernetes, tmp_path: Path):
    config = write_kubeconfig(tmp_path / "config", cluster.url)
    told = Attachment(name="llmd", kind="llm-d", controller=f"kubernetes={config}?namespace=serving", every_s=2.0)
    plan = kube_plan(str(config), {"namespace": "serving"}, "llm-d")
    fleet = SteeredFleet(plan_of(told), KubernetesSteering(KubeApi(plan.cluster, limit_s=60.0), plan))
    seen = asyncio.Event()
    await fleet.start(seen.set)
    seen.clear()
    await asyncio.to_thread(cluster.until_watched, HEARD_S)
    lists = num_lists(cluster)
    cluster.add_pod("late", "decode")
    async with asyncio.timeout(HEARD_S):
        await seen.wait()
    assert "late" in fleet.roles_now()
    assert num_lists(cluster) == lists
    await fleet.close()


@pytest.mark.parametrize("line", [b"<html>", b"[1]", b'{"type": "ERROR"}', b'{"type": "ADDED"', b'{"object": 3}'])
def test_a_line_that_is_no_change_ends_the_watch(line: bytes):
    with pytest.raises(FleetError):
        change_of(line, lambda item: SeenPod(name="x"))


def test_an_error_in_a_watch_keeps_its_code():
    with pytest.raises(Refused) as caught:
        change_of(b'{"type": "ERROR", "object": {"code": 410, "message": "gone"}}', lambda item: SeenPod(name="x"))
    assert caught.value.code == 410
