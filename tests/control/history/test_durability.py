"""A short version of bench/durability.py: what a writer was told is durable survives kill -9 and a power failure."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from _power_failure import Call, Disk, fail_power, parse, traced_calls
from durability import kill_writers

pytestmark = pytest.mark.integration


def test_killed_writers_lose_and_tear_nothing(tmp_path: Path) -> None:
    found = kill_writers(tmp_path, 25, random.Random(1))
    assert (found.num_crashes, found.problems) == (25, [])
    assert found.num_told > 0


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    return traced_calls(tmp_path_factory.mktemp("traced"), 25)


def test_a_power_failure_loses_and_tears_nothing(calls: list[Call], tmp_path: Path) -> None:
    found = fail_power(tmp_path, calls, num_points=30, num_subsets=2, dice=random.Random(1))
    assert (found.num_crashes, found.num_told, found.problems) == (90, 25, [])


def test_the_check_finds_what_a_writer_that_does_not_sync_would_lose(calls: list[Call], tmp_path: Path) -> None:
    unsynced = [each for each in calls if each.kind != "sync"]
    assert fail_power(tmp_path, unsynced, num_points=30, num_subsets=2, dice=random.Random(1)).problems


def test_what_was_not_synced_is_not_on_the_disk() -> None:
    disk = Disk()
    for call in (Call("f", "write", 0, b"aa"), Call("f", "sync"), Call("f", "write", 1, b"bb"), Call("f", "cut", 1)):
        disk.take(call)
    assert disk.after_failure(None) == b"aa"
    assert {bytes(disk.after_failure(random.Random(seed))) for seed in range(50)} >= {b"aa", b"abb", b"a"}


def test_lines_of_strace_are_understood() -> None:
    hexed = "".join(f"\\x{byte:02x}" for byte in b"ab")
    assert parse(f'7 pwrite64(5</t.db-wal>, "{hexed}", 2, 32) = 2', "/t.db") == Call("/t.db-wal", "write", 32, b"ab")
    assert parse("fdatasync(5</t.db>) = 0", "/t.db") == Call("/t.db", "sync")
    assert parse(f'pwrite64(5</t.db-shm>, "{hexed}", 2, 0) = 2', "/t.db") is None
    assert parse("ftruncate(5</t.db>, 4096) = -1 EIO", "/t.db") is None
