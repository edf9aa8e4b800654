"""Fleets in Kubernetes against a fake API server: what is listed, what is set, whom we yield to, and what goes wrong.

Shapes only: no real API server is tried here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control.errors import CommandRefused, FleetError
from control.fleets.attached.attachment import Plan, plan_of
from control.fleets.attached.permission import can_of, check_grantable
from control.fleets.attached.steered import SteeredFleet
from control.fleets.attached.steering.calls import Refused
from control.fleets.attached.steering.kube.address import kube_plan
from control.fleets.attached.steering.kube.api import Cluster, KubeApi
from control.fleets.attached.steering.kube.objects import DEPLOYMENTS, PODS, name_of
from control.fleets.attached.steering.kube.steering import KubernetesSteering
from control.fleets.attached.survey import survey
from control.fleets.attached.types import Attachment, Permission
from control.fleets.base import FleetStep
from control.types.fleet import Capability
from control.types.workers import Role, WorkerState
from tests.control.attached.fake_kubernetes import FakeKubernetes, serving, write_kubeconfig, write_text


@pytest.fixture
def cluster() -> Iterator[FakeKubernetes]:
    with serving(FakeKubernetes()) as fake:
        yield fake


@pytest.fixture
def config(cluster: FakeKubernetes, tmp_path: Path) -> Path:
    return write_kubeconfig(tmp_path / "config", cluster.url)


def steering_of(config: Path, kind: str = "llm-d", limit_s: float = 60.0, **options: str) -> KubernetesSteering:
    plan = kube_plan(str(config), {"namespace": "serving", **options}, kind)
    return KubernetesSteering(KubeApi(plan.cluster, limit_s), plan)


def plan(config: Path, *allowed: Capability, kind: str = "llm-d", options: str = "namespace=serving") -> Plan:
    told = Attachment(name="llmd", kind=kind, controller=f"kubernetes={config}?{options}", limit_s=5.0)
    return plan_of(told, [Permission(capability=each, who="ann", at_unix_s=1.0) for each in allowed])


def scale(role: Role, size: int) -> FleetStep:
    return FleetStep(verb="scale", worker_id=f"{role} pool", role=role, fence=1, size=size)


def pair(cluster: FakeKubernetes, prefill: int = 1, decode: int = 2) -> None:
    cluster.add_deployment("prefill", prefill)
    cluster.add_deployment("decode", decode)


def autoscaler(
    name: str, target: str, kind: str = "Deployment", version: str = "apps/v1", **labels: str
) -> dict[str, Any]:
    spec = {"scaleTargetRef": {"apiVersion": version, "kind": kind, "name": target}, "minReplicas": 2, "maxReplicas": 9}
    return {"metadata": {"name": name, "labels": labels}, "spec": spec}


async def test_pods_are_workers_with_their_role_their_state_and_their_page(cluster: FakeKubernetes, config: Path):
    pair(cluster)
    cluster.add_pod("old", "decode", phase="Failed")
    going = cluster.add_pod("going", "decode", podIP="fd00::7")
    going["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:00Z", "annotations": {}}
    going["spec"] = {
        "containers": [{"ports": [{"containerPort": 8000, "name": "http"}, {"containerPort": 8200, "name": "metrics"}]}]
    }
    waits = {"phase": "Pending", "podIP": "", "conditions": []}
    cluster.add_pod(
        "waits", "both", **waits, containerStatuses=[{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]
    )
    cluster.add_pod("sees", "encode")
    cluster.add_pod("odd", "zigzag")
    steering = steering_of(config)
    roster = await steering.look()
    found = {each.worker_id: (each.role, each.state, each.reason, each.metrics_url) for each in roster.members}
    assert found == {
        "ms-prefill-5d9f-0": (Role.PREFILL, WorkerState.READY, "", "http://127.0.0.1:9/metrics"),
        "ms-decode-5d9f-0": (Role.DECODE, WorkerState.READY, "", "http://127.0.0.1:9/metrics"),
        "ms-decode-5d9f-1": (Role.DECODE, WorkerState.READY, "", "http://127.0.0.1:9/metrics"),
        "going": (Role.DECODE, WorkerState.DRAINING, "terminating", "http://[fd00::7]:8200/metrics"),
        "waits": (Role.MIXED, WorkerState.STARTING, "ImagePullBackOff", ""),
    }
    assert roster.problem == "1 pods with the role 'zigzag', which is no phase: odd"
    pool = roster.pools[Role.DECODE]
    assert (pool.target, pool.num_ready, pool.num_other, pool.rival) == (2, 2, 1, "")
    await steering.close()


async def test_labels_of_anybody_give_the_role_and_a_group_of_pods_is_one_worker(cluster: FakeKubernetes, config: Path):
    leader, follower = {"tier": "first", "leaderworkerset.sigs.k8s.io/worker-index": "0"}, {"tier": "first"}
    cluster.add_pod("g-0", "x", labels=leader)
    cluster.add_pod("g-0-1", "x", labels=follower | {"leaderworkerset.sigs.k8s.io/worker-index": "1"})
    cluster.add_pod("nobody", "x", labels={"app": "vllm"})
    steering = steering_of(
        config, "vllm", role="tier", prefill="first", decode="second,third", port="8000", selector="llm-d.ai/role"
    )
    roster = await steering.look()
    (member,) = roster.members
    assert (member.worker_id, member.role, member.metrics_url) == ("g-0", Role.PREFILL, "http://127.0.0.1:8000/metrics")
    assert roster.problem == "1 pods with no label tier: nobody"
    assert roster.pools == {}
    await steering.close()


async def test_a_deployment_is_set_by_its_scale_under_the_version_that_was_read(cluster: FakeKubernetes, config: Path):
    pair(cluster)
    steering = steering_of(config)
    await steering.look()
    version = cluster.objects["deployments", "ms-decode"]["metadata"]["resourceVersion"]
    assert (await steering.apply(scale(Role.DECODE, 3))).accepted
    path = "PATCH /apis/apps/v1/namespaces/serving/deployments/ms-decode/scale?fieldManager=phaseline"
    assert cluster.bodies[cluster.calls.index(path)] == {
        "metadata": {"resourceVersion": version},
        "spec": {"replicas": 3},
    }
    roster = await steering.look()
    assert (roster.pools[Role.DECODE].target, roster.pools[Role.DECODE].num_ready) == (3, 3)
    assert roster.pools[Role.DECODE].set_by == ""
    flip = await steering.apply(FleetStep(verb="flip", worker_id="ms-decode-5d9f-0", role=Role.PREFILL, fence=1))
    assert "only pools are resized" in flip.detail
    await steering.close()


async def test_a_conflict_is_tried_again_where_the_size_is_as_it_was_and_given_up_where_it_is_not(
    cluster: FakeKubernetes, config: Path
):
    pair(cluster)
    steering = steering_of(config)
    await steering.look()
    once = iter([lambda: cluster.touch("deployments", "ms-decode")])
    cluster.before_patch = lambda: next(once, lambda: None)()
    assert (await steering.apply(scale(Role.DECODE, 3))).accepted
    cluster.before_patch = lambda: cluster.set_size("deployments", "ms-decode", 7, "kubectl")
    outcome = await steering.apply(scale(Role.DECODE, 4))
    assert (outcome.accepted, outcome.retry_helps) == (False, False)
    assert outcome.detail == "kubectl has set Deployment ms-decode to 7 meanwhile: we stop"
    await steering.close()


@pytest.mark.parametrize(
    ("plural", "item", "who"),
    [
        ("horizontalpodautoscalers", autoscaler("decode-hpa", "ms-decode"), "HPA decode-hpa (2..9) sets its size"),
        (
            "horizontalpodautoscalers",
            autoscaler("keda-hpa-d", "ms-decode", **{"scaledobject.keda.sh/name": "d"}),
            "KEDA's ScaledObject d, by HPA keda-hpa-d (2..9) sets its size",
        ),
        ("scaledobjects", {"spec": {"scaleTargetRef": {"name": "ms-decode"}}}, "KEDA's ScaledObject x sets its size"),
    ],
)
async def test_who_scales_the_same_deployment_is_named_before_and_the_order_refused(
    cluster: FakeKubernetes, config: Path, plural: str, item: dict[str, Any], who: str
):
    pair(cluster)
    steering = steering_of(config)
    await steering.look()
    cluster.add(plural, "x" if plural == "scaledobjects" else item["metadata"]["name"], item)
    outcome = await steering.apply(scale(Role.DECODE, 3))
    assert (outcome.accepted, outcome.retry_helps) == (False, False)
    assert outcome.detail == f"Deployment ms-decode is not ours to resize: {who}"
    pools = (await steering.look()).pools
    assert (pools[Role.DECODE].rival, pools[Role.PREFILL].rival) == (who, "")
    assert not [each for each in cluster.calls if each.startswith("PATCH")]
    await steering.close()


async def test_a_paused_scaled_object_is_no_rival_and_the_owner_of_a_deployment_is(
    cluster: FakeKubernetes, config: Path
):
    pair(cluster, decode=1)
    paused = {"metadata": {"annotations": {"autoscaling.keda.sh/paused": "true"}}}
    cluster.add("scaledobjects", "d", paused | {"spec": {"scaleTargetRef": {"name": "ms-decode"}}})
    owner = {"kind": "LLMInferenceService", "name": "llama", "controller": True}
    cluster.objects["deployments", "ms-prefill"]["metadata"]["ownerReferences"] = [owner]
    steering = steering_of(config)
    pools = (await steering.look()).pools
    assert pools[Role.DECODE].rival == ""
    assert pools[Role.PREFILL].rival == "it belongs to LLMInferenceService llama, which sets its size"
    await steering.close()


async def test_who_was_noted_before_is_not_named_for_a_size_that_was_set_without_a_note(
    cluster: FakeKubernetes, config: Path
):
    """Before Kubernetes 1.22 what is set by /scale leaves no note: the last one is older."""
    pair(cluster)
    steering = steering_of(config)
    assert (await steering.look()).pools[Role.DECODE].set_by == "helm"
    cluster.set_size("deployments", "ms-decode", 3, by="")
    assert (await steering.look()).pools[Role.DECODE].set_by == ""
    assert (await steering.look()).pools[Role.DECODE].set_by == ""
    cluster.set_size("deployments", "ms-decode", 4, by="argocd")
    assert (await steering.look()).pools[Role.DECODE].set_by == "argocd"
    await steering.close()


async def test_roles_of_a_disaggregated_set_are_set_by_their_scalers(cluster: FakeKubernetes, config: Path):
    external = {"scaling": {"mode": "External"}}
    roles = [{"name": "prefill", **external}, {"name": "decode"}]
    cluster.add("disaggregatedsets", "llama", {"spec": {"roles": roles}})
    owner = {"ownerReferences": [{"kind": "DisaggregatedSet", "name": "llama", "controller": True}]}
    cluster.add("disaggregatedsetrolescalers", "llama-prefill", {"metadata": owner, "spec": {"replicas": 2}})
    labels = {"disaggregatedset.x-k8s.io/name": "llama", "disaggregatedset.x-k8s.io/role": "prefill"}
    pod = cluster.add_pod("p0", "prefill", labels=labels)
    del pod["metadata"]["labels"]["llm-d.ai/role"]
    steering = steering_of(config, scale="disaggregatedset/llama")
    roster = await steering.look()
    assert [(each.worker_id, each.role) for each in roster.members] == [("p0", Role.PREFILL)]
    assert (set(roster.pools), roster.pools[Role.PREFILL].target) == ({Role.PREFILL}, 2)
    assert roster.notes == ("role decode of DisaggregatedSet llama is Static: set scaling.mode External, and slices 1",)
    assert (await steering.apply(scale(Role.PREFILL, 3))).accepted
    assert cluster.objects["disaggregatedsetrolescalers", "llama-prefill"]["spec"]["replicas"] == 3
    root = "/apis/disaggregatedset.x-k8s.io/v1/namespaces/serving/disaggregatedsetrolescalers/llama-prefill/scale"
    assert f"PATCH {root}?fieldManager=phaseline" in cluster.calls
    assert "nothing that sets the size of decode" in (await steering.apply(scale(Role.DECODE, 3))).detail
    await steering.close()


async def test_a_dynamo_graph_is_set_by_its_adapters_and_itself_only_where_it_has_none(
    cluster: FakeKubernetes, config: Path
):
    components: list[dict[str, Any]] = [
        {"name": "Frontend", "type": "frontend", "replicas": 1},
        {"name": "VllmPrefill", "type": "prefill", "scalingAdapter": {}},
        {"name": "VllmDecode", "type": "decode", "replicas": 2},
    ]
    cluster.add("dynamographdeployments", "pd", {"spec": {"components": components}})
    cluster.add("dynamographdeploymentscalingadapters", "pd-vllmprefill", {"spec": {"replicas": 1}})
    labels = {"nvidia.com/dynamo-graph-deployment-name": "pd", "nvidia.com/dynamo-component-type": "worker"}
    cluster.add_pod("f", "x", labels=labels | {"nvidia.com/dynamo-component-type": "frontend"})
    cluster.add_pod("w", "x", labels=labels | {"nvidia.com/dynamo-sub-component-type": "prefill"})
    steering = steering_of(config, "dynamo", scale="graph/pd")
    roster = await steering.look()
    assert [(each.worker_id, each.role) for each in roster.members] == [("w", Role.PREFILL)]
    assert roster.problem == ""
    assert {role: pool.target for role, pool in roster.pools.items()} == {Role.PREFILL: 1, Role.DECODE: 2}
    assert (await steering.apply(scale(Role.PREFILL, 4))).accepted
    assert (await steering.apply(scale(Role.DECODE, 3))).accepted
    root = "/apis/nvidia.com/v1beta1/namespaces/serving"
    assert [each for each in cluster.calls if each.startswith("PATCH")] == [
        f"PATCH {root}/dynamographdeploymentscalingadapters/pd-vllmprefill/scale?fieldManager=phaseline",
        f"PATCH {root}/dynamographdeployments/pd?fieldManager=phaseline",
    ]
    assert cluster.bodies[-1][0] == {"op": "test", "path": "/spec/components/2/name", "value": "VllmDecode"}
    assert components[2]["replicas"] == 3
    components.append({"name": "Planner", "type": "planner", "replicas": 1})
    assert "Dynamo's planner (Planner) sets its size" in (await steering.apply(scale(Role.DECODE, 5))).detail
    del cluster.objects["dynamographdeploymentscalingadapters", "pd-vllmprefill"]
    roster = await steering.look()
    assert roster.pools == {}
    assert '"pd-vllmprefill" not found' in roster.notes[0]
    await steering.close()


async def test_an_expired_token_is_read_anew_and_never_shown(cluster: FakeKubernetes, config: Path):
    pair(cluster)
    api = KubeApi(Cluster(kubeconfig=config), limit_s=60.0)
    await api.listed(PODS, "serving", name_of)
    cluster.token = "second-word"
    with pytest.raises(Refused, match=r"refuses the credentials of .*config \(401\): they may have expired") as caught:
        await api.listed(PODS, "serving", name_of)
    assert "word" not in str(caught.value)
    write_kubeconfig(config, cluster.url, "second-word")
    assert len(await api.listed(PODS, "serving", name_of)) == 3
    cluster.token = "third-word"
    write_kubeconfig(config, cluster.url, "third-word")
    assert len(await api.listed(PODS, "serving", name_of)) == 3
    write_text(config, "users: [secret-word: {")
    cluster.token = "fourth-word"
    with pytest.raises(FleetError, match="is no kubeconfig that can be read") as broken:
        await api.listed(PODS, "serving", name_of)
    assert "secret-word" not in str(broken.value)
    await api.close()


async def test_what_is_forbidden_is_named_as_the_rule_that_allows_it(cluster: FakeKubernetes, config: Path):
    pair(cluster)
    cluster.forbidden = {"patch deployments/scale"}
    steering = steering_of(config)
    await steering.look()
    outcome = await steering.apply(scale(Role.DECODE, 3))
    assert (outcome.accepted, outcome.retry_helps) == (False, False)
    assert '{apiGroups: ["apps"], resources: ["deployments/scale"], verbs: ["patch"]}' in outcome.detail
    cluster.forbidden = {"list horizontalpodautoscalers", "list scaledobjects"}
    assert "whether an HPA sets its size cannot be seen" in (await steering.apply(scale(Role.DECODE, 3))).detail
    cluster.forbidden = {"get deployments"}
    roster = await steering.look()
    assert (len(roster.members), roster.pools) == (3, {})
    assert 'resources: ["deployments"], verbs: ["get"]' in roster.notes[0]
    cluster.forbidden = {"list pods"}
    with pytest.raises(Refused, match=r'resources: \["pods"\], verbs: \["list"\]'):
        await steering.look()
    await steering.close()


async def test_long_lists_come_in_pages_and_begin_anew_when_they_have_changed_too_much(
    cluster: FakeKubernetes, config: Path
):
    for number in range(250):
        cluster.add_pod(f"p{number}", "decode")
    cluster.fails = {"continue=200": [(410, {"message": "the provided continue parameter is too old"})]}
    api = KubeApi(Cluster(kubeconfig=config), limit_s=60.0)
    assert len(await api.listed(PODS, "serving", name_of)) == 250
    assert len(cluster.calls) == 6
    await api.close()


async def test_lists_without_end_and_answers_that_are_too_large_are_given_up(cluster: FakeKubernetes, config: Path):
    pair(cluster)
    api = KubeApi(Cluster(kubeconfig=config), limit_s=60.0)
    cluster.pages_end = False
    with pytest.raises(FleetError, match="lists more than 2000 pods"):
        await api.listed(PODS, "serving", name_of)
    cluster.fails = {"deployments": [(200, '{"x": "' + "y" * 9_000_000 + '"}'), (200, "<html>"), (200, "[1]")]}
    with pytest.raises(FleetError, match="more than 8388608 bytes"):
        await api.read(DEPLOYMENTS, "serving", "ms-decode")
    with pytest.raises(FleetError, match=r"does not answer .* in JSON"):
        await api.read(DEPLOYMENTS, "serving", "ms-decode")
    assert await api.read(DEPLOYMENTS, "serving", "ms-decode") == {}
    await api.close()


async def test_a_server_that_asks_for_quiet_gets_it_and_trouble_of_its_own_is_tried_again_later(
    cluster: FakeKubernetes, config: Path
):
    pair(cluster)
    steering = steering_of(config)
    await steering.look()
    cluster.fails = {"PATCH": [(500, {"message": "etcdserver: request timed out"})]}
    with pytest.raises(FleetError, match="etcdserver: request timed out"):
        await steering.apply(scale(Role.DECODE, 3))
    assert (await steering.apply(scale(Role.DECODE, 3))).accepted
    cluster.fails = {"GET": [(503, {}), (504, {})]}
    assert len((await steering.look()).members) == 4
    cluster.fails = {"GET": [(429, {"message": "too many requests"})]}
    with pytest.raises(Refused, match="too many requests"):
        await steering.look()
    num = len(cluster.calls)
    with pytest.raises(FleetError, match="has asked us to wait"):
        await steering.look()
    assert len(cluster.calls) == num
    await steering.close()


async def test_a_server_that_hangs_costs_its_caller_a_time_out_and_nobody_else_anything(tmp_path: Path):
    with serving(FakeKubernetes(hangs=threading.Event())) as cluster:
        config = write_kubeconfig(tmp_path / "config", cluster.url)
        told = plan(config)
        fleet = SteeredFleet(told, steering_of(config, limit_s=0.2))
        await fleet.start(lambda: None)
        looks = [asyncio.create_task(steering.look()) for steering in [steering_of(config, limit_s=0.2)] * 8]
        seen = await fleet.observe(10.0)  # whatever hangs in threads
        assert "has not answered /api/v1/namespaces/serving/pods within 0.2 s" in seen.problems[0]
        assert all(isinstance(each, FleetError) for each in await asyncio.gather(*looks, return_exceptions=True))
        await fleet.close()


async def test_what_was_accepted_and_does_not_show_has_failed_and_a_fight_is_stopped(
    cluster: FakeKubernetes, config: Path
):
    pair(cluster)
    watching = plan(config)
    fleet = SteeredFleet(watching, steering_of(config))
    assert "no operator has allowed resize" in (await fleet.apply(scale(Role.DECODE, 3))).detail
    await fleet.close()
    mine = plan(config, Capability.RESIZE)
    fleet = SteeredFleet(mine, steering_of(config))
    await fleet.start(lambda: None)
    cluster.fails = {"PATCH": [(200, {"spec": {"replicas": 3}})]}
    outcome = await fleet.apply(scale(Role.DECODE, 3))
    assert (outcome.accepted, outcome.retry_helps) == (False, False)
    assert "it was accepted, and the size it is set to is 2: not obeyed" in outcome.detail
    cluster.obeys = False
    assert (await fleet.apply(scale(Role.DECODE, 3))).accepted
    pool = fleet.pools()[Role.DECODE]
    assert (pool.target, pool.num_ready) == (3, 2)  # until a command's limit, then it has failed
    await fleet.close()


async def test_a_dry_run_tells_pods_roles_rivals_and_what_is_not_permitted(cluster: FakeKubernetes, config: Path):
    pair(cluster)
    cluster.add_pod("waits", "decode", podIP="", phase="Pending", conditions=[])
    cluster.add("horizontalpodautoscalers", "h", autoscaler("h", "ms-decode"))
    cluster.forbidden = {"patch deployments/scale"}
    found = await survey(plan(config))
    assert [(each.worker_id, each.role) for each in found.engines] == [
        ("ms-decode-5d9f-0", "decode"),
        ("ms-decode-5d9f-1", "decode"),
        ("ms-prefill-5d9f-0", "prefill"),
        ("waits", "decode"),
    ]
    assert found.engines[-1].problem == "pending"
    told = " ".join(found.notes)
    assert 'not permitted in namespace serving: {apiGroups: ["apps"], resources: ["deployments/scale"]' in told
    assert "decode is not ours to resize: HPA h (2..9) sets its size" in told
    assert not [each for each in cluster.calls if each.startswith("PATCH")]
    cluster.forbidden = {"list pods", "patch deployments/scale"}
    with pytest.raises(FleetError, match=r'"pods".*not permitted in namespace serving: .*"deployments/scale"'):
        await survey(plan(config))
    cluster.forbidden = set()
    cluster.fails = {"POST": [(403, {"message": "cannot create"})] * 5}
    found = await survey(plan(config))
    assert "what is permitted is not known" in found.notes[-2]
    assert len(found.engines) == 4


@pytest.mark.parametrize(
    ("controller", "words"),
    [
        ("kubernetes=/nowhere?namespace=x", "controller '/nowhere' cannot be used"),
        ("kubernetes=in-cluster", "namespace '' cannot be used"),
        ("kubernetes=in-cluster?namespace=a/b", "namespace 'a/b' cannot be used"),
        ("kubernetes=in-cluster?namespace=x&port=0", "port '0' cannot be used"),
        ("kubernetes=in-cluster?namespace=x&scale=statefulsets", "scale 'statefulsets' cannot be used"),
        ("kubernetes=in-cluster?namespace=x&scale=graph/a,b", "scale 'graph/a,b' cannot be used"),
        ("kubernetes=in-cluster?namespace=x&scale=graph", "scale 'graph' cannot be used"),
        ("kubernetes=in-cluster?namespace=x&user=me", "kubernetes takes no user"),
        ("kubernetes=in-cluster?namespace=x&selector=a&unlabelled=both", "unlabelled 'both' cannot be used"),
        ("kubernetes=in-cluster?namespace=x&unlabelled=mixed", "selector '' cannot be used"),
        ("kubernetes=in-cluster?namespace=x&serve_port=x", "serve_port 'x' cannot be used"),
    ],
)
def test_an_address_that_cannot_be_used_says_why(controller: str, words: str):
    with pytest.raises(CommandRefused, match=words):
        plan_of(Attachment(name="llmd", kind="llm-d", controller=controller))


def test_credentials_are_in_the_kubeconfig_alone_and_pods_outside_a_cluster_have_none(config: Path):
    told = Attachment(
        name="llmd", kind="llm-d", controller=f"kubernetes={config}?namespace=x", controller_token="env:T"
    )
    with pytest.raises(CommandRefused, match="from the kubeconfig alone"):
        plan_of(told)


async def test_outside_of_a_cluster_its_service_account_is_not_there():
    api = KubeApi(Cluster(kubeconfig=None))
    with pytest.raises(FleetError, match="this pod's service account: Service host/port is not set"):
        await api.read(PODS, "serving", "x")
    await api.close()


BY_US = {Capability.ROUTE, Capability.FLIP, Capability.DRAIN, Capability.RESIZE}


@pytest.mark.parametrize(
    ("kind", "options", "can"),
    [
        ("llm-d", "namespace=x", {Capability.RESIZE}),
        ("llm-d", "namespace=x&scale=none", set()),
        ("vllm", "namespace=x", BY_US),
        ("vllm", "namespace=x&scale=deployments", {Capability.RESIZE}),
        ("sglang", "namespace=x", {Capability.ROUTE, Capability.DRAIN}),
        ("openai", "namespace=x&selector=app=tgi", {Capability.ROUTE, Capability.DRAIN}),
        ("dynamo", "namespace=x&scale=graph/pd", {Capability.RESIZE}),
    ],
)
def test_the_cluster_sizes_pools_or_we_give_roles_and_never_both(
    config: Path, kind: str, options: str, can: set[Capability]
):
    assert can_of(plan(config, kind=kind, options=options).attachment) == can | {Capability.OBSERVE}


@pytest.mark.parametrize(
    ("kind", "options", "why"),
    [
        ("vllm", "namespace=x&scale=deployments", "attached with scale=none it is"),
        ("llm-d", "namespace=x&scale=none", "llm-d's endpoint picker sends its requests"),
        ("dynamo", "namespace=x&scale=graph/pd", "Dynamo's frontend sends its requests"),
    ],
)
def test_where_we_cannot_route_the_refusal_says_who_does(config: Path, kind: str, options: str, why: str):
    with pytest.raises(CommandRefused, match=f"llmd .{kind}. cannot route: .*{why}"):
        check_grantable(plan(config, kind=kind, options=options).attachment, Capability.ROUTE)


async def test_pods_without_a_role_are_workers_where_one_is_said_for_them(cluster: FakeKubernetes, config: Path):
    for name, more in (("v0", {}), ("v1", {"tier": "first"}), ("v2", {"tier": "odd"})):
        pod = cluster.add_pod(name, "x", labels={"app": "vllm", **more})
        del pod["metadata"]["labels"]["llm-d.ai/role"]
    plain = {"selector": "app=vllm", "port": "8000", "unlabelled": "mixed", "serve_port": "8080"}
    steering = steering_of(config, "vllm", **plain, role="tier", prefill="first")
    roster = await steering.look()
    found = {each.worker_id: (each.role, each.metrics_url, each.serve_url) for each in roster.members}
    page, api = "http://127.0.0.1:8000/metrics", "http://127.0.0.1:8080"
    assert found == {"v0": (Role.MIXED, page, api), "v1": (Role.PREFILL, page, api)}
    assert roster.problem == "1 pods with the role 'odd', which is no phase: v2"
    await steering.close()


async def test_pods_of_plain_servers_serve_both_phases_whatever_their_labels_say(cluster: FakeKubernetes, config: Path):
    cluster.add_pod("t0", "decode", labels={"app": "tgi"})
    steering = steering_of(config, "openai", selector="app=tgi", port="80")
    assert [each.role for each in (await steering.look()).members] == [Role.MIXED]
    await steering.close()
