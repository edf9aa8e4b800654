"""Everything that is written to the history, in order, through one thread.

Decided here: what happens while the history cannot be written: what must be durable now fails with HistoryError, what
may wait waits in a bounded queue and keeps its order. Not decided here: what is written. No database session is held
across a network call, because calls on it run whole in the writer's thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from control.errors import HistoryError

T = TypeVar("T")
MAX_WAITING = 600  # ten minutes of ticks
SLOW_S = 1.0  # a write that takes longer is told as a problem
LOCK_LIMIT_S = 2.0  # a write that must be durable now waits this long for those before it


@dataclass(frozen=True, slots=True)
class _Write:
    """One queued write; `then` runs when it is durable or can never be, `dropped` when the queue was full."""

    call: Callable[..., Any]
    args: tuple[Any, ...]
    then: Callable[[], None]
    dropped: Callable[[], None]


def _nothing() -> None:
    """Nobody waits for this write."""


@dataclass(slots=True)
class Recorder:
    """A writer thread, two threads for charts and lists, one for what a command waits for, so that no chart delays it.

    `problem` says why the last write failed or hangs; "" when all is well.
    """

    max_waiting: int = MAX_WAITING
    failure: str = ""
    num_dropped: int = 0
    _begun_s: float | None = None
    _flushing: asyncio.Task[bool] | None = None
    _waiting: deque[_Write] = field(default_factory=deque)
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "history-writer"))
    _readers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "history-reader"))
    _desk_reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "history-desk"))
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def problem(self) -> str:
        is_slow = self._begun_s is not None and time.monotonic() - self._begun_s > SLOW_S
        return self.failure or ("a write is taking long" if is_slow else "")

    async def write(self, call: Callable[..., T], *args: Any) -> T:
        """Write now, after all that waits. Raises HistoryError: then nothing was written and nothing may act.

        Waiting for its turn is bounded; once begun it is awaited to its end, which alone tells what is durable.
        """
        try:
            async with asyncio.timeout(LOCK_LIMIT_S):
                await self._lock.acquire()
        except TimeoutError:
            raise HistoryError(f"the history cannot be written: busy for {LOCK_LIMIT_S:g} s") from None
        try:
            if not await self._drain():
                raise HistoryError(f"the history cannot be written: {self.failure}")
            return await self._guarded(call, *args)
        finally:
            self._lock.release()

    def later(
        self,
        call: Callable[..., Any],
        *args: Any,
        then: Callable[[], None] = _nothing,
        dropped: Callable[[], None] = _nothing,
    ) -> None:
        """Queue a write. The oldest is dropped, and counted, when the queue is full."""
        if len(self._waiting) >= self.max_waiting:
            self._waiting.popleft().dropped()
            self.num_dropped += 1
        self._waiting.append(_Write(call, args, then, dropped))

    def kick(self) -> None:
        """Begin to write what waits, in order. Raises, once, what an earlier such write broke with."""
        ended = self._flushing
        if ended is not None and not ended.done():
            return
        self._flushing = asyncio.create_task(self._drain_alone()) if self._waiting else None
        if ended is not None:
            ended.result()

    async def flush(self) -> bool:
        """Write what waits, to its end. False: the history cannot be written now, and the rest goes on waiting."""
        while True:
            self.kick()
            begun = self._flushing
            if begun is None:
                return True
            await asyncio.wait({begun})
            if self._flushing is begun:
                self._flushing = None
            if not begun.result():
                return False

    async def read(self, call: Callable[..., T], *args: Any) -> T:
        """Read beside the writer. Raises what `call` raises."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, lambda: call(*args))

    async def look_up(self, call: Callable[..., T], *args: Any) -> T:
        """Read the little that a command waits for. Raises what `call` raises."""
        return await asyncio.get_running_loop().run_in_executor(self._desk_reader, lambda: call(*args))

    async def close(self) -> None:
        await self.flush()
        self._writer.shutdown(wait=True)
        for readers in (self._readers, self._desk_reader):
            readers.shutdown(wait=False, cancel_futures=True)

    async def _drain_alone(self) -> bool:
        async with self._lock:
            return await self._drain()

    async def _drain(self) -> bool:
        """Whether all is written now; the first failure ends it."""
        while self._waiting:
            first = self._waiting[0]
            try:
                await self._guarded(first.call, *first.args)
            except HistoryError:
                return False
            except Exception:  # a write that can never succeed must not block those behind it
                self._take(first)
                self.num_dropped += 1
                raise
            self._take(first)
        return True

    def _take(self, written: _Write) -> None:
        """This write is over; meanwhile a full queue may have dropped it already."""
        if self._waiting and self._waiting[0] is written:
            self._waiting.popleft()
            written.then()

    async def _guarded(self, call: Callable[..., T], *args: Any) -> T:
        self._begun_s = time.monotonic()
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._writer, lambda: call(*args))
        except HistoryError as error:
            self.failure = error.detail
            raise
        finally:
            self._begun_s = None
        self.failure = ""
        return result
