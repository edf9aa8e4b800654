"""What happens, told to whoever listens: tick summaries and command changes. A slow listener loses the oldest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

MAX_WAITING = 100
Event = dict[str, Any]


@dataclass(slots=True)
class Events:
    """One publisher, any number of listeners, all on one event loop."""

    _queues: set[asyncio.Queue[Event | None]] = field(default_factory=set)
    _closed: bool = False

    def publish(self, event: str, **values: Any) -> None:
        for queue in self._queues:
            _put(queue, {"event": event, **values})

    def close(self) -> None:
        """Every listener's stream ends."""
        self._closed = True
        for queue in self._queues:
            _put(queue, None)

    async def listen(self) -> AsyncIterator[Event]:
        """Events from now on, until `close`."""
        queue: asyncio.Queue[Event | None] = asyncio.Queue(MAX_WAITING)
        self._queues.add(queue)
        try:
            while not self._closed:
                event = await queue.get()
                if event is None:
                    return
                yield event
        finally:
            self._queues.discard(queue)


def _put(queue: asyncio.Queue[Event | None], event: Event | None) -> None:
    if queue.full():
        queue.get_nowait()
    queue.put_nowait(event)
