"""Our gateway before two engines that it did not start: attached to a plane without workers, allowed, and `serve`."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from _deployment import ROOT, deployment, free_ports
from _role_swaps import WORKERS
from control.auth import read_token
from control.client import PhaselineClient
from control.types.commands import Action, CommandRequest, Verb
from control.types.workers import Role

FLEET = "pair"
READY_LIMIT_S = 90.0
ROLES = (Role.PREFILL, Role.DECODE)
_SPLIT = re.compile(r'^phaseline_gateway_requests_total\{[^}]*rule="remote"[^}]*\} (\S+)$', re.MULTILINE)


class NotServed(Exception):
    """Our gateway was not ready in time; the message holds its log."""


@dataclass(frozen=True, slots=True)
class Front:
    """Where requests go, and the process that takes them."""

    url: str
    pid: int

    @property
    def cpu_s(self) -> float:
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def num_split(self) -> int:
        """Requests that went over two engines so far; of our gateway alone."""
        return sum(int(float(each)) for each in _SPLIT.findall(httpx.get(f"{self.url}/metrics").text))


@contextmanager
def our_gateway(urls: Sequence[str], model: Path) -> Iterator[tuple[Front, PhaselineClient]]:
    """A deployment of its own, ended afterwards."""
    with deployment("--fleet", "none") as own:
        targets = [f"{role}:{name}={url}" for role, name, url in zip(ROLES, WORKERS, urls, strict=True)]
        own.phaseline("attach", FLEET, "--kind", "vllm", "--model", str(model), "--dtype", "float32", "--every", "1",
                      *(word for each in targets for word in ("--targets", each)))  # fmt: skip
        own.phaseline("allow", FLEET, "route", "flip", "resize", "drain")
        api = (f"http://127.0.0.1:{own.environment['PHASELINE_API_PORT']}",)
        client = PhaselineClient(api, read_token(own.run_dir, "operator"), 30.0, fleet_id=FLEET)
        with served(FLEET, model, own.environment, client, own.run_dir / "serve.log") as front:
            yield front, client


@contextmanager
def served(
    fleet: str, model: Path, environment: Mapping[str, str], client: PhaselineClient, log: Path
) -> Iterator[Front]:
    """`phaseline serve`, with every prompt split however short, until the end of the block. Raises NotServed."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "control.cli.main", "serve", fleet, "--tokenizer", str(model), "--port", str(port)]
    with log.open("wb") as out:
        serving = subprocess.Popen(command, env=dict(environment), cwd=ROOT, stdout=out, stderr=out)
    try:
        front = Front(f"http://127.0.0.1:{port}", serving.pid)
        if not _becomes_ready(front.url, client, serving):
            raise NotServed(f"our gateway was not ready within {READY_LIMIT_S:g} s: {log.read_text()[-2000:]}")
        policy = {"min_remote_prefill_tokens": 0, "max_local_output_tokens": 0, "min_fleet_devices": 2}
        split = Action(verb=Verb.SET_ROUTING, policy=policy)
        client.wait(client.submit(CommandRequest(action=split, why="all are split")).command_id, timeout_s=30)
        yield front
    finally:
        serving.terminate()
        serving.wait(60)


def _becomes_ready(url: str, client: PhaselineClient, serving: subprocess.Popen[bytes]) -> bool:
    deadline_s = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < deadline_s and serving.poll() is None:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200 and "ready" in client.snapshot().health_text:
                return True
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    return False
