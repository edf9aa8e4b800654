"""`phaseline up`: start the components in order, restart one that dies, end them on request.

Decided here: when a component starts, what counts as ready, how long to wait before a restart, and when to give up at
start. Not here: which components there are (`control.components`) and how they are recorded and ended
(`control.deployment`). The supervisor holds nothing that is not in the state file: killed, it loses nothing,
and the next `up` takes over what still runs.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import httpx

from control.components import CONSOLE, GATEWAY, PLANE, Component, Endpoint, kind_of
from control.deployment import (
    ComponentRecord,
    DeploymentState,
    Say,
    end_all,
    end_component,
    refresh_tree,
    write_state,
)
from control.errors import ControlError, SettingsError
from control.fleets.ray_head import accepts_connections, make_temp_dir
from control.listener import LISTEN_FD, ask_gateway
from control.processes import (
    ProcessId,
    last_line,
    port_is_free,
    port_owner,
    rotate_log,
    send_signal,
    spawn,
    stands_still,
)

POLL_S = 0.2
TREE_EVERY_S = 5.0
STABLE_S = 60.0
MAX_BACKOFF_S = 30.0
MAX_FIRST_STARTS = 3


class StartFailed(ControlError):
    """A component did not become ready; the message says which and quotes its last line."""


def backoff_s(num_recent_exits: int) -> float:
    """Wait before the n-th restart in a row: 0.5 s, 1 s, 2 s .. 30 s."""
    return min(MAX_BACKOFF_S, 0.5 * 2.0 ** max(0, num_recent_exits - 1))


def check_ports(listed: Sequence[tuple[str, str, int]], ours: Collection[ProcessId] = ()) -> None:
    """Rows: (host, setting, port). Raises SettingsError naming the first port that is in use, and its setting.

    A port that one of `ours` holds will be free when that process has been ended.
    """
    seen: dict[int, str] = {}
    for host, setting, port in listed:
        if port in seen:
            raise SettingsError(
                f"settings {seen[port]} and {setting} name the same port {port}", field=setting, value=port
            )
        seen[port] = setting
        try:
            is_free = port_is_free(host, port)
        except OSError as error:
            raise SettingsError(f"{host}:{port} cannot be used: {error.strerror}", field=setting, value=port) from error
        owner = None if is_free else port_owner(port)
        if not is_free and (owner is None or owner.pid not in {each.pid for each in ours}):
            by = f" by {owner.name} (pid {owner.pid})" if owner else ""
            raise SettingsError(
                f"setting {setting}: port {port} is in use{by}", field=setting, value=port, bound="a free port"
            )


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
        inherits = [listener.fileno()] if component.shares_listener and listener is not None else []
        environment = {**component.environment, **({LISTEN_FD: str(inherits[0])} if inherits else {})}
        root, self.child = spawn(component.command, environment, component.log, component.cwd, inherits)
        self.record.processes, self.record.digest = [root], component.digest
        self.record.is_ready = False
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

    def note_exit(self, now_s: float) -> str:
        """Record the end of the process and end what it left; returns what to say."""
        code = self.child.poll() if self.child is not None else None
        self.record.last_exit = exit_text(code)
        lived_s = now_s - self.started_s
        self.num_recent_exits = 1 if self.record.is_ready and lived_s > STABLE_S else self.num_recent_exits + 1
        self.record.is_ready, self.child = False, None
        self.record.num_restarts += 1
        wait_s = backoff_s(self.num_recent_exits)
        end_component(self.record, lambda _line: None)
        self.next_start_s = now_s + wait_s
        return f"{self.record.name} ended ({self.record.last_exit}); starting it again in {wait_s:g} s"

    def probe(self) -> bool:
        """Whether the component answers now."""
        component, root = self.component, self.record.root
        if component.shares_listener:
            return root is not None and self._answers(root.pid)
        if component.ready_port:
            return accepts_connections("127.0.0.1", component.ready_port)
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


class Supervisor:
    """Runs until it is told to stop. Single-threaded; `stop` may be set from a signal handler or another thread."""

    def __init__(
        self,
        run_dir: Path,
        components: Sequence[Component],
        state: DeploymentState,
        say: Say,
        listener: socket.socket | None = None,
    ) -> None:
        """`listener`: the gateways' socket, open for as long as this lives."""
        self.state = state
        self.stop = threading.Event()
        self._listener = listener
        self._run_dir = run_dir
        self._say_to = say
        self._runners = [Runner(each, state.components[each.name]) for each in components]
        self._by_name = {each.component.name: each for each in self._runners}
        self._next_rotation_s = 0.0

    def say(self, line: str) -> None:
        self.state.progress.append(line)
        del self.state.progress[:-200]
        self._say_to(line)
        self.save()

    def save(self) -> None:
        write_state(self._run_dir, self.state)

    def start_all(self) -> None:
        """Return once all are ready, or when told to stop. Raises StartFailed when one keeps failing."""
        while not self.stop.is_set() and not all(each.record.is_ready for each in self._runners):
            self.tick(time.monotonic())
            failed = next((each for each in self._runners if self._gives_up(each)), None)
            if failed is not None:
                log = failed.component.log
                raise StartFailed(
                    f"{failed.record.name} does not start ({failed.record.last_exit}): {last_line(log)} [{log}]"
                )
            self.stop.wait(POLL_S)

    def watch(self) -> None:
        """Keep them running until told to stop."""
        while not self.stop.is_set():
            self.tick(time.monotonic())
            self.stop.wait(POLL_S)

    def end(self) -> None:
        """End everything in order."""
        self.state.phase = "stopping"
        self.save()
        end_all(self.state, self.say, self.save, self._run_stop_command)
        self.state.phase = "stopped"
        self.save()

    def tick(self, now_s: float) -> None:
        """Look at each component once: note an end, start what may start, probe what is not ready yet."""
        for runner in self._runners:
            self._look_at(runner, now_s)
        if now_s >= self._next_rotation_s:
            self._next_rotation_s = now_s + 30.0
            for runner in self._runners:
                rotate_log(runner.component.log)

    def _look_at(self, runner: Runner, now_s: float) -> None:
        record = runner.record
        if self._is_paused(runner):
            if record.processes:
                end_component(record, self.say)
            record.is_ready = True  # nobody waits for it
            return
        if said := runner.end_if_still(now_s):
            self.say(said)
        if record.processes and not runner.is_running:
            self.say(runner.note_exit(now_s))
            self._fell(record.name, now_s)
        elif not record.processes and now_s >= runner.next_start_s and self._may_start(runner):
            self._start(runner, now_s)
        elif record.processes and not record.is_ready and runner.probe():
            refresh_tree(record)
            record.is_ready = runner.was_ready = True
            self.say(f"{record.name} ready (pid {record.processes[0].pid})")
        elif record.processes and now_s >= runner.next_tree_s:
            runner.next_tree_s = now_s + TREE_EVERY_S
            before = list(record.processes)
            refresh_tree(record)
            if record.processes != before:
                self.save()

    def _start(self, runner: Runner, now_s: float) -> None:
        try:
            runner.start(now_s, self._listener)
            self.save()
        except (OSError, ControlError) as error:
            runner.num_recent_exits += 1
            runner.next_start_s = now_s + backoff_s(runner.num_recent_exits)
            runner.record.last_exit = str(error)
            self.say(f"{runner.record.name} cannot be started: {error}")

    def _fell(self, name: str, now_s: float) -> None:
        """Restart what cannot live without the component that ended; the rest reconnects by itself."""
        for other in self._runners:
            if other.component.falls_with == name and other.record.processes:
                end_component(other.record, lambda _line: None)
                other.child, other.next_start_s = None, now_s
                other.record.num_restarts += 1
                other.record.last_exit = f"restarted after {name}"

    def _may_start(self, runner: Runner) -> bool:
        return all(self._by_name[each].record.is_ready for each in runner.component.needs)

    def _is_paused(self, runner: Runner) -> bool:
        return pause_file(self._run_dir, runner.component.name).exists()

    def _gives_up(self, runner: Runner) -> bool:
        return not runner.was_ready and runner.num_recent_exits >= MAX_FIRST_STARTS

    def _run_stop_command(self) -> None:
        subprocess.run(self.state.stop_command, timeout=60, check=False, stdin=subprocess.DEVNULL)

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """SIGTERM, SIGINT and SIGHUP ask for an orderly end; a second one is ignored while that goes on."""
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, lambda _number, _frame: self.stop.set()) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def pause_file(run_dir: Path, name: str) -> Path:
    """While this file exists, the supervisor keeps that component stopped (`phaseline sample-traffic off`)."""
    return run_dir / f"{name}.off"


def records_for(components: Sequence[Component], previous: DeploymentState | None) -> dict[str, ComponentRecord]:
    """A record for each component; a process that runs already with the same command and environment is taken over."""
    found = {}
    for component in components:
        old = previous.components.get(component.name) if previous else None
        same = old is not None and old.digest == component.digest and old.root is not None and old.root.is_alive
        record = old if old is not None and same else ComponentRecord(name=component.name, log=str(component.log))
        record.stop_limit_s, record.digest = component.stop_limit_s, component.digest
        found[component.name] = record
    return found


def end_leftovers(previous: DeploymentState, kept: dict[str, ComponentRecord], say: Say) -> None:
    """End what an earlier supervisor left and what is not taken over: another command, or children of a dead root."""
    for record in previous.running:
        if kept.get(record.name) is not record:
            end_component(record, say)


def ports_to_check(
    listed: Sequence[Endpoint], host: str, ray_port: int | None, kept: dict[str, ComponentRecord]
) -> list[tuple[str, str, int]]:
    """Ports that a component which is not running yet will need."""
    owner = {"gateway_port": GATEWAY, "api_port": PLANE, "console_port": CONSOLE}
    running = {kind_of(name) for name, record in kept.items() if _runs(record)}
    rows = [(host, each.setting, each.port) for each in listed if owner[each.setting] not in running]
    if ray_port is not None and not _runs(kept.get("ray")):
        rows.append(("127.0.0.1", "ray_port", ray_port))
    return rows


def _runs(record: ComponentRecord | None) -> bool:
    return record is not None and bool(record.processes)
