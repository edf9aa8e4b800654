"""The gateway's picture of the fleet: prefix index, pending work, tables."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from control.gateway.prefix_index import PrefixIndex
from control.gateway.timeline import Timeline
from control.gateway.workers import WorkerLink
from control.types import Role, WorkerRoute, WorkerState
from engine.histogram import bucket_of
from engine.wire import CacheDelta

HASHES = st.lists(st.integers(0, 8), max_size=5)
DELTAS = st.lists(st.tuples(st.integers(0, 2), HASHES, HASHES, st.booleans()), max_size=20)


@given(DELTAS)
def test_the_prefix_index_equals_one_set_per_worker(deltas: list[tuple[int, list[int], list[int], bool]]) -> None:
    index = PrefixIndex()
    sets: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    for slot, added, removed, reset in deltas:
        removed = [each for each in removed if each not in added]
        index.apply(slot, CacheDelta(added=added, removed=removed, reset=reset))
        sets[slot] = ((set() if reset else sets[slot]) - set(removed)) | set(added)
    expected: dict[int, int] = {}
    for slot, held in sets.items():
        for each in held:
            expected[each] = expected.get(each, 0) | 1 << slot
    assert index.holders == expected
    for slot in sets:
        index.forget(slot)
    assert index.holders == {}


def link(**changes: Any) -> WorkerLink:
    row = WorkerRoute(
        worker_id="w", epoch=1, address="127.0.0.1:1", role=Role.MIXED, state=WorkerState.READY, **changes
    )
    return WorkerLink(row, 0, PrefixIndex(), lambda: None)


def test_a_worker_that_was_never_reached_is_not_ready_and_takes_nothing() -> None:
    worker = link()
    assert not worker.is_ready
    assert worker.send(CacheDelta()) is False


def test_a_timeline_counts_tokens_that_came_together_as_gaps_of_zero() -> None:
    timeline = Timeline(100.0)
    timeline.add(1, 100.5)
    timeline.add(1, 100.7)
    timeline.add(3, 101.0)
    assert timeline.ttft_s == 0.5
    assert timeline.tpot_s is not None
    assert abs(timeline.tpot_s - 0.125) < 1e-9
    assert timeline.max_gap_s is not None
    assert abs(timeline.max_gap_s - 0.3) < 1e-9
    assert timeline.itl_buckets == {bucket_of(0.2): 1, bucket_of(0.3): 1, 0: 2}


def test_one_token_has_a_first_token_time_and_no_rate() -> None:
    timeline = Timeline(1.0)
    assert timeline.ttft_s is None
    timeline.add(1, 3.0)
    assert (timeline.ttft_s, timeline.tpot_s, timeline.max_gap_s) == (2.0, None, None)
