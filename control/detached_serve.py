"""A served fleet as another process sees it: asked of the supervisor, followed until it serves, and let go.

Decided here: when a caller may return, and when what was asked for is given up. Not here: how the supervisor keeps it
(`control.serving`), and what is refused before it is asked for (`control.cli.serve`).
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import httpx

from control.components import SERVE
from control.deployment import ComponentRecord, DeploymentState, read_state
from control.errors import FleetError, NotFound, PlaneUnreachable
from control.processes import last_line
from control.served import Served, read_served, remove_served, write_served
from control.settings import Settings

POLL_S: Final = 0.2
START_LIMIT_S: Final = 60.0
READY_LIMIT_S: Final = 10.0


def running_supervisor(settings: Settings) -> DeploymentState:
    """Raises PlaneUnreachable when none runs here."""
    state = read_state(settings.run_dir)
    if state is None or not state.supervisor.is_alive:
        raise PlaneUnreachable(f"no supervisor runs in {settings.run_dir}; `phaseline up --detach` starts it")
    return state


def begin_serving(settings: Settings, served: Served) -> str:
    """Ask for it, and return once its process answers: why it does not serve yet, "" when it does.

    Raises FleetError when the process does not start; what was not asked for before is then asked for no more.
    """
    is_new = read_served(settings.run_dir, served.fleet) is None
    if is_new:
        write_served(settings.run_dir, served)
    try:
        _await_process(settings, served.fleet)
    except FleetError:
        if is_new:
            remove_served(settings.run_dir, served.fleet)
        raise
    return _why_not_ready(f"http://{settings.host}:{served.port}")


def _await_process(settings: Settings, fleet: str) -> None:
    name, deadline_s = f"{SERVE}-{fleet}", time.monotonic() + START_LIMIT_S
    before = _record(settings, name)
    num_before = before.num_restarts if before is not None else 0
    while time.monotonic() < deadline_s:
        record = _record(settings, name)
        if record is not None and record.is_ready:
            return
        if record is not None and _is_failing(record, num_before):
            why = last_line(Path(record.log)).removeprefix("phaseline: ") or record.last_exit
            raise FleetError(f"{name} does not start: {why} [{record.log}]")
        if read_served(settings.run_dir, fleet) is None:
            raise FleetError(f"{name} has ended: {last_line(Path(record.log)) if record else 'it was stopped'}")
        time.sleep(POLL_S)
    raise FleetError(f"the supervisor has not started {name} within {START_LIMIT_S:.0f} s: is it of an older version?")


def end_serving(settings: Settings, fleet: str) -> None:
    """Return once it has drained and ended. Raises NotFound, FleetError."""
    state, name = running_supervisor(settings), f"{SERVE}-{fleet}"
    if not remove_served(settings.run_dir, fleet) and name not in state.components:
        raise NotFound(f"no fleet {fleet} is served by `phaseline serve {fleet} --detach`", field="name", value=fleet)
    deadline_s = time.monotonic() + settings.drain_limit_s + START_LIMIT_S
    while _record(settings, name) is not None:
        if time.monotonic() > deadline_s:
            raise FleetError(f"{name} has not ended; `phaseline logs {name}` may say why")
        time.sleep(POLL_S)


def _is_failing(record: ComponentRecord, num_restarts_before: int) -> bool:
    """It has ended twice, or could not even be started."""
    has_not_run = not record.num_restarts and not record.processes
    return record.num_restarts - num_restarts_before > 1 or bool(record.last_exit and has_not_run)


def _why_not_ready(url: str) -> str:
    """It may wait for its engines."""
    deadline_s, why = time.monotonic() + READY_LIMIT_S, "it does not answer"
    while time.monotonic() < deadline_s:
        with suppress(httpx.HTTPError, ValueError):
            answer = httpx.get(f"{url}/readyz", timeout=2.0, trust_env=False)
            if answer.status_code == 200:
                return ""
            why = str(answer.json().get("reason", why))
        time.sleep(POLL_S)
    return why


def _record(settings: Settings, component: str) -> ComponentRecord | None:
    state = read_state(settings.run_dir)
    return state.components.get(component) if state is not None else None
