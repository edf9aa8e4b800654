"""`python -m control.plane_main`: the plane's process. Tick, history writer and control API on one event loop.

Put together here: settings, history, fleet, plane, API. SIGTERM and SIGINT close cleanly: what waits is written,
gateways are told, workers go on. A start that fails says why in one line and exits 1 (2: settings).
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping

import uvicorn

from control.adoption import adopt
from control.api.app import create_app
from control.api.context import ApiContext
from control.auth import open_auth
from control.errors import ControlError, SettingsError
from control.fleets.base import Fleet
from control.history.store import History, Retention
from control.plane import Plane
from control.settings import Settings, load_settings
from control.write_points import crash_point

_log = logging.getLogger("phaseline.plane")
CLOSE_LIMIT_S = 10.0


def ray_fleet(settings: Settings) -> Fleet:
    from control.fleets import ray_fleet as module  # Ray is loaded only where it is used

    return module.create(settings)


def sim_fleet(settings: Settings) -> Fleet:
    from control.fleets import sim as module

    return module.create(settings)


FLEETS: Mapping[str, Callable[[Settings], Fleet]] = {"ray": ray_fleet, "sim": sim_fleet}


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = load_settings()
        return asyncio.run(serve(settings))
    except SettingsError as error:
        print(f"phaseline plane: {error.detail}", file=sys.stderr)
        return 2
    except (ControlError, OSError) as error:
        print(f"phaseline plane: {error}", file=sys.stderr)
        return 1


async def serve(settings: Settings) -> int:
    """Run until a signal. The API answers while the fleet is still starting. Raises ControlError on a failed start."""
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    version = own_version()
    auth = open_auth(settings.run_dir, time.time())
    history = History.open(database_url(settings), retention=retention_of(settings), reach=crash_point(os.environ))
    plane = await adopt(FLEETS[settings.fleet_kind](settings), history, settings, version)
    context = ApiContext(
        planes={plane.fleet.fleet_id: plane},
        auth=auth,
        settings=settings,
        version=version,
        started_unix_s=time.time(),
    )
    server = ApiServer(
        uvicorn.Config(
            create_app(context),
            host=settings.host,
            port=settings.api_port,
            log_level="warning",
            lifespan="off",
            ws="websockets-sansio",
            ws_max_size=64 * 2**20,
            timeout_graceful_shutdown=3,
        )
    )
    try:
        return await _until_stopped(server, plane)
    finally:
        history.close()


class ApiServer(uvicorn.Server):
    """uvicorn without its own signal handling: the plane has to close first."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


async def _until_stopped(server: uvicorn.Server, plane: Plane) -> int:
    """The API and the ticks side by side until a signal comes or one of the two ends by itself."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    api = asyncio.create_task(_serve_api(server), name="api")
    ticks = asyncio.create_task(plane.run(), name="ticks")
    stopped = asyncio.create_task(stop.wait(), name="signals")
    await asyncio.wait({api, ticks, stopped}, return_when=asyncio.FIRST_COMPLETED)
    async with asyncio.timeout(CLOSE_LIMIT_S):
        await plane.close()
        server.should_exit = True
        results = await asyncio.gather(api, ticks, return_exceptions=True)
    stopped.cancel()
    for error in (each for each in results if isinstance(each, BaseException)):
        raise error
    return 0 if stop.is_set() else 1


async def _serve_api(server: uvicorn.Server) -> None:
    """uvicorn ends the process when its port is taken; here that is one of our errors."""
    try:
        await server.serve()
    except SystemExit as error:
        config = server.config
        raise ControlError(
            f"api_port {config.port} on {config.host} cannot be listened on: it is in use",
            field="api_port",
            value=config.port,
        ) from error


def own_version() -> str:
    """Of the installed package; "dev" when it runs from the tree alone."""
    try:
        return importlib.metadata.version("phaseline")
    except importlib.metadata.PackageNotFoundError:
        return "dev"


def retention_of(settings: Settings) -> Retention:
    return Retention(
        raw_s=settings.retention_raw_s, rollup_s=settings.retention_rollup_s, requests_s=settings.retention_requests_s
    )


def database_url(settings: Settings) -> str:
    """The history's URL: the setting, or SQLite in the run folder."""
    return settings.database_url or f"sqlite:///{(settings.run_dir / 'history.db').resolve()}"


if __name__ == "__main__":
    sys.exit(main())
