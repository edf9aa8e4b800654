"""A generated history: any zoom into it, of every kind of line, shows every true extreme; on both databases."""

from __future__ import annotations

import numpy as np

from _zooms import UNTIL, measure_zooms
from control.history.demo_days import ROLES, group_day, worker_day
from control.history.store import History, SeriesQuery


def test_random_zooms_into_a_generated_history_show_every_true_extreme(url: str) -> None:
    found = measure_zooms(url, num_workers=2, days=2, num_zooms=70)
    assert found["zooms that are wrong"] == 0, found.get("the first that is wrong")
    history = History.open(url)
    query = SeriesQuery(
        fleet_id="zooms", metric="decode_busy", since_unix_s=UNTIL - 600, until_unix_s=UNTIL, by="worker"
    )
    result = history.series(query)
    history.close()
    assert result.provenance == "simulated"
    assert [line.label for line in result.series] == ["w0", "w1"]


def test_the_same_history_is_made_each_time() -> None:
    once, again = (worker_day(1, 5), worker_day(1, 5))
    assert all((once[kind][name] == again[kind][name]).all() for kind in once for name in once[kind])


def test_a_fleet_is_the_sum_of_its_roles() -> None:
    fleet, parts = group_day(20, 4), [group_day(20, 4, [role]) for role in ROLES]
    assert set(fleet["state"]["sum_num_workers"].tolist()) == {20.0}
    for kind in ("phase prefill", "phase decode"):
        both = sum(part[kind]["flops"] for part in parts if kind in part)
        np.testing.assert_allclose(fleet[kind]["flops"], both, rtol=1e-12)
