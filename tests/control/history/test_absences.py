"""What the history says of a time that one look told about: a node, or a fleet, was away for ten minutes and more.

Such a time lies in slots wider than a second, and beside them in the seconds of whoever was read meanwhile.
"""

from __future__ import annotations

import pytest

from control.accounting import Accountant
from control.history.store import History, SeriesQuery
from control.types.series import Series
from tests.control.metered import T0, FakeWorker, observe

AWAY_S = 1_200  # slots of ten seconds
LOOK_S = 100  # of who is not away: slots of one second
SETTLED_S = T0 + 9_000


def decode(worker: FakeWorker, since_s: int, until_s: int) -> None:
    for second in range(since_s, until_s):
        worker.step(second, second + 0.5, flops=100, bytes=10, tokens=5)


def run_with_one_away(history: History, away: FakeWorker, seen: FakeWorker, *, is_idle: bool = False) -> None:
    """`seen` is read every LOOK_S, `away` only at AWAY_S. Each decodes five tokens a second, but for `seen` if idle."""
    accountant, since_s = Accountant("f"), int(seen.born_s)
    for until_s in range(LOOK_S, AWAY_S + 1, LOOK_S):
        decode(seen, since_s, since_s if is_idle else until_s)
        history.write_tick(observe(accountant, float(until_s), seen), accountant.snapshot())
        since_s = until_s
    decode(away, int(away.born_s), AWAY_S)
    history.write_tick(observe(accountant, float(AWAY_S), seen, away), accountant.snapshot())


def series(history: History, metric: str, step_s: int, until_s: float = AWAY_S, by: str = "fleet") -> Series:
    query = SeriesQuery(fleet_id="f", metric=metric, since_unix_s=T0, until_unix_s=T0 + until_s, step_s=step_s, by=by)
    return history.series(query).series[0]


@pytest.fixture(params=["as written", "rolled up"])
def settle(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "rolled up")


def test_a_second_in_a_wide_slot_and_in_a_row_of_its_own_is_known_once(history: History, settle: bool) -> None:
    run_with_one_away(history, FakeWorker("w0"), FakeWorker("w1"))
    if settle:
        history.settle(SETTLED_S)
    for step_s in (10, 30, 60, 600):
        points = series(history, "decode_tokens_per_s", step_s).points
        assert [point.value for point in points] == [pytest.approx(10.0, rel=1e-3)] * (AWAY_S // step_s)
        assert {point.partial for point in points} == {False}


def test_a_bucket_with_unknown_seconds_is_partial_though_others_are_known_twice(history: History, settle: bool) -> None:
    run_with_one_away(history, FakeWorker("w0", at_s=25.0), FakeWorker("w1", at_s=30.0))
    if settle:
        history.settle(SETTLED_S)
    points = series(history, "decode_tokens_per_s", 60).points
    assert [point.partial for point in points] == [True] + [False] * 19
    assert points[0].count == 35


def test_an_idle_second_is_the_least_of_its_bucket_beside_wide_slots_of_work(history: History, settle: bool) -> None:
    run_with_one_away(history, FakeWorker("w0"), FakeWorker("w1"), is_idle=True)
    if settle:
        history.settle(SETTLED_S)
    assert {point.min for point in series(history, "decode_tokens_per_s", 60).points} != {0.0}


def test_buckets_narrower_than_a_slot_are_partial(history: History) -> None:
    """A second's own part of ten is not known, neither where they are told nor in the nine that follow."""
    run_with_one_away(history, FakeWorker("w0"), FakeWorker("w1"))
    points = series(history, "decode_tokens_per_s", 2, until_s=AWAY_S + 2).points
    assert {point.partial for point in points[:600]} == {True}


def test_a_whole_fleet_that_was_away_is_known_once(history: History, settle: bool) -> None:
    """Its workers were last read at different moments, so that some of the time is in slots of two widths."""
    accountant, workers = Accountant("f"), [FakeWorker("w0"), FakeWorker("w1")]
    history.write_tick(observe(accountant, 1.0, workers[0]), accountant.snapshot())
    history.write_tick(observe(accountant, 20.0, workers[1]), accountant.snapshot())
    for worker in workers:
        decode(worker, 20, 620)
    history.write_tick(observe(accountant, 620.0, *workers), accountant.snapshot())
    if settle:
        history.settle(SETTLED_S)
    points = series(history, "decode_tokens_per_s", 60, until_s=600).points
    assert [point.value for point in points[1:]] == [pytest.approx(10.0, rel=1e-2)] * 9
    assert [point.count for point in points] == [60] * 10
