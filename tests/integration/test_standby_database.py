"""Real planes on a real PostgreSQL that goes away: nobody takes over, and the active one goes on under its fence."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench._postgresql import Cluster, private_cluster
from control.errors import HistoryError
from control.types.commands import Action, CommandRequest, CommandState, Verb
from tests.integration.test_standby import LIMIT_S, Planes

pytestmark = pytest.mark.integration
FLIP = CommandRequest(action=Action(verb=Verb.RESIZE, prefill=2, decode=2), confirmation="decode")


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with private_cluster("fsync=off", "max_connections=30", "shared_buffers=16MB") as found:
        yield found


@pytest.fixture
def planes(tmp_path: Path, cluster: Cluster) -> Iterator[Planes]:
    found = Planes(tmp_path)
    yield found
    found.end()


def test_a_database_that_goes_away_and_comes_back_changes_nothing_about_who_is_active(
    planes: Planes, cluster: Cluster
) -> None:
    first = planes.start(DATABASE_URL=cluster.url)
    planes.until_active(first)
    second = planes.start(DATABASE_URL=cluster.url)
    planes.until_said(second, f"pid {first.pid} on")
    cluster.stop()
    planes.until_said(first, "the lease cannot be renewed, this plane goes on as it is")
    third = planes.start(DATABASE_URL=cluster.url)
    planes.until_said(third, "waiting for the database")
    with planes.client() as client:
        with pytest.raises(HistoryError):
            client.submit(FLIP)
        plane = client.snapshot().plane
        assert plane is not None
        assert (plane.pid, plane.fence) == (first.pid, 1)
    cluster.start()
    planes.until_said(third, f"pid {first.pid} on")  # so the row is still the first one's
    with planes.client() as client:
        command = client.submit(FLIP)
        assert client.wait(command.command_id, LIMIT_S).state is CommandState.DONE
    assert planes.until_active(first).fence == 1
    first.send_signal(signal.SIGKILL)
    status = planes.until(lambda: planes.active_of(second, third), "a standby")
    assert status.fence == 2
