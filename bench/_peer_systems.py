"""What `bench/peers.py` starts beside the systems of `_peers`: a virtual connector, Ray Serve, Prometheus, a load."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from _deployment import ROOT, free_ports
from _peers import FAKE_STEP_S, PEERS, READY_LIMIT_S, Dynamo, Peer, PeerFailed, low_ports

RAY = "2.60.0"
ETCD = PEERS / "etcd" / "usr" / "bin" / "etcd"


class SizedDynamo(Dynamo):
    """With etcd, and a controller that carries out the wishes of its virtual connector while `obeys`."""

    obeys = True
    etcd_url = ""

    @classmethod
    def set_up(cls) -> None:
        """etcd is Debian's, unpacked and not installed."""
        super().set_up()
        if not ETCD.exists():
            folder = PEERS / "etcd"
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(["apt-get", "download", "etcd-server"], cwd=folder, check=True)
            package = next(folder.glob("etcd-server_*.deb"))
            subprocess.run(["dpkg", "-x", str(package), str(folder)], check=True)

    def run(self, name: str, command: list[str], environment: dict[str, str] | None = None) -> None:
        self._templates = {**getattr(self, "_templates", {}), name: (command, environment or {})}
        super().run(name, command, environment)

    def start(self) -> None:
        client, peer = free_ports(2)
        self.etcd_url = f"http://127.0.0.1:{client}"
        urls = ["--listen-client-urls", self.etcd_url, "--advertise-client-urls", self.etcd_url]
        urls += ["--listen-peer-urls", f"http://127.0.0.1:{peer}"]
        urls += ["--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"]
        urls += ["--initial-cluster", f"default=http://127.0.0.1:{peer}"]
        self.run("etcd", [str(ETCD), "--data-dir", str(self.folder / "etcd"), *urls])
        super().start()
        command = [str(self.python), str(ROOT / "bench" / "_dynamo_controller.py"), "dynamo"]
        with (self.folder / "controller.log").open("ab") as log:
            controller = subprocess.Popen(
                command,
                env={"ETCD_ENDPOINTS": self.etcd_url, "DYN_EVENT_PLANE": "zmq", "PATH": "/usr/bin:/bin"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._processes["controller"] = controller
        threading.Thread(target=self._carry_out, args=(controller,), daemon=True).start()

    def _carry_out(self, controller: subprocess.Popen[bytes]) -> None:
        assert controller.stdout is not None
        assert controller.stdin is not None
        for line in controller.stdout:
            words = line.split()
            if len(words) == 2 and self.obeys:
                for role, size in zip(("prefill", "decode"), map(int, words), strict=True):
                    if size >= 0:
                        self._set_size(role, size)
            controller.stdin.write(b"done\n")
            controller.stdin.flush()

    def _set_size(self, role: str, size: int) -> None:
        running = sorted(n for n, p in self._processes.items() if n.startswith(role) and p.poll() is None)
        for name in running[size:]:
            self._processes[name].terminate()
            self._processes[name].wait()
        for number in range(len(running), size):
            command, environment = self._templates[f"{role}0"]
            if "--bootstrap-ports" in command:
                at = command.index("--bootstrap-ports") + 1
                command = [*command[:at], str(free_ports(1)[0]), *command[at + 1 :]]
            self.run(f"{role}{number}", command, environment | {"DYN_SYSTEM_PORT": str(low_ports(1)[0])})

    def wish(self) -> tuple[int, int]:
        """What the connector holds: prefill, decode."""
        found = {name: self._key(name) for name in ("num_prefill_workers", "num_decode_workers")}
        return int(found["num_prefill_workers"] or -1), int(found["num_decode_workers"] or -1)

    def write_wish(self, prefill: int, decode: int) -> None:
        """As another planner does."""
        number = int(self._key("decision_id") or -1) + 1
        for name, value in (
            ("num_prefill_workers", prefill),
            ("num_decode_workers", decode),
            ("decision_id", number),
        ):
            body = {"key": _coded(f"v1/dynamo/planner/{name}"), "value": _coded(str(value))}
            httpx.post(f"{self.etcd_url}/v3/kv/put", json=body).raise_for_status()

    def _key(self, name: str) -> str:
        body = {"key": _coded(f"v1/dynamo/planner/{name}")}
        found = httpx.post(f"{self.etcd_url}/v3/kv/range", json=body).json().get("kvs", [])
        return base64.b64decode(found[0]["value"]).decode() if found else ""


class RayServe(Peer):
    """Two deployments that only wait, one prefill and two decode replicas."""

    name = "ray-serve"
    model_id = "fake"
    what = f"Ray Serve {RAY}, two deployments that only wait"
    dashboard_url = ""
    token_file = Path()

    @classmethod
    def packages(cls) -> list[list[str]]:
        return [[f"ray[serve]=={RAY}"]]

    def start(self) -> None:
        dashboard, http = free_ports(2)
        self.url, self.dashboard_url = f"http://127.0.0.1:{http}", f"http://127.0.0.1:{dashboard}"
        app = str(ROOT / "bench" / "_ray_serve_app.py")
        self.token_file = self.folder / "token"
        self.token_file.write_text(secrets.token_hex(32))
        environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)}
        environment |= {"RAY_USAGE_STATS_ENABLED": "0"}
        self.run("frontend", [str(self.python), app, str(dashboard), str(http)], environment)
        self.until_whole()

    def is_whole(self) -> bool:
        return "\nready" in f"\n{self.log('frontend')}"

    def clear(self) -> None:
        """Ray's own processes end when their driver is asked to, not when it is killed."""
        if "frontend" in self._processes:
            self._processes["frontend"].terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._processes["frontend"].wait(60)
        super().clear()


class PromPeer(Peer):
    """Debian's Prometheus, which scrapes three fake engines whose stage a label says."""

    name = "prometheus"
    model_id = "fake"
    what = "Debian's Prometheus"

    @classmethod
    def set_up(cls) -> None:
        """It is a package of the system."""

    @classmethod
    def packages(cls) -> list[list[str]]:
        return []

    @property
    def python(self) -> Path:
        return Path(sys.executable)

    def start(self) -> None:
        port, *ports = free_ports(4)
        stages = ("first", "second", "second")
        for number, (stage, each) in enumerate(zip(stages, ports, strict=True)):
            role = "prefill" if stage == "first" else "decode"
            fake = str(ROOT / "bench" / "_fake_worker.py")
            self.run(f"engine{number}", [sys.executable, fake, role, str(each), str(FAKE_STEP_S)])
        groups = [
            {"targets": [f"127.0.0.1:{each}"], "labels": {"stage": stage}}
            for stage, each in zip(stages, ports, strict=True)
        ]
        job = {"job_name": "engines", "scrape_interval": "1s", "static_configs": groups}
        config = self.folder / "prometheus.yml"
        config.write_text(json.dumps({"scrape_configs": [job]}))  # JSON is YAML
        self.url = f"http://127.0.0.1:{port}"
        storage = ["--storage.tsdb.path", str(self.folder / "tsdb")]
        listen = f"--web.listen-address=127.0.0.1:{port}"
        self.run("frontend", ["prometheus", f"--config.file={config}", *storage, listen])
        self.until_whole()

    def is_whole(self) -> bool:
        found = self.get("/api/v1/query?query=up")
        return found is not None and len(found.get("data", {}).get("result", [])) == 3


@dataclass(frozen=True, slots=True)
class LonePlane:
    """A plane without workers, gateways and console, and how to talk to it."""

    url: str
    token: str


@contextmanager
def lone_plane() -> Iterator[LonePlane]:
    """The product's own process. Raises PeerFailed with its log."""
    with tempfile.TemporaryDirectory(prefix="phaseline-peers-") as folder:
        run_dir, (port,) = Path(folder), free_ports(1)
        told = {"RUN_DIR": folder, "FLEET_KIND": "none", "API_PORT": str(port)}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PHASELINE_")}
        environment |= {f"PHASELINE_{name}": value for name, value in told.items()} | {"PYTHONPATH": str(ROOT)}
        with (run_dir / "plane.log").open("ab") as log:
            command = [sys.executable, "-m", "control.plane_main"]
            plane = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
        try:
            token, deadline_s = run_dir / "secrets" / "operator_token", time.monotonic() + READY_LIMIT_S
            while not (token.exists() and b"active under fence" in (run_dir / "plane.log").read_bytes()):
                if plane.poll() is not None or time.monotonic() > deadline_s:
                    raise PeerFailed(f"the plane did not start: {(run_dir / 'plane.log').read_text()[-2000:]}")
                time.sleep(0.1)
            yield LonePlane(f"http://127.0.0.1:{port}", token.read_text().strip())
        finally:
            plane.terminate()
            plane.wait(30)


@dataclass(slots=True)
class Load:
    """What became of the requests."""

    done: int = 0
    failed: int = 0
    problems: dict[str, int] = field(default_factory=dict)

    def words(self) -> str:
        return f"{self.done} done, {self.failed} failed" + (f" {self.problems}" if self.problems else "")


@contextmanager
def asked(url: str, body: dict[str, Any], num_streams: int) -> Iterator[Load]:
    """So many clients ask again and again; those under way at the end are waited for."""
    load, stop = Load(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_ask(url, body, num_streams, load, stop)))
    thread.start()
    try:
        yield load
    finally:
        stop.set()
        thread.join()


async def _ask(url: str, body: dict[str, Any], num_streams: int, load: Load, stop: threading.Event) -> None:
    async def client(number: int, http: httpx.AsyncClient) -> None:
        while not stop.is_set():
            try:
                told = {**body, "prompt": f"{number} {time.monotonic()}"} if body else None
                answer = await (http.post(url, json=told) if told else http.get(url))
                is_whole = answer.status_code == 200 and (not body or "[DONE]" in answer.text)
                problem = "" if is_whole else f"{answer.status_code} {answer.text[-80:]!r}"
            except httpx.HTTPError as error:
                problem = type(error).__name__
            if problem:
                load.failed += 1
                load.problems[problem] = load.problems.get(problem, 0) + 1
                await asyncio.sleep(0.1)
            else:
                load.done += 1

    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        await asyncio.gather(*(client(number, http) for number in range(num_streams)))


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
