"""A real plane, one attached fleet on it, a load on the system behind: what every trial of `bench/peers.py` uses."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from _deployment import ROOT, free_ports
from _peers import READY_LIMIT_S, PeerFailed
from control.client import Attachment, PhaselineClient
from control.errors import ControlError
from control.types.commands import Action, Command, CommandRequest, CommandState, Verb
from control.types.fleet import Capability
from control.types.workers import Role

LIMIT_S = 90.0
ENDS_S = 60.0


class Unmet(Exception):
    """What a system should have shown, and did not."""


class Site:
    """One attached fleet, and what was found of it."""

    def __init__(self, fleet: LonePlane, name: str) -> None:
        self.fleet, self.name = fleet, name
        self.client = PhaselineClient(fleet.url, fleet.token, fleet_id=name)
        self.findings: list[tuple[str, str]] = []

    def attach(self, **told: Any) -> None:
        attachment = Attachment(**{"name": self.name, "every_s": 0.5, "limit_s": LIMIT_S, **told})
        engines = self.client.survey(attachment).engines
        self.note("dry run", "; ".join(f"{each.worker_id} {each.role} {each.version}" for each in engines))
        self.client.attach(attachment)

    def note(self, what: str, found: str) -> None:
        self.findings.append((what, found))
        print(f"  {self.name}: {what}: {found}", flush=True)

    def pools(self) -> dict[str, int]:
        """Workers that are ready, by role."""
        found = self.client.snapshot(self.name).workers
        return {
            role.value: sum(1 for each in found if each.role is role and each.state == "ready" and each.alive)
            for role in (Role.PREFILL, Role.DECODE)
        }

    def workers(self) -> dict[str, str]:
        """Roles by worker, as they are shown."""
        return {each.worker_id: each.role.value for each in self.client.snapshot(self.name).workers}

    def line(self, metric: str, since_unix_s: float, by: str) -> dict[str, list[tuple[float, float | None]]]:
        """Second by second, by the name of each line."""
        found = self.client.series(metric, since_unix_s, step_s=1, by=by, fleet_id=self.name)
        return {each.label: [(point.t_unix_s, point.value) for point in each.points] for each in found.series}

    def total(self, metric: str, since_unix_s: float) -> float:
        lines = self.line(metric, since_unix_s, "fleet")
        return sum(value for line in lines.values() for _, value in line if value is not None)

    def until(self, what: str, holds: Callable[[], bool], limit_s: float = 120.0) -> float:
        begun_s = time.monotonic()
        while True:
            try:
                if holds():
                    return time.monotonic() - begun_s
            except ControlError:
                pass  # its plane lives anew
            if time.monotonic() - begun_s > limit_s:
                raise Unmet(f"{what}: not within {limit_s:g} s")
            time.sleep(0.2)

    def until_pools(self, **sizes: int) -> float:
        return self.until(f"{sizes} seen", lambda: self.pools() == sizes)

    def order(self, action: Action, wait: bool = True) -> Command:
        """Confirmed as the preview asks; the ended command."""
        word = self.client.preview(CommandRequest(action=action)).needs_confirmation
        request = CommandRequest(action=action, why="bench", confirmation=word)
        command = self.client.submit(request)
        return self.client.wait(command.command_id, timeout_s=2 * LIMIT_S) if wait else command

    def expect(self, what: str, action: Action, state: CommandState, words: str = "") -> Command:
        begun_s = time.monotonic()
        command = self.order(action)
        self.ended(what, command, state, words, begun_s)
        return command

    def ended(self, what: str, command: Command, state: CommandState, words: str, begun_s: float) -> None:
        self.note(what, f"{command.state} after {time.monotonic() - begun_s:.1f} s: {command.result}")
        if command.state is not state or words not in command.result:
            raise Unmet(f"{what}: {command.state} ({command.result}), expected {state} ... {words}")

    def expect_refused(self, what: str, action: Action) -> None:
        try:
            self.order(action)
        except ControlError as error:
            self.note(what, f"refused: {error.detail}")
            return
        raise Unmet(f"{what}: it was taken")

    def allow(self, *capabilities: Capability) -> None:
        for each in capabilities:
            self.client.allow(self.name, each)
        self.until("its plane", lambda: set(capabilities) <= set(self.client.snapshot(self.name).capabilities))


def resize(**sizes: int) -> Action:
    return Action(verb=Verb.RESIZE, **sizes)


def undo(command: Command) -> Action:
    return Action(verb=Verb.UNDO, command_id=command.command_id)


@dataclass(frozen=True, slots=True)
class LonePlane:
    """A plane without workers, gateways and console, how to talk to it, and how to end it and start the next.

    `environment`: of the command line.
    """

    url: str
    token: str
    restart: Callable[[], None]
    run_dir: Path
    environment: dict[str, str]


@contextmanager
def lone_plane() -> Iterator[LonePlane]:
    """The product's own process. Raises PeerFailed with its log."""
    with tempfile.TemporaryDirectory(prefix="phaseline-peers-") as folder:
        run_dir, (port,) = Path(folder), free_ports(1)
        told = {"RUN_DIR": folder, "FLEET_KIND": "none", "API_PORT": str(port)}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PHASELINE_")}
        environment |= {f"PHASELINE_{name}": value for name, value in told.items()} | {"PYTHONPATH": str(ROOT)}
        log, token = run_dir / "plane.log", run_dir / "secrets" / "operator_token"
        planes = [_begun_plane(environment, log)]

        def restart() -> None:
            _end_plane(planes.pop())
            log.rename(run_dir / "plane-before.log")
            planes.append(_begun_plane(environment, log))
            _until_active(planes[0], log, token)

        try:
            _until_active(planes[0], log, token)
            yield LonePlane(f"http://127.0.0.1:{port}", token.read_text().strip(), restart, run_dir, environment)
        finally:
            for each in planes:
                _end_plane(each)


def _begun_plane(environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        command = [sys.executable, "-m", "control.plane_main"]
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=file, stderr=file)


def _until_active(plane: subprocess.Popen[bytes], log: Path, token: Path) -> None:
    deadline_s = time.monotonic() + READY_LIMIT_S
    while not (token.exists() and b"active under fence" in log.read_bytes()):
        if plane.poll() is not None or time.monotonic() > deadline_s:
            raise PeerFailed(f"the plane did not start: {log.read_text()[-2000:]}")
        time.sleep(0.1)


def _end_plane(plane: subprocess.Popen[bytes]) -> None:
    """Asked; one that a busy machine keeps from it is killed."""
    plane.terminate()
    try:
        plane.wait(ENDS_S)
    except subprocess.TimeoutExpired:
        plane.kill()
        plane.wait()


@dataclass(slots=True)
class Load:
    """What became of the requests."""

    done: int = 0
    failed: int = 0
    problems: dict[str, int] = field(default_factory=dict)

    def words(self) -> str:
        return f"{self.done} done, {self.failed} failed" + (f" {self.problems}" if self.problems else "")


@contextmanager
def asked(url: str | Callable[[], str], body: dict[str, Any], num_streams: int) -> Iterator[Load]:
    """So many clients ask again and again; those under way at the end are waited for. `url`: of each request, if so."""
    load, stop = Load(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_ask(url, body, num_streams, load, stop)))
    thread.start()
    try:
        yield load
    finally:
        stop.set()
        thread.join()


async def _ask(
    where: str | Callable[[], str], body: dict[str, Any], num_streams: int, load: Load, stop: threading.Event
) -> None:
    async def client(number: int, http: httpx.AsyncClient) -> None:
        while not stop.is_set():
            try:
                url = where if isinstance(where, str) else where()
                told = {**body, "prompt": f"{number} {time.monotonic()} {body.get('prompt', '')}"} if body else None
                answer = await (http.post(url, json=told) if told else http.get(url))
                is_whole = answer.status_code == 200 and (not body or "[DONE]" in answer.text)
                problem = "" if is_whole else f"{answer.status_code} {answer.text[-80:]!r}"
            except httpx.HTTPError as error:
                problem = type(error).__name__
            if problem:
                load.failed += 1
                load.problems[problem] = load.problems.get(problem, 0) + 1
                await asyncio.sleep(0.1)
            else:
                load.done += 1

    async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
        await asyncio.gather(*(client(number, http) for number in range(num_streams)))
