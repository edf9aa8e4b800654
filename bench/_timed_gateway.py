"""A gateway as it ships, that says at its end what its recording cost: `python -m bench._timed_gateway FILE`.

Every function that only records is timed from outside by the thread's CPU clock: request records, timelines of tokens,
metrics, beats and records to the plane. What the clock itself takes is measured at the start and taken off each call.
SIGUSR1 starts the count.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any, Final

from websockets.asyncio.client import ClientConnection

from control.exposition.request_totals import RequestTotals
from control.gateway import app, link
from control.gateway import main as gateway
from control.gateway.plane_link import PlaneLink
from control.gateway.records import RecordLog
from control.gateway.timeline import Timeline

#: Part -> where its functions are found by those who call them.
RECORDING: Final[dict[str, tuple[tuple[Any, str], ...]]] = {
    "records": ((app, "make_record"), (RecordLog, "append"), (RecordLog, "batch_from"), (RecordLog, "acknowledge")),
    "timelines": ((Timeline, "__init__"), (Timeline, "add")),
    "metrics": ((RequestTotals, "add"),),
    "link": ((link, "encode"), (link, "decode"), (PlaneLink, "beat")),
}
_clock = time.thread_time_ns


class Timing:
    """Calls and nanoseconds per part."""

    def __init__(self) -> None:
        self._parts: dict[str, list[int]] = {name: [0, 0] for name in (*RECORDING, "sends")}
        self._since_ns = 0
        nothing = [0, 0]
        empty, taken = self._timed(lambda: None, nothing), []
        for _ in range(2000):
            nothing[1] = 0
            empty()
            taken.append(nothing[1])
        self._empty_ns = median(taken)

    def start(self, *_: object) -> None:
        for part in self._parts.values():
            part[:] = [0, 0]
        self._since_ns = time.process_time_ns()

    def wrap(self) -> None:
        for name, places in RECORDING.items():
            for owner, attribute in places:
                setattr(owner, attribute, self._timed(getattr(owner, attribute), self._parts[name]))
        ClientConnection.send = self._awaited(ClientConnection.send, self._parts["sends"])  # type: ignore[method-assign]

    def found(self) -> dict[str, Any]:
        parts = {name: max(0.0, spent - calls * self._empty_ns) / 1e9 for name, (calls, spent) in self._parts.items()}
        return {"cpu_s": (time.process_time_ns() - self._since_ns) / 1e9, "parts": parts}

    @staticmethod
    def _timed(function: Callable[..., Any], part: list[int]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began = _clock()
            try:
                return function(*args, **kwargs)
            finally:
                part[1] += _clock() - began
                part[0] += 1

        return timed

    @staticmethod
    def _awaited(function: Callable[..., Awaitable[None]], part: list[int]) -> Callable[..., Awaitable[None]]:
        """A send rarely waits; when it does, what else runs meanwhile counts too."""

        async def timed(*args: Any, **kwargs: Any) -> None:
            began = _clock()
            try:
                await function(*args, **kwargs)
            finally:
                part[1] += _clock() - began
                part[0] += 1

        return timed


def main() -> None:
    path, timing = Path(sys.argv.pop(1)), Timing()
    timing.wrap()
    signal.signal(signal.SIGUSR1, timing.start)
    try:
        gateway.main()
    finally:
        path.write_text(json.dumps(timing.found()))


if __name__ == "__main__":
    main()
