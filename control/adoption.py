"""Taking a fleet over at start: desired state and unfinished commands as the history has them.

Decided here: that the first desired state of a fleet is recorded before anything acts on it, and that of a fleet which
somebody else runs nothing is desired but what is seen. The workers themselves are adopted by the first ticks, which
compare desired with what lives. Not decided here: what is desired first (`control.first_desired`), and how a fleet
finds its workers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from control.accounting import Accountant
from control.desk import LOOK_BACK, Desk
from control.errors import HistoryError
from control.events import Events
from control.first_desired import registry_words, routed_desired, starting_command, starting_desired
from control.fleets.base import Fleet, Resumable, Routed, is_followed, is_observed_only
from control.history.store import History
from control.lease import Lease
from control.monitor import open_monitor
from control.plane import Plane
from control.recorder import Recorder
from control.settings import Settings
from control.spool import Spool
from control.types.commands import Desired

_log = logging.getLogger("phaseline.plane")


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
        desired, why, source = starting_desired(known, settings), "", "settings"
        if isinstance(fleet, Routed):
            desired = routed_desired(known, fleet.registered_roles())
            why, source = registry_words(known, desired), "targets"
        if desired is not known:
            start = starting_command(fleet.fleet_id, known, desired, now(), why, source)
            await recorder.write(history.record_command, start)
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
    if isinstance(fleet, Routed):
        desk.failed = {}
        for each in await recorder.read(history.commands, fleet.fleet_id, LOOK_BACK, None):
            desk.note_failed(each)
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
