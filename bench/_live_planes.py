"""Real plane processes beside a deployment: one is active, others stand by, each told where to die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _deployment import ROOT, Deployment
from control.errors import ControlError
from control.supervisor import pause_file
from control.types.fleet import PlaneStatus

LIMIT_S = 60.0


class LivePlane:
    """One process, its log, and when it ended."""

    def __init__(self, fleet: Deployment, number: int, crash_at: str) -> None:
        self.crash_at = crash_at
        self.log = fleet.run_dir / "logs" / f"bench-plane-{number}.log"
        environment = fleet.environment | ({"PHASELINE_CRASH_AT": crash_at} if crash_at else {})
        with open(self.log, "wb") as log:
            command = [sys.executable, "-m", "control.plane_main"]
            self.process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
        self.ended_s: float | None = None
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        self.process.wait()
        self.ended_s = time.monotonic()

    @property
    def is_hot(self) -> bool:
        """It has looked at the lease, so all that comes before is done."""
        return "phaseline.lease" in self.log.read_text()

    def send(self, number: signal.Signals) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, number)


class LivePlanes:
    """The deployment's own plane is kept stopped; ours take its place, on its port and run folder."""

    def __init__(self, fleet: Deployment, num_standbys: int, crash_at: Callable[[], str]) -> None:
        self._fleet = fleet
        self._crash_at = crash_at
        self._num_standbys = num_standbys
        self._number = 0
        self.num_revived = 0
        self.living: deque[LivePlane] = deque()
        self.ended: list[LivePlane] = []
        pause_file(fleet.run_dir, "plane").touch()
        self.refill()

    def refill(self) -> None:
        """Start planes until there is one to act and the standbys, and wait until the newest is hot."""
        self._collect()
        while len(self.living) <= self._num_standbys:
            self._number += 1
            self.living.append(LivePlane(self._fleet, self._number, self._crash_at()))
        until(
            lambda: all(each.is_hot or each.ended_s is not None for each in self.living), "hot standbys", told=self.told
        )

    def revive(self) -> None:
        """Each has died at its point, the successors too: one more, which does not."""
        if all(each.ended_s is not None for each in self.living):
            self.num_revived += 1
            self._number += 1
            self.living.append(LivePlane(self._fleet, self._number, ""))

    def _collect(self) -> None:
        self.ended += [each for each in self.living if each.ended_s is not None]
        self.living = deque(each for each in self.living if each.ended_s is None)

    def active(self) -> tuple[LivePlane, PlaneStatus]:
        """The plane that answers now."""

        def found() -> tuple[LivePlane, PlaneStatus] | None:
            status = asked(lambda: self._fleet.client.snapshot().plane)
            plane = next((each for each in self.living if status and each.process.pid == status.pid), None)
            return None if plane is None or status is None or plane.ended_s is not None else (plane, status)

        answer: tuple[LivePlane, PlaneStatus] = until(found, "an active plane", told=self.told)
        return answer

    def told(self) -> str:
        """How each plane stands and the end of its log, and what answers: for a wait that was in vain."""
        try:
            snapshot = self._fleet.client.snapshot()
            answer = f"pid {snapshot.plane.pid}; desired {snapshot.desired}; workers " + ", ".join(
                f"{each.worker_id} {each.role} {each.state}" for each in snapshot.workers
            )
        except ControlError as error:
            answer = str(error)
        lines = [f"answer: {answer}"]
        for each in self.living:
            state = "lives" if each.ended_s is None else f"ended with {each.process.returncode}"
            lines.append(f"--- pid {each.process.pid}, to die at {each.crash_at or 'no point'}, {state}; {each.log}")
            lines += each.log.read_text().splitlines()[-12:]
        return "\n".join(lines)

    def close(self) -> None:
        for each in self.living:
            each.send(signal.SIGCONT)
            each.send(signal.SIGTERM)
        for each in self.living:
            try:
                each.process.wait(20)
            except subprocess.TimeoutExpired:
                each.process.kill()
        pause_file(self._fleet.run_dir, "plane").unlink(missing_ok=True)


def asked(call: Callable[[], Any]) -> Any:
    """None while nobody answers, or nobody who acts."""
    try:
        return call()
    except ControlError as error:
        if not error.retry_helps:
            raise
        return None


def until(is_so: Callable[[], Any], what: str, poll_s: float = 0.005, told: Callable[[], str] | None = None) -> Any:
    """What `is_so` finds; `told` says how things stand when it finds nothing in time."""
    deadline_s = time.monotonic() + LIMIT_S
    while not (found := is_so()):
        if time.monotonic() > deadline_s:
            raise SystemExit(f"{what} did not come within {LIMIT_S:g} s" + (f"\n{told()}" if told else ""))
        time.sleep(poll_s)
    return found


def database_of(run_dir: Path) -> str:
    return f"sqlite:///{run_dir / 'history.db'}"
