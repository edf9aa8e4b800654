"""The Requests page: a heatmap whose cells list their requests, what is different about them, all in the address."""

from __future__ import annotations

from datetime import UTC

import pytest

from app import differences, heat
from app.heat import HeatCell
from app.views.requests import list_words
from control.types.latencies import Difference, Explanation, Heatmap
from control.types.requests import RecordCounts
from tests.app.builders import NOW, plane_and_hub, rows
from tests.app.test_pages import opened, opened_with, text


def heatmap(**changes: object) -> Heatmap:
    values: dict[str, object] = {
        "fleet_id": "f",
        "metric": "ttft",
        "since_unix_s": NOW - 300,
        "until_unix_s": NOW,
        "step_s": 30,
        "edges_s": (0.1, 0.2, 0.4),
        "columns": (0, 3),
        "bins": (1, 0),
        "counts": (40.0, 2.0),
        "is_estimated": False,
        "bound_s": 0.3,
        "bound_text": "SLO 300 ms",
        "simulated": False,
        "requests": RecordCounts(num_requests=42, kept={"share": 42}, dropped={}),
    }
    return Heatmap(**{**values, **changes})  # type: ignore[arg-type]


def test_a_cell_is_drawn_where_its_requests_are_and_names_their_number() -> None:
    data = heat.datasets(heatmap(), HeatCell(NOW - 300, NOW - 270, 0.2, 0.4))
    first, second = rows(data["live"])
    assert (first["t"], first["t2"], first["lo"], first["hi"]) == ((NOW - 300) * 1000, (NOW - 270) * 1000, 0.2, 0.4)
    assert first["words"] == "40 requests, above 200 ms up to 400 ms"
    assert first["strength"] == 1.0
    assert heat.FAINTEST < float(str(second["strength"])) < 0.6
    assert [each["at"] for each in rows(data["bound"])] == [0.3]
    assert [each["lo"] for each in rows(data["chosen"])] == [0.2]


def test_a_click_is_a_cell_of_the_address_and_back() -> None:
    cell = heat.chosen_cell({"selection": {"cell": [{"column": 3, "bin": 0}]}}, heatmap())
    assert cell == HeatCell(NOW - 210, NOW - 180, 0.1, 0.2)
    assert heat.cell_of(cell.address) == cell
    assert heat.count_in(heatmap(), cell) == 2.0


@pytest.mark.parametrize("event", [{}, {"selection": {"cell": []}}, {"selection": {"cell": [{"column": 1, "bin": 9}]}}])
def test_nothing_selected_is_no_cell(event: dict[str, object]) -> None:
    assert heat.chosen_cell(event, heatmap()) is None


@pytest.mark.parametrize("address", [None, "", "1,2,3", "a,b,c,d", "5,4,0.1,0.2", "1,2,nan,3", "1,2,0.3,0.2"])
def test_an_address_that_is_no_cell_is_ignored(address: str | None) -> None:
    assert heat.cell_of(address) is None


def test_no_request_is_an_empty_heatmap_and_not_a_zero() -> None:
    data = heat.datasets(heatmap(edges_s=(), columns=(), bins=(), counts=()), None)
    assert (rows(data["live"]), rows(data["bound"])) == ([], [])


def test_the_list_says_what_it_is_of() -> None:
    cell = HeatCell(NOW - 210, NOW - 180, 0.1, 0.2)
    zone = UTC
    assert list_words(heatmap(), cell, 1, zone).startswith("Listed: 1 of 2 requests of this cell, arrived ")
    assert "1 of about 2 requests" in list_words(heatmap(is_estimated=True), cell, 1, zone)
    counts = RecordCounts(num_requests=1000, kept={"slow": 30, "share": 70}, dropped={"served": 900})
    told = list_words(heatmap(requests=counts), None, 100, zone)
    assert told == (
        "100 listed. 1,000 requests arrived in this time; records are kept of 100: 30 slow, and 70 by chance. "
        "The others are counted."
    )


def test_differences_are_bars_with_both_shares() -> None:
    found = Explanation(
        fleet_id="f",
        asked="not good",
        since_unix_s=0.0,
        until_unix_s=1.0,
        num_requests=50.0,
        num_rest=900.0,
        num_records=50,
        num_rest_records=900,
        differences=(
            Difference(dimension="API key", value="<b>", share=0.8, rest_share=0.1, num_records=40, p_value=1e-9),
        ),
        note="by all records",
    )
    told = differences.bars(found)
    assert "&lt;b&gt;" in told
    assert "80.0% against 10.0%" in told
    assert "width:80.0%" in told


def test_the_page_shows_the_heatmap_what_is_different_and_the_list() -> None:
    _, hub, _ = plane_and_hub()
    app = opened(hub, "requests")
    shown = text(app)
    assert not app.exception
    assert "What is different about the slow ones" in shown
    assert "requests arrived in this time; all of them have a record" in shown
    assert len(app.dataframe[0].value) == 119  # one arrives just now


def test_a_cell_in_the_address_lists_its_requests_and_asks_what_is_different_about_them() -> None:
    plane, hub, _ = plane_and_hub()
    found = plane.connect("operator-token").heatmap(NOW - 3600, NOW, metric="ttft")
    slowest = max(zip(found.bins, found.columns, strict=True))
    cell = heat.cell_at(found, slowest[1], slowest[0])
    assert cell is not None
    bounds = {"from": f"{found.since_unix_s:.0f}", "to": f"{found.until_unix_s:.0f}"}
    app = opened_with(hub, "requests", cell=cell.address, **bounds)
    shown = text(app)
    assert "What is different about these" in shown
    assert "requests of this cell, arrived" in shown
    assert len(app.dataframe[0].value) == heat.count_in(found, cell)
    assert set(app.dataframe[0].value["past"]) == {"TTFT"}


def test_filters_in_the_address_narrow_the_list_and_say_that_the_heatmap_is_estimated() -> None:
    _, hub, _ = plane_and_hub()
    app = opened_with(hub, "requests", outcome="failed", worker="w1", latency="gap")
    assert not app.exception
    assert set(app.dataframe[0].value["outcome"]) == {"error 503"}
    assert "Back to live" not in [each.label for each in app.button]


def test_a_past_range_offers_the_way_back_to_live() -> None:
    _, hub, _ = plane_and_hub()
    app = opened_with(hub, "requests", **{"from": f"{NOW - 400:.0f}", "to": f"{NOW - 200:.0f}"})
    assert len(app.dataframe[0].value) == 50
    next(each for each in app.button if each.label == "Back to live").click().run()
    assert len(app.dataframe[0].value) == 119  # one arrives just now
