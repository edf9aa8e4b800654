"""Which numbers of a gateway have come: whatever the order, each counts once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from control.history.record_seqs import MAX_MISSING, Seqs

BATCHES = st.lists(st.sets(st.integers(1, 60), min_size=1, max_size=12), max_size=12)


@given(BATCHES)
def test_it_knows_exactly_the_numbers_that_came(batches: list[set[int]]) -> None:
    seqs, came = Seqs(), set[int]()
    for batch in batches:
        assert {seq for seq in batch if seqs.has(seq)} == batch & came
        seqs = seqs.plus(batch - came)
        came |= batch
        assert seqs.last == max(came)
        missing = {seq for first, last in seqs.missing for seq in range(first, last + 1)}
        assert missing == set(range(1, seqs.last + 1)) - came


def test_numbers_in_order_leave_nothing_to_remember() -> None:
    assert Seqs().plus(range(1, 1001)).plus([1001]) == Seqs(1001)


def test_of_very_many_gaps_the_oldest_are_given_up() -> None:
    seqs = Seqs().plus(range(2, 5 * MAX_MISSING, 2))
    assert len(seqs.missing) == MAX_MISSING
    assert seqs.has(1)
    assert not seqs.has(5 * MAX_MISSING - 3)
