from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from control.errors import HistoryError
from control.recorder import Recorder
from control.spool import Spool


class Book:
    """What was written, and whether it can be written."""

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.locked = False

    def add(self, number: int) -> int:
        if self.locked:
            raise HistoryError("locked")
        if number < 0:
            raise ValueError("never")
        self.lines.append(number)
        return number


async def test_what_may_wait_waits_and_keeps_its_order() -> None:
    book, recorder, durable = Book(), Recorder(), []
    book.locked = True
    recorder.later(book.add, 1)
    recorder.later(book.add, 2, then=lambda: durable.append(2))
    assert not await recorder.flush()
    assert (recorder.num_waiting, recorder.problem, durable) == (2, "locked", [])
    with pytest.raises(HistoryError, match="cannot be written: locked"):
        await recorder.write(book.add, 3)
    book.locked = False
    assert await recorder.write(book.add, 4) == 4
    assert (book.lines, durable, recorder.problem) == ([1, 2, 4], [2], "")
    await recorder.close()


async def test_the_queue_is_bounded_and_counts_what_it_drops() -> None:
    book, recorder, dropped = Book(), Recorder(max_waiting=2), []
    for number in (1, 2, 3):
        recorder.later(book.add, number, dropped=lambda number=number: dropped.append(number))
    await recorder.flush()
    assert (book.lines, dropped, recorder.num_dropped) == ([2, 3], [1], 1)
    await recorder.close()


async def test_a_write_that_can_never_succeed_does_not_block_the_others() -> None:
    book, recorder = Book(), Recorder()
    recorder.later(book.add, -1)
    recorder.later(book.add, 1)
    with pytest.raises(ValueError, match="never"):
        await recorder.flush()
    assert await recorder.flush()
    assert (book.lines, recorder.num_dropped) == ([1], 1)
    await recorder.close()


class Gate:
    """A call that begins, and ends when it is let go."""

    def __init__(self) -> None:
        self.begun, self.free = threading.Event(), threading.Event()

    def __call__(self, number: int = 0) -> int:
        self.begun.set()
        assert self.free.wait(10)
        return number


async def test_a_history_that_hangs_holds_nobody_up_and_refuses_what_must_be_durable_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("control.recorder.LOCK_LIMIT_S", 0.01)
    monkeypatch.setattr("control.recorder.SLOW_S", -1.0)
    book, recorder, gate = Book(), Recorder(), Gate()
    recorder.later(lambda: book.add(gate(1)))
    recorder.kick()
    await asyncio.to_thread(gate.begun.wait, 10)
    recorder.later(book.add, 2)
    recorder.kick()
    assert (recorder.problem, recorder.num_waiting) == ("a write is taking long", 2)
    with pytest.raises(HistoryError, match="cannot be written: busy for"):
        await recorder.write(book.add, 3)
    gate.free.set()
    assert await recorder.flush()
    assert await recorder.write(book.add, 4) == 4
    assert (book.lines, recorder.problem) == ([1, 2, 4], "")
    await recorder.close()


async def test_what_a_command_looks_up_does_not_wait_for_charts() -> None:
    recorder, charts = Recorder(), [Gate() for _ in range(3)]
    reading = [asyncio.create_task(recorder.read(chart)) for chart in charts]
    for chart in charts[:2]:
        await asyncio.to_thread(chart.begun.wait, 10)
    async with asyncio.timeout(10):
        assert await recorder.look_up(lambda number: number, 7) == 7
    assert not any(each.done() for each in reading)
    for chart in charts:
        chart.free.set()
    await asyncio.gather(*reading)
    await recorder.close()


# --- the spool --------------------------------------------------------------------------------------------------------


@dataclass
class Spooled:
    """A recorder with a spool of one number a frame, whose writes wait in memory for no time at all."""

    book: Book
    recorder: Recorder

    def later(self, number: int, **more: Any) -> None:
        self.recorder.later(self.book.add, number, frame=lambda: b"%d" % number, **more)

    async def settled(self) -> None:
        """One tick's kick, and all that it began."""
        self.recorder.kick()
        await asyncio.sleep(0)
        if self.recorder._spilling is not None:
            await self.recorder._spilling
        await self.recorder.flush()


@pytest.fixture
def spooled(tmp_path: Path) -> Callable[..., Spooled]:
    def make(book: Book, max_bytes: int = 2**20) -> Spooled:
        spool = Spool(tmp_path / "spool", max_bytes)
        spool.open()
        recorder = Recorder(spool=spool, replay=lambda frame: book.add(int(frame.payload)), spill_after_s=-1.0)
        return Spooled(book, recorder)

    return make


async def test_what_waits_longer_goes_to_disk_and_is_written_before_anything_newer(
    spooled: Callable[..., Spooled],
) -> None:
    book, durable = Book(), []
    book.locked, desk = True, spooled(book)
    for number in (1, 2, 3):
        desk.later(number, then=lambda number=number: durable.append(number))
    await desk.settled()
    assert (desk.recorder.num_waiting, desk.recorder.num_spooled, durable) == (0, 3, [1, 2, 3])
    with pytest.raises(HistoryError, match="cannot be written: locked"):
        await desk.recorder.write(book.add, 9)
    book.locked = False
    desk.later(4)
    assert await desk.recorder.write(book.add, 5) == 5
    assert (book.lines, desk.recorder.num_spooled) == ([1, 2, 3, 4, 5], 0)
    await desk.recorder.close()


async def test_what_is_spooled_outlives_the_plane(spooled: Callable[..., Spooled]) -> None:
    book = Book()
    book.locked, first = True, spooled(book)
    first.later(1)
    await first.settled()
    first.later(2)  # in memory when it is closed
    await first.recorder.close()
    book.locked, second = False, spooled(book)
    assert second.recorder.num_spooled == 2
    second.later(3)
    assert await second.recorder.flush()
    assert book.lines == [1, 2, 3]
    await second.recorder.close()


async def test_a_spool_that_cannot_be_written_leaves_what_waits_in_memory(
    spooled: Callable[..., Spooled], tmp_path: Path
) -> None:
    book = Book()
    book.locked, desk = True, spooled(book)
    (tmp_path / "spool").write_text("a file where the folder should be")
    desk.later(1)
    await desk.settled()
    assert (desk.recorder.num_waiting, desk.recorder.spool_problem) == (1, "File exists")
    (tmp_path / "spool").unlink()
    await desk.settled()
    assert (desk.recorder.num_waiting, desk.recorder.num_spooled, desk.recorder.spool_problem) == (0, 1, "")
    book.locked = False
    assert await desk.recorder.flush()
    assert book.lines == [1]
    await desk.recorder.close()


async def test_a_full_spool_drops_the_oldest_and_counts_it(spooled: Callable[..., Spooled]) -> None:
    book = Book()
    book.locked, desk = True, spooled(book, max_bytes=16 * 20)
    for number in range(100):
        desk.later(number)
    await desk.settled()
    await desk.settled()
    lost, book.locked = desk.recorder.num_dropped, False
    assert await desk.recorder.flush()
    assert 0 < lost < 100
    assert book.lines == list(range(lost, 100))
    await desk.recorder.close()


async def test_a_frame_that_can_never_be_written_does_not_block_the_others(spooled: Callable[..., Spooled]) -> None:
    book = Book()
    book.locked, desk = True, spooled(book)
    for number in (-1, 1):
        desk.later(number)
    await desk.settled()
    book.locked = False
    assert await desk.recorder.flush()
    assert (book.lines, desk.recorder.num_dropped) == ([1], 1)
    await desk.recorder.close()


async def test_a_write_that_hangs_is_spooled_too_since_nobody_knows_its_end(spooled: Callable[..., Spooled]) -> None:
    book, gate = Book(), Gate()
    desk = spooled(book)
    desk.recorder.later(lambda: book.add(gate(1)), frame=lambda: b"1")
    desk.recorder.kick()
    await asyncio.to_thread(gate.begun.wait, 10)
    desk.later(2)
    while desk.recorder.num_waiting:
        desk.recorder.kick()
        assert desk.recorder._spilling is not None
        await desk.recorder._spilling
    assert desk.recorder.num_spooled == 2
    gate.free.set()
    assert await desk.recorder.flush()
    assert book.lines == [1, 1, 2]  # the history's own cursors make the second one count nothing
    await desk.recorder.close()


async def test_a_read_that_does_not_come_is_an_error_and_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("control.recorder.READ_LIMIT_S", 0.01)
    recorder, gate = Recorder(), Gate()
    for ask in (recorder.read, recorder.look_up):
        with pytest.raises(HistoryError, match="cannot be read: no answer in"):
            await ask(gate)
    gate.free.set()
    await recorder.close()


async def test_a_read_that_fails_says_that_it_was_a_read() -> None:
    book, recorder = Book(), Recorder()
    book.locked = True
    with pytest.raises(HistoryError, match="the history cannot be read: locked"):
        await recorder.look_up(book.add, 1)
    await recorder.close()
