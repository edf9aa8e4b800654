"""Specs: constant, so that a refresh swaps data only, and valid Vega-Lite."""

from __future__ import annotations

import json

import altair as alt
import pytest

from app import charts, draw, lines
from app.charts import Spec


def utilization() -> Spec:
    drawn = lines.utilization("wall", "phase", blended=True)
    return charts.lines(
        names=tuple(line.name for line in drawn),
        colors=tuple(line.color for line in drawn),
        dashes=tuple(line.dash for line in drawn),
        number_format=".0%",
        read_format=".1%",
        title=None,
        height=200,
    )


def explore() -> Spec:
    return charts.explore(
        names=("a", "b"), number_format="~s", title="tok/s", compared=True, height=300, time_format="%H:%M"
    )


SPECS = {
    "utilization": utilization,
    "roles": lambda: charts.role_steps(90),
    "day": lambda: charts.day_strip(80, (("a", "#123456", (1, 0)),)),
    "explore": explore,
    "timeline": lambda: charts.timeline(1),
    "stages": charts.stages,
}


@pytest.mark.parametrize("name", SPECS)
def test_a_spec_is_valid_vega_lite(name: str) -> None:
    alt.LayerChart.from_dict(SPECS[name](), validate=True)


def test_the_same_chart_has_the_same_spec_at_every_refresh() -> None:
    assert utilization() is utilization()
    assert json.dumps(explore()) == json.dumps(explore())


def test_roles_and_phases_differ_in_dash_as_well_as_in_colour() -> None:
    prefill, decode = lines.utilization("wall", "phase", blended=False)
    assert prefill.color != decode.color
    assert prefill.dash != decode.dash


def test_wall_and_in_phase_are_never_mixed() -> None:
    for basis, other in (("wall", "in_phase"), ("in_phase", "wall")):
        metrics = [line.metric for line in lines.utilization(basis, "role", blended=False)]  # type: ignore[arg-type]
        assert not any(metric.endswith(other) for metric in metrics)


def test_a_brush_is_read_as_seconds_in_order() -> None:
    event = {"selection": {"brush": {"t": [9000.0, 3000.0]}}}
    assert draw.selected_interval(event, "brush") == (3.0, 9.0)
    assert draw.selected_interval({"selection": {}}, "brush") is None
    assert draw.selected_interval({"selection": {"brush": {"t": [5.0, 5.0]}}}, "brush") is None
