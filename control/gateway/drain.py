"""How a gateway ends: uvicorn's server with our own way to stop.

    told to stop -> not ready, accepts nothing new; every answer that begins says `Connection: close`
                 -> connections that carry a request finish it; idle ones are closed once they were idle for `idle_s`
    at limit_s   -> requests that are left end with an error that says so

Decided here: the order, and when a connection may be closed. An idle connection is not closed at once: a client may be
about to use it, and a request that meets a closing connection is lost without an answer. Not here: what the requests'
end is (`on_limit`), and what becomes of the records (`control.gateway.main`).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

POLL_S: Final = 0.02
#: What is told at the limit has this long to reach the clients.
LAST_WORDS_S: Final = 1.0


class Server(uvicorn.Server):
    """`on_stop` is called when it is told to stop, `on_limit` when `limit_s` has passed since."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        limit_s: float = 0.0,
        idle_s: float = 0.0,
        on_stop: Callable[[], None] = lambda: None,
        on_limit: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(config)
        self._limit_s = limit_s
        self._idle_s = idle_s
        self._on_stop = on_stop
        self._on_limit = on_limit
        self._idle_since_s: dict[object, float] = {}

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals are handled by whoever runs the server; uvicorn would raise them again at its end."""
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, let what is under way end, and return when no connection is left."""
        self._on_stop()
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        stopped_s = time.monotonic()
        await self._until_closed(stopped_s + self._limit_s, self._idle_s)
        if self.server_state.connections:
            self._on_limit()
            await self._until_closed(time.monotonic() + LAST_WORDS_S, 0.0)
        for task in self.server_state.tasks:
            task.cancel()
        for connection in list(self.server_state.connections):
            assert isinstance(connection, HttpToolsProtocol)
            connection.transport.abort()

    async def _until_closed(self, deadline_s: float, idle_s: float) -> None:
        while self.server_state.connections and not self.force_exit and time.monotonic() < deadline_s:
            self._close_idle(time.monotonic(), idle_s)
            await asyncio.sleep(POLL_S)

    def _close_idle(self, now_s: float, idle_s: float) -> None:
        """Close connections without a request that have had none for `idle_s`."""
        seen: dict[object, float] = {}
        for connection in list(self.server_state.connections):
            assert isinstance(connection, HttpToolsProtocol)
            if connection.cycle is not None and not connection.cycle.response_complete:
                continue
            seen[connection] = self._idle_since_s.get(connection, now_s)
            if now_s - seen[connection] >= idle_s:
                connection.shutdown()
        self._idle_since_s = seen
