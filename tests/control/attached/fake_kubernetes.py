"""A Kubernetes API server on loopback, as far as a namespace with pods and what scales them goes. A fake: shapes only.

It keeps objects as they are given, counts resourceVersions, checks them on a patch, pages lists, selects by labels, and
plays the controllers that make pods follow sizes while it `obeys`. What goes wrong is switched on by the test.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, Any]
GROUPS = {"prefill": "ms-prefill", "decode": "ms-decode"}


@dataclass(slots=True)
class FakeKubernetes:
    """`fails`: answers to requests, by a part of "METHOD /path", in turn; then it is well again."""

    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    token: str = "first-word"
    obeys: bool = True
    forbidden: set[str] = field(default_factory=set)  # "list pods", "patch deployments/scale"
    fails: dict[str, list[Answer]] = field(default_factory=dict)
    before_patch: Callable[[], None] = lambda: None  # what somebody else does just before
    hangs: threading.Event | None = None
    pages_end: bool = True
    calls: list[str] = field(default_factory=list)
    bodies: list[Any] = field(default_factory=list)
    url: str = ""
    version: int = 100
    changes: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)  # version, plural, event
    num_watching: int = 0  # ever
    has_changed: threading.Condition = field(default_factory=threading.Condition)

    def add(self, plural: str, name: str, item: dict[str, Any], by: str = "helm") -> dict[str, Any]:
        meta = {"name": name, "uid": f"uid-{name}", **item.get("metadata", {})}
        self.objects[plural, name] = {**item, "metadata": meta}
        self.touch(plural, name, by)
        return self.objects[plural, name]

    def touch(self, plural: str, name: str, by: str = "") -> None:
        """It was changed; `by`: who has set its size."""
        self.version += 1
        meta = self.objects[plural, name]["metadata"]
        is_new = "resourceVersion" not in meta
        meta["resourceVersion"] = str(self.version)
        if by:
            noted = meta.setdefault("managedFields", [])
            at = f"2026-01-01T00:{self.version // 60:02}:{self.version % 60:02}Z"
            noted.append({"manager": by, "time": at, "fieldsV1": {"f:spec": {"f:replicas": {}}}})
        self.tell("ADDED" if is_new else "MODIFIED", plural, self.objects[plural, name])

    def remove(self, plural: str, name: str) -> None:
        self.version += 1
        item = self.objects.pop((plural, name))
        item["metadata"]["resourceVersion"] = str(self.version)
        self.tell("DELETED", plural, item)

    def tell(self, kind: str, plural: str, item: dict[str, Any]) -> None:
        """To whoever watches."""
        with self.has_changed:
            self.changes.append((self.version, plural, json.loads(json.dumps({"type": kind, "object": item}))))
            self.has_changed.notify_all()

    def until_watched(self, limit_s: float) -> None:
        with self.has_changed:
            assert self.has_changed.wait_for(lambda: self.num_watching > 0, limit_s)

    def watched(self, target: str, end: threading.Event) -> Iterator[dict[str, Any]]:
        """Events of a watch, until `end`, an ERROR, or one that is None: then it ends."""
        url = urlsplit(target)
        plural = url.path.split("/")[-1]
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        label, _, value = query.get("labelSelector", "").partition("=")
        since, at = int(query["resourceVersion"]), 0
        with self.has_changed:
            self.num_watching += 1
            self.has_changed.notify_all()
        while not end.is_set():
            with self.has_changed:
                self.has_changed.wait(0.0 if len(self.changes) > at else 0.5)
                news, at = self.changes[at:], len(self.changes)
            for version, whose, event in news:
                if whose == "end" and version >= since:
                    return
                labels = event["object"].get("metadata", {}).get("labels", {})
                is_mine = whose == plural and (not label or _is_selected(labels, label, value))
                if version > since and (is_mine or whose == "all"):
                    yield event

    def add_deployment(self, role: str, replicas: int, **meta: Any) -> None:
        labels = {"llm-d.ai/role": role}
        spec = {"replicas": replicas, "template": {"metadata": {"labels": labels}}}
        self.add("deployments", GROUPS[role], {"metadata": meta, "spec": spec})
        self.follow()

    def set_size(self, plural: str, name: str, size: int, by: str) -> None:
        self.objects[plural, name]["spec"]["replicas"] = size
        self.touch(plural, name, by)
        self.follow()

    def add_pod(self, name: str, role: str, **more: Any) -> dict[str, Any]:
        labels = {"llm-d.ai/role": role, "pod-template-hash": "5d9f", **more.pop("labels", {})}
        owner = {"kind": "ReplicaSet", "name": f"{GROUPS.get(role, role)}-5d9f", "controller": True}
        status = {"phase": "Running", "podIP": "127.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
        meta = {"labels": labels, "ownerReferences": [owner], "annotations": {"prometheus.io/port": "9"}}
        return self.add("pods", name, {"metadata": meta, "status": status | more})

    def follow(self) -> None:
        """As the Deployments' controller does."""
        for role, name in GROUPS.items():
            deployment = self.objects.get(("deployments", name))
            if deployment is None or not self.obeys:
                continue
            mine = sorted(pod for plural, pod in self.objects if plural == "pods" and pod.startswith(f"{name}-"))
            for pod in mine[deployment["spec"]["replicas"] :]:
                self.remove("pods", pod)
            for number in range(len(mine), deployment["spec"]["replicas"]):
                self.add_pod(f"{name}-5d9f-{number}", role)

    def answer(self, method: str, target: str, body: Any, token: str) -> Answer:
        url = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.calls.append(f"{method} {target}")
        self.bodies.append(body)
        if self.hangs is not None:
            self.hangs.wait(30)
        if token != self.token:
            return 401, {"kind": "Status", "message": "Unauthorized"}
        for part, answers in self.fails.items():
            if part in f"{method} {target}" and answers:
                return answers.pop(0)
        path = url.path.split("/")
        rest = path[path.index("namespaces") + 2 :] if "namespaces" in path else path[-1:]
        plural, name, sub = (*rest, "", "")[:3]
        if plural == "selfsubjectaccessreviews":
            return 201, {"status": {"allowed": _asked(body) not in self.forbidden}}
        verb = {"GET": "get" if name else "list", "PATCH": "patch"}[method]
        verb = "watch" if "watch" in query else verb
        if f"{verb} {plural}{'/' if sub else ''}{sub}" in self.forbidden:
            return 403, {"message": f'{plural} is forbidden: User "phaseline" cannot {verb} resource "{plural}"'}
        if verb == "watch":
            return 200, None
        if verb == "list":
            return self._listed(plural, query)
        item = self.objects.get((plural, name))
        if item is None:
            return 404, {"message": f'{plural} "{name}" not found'}
        return (200, item) if verb == "get" else self._patched(plural, name, body)

    def _listed(self, plural: str, query: dict[str, str]) -> Answer:
        label, _, value = query.get("labelSelector", "").partition("=")
        items = [item for (each, _), item in sorted(self.objects.items()) if each == plural]
        if label:
            items = [item for item in items if _is_selected(item["metadata"].get("labels", {}), label, value)]
        start, limit = int(query.get("continue", "0")), int(query["limit"])
        more = start + limit < len(items) or not self.pages_end
        token = {"continue": str(start + limit if self.pages_end else start)} if more else {}
        return 200, {"metadata": token | {"resourceVersion": str(self.version)}, "items": items[start : start + limit]}

    def _patched(self, plural: str, name: str, body: Any) -> Answer:
        self.before_patch()
        item = self.objects[plural, name]
        if isinstance(body, list):
            version = next(each["value"] for each in body if each["path"] == "/metadata/resourceVersion")
            index = int(body[-1]["path"].split("/")[3])
        else:
            version = body["metadata"]["resourceVersion"]
        if version != item["metadata"]["resourceVersion"]:
            words = f'Operation cannot be fulfilled on {plural} "{name}": the object has been modified'
            return (422 if isinstance(body, list) else 409), {"message": words}
        if isinstance(body, list):
            item["spec"]["components"][index]["replicas"] = body[-1]["value"]
            self.touch(plural, name)
        else:
            self.set_size(plural, name, body["spec"]["replicas"], "phaseline")
        return 200, item


def _is_selected(labels: dict[str, str], label: str, value: str) -> bool:
    """By a label with a value, or by a label that is there."""
    return label in labels and (not value or labels[label] == value)


def _asked(body: dict[str, Any]) -> str:
    told = body["spec"]["resourceAttributes"]
    return f"{told['verb']} {told['resource']}" + (f"/{told['subresource']}" if "subresource" in told else "")


def _handler(fake: FakeKubernetes, end: threading.Event) -> type[BaseHTTPRequestHandler]:
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            with turn if fake.hangs is None else contextlib.nullcontext():
                status, value = fake.answer(self.command, self.path, body, token)
                text = (value if isinstance(value, str) else json.dumps(value)).encode()
            with contextlib.suppress(ConnectionError):
                if value is None:
                    self.follow()
                    return
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                if status == 429:
                    self.send_header("Retry-After", "30")
                self.end_headers()
                self.wfile.write(text)

        do_PATCH = do_POST = do_GET

        def follow(self) -> None:
            """A watch: a line an event, its length not known before."""
            self.close_connection = True
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Connection", "close")
            self.end_headers()
            for event in fake.watched(self.path, end):
                self.wfile.write(json.dumps(event).encode() + b"\n")
                self.wfile.flush()

        def log_message(self, *args: Any) -> None:
            """To nobody."""

    return Handler


@contextlib.contextmanager
def serving(fake: FakeKubernetes) -> Iterator[FakeKubernetes]:
    """It listens until the end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(fake, end := threading.Event()))
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        if fake.hangs is not None:
            fake.hangs.set()
        end.set()
        server.shutdown()
        server.server_close()


def write_kubeconfig(path: Path, server: str, token: str = "first-word") -> Path:
    """With one context, `test`. JSON is YAML."""
    told = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "here", "user": "me"}}],
        "clusters": [{"name": "here", "cluster": {"server": server}}],
        "users": [{"name": "me", "user": {"token": token}}],
    }
    return write_text(path, json.dumps(told))


def write_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
