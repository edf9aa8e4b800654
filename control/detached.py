"""The deployment as another process sees it: start its supervisor, follow what that says, ask it to end.

Decided here: when a caller may return, and how what runs is read from outside. Not here: the stages that the supervisor
goes through (`control.launch`), and what is printed (`control.cli.lifecycle`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from control.components import CONSOLE, GATEWAY, PLANE, TRAFFIC, kind_of, shared_environment
from control.deployment import (
    AlreadyRunning,
    DeploymentState,
    Say,
    end_all,
    make_run_dir,
    only_supervisor,
    read_state,
    write_state,
)
from control.errors import FleetError
from control.launch import check_start
from control.processes import last_line, rotate_log, send_signal
from control.settings import Settings
from control.upgrade import UpgradeNotes, notes_path, read_notes

POLL_S = 0.3


def launch_detached(settings: Settings, traffic: str, overrides: Mapping[str, str], say: Say) -> None:
    """Start the supervisor in a session of its own, follow it until all is ready. Raises FleetError when it fails."""
    make_run_dir(settings.run_dir)
    state = read_state(settings.run_dir)
    if state is not None and state.supervisor.is_alive and state.phase != "stopped":
        raise AlreadyRunning(f"already running in {settings.run_dir}; `phaseline down` ends it")
    check_start(settings, traffic, state)
    child = _spawn_supervisor(settings, ["--traffic", traffic] if traffic else [], overrides)
    follower = ProgressFollower(settings.run_dir)
    while child.poll() is None:
        current = read_state(settings.run_dir)
        if current is not None and current.supervisor.pid == child.pid:
            follower.tell(say)
            if current.phase == "ready":
                return
        time.sleep(POLL_S)
    why = last_line(_supervisor_log(settings)).removeprefix("phaseline: ")
    raise FleetError(why or f"the supervisor ended with code {child.returncode}; see {_supervisor_log(settings)}")


def launch_upgrade(settings: Settings, traffic: str, say: Say) -> UpgradeNotes:
    """Start a supervisor of this code that takes over and replaces everything; follow it to its end.

    Returns how each step went. Raises ControlError when it could not begin: then everything runs on as it was.
    """
    check_start(settings, traffic, read_state(settings.run_dir), takes_all=True)
    notes_path(settings.run_dir).unlink(missing_ok=True)
    child = _spawn_supervisor(settings, ["--upgrade", *(["--traffic", traffic] if traffic else [])], {})
    follower = ProgressFollower(settings.run_dir)
    while True:
        current = read_state(settings.run_dir)
        if current is not None and current.supervisor.pid == child.pid:
            follower.tell(say)
            notes = read_notes(settings.run_dir)
            if notes is not None and notes.state != "running":
                return notes
        if child.poll() is not None:
            why = last_line(_supervisor_log(settings)).removeprefix("phaseline: ")
            raise FleetError(
                why or f"the supervisor ended with code {child.returncode}; see {_supervisor_log(settings)}"
            )
        time.sleep(POLL_S)


def _spawn_supervisor(
    settings: Settings, arguments: Sequence[str], overrides: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """A supervisor in a session of its own, so that it outlives this command."""
    log = _supervisor_log(settings)
    rotate_log(log)
    with open(log, "ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "control.launch", *arguments],
            env={**os.environ, **overrides, **shared_environment(settings)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _supervisor_log(settings: Settings) -> Path:
    return settings.run_dir.resolve() / "logs" / "supervisor.log"


class ProgressFollower:
    """Repeats progress lines of the state file that were not told yet."""

    def __init__(self, run_dir: Path, skip: int = 0) -> None:
        self._run_dir = run_dir
        self._told = skip

    def tell(self, say: Say) -> DeploymentState | None:
        state = read_state(self._run_dir)
        if state is not None:
            for line in state.progress[self._told :]:
                say(line)
            self._told = max(self._told, len(state.progress))
        return state


def run_down(run_dir: Path, say: Say) -> bool:
    """End what `up` started in this run folder. False when nothing ran. Only recorded processes are touched.

    Raises FleetError when something did not end.
    """
    state = read_state(run_dir)
    if state is None:
        return False
    if state.supervisor.is_alive and state.phase != "stopped":
        _ask_supervisor(state, run_dir, say)
        return True
    if not state.running:
        return False
    try:
        with only_supervisor(run_dir):
            say("the supervisor is gone; ending what it left")
            end_all(state, say, lambda: write_state(run_dir, state), lambda: _run(state.stop_command))
            state.phase = "stopped"
            write_state(run_dir, state)
    except AlreadyRunning:
        return run_down(run_dir, say)
    return True


def _ask_supervisor(state: DeploymentState, run_dir: Path, say: Say) -> None:
    """Tell the supervisor to end, and repeat what it says until it has."""
    limit_s = 60.0 + sum(each.stop_limit_s for each in state.components.values())
    follower = ProgressFollower(run_dir, skip=len(state.progress))
    if send_signal(state.supervisor, signal.SIGTERM):
        deadline_s = time.monotonic() + limit_s
        while state.supervisor.is_alive and time.monotonic() < deadline_s:
            follower.tell(say)
            time.sleep(POLL_S)
        follower.tell(say)
    if state.supervisor.is_alive:
        raise FleetError(f"the supervisor (pid {state.supervisor.pid}) has not ended within {limit_s:.0f} s")


def _run(command: list[str]) -> None:
    if command:
        subprocess.run(command, timeout=60, check=False, stdin=subprocess.DEVNULL)


def environment_of_running(state: DeploymentState) -> dict[str, str]:
    """The PHASELINE_* variables that the running processes were started with; read from one of them."""
    for kind in (PLANE, GATEWAY, CONSOLE):
        for record in state.components.values():
            process = record.root.find() if record.root is not None and kind_of(record.name) == kind else None
            with suppress(psutil.Error):
                if process is not None:
                    found = process.environ()
                    return {name: value for name, value in found.items() if name.startswith("PHASELINE_")}
    return {}


def traffic_of_running(state: DeploymentState) -> str:
    """The profile of the sample traffic that runs; "" when none does."""
    record = state.components.get(TRAFFIC)
    process = record.root.find() if record is not None and record.root is not None else None
    with suppress(psutil.Error, ValueError, IndexError):
        if process is not None:
            words = process.cmdline()
            return words[words.index("--profile") + 1]
    return ""
