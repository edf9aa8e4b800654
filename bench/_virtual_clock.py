"""A process whose time is virtual: importing this makes `time.monotonic` and `time.time` a clock that its loop moves.

When nothing is ready the clock jumps to the next timer, so nothing is ever late, however busy the machine is, and idle
time costs nothing. Sockets are real (loopback, within the process). Import it before what keeps `time.monotonic`.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from typing import Any

START_UNIX_S = 1_800_000_000.0
#: Looks before the clock moves: what was sent over loopback may arrive after the call that sent it.
NUM_LOOKS = 3


class _Clock:
    now_s = 1000.0


def _monotonic() -> float:
    return _Clock.now_s


def _unix() -> float:
    return START_UNIX_S + _Clock.now_s


time.monotonic = _monotonic
time.time = _unix


class _Selector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]
    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            return super().select(None)
        for _ in range(NUM_LOOKS if timeout > 0 else 1):
            if found := super().select(0):
                return found
            os.sched_yield()
        _Clock.now_s += max(0.0, timeout)
        return []


class _Loop(asyncio.SelectorEventLoop):
    def time(self) -> float:
        return _Clock.now_s


class Inline(Executor):
    """Does what it is given at once: a thread would take real time."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def run(main: Coroutine[Any, Any, Any]) -> Any:
    """To its end, on virtual time."""
    with asyncio.Runner(loop_factory=lambda: _Loop(_Selector())) as runner:
        return runner.run(main)
