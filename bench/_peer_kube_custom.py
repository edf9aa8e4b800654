"""Sizes that are set in objects of somebody else's kind, in a real API server: a DisaggregatedSet and a Dynamo graph.

Their operators are no part of it: a stand-in follows the sizes, so what is tried is our half, that the server takes our
patches by the rights that are documented, and that one which nobody carries out has failed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from _kube_cluster import APPS, NAMESPACE, KubeCluster
from _kube_custom import GRAPHS, SETS, StandInOperator, install_kinds, make
from _kube_pods import StandInKubelet
from _peer_site import Site, resize, undo
from control.types.commands import CommandState
from control.types.fleet import Capability

LIMIT_S = 20.0


def try_sets_and_graphs(site: Site, peer: KubeCluster, pods: StandInKubelet, config: Path) -> None:
    install_kinds(peer)
    follows = _make_set(peer, pods.port) | _make_graph(peer, pods.port)
    operator = StandInOperator(peer, follows, {"pd-prefill": 1})
    try:
        sizes = ("set", "llm-d", "disaggregatedset/llama"), ("graph", "dynamo", "graph/pd")
        fleets = [_attached(site, config, *each) for each in sizes]
        for each in fleets:
            done = each.expect("resize both 1 -> 2", resize(prefill=2, decode=2), CommandState.DONE)
            each.until_pools(prefill=2, decode=2)
            each.expect("undo", undo(done), CommandState.DONE)
            each.until_pools(prefill=1, decode=1)
    finally:
        operator.close()
    for each in fleets:
        each.expect("resize, no operator runs", resize(decode=2), CommandState.FAILED, "not reached within")
        site.client.detach(each.name)


def _attached(site: Site, config: Path, name: str, kind: str, scale: str) -> Site:
    fleet = Site(site.fleet, name)
    fleet.findings = site.findings
    where = f"kubernetes={config}?namespace={NAMESPACE}&scale={scale}"
    fleet.attach(kind=kind, controller=where, limit_s=LIMIT_S, simulated=True)
    fleet.until_pools(prefill=1, decode=1)
    fleet.allow(Capability.RESIZE)
    fleet.until_pools(prefill=1, decode=1)
    return fleet


def _make_set(peer: KubeCluster, port: int) -> dict[str, tuple[str, str]]:
    """Both roles sized from outside; a scaler of each belongs to the set, as its controller makes them."""
    roles = [{"name": role, "scaling": {"mode": "External"}} for role in ("prefill", "decode")]
    made = make(peer, "disaggregatedsets", "llama", {"slices": 1, "roles": roles})
    owner = {"apiVersion": f"{SETS}/v1", "kind": "DisaggregatedSet", "name": "llama", "uid": made["metadata"]["uid"]}
    follows = {}
    for role in ("prefill", "decode"):
        name = f"llama-{role}"
        make(peer, "disaggregatedsetrolescalers", name, {"replicas": 1}, ownerReferences=[owner | {"controller": True}])
        _deploy(peer, name, {f"{SETS}/name": "llama", f"{SETS}/role": role}, port)
        follows[name] = ("disaggregatedsetrolescalers", name)
    return follows


def _make_graph(peer: KubeCluster, port: int) -> dict[str, tuple[str, str]]:
    """A component with an adapter, and one that is sized in the graph itself."""
    components: list[dict[str, Any]] = [
        {"name": "Frontend", "type": "frontend", "replicas": 1},
        {"name": "Prefill", "type": "prefill", "replicas": 1, "scalingAdapter": {}},
        {"name": "Decode", "type": "decode", "replicas": 1},
    ]
    make(peer, "dynamographdeployments", "pd", {"components": components})
    adapted = {"replicas": 1, "dgdRef": {"name": "pd", "componentName": "Prefill"}}
    make(peer, "dynamographdeploymentscalingadapters", "pd-prefill", adapted)
    follows = {}
    for index, role in ((1, "prefill"), (2, "decode")):
        labels = {f"{GRAPHS}/dynamo-graph-deployment-name": "pd", f"{GRAPHS}/dynamo-component-type": "worker"}
        _deploy(peer, f"pd-{role}", labels | {f"{GRAPHS}/dynamo-sub-component-type": role}, port)
        follows[f"pd-{role}"] = ("dynamographdeployments", f"pd#{index}")
    return follows


def _deploy(peer: KubeCluster, name: str, labels: dict[str, str], port: int) -> None:
    container = {"name": "engine", "image": "fake", "ports": [{"name": "metrics", "containerPort": port}]}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    peer.call("POST", f"{APPS}/deployments", {"metadata": {"name": name}, "spec": spec})
