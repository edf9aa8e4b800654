"""Taking a fleet over at start: desired state and unfinished commands as the history has them.

Decided here: the first desired state of a fleet that has none (recorded as version 1; of one that
somebody else runs, nothing is desired but what is seen). The workers themselves are
adopted by the first ticks, which compare desired with what lives. Not decided here: how a fleet finds its workers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from control.accounting import Accountant
from control.desk import Desk
from control.errors import HistoryError
from control.events import Events
from control.fleets.base import Fleet, Resumable, Routed, is_followed, is_observed_only
from control.history.store import History
from control.lease import Lease
from control.monitor import open_monitor
from control.plane import Plane
from control.recorder import Recorder
from control.settings import Settings
from control.spool import Spool
from control.types import Action, Command, CommandState, Desired, Role, RoutingPolicy, Verb

_log = logging.getLogger("phaseline.plane")
INITIAL_WHO = "phaseline"


async def adopt(
    fleet: Fleet,
    history: History,
    settings: Settings,
    lease: Lease,
    version: str = "",
    now: Callable[[], float] = time.time,
    followed: str = "",
) -> Plane:
    """A plane that goes on where the last one stopped. Raises HistoryError, StaleFence, SettingsError.

    `followed`: the plane from which it was taken, when that one had not released it.
    """
    recorder = Recorder()
    known = await recorder.read(history.load_desired, fleet.fleet_id)
    if is_followed(fleet) or is_observed_only(fleet):
        desired = known or Desired(version=0, roles={})
    else:
        registered = fleet.registered_roles() if isinstance(fleet, Routed) else None
        desired = starting_desired(known, settings) if registered is None else routed_desired(known, registered)
        if desired is not known:
            await recorder.write(history.record_command, starting_command(fleet.fleet_id, known, desired, now()))
    own = "" if fleet.fleet_id == settings.fleet_id else f"-{fleet.fleet_id}"
    await write_spooled(recorder, history, settings, own)
    unfinished = await recorder.read(history.unfinished_commands, fleet.fleet_id)
    accountant = Accountant(fleet.fleet_id)
    cursors = await recorder.read(history.load_cursors, fleet.fleet_id)
    accountant.restore(cursors)
    if isinstance(fleet, Resumable):
        fleet.resume(cursors)
    desk = Desk(
        fleet_id=fleet.fleet_id,
        history=history,
        recorder=recorder,
        events=Events(),
        desired=desired,
        unfinished={each.command_id: each for each in unfinished},
    )
    desk.settle(now())
    monitor = await open_monitor(
        *(fleet.fleet_id, history, settings, recorder, desk.events, lease), followed=followed, now_unix_s=now()
    )
    return Plane(
        fleet=fleet,
        history=history,
        settings=settings,
        desk=desk,
        lease=lease,
        accountant=accountant,
        monitor=monitor,
        version=version,
        now=now,
    )


async def write_spooled(recorder: Recorder, history: History, settings: Settings, suffix: str = "") -> None:
    """Write what the last plane on this disk left in its spool, before anything of it is read. Raises HistoryError."""
    spool = Spool(settings.run_dir / f"spool{suffix}", settings.spool_max_bytes)
    try:
        spool.open()
    except OSError as error:
        raise HistoryError(f"the spool {spool.folder} cannot be read: {error}") from error
    if spool.num_frames:
        _log.info("%d writes of an earlier plane are in the spool: they are written first", spool.num_frames)
    recorder.spool, recorder.replay = spool, history.replay
    if not await recorder.flush():
        raise HistoryError(f"the spool {spool.folder} cannot be written to the history: {recorder.failure}")


def starting_desired(known: Desired | None, settings: Settings) -> Desired:
    """What to start from: `known` as it is, unless `num_workers` has changed since; new workers are decode workers."""
    if known is None:
        return initial_desired(settings)
    ids = settings.worker_ids
    if set(ids) == known.roles.keys():
        return known
    roles = {worker_id: known.roles.get(worker_id, Role.DECODE) for worker_id in ids}
    if not any(role in (Role.DECODE, Role.MIXED) for role in roles.values()):
        roles = initial_desired(settings).roles
    return replace(
        known,
        version=known.version + 1,
        roles=roles,
        drained=frozenset(known.drained & roles.keys()),
        weights={w: weight for w, weight in known.weights.items() if w in roles},
    )


def routed_desired(known: Desired | None, registered: dict[str, Role]) -> Desired:
    """Of others' engines: the roles that we gave last, the registry's for those that are new; a pair is split."""
    if known is None or not known.roles:
        policy = RoutingPolicy(min_fleet_devices=2)
        return Desired(version=1 if known is None else known.version + 1, roles=registered, policy=policy)
    if registered.keys() == known.roles.keys():
        return known
    return replace(
        known,
        version=known.version + 1,
        roles={worker_id: known.roles.get(worker_id, role) for worker_id, role in registered.items()},
        drained=frozenset(known.drained & registered.keys()),
        weights={w: weight for w, weight in known.weights.items() if w in registered},
    )


def initial_desired(settings: Settings) -> Desired:
    """First prefill, then mixed, then decode workers, named w0 .. wN-1; one of them can decode."""
    num_prefill = min(settings.num_prefill, settings.num_workers - 1)
    num_mixed = min(settings.num_mixed, settings.num_workers - num_prefill)
    num_decode = settings.num_workers - num_prefill - num_mixed
    roles = [Role.PREFILL] * num_prefill + [Role.MIXED] * num_mixed + [Role.DECODE] * num_decode
    return Desired(version=1, roles=dict(zip(settings.worker_ids, roles, strict=True)), policy=settings.initial_policy)


def starting_command(fleet_id: str, before: Desired | None, after: Desired, now_unix_s: float) -> Command:
    """The record by which desired state begins, or takes over a changed `num_workers`."""
    return Command(
        command_id=0,
        fleet_id=fleet_id,
        action=Action(
            verb=Verb.RESIZE,
            prefill=after.pool_size(Role.PREFILL),
            decode=after.pool_size(Role.DECODE),
            mixed=after.pool_size(Role.MIXED),
        ),
        state=CommandState.DONE,
        who=INITIAL_WHO,
        why="first start" if before is None else f"the setting num_workers is now {len(after.roles)}",
        idempotency_key="",
        base_version=before.version if before else 0,
        version_after=after.version,
        created_unix_s=now_unix_s,
        updated_unix_s=now_unix_s,
        result="taken from the settings",
        desired_before=None,  # not an operator's: there is nothing to undo
        desired_after=after,
    )
