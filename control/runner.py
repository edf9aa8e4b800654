"""One component under supervision: its process, whether that does its work, and when it may start again.

Decided here: what counts as running, ready, standing still and hollow, and how long to wait before a restart. Not here:
in which order components start, and what falls with which (`control.supervisor`).
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess

import httpx

from control.auth import write_private
from control.components import Component
from control.deployment import ComponentRecord, end_component
from control.fleets.ray_head import accepts_connections, make_temp_dir
from control.listener import LISTEN_FD, ask_gateway
from control.processes import ProcessId, send_signal, spawn, stands_still, tree_of

STABLE_S = 60.0
MAX_BACKOFF_S = 30.0
#: A component whose working child is not there by then is started anew.
CHILD_LIMIT_S = 60.0


def backoff_s(num_recent_exits: int) -> float:
    """Wait before the n-th restart in a row: 0.5 s, 1 s, 2 s .. 30 s."""
    return min(MAX_BACKOFF_S, 0.5 * 2.0 ** max(0, num_recent_exits - 1))


class Runner:
    """One component under supervision: its record, and when it may start again."""

    def __init__(self, component: Component, record: ComponentRecord) -> None:
        self.component = component
        self.record = record
        self.child: subprocess.Popen[bytes] | None = None
        self.num_recent_exits = 0
        self.next_start_s = 0.0
        self.started_s = 0.0
        self.was_ready = record.is_ready
        self.next_tree_s = 0.0
        self.still_since_s: float | None = None
        self.vital: ProcessId | None = None  # the child without which the root is of no use
        self.held_by: ProcessId | None = None  # not started while that process lives
        self.listener: socket.socket | None = None  # its own, where it has one

    @property
    def pid(self) -> int:
        """0 while it does not run."""
        return self.record.root.pid if self.record.root is not None else 0

    @property
    def is_running(self) -> bool:
        if self.child is not None:
            self.child.poll()  # collects it when it has ended
        root = self.record.root
        return root is not None and root.is_alive

    def start(self, now_s: float, listener: socket.socket | None = None) -> None:
        """Raises OSError when the command itself cannot start."""
        component = self.component
        if component.private_dir is not None:
            make_temp_dir(component.private_dir)
        if component.config_file is not None:
            path, text = component.config_file
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, text)
        listener = self.listener or listener
        inherits = [listener.fileno()] if component.shares_listener and listener is not None else []
        environment = {**component.environment, **({LISTEN_FD: str(inherits[0])} if inherits else {})}
        root, self.child = spawn(component.command, environment, component.log, component.cwd, inherits)
        self.record.processes, self.record.digest = [root], component.digest
        self.record.is_ready, self.vital = False, None
        self.started_s, self.next_tree_s = now_s, now_s + 1.0

    def end_if_still(self, now_s: float) -> str:
        """Kill a process that stands still for too long, as it may hold a lock that others wait for; what to say."""
        root, limit_s = self.record.root, self.component.stopped_limit_s
        if root is None or not limit_s or not stands_still(root.pid):
            self.still_since_s = None
            return ""
        if self.still_since_s is None:
            self.still_since_s = now_s
        if now_s - self.still_since_s < limit_s:
            return ""
        send_signal(root, signal.SIGKILL)
        return f"{self.record.name} has stood still (stopped) for {limit_s:g} s: killed"

    def is_hollow(self, now_s: float) -> bool:
        """Its root runs on without the child that does the work: `ray start` does not call that an end."""
        name, root = self.component.lives_by, self.record.root
        if not name or root is None:
            return False
        if self.vital is None:
            self.vital = next((each for each in tree_of(root)[1:] if each.name == name), None)
            return self.vital is None and now_s - self.started_s > CHILD_LIMIT_S
        return not self.vital.is_alive

    def note_exit(self, now_s: float) -> str:
        """Record the end of the process and end what it left; returns what to say."""
        if self.is_running:
            self.record.last_exit = f"its {self.component.lives_by} ended"
        else:
            self.record.last_exit = exit_text(self.child.poll() if self.child is not None else None)
        lived_s = now_s - self.started_s
        self.num_recent_exits = 1 if self.record.is_ready and lived_s > STABLE_S else self.num_recent_exits + 1
        self.record.is_ready, self.child = False, None
        self.record.num_restarts += 1
        wait_s = backoff_s(self.num_recent_exits)
        end_component(self.record, lambda _line: None)
        self.next_start_s = now_s + wait_s
        note = f"; {self.component.end_note}" if self.component.end_note else ""
        return f"{self.record.name} ended ({self.record.last_exit}); starting it again in {wait_s:g} s{note}"

    def probe(self) -> bool:
        """Whether the component answers now."""
        component, root = self.component, self.record.root
        if component.shares_listener:
            return root is not None and self._answers(root.pid)
        if component.ready_port:
            return accepts_connections(component.ready_host, component.ready_port)
        if not component.ready_url:
            return True
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(component.ready_url, timeout=1.0, trust_env=False).status_code == 200
        return False

    def _answers(self, pid: int) -> bool:
        """The shared address may be answered by another gateway; the channel is this one's own."""
        found = ask_gateway(pid)
        if found is not None:
            found[1].close()
        return found is not None


def exit_text(code: int | None) -> str:
    if code is None:
        return "exit code unknown"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
