"""What one client is sent, within a bound on how long it may take nothing.

The server below holds back whoever sends more than the client reads (uvicorn's flow control, 64 KiB a connection, and
what the kernel keeps), so a slow client costs a wait, not memory: its tokens stay where they are, at most one context
of them. One that reads nothing for `stall_s` is ended: it would keep its place in `max_in_flight` for ever.

Not here: what is sent (`control.gateway.exchange`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

from control.gateway.http import Send


class Outlet:
    """`send` of one response. Within `watching`, a stall sets `has_stalled` and cancels the task."""

    def __init__(self, send: Send, stall_s: float) -> None:
        self.has_stalled = False
        self._send = send
        self._stall_s = stall_s
        self._waits_since_s: float | None = None
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def __call__(self, message: dict[str, Any]) -> None:
        self._waits_since_s = asyncio.get_running_loop().time()
        await self._send(message)
        self._waits_since_s = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._timer = loop.call_later(self._stall_s, self._look)
        try:
            yield
        finally:
            self._timer.cancel()
            self._timer = self._task = None

    def _look(self) -> None:
        """One timer a stall's length, whatever is sent meanwhile."""
        loop = asyncio.get_running_loop()
        since_s = loop.time() if self._waits_since_s is None else self._waits_since_s
        left_s = since_s + self._stall_s - loop.time()
        if left_s > 0:
            self._timer = loop.call_later(left_s, self._look)
        elif self._task is not None:
            self.has_stalled = True
            self._task.cancel()
