"""Engines that somebody else runs, attached to a deployment without workers of its own and served by our gateway."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

sys.path.insert(0, str(Path(__file__).parents[1] / "control" / "gateway"))
sys.path.insert(0, str(Path(__file__).parents[1] / "control" / "bridge"))

import httpx
from fake_servers import MODEL, FakeServer
from gateway_builders import write_model_folder

from control.auth import read_token
from control.client import PhaselineClient
from control.errors import ControlError
from tests.control.attached.fake_kubernetes import FakeKubernetes, serving, write_kubeconfig
from tests.control.attached.fake_pods import add_engine
from tests.integration.deployment import Deployment, free_ports
from tests.integration.steady_clients import SteadyClients

T = TypeVar("T")
NAME = "prod"


class Engines:
    """Fake vLLM servers that hand KV to each other, on an event loop of their own."""

    def __init__(self, *names: str, pace_s: float = 0.02) -> None:
        self._kept: dict[str, list[int]] = {}
        self._pace_s = pace_s
        self.servers = {name: self.another(name) for name in names}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def another(self, name: str) -> FakeServer:
        return FakeServer(name=name, kept=self._kept, pace_s=self._pace_s)

    def start(self, *servers: FakeServer) -> None:
        for each in servers:
            self._run(each.start())

    @property
    def num_running(self) -> int:
        return sum(each.num_running for each in self.servers.values())

    def kill(self, name: str) -> None:
        self._run(self.servers[name].die())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def __enter__(self) -> Engines:
        self._thread.start()
        self.start(*self.servers.values())
        return self

    def __exit__(self, *_: object) -> None:
        for each in self.servers.values():
            self._run(each.die())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Site:
    """`place` runs; `engines` are attached to it as NAME. `serve` has our gateway in front of them."""

    def __init__(self, place: Deployment, engines: Engines, folder: Path) -> None:
        self.place = place
        self.engines = engines
        self.tokenizer = str(write_model_folder(folder / "model"))
        self.port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{self.port}"

    def attach(self, **roles: str) -> None:
        told = [f"{role}:{name}={self.engines.servers[name].url}" for name, role in roles.items()]
        targets = [word for each in told for word in ("--targets", each)]
        self.place.must("attach", NAME, "--kind", "vllm", *targets, "--simulated", "--every", "0.5")

    def attach_pods(self, config: Path) -> None:
        """All pods of an application, without a role of their own."""
        controller = f"kubernetes={config}?namespace=serving&selector=app=vllm&unlabelled=mixed"
        told = ("--controller", controller, "--simulated", "--every", "0.5")
        self.place.must("attach", NAME, "--kind", "vllm", *told)

    def serve(self, *more: str) -> str:
        return self.place.must("serve", NAME, *self.words, "--detach", *more)

    @property
    def words(self) -> tuple[str, ...]:
        return "--tokenizer", self.tokenizer, "--port", str(self.port)

    def of(self, *arguments: str) -> str:
        """A command about the attached fleet."""
        return self.place.must("--fleet", NAME, *arguments)

    def clients(self, **fields: object) -> SteadyClients:
        """Greedy streams without a break."""
        return SteadyClients(self.url, MODEL, temperature=0, **{"num_clients": 3, "max_tokens": 40, **fields})  # type: ignore[arg-type]

    def roles(self) -> dict[str, tuple[str, str]]:
        """Role and state of each engine; empty while its plane begins."""
        try:
            with self.client() as client:
                return {each.worker_id: (each.role.value, each.state.value) for each in client.snapshot().workers}
        except ControlError:
            return {}

    def client(self) -> PhaselineClient:
        url = f"http://127.0.0.1:{self.place.ports['API']}"
        return PhaselineClient(url, read_token(self.place.run_dir, "operator"), fleet_id=NAME)

    def stream(self, num_tokens: int) -> tuple[str, str]:
        """The text of one greedy stream, and the last thing that was said."""
        body = {"model": MODEL, "prompt": list(range(50, 90)), "max_tokens": num_tokens, "temperature": 0,
                "ignore_eos": True, "stream": True}  # fmt: skip
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=120.0, trust_env=False) as answer:
            said = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        return "".join(json.loads(each)["choices"][0]["text"] for each in said[:-1] if "choices" in each), said[-1]

    def served_more(self, clients: SteadyClients, count: int = 6) -> None:
        """So many further streams end well."""
        wanted = clients.num_served + count
        self.place.until(lambda: clients.num_served >= wanted or bool(clients.failures), "more streams")
        assert not clients.failures

    def until_ready(self, **roles: str) -> None:
        wanted = {name: (role, "ready") for name, role in roles.items()}
        self.place.until(lambda: self.roles() == wanted, f"{wanted}")


@contextmanager
def site(folder: Path, **roles: str) -> Iterator[Site]:
    """A plane without workers of its own, and engines attached in these roles that it may route, flip and drain."""
    with _place(folder, *roles) as made:
        made.attach(**roles)
        yield made


@contextmanager
def pods(folder: Path, *names: str) -> Iterator[tuple[Site, FakeKubernetes]]:
    """The same, its engines listed by a fake Kubernetes API server as pods that say no role."""
    with serving(FakeKubernetes()) as cluster, _place(folder, *names) as made:
        for name in names:
            add_engine(cluster, name, made.engines.servers[name].url)
        made.attach_pods(write_kubeconfig(folder / "config", cluster.url))
        yield made, cluster


@contextmanager
def _place(folder: Path, *names: str) -> Iterator[Site]:
    place = Deployment(folder / "run", PHASELINE_FLEET_KIND="none")
    with Engines(*names) as engines:
        made = Site(place, engines, folder)
        try:
            place.must("up", "--detach")
            yield made
        finally:
            place.end()
