"""The same history tests on SQLite and on a real PostgreSQL, started for the session and reached by socket only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench._postgresql import Cluster, private_cluster
from control.history.store import History

#: What a test does not need: data on the disk, room for many.
OPTIONS = ("fsync=off", "max_connections=20", "shared_buffers=16MB")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    with private_cluster(*OPTIONS) as found:
        yield found


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.integration)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database of its own."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'history.db'}"
    cluster: Cluster = request.getfixturevalue("cluster")
    cluster.clear()
    return cluster.url


@pytest.fixture
def opened() -> Iterator[Callable[[str], History]]:
    """Opens histories, and closes them when the test ends."""
    found: list[History] = []

    def open_history(url: str) -> History:
        found.append(History.open(url))
        return found[-1]

    yield open_history
    for each in found:
        each.close()


@pytest.fixture
def history(url: str, opened: Callable[[str], History]) -> History:
    return opened(url)
