"""Controllers of other systems over real HTTP on loopback: a few lines each, with the answers that the real ones gave.

sglang-router 0.3.2, Ray Serve 2.60 and etcd 3.4 (as Dynamo 1.6.1's virtual connector fills it), as recorded by hand.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class Fake(Protocol):
    url: str

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]: ...


@contextlib.asynccontextmanager
async def served(*fakes: Fake) -> AsyncIterator[None]:
    """They listen until the end."""
    servers = [await asyncio.start_server(_talk(each), "127.0.0.1", 0) for each in fakes]
    for fake, server in zip(fakes, servers, strict=True):
        fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield
    finally:
        for server in servers:
            server.close()


def _talk(fake: Fake) -> Any:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = head.split(" ", 2)
                length = next((int(x.split(":")[1]) for x in head.lower().splitlines() if "content-length" in x), 0)
                body = json.loads(await reader.readexactly(length)) if length else None
                status, value = fake.answer(method, path, body)
                text = (value if isinstance(value, str) else json.dumps(value)).encode()
                writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(text)}\r\n\r\n".encode() + text)
        writer.close()

    return talk


@dataclass(slots=True)
class FakeSglangEngine:
    """`num_running` falls by one at each look at its page. Its role switch answers as 0.5.23's does."""

    num_running: int = 0
    switches: list[bool] = field(default_factory=list)  # prepare_only of each
    role_switch: bool = True
    breaks: bool = False  # in the middle of a change that it said it could make
    is_down: bool = False
    graph_gb: float | None = None  # as it was told last
    url: str = ""

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if self.is_down:
            return 500, "down"
        if path == "/pd_role_switch":
            self.switches.append(body["prepare_only"])
            self.graph_gb = body.get("decode_cuda_graph_memory_gb")
            if not self.role_switch:
                return 400, {"success": False, "message": "speculative decoding", "safe_to_restore": True}
            if self.breaks and not body["prepare_only"]:
                return 400, {"success": False, "message": "rebuild failed", "safe_to_restore": False}
            return 200, {"success": True, "message": "ok"}
        page = f'sglang:num_running_reqs{{model_name="tiny"}} {self.num_running}\nsglang:num_queue_reqs 0\n'
        self.num_running = max(0, self.num_running - 1)
        return 200, page


@dataclass(slots=True)
class FakeRouter:
    """As 0.3.2: a changed `worker_type` is accepted and ignored."""

    workers: dict[str, dict[str, Any]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    canary_status: int = 200
    obeys_post: bool = True
    obeys_put: bool = False  # as smg
    url: str = ""

    def add(self, url: str, role: str) -> None:
        number = f"id-{len(self.calls)}-{len(self.workers)}"
        self.workers[number] = {"id": number, "url": url, "worker_type": role, "is_healthy": True}

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if path == "/workers" and method == "GET":
            return 200, {"workers": list(self.workers.values())}
        self.calls.append(f"{method} {path.rsplit('/', 1)[0] if path.count('/') > 1 and 'v1' not in path else path}")
        if path == "/workers":
            if self.obeys_post:
                self.add(body["url"], body["worker_type"])
            return 202, {"status": "accepted"}
        if method == "DELETE":
            self.workers.pop(path.rsplit("/", 1)[1])
            return 202, {"status": "accepted"}
        if method == "PUT":
            if self.obeys_put:
                self.workers[path.rsplit("/", 1)[1]]["worker_type"] = body["worker_type"]
            return 202, {"status": "accepted"}
        return (200, {"data": [{"id": "tiny"}]}) if path == "/v1/models" else (self.canary_status, {})


@dataclass(slots=True)
class FakeRay:
    """Replicas follow their target at the next look, while `obeys`. `agents`: its metrics agents; it can be one too."""

    targets: dict[str, int] = field(default_factory=lambda: {"Prefill:m": 1, "Decode:m": 2, "Ingress": 1})
    replicas: dict[str, int] = field(default_factory=lambda: {"Prefill:m": 1, "Decode:m": 2, "Ingress": 1})
    external_scaler: bool = True
    obeys: bool = True
    autoscaled: bool = False
    agents: list[str] | None = field(default_factory=list)
    agent_page: str = ""
    ids: dict[str, str] = field(default_factory=dict)  # of the only replica of a deployment
    url: str = ""

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if method == "POST":
            if not self.external_scaler:
                return 412, {"error": "external_scaler_enabled is not set"}
            self.targets[path.split("/")[-2]] = body["target_num_replicas"]
            return 200, {"message": "accepted"}
        if path == "/metrics":
            return 200, self.agent_page
        if path == "/api/prometheus/sd":
            return 200, {} if self.agents is None else [{"labels": {"job": "ray"}, "targets": self.agents}]
        if self.obeys:
            self.replicas = dict(self.targets)
        found = {
            name: {
                "target_num_replicas": self.targets[name],
                "deployment_config": {"autoscaling_config": {"min_replicas": 1} if self.autoscaled else None},
                "replicas": [
                    {"replica_id": self.ids.get(name, f"{name}-{n}"), "worker_id": f"w{n}", "state": "RUNNING"}
                    for n in range(num)
                ],
            }
            for name, num in self.replicas.items()
        }
        return 200, {"ray_version": "2.60.0", "applications": {"pd": {"deployments": found}}}


@dataclass(slots=True)
class FakeEtcd:
    """Its JSON gateway, as far as one transaction on one key goes. What a test puts into `keys` is somebody's write."""

    keys: dict[str, str] = field(default_factory=dict)
    revisions: dict[str, int] = field(default_factory=dict)
    revision: int = 1
    known: dict[str, str] = field(default_factory=dict)
    url: str = ""

    def write(self, values: Mapping[str, str]) -> None:
        """In one transaction, whatever the keys held."""
        self.keys |= values
        self.known = dict(self.keys)
        self.revisions = {k: v for k, v in self.revisions.items() if k in self.keys}
        self.revision += 1
        self.revisions |= dict.fromkeys(values, self.revision)

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if self.keys != self.known:
            self.write({k: v for k, v in self.keys.items() if self.known.get(k) != v})
        if path == "/v3/kv/range":
            root = plain(body["key"])
            found = {k: v for k, v in self.keys.items() if k.startswith(root)}
            rows = [
                {"key": coded(k), "value": coded(v), "mod_revision": str(self.revisions[k])} for k, v in found.items()
            ]
            return 200, {"kvs": rows}
        compare = body["compare"][0]
        same = self.revisions.get(plain(compare["key"]), 0) == int(compare["mod_revision"])
        if same:
            self.write({plain(p["requestPut"]["key"]): plain(p["requestPut"]["value"]) for p in body["success"]})
        return 200, {"header": {"revision": str(self.revision)}, **({"succeeded": True} if same else {})}


@dataclass(slots=True)
class FakeDynamo:
    """Its frontend's /health, with one endpoint that is no worker, its page, and its version."""

    workers: dict[int, str] = field(default_factory=lambda: {255: "prefill", 14207702445456882354: "backend"})
    page: str = ""
    host: str = "127.0.0.1"
    health: Any = None  # in place of what `workers` says
    version: str = "1.6.1"  # "": an older one, which does not describe itself
    url: str = ""

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if path == "/openapi.json":
            return (200, {"info": {"version": self.version}}) if self.version else (404, {})
        if path == "/metrics":
            return 200, self.page
        if self.health is not None:
            return 200, self.health
        transport = {"tcp": f"{self.host}:4000/x/dynamo/generate"}
        rows = [
            {"component": name, "endpoint": endpoint, "instance_id": number, "transport": transport}
            for number, name in self.workers.items()
            for endpoint in ("generate", "worker_kv_query")
        ]
        return 200, {"status": "healthy", "instances": rows}


@dataclass(slots=True)
class FakePrometheus:
    """One instant query."""

    series: list[dict[str, str]] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        self.queries.append(path)
        result = [{"metric": each, "value": [1.0, "1"]} for each in self.series]
        return 200, {"status": "success", "data": {"resultType": "vector", "result": result}}


def coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def plain(text: str) -> str:
    return base64.b64decode(text).decode()
