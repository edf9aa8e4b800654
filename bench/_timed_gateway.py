"""A gateway as it ships, that says at its end what its recording cost: `python -m bench._timed_gateway FILE`.

Every function that only records is timed from outside by the thread's CPU clock: request records, timelines of tokens,
metrics, beats and records to the plane. What the clock itself takes is measured beside each call, by timing one that
does nothing, and taken off. All this makes the gateway slower, so what it uses as it ships is not asked of this one.
SIGUSR1 starts the count.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
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
    "records": (
        (Timeline, "__init__"),
        (app, "Ended"),
        (app.Gateway, "_make_records"),
        *((RecordLog, name) for name in ("note", "catch_up", "append", "batch_from", "acknowledge")),
    ),
    "tokens": ((Timeline, "add"),),
    "metrics": ((RequestTotals, "add"),),
    "link": ((link, "encode"), (link, "decode"), (PlaneLink, "beat")),
}
_clock = time.thread_time_ns


class Timing:
    """Calls and nanoseconds per part."""

    def __init__(self) -> None:
        self._parts: dict[str, list[int]] = {name: [0, 0] for name in (*RECORDING, "sends")}
        self._inner_ns = 0  # of timed calls within the one that is running

    def start(self, *_: object) -> None:
        for part in self._parts.values():
            part[:] = [0, 0]

    def wrap(self) -> None:
        for name, places in RECORDING.items():
            for owner, attribute in places:
                setattr(owner, attribute, self._timed(getattr(owner, attribute), self._parts[name]))
        ClientConnection.send = self._awaited(ClientConnection.send, self._parts["sends"])  # type: ignore[method-assign]

    def found(self) -> dict[str, Any]:
        return {name: {"calls": calls, "s": max(0, ns) / 1e9} for name, (calls, ns) in self._parts.items()}

    def _timed(self, function: Callable[..., Any], part: list[int]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            outer_ns, self._inner_ns = self._inner_ns, 0
            began = _clock()
            _nothing(*args, **kwargs)
            between = _clock()
            try:
                return function(*args, **kwargs)
            finally:
                ended = _clock()
                part[1] += ended - 2 * between + began - self._inner_ns
                part[0] += 1
                self._inner_ns = outer_ns + ended - began

        return timed

    @staticmethod
    def _awaited(function: Callable[..., Awaitable[None]], part: list[int]) -> Callable[..., Awaitable[None]]:
        """A send rarely waits; when it does, what else runs meanwhile counts too."""

        async def timed(*args: Any, **kwargs: Any) -> None:
            began = _clock()
            _nothing(*args, **kwargs)
            between = _clock()
            try:
                await function(*args, **kwargs)
            finally:
                part[1] += _clock() - 2 * between + began
                part[0] += 1

        return timed


def _nothing(*_: Any, **__: Any) -> None:
    """Called as what is timed is, to know what a call and the clock take by themselves."""


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
