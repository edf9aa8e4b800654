"""`python -m control.plane_main`: the plane's process. Lease, tick, history writer and control API on one event loop.

Put together here: settings, history, fleet, plane, the planes of attached fleets, API. Everything is loaded before the
lease is asked for, so that a standby acts at once. SIGTERM and SIGINT close cleanly: what waits is written, gateways
are told, the lease is released, workers go on. A start that fails says why in one line and exits 1 (2: settings); a
plane that another one has taken over from exits 3, to be started again and stand by.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from control.adoption import adopt
from control.api.app import create_app
from control.api.context import ApiContext
from control.attached_planes import AttachedPlanes
from control.auth import open_auth
from control.door import Door
from control.errors import ControlError, DatabaseAway, FleetError, SettingsError, StaleFence
from control.fleets.base import Fleet
from control.heap import settle
from control.history.store import History, Retention
from control.lease import Lease, this_process
from control.lease_keeper import LOOK_EVERY_S, LeaseKeeper
from control.monitor import make_webhook
from control.plane import Plane
from control.settings import Settings, load_settings
from control.write_points import Reach, crash_point, pass_by

_log = logging.getLogger("phaseline.plane")
CLOSE_LIMIT_S = 10.0
TAKEN_OVER = 3


def ray_fleet(settings: Settings) -> Fleet:
    from control.fleets import ray_fleet as module  # Ray is loaded only where it is used

    return module.create(settings)


def sim_fleet(settings: Settings) -> Fleet:
    from control.fleets import sim as module

    return module.create(settings)


def no_fleet(settings: Settings) -> Fleet:
    from control.fleets import none as module

    return module.create(settings)


FLEETS: Mapping[str, Callable[[Settings], Fleet]] = {"ray": ray_fleet, "sim": sim_fleet, "none": no_fleet}


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = load_settings()
        return asyncio.run(serve(settings))
    except SettingsError as error:
        print(f"phaseline plane: {error.detail}", file=sys.stderr)
        return 2
    except StaleFence as stale:
        print(f"phaseline plane: {stale}; it ends, to stand by again", file=sys.stderr)
        return TAKEN_OVER
    except (ControlError, OSError) as error:
        print(f"phaseline plane: {error}", file=sys.stderr)
        return 1


async def serve(settings: Settings) -> int:
    """Run until a signal. Raises ControlError on a failed start, StaleFence when another plane has taken over."""
    make_webhook(settings)  # a key that is not there is told before anything is taken over
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    process = PlaneProcess(settings)
    living = asyncio.create_task(process.live(), name="plane")
    stopped = asyncio.create_task(stop.wait(), name="signals")
    await asyncio.wait({living, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    living.cancel()
    await asyncio.wait({living})
    if not living.cancelled():
        living.result()
    return 0 if stop.is_set() else 1


class PlaneProcess:
    """One life of a plane: wait for the database, stand by for the lease, act until the end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._problem = "it is starting"
        self._planes: dict[str, Plane] = {}
        self._attached: AttachedPlanes | None = None
        self._version = own_version()
        context = ApiContext(
            planes=self._planes,
            auth=open_auth(settings.run_dir, time.time()),
            settings=settings,
            version=self._version,
            started_unix_s=time.time(),
            waiting=lambda: self._problem,
            attached=lambda: self._attached,
        )
        self._door = Door(create_app(context), settings.host, settings.api_port)

    async def live(self) -> None:
        """Until cancelled, which is an orderly end. Raises StaleFence when another plane has taken over."""
        history = await self._open_history()
        try:
            fleet = FLEETS[self._settings.fleet_kind](self._settings)
            await _prepare(fleet)
            me = this_process(self._settings.plane_addresses[0])
            keeper = LeaseKeeper(history, fleet.fleet_id, me, self._settings.plane_lease_s)
            try:
                await self._stand_by_and_act(fleet, history, keeper)
            finally:
                await keeper.close()
        finally:
            history.close()
            await self._door.close()

    async def _open_history(self) -> History:
        """The history, once its database answers. Meanwhile the API says what we wait for, where nobody else does."""
        while True:
            try:
                reach = crash_point(os.environ, self._settings.run_dir)
                return await asyncio.to_thread(open_history, self._settings, reach)
            except DatabaseAway as away:
                if self._problem != away.detail:
                    _log.warning("waiting for the database: %s", away.detail)
                self._problem = away.detail
                self._door.offer()
                await asyncio.sleep(LOOK_EVERY_S)

    async def _stand_by_and_act(self, fleet: Fleet, history: History, keeper: LeaseKeeper) -> None:
        lease = await keeper.take(lambda: self._wait_for(keeper))
        self._problem = "this plane is taking over"
        history.hold(fleet.fleet_id, lease.fence)
        former = keeper.before.holder if keeper.before else None
        self._attached = AttachedPlanes(
            self._settings, history, self._planes, keeper.me, partial(open_history, self._settings), self._version
        )
        acting = [
            asyncio.create_task(self._attached.run(), name="attached fleets"),
            asyncio.create_task(self._keep(keeper), name="lease"),
            asyncio.create_task(self._act(fleet, history, lease, keeper.followed), name="ticks"),
            asyncio.create_task(self._door.keep_open(former, keeper.me), name="door"),
        ]
        try:
            done, _ = await asyncio.wait(acting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
                raise ControlError(f"the plane's {task.get_name()} ended by itself")
        except StaleFence:
            self._door.retract(at_once=True)
            await _within(self._main(Plane.abandon, fleet.fleet_id))
            raise
        except BaseException:  # an orderly end: the lease is kept until all is written
            await _within(self._main(Plane.close, fleet.fleet_id))
            await keeper.release()
            raise
        finally:
            for task in acting:
                task.cancel()
            await asyncio.gather(*acting, return_exceptions=True)

    async def _act(self, fleet: Fleet, history: History, lease: Lease, followed: str) -> None:
        """Adopt, which may take long when a spool is full, then tick."""
        plane = self._planes[fleet.fleet_id] = await adopt(
            fleet, history, self._settings, lease, self._version, followed=followed
        )
        settle()
        await plane.run()

    async def _keep(self, keeper: LeaseKeeper) -> None:
        main = self._settings.fleet_id
        raise await keeper.keep(lambda: self._planes[main].newest_fence if main in self._planes else 0)

    async def _main(self, end: Callable[[Plane], Coroutine[Any, Any, None]], fleet_id: str) -> None:
        """End the main fleet's plane; those of attached fleets end with their task."""
        if fleet_id in self._planes:
            await end(self._planes[fleet_id])

    def _wait_for(self, keeper: LeaseKeeper) -> None:
        """Another plane answers on the port, or nobody does because the database is away: then we say so there."""
        self._problem = keeper.problem or "this plane stands by; another one is active"
        if keeper.problem:
            self._door.offer()
        else:
            self._door.retract()


async def _within(end: Coroutine[Any, Any, None]) -> None:
    async with asyncio.timeout(CLOSE_LIMIT_S):
        await end


async def _prepare(fleet: Fleet) -> None:
    """What does not work yet is tried again, and told, once we are active."""
    try:
        await fleet.prepare()
    except FleetError as error:
        _log.warning("the fleet cannot be reached yet: %s", error.detail)


def own_version() -> str:
    """Of the installed package; "dev" when it runs from the tree alone."""
    try:
        return importlib.metadata.version("phaseline")
    except importlib.metadata.PackageNotFoundError:
        return "dev"


def open_history(settings: Settings, reach: Reach = pass_by) -> History:
    """Raises HistoryError."""
    return History.open(database_url(settings), retention=retention_of(settings), reach=reach)


def retention_of(settings: Settings) -> Retention:
    return Retention(
        raw_s=settings.retention_raw_s,
        rollup_s=settings.retention_rollup_s,
        requests_s=settings.retention_requests_s,
        max_bytes=settings.retention_max_bytes or None,
        max_records=settings.max_request_records,
    )


def database_url(settings: Settings) -> str:
    """The history's URL: the setting, or SQLite in the run folder."""
    return settings.database_url or f"sqlite:///{(settings.run_dir / 'history.db').resolve()}"


if __name__ == "__main__":
    sys.exit(main())
