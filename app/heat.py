"""The latency heatmap as frames and a constant spec, and the cell that somebody clicked. Pure.

Colour says how many requests: one hue whose strength grows with the logarithm of the count, so that a lone slow request
is seen beside thousands. The chosen cell and the bound of the SLO are drawn from datasets of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import pyarrow as pa

from app import format, theme
from app.frames import arrow, ms
from app.layers import AXIS_PX, CONFIG, PADDING, X_AXIS, Spec
from control.types.latencies import Heatmap

PARAM: Final = "cell"
#: A tick of the axis of latencies.
SECONDS_EXPR: Final = "datum.value < 1 ? format(1000 * datum.value, '~r') + ' ms' : format(datum.value, '~r') + ' s'"
#: Where the axis of an empty heatmap lies, in seconds.
EMPTY_EDGES_S: Final = (0.01, 10.0)
#: The least strength of a cell that holds a request: it must be seen.
FAINTEST: Final = 0.16


@dataclass(frozen=True, slots=True)
class HeatCell:
    """Requests that arrived in [since, until) with a latency above `above_s` and up to `up_to_s`."""

    since_unix_s: float
    until_unix_s: float
    above_s: float
    up_to_s: float

    @property
    def address(self) -> str:
        """As it stands in the address of the page."""
        return f"{self.since_unix_s:.0f},{self.until_unix_s:.0f},{self.above_s!r},{self.up_to_s!r}"


def cell_of(address: str | None) -> HeatCell | None:
    """The cell in an address; None for anything that is none."""
    try:
        since, until, above_s, up_to_s = (float(part) for part in (address or "").split(","))
    except ValueError:
        return None
    is_cell = 0 < since < until < 1e11 and 0 <= above_s < up_to_s < 1e6
    return HeatCell(since, until, above_s, up_to_s) if is_cell else None


def chosen_cell(event: Mapping[str, Any], found: Heatmap) -> HeatCell | None:
    """The cell of a Vega-Lite point selection; None when nothing is selected."""
    selection = event.get("selection")
    rows = selection.get(PARAM) if isinstance(selection, Mapping) else None
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], Mapping):
        return None
    column, number = rows[0].get("column"), rows[0].get("bin")
    if not isinstance(column, int | float) or not isinstance(number, int | float):
        return None
    return cell_at(found, int(column), int(number))


def cell_at(found: Heatmap, column: int, number: int) -> HeatCell | None:
    """The cell of this column and bin; None when the heatmap has no such bin."""
    if not 0 <= number < len(found.edges_s) - 1:
        return None
    start = found.since_unix_s + column * found.step_s
    return HeatCell(start, start + found.step_s, found.edges_s[number], found.edges_s[number + 1])


def count_in(found: Heatmap, cell: HeatCell) -> float:
    """Requests of a heatmap in one of its cells."""
    cells = zip(found.columns, found.bins, found.counts, strict=True)
    return sum(count for column, number, count in cells if cell_at(found, column, number) == cell)


def datasets(found: Heatmap, chosen: HeatCell | None) -> dict[str, bytes]:
    """What the spec draws: live, bound, chosen, span."""
    edges = found.edges_s or EMPTY_EDGES_S
    return {
        "live": _cells(found),
        "bound": _bound(found),
        "chosen": _chosen(chosen, edges[0]),
        "span": _span(found, edges),
    }


def _low(edge_s: float, top_s: float) -> float:
    """A logarithmic axis has no zero: the first bin is drawn as high as the others."""
    return edge_s or top_s / 1.27


def _cells(found: Heatmap) -> bytes:
    most = max(found.counts, default=1.0)
    rows = []
    for column, number, count in zip(found.columns, found.bins, found.counts, strict=True):
        start, low, top = found.since_unix_s + column * found.step_s, found.edges_s[number], found.edges_s[number + 1]
        rows.append(
            {
                "t": ms(start),
                "t2": ms(start + found.step_s),
                "lo": _low(low, top),
                "hi": top,
                "column": column,
                "bin": number,
                "strength": strength(count, most),
                "words": f"{format.count(count)} request{'' if round(count) == 1 else 's'}, "
                f"above {format.duration(low)} up to {format.duration(top)}",
            }
        )
    kinds = [("t", pa.float64()), ("t2", pa.float64()), ("lo", pa.float64()), ("hi", pa.float64())]
    more = [("column", pa.int32()), ("bin", pa.int32()), ("strength", pa.float64()), ("words", pa.string())]
    return arrow(pa.Table.from_pylist(rows, pa.schema([*kinds, *more])))


def strength(count: float, most: float) -> float:
    """How strongly a cell is drawn, FAINTEST..1: by the logarithm of its count."""
    if most <= 1.0:
        return 1.0 if count >= most else FAINTEST
    return FAINTEST + (1.0 - FAINTEST) * math.log1p(count) / math.log1p(most)


def _bound(found: Heatmap) -> bytes:
    there = found.bound_s is not None and bool(found.edges_s)
    columns = {
        "at": [found.bound_s] if there else [],
        "t": [ms(found.until_unix_s)] if there else [],
        "label": [found.bound_text] if there else [],
    }
    return arrow(pa.table(columns, pa.schema([("at", pa.float64()), ("t", pa.float64()), ("label", pa.string())])))


def _chosen(cell: HeatCell | None, first_edge_s: float) -> bytes:
    rows = (
        []
        if cell is None
        else [
            {
                "t": ms(cell.since_unix_s),
                "t2": ms(cell.until_unix_s),
                "lo": _low(cell.above_s, cell.up_to_s),
                "hi": cell.up_to_s,
            }
        ]
    )
    return arrow(pa.Table.from_pylist(rows, pa.schema([(name, pa.float64()) for name in ("t", "t2", "lo", "hi")])))


def _span(found: Heatmap, edges: tuple[float, ...]) -> bytes:
    ends = [ms(found.since_unix_s), ms(found.until_unix_s)]
    return arrow(pa.table({"t": ends, "lo": [_low(edges[0], edges[1]), edges[-1]]}))


@cache
def spec(height: int, time_format: str) -> Spec:
    """Cells over time and latency. A click gives `cell`: its column and bin. Datasets: live, bound, chosen, span."""
    x, y = _time_axis(time_format), _latency_axis()
    box: Mapping[str, Any] = {"x": x, "x2": {"field": "t2"}, "y": y, "y2": {"field": "hi"}}
    select = {"type": "point", "fields": ["column", "bin"], "on": "click", "toggle": False}
    cells = {
        "data": {"name": "live"},
        "params": [{"name": PARAM, "select": select}],
        "mark": {"type": "rect", "color": theme.DECODE, "cursor": "pointer"},
        "encoding": {
            **box,
            "opacity": {"field": "strength", "type": "quantitative", "scale": None, "legend": None},
            "tooltip": {"field": "words", "type": "nominal", "title": "Cell"},
        },
    }
    chosen = {
        "data": {"name": "chosen"},
        "mark": {"type": "rect", "filled": False, "stroke": theme.PREFILL, "strokeWidth": 2, "tooltip": None},
        "encoding": box,
    }
    pin = {
        "data": {"name": "span"},
        "mark": {"type": "point", "opacity": 0, "tooltip": None},
        "encoding": {"x": x, "y": y},
    }
    layers = [pin, cells, *_bound_layers(x, y), chosen]
    return {"height": height, "layer": layers, "padding": PADDING, "config": CONFIG}


def _time_axis(time_format: str) -> Spec:
    return {
        "field": "t",
        "type": "temporal",
        "axis": {**X_AXIS, "labelExpr": f"timeFormat(datum.value, '{time_format}')"},
        "scale": {"nice": False},
    }


def _latency_axis() -> Spec:
    return {
        "field": "lo",
        "type": "quantitative",
        "scale": {"type": "log", "nice": False},
        "axis": {
            "title": None,
            "labelExpr": SECONDS_EXPR,
            "values": [each * 10.0**power for power in range(-5, 4) for each in (1, 3)],
            "minExtent": AXIS_PX,
            "maxExtent": AXIS_PX,
            "domain": False,
            "ticks": False,
            "gridOpacity": 0.4,
        },
    }


def _bound_layers(x: Spec, y: Spec) -> list[Spec]:
    """A bound of the SLO, as a rule and its words."""
    at = {**y, "field": "at"}
    color = {"color": theme.DANGER, "tooltip": None}
    rule = {
        "data": {"name": "bound"},
        "mark": {"type": "rule", "strokeDash": [6, 4], "strokeWidth": 1.5, **color},
        "encoding": {"y": at},
    }
    label = {
        "data": {"name": "bound"},
        "mark": {"type": "text", "align": "right", "dx": -4, "dy": -6, "fontSize": 11, **color},
        "encoding": {"x": x, "y": at, "text": {"field": "label", "type": "nominal"}},
    }
    return [rule, label]
