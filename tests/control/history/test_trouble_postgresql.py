"""PostgreSQL refusing, hanging, slow, restarted: serving goes on, and afterwards all is there, once."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from bench._postgresql import Cluster
from control.errors import HistoryError
from tests.control.history.trouble_rig import TroubleRig, outlive, refusal

pytestmark = pytest.mark.integration


@pytest.fixture
async def on_postgresql(cluster: Cluster, tmp_path: Path) -> AsyncIterator[TroubleRig]:
    cluster.clear()
    rig = TroubleRig.of(cluster.url)
    await rig.start(tmp_path / "run")
    yield rig
    await rig.end()


@contextlib.contextmanager
def stopped(cluster: Cluster) -> Iterator[None]:
    cluster.stop()
    try:
        yield
    finally:
        cluster.start()


@contextlib.contextmanager
def standing_still(cluster: Cluster) -> Iterator[None]:
    cluster.stand_still()
    try:
        yield
    finally:
        cluster.go_on()


@contextlib.contextmanager
def slow(cluster: Cluster) -> Iterator[None]:
    """Each tick's commit takes longer than ticks are apart."""
    with cluster.connect() as connection:
        connection.execute(
            "CREATE FUNCTION wait() RETURNS trigger AS 'BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END' LANGUAGE plpgsql"
        )
        connection.execute("CREATE TRIGGER slow AFTER INSERT OR UPDATE ON cursors EXECUTE FUNCTION wait()")
    yield
    with cluster.connect() as connection:
        connection.execute("DROP TRIGGER slow ON cursors")
        connection.execute("DROP FUNCTION wait")


async def test_postgresql_that_refuses_loses_nothing(on_postgresql: TroubleRig, cluster: Cluster) -> None:
    await outlive(on_postgresql, stopped(cluster), "connection to server on socket")


async def test_postgresql_that_hangs_delays_no_tick_and_loses_nothing(
    on_postgresql: TroubleRig, cluster: Cluster
) -> None:
    await outlive(on_postgresql, standing_still(cluster), "cannot be written: busy for 2 s")


async def test_a_chart_of_a_postgresql_that_hangs_is_an_error(on_postgresql: TroubleRig, cluster: Cluster) -> None:
    await on_postgresql.ticks(3)
    await on_postgresql.chart()
    with standing_still(cluster):
        for _ in range(3):
            assert "the history cannot be read" in await refusal(on_postgresql.chart())
    await on_postgresql.chart()


async def test_a_slow_postgresql_loses_nothing(on_postgresql: TroubleRig, cluster: Cluster) -> None:
    rig = on_postgresql
    await rig.ticks(10)
    with slow(cluster):
        await rig.ticks(40)
        assert rig.plane.recorder.num_spooled > 0
    await rig.until_written()
    await rig.check_points()
    rig.check_records()


async def test_restarts_of_postgresql_lose_nothing(on_postgresql: TroubleRig, cluster: Cluster) -> None:
    rig, accepted = on_postgresql, []
    for number in range(5):
        await rig.ticks(7)
        cluster.stop()
        await rig.ticks(number)
        cluster.start()
        await rig.until_written()
        accepted.append(await rig.resize(2 + number % 2, f"after restart {number}"))
    await rig.until(lambda: not rig.plane.desk.unfinished, "the commands have ended")
    await rig.check_points()
    rig.check_records()
    rig.check_commands(accepted)


# --- and the plane ends meanwhile -------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_killed", [False, True])
async def test_what_is_spooled_outlives_the_plane_and_the_next_one_writes_it(
    on_postgresql: TroubleRig, cluster: Cluster, tmp_path: Path, is_killed: bool
) -> None:
    rig = on_postgresql
    await rig.ticks(10)
    accepted = [await rig.resize(3, "before")]
    await rig.ticks(2)
    cluster.stop()
    await rig.ticks(30)
    await (rig.kill() if is_killed else rig.end())
    assert list((tmp_path / "run" / "spool").iterdir())
    with pytest.raises(HistoryError, match="cannot be opened"):
        await rig.start(tmp_path / "run")
    cluster.start()
    await rig.start(tmp_path / "run")
    assert rig.plane.recorder.num_spooled == 0
    await rig.until(lambda: not rig.plane.desk.unfinished, "the commands have ended")
    await rig.check_points()
    if not is_killed:  # a simulated gateway does not send again what a killed plane had only in memory
        rig.check_records()
    rig.check_commands(accepted)


async def test_a_spool_that_comes_after_another_plane_took_over_counts_nothing_twice(
    on_postgresql: TroubleRig, cluster: Cluster, tmp_path: Path
) -> None:
    """On another host: it counted the meters from the last cursors on. The first one's records are still new."""
    rig = on_postgresql
    await rig.ticks(10)
    cluster.stop()
    await rig.ticks(20)
    await rig.end()
    cluster.start()
    await rig.start(tmp_path / "another host")
    await rig.ticks(10)
    await rig.check_points()
    await rig.end()
    await rig.start(tmp_path / "run")
    await rig.ticks(5)
    await rig.check_points()
    rig.check_records()
