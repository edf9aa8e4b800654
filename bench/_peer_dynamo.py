"""NVIDIA Dynamo for real: its frontend, its mock workers, its virtual connector in etcd with a controller of ours."""

from __future__ import annotations

import base64
import subprocess
import threading
import time

import httpx

from _deployment import ROOT, free_ports
from _peer_site import LIMIT_S, Site, resize, undo
from _peers import PEERS, Dynamo, low_ports, running
from control.types import Capability, CommandState

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


def try_dynamo(site: Site) -> None:
    """Observed while one is killed and one added; a resize obeyed, undone, ignored, and fought over."""
    with running(SizedDynamo()) as peer:
        assert isinstance(peer, SizedDynamo)
        controller = f"dynamo={peer.url}?etcd={peer.etcd_url}&namespace=dynamo"
        site.attach(kind="dynamo", controller=controller, simulated=True)
        site.until_pools(prefill=2, decode=2)
        peer.kill("decode1")
        site.note("decode1 killed with -9", f"not seen as ready after {site.until_pools(prefill=2, decode=1):.1f} s")
        peer.start_again("decode1")
        site.note("started again", f"seen after {site.until_pools(prefill=2, decode=2):.1f} s, under a new id")
        site.expect_refused("resize without permission", resize(decode=3))
        site.allow(Capability.RESIZE)
        site.until_pools(prefill=2, decode=2)
        done = site.expect("resize decode 2 -> 3, obeyed", resize(decode=3), CommandState.DONE)
        site.expect("undo", undo(done), CommandState.DONE)
        peer.obeys = False
        site.expect("resize not obeyed, but acknowledged", resize(decode=4), CommandState.FAILED, "not reached within")
        begun_s = time.monotonic()
        command = site.order(resize(prefill=3), wait=False)
        site.until("our wish", lambda: peer.wish()[0] == 3)
        peer.write_wish(1, 1)
        fought = site.client.wait(command.command_id, timeout_s=LIMIT_S)
        site.ended("another planner's wish", fought, CommandState.FAILED, "another planner", begun_s)


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
