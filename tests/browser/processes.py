"""A real plane (SimFleet) and a real console, as processes on ephemeral ports; ended by their own pids."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from control.client import PhaselineClient

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT_S = 60.0
END_LIMIT_S = 15.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Stack:
    """One plane with `num_workers` simulated workers, one console."""

    run_dir: Path
    num_workers: int = 8
    num_prefill: int = 2
    api_port: int = field(default_factory=free_port)
    console_port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def console_url(self) -> str:
        return f"http://127.0.0.1:{self.console_port}"

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PHASELINE_", "STREAMLIT_"))}
        ours = {
            "PHASELINE_RUN_DIR": str(self.run_dir),
            "PHASELINE_FLEET_KIND": "sim",
            "PHASELINE_NUM_WORKERS": str(self.num_workers),
            "PHASELINE_NUM_PREFILL": str(self.num_prefill),
            "PHASELINE_API_PORT": str(self.api_port),
        }
        return {**kept, **ours}

    def start_plane(self) -> None:
        self._start("plane", [sys.executable, "-m", "control.plane_main"])
        self._wait("plane", f"{self.api_url}/readyz")

    def start_console(self) -> None:
        command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app" / "main.py")]
        command += ["--server.address", "127.0.0.1", "--server.port", str(self.console_port)]
        self._start("console", [*command, "--server.headless", "true"])
        self._wait("console", f"{self.console_url}/healthz")

    def _start(self, name: str, command: list[str]) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with self._log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=ROOT, env=self.environment(), stdout=log, stderr=log, start_new_session=True
            )

    def _wait(self, name: str, url: str) -> None:
        """A bounded wait for the first answer; a process that has died ends it at once."""
        until = time.monotonic() + START_LIMIT_S
        while time.monotonic() < until and self.processes[name].poll() is None:
            if answers(url):
                return
            time.sleep(0.1)
        raise AssertionError(f"the {name} did not come up; its log ends:\n{self._log(name).read_text()[-2000:]}")

    def _log(self, name: str) -> Path:
        return self.run_dir / f"{name}.log"

    def end(self, name: str) -> None:
        process = self.processes.pop(name, None)
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(END_LIMIT_S)

    def end_all(self) -> None:
        for name in list(self.processes):
            self.end(name)

    def client(self) -> PhaselineClient:
        return PhaselineClient(self.api_url, (self.run_dir / "secrets" / "operator_token").read_text().strip())

    def login_url(self, path: str = "", query: str = "") -> str:
        """A one-time login link, to a page of the console."""
        return f"{self.console_url}/{path}?code={self.login_code()}" + (f"&{query}" if query else "")

    def login_code(self) -> str:
        with self.client() as client:
            return client.create_login_code()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
