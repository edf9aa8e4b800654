"""Pods of a fake Kubernetes API server that are engines on loopback, and what becomes of them there."""

from __future__ import annotations

from urllib.parse import urlsplit

from tests.control.attached.fake_kubernetes import FakeKubernetes

#: Pods of one Deployment as most have them: no label says a role.
APP = {"app": "vllm"}


def add_engine(cluster: FakeKubernetes, name: str, url: str, role: str = "") -> None:
    """A pod that is ready; `role` "": it has no label of one."""
    labels = APP | ({"llm-d.ai/role": role} if role else {})
    meta = {"labels": labels, "annotations": {"prometheus.io/port": str(urlsplit(url).port)}}
    status = {"phase": "Running", "podIP": urlsplit(url).hostname, "conditions": [{"type": "Ready", "status": "True"}]}
    cluster.add("pods", name, {"metadata": meta, "status": status})


def set_ready(cluster: FakeKubernetes, name: str, is_ready: bool) -> None:
    status = cluster.objects["pods", name]["status"]
    status["conditions"] = [{"type": "Ready", "status": "True" if is_ready else "False"}]
    cluster.touch("pods", name)


def terminate(cluster: FakeKubernetes, name: str) -> None:
    """Its grace period begins: it is listed until it has ended."""
    cluster.objects["pods", name]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    cluster.touch("pods", name)


def go_away(cluster: FakeKubernetes) -> None:
    """The watch that is open ends, and every call is refused from now on."""
    cluster.token = "another-word"
    cluster.version += 1
    cluster.tell("", "end", {})
