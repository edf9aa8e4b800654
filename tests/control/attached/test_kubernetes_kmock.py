"""The paths and verbs that we use, as kmock parses them: another reading of Kubernetes's API than our own fake's.

kmock fills no resourceVersion, pages and selects nothing, and takes a /scale for the object: shapes only.
"""

from __future__ import annotations

from pathlib import Path

import kmock as mocks
import pytest

from control.fleets.attached.steering.kube.address import kube_plan
from control.fleets.attached.steering.kube.api import KubeApi
from control.fleets.attached.steering.kube.steering import KubernetesSteering
from control.fleets.base import FleetStep
from control.types.workers import Role
from tests.control.attached.fake_kubernetes import write_kubeconfig

POD = {
    "metadata": {
        "name": "d-1-x",
        "namespace": "serving",
        "labels": {"llm-d.ai/role": "decode", "pod-template-hash": "1"},
        "ownerReferences": [{"kind": "ReplicaSet", "name": "d-1"}],
    },
    "status": {"podIP": "10.0.0.7", "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
}
TEMPLATE = {"metadata": {"labels": {"llm-d.ai/role": "decode"}}}


@pytest.mark.kmock(strict=True)
async def test_pods_deployments_and_autoscalers_are_found_and_a_scale_is_patched(
    kmock: mocks.KubernetesEmulator, tmp_path: Path
):
    kmock.objects["v1/pods", "serving", "d-1-x"] = POD
    spec = {"replicas": 1, "template": TEMPLATE}
    kmock.objects["apps/v1/deployments", "serving", "d"] = {"metadata": {"name": "d"}, "spec": spec}
    kmock.resources["autoscaling/v1/horizontalpodautoscalers"] = {}
    kmock.resources["keda.sh/v1alpha1/scaledobjects"] = {}
    config = write_kubeconfig(tmp_path / "config", str(kmock.url))
    plan = kube_plan(str(config), {"namespace": "serving", "port": "8000"}, "llm-d")
    steering = KubernetesSteering(KubeApi(plan.cluster, limit_s=60.0), plan)
    roster = await steering.look()
    (member,) = roster.members
    assert (member.worker_id, member.metrics_url) == ("d-1-x", "http://10.0.0.7:8000/metrics")
    assert (roster.pools[Role.DECODE].target, roster.pools[Role.DECODE].num_ready) == (1, 1)
    step = FleetStep(verb="scale", worker_id="decode pool", role=Role.DECODE, fence=1, size=4)
    assert (await steering.apply(step)).accepted
    assert (await steering.look()).pools[Role.DECODE].target == 4
    patches = [each for each in kmock if each.method == mocks.method.PATCH]
    assert [(each.resource, each.namespace, each.name, each.subresource) for each in patches] == [
        (mocks.resource("apps", "v1", "deployments"), "serving", "d", "scale")
    ]
    await steering.close()
