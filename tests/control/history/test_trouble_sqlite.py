"""SQLite locked or full, the disk full: serving goes on, and afterwards all is there, once."""

from __future__ import annotations

import contextlib
import resource
import signal
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from tests.control.history.trouble_rig import TroubleRig, outlive, refusal

Trouble = Callable[[TroubleRig], AbstractContextManager[None]]


@pytest.fixture
async def on_sqlite(tmp_path: Path) -> AsyncIterator[TroubleRig]:
    rig = TroubleRig.of(f"sqlite:///{tmp_path / 'history.db'}")
    await rig.start(tmp_path / "run")
    yield rig
    await rig.end()


@contextlib.contextmanager
def locked(rig: TroubleRig) -> Iterator[None]:
    other = sqlite3.connect(rig.history._transactions.engine.url.database or "", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    yield
    other.rollback()
    other.close()


@contextlib.contextmanager
def full(rig: TroubleRig) -> Iterator[None]:
    """SQLite's own bound, a few pages above what it has."""

    def bound(connection: Any, _: object) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages + 3}").close()

    engine = rig.history._transactions.engine
    event.listen(engine, "connect", bound)
    engine.dispose()
    yield
    event.remove(engine, "connect", bound)
    engine.dispose()


@contextlib.contextmanager
def no_file_may_grow(num_bytes: int) -> Iterator[None]:
    """As on a full disk, for every file of this process."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(("trouble", "words"), [(locked, "database is locked"), (full, "database or disk is full")])
async def test_sqlite_in_trouble_loses_nothing(on_sqlite: TroubleRig, trouble: Trouble, words: str) -> None:
    await outlive(on_sqlite, trouble(on_sqlite), words)


async def test_a_disk_without_room_for_history_and_spool_loses_nothing(on_sqlite: TroubleRig) -> None:
    """Then memory holds what waits, and the screen says so."""
    rig = on_sqlite
    await rig.ticks(10)
    with no_file_may_grow(100):
        await rig.ticks(30)
        assert any("The spool cannot be written: File too large" in each for each in rig.plane._notices())
        assert rig.plane.recorder.num_waiting >= 20
        assert "cannot be written: disk I/O error" in await refusal(rig.resize(3, "no room"))
    await rig.until_written()
    await rig.check_points()
    rig.check_records()
    assert rig.plane.recorder.num_dropped == 0


@pytest.mark.parametrize("is_killed", [False, True])
async def test_the_next_plane_writes_what_the_last_one_spooled(
    on_sqlite: TroubleRig, tmp_path: Path, is_killed: bool
) -> None:
    rig = on_sqlite
    await rig.ticks(10)
    accepted = [await rig.resize(3, "before")]
    with locked(rig):
        await rig.ticks(30)
        await (rig.kill() if is_killed else rig.end())
    assert list((tmp_path / "run" / "spool").iterdir())
    await rig.start(tmp_path / "run")
    assert not list((tmp_path / "run" / "spool").iterdir())
    await rig.until(lambda: not rig.plane.desk.unfinished, "the command has ended")
    await rig.check_points()
    rig.check_commands(accepted)
    if not is_killed:  # a simulated gateway does not send again what a killed plane had only in memory
        rig.check_records()


async def test_a_spool_that_comes_after_another_plane_took_over_counts_nothing_twice(
    on_sqlite: TroubleRig, tmp_path: Path
) -> None:
    """The other one counted the meters from the last cursors on. The first one's records are still new."""
    rig = on_sqlite
    await rig.ticks(10)
    with locked(rig):
        await rig.ticks(20)
        await rig.end()
    await rig.start(tmp_path / "another host")
    await rig.ticks(10)
    await rig.check_points()
    await rig.end()
    await rig.start(tmp_path / "run")
    await rig.ticks(5)
    await rig.check_points()
    rig.check_records()
