"""Standing by and keeping the lease, over a history that can be cut off. Real time, but nothing is timed."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from control.errors import HistoryError, StaleFence
from control.history.store import History
from control.lease import Holder, Standing, this_machine
from control.lease_keeper import LeaseKeeper
from control.processes import identify
from tests.control.builders import holder

LONG_S, SHORT_S, LIMIT_S = 3600.0, 0.05, 20.0


class CutOff(History):
    """A history whose database can go away."""

    is_away = False

    def lease(self, fleet_id: str):  # type: ignore[no-untyped-def]
        self._check()
        return super().lease(fleet_id)

    def renew_lease(self, fleet_id: str, fence: int, lease_s: float) -> None:
        self._check()
        super().renew_lease(fleet_id, fence, lease_s)

    def _check(self) -> None:
        if self.is_away:
            raise HistoryError("the database is away")


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Callable[..., LeaseKeeper]]:
    keepers: list[LeaseKeeper] = []

    def keeper(me: Holder, lease_s: float) -> LeaseKeeper:
        history = CutOff.open(f"sqlite:///{tmp_path / 'history.db'}")
        keepers.append(LeaseKeeper(history, "f", me, lease_s))
        return keepers[-1]

    yield keeper
    for each in keepers:
        await each.close()
        each._history.close()


def expire(keeper: LeaseKeeper) -> None:
    """Somebody else takes over."""
    keeper._history.take_lease("f", holder("other"), LONG_S, Standing(reachable_s=LONG_S, dead_fence=1))


async def test_a_standby_follows_a_holder_that_releases(make: Callable[..., LeaseKeeper]) -> None:
    first, second = make(holder("first"), LONG_S), make(holder("second"), LONG_S)
    assert (await first.take()).fence == 1
    standing_by = asyncio.create_task(second.take())
    await asyncio.sleep(0)
    await first.release()
    async with asyncio.timeout(LIMIT_S):
        assert (await standing_by).fence == 2
    assert second.before is not None
    assert second.before.holder == first.me


async def test_the_end_of_the_holders_process_is_told_by_the_kernel(make: Callable[..., LeaseKeeper]) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:  # noqa: ASYNC220
        life = identify(process.pid)
        assert life is not None
        machine = this_machine()
        there = holder("there", machine=machine, pid=life.pid, started_unix_s=life.started_unix_s)
        first, second = make(there, LONG_S), make(holder("here", machine=machine), LONG_S)
        await first.take()
        looks: list[str] = []
        standing_by = asyncio.create_task(second.take(lambda: looks.append(second.problem)))
        while not looks:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert not standing_by.done()
        process.kill()
        async with asyncio.timeout(LIMIT_S):
            assert (await standing_by).fence == 2


async def test_a_silent_holder_is_followed_after_its_lease(make: Callable[..., LeaseKeeper]) -> None:
    first, second = make(holder("first"), SHORT_S), make(holder("second"), SHORT_S)
    await first.take()
    async with asyncio.timeout(LIMIT_S):
        assert (await second.take()).fence == 2
        assert "has taken over" in str(await first.keep())


async def test_while_the_database_is_away_nobody_takes_over_and_the_active_plane_stays_active(
    make: Callable[..., LeaseKeeper],
) -> None:
    first, second = make(holder("first"), SHORT_S), make(holder("second"), LONG_S)
    await first.take()
    keeping = asyncio.create_task(first.keep())
    first._history.is_away = second._history.is_away = True  # type: ignore[attr-defined]
    looks: list[str] = []
    standing_by = asyncio.create_task(second.take(lambda: looks.append(second.problem)))
    async with asyncio.timeout(LIMIT_S):
        while len(looks) < 2 or not first.problem:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert looks == ["the database is away"] * len(looks)
    assert not keeping.done()
    lease, now = History.lease(first._history, "f")
    assert lease is not None
    assert lease.expires_unix_s < now
    first._lease_s = LONG_S  # the next renewal holds
    first._history.is_away = second._history.is_away = False  # type: ignore[attr-defined]
    async with asyncio.timeout(LIMIT_S):
        while "" not in looks:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    keeping.cancel()
    standing_by.cancel()
    await asyncio.gather(keeping, standing_by, return_exceptions=True)
    assert second.lease is None


async def test_a_plane_without_a_database_learns_from_the_workers_that_it_is_stale(
    make: Callable[..., LeaseKeeper],
) -> None:
    keeper = make(holder("first"), SHORT_S)
    await keeper.take()
    keeper._history.is_away = True  # type: ignore[attr-defined]
    async with asyncio.timeout(LIMIT_S):
        stale = await keeper.keep(lambda: 2)
    assert isinstance(stale, StaleFence)
    assert "workers obey a plane of fence 2" in stale.detail
