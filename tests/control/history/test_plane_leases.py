"""One plane has the lease; a stale one writes nothing. On SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from control.errors import HistoryError, StaleFence
from control.history.store import History
from control.lease import Lease, Standing
from control.types.commands import CommandState
from tests.control.builders import holder
from tests.control.history.test_journal import draft

FIRST, SECOND = holder("first"), holder("second")
NEW = Standing(reachable_s=0.0)
LONG = Standing(reachable_s=3600.0)


def take(history: History, me: object, standing: Standing = LONG, lease_s: float = 3600.0) -> Lease | None:
    return history.take_lease("f", me, lease_s, standing)[0]  # type: ignore[arg-type]


def test_the_lease_has_one_holder_and_each_takeover_raises_the_fence(history: History) -> None:
    first = take(history, FIRST)
    assert first is not None
    assert take(history, SECOND) is None
    assert history.lease("f")[0] == first
    second = take(history, SECOND, Standing(reachable_s=0.0, dead_fence=1))
    assert second is not None
    assert (first.fence, second.fence) == (1, 2)
    assert history.lease("f")[0] == second
    assert history.lease("g")[0] is None


def test_fences_survive_closing_and_are_counted_per_fleet(url: str, opened: Callable[[str], History]) -> None:
    assert take(opened(url), FIRST) is not None
    again = opened(url)
    other = again.take_lease("g", FIRST, 1.0, NEW)[0]
    same = take(again, FIRST)
    assert other is not None
    assert same is not None
    assert (other.fence, same.fence) == (1, 2)


def test_times_are_of_the_database_and_a_renewal_moves_the_end(history: History) -> None:
    lease = take(history, FIRST, lease_s=10.0)
    assert lease is not None
    assert lease.expires_unix_s - lease.taken_unix_s == pytest.approx(10.0)
    history.renew_lease("f", 1, 100.0)
    renewed, now = history.lease("f")
    assert renewed is not None
    assert renewed.taken_unix_s <= now <= renewed.expires_unix_s - 90.0


def test_an_expired_lease_is_renewed_by_its_holder_as_long_as_nobody_took_it(history: History) -> None:
    take(history, FIRST, lease_s=1e-6)
    history.renew_lease("f", 1, 3600.0)
    assert take(history, SECOND) is None


def test_a_plane_that_was_taken_over_from_can_neither_renew_nor_record_nor_release(
    url: str, opened: Callable[[str], History]
) -> None:
    stale, active = opened(url), opened(url)
    take(stale, FIRST, lease_s=1e-6)
    stale.hold("f", 1)
    command = stale.record_command(draft(0))
    assert take(active, SECOND) is not None
    active.hold("f", 2)
    for write in (
        lambda: stale.renew_lease("f", 1, 3600.0),
        lambda: stale.record_command(draft(1)),
        lambda: stale.update_command(command.command_id, CommandState.DONE, None, "mine"),
        lambda: stale.prune(0.0),
    ):
        with pytest.raises(StaleFence, match="pid 4711 on host has taken over under fence 2"):
            write()
    stale.release_lease("f", 1)
    assert take(stale, FIRST, NEW) is None
    assert active.record_command(draft(1)).command_id == command.command_id + 1
    assert active.command(command.command_id) == command


def test_a_released_lease_is_free_at_once(history: History) -> None:
    take(history, FIRST)
    history.release_lease("f", 1)
    assert take(history, SECOND, NEW) is not None


def test_of_many_that_race_for_a_free_lease_one_gets_it(url: str, opened: Callable[[str], History]) -> None:
    histories = [opened(url) for _ in range(6)]
    won: list[Lease] = []
    start = threading.Barrier(len(histories))

    def race(number: int) -> None:
        start.wait()
        lease = take(histories[number], holder(str(number)), NEW)
        if lease is not None:
            won.append(lease)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(len(histories))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert won[0] == histories[0].lease("f")[0]


def test_a_takeover_waits_for_a_write_that_has_passed_its_check(url: str, opened: Callable[[str], History]) -> None:
    """What the former plane commits is there before the next one reads it; or its takeover fails and is tried again."""
    stale, active = opened(url), opened(url)
    take(stale, FIRST, lease_s=1e-6)
    stale.hold("f", 1)
    inside, go_on = threading.Event(), threading.Event()
    stale._transactions._reach = lambda point: (
        (inside.set(), go_on.wait(10)) if point == "record_command:uncommitted" else None
    )
    writer = threading.Thread(target=stale.record_command, args=(draft(0),))
    writer.start()
    assert inside.wait(10)
    taken: list[Lease | None] = []
    taker = threading.Thread(target=lambda: taken.append(take(active, SECOND)))
    taker.start()
    taker.join(0.1)
    assert taker.is_alive()
    go_on.set()
    writer.join()
    taker.join()
    assert len(active.commands("f", 9)) == 1
    assert taken in ([None], [active.lease("f")[0]])  # None: it had to wait long, and the holder may have too


def test_while_a_long_write_is_under_way_the_lease_is_renewed_or_cannot_be_taken_either(
    url: str, opened: Callable[[str], History], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("control.history.database.BUSY_TIMEOUT_S", 0.05)
    history, other = opened(url), opened(url)
    take(history, FIRST)
    history.hold("f", 1)
    seen: list[str] = []

    def inside(point: str) -> None:
        if point == "record_command:uncommitted":
            try:
                history.renew_lease("f", 1, 3600.0)
                seen.append("renewed")
            except HistoryError:
                with pytest.raises(HistoryError, match="locked"):
                    take(other, SECOND, Standing(reachable_s=0.0, dead_fence=1))
                seen.append("locked for both")

    history._transactions._reach = inside
    history.record_command(draft(0))
    assert seen == ["renewed" if history._transactions.engine.dialect.name == "postgresql" else "locked for both"]
