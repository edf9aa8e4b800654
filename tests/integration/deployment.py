"""A deployment under test: its own run folder and ports, driven by the command line as a person would."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from control.auth import read_token
from control.client import PhaselineClient
from control.deployment import DeploymentState, read_state
from control.errors import ControlError
from control.processes import ProcessId, end_processes, send_signal, tree_of
from control.types.fleet import FleetSnapshot
from control.types.workers import WorkerState

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 240.0
#: A starved host makes paced workers late, and a gateway that knows it rightly refuses: not what these tests are about.
PATIENT_SLO = json.dumps({"ttft_base_s": 60.0})


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now."""
    held = [socket.socket() for _ in range(count)]
    try:
        for each in held:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in held]
    finally:
        for each in held:
            each.close()


class Deployment:
    """`must` runs a command and expects code 0; `run` returns whatever came."""

    def __init__(self, run_dir: Path, **settings: str) -> None:
        names = ("GATEWAY", "API", "CONSOLE", "RAY")
        self.run_dir = run_dir
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        known = {name: value for name, value in os.environ.items() if not name.startswith(("PHASELINE_", "RAY_"))}
        self.environment = {
            **known,
            "PHASELINE_RUN_DIR": str(run_dir),
            "PHASELINE_DRAIN_LIMIT_S": "10",
            "PHASELINE_SLO": PATIENT_SLO,
            **{f"PHASELINE_{name}_PORT": str(port) for name, port in self.ports.items()},
            **settings,
        }

    def run(self, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "control.cli.main", *arguments],
            cwd=cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    def must(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}{self.log_tails()}"
        return done.stdout

    def json(self, *arguments: str) -> Any:
        return json.loads(self.must(*arguments, "--json"))

    def client(self, fleet_id: str | None = None) -> PhaselineClient:
        return PhaselineClient(
            f"http://127.0.0.1:{self.ports['API']}", read_token(self.run_dir, "operator"), fleet_id=fleet_id
        )

    def snapshot(self, fleet_id: str | None = None) -> FleetSnapshot:
        """What `status` prints. For what is asked again and again: a command spends a second on loading."""
        with self.client(fleet_id) as client:
            return client.snapshot()

    def num_ready(self, fleet_id: str | None = None) -> int:
        """Workers in their roles; 0 while no plane answers."""
        try:
            return sum(each.state is WorkerState.READY for each in self.snapshot(fleet_id).workers)
        except ControlError:
            return 0

    @property
    def state(self) -> DeploymentState:
        state = read_state(self.run_dir)
        assert state is not None
        return state

    def root(self, name: str) -> ProcessId:
        root = self.state.components[name].root
        assert root is not None
        return root

    def root_or_none(self, name: str) -> ProcessId | None:
        """The root when the component is ready."""
        record = self.state.components[name]
        return record.root if record.is_ready else None

    def processes(self) -> list[ProcessId]:
        """Every living process of this deployment, the supervisor's too."""
        state = read_state(self.run_dir)
        if state is None:
            return []
        recorded = [one for each in state.components.values() for one in each.processes]
        below = [one for each in state.components.values() if each.root for one in tree_of(each.root)]
        return [each for each in {state.supervisor, *recorded, *below} if each.is_alive]

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline_s, f"{what} did not come{self.log_tails()}"
            time.sleep(0.1)

    def log_tails(self) -> str:
        tails = [f"\n--- {path.name}\n{path.read_text()[-1500:]}" for path in (self.run_dir / "logs").glob("*.log")]
        return "".join(tails)

    def end(self) -> None:
        """`down`; then, should something be left, end exactly what the state file names."""
        self.run("down")
        left = self.processes()
        end_processes(left, 5.0)
        for each in left:
            send_signal(each, signal.SIGKILL)
