"""Everything that is written to the history, in order, through one thread.

    later() -> memory -> history                       all is well
    later() -> memory -> spool on disk -> history      the history has been away for a moment, or the spool is not empty

Decided here: what happens while the history cannot be written: what must be durable now fails with HistoryError; what
may wait waits, first in memory, then in the spool, and nothing newer is written before it. Not decided here: what is
written. No database session is held across a network call, because calls on it run whole in the writer's thread.

A write under way may be spooled as well, since nobody knows its outcome: writing it again is the history's to notice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import inf
from typing import Any, TypeVar

from control.errors import ControlError, HistoryError, StaleFence
from control.spool import Frame, Spool

_log = logging.getLogger("phaseline.recorder")
T = TypeVar("T")
MAX_WAITING = 600  # ten minutes of ticks
SLOW_S = 1.0  # a write that takes longer is told as a problem
LOCK_LIMIT_S = 2.0  # a write that must be durable now waits this long for those before it
READ_LIMIT_S = 5.0  # a chart or list that has not come by then is an error
CLOSE_LIMIT_S = 3.0  # what is not written by then goes to the spool
SPILL_AFTER_S = 3.0  # what has waited so long in memory goes to the spool
SPILL_BATCH = 16  # writes that are spooled, or replayed, at a time


@dataclass(frozen=True, slots=True)
class _Write:
    """One queued write; `then` runs when it is durable or can never be, `dropped` when the queue was full.

    `frame` makes the bytes that can wait in the spool; None: not worth keeping.
    """

    call: Callable[..., Any]
    args: tuple[Any, ...]
    then: Callable[[], None]
    dropped: Callable[[], None]
    frame: Callable[[], bytes] | None
    since_s: float


def _nothing() -> None:
    """Nobody waits for this write."""


def _no_spool(_frame: Frame) -> object:
    raise AssertionError("frames without a spool")


@dataclass(slots=True)
class Recorder:
    """A writer thread, two threads for charts and lists, one for what a command waits for, so that no chart delays it.

    `problem` says why the last write failed or hangs; "" when all is well. `spool_problem`: why nothing can be spooled.
    """

    max_waiting: int = MAX_WAITING
    spool: Spool | None = None
    replay: Callable[[Frame], object] = _no_spool  # write one frame to the history, once
    spill_after_s: float = SPILL_AFTER_S
    failure: str = ""
    spool_problem: str = ""
    num_dropped: int = 0
    _begun_s: float | None = None
    _flushing: asyncio.Task[bool] | None = None
    _spilling: asyncio.Task[None] | None = None
    _waiting: deque[_Write] = field(default_factory=deque)
    _writer: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "history-writer"))
    _readers: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(2, "history-reader"))
    _desk_reader: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "history-desk"))
    _spooler: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "history-spool"))
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def num_waiting(self) -> int:
        """In memory."""
        return len(self._waiting)

    @property
    def num_spooled(self) -> int:
        return self.spool.num_frames if self.spool else 0

    @property
    def spooled_bytes(self) -> int:
        return self.spool.num_bytes if self.spool else 0

    @property
    def problem(self) -> str:
        is_slow = self._begun_s is not None and time.monotonic() - self._begun_s > SLOW_S
        return self.failure or ("a write is taking long" if is_slow else "")

    async def write(self, call: Callable[..., T], *args: Any) -> T:
        """Write now, after all that waits. Raises HistoryError: then nothing was written and nothing may act.

        Waiting for its turn is bounded; once begun it is awaited to its end, which alone tells what is durable.
        """
        until_s = time.monotonic() + LOCK_LIMIT_S
        try:
            async with asyncio.timeout(LOCK_LIMIT_S):
                await self._lock.acquire()
        except TimeoutError:
            raise HistoryError(f"the history cannot be written: {self._why_busy()}") from None
        try:
            if not await self._drain(until_s):
                raise HistoryError(f"the history cannot be written: {self.failure or self._why_busy()}")
            return await self._guarded(call, *args)
        finally:
            self._lock.release()

    def _why_busy(self) -> str:
        if self.num_spooled and not self.problem:
            return f"{self.num_spooled} earlier writes are written first, which takes a moment"
        return self.failure or f"busy for {LOCK_LIMIT_S:g} s"

    def later(
        self,
        call: Callable[..., Any],
        *args: Any,
        then: Callable[[], None] = _nothing,
        dropped: Callable[[], None] = _nothing,
        frame: Callable[[], bytes] | None = None,
    ) -> None:
        """Queue a write. The oldest is dropped, and counted, when the queue is full."""
        if len(self._waiting) >= self.max_waiting:
            self._waiting.popleft().dropped()
            self.num_dropped += 1
        self._waiting.append(_Write(call, args, then, dropped, frame, time.monotonic()))

    def kick(self) -> None:
        """Begin to write what waits, in order. Raises, once, what an earlier such write broke with."""
        if self._must_spill() and (self._spilling is None or self._spilling.done()):
            self._spilling = asyncio.create_task(self._spill(), name="history-spill")
        ended = self._flushing
        if ended is not None and not ended.done():
            return
        self._flushing = asyncio.create_task(self._drain_alone()) if self._waiting or self.num_spooled else None
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
        """Read beside the writer. Raises what `call` raises, and HistoryError when the answer takes too long."""
        return await _bounded(self._readers, call, *args)

    async def look_up(self, call: Callable[..., T], *args: Any) -> T:
        """Read the little that a command waits for. Raises like `read`."""
        return await _bounded(self._desk_reader, call, *args)

    async def close(self) -> None:
        """Write what waits, or leave it in the spool for the next plane."""
        is_written = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_LIMIT_S):
                is_written = await self.flush()
        if not is_written and self._flushing is not None:
            self._flushing.cancel()
            await asyncio.wait({self._flushing})
        if self._spilling is not None:
            await self._spilling
        if self.spool is not None:
            await self._spill()
            await self._in_spooler(self.spool.close)
            self.spool = None
        self._writer.shutdown(wait=is_written, cancel_futures=True)
        for others in (self._readers, self._desk_reader, self._spooler):
            others.shutdown(wait=False, cancel_futures=True)

    async def _drain_alone(self) -> bool:
        async with self._lock:
            return await self._drain()

    async def _drain(self, until_s: float = inf) -> bool:
        """Whether all is written now; the first failure ends it, and so does the time."""
        while (self.num_spooled or self._waiting) and time.monotonic() < until_s:
            if self.num_spooled:
                if not await self._replay_some(until_s):
                    return False
                continue
            first = self._waiting[0]
            try:
                await self._guarded(first.call, *first.args)
            except HistoryError as error:
                if error.retry_helps:
                    return False
                self._lose(first, error)
            except StaleFence:  # nothing of this plane counts any more: not to be lost, nor written
                raise
            except Exception as error:
                self._lose(first, error)
                raise
            else:
                self._take(first)
        return not self.num_spooled and not self._waiting

    def _lose(self, write: _Write, error: Exception) -> None:
        """A write that can never succeed must not block those behind it."""
        _log.error("a write to the history is lost: %s", error)
        self._take(write)
        self.num_dropped += 1

    def _take(self, written: _Write) -> None:
        """This write is over; meanwhile a full queue may have dropped it already."""
        if self._waiting and self._waiting[0] is written:
            self._waiting.popleft()
            written.then()

    # --- the spool --------------------------------------------------------------------------------------------------

    def _must_spill(self) -> bool:
        if self.spool is None or not self._waiting:
            return False
        return self.num_spooled > 0 or time.monotonic() - self._waiting[0].since_s > self.spill_after_s

    async def _spill(self) -> None:
        """Move what waits in memory to the spool. A disk that cannot be written leaves it where it is."""
        writes = list(self._waiting)
        for start in range(0, len(writes), SPILL_BATCH):
            batch = writes[start : start + SPILL_BATCH]
            frames = [write.frame for write in batch if write.frame is not None]
            try:
                self.num_dropped += await self._in_spooler(self._append, frames)
            except OSError as error:
                self.spool_problem = error.strerror or str(error)
                return
            self.spool_problem = ""
            spooled = {id(write) for write in batch}
            moved = [write for write in self._waiting if id(write) in spooled]
            self._waiting = deque(write for write in self._waiting if id(write) not in spooled)
            for write in moved:
                write.then()

    def _append(self, frames: list[Callable[[], bytes]]) -> int:
        assert self.spool is not None
        return self.spool.append([frame() for frame in frames]) if frames else 0

    async def _replay_some(self, until_s: float) -> bool:
        """Write the oldest frames of the spool. False: the history cannot be written now."""
        assert self.spool is not None
        try:
            frames = await self._in_spooler(self.spool.peek, SPILL_BATCH)
        except OSError as error:
            self.spool_problem = error.strerror or str(error)
            return False
        if not frames:  # they were whole when they were counted
            self.num_dropped += await self._in_spooler(self.spool.drop_oldest)
        written = 0
        try:
            for frame in frames:
                if time.monotonic() > until_s or not await self._replay(frame):
                    return False
                written += 1
        finally:
            await self._in_spooler(self.spool.forget, [frame.place for frame in frames[:written]])
        return True

    async def _replay(self, frame: Frame) -> bool:
        try:
            await self._guarded(self.replay, frame)
        except HistoryError as error:
            if error.retry_helps:
                return False
            self._lose_frame(frame, error)
        except StaleFence:  # the plane that has taken over writes it
            raise
        except (ValueError, ControlError) as error:
            self._lose_frame(frame, error)
        return True

    def _lose_frame(self, frame: Frame, error: Exception) -> None:
        _log.error("frame %d of spool %s is lost: %s", frame.place.number, frame.place.owner, error)
        self.num_dropped += 1

    async def _in_spooler(self, call: Callable[..., T], *args: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._spooler, lambda: call(*args))

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


async def _bounded(threads: ThreadPoolExecutor, call: Callable[..., T], *args: Any) -> T:
    """The answer of a thread, which is no longer waited for when it takes too long."""
    try:
        async with asyncio.timeout(READ_LIMIT_S):
            return await asyncio.get_running_loop().run_in_executor(threads, lambda: call(*args))
    except TimeoutError:
        raise HistoryError(f"the history cannot be read: no answer in {READ_LIMIT_S:g} s") from None
    except HistoryError as error:
        raise HistoryError(f"the history cannot be read: {error.detail}") from error
