"""Several planes on one history, as those of attached fleets are: whoever folds first, all work is counted once."""

from __future__ import annotations

import threading
from collections.abc import Callable

from control.accounting import Accountant
from control.history.store import History
from control.history.upkeep import FOLD_TICKS
from tests.control.metered import T0, FakeWorker, observe

LATER_S = T0 + 5_000


def tick(history: History, accountant: Accountant, worker: FakeWorker, second: int) -> None:
    worker.step(second, second + 0.5, flops=100, tokens=5)
    history.write_tick(observe(accountant, second + 1.0, worker), accountant.snapshot())


def tokens(history: History) -> dict[str, float]:
    """Of all decode steps, by line."""
    history.settle(LATER_S)
    return {name: found["tokens"] for (_, name, _), found in history.totals("f").items()}


class Between:
    """Does something once, at one point of a transaction of somebody else's."""

    def __init__(self, point: str, act: Callable[[], None]) -> None:
        self._point = point
        self._act: Callable[[], None] | None = act

    def __call__(self, point: str) -> None:
        act = self._act
        if point == self._point and act is not None:
            self._act = None
            act()


def test_a_shelf_that_another_plane_has_folded_meanwhile_is_folded_on_from_there(
    url: str, opened: Callable[[str], History]
) -> None:
    other, accountant, worker = opened(url), Accountant("f"), FakeWorker()
    for second in range(FOLD_TICKS):
        tick(other, accountant, worker, second)

    def meanwhile() -> None:
        assert other.upkeep(T0, limit_s=0.0) == 1  # the same shelf, and no other: its ticks stay for those
        tick(other, accountant, worker, FOLD_TICKS)

    slow = History.open(url, reach=Between("fold:before", meanwhile))
    slow.upkeep(T0, limit_s=0.0)
    slow.close()
    assert tokens(other) == dict.fromkeys(("fleet", "decode", "w0"), 5.0 * (FOLD_TICKS + 1))


def test_a_tick_that_becomes_durable_late_is_not_passed_over(url: str, opened: Callable[[str], History]) -> None:
    """Its id is taken before that of another plane's tick, which is written and folded while it is not durable yet."""
    other = opened(url)
    fast, late = (Accountant("f"), FakeWorker("fast")), (Accountant("f"), FakeWorker("late"))
    for each in (fast, late):
        tick(other, *each, 0)

    def write_and_fold() -> None:
        tick(other, *fast, 1)
        other.settle(T0)

    writer = threading.Thread(target=write_and_fold)

    def meanwhile() -> None:
        writer.start()
        writer.join(0.5)  # it waits for its turn, or is through

    slow = History.open(url, reach=Between("write_tick:uncommitted", meanwhile))
    tick(slow, *late, 1)
    writer.join()
    slow.close()
    assert tokens(other) == {"fleet": 20.0, "decode": 20.0, "fast": 10.0, "late": 10.0}
