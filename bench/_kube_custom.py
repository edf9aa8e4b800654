"""A DisaggregatedSet and a Dynamo graph in a cluster that has neither operator: their kinds, and a stand-in for both.

The kinds have the groups, versions, names and subresources of LWS (060ab4d, `config/crd/bases`) and of Dynamo's
operator (02046ef, `api/v1beta1`); of their schemas, as much as is used. The stand-in follows sizes only: what a set's
scaler or a graph's adapter says becomes the size of a Deployment, whose controller is the real one.
"""

from __future__ import annotations

import threading
from typing import Any

from _kube_cluster import APPS, MERGE, NAMESPACE, KubeCluster
from _peers import PeerFailed

SETS, GRAPHS = "disaggregatedset.x-k8s.io", "nvidia.com"
#: Group, version, plural, kind, and whether it has a `/scale`.
KINDS = (
    (SETS, "v1", "disaggregatedsets", "DisaggregatedSet", False),
    (SETS, "v1", "disaggregatedsetrolescalers", "DisaggregatedSetRoleScaler", True),
    (GRAPHS, "v1beta1", "dynamographdeployments", "DynamoGraphDeployment", False),
    (GRAPHS, "v1beta1", "dynamographdeploymentscalingadapters", "DynamoGraphDeploymentScalingAdapter", True),
)
SCALE = {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}
SCALE |= {"labelSelectorPath": ".status.selector"}
LOOK_S = 0.3
JSON_PATCH = "application/json-patch+json"


def install_kinds(peer: KubeCluster) -> None:
    for group, version, plural, kind, has_scale in KINDS:
        schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        told = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
        told |= {"subresources": {"status": {}} | ({"scale": SCALE} if has_scale else {})}
        names = {"plural": plural, "singular": kind.lower(), "kind": kind}
        spec = {"group": group, "scope": "Namespaced", "names": names, "versions": [told]}
        about = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
        item = {**about, "metadata": {"name": f"{plural}.{group}"}, "spec": spec}
        peer.call("POST", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", item)


def path_of(plural: str, name: str = "") -> str:
    group, version = next((group, version) for group, version, each, *_ in KINDS if each == plural)
    return f"/apis/{group}/{version}/namespaces/{NAMESPACE}/{plural}" + (f"/{name}" if name else "")


def make(peer: KubeCluster, plural: str, name: str, spec: dict[str, Any], **meta: Any) -> dict[str, Any]:
    group, version, kind = next((group, version, kind) for group, version, each, kind, _ in KINDS if each == plural)
    item = {"apiVersion": f"{group}/{version}", "kind": kind, "metadata": {"name": name, **meta}, "spec": spec}
    made: dict[str, Any] = peer.call("POST", path_of(plural), item)
    return made


class StandInOperator:
    """`follows`: what gives a size, by the Deployment that gets it. It stops when it is closed."""

    def __init__(self, peer: KubeCluster, follows: dict[str, tuple[str, str]], adapted: dict[str, int]) -> None:
        self._peer = peer
        self._follows = follows
        self._adapted = adapted  # of the graph `pd`: which component gets the size of which adapter
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_following, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _keep_following(self) -> None:
        while not self._over.wait(LOOK_S):
            try:
                self._follow()
            except PeerFailed:
                continue  # an object that was changed meanwhile

    def _follow(self) -> None:
        for adapter, index in self._adapted.items():
            size = self._peer.call("GET", path_of("dynamographdeploymentscalingadapters", adapter))["spec"]["replicas"]
            graph = self._peer.call("GET", path_of("dynamographdeployments", "pd"))
            if graph["spec"]["components"][index].get("replicas") != size:
                change = [{"op": "add", "path": f"/spec/components/{index}/replicas", "value": size}]
                self._peer.call("PATCH", path_of("dynamographdeployments", "pd"), change, JSON_PATCH)
        for name, (plural, whose) in self._follows.items():
            size = _size(self._peer.call("GET", path_of(plural, whose.partition("#")[0])), whose.partition("#")[2])
            if self._peer.call("GET", f"{APPS}/deployments/{name}")["spec"]["replicas"] != size:
                self._peer.call("PATCH", f"{APPS}/deployments/{name}", {"spec": {"replicas": size}}, MERGE)


def _size(item: dict[str, Any], component: str) -> int:
    """Of a scaler, or of a graph's component by its place."""
    spec = item["spec"]
    return int(spec["components"][int(component)].get("replicas", 1) if component else spec["replicas"])
