"""What waited in a spool: written once, in order, whatever was written meanwhile and by whom."""

from __future__ import annotations

import pytest

from control.accounting import Accountant
from control.errors import NotFound
from control.history.deferred import JournalWrite, TickWrite, decode, encode
from control.history.store import History
from control.spool import Frame, Place
from control.types.commands import CommandState, CommandStep
from control.write_points import MOMENTS
from engine.histogram import of_values
from tests.control.history.test_journal import draft
from tests.control.history.test_ticks import total
from tests.control.metered import FakeWorker, observe
from tests.control.records import record

DONE = CommandStep(at_unix_s=130.0, text="w0 is prefill", worker_id="w0")
RUNNING = CommandStep(at_unix_s=120.0, text="w0 drains", worker_id="w0", state="running")


def frame(number: int, write: TickWrite | JournalWrite, owner: str = "a") -> Frame:
    return Frame(Place(owner, number), encode(write))


def ticks(worker: FakeWorker, accountant: Accountant, seconds: range) -> list[TickWrite]:
    """One a second, each with 100 FLOP and one record."""
    found = []
    for second in seconds:
        worker.step(second, second + 0.5, flops=100)
        ingested = observe(accountant, second + 1.0, worker)
        found.append(TickWrite(ingested, accountant.snapshot(), [("g", second + 1, record(request_id=f"r{second}"))]))
    return found


def live(history: History, tick: TickWrite) -> None:
    history.write_tick(tick.ingested, tick.cursors, tick.records)


def test_a_write_comes_back_from_its_bytes_as_it_was() -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    worker.meter.observe_latency("itl", 0.05, 3)
    tick = ticks(worker, accountant, range(1))[0]
    sent = record(itl_buckets=of_values([0.05] * 9), tpot_s=None)
    tick = TickWrite(tick.ingested, tick.cursors, [("g", 1, sent)])
    assert decode(encode(tick)) == tick
    line = JournalWrite(7, CommandState.RUNNING, RUNNING, "")
    assert decode(encode(line)) == line


def test_bytes_that_are_no_write_are_an_error() -> None:
    with pytest.raises(ValueError, match="not a write of this version"):
        decode(b"something else")
    with pytest.raises(ValueError, match="not a write of this version"):
        decode(encode(JournalWrite(1, CommandState.DONE, None, ""))[:-3])


def test_spooled_ticks_are_written_once_however_often_they_are_replayed(history: History) -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    first, *waited = ticks(worker, accountant, range(5))
    live(history, first)
    for _ in range(2):
        for number, tick in enumerate(waited, 1):
            history.replay(frame(number, tick))
    assert (total(history, "flops", 1), history.last_seq("g")) == (500.0, 5)
    assert history.load_cursors("f") == accountant.snapshot()
    live(history, ticks(worker, accountant, range(5, 6))[0])
    assert total(history, "flops", 1) == 600.0


def test_a_tick_that_was_written_and_spooled_counts_once(history: History) -> None:
    """Nobody knew whether the write under way would succeed."""
    worker, accountant = FakeWorker(), Accountant("f")
    written, waited = ticks(worker, accountant, range(2))
    live(history, written)
    history.replay(frame(1, written))
    history.replay(frame(2, waited))
    assert (total(history, "flops", 1), history.last_seq("g")) == (200.0, 2)


def test_what_was_dropped_between_is_lost_and_nothing_else(history: History) -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    first, _, third = ticks(worker, accountant, range(3))
    live(history, first)
    history.replay(frame(2, third))
    assert total(history, "flops", 1) == 200.0


def test_what_another_plane_has_counted_meanwhile_is_not_counted_again(history: History) -> None:
    """The first plane spools two ticks; the second counts the meter from the last cursor on; then the spool comes."""
    worker, accountant = FakeWorker(), Accountant("f")
    first, *waited = ticks(worker, accountant, range(3))
    live(history, first)
    second = Accountant("f")
    second.restore(history.load_cursors("f"))
    worker.cursor = 0
    worker.step(3.0, 3.5, flops=100)
    later = TickWrite(observe(second, 4.0, worker), second.snapshot(), [("g", 9, record(request_id="r9"))])
    live(history, later)
    for number, tick in enumerate(waited, 1):
        history.replay(frame(number, tick))
    assert total(history, "flops", 1) == 400.0
    assert history.load_cursors("f") == second.snapshot()
    assert {f"r{n}" for n in (0, 1, 2, 9)} == {
        name for name in ("r0", "r1", "r2", "r9") if history.request(name) is not None
    }


def test_two_spools_are_counted_apart(history: History) -> None:
    worker, accountant = FakeWorker(), Accountant("f")
    first, second = ticks(worker, accountant, range(2))
    history.replay(frame(1, first, "a"))
    history.replay(frame(1, second, "b"))
    assert total(history, "flops", 1) == 200.0


def test_a_journal_line_that_waited_is_added_once(history: History) -> None:
    number = history.record_command(draft()).command_id
    running = JournalWrite(number, CommandState.RUNNING, RUNNING, "")
    done = JournalWrite(number, CommandState.DONE, DONE, "done")
    for place, line in ((1, running), (2, done), (1, running), (2, done)):
        history.replay(frame(place, line))
    found = history.command(number)
    assert found is not None
    assert (found.state, found.result, found.steps[1:]) == (CommandState.DONE, "done", (RUNNING, DONE))


def test_a_journal_line_moves_nothing_back_that_went_on_meanwhile(history: History) -> None:
    number = history.record_command(draft()).command_id
    history.update_command(number, CommandState.DONE, DONE, "by the next plane")
    history.replay(frame(1, JournalWrite(number, CommandState.RUNNING, RUNNING, "")))
    found = history.command(number)
    assert found is not None
    assert (found.state, found.result) == (CommandState.DONE, "by the next plane")
    assert found.steps[1:] == (DONE, RUNNING)


def test_a_journal_line_of_an_unknown_command_is_an_error_that_leaves_nothing(history: History) -> None:
    with pytest.raises(NotFound, match="no command 77"):
        history.replay(frame(1, JournalWrite(77, CommandState.DONE, None, "")))


class Killed(BaseException):
    """The plane ends here."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_plane_that_dies_while_it_replays_leaves_each_frame_written_once(url: str, moment: str) -> None:
    def kill(point: str) -> None:
        if point == f"replay:{moment}":
            raise Killed

    worker, accountant = FakeWorker(), Accountant("f")
    waited = [frame(number, tick) for number, tick in enumerate(ticks(worker, accountant, range(3)), 1)]
    first = History.open(url, reach=kill)
    with pytest.raises(Killed):
        first.replay(waited[0])
    first.close()
    second = History.open(url)
    for each in waited:
        second.replay(each)
    assert (total(second, "flops", 1), second.last_seq("g")) == (300.0, 3)
    assert second.load_cursors("f") == accountant.snapshot()
    second.close()
