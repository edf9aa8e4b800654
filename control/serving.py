"""Served fleets under the supervisor: what is asked for (`control.served`) beside what runs, at each of its ticks.

Decided here: when such a process is taken up and let go, and who holds its socket. It comes and goes while the rest
runs, so one that cannot start is tried again and keeps nothing else from starting. Its socket lives as long as it is
asked for: clients that come while the process is started anew wait in it and are not refused. Not here: how a process
is started, probed and started again, which is as for every component (`control.supervisor`).
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence

from control.components import SERVE, Component, kind_of, serve_component
from control.deployment import ComponentRecord, DeploymentState, Say, end_component
from control.errors import ControlError
from control.listener import bind_listener, reclaim_listener
from control.processes import send_signal
from control.runner import Runner, backoff_s
from control.served import Served, all_served
from control.settings import Settings


class Serving:
    """`runners`: the supervisor's own list, in which those of served fleets come and go."""

    def __init__(self, settings: Settings, state: DeploymentState, runners: list[Runner], say: Say) -> None:
        self._settings = settings
        self._state = state
        self._runners = runners
        self._say = say
        self._asked: tuple[Served, ...] = ()
        self._wanted: dict[str, Component] = {}
        self._leaving_s: dict[str, float] = {}  # since when
        self._failed: dict[str, tuple[int, float]] = {}  # how often in a row, and when it is tried again

    def follow(self, now_s: float) -> None:
        """Take up what is asked for, let go of what is no longer."""
        self._look()
        for runner in [each for each in self._runners if kind_of(each.component.name) == SERVE]:
            wanted = self._wanted.get(runner.component.name)
            if wanted is None or wanted.digest != runner.component.digest:
                self._let_go(runner, now_s)
        known = {each.component.name for each in self._runners}
        for name in self._failed.keys() - self._wanted.keys():
            del self._failed[name]
            end_component(self._state.components.pop(name), self._say)
        for name, component in self._wanted.items():
            if name not in known and now_s >= self._failed.get(name, (0, 0.0))[1]:
                self._take_up(component, now_s)

    def is_leaving(self, runner: Runner) -> bool:
        """It is not to be started again."""
        return runner.component.name in self._leaving_s

    def _look(self) -> None:
        asked = all_served(self._settings.run_dir)
        if asked != self._asked:
            self._asked = asked
            found = [serve_component(self._settings, each) for each in asked]
            self._wanted = {each.name: each for each in found}

    def _take_up(self, component: Component, now_s: float) -> None:
        name = component.name
        record = self._state.components.get(name)
        if record is None:
            record = ComponentRecord(name=name, log=str(component.log))
        record.stop_limit_s = component.stop_limit_s
        runner = Runner(component, record)
        try:
            runner.listener = _listener_of(runner, self._settings.host)
        except ControlError as error:
            num_failed = self._failed.get(name, (0, 0.0))[0] + 1
            self._failed[name] = num_failed, now_s + backoff_s(num_failed)
            record.last_exit = str(error)
            self._state.components[name] = record
            self._say(f"{name} cannot be started: {error}")
            return
        self._failed.pop(name, None)
        self._state.components[name] = record
        self._runners.append(runner)
        self._say(f"{name} is to be served on port {component.own_port}")

    def _let_go(self, runner: Runner, now_s: float) -> None:
        """Ask it once; the ticks go on while its streams end. It is killed when they do not within its limit."""
        name, root = runner.component.name, runner.record.root
        if name not in self._leaving_s:
            self._leaving_s[name] = now_s
            if runner.listener is not None:
                runner.listener.close()
            if root is not None and send_signal(root, signal.SIGTERM):
                self._say(f"{name} drains (at most {runner.component.stop_limit_s:.0f} s)")
        if runner.is_running and now_s - self._leaving_s[name] < runner.component.stop_limit_s:
            return
        end_component(runner.record, lambda _line: None)
        self._runners.remove(runner)
        del self._leaving_s[name]
        self._state.components.pop(name, None)
        self._say(f"{name} ended: it is served no more")


def served_components(settings: Settings) -> Sequence[Component]:
    """As of now, by name."""
    return [serve_component(settings, each) for each in all_served(settings.run_dir)]


def _listener_of(runner: Runner, host: str) -> socket.socket:
    """From the process that runs already, with all that waits in it, else a new one. Raises SettingsError."""
    port, root = runner.component.own_port, runner.record.root
    found = reclaim_listener(root.pid, port) if root is not None and root.is_alive else None
    return found or bind_listener(host, port)
