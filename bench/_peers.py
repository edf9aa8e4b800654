"""Other systems that serve split by phase, as a benchmark starts, fails and watches them. Each in its own environment.

Decided here: what is installed (`set_up`), what runs (`start`), and when one of them is whole: its frontend lists every
worker as alive, and none that is dead. A killed worker of theirs is started again at once by us, as an ideal supervisor
would. Phaseline is behind the same face, and starts its own again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from _deployment import ROOT, ends_cleanly, free_ports
from engine.bench._setup import model_folder

PEERS = ROOT / "data" / "run" / "peers"
READY_LIMIT_S = 300.0
POLL_S = 0.05
FAKE_STEP_S = 0.025
DYNAMO = "1.6.1"
SGLANG_ROUTER = "0.3.2"
SMG = "1.13.0"
DYNAMO_NEEDS = (
    "aiohttp", "kubernetes<33", "msgspec", "prometheus-client", "pyzmq", "redis<9", "tqdm", "transformers",
    "zstandard<1", "uvloop",
)  # fmt: skip


class PeerFailed(Exception):
    """It is not installed, or did not start; the message holds the end of its log."""


class Peer(ABC):
    """Two prefill and two decode workers behind a frontend. `clear` ends all that was started."""

    name: str
    model_id: str
    what: str  # in words, for the table
    has_steady_text = True  # the same prompt gives the same text
    ready_limit_s = READY_LIMIT_S
    frontend = "frontend"  # whose log tells why it is not whole

    def __init__(self) -> None:
        self.url = ""
        self.num_prefill, self.num_decode = 2, 2
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._commands: dict[str, Callable[[], None]] = {}
        self.folder = Path(tempfile.mkdtemp(prefix=f"phaseline-{self.name}-"))

    # --- its environment -----------------------------------------------------------------------------------------

    @property
    def python(self) -> Path:
        return PEERS / self.name / "bin" / "python"

    @classmethod
    def set_up(cls) -> None:
        """Make its environment with pip, unless it is there."""
        folder = PEERS / cls.name
        if not (folder / "bin" / "python").exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        environment = {
            name: value for name, value in os.environ.items() if name != "PYTHONPATH"
        }  # our tree is not theirs
        for arguments in cls.packages():
            command = [str(folder / "bin" / "pip"), "install", "-q", *arguments]
            subprocess.run(command, check=True, env=environment)

    @classmethod
    @abstractmethod
    def packages(cls) -> list[list[str]]:
        """Arguments of each `pip install`, in order."""

    # --- its processes -------------------------------------------------------------------------------------------

    @abstractmethod
    def start(self) -> None:
        """Bring all up; raises PeerFailed with the log."""

    @abstractmethod
    def is_whole(self) -> bool:
        """Does its frontend list every worker, and none that is dead?"""

    def decode_workers(self) -> list[str]:
        return sorted(each for each in self._commands if each.startswith("decode"))

    def kill(self, worker: str) -> None:
        """kill -9, and reaped."""
        process = self._processes[worker]
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def start_again(self, worker: str) -> None:
        self._commands[worker]()

    def run(self, name: str, command: list[str], environment: dict[str, str] | None = None) -> None:
        """Start one process whose log is NAME.log; `start_again` repeats it.

        In a process group of its own, so that it can be killed whole, but in our session: Linux shares the CPU between
        sessions first (autogroup), and a vLLM worker on a CPU never sleeps, so in sessions of their own the servers
        wait for each other's turn: seconds in place of milliseconds to the first token, with any gateway.
        """

        def begin() -> None:
            with (self.folder / f"{name}.log").open("ab") as log:
                self._processes[name] = subprocess.Popen(
                    command, env=os.environ | (environment or {}), stdout=log, stderr=log, process_group=0
                )

        self._commands[name] = begin
        begin()

    def until_whole(self) -> None:
        deadline_s = time.monotonic() + self.ready_limit_s
        while not self.is_whole():
            for name, process in self._processes.items():
                if process.poll() is not None:
                    raise PeerFailed(f"{self.name}: {name} ended with {process.returncode}: {self.log(name)}")
            if time.monotonic() > deadline_s:
                raise PeerFailed(f"{self.name}: not whole within {self.ready_limit_s:g} s: {self.log(self.frontend)}")
            time.sleep(POLL_S)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")[-2000:]

    def get(self, path: str) -> Any:
        """JSON from its frontend; None while it does not answer."""
        try:
            response = httpx.get(f"{self.url}{path}", timeout=5)
            return response.json() if response.status_code == 200 else None
        except (httpx.HTTPError, ValueError):
            return None

    def clear(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if keep := os.environ.get("KEEP_LOGS"):
            shutil.copytree(self.folder, Path(keep) / self.name, dirs_exist_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


class SglangRouter(Peer):
    """The Rust router of SGLang in prefill/decode mode, in front of fake workers."""

    name = "sglang-router"
    model_id = "fake"
    what = f"sglang-router {SGLANG_ROUTER}, PD mode, fake workers ({1000 * FAKE_STEP_S:g} ms a token)"
    module = "sglang_router.launch_router"
    ports: dict[str, int]  # of the workers

    @classmethod
    def packages(cls) -> list[list[str]]:
        return [[f"sglang-router=={SGLANG_ROUTER}"]]

    def start(self) -> None:
        port, metrics, *ports = free_ports(2 + self.num_prefill + self.num_decode)
        names = [f"prefill{each}" for each in range(self.num_prefill)]
        names += [f"decode{each}" for each in range(self.num_decode)]
        command = [str(self.python), "-m", self.module, "--pd-disaggregation"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
        command += [
            "--prometheus-host",
            "127.0.0.1",
            "--prometheus-port",
            str(metrics),
            "--health-check-interval-secs",
            "1",
        ]
        self.ports = dict(zip(names, ports, strict=True))
        for name, each in self.ports.items():
            role = name[:-1]
            fake = str(ROOT / "bench" / "_fake_worker.py")
            self.run(name, [sys.executable, fake, role, str(each), str(FAKE_STEP_S)])
            command += [f"--{role}", f"http://127.0.0.1:{each}", *(["none"] if role == "prefill" else [])]
        self.url = f"http://127.0.0.1:{port}"
        self.run("frontend", command)
        self.until_whole()

    def is_whole(self) -> bool:
        listed = self.get("/workers")
        workers = [] if listed is None else listed.get("workers", [])
        return len(workers) == self.num_prefill + self.num_decode and all(each.get("is_healthy") for each in workers)


class Smg(SglangRouter):
    """What sglang-router became: a role can be changed in place."""

    name = "smg"
    what = f"smg {SMG}, PD mode, fake workers ({1000 * FAKE_STEP_S:g} ms a token)"
    module = "smg.launch_router"

    @classmethod
    def packages(cls) -> list[list[str]]:
        return [[f"smg=={SMG}"]]


class Dynamo(Peer):
    """NVIDIA Dynamo's frontend with its own mock workers; a request may migrate three times."""

    name = "dynamo"
    model_id = "mock"
    has_steady_text = False  # a mocker's tokens are random
    what = f"Dynamo {DYNAMO} frontend, kv router, --migration-limit 3, its mockers (about 26 ms a token)"

    @classmethod
    def packages(cls) -> list[list[str]]:
        return [[f"ai-dynamo-runtime=={DYNAMO}", *DYNAMO_NEEDS], [f"ai-dynamo=={DYNAMO}", "--no-deps"]]

    def start(self) -> None:
        (port,) = free_ports(1)
        system_ports = low_ports(self.num_prefill + self.num_decode)
        hosts = ("DYN_TCP_RPC_HOST", "DYN_TCP_RESPONSE_STREAM_HOST", "DYN_SYSTEM_HOST", "DYN_EVENT_PLANE_HOST")
        environment = dict.fromkeys(hosts, "127.0.0.1") | self.discovery()
        environment |= {"DYN_REQUEST_PLANE": "tcp", "DYN_EVENT_PLANE": "zmq", "HF_HUB_OFFLINE": "1"}
        self.url = f"http://127.0.0.1:{port}"
        frontend = [str(self.python), "-m", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", str(port)]
        self.run("frontend", [*frontend, "--router-mode", "kv", "--migration-limit", "3"], environment)
        for role, count in (("prefill", self.num_prefill), ("decode", self.num_decode)):
            for number in range(count):
                command, own = self.worker(role)
                own |= {"DYN_SYSTEM_PORT": str(system_ports.pop())}
                self.run(f"{role}{number}", [str(self.python), "-m", *command], environment | own)
        self.until_whole()

    def worker(self, role: str) -> tuple[list[str], dict[str, str]]:
        """The module with its arguments, and what of the environment is this worker's own."""
        model = str(model_folder(None).resolve())
        command = ["dynamo.mocker", "--model-path", model, "--model-name", self.model_id, "--block-size", "16"]
        command += ["--num-gpu-blocks-override", "4096", "--speedup-ratio", "0.25"]  # about 26 ms a token
        command += ["--disaggregation-mode", role]
        return [*command, *(["--bootstrap-ports", str(free_ports(1)[0])] if role == "prefill" else [])], {}

    def discovery(self) -> dict[str, str]:
        """Where its processes find each other."""
        return {"DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": str(self.folder / "kv")}

    def is_whole(self) -> bool:
        health, models = self.get("/health"), self.get("/v1/models")
        if health is None or not models or not models["data"]:
            return False
        instances = health.get("instances", [])
        generating = [each for each in instances if each.get("endpoint") == "generate"]
        return len(generating) == self.num_prefill + self.num_decode


def low_ports(count: int) -> list[int]:
    """Free ports below 32768: Dynamo keeps its system port in 16 bits with a sign."""
    found: list[int] = []
    for port in range(20_000 + os.getpid() % 5_000, 32_768):
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            break
    return found


@contextlib.contextmanager
def running(peer: Peer) -> Iterator[Peer]:
    """One of them, whole; ended afterwards. Raises PeerFailed."""
    with ends_cleanly():
        try:
            if not peer.python.exists():
                raise PeerFailed(f"{peer.name} is not installed: run with --setup")
            peer.start()
            yield peer
        finally:
            peer.clear()
