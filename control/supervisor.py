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

from control.components import CONSOLE, GATEWAY, PLANE, RAY, Component, Endpoint, kind_of
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
from control.fleets.ray_head import LOOPBACK, accepts_connections, make_temp_dir
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
    tree_of,
)

#: Supervisors of earlier versions do not know it and end at once, by which they lose nothing.
HANDOVER = signal.SIGUSR1
POLL_S = 0.2
TREE_EVERY_S = 5.0
STABLE_S = 60.0
MAX_BACKOFF_S = 30.0
MAX_FIRST_STARTS = 3
#: A component whose working child is not there by then is started anew.
CHILD_LIMIT_S = 60.0


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
        self.vital: ProcessId | None = None  # the child without which the root is of no use
        self.held_by: ProcessId | None = None  # not started while that process lives

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
            write_private(*component.config_file)
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


def write_private(path: Path, text: str) -> None:
    """A file that only its owner may read, in a folder that only its owner may enter."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)


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
        self.leaves = False  # when it stops, everything runs on for the next supervisor
        self.listener = listener
        self._run_dir = run_dir
        self._say_to = say
        self.runners = [Runner(each, state.components[each.name]) for each in components]
        self._by_name = {each.component.name: each for each in self.runners}
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
        while not self.stop.is_set() and not all(each.record.is_ready for each in self.runners):
            self.tick(time.monotonic())
            failed = next((each for each in self.runners if self._gives_up(each)), None)
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
        for runner in self.runners:
            self._look_at(runner, now_s)
        if now_s >= self._next_rotation_s:
            self._next_rotation_s = now_s + 30.0
            for runner in self.runners:
                rotate_log(runner.component.log)

    def _look_at(self, runner: Runner, now_s: float) -> None:
        record = runner.record
        if runner.held_by is not None:
            record.is_ready = runner.held_by.is_alive  # nobody waits for it meanwhile
            if record.is_ready:
                return
            runner.held_by = None
        if self._is_paused(runner):
            if record.processes:
                end_component(record, self.say)
            record.is_ready = True  # nobody waits for it
            return
        if said := runner.end_if_still(now_s):
            self.say(said)
        if record.processes and (not runner.is_running or runner.is_hollow(now_s)):
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
            runner.start(now_s, self.listener)
            self.save()
        except (OSError, ControlError) as error:
            runner.num_recent_exits += 1
            runner.next_start_s = now_s + backoff_s(runner.num_recent_exits)
            runner.record.last_exit = str(error)
            self.say(f"{runner.record.name} cannot be started: {error}")

    def _fell(self, name: str, now_s: float) -> None:
        """Restart what cannot live without the component that ended; the rest reconnects by itself."""
        for other in self.runners:
            if other.component.falls_with == name and other.record.processes:
                end_component(other.record, lambda _line: None)
                other.child, other.next_start_s = None, now_s
                other.record.num_restarts += 1
                other.record.last_exit = f"restarted after {name}"

    # --- replacing what runs ------------------------------------------------------------------------------------------

    def replace(self, runner: Runner) -> None:
        """End it; the next ticks start the new one, and what falls with it."""
        end_component(runner.record, self.say)
        runner.child, runner.next_start_s, runner.num_recent_exits = None, 0.0, 0
        self._fell(runner.record.name, 0.0)
        self.save()

    def set_aside(self, runner: Runner) -> ComponentRecord:
        """What runs goes on under another name, and the next tick starts the component anew beside it."""
        old, name = runner.record, runner.record.name
        old.name = f"{kind_of(name)}-old-{runner.pid}"
        runner.record = ComponentRecord(
            name=name, stop_limit_s=runner.component.stop_limit_s, log=str(runner.component.log)
        )
        self.state.components |= {name: runner.record, old.name: old}
        runner.child, runner.next_start_s, runner.num_recent_exits = None, 0.0, 0
        self.save()
        return old

    def bring_back(self, runner: Runner, old: ComponentRecord) -> None:
        """The new one is ended, and what was set aside takes its place again."""
        end_component(runner.record, self.say)
        self.forget(old)
        old.name = runner.component.name
        runner.record = self.state.components[old.name] = old
        runner.child = None
        self.save()

    def forget(self, old: ComponentRecord) -> None:
        """What was set aside has ended, or is no longer aside."""
        self.state.components.pop(old.name, None)
        self.save()

    def falls_with(self, name: str) -> bool:
        """Whether workers would die with this component."""
        return any(each.component.falls_with == name and kind_of(each.component.name) == RAY for each in self.runners)

    def is_held(self, name: str) -> bool:
        return any(each.held_by is not None for each in self.runners if each.component.name == name)

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
        """SIGTERM, SIGINT and SIGHUP ask for an orderly end; a second one is ignored while that goes on.

        HANDOVER asks it to go alone: the next supervisor takes everything over.
        """

        def leave(_number: int, _frame: object) -> None:
            self.leaves = True
            self.stop.set()

        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, lambda _number, _frame: self.stop.set()) for number in numbers}
        before[HANDOVER] = signal.signal(HANDOVER, leave)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def pause_file(run_dir: Path, name: str) -> Path:
    """While this file exists, the supervisor keeps that component stopped (`phaseline sample-traffic off`)."""
    return run_dir / f"{name}.off"


def records_for(
    components: Sequence[Component], previous: DeploymentState | None, *, takes_all: bool = False
) -> dict[str, ComponentRecord]:
    """A record for each component; a process that runs already with the same command and environment is taken over.

    `takes_all`: with whatever command and environment, as an upgrade replaces it in its turn.
    """
    found = {}
    for component in components:
        old = previous.components.get(component.name) if previous else None
        is_alive = old is not None and old.root is not None and old.root.is_alive
        same = is_alive and old is not None and (takes_all or old.digest == component.digest)
        record = old if old is not None and same else ComponentRecord(name=component.name, log=str(component.log))
        record.stop_limit_s = component.stop_limit_s
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
    if ray_port is not None and not _runs(kept.get(RAY)):
        rows.append((LOOPBACK, "ray_port", ray_port))
    return rows


def _runs(record: ComponentRecord | None) -> bool:
    return record is not None and bool(record.processes)
