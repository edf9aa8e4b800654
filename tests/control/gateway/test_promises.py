"""Places kept for those who were told to come back."""

from __future__ import annotations

from typing import Any

import pytest

from control.gateway.forecast import Need
from control.gateway.promises import MAX_PROMISES, Promise, PromiseBook, window
from control.gateway.turns import turn_of


def promise(
    identity: str = "a", *, tag: float = 0.0, due_s: float = 10.0, until_s: float = 20.0, **more: Any
) -> Promise:
    turn = turn_of(has_begun=False, priority=0, start_tag=tag, arrival_s=more.pop("arrival_s", 0.0))
    return Promise(identity=identity, turn=turn, need=Need(kv_tokens=100, **more), due_s=due_s, until_s=until_s)


def book_of(*promises: Promise, rate: float = 1.0) -> PromiseBook:
    book = PromiseBook()
    for _ in range(300):  # so many before, all of which came back, or none
        before = promise("before", until_s=-1.0)
        book.make(before, -2.0)
        if rate:
            book.keep(before)
        else:
            book.find("before", 0.0)
    for each in promises:
        assert book.make(each, 0.0)
    return book


def test_a_promise_is_found_until_its_window_is_over():
    book = book_of(promise())
    assert book.find("a", 5.0) is not None, "before it is due, too: then it is told again when to come"
    assert book.find("a", 20.0) is not None
    assert book.find("a", 20.1) is None
    assert len(book) == 0


def test_the_same_request_twice_has_two_places():
    first, second = promise(arrival_s=1.0), promise(arrival_s=2.0)
    book = book_of(first, second)
    for expected in (first, second):
        found = book.find("a", 10.0)
        assert found is expected
        book.keep(found)
    assert book.find("a", 10.0) is None


def test_those_promised_count_as_ahead_of_later_turns_only():
    book = book_of(promise("a", tag=1.0), promise("b", tag=2.0), promise("c", tag=3.0))
    turns = [turn_of(has_begun=False, priority=0, start_tag=tag, arrival_s=0.0) for tag in (0.5, 1.0, 2.5, 9.0)]
    assert [round(book.ahead_of(each).kv_tokens) for each in turns] == [0, 100, 200, 300]


def test_only_those_who_may_come_soon_delay_a_newcomer():
    book = book_of(promise("a", due_s=1.0), promise("b", due_s=5.0), promise("c", due_s=9.0))
    last = turn_of(has_begun=False, priority=0, start_tag=9.0, arrival_s=0.0)
    assert round(book.ahead_soon(last, 5.0).kv_tokens) == 200


def test_when_nobody_comes_back_nothing_is_held_free():
    book = book_of(promise("a"), rate=0.0)
    last = turn_of(has_begun=False, priority=0, start_tag=9.0, arrival_s=0.0)
    assert book.show_rate < 0.01
    assert book.ahead_of(last) == book.ahead_soon(last, 99.0) == Need()


def test_the_number_of_promises_is_bounded():
    book = PromiseBook()
    made = [book.make(promise(str(n), tag=float(n)), 0.0) for n in range(MAX_PROMISES + 1)]
    assert made == [True] * MAX_PROMISES + [False]
    assert book.make(promise("later"), 21.0), "the others have lapsed"


@pytest.mark.parametrize("retry_after_s", [1.0, 1.2, 7.5, 60.0])
def test_the_window_holds_the_whole_second_that_the_header_says_and_some_jitter(retry_after_s: float):
    due_s, until_s = window(100.0, retry_after_s)
    assert due_s <= 100.0 + retry_after_s
    assert until_s >= 100.0 + retry_after_s + 1.0 + 0.25 * retry_after_s
