"""A history that an earlier version wrote, a row per line and second, reads the same after the upgrade."""

from __future__ import annotations

import alembic.command
import msgspec
import pytest
from sqlalchemy import Engine, MetaData, create_engine, insert

from control.history.database import migration_config
from control.history.store import History, SeriesQuery

T0 = 300 * 3600
_LINE = {"fleet_id": "f", "model_id": "m", "epoch": 1, "simulated": False}


def old_history(url: str) -> Engine:
    """Twenty workers for two hours and a bit, each busy half of the time; the last minutes are not rolled up."""
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        alembic.command.upgrade(migration_config(connection), "0008")
        tables = MetaData()
        tables.reflect(connection)
        table = tables.tables
        lines = [{**_LINE, "line_id": 1, "scope": "fleet", "name": "", "role": ""}]
        lines += [{**_LINE, "line_id": n, "scope": "worker", "name": f"w{n}", "role": "decode"} for n in range(2, 22)]
        connection.execute(insert(table["lines"]), lines)
        connection.execute(insert(table["marks"]), [{"name": "rolled-600", "t": T0 + 7200}])
        for step_s, since, until in ((1, T0 + 6600, T0 + 7500), (600, T0, T0 + 7200), (3600, T0, T0 + 7200)):
            keys = [{"line_id": n, "step_s": step_s, "t": t} for n in range(1, 22) for t in range(since, until, step_s)]
            work = {"num_s": step_s, "busy_s": step_s / 2, "steps": step_s}
            known = {"num_cover_s": step_s, "worker_s": step_s}
            connection.execute(insert(table["phase_points"]), [{**key, "phase": "decode", **work} for key in keys])
            connection.execute(insert(table["state_points"]), [{**key, **known} for key in keys])
        blob = msgspec.msgpack.encode({5: 3, 900: 1})
        there = [{"line_id": 1, "step_s": 1, "kind": "ttft", "t": T0 + 7300, "count": 4, "buckets": blob}]
        connection.execute(insert(table["latency_points"]), there)
    return engine


@pytest.mark.parametrize("step_s", [600, 3600])
def test_points_of_an_earlier_version_read_the_same(url: str, step_s: int) -> None:
    old_history(url).dispose()
    history = History.open(url)

    def read(metric: str, by: str = "fleet") -> dict[str, list[float | None]]:
        query = SeriesQuery(fleet_id="f", metric=metric, since_unix_s=T0, until_unix_s=T0 + 7200, step_s=step_s, by=by)
        return {line.label: [point.value for point in line.points] for line in history.series(query).series}

    try:
        for _ in range(2):
            assert read("decode_busy") == {"fleet": [0.5] * (7200 // step_s)}
            assert read("decode_busy", "worker") == {f"w{n}": [0.5] * (7200 // step_s) for n in range(2, 22)}
            assert history.totals("f")["worker", "w9", "decode"]["steps"] == 7500
            ttft = SeriesQuery(fleet_id="f", metric="ttft_p50_s", since_unix_s=T0 + 7300, until_unix_s=T0 + 7301)
            assert history.series(ttft).series[0].points[0].count == 4
            history.settle(T0 + 9000)  # and the same again, all rolled up
    finally:
        history.close()
