from __future__ import annotations

import asyncio
import threading

import pytest

from control.errors import HistoryError
from control.recorder import Recorder


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
