"""Vega-Lite specs: constant per chart, so that a refresh swaps named datasets and brush, zoom and place survive.

A spec holds no value that changes with the data: both axes are pinned by the invisible dataset `span`. Frames come from
`app.frames`; `app.draw` puts the two together. Times are ms since the epoch and show in the viewer's time zone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from app import theme

Spec = dict[str, Any]
AXIS_PX = 46  # every chart of a page starts at the same x

X_AXIS: Spec = {
    "title": None,
    "grid": False,
    "tickSize": 4,
    "labelOverlap": True,
    "labelPadding": 4,
    "labelExpr": "timeFormat(datum.value, seconds(datum.value) ? '%H:%M:%S' : '%H:%M')",
    "tickCount": 10,
}
PADDING: Spec = {"left": 4, "right": 8, "top": 6, "bottom": 2}
CONFIG: Spec = {
    "view": {"stroke": None},
    "axis": {"labelFontSize": 11, "titleFontSize": 11, "titleFontWeight": "normal"},
}


def x_time(**more: Any) -> Spec:
    return {"field": "t", "type": "temporal", "axis": X_AXIS, "scale": {"nice": False}, **more}


def y_value(number_format: str, title: str | None, ticks: int = 4) -> Spec:
    axis = {
        "title": title,
        "format": number_format,
        "tickCount": ticks,
        "minExtent": AXIS_PX,
        "maxExtent": AXIS_PX,
        "domain": False,
        "ticks": False,
        "gridOpacity": 0.5,
    }
    return {"field": "value", "type": "quantitative", "axis": axis, "scale": {"nice": False, "zero": False}}


def line_scales(names: Sequence[str], colors: Sequence[str], dashes: Sequence[Sequence[int]]) -> tuple[Spec, Spec]:
    color = {
        "field": "line",
        "type": "nominal",
        "scale": {"domain": list(names), "range": list(colors)},
        "legend": None,
    }
    dash = {
        "field": "line",
        "type": "nominal",
        "scale": {"domain": list(names), "range": [list(each) for each in dashes]},
        "legend": None,
    }
    return color, dash


def pin_layer(y: Spec) -> Spec:
    return {"data": {"name": "span"}, "mark": {"type": "point", "opacity": 0}, "encoding": {"x": x_time(), "y": y}}


LABEL_ROWS = 3  # further labels of commands at the same time show on hover
ROW_PX = 13
HOVERED = "isValid(cursor) && isArray(cursor.t) && abs(cursor.t[0] - datum.t) < datum.near"


def command_layers(*, labels: bool, cursor: bool = True) -> list[Spec]:
    """Commands as thin vertical rules, with their labels at the top; near the right edge a label stands to the left.

    Labels that would cover each other take rows; beyond LABEL_ROWS one shows when the read-out is at its rule.
    """
    rule = {
        "data": {"name": "commands"},
        "mark": {"type": "rule", "strokeWidth": 1, "strokeDash": [3, 3], "opacity": 0.75, "color": theme.MIXED},
        "encoding": {"x": x_time(), "tooltip": {"field": "label", "type": "nominal", "title": "Command"}},
    }
    if not labels:
        return [rule]
    first = command_text(f"datum.level < {LABEL_ROWS}", f"{ROW_PX} * datum.level")
    if not cursor:
        return [rule, first]
    return [rule, first, command_text(f"datum.level >= {LABEL_ROWS} && {HOVERED}", f"{ROW_PX} * datum.level")]


def command_text(shown: str, dy: str) -> Spec:
    return {
        "data": {"name": "commands"},
        "transform": [{"filter": shown}],
        "mark": {
            "type": "text",
            "align": {"expr": "datum.late ? 'right' : 'left'"},
            "dx": {"expr": "datum.late ? -4 : 4"},
            "dy": {"expr": dy},
            "baseline": "top",
            "y": 0,
            "fontSize": 11,
            "color": theme.MIXED,
            "tooltip": None,
        },
        "encoding": {"x": x_time(), "text": {"field": "label", "type": "nominal"}},
    }


def cursor_layers(color: Spec, y: Spec, number_format: str) -> list[Spec]:
    """The read-out: nearest moment, a rule, its time and each line's value. Vega's tooltips vanish at each refresh."""
    chosen = {"filter": {"param": "cursor", "empty": False}}
    pick = {
        "data": {"name": "live"},
        "params": [
            {
                "name": "cursor",
                "select": {
                    "type": "point",
                    "encodings": ["x"],
                    "nearest": True,
                    "on": "pointermove",
                    "clear": "pointerout",
                },
            }
        ],
        "mark": {"type": "point", "tooltip": None, "opacity": 0},
        "encoding": {"x": x_time(), "y": y},
    }
    rule = {
        "data": {"name": "live"},
        "transform": [chosen],
        "mark": {"type": "rule", "tooltip": None, "strokeWidth": 1, "opacity": 0.5, "color": theme.MIXED},
        "encoding": {"x": x_time()},
    }
    dots = {
        "data": {"name": "live"},
        "transform": [chosen],
        "mark": {"type": "point", "tooltip": None, "filled": True, "size": 36, "opacity": 1},
        "encoding": {"x": x_time(), "y": y, "color": color},
    }
    values = {
        "data": {"name": "live"},
        "transform": [chosen],
        "mark": {
            "type": "text",
            "tooltip": None,
            "align": "left",
            "dx": 8,
            "dy": -8,
            "fontSize": 12,
            "fontWeight": 600,
        },
        "encoding": {
            "x": x_time(),
            "y": y,
            "color": color,
            "text": {"field": "value", "type": "quantitative", "format": number_format},
        },
    }
    moment = {
        "data": {"name": "live"},
        "transform": [chosen, {"aggregate": [], "groupby": ["t"]}],
        "mark": {
            "type": "text",
            "tooltip": None,
            "align": "center",
            "baseline": "bottom",
            "y": "height",
            "dy": -4,
            "fontSize": 11,
        },
        "encoding": {
            "x": x_time(),
            "text": {"field": "t", "type": "temporal", "format": "%H:%M:%S"},
            "color": {"value": theme.MIXED},
        },
    }
    return [pick, rule, dots, values, moment]


@cache
def lines(
    *,
    names: tuple[str, ...],
    colors: tuple[str, ...],
    dashes: tuple[tuple[int, ...], ...],
    number_format: str,
    read_format: str,
    title: str | None,
    height: int,
    labels: bool = True,
) -> Spec:
    """Lines over their min-max bands, with commands and a read-out. Datasets: live, span, commands."""
    color, dash = line_scales(names, colors, dashes)
    y = y_value(number_format, title)
    band = {
        "data": {"name": "live"},
        "mark": {"type": "area", "tooltip": None, "opacity": 0.15, "line": False},
        "encoding": {"x": x_time(), "y": {**y, "field": "lo"}, "y2": {"field": "hi"}, "color": color},
    }
    line = {
        "data": {"name": "live"},
        "mark": {"type": "line", "tooltip": None, "strokeWidth": 1.8, "strokeJoin": "round"},
        "encoding": {"x": x_time(), "y": y, "color": color, "strokeDash": dash},
    }
    cursor = cursor_layers(color, y, read_format)
    layers = [pin_layer(y), *command_layers(labels=labels), band, line, *cursor]
    return {"height": height, "layer": layers, "padding": PADDING, "config": CONFIG}


@cache
def role_steps(height: int) -> Spec:
    """Workers per role, as steps under the same time axis. Datasets: live, span, commands."""
    names = ("prefill", "decode", "mixed", "unassigned")
    color, dash = line_scales(names, [theme.ROLE_COLORS[n] for n in names], [theme.ROLE_DASHES[n] for n in names])
    y = y_value("d", None, ticks=3)
    y["axis"] = {**y["axis"], "tickMinStep": 1}
    line = {
        "data": {"name": "live"},
        "mark": {"type": "line", "tooltip": None, "interpolate": "step-after", "strokeWidth": 2},
        "encoding": {"x": x_time(), "y": y, "color": color, "strokeDash": dash},
    }
    cursor = cursor_layers(color, y, "d")
    return {
        "height": height,
        "layer": [pin_layer(y), *command_layers(labels=False), line, *cursor],
        "padding": PADDING,
        "config": CONFIG,
    }


@cache
def day_strip(height: int, colors: tuple[tuple[str, str, tuple[int, ...]], ...]) -> Spec:
    """The last day, to brush. Datasets: live, span. The selection `brush` gives the chosen [from, to]."""
    color, dash = line_scales([n for n, _, _ in colors], [c for _, c, _ in colors], [d for _, _, d in colors])
    y = y_value(".0%", None, ticks=2)
    x = x_time(axis={**X_AXIS, "tickCount": 12})
    line = {
        "data": {"name": "live"},
        "params": [{"name": "brush", "select": {"type": "interval", "encodings": ["x"]}}],
        "mark": {"type": "line", "tooltip": None, "strokeWidth": 1},
        "encoding": {"x": x, "y": y, "color": color, "strokeDash": dash},
    }
    pin = {
        "data": {"name": "span"},
        "mark": {"type": "point", "tooltip": None, "opacity": 0},
        "encoding": {"x": x, "y": y},
    }
    return {"height": height, "layer": [pin, line], "padding": PADDING, "config": CONFIG}


@cache
def explore(
    *, names: tuple[str, ...], number_format: str, title: str, compared: bool, height: int, time_format: str
) -> Spec:
    """Any metric. Drag to zoom (`zoom` gives [from, to]). The earlier window is dashed. Datasets: live, past, span."""
    x = x_time(axis={**X_AXIS, "labelExpr": f"timeFormat(datum.value, '{time_format}')"})
    palette = [theme.CATEGORICAL[index % len(theme.CATEGORICAL)] for index in range(len(names))]
    laps = [index // len(theme.CATEGORICAL) for index in range(len(names))]
    legend: Spec = {"title": None, "orient": "bottom", "columns": 6, "labelLimit": 220}
    legend |= {"symbolType": "stroke", "symbolOpacity": 1, "symbolStrokeWidth": 2}
    color, dash = line_scales(names, palette, [[1, 0] if lap == 0 else [4, 2] for lap in laps])
    color["legend"] = legend if len(names) > 1 else None
    y = y_value(number_format, title or None, ticks=6)
    band = {
        "data": {"name": "live"},
        "mark": {"type": "area", "opacity": 0.15, "line": False},
        "encoding": {
            "x": x,
            "y": {**y, "field": "lo"},
            "y2": {"field": "hi"},
            "color": color,
        },
    }
    line = {
        "data": {"name": "live"},
        "mark": {"type": "line", "strokeWidth": 1.8, "strokeJoin": "round"},
        "encoding": {"x": x, "y": y, "color": color, "strokeDash": dash},
    }
    past = {
        "data": {"name": "past"},
        "mark": {"type": "line", "strokeWidth": 1.5, "strokeDash": [5, 4], "opacity": 0.55},
        "encoding": {"x": x, "y": y, "color": color},
    }
    zoom = {
        "data": {"name": "span"},
        "params": [{"name": "zoom", "select": {"type": "interval", "encodings": ["x"]}}],
        "mark": {"type": "point", "opacity": 0},
        "encoding": {"x": x, "y": y},
    }
    layers = [zoom, *command_layers(labels=True, cursor=False), band, *([past] if compared else []), line]
    return {"height": height, "layer": layers, "padding": PADDING, "config": CONFIG}


@cache
def timeline(num_rows: int) -> Spec:
    """Role intervals as bars, one row per worker. Datasets: live, span."""
    names = tuple(theme.ROLE_COLORS)
    color = {
        "field": "role",
        "type": "nominal",
        "scale": {"domain": list(names), "range": [theme.ROLE_COLORS[name] for name in names]},
        "legend": None,
    }
    y = {
        "field": "worker",
        "type": "nominal",
        "axis": {"title": None, "minExtent": AXIS_PX, "domain": False, "ticks": False},
    }
    x = {"field": "start", "type": "temporal", "axis": X_AXIS, "scale": {"nice": False}}
    encoding: Mapping[str, Any] = {"x": x, "x2": {"field": "end"}, "y": y}
    bars = {
        "data": {"name": "live"},
        "mark": {"type": "bar", "height": 22, "cornerRadius": 2, "opacity": 0.85},
        "encoding": {**encoding, "color": color},
    }
    text = {
        "data": {"name": "live"},
        "mark": {"type": "text", "align": "left", "dx": 6, "fontSize": 11, "color": "#ffffff", "clip": True},
        "encoding": {"x": x, "y": y, "text": {"field": "text", "type": "nominal"}},
    }
    pin = {"data": {"name": "span"}, "mark": {"type": "point", "opacity": 0}, "encoding": {"x": {**x, "field": "t"}}}
    return {"height": 30 * num_rows + 36, "layer": [pin, bars, text], "padding": PADDING, "config": CONFIG}


@cache
def stages() -> Spec:
    """One request's life as bars over seconds since its arrival. Datasets: live, marks."""
    names = ["queued", "prefill", "handoff", "decode", "not attributed"]
    colors = [theme.MIXED, theme.PREFILL, "#a371f7", theme.DECODE, theme.MIXED]
    y = {
        "field": "stage",
        "type": "nominal",
        "sort": names,
        "axis": {"title": None, "domain": False, "ticks": False, "minExtent": 90},
    }
    x = {
        "field": "start",
        "type": "quantitative",
        "axis": {"title": "seconds after arrival", "format": "~s", "grid": True, "tickCount": 8},
    }
    bars = {
        "data": {"name": "live"},
        "mark": {"type": "bar", "tooltip": None, "height": 18, "cornerRadius": 2},
        "encoding": {
            "x": x,
            "x2": {"field": "end"},
            "y": y,
            "color": {"field": "stage", "type": "nominal", "scale": {"domain": names, "range": colors}, "legend": None},
        },
    }
    text = {
        "data": {"name": "live"},
        "mark": {"type": "text", "tooltip": None, "align": "left", "dx": 6, "fontSize": 12},
        "encoding": {
            "x": {**x, "field": "end"},
            "y": y,
            "text": {"field": "text", "type": "nominal"},
            "color": {"value": theme.MIXED},
        },
    }
    first = {
        "data": {"name": "marks"},
        "mark": {"type": "rule", "strokeDash": [3, 3], "color": theme.MIXED},
        "encoding": {"x": {**x, "field": "at"}},
    }
    label = {
        "data": {"name": "marks"},
        "mark": {
            "type": "text",
            "align": "left",
            "dx": 4,
            "baseline": "bottom",
            "y": -2,
            "fontSize": 11,
            "color": theme.MIXED,
        },
        "encoding": {"x": {**x, "field": "at"}, "text": {"field": "label", "type": "nominal"}},
    }
    return {"height": 180, "layer": [first, label, bars, text], "padding": {**PADDING, "top": 16}, "config": CONFIG}
