"""The control API's listening port: bound while this plane is active, or while it waits and nobody else answers there.

Decided here: who gives way. Planes of one host share one port, so whoever becomes active binds it as soon as the kernel
lets go of it; a former plane that stands still, or does not know yet that it is stale, and holds it, is ended by pid
and start time. Not decided here: who is active (`control.lease`), what is answered (`control.api`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import time

import uvicorn
from fastapi import FastAPI

from control.errors import ControlError
from control.lease import Holder, is_same_machine
from control.processes import send_signal

_log = logging.getLogger("phaseline.plane")
RETRY_S = 0.02
#: A stale plane that runs finds out by its next renewal; one that still holds the port after this long is ended.
EVICT_AFTER_S = 0.6
#: Somebody else's port: told as an error of the setting.
PORT_LIMIT_S = 5.0


class ApiServer(uvicorn.Server):
    """uvicorn without its own signal handling: the plane has to close first."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


class Door:
    """One API app on one address; open or closed."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        self._app = app
        self._host = host
        self._port = port
        self._server: ApiServer | None = None
        self._serving: asyncio.Task[None] | None = None

    def offer(self) -> bool:
        """Open it if the port is free now. Raises OSError on an address that is not ours."""
        if self._server is not None:
            return True
        listener = listen(self._host, self._port)
        if listener is None:
            return False
        self._server = ApiServer(_config(self._app))
        self._serving = asyncio.create_task(self._server.serve([listener]), name="api")
        return True

    async def keep_open(self, former: Holder | None, me: Holder) -> None:
        """Open it, against a former plane of this machine if need be; ends when it was closed."""
        begun_s = time.monotonic()
        while not self.offer():
            waited_s = time.monotonic() - begun_s
            if waited_s > EVICT_AFTER_S and former is not None and is_same_machine(former, me):
                _evict(former, self._port)
            if waited_s > PORT_LIMIT_S:
                raise ControlError(
                    f"api_port {self._port} on {self._host} cannot be listened on: it is in use",
                    field="api_port",
                    value=self._port,
                )
            await asyncio.sleep(RETRY_S)
        assert self._serving is not None
        await asyncio.shield(self._serving)

    def retract(self, *, at_once: bool = False) -> None:
        """Let go of the port; requests under way are answered, unless `at_once`."""
        if self._server is not None:
            self._server.should_exit, self._server.force_exit = True, at_once
            self._server = None

    async def close(self) -> None:
        """Let go of the port, and wait for the requests under way."""
        self.retract()
        if self._serving is not None:
            await self._serving


def _evict(former: Holder, port: int) -> None:
    if send_signal(former.process, signal.SIGKILL):
        _log.warning("ended the former plane (%s), which still held port %d", former.words, port)


def listen(host: str, port: int) -> socket.socket | None:
    """The bound socket; None while the port is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # connections inherit it: no answer waits
    try:
        listener.bind((host, port))
        listener.listen(256)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise
    return listener


def _config(app: FastAPI) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_level="warning",
        lifespan="off",
        ws="websockets-sansio",
        ws_max_size=64 * 2**20,
        timeout_graceful_shutdown=3,
    )
