"""Spreading: parts are whole quanta, are never negative, and add up to the amount exactly; wide slots are full."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from control.spreading import Slots
from engine.quanta import COUNTS, SECONDS, on_grid

times = st.floats(0, 1e6).map(lambda value: on_grid(value, SECONDS))
lengths = st.floats(0, 2e5).map(lambda value: on_grid(value, SECONDS))


def seconds(start: float, end: float, amount: float) -> dict[int, float]:
    """Of a reading that knows just a minute."""
    return {at: part for at, _, (part,) in Slots(0.0, 60.0).parts(start, end, [amount], [SECONDS])}


def test_a_two_second_step_is_half_in_each_second() -> None:
    assert seconds(10.0, 12.0, 2.0) == {10: 1.0, 11: 1.0}
    assert seconds(10.5, 12.5, 2.0) == {10: 0.5, 11: 1.0, 12: 0.5}


def test_an_instant_is_all_in_its_second() -> None:
    assert seconds(3.5, 3.5, 1.0) == {3: 1.0}
    assert seconds(4.0, 4.0, 1.0) == {4: 1.0}


@given(times, lengths, st.integers(0, 2**50), st.sampled_from([SECONDS, COUNTS, 1.0, 2.0**29]))
def test_parts_are_whole_quanta_and_add_up_exactly(start: float, length: float, num: int, quantum: float) -> None:
    amount = num * quantum
    found = [part for _, _, (part,) in Slots(start, start + length).parts(start, start + length, [amount], [quantum])]
    assert sum(found) == amount
    assert all(part >= 0 and part % quantum == 0 for part in found)


@given(times, lengths, st.floats(0, 1), st.floats(0, 1))
def test_slots_of_one_reading_never_overlap_and_only_the_outer_ones_are_touched_in_part(
    start: float, length: float, first: float, second: float
) -> None:
    known = Slots(start, start + length)
    inner = sorted(start + on_grid(length * each, SECONDS) for each in (first, second))
    every = known.cover(start, start + length)
    assert sum(inside for _, _, inside in every) == length
    assert all(at + width == after for (at, width, _), (after, _, _) in pairwise(every))
    assert all(inside == width or width == 1 for _, width, inside in every)
    assert {(at, width) for at, width, _ in known.cover(*inner)} <= {(at, width) for at, width, _ in every}


def test_nothing_covers_an_empty_interval_and_long_absences_are_coarse() -> None:
    assert Slots(0.0, 9.0).cover(5.0, 5.0) == []
    assert len(Slots(0.0, 3600.0).cover(0.0, 3600.0)) == 360
    assert [each[:2] for each in Slots(598.5, 87_000.0).cover(598.5, 660.0)] == [(598, 1), (599, 1), (600, 600)]
