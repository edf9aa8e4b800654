"""`up` as a whole: prepare, start, wait for the workers, watch, end. The command line only prints.

Decided here: the order of the stages and what "ready" means to a person. Not here: any one of the stages, and how
another process starts, follows and ends this one (`control.detached`).
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from control.auth import open_auth, read_token
from control.client import PhaselineClient
from control.components import (
    GATEWAY,
    RAY,
    RAY_NODE,
    REDIS,
    TRAFFIC,
    Component,
    components,
    endpoints,
    kind_of,
    owns_head,
)
from control.deployment import ComponentRecord, DeploymentState, Say, make_run_dir, only_supervisor, read_state
from control.errors import ControlError, FleetError
from control.fleets.fleet_token import fleet_token
from control.fleets.hosts import paced_kv_bytes
from control.fleets.redis_store import forget_cluster
from control.listener import bind_listener, reclaim_listener
from control.ports import check_ports, ports_to_check
from control.preparation import needs_model, prepare
from control.processes import identify, send_signal, wait_ended
from control.serving import served_components
from control.settings import Settings, load_settings
from control.supervisor import HANDOVER, Supervisor, end_leftovers, pause_file, records_for
from control.traffic.plan import load_profile
from control.types.workers import WorkerState, WorkerStatus
from control.upgrade import Upgrade

WORKERS_LIMIT_S = 600.0
POLL_S = 0.3
HANDOVER_LIMIT_S = 10.0


def run_up(settings: Settings, traffic: str, say: Say, on_ready: Callable[[], None], *, upgrades: bool = False) -> int:
    """Start everything, watch until told to stop, end everything. Returns the exit code.

    `upgrades`: take over what runs as it is, from the supervisor that runs it, and replace it piece by piece.
    Raises ControlError, one line, when it cannot start; then nothing of it is left running.
    """
    make_run_dir(settings.run_dir)
    if upgrades:
        take_supervisor_off(settings.run_dir)
    with only_supervisor(settings.run_dir):
        previous = read_state(settings.run_dir)
        if not any(kind_of(each.name) in (RAY, REDIS) for each in (previous.running if previous else [])):
            forget_cluster(settings.run_dir)
        parts, records = check_start(settings, traffic, previous, takes_all=upgrades)
        records |= records_for(served_components(settings), previous, takes_all=upgrades)
        if previous is not None:
            end_leftovers(previous, records, say)
        pause_file(settings.run_dir, TRAFFIC).unlink(missing_ok=True)
        state = _new_state(settings)
        state.components.update(records)
        listener = gateway_listener(settings, parts, records)
        supervisor = Supervisor(settings.run_dir, parts, state, say, listener, settings)
        for each in records.values():
            if each.root is not None:
                supervisor.say(f"{each.name} runs already (pid {each.root.pid}); taken over")
        if upgrades:
            hold_new_ray(supervisor)
        with supervisor.signals():
            return _live(supervisor, settings, on_ready, Upgrade(supervisor, settings) if upgrades else None)


def take_supervisor_off(run_dir: Path) -> None:
    """Ask the running supervisor to go alone. Raises FleetError when there is none, or it stays."""
    state = read_state(run_dir)
    if state is None or not (state.supervisor.is_alive or state.running):
        raise FleetError(f"nothing runs in {run_dir}; `phaseline up` starts it")
    send_signal(state.supervisor, HANDOVER)
    if wait_ended([state.supervisor], HANDOVER_LIMIT_S):
        raise FleetError(
            f"the supervisor (pid {state.supervisor.pid}) does not hand over; everything runs on as it was"
        )


def hold_new_ray(supervisor: Supervisor) -> None:
    """A head of an earlier version holds the workers itself: what a new one needs waits until that one has ended."""
    runners = {each.component.name: each for each in supervisor.runners}
    head, node = runners.get(RAY), runners.get(RAY_NODE)
    if head is None or node is None or head.record.root is None or node.record.root is not None:
        return
    for each in (node, runners.get(REDIS)):
        if each is not None and each.record.root is None:
            each.held_by = head.record.root


def check_start(
    settings: Settings, traffic: str, previous: DeploymentState | None, *, takes_all: bool = False
) -> tuple[tuple[Component, ...], dict[str, ComponentRecord]]:
    """What `up` will run, and records of what runs already. Raises SettingsError for all that can be seen before."""
    if traffic:
        load_profile(traffic)
    if settings.fleet_kind == "ray" and settings.worker_kind == "paced":
        paced_kv_bytes(settings)
    needs_model(settings)
    parts = components(settings, traffic)
    records = records_for(parts, previous, takes_all=takes_all)
    leftovers = {one for each in (previous.running if previous else []) for one in each.processes}
    ray_port = settings.ray_port if owns_head(settings) else None
    check_ports(ports_to_check(endpoints(settings), settings.host, ray_port, records), leftovers)
    return parts, records


def gateway_listener(
    settings: Settings, parts: Sequence[Component], records: Mapping[str, ComponentRecord]
) -> socket.socket | None:
    """The gateways' socket: from one that runs already, with all that waits in it, else a new one.

    None where there are no gateways, or a running one does not give it: then each listens for itself.
    """
    if not any(each.shares_listener for each in parts):
        return None
    running = [each.root for each in records.values() if kind_of(each.name) == GATEWAY and each.root is not None]
    for root in running:
        found = reclaim_listener(root.pid, settings.gateway_port)
        if found is not None:
            return found
    return None if running else bind_listener(settings.host, settings.gateway_port)


def _live(supervisor: Supervisor, settings: Settings, on_ready: Callable[[], None], upgrade: Upgrade | None) -> int:
    """From the first stage to the orderly end, whatever happens in between."""
    try:
        supervisor.save()
        open_auth(settings.run_dir, time.time())
        fleet_token(settings.run_dir)
        prepare(settings, supervisor.say, supervisor.stop)
        supervisor.start_all()
        _await_workers(supervisor, settings)
        if not supervisor.stop.is_set():
            supervisor.state.phase = "ready"
            supervisor.save()
            supervisor.tick(time.monotonic())  # takes up the fleets that are served besides
            on_ready()
        if upgrade is not None:
            upgrade.run()
        supervisor.watch()
    except ControlError as error:
        supervisor.say(f"failed: {error}")
        supervisor.end()
        supervisor.state.phase = "failed"
        supervisor.save()
        raise
    if supervisor.leaves:
        supervisor.say("handed over; everything runs on")
        return 0
    supervisor.end()
    return 0


def _new_state(settings: Settings) -> DeploymentState:
    me = identify(os.getpid())
    assert me is not None
    joined = settings.fleet_kind == "ray" and not owns_head(settings)
    return DeploymentState(
        supervisor=me,
        phase="starting",
        started_unix_s=time.time(),
        settings={each.setting: each.port for each in endpoints(settings)}
        | {"host": settings.host, "fleet_id": settings.fleet_id},
        shm_dir=str(settings.effective_shm_dir),
        stop_command=[sys.executable, "-m", "control.fleets.ray_fleet", "stop"] if joined else [],
    )


def _await_workers(supervisor: Supervisor, settings: Settings) -> None:
    """Say each worker once it is ready. Gives up waiting, not running, after WORKERS_LIMIT_S."""
    if settings.fleet_kind == "none":
        return
    told: dict[str, str] = {}
    deadline_s = time.monotonic() + WORKERS_LIMIT_S
    token = read_token(settings.run_dir, "operator")
    with PhaselineClient(settings.plane_addresses, token, timeout_s=2.0, patience_s=0.0) as client:
        while not supervisor.stop.is_set() and time.monotonic() < deadline_s:
            supervisor.tick(time.monotonic())
            workers = _workers(client)
            for each in workers:
                line = _worker_line(each)
                if line and told.get(each.worker_id) != line:
                    told[each.worker_id] = line
                    if len(workers) <= 16:
                        supervisor.say(line)
            num_ready = sum(1 for each in workers if each.state == WorkerState.READY)
            if num_ready >= settings.num_workers:
                supervisor.say(f"{num_ready} workers ready")
                return
            supervisor.stop.wait(POLL_S)
    if not supervisor.stop.is_set():
        supervisor.say(f"not all workers are ready after {WORKERS_LIMIT_S:.0f} s; `phaseline status` says why")


def _workers(client: PhaselineClient) -> tuple[WorkerStatus, ...]:
    try:
        return client.snapshot().workers
    except ControlError:
        return ()  # the plane's first tick is outstanding


def _worker_line(worker: WorkerStatus) -> str:
    if worker.state == WorkerState.READY:
        return f"worker {worker.worker_id} ready ({worker.role}, {worker.device})"
    if worker.state == WorkerState.FAILED:
        return f"worker {worker.worker_id} failed: {worker.reason}"
    return ""


def main() -> int:
    """`python -m control.launch [--upgrade] [--traffic PROFILE]`: the detached supervisor.

    Settings come from the environment.
    """
    parser = argparse.ArgumentParser(prog="control.launch")
    parser.add_argument("--upgrade", action="store_true")
    parser.add_argument("--traffic", default="")
    given = parser.parse_args()

    def say(line: str) -> None:
        print(time.strftime("%Y-%m-%dT%H:%M:%S"), line, flush=True)

    try:
        return run_up(load_settings(), given.traffic, say, lambda: say("ready"), upgrades=given.upgrade)
    except ControlError as error:
        print(f"phaseline: {error}", flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
