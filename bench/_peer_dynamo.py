"""NVIDIA Dynamo for real: its frontend, its mock workers, its virtual connector in etcd with a controller of ours."""

from __future__ import annotations

import base64
import subprocess
import threading
import time
from dataclasses import replace

import httpx

from _counted_load import LoadSize, counted_load
from _deployment import ROOT, free_ports
from _peer_site import LIMIT_S, Site, Unmet, asked, resize, undo
from _peers import PEERS, Dynamo, low_ports, running
from control.client import Attachment
from control.traffic.client import Outcome
from control.types.commands import CommandState
from control.types.fleet import Capability

ETCD = PEERS / "etcd" / "usr" / "bin" / "etcd"
ANSWER_TOKENS = 30
LOAD = LoadSize(num_clients=8, num_each=24, answer_tokens=ANSWER_TOKENS)
LOOK_S, LATEST_LOOKS = 4.0, 10
#: Of a mock worker, which counts no tokens: what we make of its times and requests, against what was answered.
NEAR = 0.05


class SizedDynamo(Dynamo):
    """With etcd, and a controller that carries out the wishes of its virtual connector while `obeys`."""

    obeys = True
    etcd_url = ""

    def __init__(self) -> None:
        super().__init__()
        self._templates: dict[str, tuple[list[str], dict[str, str]]] = {}

    @classmethod
    def set_up(cls) -> None:
        super().set_up()
        cls.set_up_etcd()

    @staticmethod
    def set_up_etcd() -> None:
        """Debian's, unpacked and not installed."""
        if not ETCD.exists():
            folder = PEERS / "etcd"
            folder.mkdir(parents=True, exist_ok=True)
            subprocess.run(["apt-get", "download", "etcd-server"], cwd=folder, check=True)
            package = next(folder.glob("etcd-server_*.deb"))
            subprocess.run(["dpkg", "-x", str(package), str(folder)], check=True)

    def discovery(self) -> dict[str, str]:
        return {"DYN_DISCOVERY_BACKEND": "etcd", "ETCD_ENDPOINTS": self.etcd_url}

    def run(self, name: str, command: list[str], environment: dict[str, str] | None = None) -> None:
        self._templates[name] = (command, environment or {})
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
        with (self.folder / "controller.log").open("ab") as log:
            controller = subprocess.Popen(
                self._connector_end(),
                env=self._connector_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                process_group=0,
            )
        self._processes["controller"] = controller
        threading.Thread(target=self._carry_out, args=(controller,), daemon=True).start()

    def listed(self) -> set[str]:
        return {f"{each['instance_id']:x}" for each in (self.get("/health") or {}).get("instances", [])}

    def page_port(self, name: str) -> int:
        return int(self._templates[name][1]["DYN_SYSTEM_PORT"])

    def page_ports(self) -> list[int]:
        found = (environment.get("DYN_SYSTEM_PORT") for _, environment in self._templates.values())
        return sorted(int(port) for port in found if port)

    def worker_id(self, name: str) -> str:
        """As its own page says."""
        page = httpx.get(f"http://127.0.0.1:{self.page_port(name)}/metrics", timeout=30).text
        line = next(each for each in page.splitlines() if each.startswith("dynamo_component_uptime_seconds{"))
        return line.split('worker_id="')[1].split('"')[0]

    def counted(self) -> dict[str, float]:
        """What its frontend has counted: prompt tokens that were computed, answer tokens."""
        page = httpx.get(f"{self.url}/metrics").text
        rows = [line.rsplit(" ", 1) for line in page.splitlines() if not line.startswith("#")]
        router = "dynamo_component_router_"

        def total(name: str, label: str = "") -> float:
            return sum(float(value) for key, value in rows if key.startswith(name) and label in key)

        asked_tokens = total(f"{router}input_sequence_tokens_sum", 'phase="prefill"')
        cached = total(f"{router}kv_selected_cached_prefix_tokens_total", 'phase="prefill"')
        return {"prefill": asked_tokens - cached, "decode": total("dynamo_frontend_output_tokens_total")}

    def wish(self) -> tuple[int, int]:
        """What the connector holds: prefill, decode."""
        found = {name: self._key(name) for name in ("num_prefill_workers", "num_decode_workers")}
        return int(found["num_prefill_workers"] or -1), int(found["num_decode_workers"] or -1)

    def write_wish(self, prefill: int, decode: int) -> None:
        """By the planner's own end of the connector."""
        command = [*self._connector_end(), str(prefill), str(decode)]
        subprocess.run(command, env=self._connector_environment(), check=True, capture_output=True, timeout=60)

    def _connector_end(self) -> list[str]:
        return [str(self.python), str(ROOT / "bench" / "_dynamo_controller.py"), "dynamo"]

    def _connector_environment(self) -> dict[str, str]:
        return {"ETCD_ENDPOINTS": self.etcd_url, "DYN_EVENT_PLANE": "zmq", "PATH": "/usr/bin:/bin"}

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
            command, own = self.worker(role)
            own |= {"DYN_SYSTEM_PORT": str(low_ports(1)[0])}
            self.run(f"{role}{number}", [str(self.python), "-m", *command], self._templates[f"{role}0"][1] | own)

    def _key(self, name: str) -> str:
        body = {"key": _coded(f"v1/dynamo/planner/{name}")}
        found = httpx.post(f"{self.etcd_url}/v3/kv/range", json=body).json().get("kvs", [])
        return base64.b64decode(found[0]["value"]).decode() if found else ""


def try_dynamo(site: Site) -> None:
    """Observed under load while one is killed and one added; a resize obeyed, undone, ignored, and fought over."""
    with running(SizedDynamo()) as peer:
        assert isinstance(peer, SizedDynamo)
        site.attach(
            kind="dynamo",
            controller=f"dynamo={peer.url}?etcd={peer.etcd_url}&namespace=dynamo",
            simulated=True,
            model="llama-3.1-8b",
            device="h100-sxm-80gb",
            limit_s=40.0,
        )
        site.until_pools(prefill=2, decode=2)
        find_pages_by_port(site, peer)
        watch_lines(site, peer, LOAD, NEAR)
        _watch_death_and_birth(site, peer)
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


def find_pages_by_port(site: Site, peer: SizedDynamo) -> None:
    """As where discovery cannot be read: each page says whose it is."""
    ports = ",".join(map(str, peer.page_ports()))
    told = Attachment(name="by-port", kind="dynamo", controller=f"dynamo={peer.url}?pages={ports}")
    engines = site.client.survey(told).engines
    found = sum(1 for each in engines if each.url and not each.problem)
    site.note("pages found by port alone", f"{found} of {len(engines)}")
    if found != len(engines) or found != len(peer.listed()):
        raise Unmet(f"pages by port: {engines}")


def watch_lines(site: Site, peer: SizedDynamo, load: LoadSize, near: float) -> tuple[float, list[Outcome]]:
    """Tokens of both phases, ours beside those of the answers' `usage`; both lines known. Since when, and all answers.

    Nothing is under way when the count begins: a request that is given up is still computed, and was routed before.
    """
    begun_unix_s = time.time()
    first = counted_load(peer.url, peer.model_id, replace(load, num_each=1))  # a mock worker's series begin with it
    _settle(site, begun_unix_s, _used(first), near)
    before, since_unix_s = peer.counted(), time.time()
    outcomes = counted_load(peer.url, peer.model_id, load)
    used = _used(outcomes)
    _settle(site, since_unix_s, used, near)
    after = peer.counted()
    for phase, true in used.items():
        ours, theirs = site.total(f"{phase}_tokens", since_unix_s), after[phase] - before[phase]
        text = f"{ours:.0f} counted, {true} by the answers' usage ({ours / true - 1:+.2%})"
        by_role = {role: _sum(line) for role, line in site.line(f"{phase}_tokens", since_unix_s, "role").items()}
        where = ", ".join(f"{tokens:.0f} on {role}" for role, tokens in by_role.items())
        site.note(f"{phase} tokens of {len(outcomes)} requests", f"{text}; {where}; {theirs:.0f} by the frontend")
        if abs(ours / true - 1) > near:
            raise Unmet(f"{phase} tokens: {text}")
    for metric, role in (("prefill_compute_wall", "prefill"), ("decode_bandwidth_wall", "decode")):
        line = site.line(metric, since_unix_s, "role").get(role, [])
        known = [value for _, value in line if value is not None]
        if not known or max(known) <= 0:
            raise Unmet(f"no line {metric} of role {role}: {line}")
        site.note(f"line {metric}", f"{len(known)} of {len(line)} seconds known, at most {max(known):.4f} (derived)")
    return begun_unix_s, [*first, *outcomes]


def _sum(line: list[tuple[float, float | None]]) -> float:
    return sum(value for _, value in line if value is not None)


def _used(outcomes: list[Outcome]) -> dict[str, int]:
    """Tokens by phase, as the answers say."""
    failed = [each.error for each in outcomes if each.error]
    if failed:
        raise Unmet(f"{len(failed)} of {len(outcomes)} requests failed: {failed[0]}")
    return {
        "prefill": sum(each.prompt_tokens - each.cached_tokens for each in outcomes),
        "decode": sum(each.output_tokens for each in outcomes),
    }


def _settle(site: Site, since_unix_s: float, used: dict[str, int], near: float) -> None:
    """Until all of it is booked, and nothing more: on a busy machine a look may be late."""
    seen: dict[str, float] = {}
    for _ in range(LATEST_LOOKS):
        time.sleep(LOOK_S)
        now = {phase: site.total(f"{phase}_tokens", since_unix_s) for phase in used}
        if now == seen and all(now[phase] >= (1 - near) * used[phase] for phase in used):
            return
        seen = now


def _watch_death_and_birth(site: Site, peer: SizedDynamo) -> None:
    """The dead one's line ends in a gap, not in zeros; the new one has a line of its own."""
    since_unix_s, dead = time.time(), peer.worker_id("decode1")
    with asked(f"{peer.url}/v1/completions", _body(peer), 8) as load:
        time.sleep(4)
        peer.kill("decode1")
        killed_unix_s = time.time()
        seen_s = site.until_pools(prefill=2, decode=1)
        left_s = seen_s + site.until("no longer on Dynamo's list", lambda: dead not in peer.listed())
        gone_s = left_s + site.until("no longer on ours", lambda: dead not in site.workers())
        text = f"not ready after {seen_s:.1f} s; off Dynamo's list after {left_s:.1f} s, off ours after {gone_s:.1f} s"
        site.note("decode1 killed with -9", text)
        peer.start_again("decode1")
        site.note("started again", f"ready after {site.until_pools(prefill=2, decode=2):.1f} s, under a new id")
        time.sleep(6)
    born = peer.worker_id("decode1")
    lines = site.line("decode_tokens", since_unix_s, "worker")
    last = max((at for at, value in lines.get(dead, []) if value is not None), default=0.0) - killed_unix_s
    site.note("line of the dead one", f"ends {last:+.1f} s after the kill, then a gap")
    if not -4 < last < 6:
        raise Unmet(f"the line of {dead} ends {last:.1f} s after it was killed: {lines.get(dead)}")
    if not any(value for _, value in lines.get(born, [])):
        raise Unmet(f"{born} has no line: {lines.get(born)}")
    roles = {peer.worker_id(f"{role}{n}"): role for role in ("prefill", "decode") for n in range(2)}
    if site.workers() != roles:
        raise Unmet(f"roles {site.workers()}, should be {roles}")
    site.note("roles", ", ".join(f"{name} {role}" for name, role in sorted(roles.items())))
    site.note("load meanwhile", load.words())


def _body(peer: SizedDynamo) -> dict[str, object]:
    return {"model": peer.model_id, "prompt": "word " * 150, "max_tokens": ANSWER_TOKENS, "stream": True}


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
