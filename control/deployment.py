"""What `up` leaves on disk so that anybody can find, adopt or end it: the lock, the state file, and how all is ended.

Decided here: the format of `<run_dir>/supervisor.json`, one supervisor for one run folder, and the order of an orderly
end. Not here: what is started and restarted (`control.supervisor`). Everything is found by pid and start time.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from control.components import DRAINED, STOP_ORDER, kind_of
from control.errors import ControlError, SettingsError
from control.processes import ProcessId, end_processes, tree_of

Say = Callable[[str], None]


class AlreadyRunning(ControlError):
    """Another supervisor holds this run folder."""


@dataclass(slots=True, kw_only=True)
class ComponentRecord:
    """One component as it was last seen. `processes` is its whole tree, the root first."""

    name: str
    digest: str = ""
    processes: list[ProcessId] = field(default_factory=list)
    num_restarts: int = 0
    last_exit: str = ""
    is_ready: bool = False
    stop_limit_s: float = 10.0
    log: str = ""

    @property
    def root(self) -> ProcessId | None:
        return self.processes[0] if self.processes else None


@dataclass(slots=True, kw_only=True)
class DeploymentState:
    """The state file. `phase`: starting | ready | failed | stopping | stopped."""

    supervisor: ProcessId
    phase: str
    started_unix_s: float
    settings: dict[str, Any]
    components: dict[str, ComponentRecord] = field(default_factory=dict)
    progress: list[str] = field(default_factory=list)
    shm_dir: str = ""
    stop_command: list[str] = field(default_factory=list)  # ends what lives in a joined cluster

    @property
    def running(self) -> list[ComponentRecord]:
        return [each for each in self.components.values() if any(one.is_alive for one in each.processes)]


def state_path(run_dir: Path) -> Path:
    return run_dir / "supervisor.json"


def write_state(run_dir: Path, state: DeploymentState) -> None:
    """Replace the state file whole."""
    path = state_path(run_dir)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(asdict(state), indent=1) + "\n")
    os.replace(scratch, path)


def read_state(run_dir: Path) -> DeploymentState | None:
    """The last written state; None when there is none. Raises SettingsError when it cannot be understood."""
    path = state_path(run_dir)
    try:
        raw = json.loads(path.read_text())
        raw["supervisor"] = ProcessId(**raw["supervisor"])
        raw["components"] = {name: _record(row) for name, row in raw["components"].items()}
        return DeploymentState(**raw)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise SettingsError(f"the state file {path} cannot be read: {error}", field="run_dir") from error


def _record(row: Mapping[str, Any]) -> ComponentRecord:
    return ComponentRecord(**{**row, "processes": [ProcessId(**each) for each in row["processes"]]})


def make_run_dir(run_dir: Path) -> None:
    """Make the run folder, private. Raises SettingsError naming it when that is not possible."""
    try:
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (run_dir / "logs").mkdir(mode=0o700, exist_ok=True)
        if not os.access(run_dir, os.W_OK):
            raise PermissionError(13, "it is not writable")
    except OSError as error:
        raise SettingsError(f"setting run_dir: {run_dir} cannot be used: {error.strerror}", field="run_dir") from error


@contextmanager
def only_supervisor(run_dir: Path) -> Iterator[None]:
    """Hold the run folder. Raises AlreadyRunning at once when somebody else does. The kernel lets go when we die."""
    with open(run_dir / "supervisor.lock", "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AlreadyRunning(f"already running in {run_dir}; `phaseline down` ends it") from None
        yield


def refresh_tree(record: ComponentRecord) -> None:
    """Look for new processes below the root; those that were seen before and run still are kept, children or not."""
    if record.root is None:
        return
    seen = tree_of(record.root)
    strays = [each for each in record.processes if each not in seen and each.is_alive]
    record.processes = [record.root, *(each for each in seen if each != record.root), *strays]


def end_component(record: ComponentRecord, say: Say) -> None:
    """End one component: its root first, which ends its children in order; then whatever of its tree is left."""
    end_together([record], say)


def end_together(records: Iterable[ComponentRecord], say: Say) -> None:
    """End components at the same time: all roots are asked, then waited for."""
    living = []
    for record in records:
        refresh_tree(record)
        if any(each.is_alive for each in record.processes):
            living.append(record)
        else:
            record.processes, record.is_ready = [], False
    roots = [record.processes[0] for record in living]
    killed = set(end_processes(roots, max((record.stop_limit_s for record in living), default=0.0)))
    for record in living:
        killed.update(end_processes(record.processes[1:], 3.0))
        is_killed = not killed.isdisjoint(record.processes)
        record.processes, record.is_ready = [], False
        say(f"{record.name} ended" + (f" (killed after {record.stop_limit_s:.0f} s)" if is_killed else ""))


def end_all(state: DeploymentState, say: Say, save: Callable[[], None], run_stop_command: Callable[[], None]) -> None:
    """End every recorded process in STOP_ORDER, then free the shared memory. Only recorded ids are touched."""
    for kind in STOP_ORDER:
        records = [each for each in state.components.values() if kind_of(each.name) == kind and each.processes]
        if not records:
            continue
        if kind in DRAINED:
            names = " and ".join(each.name for each in records)
            say(f"{names} drain{'s' if len(records) == 1 else ''} (at most {records[0].stop_limit_s:.0f} s)")
        end_together(records, say)
        save()
    if state.stop_command:
        run_stop_command()
    if state.shm_dir:
        clear_shared_memory(Path(state.shm_dir))


def clear_shared_memory(shm_dir: Path) -> None:
    """Free meters and pools that no worker holds any more. Only files of ours: the folder may be anybody's choice."""
    for pattern in ("*.kv", "*.meter", "*.life.json"):
        for path in shm_dir.glob(pattern):
            with contextlib.suppress(OSError):
                path.unlink()
    with contextlib.suppress(OSError):
        shm_dir.rmdir()
