"""`phaseline up`: start the components in order, restart one that dies, end them on request.

Decided here: when a component starts, what falls with it, what is taken over from an earlier supervisor, and when to
give up at start. Not here: which components there are (`control.components`), what counts as running and ready
(`control.runner`) and how they are recorded and ended (`control.deployment`). The supervisor holds nothing that is not
in the state file: killed, it loses nothing, and the next `up` takes over what still runs.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from control.components import RAY, Component, kind_of
from control.deployment import (
    ComponentRecord,
    DeploymentState,
    Say,
    end_all,
    end_component,
    refresh_tree,
    write_state,
)
from control.errors import ControlError
from control.processes import last_line, rotate_log
from control.runner import Runner, backoff_s
from control.serving import Serving
from control.settings import Settings

#: Supervisors of earlier versions do not know it and end at once, by which they lose nothing.
HANDOVER = signal.SIGUSR1
POLL_S = 0.2
TREE_EVERY_S = 5.0
MAX_FIRST_STARTS = 3


class StartFailed(ControlError):
    """A component did not become ready; the message says which and quotes its last line."""


class Supervisor:
    """Runs until it is told to stop. Single-threaded; `stop` may be set from a signal handler or another thread."""

    def __init__(
        self,
        run_dir: Path,
        components: Sequence[Component],
        state: DeploymentState,
        say: Say,
        listener: socket.socket | None = None,
        settings: Settings | None = None,
    ) -> None:
        """`listener`: the gateways' socket, open for as long as this lives. `settings`: of the fleets that are served
        besides; None: there are none."""
        self.state = state
        self.stop = threading.Event()
        self.leaves = False  # when it stops, everything runs on for the next supervisor
        self.listener = listener
        self._run_dir = run_dir
        self._say_to = say
        self.runners = [Runner(each, state.components[each.name]) for each in components]
        self._by_name = {each.component.name: each for each in self.runners}
        self._serving = Serving(settings, state, self.runners, self.say) if settings is not None else None
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
        if self._serving is not None and self.state.phase == "ready":
            self._serving.follow(now_s)
        for runner in self.runners:
            if self._serving is None or not self._serving.is_leaving(runner):
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
