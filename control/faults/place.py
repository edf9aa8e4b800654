"""A running deployment on this host, as a fault sees it: its processes, its workers' meter pages, its plane. Effects.

Decided here: what "this deployment" is (the run folder's state file), and which of its processes are orphans. Every
process is found by pid and start time, and nothing but what the run folder records is ever touched.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

from control.auth import read_token
from control.client import PhaselineClient
from control.components import GATEWAY
from control.deployment import DeploymentState, read_state
from control.errors import CommandRefused, PlaneUnreachable
from control.faults.sockets import connections
from control.processes import ProcessId, identify, tree_of
from engine.errors import MeterError
from engine.meter_reader import MeterReader, scan
from engine.readings import MeterReading

POLL_S: Final = 0.05


#: A plane that a fault has ended is waited out for so long: it starts, takes its lease and reads its history.
PATIENCE_S = 30.0


class Place:
    """`with Place(run_dir) as place`. Raises PlaneUnreachable when nothing runs there."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        state = self.state
        host = state.settings["host"]
        host = f"[{host}]" if ":" in host else host
        self.gateway_url = f"http://{host}:{state.settings['gateway_port']}"
        token = read_token(run_dir, "operator")
        self.client = PhaselineClient(
            f"http://{host}:{state.settings['api_port']}", token, timeout_s=10.0, patience_s=PATIENCE_S
        )
        self._shm_dir = Path(state.shm_dir)
        self._readers: dict[Path, MeterReader] = {}
        self._cursors: dict[Path, int] = {}

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        for reader in self._readers.values():
            reader.close()

    @property
    def state(self) -> DeploymentState:
        """As the supervisor wrote it last. Raises PlaneUnreachable when it does not run."""
        state = read_state(self.run_dir)
        if state is None or not state.supervisor.is_alive:
            raise PlaneUnreachable(f"nothing runs in run_dir {self.run_dir}; `phaseline up` starts it")
        return state

    def process(self, component: str) -> ProcessId:
        """The root process of a component. Raises CommandRefused when it does not run."""
        record = self.state.components.get(component)
        root = record.root if record is not None else None
        if root is None or not root.is_alive:
            raise CommandRefused(f"no {component} process runs in {self.run_dir}", field="component", value=component)
        return root

    def gateways(self) -> list[ProcessId]:
        """The root process of every gateway that runs."""
        records = [each for name, each in self.state.components.items() if name.startswith(GATEWAY)]
        return [each.root for each in records if each.root is not None and each.root.is_alive]

    def unreached(self) -> list[str]:
        """Workers that some gateway has no connection to: nothing is routed there yet."""
        alive = [each for each in self.readings() if each.alive]
        reached = [connections(gateway) for gateway in self.gateways()]
        return [each.worker_id for each in alive if not all(each.address in known for known in reached)]

    # --- workers -------------------------------------------------------------------------------------------------

    def readings(self) -> list[MeterReading]:
        """Every worker's page now, read from shared memory: no process is asked."""
        found = []
        for path in scan(self._shm_dir):
            try:
                if path not in self._readers:
                    self._readers[path] = MeterReader(path)
                found.append(self._readers[path].read(self._cursors.get(path, 0)))
                self._cursors[path] = found[-1].next_cursor  # the steps are not asked for: reading them all takes ms
            except MeterError:
                self._readers.pop(path, None)  # being written for the first time
        return found

    def reading(self, worker_id: str) -> MeterReading:
        """Raises CommandRefused when there is no such worker on this host."""
        for each in self.readings():
            if each.worker_id == worker_id:
                return each
        raise CommandRefused(f"no worker {worker_id} has a meter page here", field="worker_id", value=worker_id)

    # --- processes -----------------------------------------------------------------------------------------------

    def orphans(self) -> list[str]:
        """Processes that carry this run folder in their environment, and hang below no recorded process.

        Whoever shares our session (a pager behind our pipe) was started by whoever started us: the deployment's own
        processes have sessions of their own.
        """
        state = self.state
        roots = [state.supervisor, *(each for record in state.components.values() for each in record.processes)]
        ours = {one.pid for root in roots for one in tree_of(root)} | _own_tree()
        session, mark = os.getsid(0), str(self.run_dir.resolve())
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid in ours or os.getsid(process.pid) == session:
                    continue
                if process.environ().get("PHASELINE_RUN_DIR") == mark:
                    found.append(f"{process.pid} {' '.join(process.cmdline())[:80]}")
            except (psutil.Error, OSError):
                continue
        return found


def _own_tree() -> set[int]:
    """This process, all above and all below it: a command line in this run folder's environment is no orphan."""
    me = psutil.Process()
    return {me.pid, *(each.pid for each in me.parents()), *(each.pid for each in me.children(recursive=True))}


def worker_process(reading: MeterReading) -> ProcessId:
    """The process of a worker, as it is now. Raises CommandRefused when it has ended."""
    found = identify(reading.pid) if reading.alive else None
    if found is None:
        raise CommandRefused(f"worker {reading.worker_id} has ended", field="worker_id", value=reading.worker_id)
    return found


def wait_until(is_so: Callable[[], bool], limit_s: float) -> bool:
    """Poll; False when it is not so within the limit."""
    deadline_s = time.monotonic() + limit_s
    while not is_so():
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(POLL_S)
    return True
