from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.shared_link import PacedLink, SharedLink

RATE = 100.0  # bytes per second


def run(link: SharedLink, copies: list[tuple[float, float]]) -> dict[int, float]:
    """Begin copies of (at_s, num_bytes), in order of time; when each ended, by its number from 1 on."""
    ended: dict[int, float] = {}

    def until(limit_s: float) -> None:
        while (next_s := link.next_end_s) is not None and next_s <= limit_s:
            ended.update(dict.fromkeys(link.take_ended(next_s), next_s))

    for at_s, num_bytes in copies:
        until(at_s)
        link.begin(num_bytes, at_s)
    until(float("inf"))
    return ended


def test_one_copy_alone_takes_its_bytes_over_the_rate() -> None:
    assert run(SharedLink(RATE), [(5.0, 200.0)]) == {1: pytest.approx(7.0)}


def test_two_equal_copies_at_once_take_twice_as_long() -> None:
    assert run(SharedLink(RATE), [(0.0, 100.0), (0.0, 100.0)]) == {1: pytest.approx(2.0), 2: pytest.approx(2.0)}


def test_a_small_copy_does_not_wait_for_a_big_one_and_delays_it_by_its_own_bytes() -> None:
    ended = run(SharedLink(RATE), [(0.0, 200.0), (1.0, 10.0)])
    assert ended == {2: pytest.approx(1.2), 1: pytest.approx(2.1)}


def test_a_copy_that_is_given_up_leaves_its_part_to_the_others() -> None:
    link = SharedLink(RATE)
    first = link.begin(100.0, 0.0)
    link.begin(100.0, 0.0)
    link.drop(first, 1.0)
    assert link.next_end_s == pytest.approx(1.5)


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(1, 500)), min_size=1, max_size=12))
def test_the_link_carries_no_more_than_its_rate_and_is_never_idle_with_work(copies: list[tuple[float, float]]) -> None:
    copies = sorted(copies)
    ended = run(SharedLink(RATE), copies)
    busy_until_s = 0.0
    for at_s, num_bytes in copies:  # a work-conserving link is done when one that serves in turn is
        busy_until_s = max(busy_until_s, at_s) + num_bytes / RATE
    assert max(ended.values()) == pytest.approx(busy_until_s)
    assert all(ended[i] >= at_s + num_bytes / RATE - 1e-6 for i, (at_s, num_bytes) in enumerate(copies, 1))


async def test_a_paced_link_ends_copies_in_the_order_of_what_is_left() -> None:
    link, order = PacedLink(1e6), list[int]()

    async def carry(num_bytes: int) -> None:
        await link.carry(num_bytes)
        order.append(num_bytes)

    await asyncio.wait_for(asyncio.gather(carry(20_000), carry(5_000), carry(10_000)), 10)
    assert order == [5_000, 10_000, 20_000]
