"""Real planes on one host: one acts, another follows when it is killed, stands still, stops or has no database."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from control.client import PhaselineClient
from control.errors import ControlError
from control.types.commands import Action, CommandRequest, CommandState, Verb
from control.types.fleet import PlaneStatus
from tests.integration.deployment import ROOT, free_ports

LIMIT_S = 60.0
pytestmark = pytest.mark.integration


class Planes:
    """Plane processes of one run folder, each with a log of its own."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir, (self.port,) = run_dir, free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, **settings: str) -> subprocess.Popen[bytes]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PHASELINE_")}
        own = {"RUN_DIR": str(self.run_dir), "FLEET_KIND": "sim", "NUM_WORKERS": "4", "API_PORT": str(self.port)}
        environment |= {f"PHASELINE_{name}": value for name, value in (own | settings).items()}
        log = open(self.run_dir / f"plane-{len(self.processes)}.log", "wb")  # noqa: SIM115  the child's
        command = [sys.executable, "-m", "control.plane_main"]
        self.processes.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log))
        log.close()
        return self.processes[-1]

    def until(self, is_so: Callable[[], Any], what: str) -> Any:
        deadline_s = time.monotonic() + LIMIT_S
        while not (found := is_so()):
            assert time.monotonic() < deadline_s, f"{what} did not come{self.logs()}"
            time.sleep(0.05)
        return found

    def until_active(self, process: subprocess.Popen[bytes]) -> PlaneStatus:
        found: PlaneStatus = self.until(lambda: self.active_of(process), f"pid {process.pid} active")
        return found

    def until_said(self, process: subprocess.Popen[bytes], words: str) -> None:
        log = self.run_dir / f"plane-{self.processes.index(process)}.log"
        self.until(lambda: words in log.read_text(), words)

    def client(self) -> PhaselineClient:
        token = (self.run_dir / "secrets" / "operator_token").read_text().strip()
        return PhaselineClient(self.url, token)

    def active_of(self, *processes: subprocess.Popen[bytes]) -> PlaneStatus | None:
        """The active plane, if it is one of these."""
        try:
            with self.client() as client:
                plane = client.snapshot().plane
        except (ControlError, OSError):
            return None
        return plane if plane is not None and plane.pid in {each.pid for each in processes} else None

    def logs(self) -> str:
        return "".join(f"\n--- {path.name}\n{path.read_text()[-1500:]}" for path in self.run_dir.glob("plane-*.log"))

    def end(self) -> None:
        for each in self.processes:
            each.kill()
            each.wait()


@pytest.fixture
def planes(tmp_path: Path) -> Iterator[Planes]:
    found = Planes(tmp_path)
    yield found
    found.end()


def test_a_standby_takes_over_from_a_plane_that_is_killed_that_stands_still_and_that_stops(planes: Planes) -> None:
    first = planes.start()
    fences = [planes.until_active(first).fence]
    second = planes.start()
    planes.until_said(second, f"pid {first.pid}")
    first.kill()
    fences.append(planes.until_active(second).fence)
    third = planes.start()
    planes.until_said(third, f"pid {second.pid}")
    os.kill(second.pid, signal.SIGSTOP)
    fences.append(planes.until_active(third).fence)
    assert second.wait(LIMIT_S) == -signal.SIGKILL  # it held the port
    fourth = planes.start()
    planes.until_said(fourth, f"pid {third.pid}")
    third.send_signal(signal.SIGTERM)
    assert third.wait(LIMIT_S) == 0
    fences.append(planes.until_active(fourth).fence)
    assert fences == [1, 2, 3, 4]


def test_a_command_whose_plane_dies_right_after_recording_it_is_finished_by_the_standby(planes: Planes) -> None:
    first = planes.start(CRASH_AT="record_command:after#2")  # the first one is the first desired state
    planes.until_active(first)
    second = planes.start()
    planes.until_said(second, f"pid {first.pid}")
    request = CommandRequest(
        action=Action(verb=Verb.RESIZE, prefill=2, decode=2), idempotency_key="once", confirmation="decode"
    )
    with planes.client() as client, contextlib.suppress(ControlError):
        client.submit(request)  # asks again under its key for a while: the standby may answer, or be too late for that
    assert first.wait(LIMIT_S) == -signal.SIGKILL
    planes.until_active(second)
    with planes.client() as client:
        again = client.submit(request)
        assert client.wait(again.command_id, LIMIT_S).state is CommandState.DONE
        assert [each.idempotency_key for each in client.commands() if each.who == "operator"] == ["once"]


def test_a_plane_that_starts_while_its_database_is_locked_waits_and_says_so(planes: Planes) -> None:
    with sqlite3.connect(planes.run_dir / "history.db", isolation_level=None) as holder:
        holder.execute("PRAGMA journal_mode=WAL")
        holder.execute("BEGIN IMMEDIATE")
        process = planes.start()

        def waiting() -> dict[str, Any] | None:
            try:
                return httpx.get(f"{planes.url}/healthz", trust_env=False).json()  # type: ignore[no-any-return]
            except httpx.TransportError:
                return None

        health = planes.until(waiting, "an answer")
        assert health["status"] == "waiting"
        assert "locked" in health["problem"]
        assert httpx.get(f"{planes.url}/readyz", trust_env=False).status_code == 503
        holder.execute("ROLLBACK")
    planes.until_active(process)
    assert httpx.get(f"{planes.url}/healthz", trust_env=False).json()["status"] == "ok"
