"""What runs the pods of a cluster that has no node: a stand-in for the kubelet, one fake engine per pod on loopback.

It does what the API server expects of a kubelet: binds the pod to its node, starts it, says its address and that it is
ready, and when the pod is to end stops the engine within the pod's grace period and says that it is gone. No image, no
probes, no scheduler. Each pod has an address of its own, and all the same port.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import httpx
from kubernetes.client import ApiException, CoreV1Api
from kubernetes.config import new_client_from_config
from kubernetes.watch import Watch
from urllib3.exceptions import HTTPError

from _deployment import ROOT, free_ports
from _fake_pod import GRACE_S
from _kube_cluster import NAMESPACE
from _peers import PeerFailed

NODE = "stand-in"
ROLE = "llm-d.ai/role"
#: Where the role of an engine is said, the first that is there.
ROLES = (ROLE, "disaggregatedset.x-k8s.io/role", "nvidia.com/dynamo-sub-component-type")
STEP_S = 0.02
BEGINS_S = 60.0
AGAIN_S = 0.3


class StandInKubelet:
    """`starts` False: pods that come are left as they are, as on a cluster without room."""

    def __init__(self, kubeconfig: Path, log: Path) -> None:
        (self.port,) = free_ports(1)
        self.starts = True
        self.ended_tokens = {"prefill": 0, "decode": 0}
        self._core = CoreV1Api(new_client_from_config(str(kubeconfig)))
        self._log = log
        self._engines: dict[str, subprocess.Popen[bytes]] = {}  # by pod
        self._ready: dict[str, tuple[str, str]] = {}  # role and address
        self._seen: set[tuple[str, bool]] = set()
        self._hosts = count(2)
        self._over = threading.Event()
        self._work = ThreadPoolExecutor(8, thread_name_prefix="pod")
        self._core.create_node({"metadata": {"name": NODE}})
        self._thread = threading.Thread(target=self._keep_watching, daemon=True)
        self._thread.start()

    def addresses(self, role: str) -> list[str]:
        """Of engines that take requests now, as a Service of them would know."""
        return sorted(url for each, url in self._ready.values() if each == role)

    def pods(self) -> dict[str, str]:
        """Roles by pod, of those that take requests."""
        return {name: role for name, (role, _) in dict(self._ready).items()}

    def set_ready(self, name: str, is_ready: bool) -> None:
        """As a probe that fails, or succeeds again, would."""
        conditions = [{"type": "Ready", "status": str(is_ready)}]
        self._core.patch_namespaced_pod_status(name, NAMESPACE, {"status": {"conditions": conditions}})

    def start_waiting(self) -> None:
        """Room again: those that were left are started."""
        self.starts = True
        for pod in self._core.list_namespaced_pod(NAMESPACE).items:
            self._see(pod)

    def close(self) -> None:
        self._over.set()
        self._work.shutdown(wait=True, cancel_futures=True)
        for each in self._engines.values():
            each.kill()
            each.wait()

    def _keep_watching(self) -> None:
        while not self._over.is_set():
            try:
                for event in Watch().stream(self._core.list_namespaced_pod, NAMESPACE, timeout_seconds=30):
                    self._see(event["object"])
                    if self._over.is_set():
                        return
            except (ApiException, HTTPError, OSError):
                time.sleep(AGAIN_S)

    def _see(self, pod: Any) -> None:
        """Each pod is begun once and ended once."""
        name, is_going = pod.metadata.name, pod.metadata.deletion_timestamp is not None
        if (not is_going and not self.starts) or (name, is_going) in self._seen or self._over.is_set():
            return
        self._seen.add((name, is_going))
        if is_going:
            self._work.submit(self._until_done, self._end, name)
        elif pod.status.phase == "Pending":
            labels = pod.metadata.labels or {}
            role = next((labels[each] for each in ROLES if each in labels), "")
            self._work.submit(self._until_done, self._begin, name, role)

    def _until_done(self, act: Any, *told: str) -> None:
        """An API server that is away is asked again."""
        while not self._over.is_set():
            try:
                act(*told)
                return
            except ApiException as error:
                if error.status in (404, 409):  # it is gone, or was bound before
                    return
            except (HTTPError, OSError):
                pass
            time.sleep(AGAIN_S)

    def _begin(self, name: str, role: str) -> None:
        target = {"kind": "Node", "apiVersion": "v1", "name": NODE}
        host = f"127.0.{100 + os.getpid() % 100}.{next(self._hosts)}"
        body = {"metadata": {"name": name}, "target": target}
        self._core.create_namespaced_pod_binding(name, NAMESPACE, body, _preload_content=False)
        command = [sys.executable, str(ROOT / "bench" / "_fake_pod.py"), role, host, str(self.port), str(STEP_S)]
        with self._log.open("ab") as log:
            self._engines[name] = subprocess.Popen(command, stdout=log, stderr=log, process_group=0)
        url = f"http://{host}:{self.port}"
        _until_answers(url)
        self._ready[name] = (role, url)
        conditions = [{"type": each, "status": "True"} for each in ("PodScheduled", "ContainersReady", "Ready")]
        status = {"phase": "Running", "podIP": host, "podIPs": [{"ip": host}], "conditions": conditions}
        self._core.patch_namespaced_pod_status(name, NAMESPACE, {"status": status})

    def _end(self, name: str) -> None:
        """No new requests, then an end in time for those that it has, then word that it is gone."""
        role, url = self._ready.pop(name, ("", ""))
        engine = self._engines.get(name)
        if engine is not None and engine.poll() is None:
            if role:
                self.ended_tokens[role] += tokens_at(url)[role]
            engine.terminate()
            try:
                engine.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                engine.kill()
                engine.wait()
        self._core.delete_namespaced_pod(name, NAMESPACE, grace_period_seconds=0)


def tokens_at(url: str) -> dict[str, int]:
    """What an engine has counted: prompt tokens that it computed, answer tokens."""
    rows = dict(line.rsplit(" ", 1) for line in httpx.get(f"{url}/metrics", timeout=10).text.splitlines())
    found = {name.partition("{")[0] + ("local" if "local" in name else ""): int(float(v)) for name, v in rows.items()}
    return {
        "prefill": found["vllm:prompt_tokens_by_source_totallocal"],
        "decode": found["vllm:generation_tokens_total"],
    }


def _until_answers(url: str) -> None:
    deadline_s = time.monotonic() + BEGINS_S
    while time.monotonic() < deadline_s:
        try:
            httpx.get(f"{url}/health", timeout=1)
            return
        except httpx.HTTPError:
            time.sleep(0.1)
    raise PeerFailed(f"a fake engine does not answer at {url}")
