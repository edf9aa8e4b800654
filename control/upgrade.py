"""`phaseline upgrade`: every process of a running deployment is replaced, one after the other, and serving goes on.

    supervisor   a new one takes everything over as it runs
    gateways     a new one is ready on the shared socket before the old one is told to stop
    served fleets  a new one is loaded before, and takes over the engines when the old one is told to stop
    planes       one after the other; without a standby the control API is away for a moment, gateways do not need it
    console, sample traffic
    workers      host by host: drained by recorded commands (running requests move), renewed, undrained
    Ray          the head, where Redis lets it come back to its node; the node never, as it would take all workers along

Decided here: the order, what each step waits for, and that the first step that fails ends it: everything after that is
left as it was. Not here: how components are started and ended (`control.supervisor`), which commands empty a host
(`control.host_rolling`).
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from control.auth import read_token
from control.client import PhaselineClient
from control.components import CONSOLE, GATEWAY, PLANE, RAY, RAY_NODE, SERVE, TRAFFIC, kind_of
from control.errors import ControlError
from control.host_rolling import HostPlan, outdated_hosts, plan_host
from control.listener import ask_gateway
from control.processes import last_line, send_signal
from control.runner import Runner
from control.settings import Settings
from control.supervisor import MAX_FIRST_STARTS, Supervisor
from control.types.commands import Action, Command, CommandRequest, CommandState
from control.types.workers import WorkerState, WorkerStatus

T = TypeVar("T")
POLL_S: Final = 0.1
READY_LIMIT_S: Final = 90.0
HOST_LIMIT_S: Final = 300.0
WHY: Final = "upgrade"
GOING_BACK: Final = (
    "upgrade: stopped. What ends from now on is started with the new code; `phaseline upgrade` run by the former code "
    "goes back to it"
)
#: How the words of a step begin that leaves things as they are on purpose.
KEPT: Final = "kept: "


class UpgradeStopped(ControlError):
    """A step failed; the message says which, why, and what is left as it was."""


@dataclass(slots=True, kw_only=True)
class StepNote:
    """One step for a person. `state`: waiting | running | done | kept | failed."""

    name: str
    state: str = "waiting"
    text: str = ""


@dataclass(slots=True, kw_only=True)
class UpgradeNotes:
    """The file `<run_dir>/upgrade.json`. `state`: running | done | failed."""

    state: str = "running"
    started_unix_s: float = 0.0
    steps: list[StepNote] = field(default_factory=list)


def notes_path(run_dir: Path) -> Path:
    return run_dir / "upgrade.json"


def read_notes(run_dir: Path) -> UpgradeNotes | None:
    """The last upgrade of this run folder; None when there was none."""
    try:
        raw: dict[str, Any] = json.loads(notes_path(run_dir).read_text())
    except (OSError, ValueError):
        return None
    return UpgradeNotes(**{**raw, "steps": [StepNote(**each) for each in raw["steps"]]})


class Upgrade:
    """Runs inside a supervisor that has taken everything over. `run` says how each step went and never raises."""

    def __init__(self, supervisor: Supervisor, settings: Settings) -> None:
        self._supervisor = supervisor
        self._settings = settings
        self.notes = UpgradeNotes(started_unix_s=time.time())

    def run(self) -> bool:
        """True when every step is done."""
        steps = self._steps()
        self.notes.steps = [StepNote(name=name) for name, _ in steps]
        for note, (_, act) in zip(self.notes.steps, steps, strict=True):
            self._note(note, "running", "")
            try:
                text = act()
            except ControlError as error:
                left = ", ".join(each.name for each in self.notes.steps if each.state == "waiting")
                self._note(note, "failed", f"{error}" + (f"; left as they were: {left}" if left else ""))
                self._supervisor.say(GOING_BACK)
                self._end("failed")
                return False
            kept = text.removeprefix(KEPT)
            self._note(note, "done" if kept == text else "kept", kept)
        self._end("done")
        return True

    def _steps(self) -> list[tuple[str, Callable[[], str]]]:
        steps: list[tuple[str, Callable[[], str]]] = [("supervisor", lambda: f"pid {os.getpid()}")]
        kinds = (
            *((GATEWAY, self._gateway), (SERVE, self._served), (PLANE, self._simply)),
            *((CONSOLE, self._simply), (TRAFFIC, self._simply)),
        )
        for kind, act in kinds:
            own = [each for each in self._supervisor.runners if kind_of(each.record.name) == kind]
            steps += [(each.record.name, partial(act, each)) for each in reversed(own)]
        if self._settings.fleet_kind == "ray":
            steps.append(("workers", self._workers))
        steps += [(each.record.name, partial(self._head, each)) for each in self._of(RAY)]
        if self._of(RAY_NODE):
            steps.append(
                (RAY_NODE, lambda: KEPT + "it would take all workers along; `phaseline down` and `up` renew it")
            )
        return steps

    def _of(self, name: str) -> list[Runner]:
        return [each for each in self._supervisor.runners if each.record.name == name]

    # --- components --------------------------------------------------------------------------------------------------

    def _gateway(self, runner: Runner) -> str:
        """The new one is ready before the old one hears of it."""
        if runner.child is not None:
            return f"pid {runner.pid}, started by this upgrade"
        if self._supervisor.listener is None:
            return self._simply(runner) + "; it did not share its socket, so connections were refused meanwhile"
        old = self._supervisor.set_aside(runner)
        if not self._comes_up(runner, lambda: self._is_gateway_ready(runner)):
            why = last_line(runner.component.log)
            self._supervisor.bring_back(runner, old)
            raise UpgradeStopped(f"the new {runner.record.name} does not become ready: {why}; the old one serves on")
        if old.root is not None:
            send_signal(old.root, signal.SIGTERM)
        self._until(lambda: old.root is None or not old.root.is_alive, old.stop_limit_s)
        self._supervisor.forget(old)
        return f"pid {runner.pid}"

    def _served(self, runner: Runner) -> str:
        """The new one waits, loaded, until the old one is told to stop: only one at a time gives an engine its role.
        Streams end in the old one, new requests wait in the shared socket for the moment in between."""
        if runner.child is not None:
            return f"pid {runner.pid}, started by this upgrade"
        old = self._supervisor.set_aside(runner)
        if not self._comes_up(runner, lambda: runner.record.is_ready):
            why = last_line(runner.component.log)
            self._supervisor.bring_back(runner, old)
            raise UpgradeStopped(f"the new {runner.component.name} does not start: {why}; the old one serves on")
        if old.root is not None:
            send_signal(old.root, signal.SIGTERM)
        self._comes_up(runner, lambda: self._is_gateway_ready(runner))
        self._until(lambda: old.root is None or not old.root.is_alive, old.stop_limit_s)
        self._supervisor.forget(old)
        return f"pid {runner.pid}"

    def _comes_up(self, runner: Runner, is_ready: Callable[[], bool]) -> bool:
        """False when it has ended several times in a row, or the limit has passed."""

        def gives_up() -> bool:
            return runner.num_recent_exits >= MAX_FIRST_STARTS

        return self._until(lambda: is_ready() or gives_up(), READY_LIMIT_S) and not gives_up()

    def _is_gateway_ready(self, runner: Runner) -> bool:
        found = ask_gateway(runner.pid) if runner.record.is_ready else None
        if found is None:
            return False
        found[1].close()
        return not found[0].problem

    def _simply(self, runner: Runner) -> str:
        """End it, start the new one."""
        started_s = time.monotonic()
        before = runner.pid
        self._supervisor.replace(runner)
        if not self._comes_up(runner, lambda: runner.record.is_ready and runner.pid not in (0, before)):
            why = last_line(runner.component.log)
            raise UpgradeStopped(f"the new {runner.record.name} does not become ready: {why}; it is tried on and on")
        return f"pid {runner.pid}, away for {time.monotonic() - started_s:.1f} s"

    def _head(self, runner: Runner) -> str:
        if self._supervisor.falls_with(RAY):
            return KEPT + "without Redis it would take all workers along; `phaseline down` and `up` renew it"
        if self._supervisor.is_held(RAY_NODE):
            return KEPT + "it holds the workers itself, as earlier versions did; `phaseline down` and `up` renew it"
        away = self._simply(runner)
        for fell in self._supervisor.runners:
            if fell.component.falls_with == RAY:
                self._comes_back(fell)
        with self._client() as client:
            self._settled(client)
        return away

    def _comes_back(self, fell: Runner) -> None:
        """It was restarted with what was renewed: the upgrade is not over before it answers again."""
        if not self._comes_up(fell, lambda: fell.record.is_ready):
            why = last_line(fell.component.log)
            raise UpgradeStopped(f"{fell.record.name} does not come back: {why}; it is tried on and on")

    # --- workers -----------------------------------------------------------------------------------------------------

    def _workers(self) -> str:
        """Hosts that run other code than the plane, one after the other."""
        with self._client() as client:
            self._settled(client)
            hosts = outdated_hosts(self._seen(client))
            for worker_ids in hosts:
                self._host(client, plan_host(worker_ids, self._seen(client)))
        return f"{len(hosts)} worker processes renewed" if hosts else KEPT + "they run this code already"

    def _client(self) -> PhaselineClient:
        url = f"http://{self._settings.host}:{self._settings.api_port}"
        return PhaselineClient(url, read_token(self._settings.run_dir, "operator"), timeout_s=10.0)

    def _host(self, client: PhaselineClient, plan: HostPlan) -> None:
        names = ", ".join(plan.worker_ids)
        if plan.refused:
            raise UpgradeStopped(plan.refused)
        for action in plan.before:
            self._command(client, action)
        if not self._until(lambda: self._is_renewed(client, plan), HOST_LIMIT_S):
            raise UpgradeStopped(f"{names}: not renewed within {HOST_LIMIT_S:g} s; still drained")
        for action in plan.after:
            self._command(client, action)
        self._supervisor.say(f"upgrade: {names} renewed")

    def _is_renewed(self, client: PhaselineClient, plan: HostPlan) -> bool:
        own = [each for each in self._seen(client) if each.worker_id in plan.worker_ids]
        are_there = all(each.alive and not each.is_outdated and each.state in AT_HOME for each in own)
        return are_there and len(own) == len(plan.worker_ids)

    def _settled(self, client: PhaselineClient) -> None:
        """A plane that has just started sees its workers after a few ticks."""

        def is_there() -> bool:
            workers = self._seen(client)
            return bool(workers) and all(each.alive and each.state != WorkerState.STARTING for each in workers)

        if not self._until(is_there, READY_LIMIT_S):
            raise UpgradeStopped(f"the plane does not see all workers within {READY_LIMIT_S:g} s")

    def _seen(self, client: PhaselineClient) -> tuple[WorkerStatus, ...]:
        try:
            return client.snapshot().workers
        except ControlError:
            return ()

    def _command(self, client: PhaselineClient, action: Action) -> None:
        """One recorded command, confirmed as its preview asks, until it has ended."""
        request = CommandRequest(action=action, why=WHY, idempotency_key=secrets.token_hex(8))
        word = self._asked(lambda: client.preview(request)).needs_confirmation
        command = self._asked(lambda: client.submit(replace(request, confirmation=word)))

        def seen() -> Command:
            return self._asked(lambda: client.command(command.command_id))

        self._until(lambda: seen().state not in RUNNING, HOST_LIMIT_S)
        ended = seen()
        if ended.state is not CommandState.DONE:
            words = f"{action.verb} {action.worker_id}"
            raise UpgradeStopped(f"command {command.command_id} ({words}) is {ended.state}: {ended.result}")

    # --- waiting and telling -----------------------------------------------------------------------------------------

    def _asked(self, call: Callable[[], T]) -> T:
        """The plane's answer, asked again while only time helps: a busy history, a starting plane."""
        deadline_s = time.monotonic() + READY_LIMIT_S
        while True:
            try:
                return call()
            except ControlError as error:
                if not error.retry_helps or time.monotonic() > deadline_s or self._supervisor.stop.is_set():
                    raise
            self._supervisor.tick(time.monotonic())
            self._supervisor.stop.wait(POLL_S)

    def _until(self, condition: Callable[[], bool], limit_s: float) -> bool:
        """Watch over everything meanwhile. False when the limit has passed or the supervisor is told to stop."""
        deadline_s = time.monotonic() + limit_s
        while not condition():
            if time.monotonic() > deadline_s or self._supervisor.stop.is_set():
                return False
            self._supervisor.tick(time.monotonic())
            self._supervisor.stop.wait(POLL_S)
        return True

    def _note(self, note: StepNote, state: str, text: str) -> None:
        note.state, note.text = state, text
        self._save()
        if state != "running":
            self._supervisor.say(f"upgrade: {note.name} {state}" + (f": {text}" if text else ""))

    def _end(self, state: str) -> None:
        self.notes.state = state
        self._save()

    def _save(self) -> None:
        path = notes_path(self._settings.run_dir)
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(asdict(self.notes), indent=1) + "\n")
        os.replace(scratch, path)


RUNNING = (CommandState.ACCEPTED, CommandState.RUNNING)
#: A renewed worker is one of these: closed by the drain, or not placed yet.
AT_HOME = (WorkerState.DRAINED, WorkerState.READY, WorkerState.UNASSIGNED)
