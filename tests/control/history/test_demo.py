"""A generated history: any zoom into it, of every kind of line, shows every true extreme; on both databases."""

from __future__ import annotations

from _zooms import UNTIL, measure_zooms
from control.history.store import History, SeriesQuery


def test_random_zooms_into_a_generated_history_show_every_true_extreme(url: str) -> None:
    found = measure_zooms(url, num_workers=2, days=2, num_zooms=140)
    assert found["zooms that are wrong"] == 0, found.get("the first that is wrong")
    history = History.open(url)
    query = SeriesQuery(
        fleet_id="zooms", metric="decode_busy", since_unix_s=UNTIL - 600, until_unix_s=UNTIL, by="worker"
    )
    result = history.series(query)
    history.close()
    assert result.provenance == "simulated"
    assert [line.label for line in result.series] == ["w0", "w1"]
