"""A throw-away deployment for a benchmark: own run folder, free ports, the product's own commands."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from control.client import PhaselineClient
from control.types.commands import Action, Command, CommandRequest, CommandState, Verb

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """A running deployment and how to talk to it."""

    environment: dict[str, str]
    run_dir: Path
    client: PhaselineClient
    gateway_url: str
    console_url: str

    def phaseline(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run one command of the CLI against this deployment."""
        return subprocess.run(
            [sys.executable, "-m", "control.cli.main", *arguments],
            env=self.environment,
            cwd=ROOT,
            check=check,
            capture_output=True,
            text=True,
        )

    def resize(self, why: str, **pools: int) -> Command:
        """Preview, confirm as the preview asks, carry out; the ended command. Exits when it is not done."""
        action = Action(verb=Verb.RESIZE, **pools)
        word = self.client.preview(CommandRequest(action=action)).needs_confirmation
        command = self.client.submit(CommandRequest(action=action, why=why, confirmation=word))
        ended = self.client.wait(command.command_id, timeout_s=180)
        if ended.state is not CommandState.DONE:
            raise SystemExit(f"resize to {pools} ended {ended.state}: {ended.result}")
        return ended

    def start_traffic(self, *arguments: str) -> subprocess.Popen[str]:
        """`phaseline traffic ... --json` in the background; read its report with `report_of`."""
        return subprocess.Popen(
            [sys.executable, "-m", "control.cli.main", "traffic", "--json", "--quiet", *arguments],
            env=self.environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )


def report_of(traffic: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a traffic run and return its report."""
    out, _ = traffic.communicate()
    report: dict[str, Any] = json.loads(out.splitlines()[-1])
    return report


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@contextlib.contextmanager
def ends_cleanly() -> Iterator[None]:
    """SIGTERM and SIGHUP (`timeout`, a closed terminal) end this process as Ctrl-C does: by way of every `finally`, so
    that what it started is ended too. Further ones are ignored while that goes on."""
    numbers = (signal.SIGTERM, signal.SIGHUP)

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield  # signals come to the main thread alone
        return
    before = {number: signal.signal(number, leave) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def deployment(*up_arguments: str, root: Path = ROOT, **settings: Any) -> Iterator[Deployment]:
    """`phaseline up --detach` with these settings; everything is ended and removed afterwards.

    Converted models are shared with the checkout's own run folder. `root`: the checkout whose code is started.
    """
    with ends_cleanly(), tempfile.TemporaryDirectory(prefix="phaseline-bench-") as folder:
        run_dir = Path(folder)
        gateway, api, console, ray = free_ports(4)
        models = ROOT / "data" / "run" / "models"
        models.mkdir(parents=True, exist_ok=True)
        (run_dir / "models").symlink_to(models)
        values = {
            "run_dir": run_dir,
            "gateway_port": gateway,
            "api_port": api,
            "console_port": console,
            "ray_port": ray,
        } | settings
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PHASELINE_")}
        environment |= {f"PHASELINE_{name.upper()}": str(value) for name, value in values.items()}
        environment["PYTHONPATH"] = str(root)
        command = [sys.executable, "-m", "control.cli.main"]
        try:
            up = subprocess.run(
                [*command, "up", "--detach", *up_arguments], env=environment, cwd=root, capture_output=True, text=True
            )
            if up.returncode:
                raise SystemExit(f"the deployment did not start:\n{up.stdout}\n{up.stderr}")
            token = (run_dir / "secrets" / "operator_token").read_text().strip()
            with PhaselineClient(f"http://127.0.0.1:{api}", token) as client:
                yield Deployment(
                    environment=environment,
                    run_dir=run_dir,
                    client=client,
                    gateway_url=f"http://127.0.0.1:{gateway}",
                    console_url=f"http://127.0.0.1:{console}",
                )
        finally:
            subprocess.run([*command, "down"], env=environment, cwd=ROOT, capture_output=True, check=False)
            if keep := os.environ.get("KEEP_LOGS"):
                shutil.copytree(run_dir / "logs", keep, dirs_exist_ok=True)
